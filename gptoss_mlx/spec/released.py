"""The models OpenAI released, known by their config.json before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

_DATA = Path(__file__).parent.parent / "data"

CONFIGS = MappingProxyType(
    {f"openai/gpt-oss-{size}": _DATA / f"gpt-oss-{size}-config.json" for size in ("20b", "120b")}
)
"""Hugging Face id -> the released config.json, byte for byte."""

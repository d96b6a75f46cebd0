"""Harmony, the format gpt-oss reads and writes: render, parse, constrain."""

from __future__ import annotations

from gptoss_mlx.harmony.encoding import STOP_IDS, Encoding
from gptoss_mlx.harmony.render import Conversation, render, render_reply

__all__ = ["STOP_IDS", "Conversation", "Encoding", "render", "render_reply"]

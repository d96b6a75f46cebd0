"""Harmony, the format gpt-oss reads and writes: render, parse, constrain."""

from __future__ import annotations

from gptoss_mlx.harmony.encoding import STOP_IDS, Encoding
from gptoss_mlx.harmony.headers import Headers, HeaderState
from gptoss_mlx.harmony.parse import ParsedMessage, Parser, Piece
from gptoss_mlx.harmony.render import Conversation, render, render_reply
from gptoss_mlx.harmony.tools import Tools, read_tools
from gptoss_mlx.spec.sampling import Mask

__all__ = [
    "STOP_IDS",
    "Conversation",
    "Encoding",
    "HeaderState",
    "Headers",
    "Mask",
    "ParsedMessage",
    "Parser",
    "Piece",
    "Tools",
    "read_tools",
    "render",
    "render_reply",
]

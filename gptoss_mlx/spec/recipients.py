"""Whom a message of the model's is for: a function, or a tool that it was trained with."""

from __future__ import annotations

from collections.abc import Mapping

BUILTIN: Mapping[str, tuple[str, ...]] = {
    "browser": ("browser.search", "browser.open", "browser.find"),
    "python": ("python",),
}
"""The builtin tools, and the recipients of their calls."""

FUNCTIONS = "functions."
"""What the recipient of a function's call begins with."""


def type_of(recipient: str) -> str:
    """The type of a call for this recipient: a builtin tool, or "function"."""
    return next((tool for tool, known in BUILTIN.items() if recipient in known), "function")

"""What the emulator raises."""

from __future__ import annotations


class MetalError(Exception):
    """A kernel that Metal would reject, or that went wrong while it ran.

    Each line of the message starts with `file:line:` of the kernel's text where one is known.
    """

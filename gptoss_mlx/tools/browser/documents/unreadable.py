"""Why a file gives no text, and how much text a file may give."""

from __future__ import annotations

TEXT_LIMIT = 4 << 20
"""Characters of a document's text; what is beyond is cut off."""


class UnreadableError(Exception):
    """A file without text that can be read. can_change: whether installing a library would help."""

    def __init__(self, why: str, *, can_change: bool = False) -> None:
        super().__init__(why)
        self.can_change = can_change


class OtherKindError(UnreadableError):
    """A file that is no document, such as a picture."""

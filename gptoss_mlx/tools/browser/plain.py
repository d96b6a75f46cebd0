"""Plain text: what a document or page says, without characters that are instructions to a display.

The brackets of links and citations are ours alone: those of a page become similar ones, so that no
page can forge a mark. The texts of control tokens stay, since they are encoded as text.
"""

from __future__ import annotations

import re

from gptoss_mlx.harmony.encoding import with_whole_characters

# C0 and C1 controls but for tab and newline, soft hyphen, marks of direction, zero-width space,
# invisible operators, byte order mark, annotations, tags and the variation selectors above the BMP.
# The joiners U+200C and U+200D stay: Persian, Hindi and emoji are misspelled without them.
_HIDDEN = (
    "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff"
)
_BREAKS = "\r\v\f\x1c-\x1e\x85\u2028\u2029"
_LIKE = {"【": "〖", "】": "〗"}
_ODD = re.compile(f"\r\n|[{_BREAKS}]|[{_HIDDEN}]+|[{''.join(_LIKE)}]")


def plain(text: str) -> str:
    """The text with newlines as its only breaks, nothing hidden in it and no bracket of a mark."""
    return _ODD.sub(_instead, with_whole_characters(text))


def one_line(text: str, limit: int) -> str:
    """`plain` text in one line, each run of blanks one space; cut off at `limit` characters."""
    text = " ".join(plain(text[: 16 * limit]).split())
    return text if len(text) <= limit else text[: limit - 3].rstrip() + "..."


def _instead(match: re.Match[str]) -> str:
    found = match.group()
    if found in _LIKE:
        return _LIKE[found]
    return "\n" if re.match(f"[{_BREAKS}]", found) else ""

"""The header of a Harmony message: what it says, read from text that may be malformed."""

from __future__ import annotations

import re
from dataclasses import dataclass

CHANNELS = ("analysis", "commentary", "final")
CONTENT_TYPES = ("json", "code", "text", "python", "xml", "yaml", "markdown")

_WORDS = re.compile(r"<\|\w+\|>|(?:(?!<\|)\S)+")
_BARE_RECIPIENT = re.compile(r"functions\.[\w-]+|browser\.\w+|python")
_KNOWN_CHANNEL = re.compile("|".join(CHANNELS))
# the part of a text without <|message|> that is surely header: role, recipient, channel, type
_PREFIX = re.compile(
    r"(?:<\|start\|>\s*(?:(?!to=)[\w.:-]+)?|\s*assistant(?=\s+to=|<\||\s*$))?"
    r"(?:\s*(?:to=(?:(?!<\|)\S)+"
    r"|<\|channel\|>\s*(?:(?:analysis|commentary|final)(?=[\s<A-Z]|$))?"
    r"|<\|constrain\|>\s*[a-z]*"
    r"|<\|\w+\|>))*\s*"
)


@dataclass(frozen=True, slots=True)
class Header:
    """Who a message is from and for; None where the header does not say it."""

    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    role: str = "assistant"


def read_header(text: str) -> Header:
    """Parse a header's text, special tokens included; words that make no sense are skipped.

    Of two channels the later one counts. The role is the assistant's unless the text names another.
    """
    found: dict[str, str] = {}
    expected = ""
    for word in _WORDS.findall(text):
        if word.startswith("<|"):
            expected = _EXPECTED.get(word, "")
        elif word.startswith("to="):
            expected = "recipient" if word == "to=" else ""
            if not expected:
                found["recipient"] = word[3:]
        elif expected == "channel":
            known = _KNOWN_CHANNEL.match(word)
            found["channel"] = known.group() if known else word
            rest = word[known.end() :] if known else ""
            if rest in CONTENT_TYPES:
                found.setdefault("content_type", rest)
            expected = ""
        elif expected:
            found[expected] = word
            expected = ""
        elif "recipient" not in found and _BARE_RECIPIENT.fullmatch(word):
            found["recipient"] = word
        elif word in CONTENT_TYPES:
            found.setdefault("content_type", word)
    return Header(
        channel=found.get("channel"),
        recipient=found.get("recipient"),
        content_type=found.get("content_type"),
        role=found.get("role", "assistant"),
    )


_EXPECTED = {"<|start|>": "role", "<|channel|>": "channel", "<|constrain|>": "content_type"}


def header_length(text: str) -> int:
    """The length of the header in a text without <|message|>; the rest was meant as content."""
    match = _PREFIX.match(text)
    return match.end() if match else 0


def is_cut_header(rest: str) -> bool:
    """Whether the text after a header's sure part is the beginning of another part of it."""
    word = rest.strip()
    return "to=".startswith(word) or any(name.startswith(word) for name in CHANNELS)

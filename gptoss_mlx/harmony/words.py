r"""The pretokenizer of o200k: cuts a text into pieces of whole words, which no token crosses.

The library cannot take every text: on a very long word its regular expression panics, and its
merging takes time quadratic in the length. So it is given a text in pieces.

A cut between two words changes no token, but for one case. The pattern has no lookbehind, so the
words after the cut are the same. Its only lookahead is `\s+(?!\S)`, which leaves the last of
several blanks to the next word. Where that word does not take the blank (` \t0`), a cut after it
would join it to the blanks before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import category

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_START = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = "|".join(
    (
        f"{_START}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_START}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""One word, as a regular expression with Unicode's properties."""

LONG = 256  # characters; longer words are merged in `merges`
PIECE = 16384  # characters, or some more: a tenth of a second between two checks for Ctrl-C

_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# A position that is surely between words, by the characters beside it: before a space or tab that
# follows no blank, or after a newline that neither a blank nor a slash follows.
_JOINT = rf"(?:(?<=[^{_BLANKS}])(?=[ \t])|(?<=[\r\n])(?=[^{_BLANKS}/]))"
_NEXT_JOINT = re.compile(_JOINT)
_SHORT_WORDS = re.compile(rf"(?s:.){{1,{LONG}}}(?:{_JOINT}|\Z)")

_LONG_S = "\u017f"  # an s, if case does not count
# By Unicode category, the character that stands for it in `_WORD`.
_STANDS_FOR = {
    **dict.fromkeys(("Lu", "Lt"), "A"),
    "Ll": "a",
    **dict.fromkeys(("Lm", "Lo"), "ª"),
    **dict.fromkeys(("Mn", "Mc", "Me"), "\u0300"),
    **dict.fromkeys(("Nd", "Nl", "No"), "0"),
}
_MEMBERS = {
    "Lu": "A-Z",
    "Ll": f"a-z{_LONG_S}",
    "Lt": "",
    "Lm": "",
    "Lo": "ª",
    "M": "\u0300",
    "L": f"A-Za-z{_LONG_S}ª",
    "N": r"\d",
}
_WORD = re.compile(re.sub(r"\\p\{(\w+)\}", lambda match: _MEMBERS[match[1]], PATTERN))


class _Stand(dict[int, str]):
    """A table for `str.translate`: characters become the one that stands for their category, while
    ASCII and the long s stay."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        if re.match(f"[{_BLANKS}]", letter):
            stand = letter if code < 0x80 else "\t"
        elif code in range(0x1C, 0x20):  # blanks to Python only
            stand = "\0"
        elif code < 0x80 or letter == _LONG_S:
            stand = letter
        else:
            stand = _STANDS_FOR.get(category(letter), "!")
        self[code] = stand
        return stand


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces of whole words, and whether one is a single word of more than LONG."""
    start = end = 0
    while end < len(text):
        words = _SHORT_WORDS.match(text, end)
        if words is not None:
            end = words.end()
            if end - start < PIECE:
                continue
        if start < end:
            yield text[start:end], False
        if words is None:
            joint = _NEXT_JOINT.search(text, end + 1)
            start, end = end, joint.start() if joint is not None else len(text)
            yield from _word_by_word(text[start:end])
        start = end
    if start < end:
        yield text[start:end], False


def _word_by_word(text: str) -> Iterator[tuple[str, bool]]:
    """`pieces` of a text that begins and ends between words."""
    stands = text.translate(_Stand())
    start = last = end = 0  # beginnings of the piece and of its last word, end of both
    for word in _WORD.finditer(stands):
        is_long = word.end() - end > LONG
        if start < end and (is_long or word.end() - start > PIECE):
            # A last blank that was left to the next word, but not taken by it, is a word of its own
            # only while text follows it, so it becomes a piece of its own.
            if start < last == end - 1 and stands[last - 1 : end].isspace():
                yield text[start:last], False
                start = last
            yield text[start:end], False
            start = end
        last, end = end, word.end()
        if is_long:
            yield text[start:end], True
            start = end
    if start < end:
        yield text[start:end], False

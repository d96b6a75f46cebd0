r"""The pretokenizer of o200k: words, none of which a token crosses, and pieces of whole words.

The library cannot take every text: its regular expression gives up in a panic on a very long word,
and its merging of one takes time quadratic in the length. So a text is given to it in pieces.

A cut between two words changes no token, but for one case. The pattern never looks behind a word,
so the words after the cut are the same. It looks ahead only in `\s+(?!\S)`, to leave the last of
several blanks to the next word. Where that does not take it (` \t0`), a cut behind the blank would
join it to those before.
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

LONG = 256  # characters; a word of more is merged here
PIECE = 16384  # characters, or some more: a tenth of a second between two looks at Ctrl-C

_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Surely between words, by the characters beside it: before a space or tab that follows no blank,
# and behind a newline that neither a blank nor a slash follows.
_JOINT = rf"(?:(?<=[^{_BLANKS}])(?=[ \t])|(?<=[\r\n])(?=[^{_BLANKS}/]))"
_NEXT_JOINT = re.compile(_JOINT)
_SHORT_WORDS = re.compile(rf"(?s:.){{1,{LONG}}}(?:{_JOINT}|\Z)")

_LONG_S = "\u017f"  # an s, if case does not count
# A character that stands for its property in `_WORD`, which has no other beyond ASCII.
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
    """For `str.translate`: ASCII and the long s stand for themselves."""

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
    start = last = end = 0  # of the piece, of its last word, and where both end
    for word in _WORD.finditer(stands):
        is_long = word.end() - end > LONG
        if start < end and (is_long or word.end() - start > PIECE):
            # A last blank that was left to the next word, and not taken by it, is a word of its
            # own only while something follows: it is a piece of its own as well.
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

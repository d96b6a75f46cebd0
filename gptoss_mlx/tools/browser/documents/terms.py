"""Terms of a text for search: words in any script, without case, accents and English plurals.

Scripts without spaces between words (Chinese, Japanese, Thai, ...) give pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)?")
# Thai, Lao, Myanmar, Khmer, kana, ideographs.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]+)"
)
_ACCENTS = re.compile("[\u0300-\u036f]")
_CAMEL = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_MIXED = re.compile("[a-z][A-Z]")
_POSSESSIVE = re.compile("['\u2019]s?$")
_SILENT = re.compile("(?:[sxz]|[cs]h)e$")
_LONG = 64  # characters; a longer word is data
_KEPT = 1 << 17  # words whose terms are remembered


def words(text: str) -> Iterator[re.Match[str]]:
    """The words of a text, where they stand."""
    return _WORD.finditer(text)


@lru_cache(_KEPT)
def terms_of(word: str) -> tuple[str, ...]:
    """The terms that a word is found by; a word in camel case is found by its parts, too."""
    if len(word) > _LONG:
        return ()
    parts = _CAMEL.findall(word) if _MIXED.search(word) else []
    found = [term for part in (word, *parts) for term in _terms(part)]
    return tuple(dict.fromkeys(found))


def _terms(word: str) -> Iterator[str]:
    folded = unicodedata.normalize("NFKC", word).casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKD", folded)
        folded = unicodedata.normalize("NFC", _ACCENTS.sub("", folded))
    for number, run in enumerate(_UNSPACED.split(folded)):
        if number % 2:
            pairs = [run[i : i + 2] for i in range(len(run) - 1)]
            yield from pairs or [run]
        elif run:
            yield stem(run)


def stem(word: str) -> str:
    """An English word without possessive and plural.

    By Harman's S stemmer (JASIS 42, 1991), and without the e of "boxe", "classe" and "cache", so
    that these are the words of "box", "class" and "cache".
    """
    word = _POSSESSIVE.sub("", word)
    if len(word) <= 3:
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    if word.endswith("s") and word[-2] not in "us":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and _SILENT.search(word) else word


def numbered(term: str) -> int:
    """A term as a number of 64 bits; two terms of a million share one by a chance of 3e-8."""
    return int.from_bytes(blake2b(term.encode(), digest_size=8).digest(), "little")

"""Control characters that JSON can only write as \\uXXXX, which the masks do not permit.

The compiler would drop them from a text without a word, and from a pattern wherever no other
character can stand in their place, so that what it permits would not be what was asked for.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_LOW, _DEL = (
    rf"(?:[{low}]|\\(?:x{code}|u00{code}|[xu]\{{0*{code}\}}{named}))"
    for low, code, named in (
        (r"\x00-\x07\x0b\x0e-\x1f", "(?:0[0-7bBeEfF]|1[0-9a-fA-F])", "|[av0]"),
        (r"\x7f", "7[fF]", ""),
    )
)
_CONTROLS = re.compile(f"{_LOW}|{_DEL}")
_ONLY_CONTROLS = re.compile(f"(?:{_LOW}(?:-{_LOW})?|{_DEL})+")
_CLASS = re.compile(r"\[(\^?)((?:\\.|[^\]\\])+)\]")


def has_control(text: str) -> bool:
    """Whether one of them is in a text."""
    return _CONTROL.search(text) is not None


def demands_control(pattern: str) -> bool:
    """Whether a regular expression has one of them, but in a class that has others as well."""
    plain = pattern.replace("\\\\", "/")  # an escaped backslash escapes nothing
    classes = [found[2] for found in _CLASS.finditer(plain) if not found[1]]
    return (
        any(_ONLY_CONTROLS.fullmatch(inside) for inside in classes)
        or _CONTROLS.search(_CLASS.sub("", plain)) is not None
    )

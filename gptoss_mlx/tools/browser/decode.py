"""Bytes to text: by a byte order mark, a declared charset, as UTF-8, else as Windows-1252."""

from __future__ import annotations

import codecs
import re

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WINDOWS = ("ascii", "iso8859-1")
"""Charsets that mean Windows-1252 on the web, by Python's names (WHATWG, Encoding)."""

_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
_XML = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{1,40})""", re.IGNORECASE)
_HEAD = 4096  # bytes in which a page declares its charset


def decode(data: bytes, charset: str | None = None) -> str:
    """The text of bytes; what cannot be read becomes U+FFFD. charset: as declared, if it was."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    name = _known(charset)
    if name is None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            name = "cp1252"
    return data.decode(name, "replace")


def declared_charset(data: bytes) -> str | None:
    """The charset that an HTML or XML file names at its beginning."""
    match = _XML.match(data.lstrip()[:_HEAD]) or _DECLARED.search(data[:_HEAD])
    return None if match is None else match[1].decode("ascii")


def is_text(data: bytes) -> bool:
    """Whether the beginning of a file looks like text: no NUL, or a byte order mark."""
    return b"\0" not in data or any(data.startswith(mark) for mark, _ in _MARKS)


def _known(charset: str | None) -> str | None:
    """Python's name of a charset of characters; None for one it does not know."""
    try:
        info = codecs.lookup(charset) if charset else None
    except (LookupError, ValueError):
        return None
    if info is None or not getattr(info, "_is_text_encoding", True) or info.name in _UNSAFE:
        return None
    return "cp1252" if info.name in _WINDOWS else info.name


_UNSAFE = ("utf-7", "punycode", "idna", "unicode_escape", "raw_unicode_escape", "undefined")

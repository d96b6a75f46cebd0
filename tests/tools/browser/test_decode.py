"""Bytes to text, by what they declare."""

from __future__ import annotations

import codecs

import pytest

from gptoss_mlx.tools.browser.decode import declared_charset, decode, is_text

TEXT = "naïve — 日本 €"


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        (TEXT.encode(), None, TEXT),
        (codecs.BOM_UTF8 + TEXT.encode(), "latin-1", TEXT),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), None, TEXT),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), None, TEXT),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), None, TEXT),
        ("日本".encode("shift_jis"), "Shift_JIS", "日本"),
        ("日本".encode("euc-jp"), "x-euc-jp", None),
        ("“€”".encode("cp1252"), "iso-8859-1", "“€”"),
        ("“€”".encode("cp1252"), None, "“€”"),
        (TEXT.encode(), "no-such-charset", TEXT),
        (b"+ADw-script+AD4-", "utf-7", "+ADw-script+AD4-"),
        (b"YWJj", "base64", "YWJj"),
        (b"a\xffb", "utf-8", "a\ufffdb"),
        (b"abc", "\0", "abc"),
    ],
)
def test_decoding(data: bytes, charset: str | None, text: str | None) -> None:
    decoded = decode(data, charset)
    assert text is None or decoded == text


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        (b'<html><meta charset="utf-8">', "utf-8"),
        (b"<META http-equiv=Content-Type content='text/html; charset=EUC-JP'>", "EUC-JP"),
        (b'<?xml version="1.0" encoding="koi8-r"?><html>', "koi8-r"),
        (b"<p>charset=x</p>", None),
        (b"<meta " + b"x" * 5000 + b" charset=utf-8>", None),
    ],
)
def test_a_declared_charset(data: bytes, charset: str | None) -> None:
    assert declared_charset(data) == charset


def test_what_is_text() -> None:
    assert is_text(b"abc\xff")
    assert is_text("ab".encode("utf-16"))
    assert not is_text(b"\x7fELF\0\0")

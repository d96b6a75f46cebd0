"""Bytes and tokens as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal

from gptoss_mlx.files.jsonfile import shown

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "t": 1 << 40,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"(\d{1,4000}(?:\.\d{1,4000})?|\.\d{1,4000})\s*([a-z]+)", re.ASCII)
_TOKENS = re.compile(r"(\d{1,4000})\s*(k|m)?", re.ASCII)


def parse_bytes(text: str) -> int:
    """ "10GiB", "10.7 GiB", "10G" (the same unit) or "8000MB" (powers of ten) -> bytes.

    Raises ValueError in one line.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{shown(text)} is no size such as 10GiB or 8000MB")
    nbytes = round(Decimal(match[1]) * _UNITS[match[2]])
    if nbytes == 0:
        raise ValueError(f"{shown(text)} is nothing")
    return nbytes


def parse_budget(text: str) -> int:
    """As `parse_bytes`, or "0". Raises ValueError in one line."""
    return 0 if text.strip() == "0" else parse_bytes(text)


def parse_tokens(text: str) -> int:
    """ "8192" or "32k" (times 1024) -> tokens. Raises ValueError in one line."""
    match = _TOKENS.fullmatch(text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{shown(text)} is no number of tokens such as 8192 or 32k")
    return int(match[1]) * {None: 1, "k": 1 << 10, "m": 1 << 20}[match[2]]


def show_bytes(nbytes: int) -> str:
    """Bytes in powers of two, to two digits or more: "10.70 GiB", "824 MiB", "3.0 MiB"."""
    if nbytes < 0:
        return f"-{show_bytes(-nbytes)}"
    for unit in ("GiB", "MiB", "KiB"):
        size = _UNITS[unit.lower()]
        if nbytes >= size:
            digits = 2 if unit == "GiB" else int(nbytes < 10 * size)
            return f"{nbytes / size:.{digits}f} {unit}"
    return f"{nbytes} B"


def show_tokens(tokens: int) -> str:
    """ "32k" where it is whole, else the number."""
    return f"{tokens >> 10}k" if tokens and tokens % 1024 == 0 else str(tokens)

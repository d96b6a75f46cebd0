"""Damage: to bytes anywhere, to JSON at any value, and to a safetensors file's header."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 31, 127, 255, 1 << 15, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 53)
VALUES = (
    *("null", "true", "false", "-0.0", "-1", "0.5", "1e308", "-1e400", "1e400", "1e-320"),
    *("NaN", "Infinity", "-Infinity", str((1 << 63) - 1), str(1 << 64), "9" * 400, "9" * 5000),
    *(str(number) for number in NUMBERS),
    *('""', '"x"', '"\\ud800"', '"\\u0000"', '"\\u001b]0;x\\u0007"', '"\\u202e"', '"e\\u0301"'),
    *('"../x.safetensors"', '"/dev/zero"', '"C:\\\\x"', '"<|end|>"', '"' + "x" * 100_000 + '"'),
    *("[]", "{}", "[[]]", '{"": 0}', '{"a": 1, "a": 2}', "[" * 400 + "]" * 400),
    *('{"a":' * 400 + "1" + "}" * 400, "[" * 2000, "[" + "0," * 20_000 + "0]"),
)
"""JSON texts that a reader may not have been thinking of."""

_MARK = "@@hostile@@"


def damaged_bytes(rng: Random, data: bytes, begin: int = 1 << 12) -> bytes:
    """A few changes, most of them among the first `begin` bytes, where a header is."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = min(len(changed), begin) if rng.random() < 0.8 else len(changed)
        at = rng.randrange(end + 1)
        width = rng.choice((1, 1, 2, 4, 8))
        match rng.randrange(8):
            case 0 | 6:
                changed[at : at + width] = rng.randbytes(width)
            case 1:
                number = rng.choice((*NUMBERS, 1 << 40, 1 << 62, (1 << 64) - 1))
                changed[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
            case 2:
                del changed[at : at + rng.choice((1, 8, 100))]
            case 3:
                changed[at:at] = rng.randbytes(rng.choice((1, 8, 100)))
            case 4:
                other = rng.randrange(end + 1)
                changed[at : at + 16] = changed[other : other + 16]
            case 5:
                if rng.random() < 0.2:
                    del changed[at:]
            case 7:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damaged_json(rng: Random, data: bytes) -> bytes:
    """Another value, name or order somewhere in a JSON text; now and then bytes of it."""
    if rng.random() < 0.15:
        return damaged_bytes(rng, data, len(data))
    document = [json.loads(data)]
    hostile: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _damage(rng, document, hostile)
    text = json.dumps(document[0])
    for value in hostile:
        text = text.replace(f'"{_MARK}"', value, 1)
    return text.encode()


def damaged_safetensors(rng: Random, data: bytes) -> bytes:
    """Its header as JSON, with a length that fits it; or any bytes."""
    if rng.random() < 0.4:
        return damaged_bytes(rng, data)
    start = 8 + int.from_bytes(data[:8], "little")
    header = damaged_json(rng, data[8:start])
    return len(header).to_bytes(8, "little") + header + data[start:]


def _damage(rng: Random, document: list[Any], hostile: list[str]) -> None:
    holder, key = _somewhere(rng, document)
    value = holder[key]
    match rng.randrange(8):
        case 0 | 1 | 2:
            hostile.append(rng.choice(VALUES))
            holder[key] = _MARK
        case 3:
            if isinstance(value, int | float):
                holder[key] = rng.choice((value + 1, value - 1, value * 2, -value, value // 2))
        case 4:
            if holder is not document:
                del holder[key]
        case 5:
            if isinstance(holder, dict):
                name = rng.choice(("x" * 5000, "\ud800", "", "\x1b[2J", f"{key}x"))
                holder[name] = holder.pop(key)
        case 6:
            other, place = _somewhere(rng, document)
            holder[key] = json.loads(json.dumps(other[place]))
        case 7:
            if isinstance(value, list) and value:
                value *= rng.choice((2, 10))


def _somewhere(rng: Random, document: list[Any]) -> tuple[Any, Any]:
    """A list or an object, and a place in it, near the top as likely as below."""
    holder: Any = document
    key: Any = 0
    while True:
        value = holder[key]
        places = list(value) if isinstance(value, dict) else []
        if isinstance(value, list):
            places = list(range(len(value)))
        if not places or (holder is not document and rng.random() < 0.3):
            return holder, key
        holder, key = value, rng.choice(places)

"""JSON from a file: read within bounds, in linear time, and quoted short."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import JSON_LIMIT, parse_json, shown

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_any_value_is_shown_in_80_characters_of_ascii(value: object) -> None:
    text = shown(value)
    assert len(text) <= 80
    assert text.isascii()
    assert text.isprintable()


@pytest.mark.parametrize(
    "value", [3, True, None, "short", -0.0, [1, 2], {"a": [1]}, "\ud800", "é"], ids=repr
)
def test_a_short_value_is_shown_whole(value: object) -> None:
    assert shown(value) == ascii(value)


def test_a_value_of_any_size_or_depth_is_shown() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[[...]]]]]"
    assert shown(10**100_000) == "<a number of 332193 bits>"
    assert shown(-(10**100_000)) == "-<a number of 332193 bits>"
    while deep:  # else its parts are freed one in another, as deep as it is
        deep = deep.pop()  # type: ignore[assignment]


def test_a_name_that_occurs_twice_is_found_in_linear_time() -> None:
    """Comparing each name with each would take minutes."""
    names = [*range(100_000), 99_999]
    data = ("{" + ",".join(f'"{name}":0' for name in names) + "}").encode()
    begun = time.process_time()
    with pytest.raises(CheckpointError, match="the name '99999' occurs twice"):
        parse_json(data, "x")
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_python_s_own_constants_are_no_json(constant: str) -> None:
    with pytest.raises(CheckpointError, match=f"x: is not valid JSON: {constant} is no number"):
        parse_json(f'{{"a": {constant}}}'.encode(), "x")


def test_what_json_takes_is_read() -> None:
    value = {"a": [1, -0.0, 1e308, None, True, {"b": "\ud800"}]}
    assert parse_json(json.dumps(value).encode(), "x") == value


HOSTILE = {
    "lists": b"[],",
    "objects": b"{},",
    "objects of one": b'{"a":0},',
    "numbers": b"999,",
    "texts": b'"\\u1234",',
    "long text": "\U0001f600".encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", HOSTILE)
def test_a_file_of_the_largest_size_takes_little_memory(part: str) -> None:
    room = JSON_LIMIT - 20
    if part == "long text":  # one letter beyond 16 bits makes every letter four bytes wide
        data = b'{"a": "' + HOSTILE[part] + b"x" * room + b'"}'
    else:
        data = b'{"a": [' + HOSTILE[part] * (room // len(HOSTILE[part])) + b"0]}"
    tracemalloc.start()
    try:
        assert parse_json(data, "x")
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()

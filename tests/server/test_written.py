"""The arguments of calls as they were written: found while they mean the same, and forgotten in
order of use."""

from __future__ import annotations

from gptoss_mlx.server.written import Written


def test_a_text_is_found_for_the_value_that_it_means() -> None:
    written = Written()
    written.keep("a", '{"x":1,"y":[2]}')
    written.keep("b", "no json")
    assert written.find("a", {"y": [2], "x": 1}) == '{"x":1,"y":[2]}'
    assert written.find("a", {"x": 2}) is None
    assert written.find("b", {}) is None
    assert written.find("c", {}) is None
    assert written.find(None, {}) is None


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    written = Written(room=20)
    for id in ("a", "b"):
        written.keep(id, '{"x": 1}')
    assert written.find("a", {"x": 1})
    written.keep("c", '{"x": 1}')
    assert [written.find(id, {"x": 1}) is not None for id in "abc"] == [True, False, True]
    written.keep("d", '{"x": "' + "y" * 50 + '"}')
    assert [written.find(id, {"x": 1}) is not None for id in "ac"] == [False, False]
    written.keep("e", '{"x": 1}')
    assert written.find("e", {"x": 1})

"""How an answer is seen on a terminal: reasoning folded, Markdown, calls, nothing left behind."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import cast

import pytest
from rich.console import Console

from gptoss_mlx.cli.chat.markdown import Painter
from gptoss_mlx.cli.chat.view import GIVEN, WINDOW, TerminalView
from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.tools.tool import Outcome
from tests.support.screen import Screen
from tests.support.scripted_engine import message


class Seconds:
    """A clock that goes on by a tenth of a second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def seen(
    events: Iterable[TokenEvent | Outcome],
    quiet: bool = False,
    close: bool = True,
    runs: bool = False,
) -> Screen:
    screen = Screen(40, 12)
    console = Console(file=io.StringIO(), force_terminal=True, width=40, height=12)
    stream = cast(io.StringIO, screen)
    view = TerminalView(stream, Painter(console), quiet=quiet, runs=runs, clock=Seconds())
    for event in events:
        if isinstance(event, Outcome):
            view.tell(event)
        else:
            view.show(event)
    if close:
        view.close()
    return screen


THOUGHT = [*message("analysis", None, "Add the ones. " * 40)]


def test_reasoning_is_seen_in_a_window_and_folded_to_a_line() -> None:
    open = seen(THOUGHT[:-1], close=False)
    assert len(open.text) == WINDOW + 1
    assert open.text[0].startswith("thinking, ")
    assert open.scrolled == []
    folded = seen([*THOUGHT, *message("final", None, "It is **85**.")])
    assert folded.text[0].startswith("thought for ")
    assert folded.text[0].endswith(" s, 187 tokens")
    assert folded.text[1:] == ["It is 85."]
    assert (folded.column, folded.styled, folded.scrolled) == (0, False, [])


def test_reasoning_that_is_stopped_is_folded_too() -> None:
    assert len(seen(THOUGHT[:-5]).text) == 1


def test_quiet_shows_no_reasoning() -> None:
    assert seen([*THOUGHT, *message("final", None, "85")], quiet=True).text == ["85"]


def test_calls_and_preambles_are_seen() -> None:
    call = message("commentary", "functions.add", '{"a": 1}')
    assert seen([*message("commentary", None, "Let me *look*."), *call]).text == [
        *("Let me look.", 'tool call: add({"a": 1})'),
    ]


CALL = [
    *message("analysis", "python", "for i in range(2):\n    print(i)"),
    Outcome("\n".join(f"line {number}" for number in range(GIVEN + 5))),
    *message("final", None, "Done."),
]


def test_code_is_seen_as_it_is_and_what_it_gave_is_shortened() -> None:
    screen = seen(CALL, runs=True)
    assert screen.text[:3] == ["python:", "for i in range(2):", "    print(i)"]
    assert screen.text[3 : 3 + GIVEN] == [f"line {number}" for number in range(GIVEN)]
    assert screen.text[3 + GIVEN :] == ["... 5 more lines", "", "Done."]


def test_quiet_hides_calls_that_are_run() -> None:
    assert seen(CALL, quiet=True, runs=True).text == ["Done."]


def test_what_a_call_gave_steers_no_terminal_and_is_of_bounded_length() -> None:
    screen = seen(
        [Outcome("\x1b[31mred\n" + "w" * 10_000), *message("final", None, ".")], runs=True
    )
    assert screen.text[0] == "\ufffd[31mred"
    assert sum(map(len, screen.text)) < 1100
    assert "".join(screen.text).endswith("w ....")


@pytest.mark.parametrize("channel", ["analysis", "final", "commentary"])
def test_no_channel_steers_the_terminal(channel: str) -> None:
    recipient = "functions.\x1b[31m" if channel == "commentary" else None
    # The screen refuses what would steer it.
    screen = seen(message(channel, recipient, "\x1b]0;t\x07\x9b2J\u202e\x1b[31mred"))
    assert channel == "analysis" or "\ufffd[31mred" in screen.text[0]
    assert channel != "commentary" or "tool call: \ufffd[31m(" in screen.text[0]

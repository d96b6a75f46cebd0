"""Keys at the prompt: sending, new lines, pasting, completing, leaving; and what was typed."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from gptoss_mlx.cli.chat.history import LIMIT, TypedHistory
from gptoss_mlx.cli.chat.keyboard import Keyboard
from tests.support.talks import Talking, answer

UP, ALT_ENTER, CTRL_L = "\x1b[A", "\x1b\r", "\x0c"


class Clock:
    """A clock that goes on by so many seconds at each look."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Screened(DummyOutput):
    """Counts how often the screen is erased."""

    erased = 0

    def erase_screen(self) -> None:
        self.erased += 1


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


@pytest.fixture
def output() -> Screened:
    return Screened()


@pytest.fixture
def talking(tmp_path: Path) -> Talking:
    return Talking(tmp_path, answer("85"))


Type = Callable[..., str | None]


@pytest.fixture
def type_(keys: PipeInput, output: Screened, talking: Talking) -> Iterator[Type]:
    """Presses keys; gives the message that is read."""
    with create_app_session(input=keys, output=output):

        def press(
            text: str, draft: str = "", history: History | None = None, clock: Clock | None = None
        ) -> str | None:
            keyboard = Keyboard(talking.talk, history or InMemoryHistory(), clock=clock or Clock())
            keys.send_text(text)
            return keyboard.read(draft)

        yield press


@pytest.mark.parametrize(
    ("pressed", "message"),
    [
        ("hello\r", "hello"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        ("one\ntwo\r", "one\ntwo"),  # Ctrl-J
        ("one\\\rtwo\r", "one\ntwo"),
        ("\x1b[200~one\r\n/quit\ntwo\x1b[201~\r", "one\n/quit\ntwo"),
        (f"{CTRL_L}hi\r", "hi"),
        ("\r\r  \rhi\r", "  hi"),
        ("/sess\t\r", "/sessions"),
        ("/reasoning l\t\r", "/reasoning low"),
        ("grün \U0001f600\r", "grün \U0001f600"),
        ("junk\x03hi\r", "hi"),
    ],
)
def test_keys_make_a_message(type_: Type, pressed: str, message: str) -> None:
    assert type_(pressed) == message


def test_ctrl_l_clears_the_screen(type_: Type, output: Screened) -> None:
    type_(f"hi{CTRL_L}\r")
    assert output.erased == 1


def test_ctrl_d_leaves_an_empty_prompt_only(type_: Type) -> None:
    assert type_("\x04") is None
    assert type_("a\x01\x04b\r") == "b"


def test_ctrl_c_twice_within_a_second_leaves(type_: Type) -> None:
    assert type_("junk\x03\x03") is None
    assert type_("junk\x03\x03hi\r", clock=Clock(1.1)) == "hi"


def test_a_draft_is_what_the_prompt_begins_with(type_: Type) -> None:
    assert type_(" more\r", draft="once") == "once more"


def test_what_was_typed_comes_back_and_is_private(type_: Type, tmp_path: Path) -> None:
    path = tmp_path / "data" / "typed.jsonl"
    for text in ("first", "se\ncond"):
        type_(f"\x1b[200~{text}\x1b[201~\r", history=TypedHistory(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(TypedHistory(path).load_history_strings()) == ["se\ncond", "first"]
    assert path.read_text() == '"first"\n"se\\ncond"\n'


def test_a_damaged_or_missing_history_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "typed.jsonl"
    path.write_bytes(b'"kept"\n{"no": "text"}\n\xff\xfe\n"cut')
    assert list(TypedHistory(path).load_history_strings()) == ["kept"]
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", Path("/dev/null/typed")):
        history = TypedHistory(place)
        history.store_string("text")
        assert list(history.load_history_strings()) == []


def test_a_long_history_loses_its_older_half(tmp_path: Path) -> None:
    path = tmp_path / "typed.jsonl"
    lines = [json.dumps(f"{number} {'w' * 1000}") for number in range(LIMIT // 900)]
    path.write_text("\n".join(lines) + "\n")
    kept = list(TypedHistory(path).load_history_strings())
    assert kept[0] == json.loads(lines[-1])
    assert path.stat().st_size < LIMIT
    assert abs(len(kept) - len(lines) / 2) <= 1


def test_the_toolbar_says_what_is_used(talking: Talking) -> None:
    talking.talk.ask("Hi")
    status = talking.talk.status()
    assert status.startswith("scripted  ·  context ")
    assert " of 4,096 (" in status
    assert " tokens/s  ·  " in status
    assert status.endswith("-hi")

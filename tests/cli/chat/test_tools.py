"""Tools in a conversation: what is run and kept, who is asked, what is new in the next one."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import gptoss_mlx
from gptoss_mlx.cli.asked_tools import AskedTools
from gptoss_mlx.cli.chat.__main__ import main
from gptoss_mlx.cli.chat.commands import run_command
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.tools.tool import Outcome, never
from tests.cli.chat.test_chat import Chat
from tests.cli.test_generate_tools import CODE, needs_sandbox
from tests.support.scripted_engine import ScriptedEngine
from tests.support.talks import Talking, answer

Message = Mapping[str, Any]


class Counting:
    """A python that says how often it was called; `act` comes before."""

    name = "python"
    offers: Sequence[Message] = ({"type": "python"},)

    def __init__(self, act: Callable[[], None]) -> None:
        self.calls, self._act = 0, act

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        self.calls += 1
        self._act()
        return Outcome(f"{text}: {self.calls}{', ended' if cancel() else ''}")

    def close(self) -> None: ...


class Bench:
    """Gives each conversation a `Counting`. resumed: what it was told of each."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self._act, self.resumed = act, list[bool]()

    def tools(self, engine: Any, *, resumes: bool = False) -> list[Counting]:
        self.resumed.append(resumes)
        return [Counting(self._act)]


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Talking]:
    """(replies, ...) -> a conversation with a counting python, whose calls are allowed."""

    def make(*replies: str, **options: Any) -> Talking:
        options = {"rules": {"python": "allow"}, "opened": Bench(), **options}
        return Talking(tmp_path, *replies, **options)

    return make


def code(text: str) -> str:
    return f"{CODE}{text}<|call|>"


def results(talking: Talking) -> list[Any]:
    return [m["content"] for m in talking.talk.transcript.messages if m["role"] == "tool"]


def test_calls_and_results_are_in_the_conversation_and_are_saved(
    begin: Callable[..., Talking],
) -> None:
    talking = begin(code("a"), answer("One."), code("b"), answer("Two."))
    talk = talking.talk
    talk.ask("q")
    talk.ask("r")
    assert talking.out.getvalue() == "One.\nTwo.\n"
    roles = [message["role"] for message in talk.transcript.messages]
    assert roles == ["user", "assistant", "tool", "assistant"] * 2
    assert results(talking) == ["a: 1", "b: 2"]
    assert talk.saved is not None
    assert talk.archive.read(talk.saved.name)[0] == talk.transcript
    assert talking.said == "tool call: python(a)\na: 1\n\ntool call: python(b)\nb: 2\n\n"
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>b: 2" in talking.prompts[3]


def test_another_conversation_has_tools_of_its_own(begin: Callable[..., Talking]) -> None:
    bench = Bench()
    talking = begin(
        *(code("a"), answer("."), code("b"), answer("."), code("c"), answer(".")), opened=bench
    )
    talking.talk.ask("q")
    run_command(talking.talk, "/save one")
    run_command(talking.talk, "/new")
    talking.talk.ask("q")
    assert results(talking) == ["b: 1"]
    run_command(talking.talk, "/load one")
    talking.talk.ask("q")
    assert results(talking) == ["a: 1", "c: 1"]
    assert bench.resumed == [False, False, True]


def test_a_conversation_that_is_resumed_says_so_to_its_tools(
    begin: Callable[..., Talking],
) -> None:
    talking, bench = begin(code("a"), answer(".")), Bench()
    talking.talk.ask("q")
    begin(transcript=talking.talk.transcript, opened=bench)
    assert bench.resumed == [True]


@needs_sandbox
def test_an_interpreter_lasts_as_long_as_its_conversation(tmp_path: Path) -> None:
    notes: list[str] = []
    asked = AskedTools({"python": "allow"})
    with asked.open(bar_shown=False, after=1, note=notes.append) as opened:
        talking = Talking(
            tmp_path,
            *(code("x = 6; open('/mnt/data/f', 'w').close()"), answer("."), code("x * 7")),
            *(answer("."), code("import os; 'x' in globals(), os.listdir()"), answer(".")),
            *(code("'x' in globals()"), answer(".")),
            rules=asked.rules,
            opened=opened,
        )
        talk = talking.talk
        talk.ask("q")
        talk.ask("q")
        assert results(talking)[1] == "42"
        run_command(talk, "/save one")
        run_command(talk, "/new")
        talk.ask("q")
        assert results(talking) == ["(False, [])"]
        run_command(talk, "/load one")
        talk.ask("q")
        told = "[a new interpreter was started: what earlier calls defined is gone]"
        assert results(talking)[2] == f"False\n{told}"
    (folder,) = [Path(note.rpartition(" ")[2]) for note in notes]
    assert [file.name for file in folder.iterdir()] == ["f"]
    assert f"note: python wrote {folder / 'f'}\n" in talking.err.getvalue()


@pytest.mark.parametrize(
    ("keys", "ran"),
    [("n", ""), ("y", "a"), ("yn", "a"), ("ny", "b"), ("a", "abc"), ("na", "bc"), ("", "")],
)
def test_a_person_is_asked_by_one_key(begin: Callable[..., Talking], keys: str, ran: str) -> None:
    """The keys that are pressed -> the calls that were run; "a" answers for those to come."""
    pressed, questions = iter(keys), list[str]()

    def choose(question: str, known: str) -> str:
        questions.append(question)
        return next(pressed, "")

    replies = [code("a"), code("b"), code("c"), answer(".")]
    talking = begin(*replies, rules={"python": "ask"})
    talking.talk.tools.choose = choose
    talking.talk.ask("q")
    assert "".join(said[0] for said in results(talking) if said[1] == ":") == ran
    assert all(question.startswith("Run this call of python?") for question in questions)
    run_command(talking.talk, "/new")
    assert talking.talk.tools.rules == {"python": "ask"}


def test_without_anybody_to_ask_a_call_is_declined(begin: Callable[..., Talking]) -> None:
    talking = begin(code("a"), answer("."), rules={"python": "ask"})
    talking.talk.ask("q")
    assert results(talking) == ["The user has declined this call."]


def test_tools_are_listed_and_their_rules_changed(begin: Callable[..., Talking]) -> None:
    talking = begin(code("a"), answer("."))
    run_command(talking.talk, "/tools")
    assert talking.said.split() == ["python", "allow", "python"]
    run_command(talking.talk, "/tools python deny")
    run_command(talking.talk, "/new")
    talking.talk.ask("q")
    assert results(talking) == ["Calls of python are not permitted here."]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/tools ruby allow", "'ruby' is no tool here, only python"),
        ("/tools python", "the rule is '', but must be allow, ask, deny"),
        ("/tools python perhaps", "the rule is 'perhaps'"),
        ("/tools python ask", "on a terminal only, and not with --quiet"),
    ],
)
def test_a_rule_that_cannot_be_is_one_line(
    begin: Callable[..., Talking], line: str, said: str
) -> None:
    with pytest.raises(GptOssError, match=said):
        run_command(begin().talk, line)


def test_without_tools_the_command_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(GptOssError, match="there are no tools: gptoss-mlx chat --tool python"):
        run_command(Talking(tmp_path).talk, "/tools")


@pytest.mark.parametrize(
    ("times", "result"), [(1, "a: 1, ended"), (2, "The call was interrupted.")]
)
def test_ctrl_c_ends_the_call_and_then_the_answer(
    begin: Callable[..., Talking], times: int, result: str
) -> None:
    """Pressed again, it does not wait for the call. What has happened stays."""

    def press() -> None:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    talking = begin(code("a"), answer("never"), answer("Then."), opened=Bench(press))
    talking.talk.ask("q")
    assert talking.talk.stopped
    roles = [message["role"] for message in talking.talk.transcript.messages]
    assert (roles, results(talking)) == (["user", "assistant", "tool"], [result])
    assert talking.said.endswith("note: stopped\n")
    talking.scripted.replies = talking.scripted.replies[-1:]
    talking.talk.ask("r")
    assert talking.talk.transcript.messages[-1]["content"] == "Then."


def test_a_call_that_was_being_written_is_not_kept(
    begin: Callable[..., Talking], monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = begin("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant" + code("abc"))
    stream = talking.scripted.engine.stream

    def interrupted(prompt: Any, **options: Any) -> Any:
        for event in stream(prompt, **options):
            if getattr(event, "recipient", None) == "python" and getattr(event, "text", ""):
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(talking.scripted.engine, "stream", interrupted)
    talking.talk.ask("q")
    (_, said) = talking.talk.transcript.messages
    assert said == {"role": "assistant", "content": None, "reasoning": "Hm."}


def test_an_answer_that_is_cut_off_after_a_call_is_kept_once(
    begin: Callable[..., Talking], monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = begin(code("a"), answer("one two three"))
    stream = talking.scripted.engine.stream

    def interrupted(prompt: Any, **options: Any) -> Any:
        for event in stream(prompt, **options):
            if "three" in getattr(event, "text", ""):
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(talking.scripted.engine, "stream", interrupted)
    talking.talk.ask("q")
    _, called, result, said = talking.talk.transcript.messages
    assert (len(called["tool_calls"]), result["content"]) == (1, "a: 1")
    assert said == {"role": "assistant", "content": "one two"}


def test_the_context_is_counted_with_the_tools(begin: Callable[..., Talking]) -> None:
    talking = begin(code("a"), answer("One."), answer("Two."))
    talk = talking.talk
    talk.ask("q")
    talk.ask("r")
    talk.transcript = talk.transcript.without_last_turn().with_message("r")
    assert talk.finish is not None
    assert talk.used == talk.finish.prompt_tokens


ONE_CALL = [
    *(["analysis", "python", "print(6 * 7)"], ["finish", "tool_calls"], "turn"),
    ["final", None, "Done."],
]


def test_keys_typed_ahead_agree_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal: what was typed before the question goes to the next prompt."""
    monkeypatch.setenv("GPTOSS_DATA", str(tmp_path / "data"))
    terminal = Chat(ONE_CALL, "--tool", "python=ask", "--unsafe-python")
    assert "tools: python (ask)" in terminal.prompt()
    terminal.press("go\ry")
    terminal.read_until("always in this conversation")
    terminal.prompt()
    terminal.press("n")
    terminal.prompt()
    terminal.press("es\r")
    terminal.read_until("always in this conversation")
    terminal.prompt()
    terminal.press("xa")
    terminal.read_until("42")
    terminal.prompt()
    terminal.press("again\r")
    terminal.read_until("42")
    terminal.prompt()
    terminal.press("\x04")
    code, shown = terminal.finish()
    assert code == 0
    assert shown.count("python:") >= 3
    (path,) = (tmp_path / "data" / "conversations").glob("*.json")
    messages = json.loads(path.read_text())["messages"]
    said = [m["content"] for m in messages if m["role"] in ("user", "tool")]
    declined = "The user has declined this call."
    assert said == ["go", declined, "yes", "42", "again", "42"]


def test_a_call_is_seen_before_it_is_asked_about_wherever_answers_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTOSS_DATA", str(tmp_path / "data"))
    with (tmp_path / "out").open("w+") as out:
        terminal = Chat(ONE_CALL, "--tool", "python=ask", "--unsafe-python", stdout=out)
        terminal.prompt()
        terminal.press("go\r")
        assert "python(print(6 * 7))" in re.sub(r"\x1b\[\d*m", "", terminal.prompt())
        terminal.read_until("always in this conversation")
        terminal.press("y")
        assert "42" in terminal.prompt()
        terminal.press("\x04")
        assert terminal.finish()[0] == 0
        out.seek(0)
        assert out.read() == "Done.\n"


def test_ctrl_c_at_the_question_declines_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTOSS_DATA", str(tmp_path / "data"))
    script = [*ONE_CALL[:-1], "wait"]
    terminal = Chat(script, "--tool", "python=ask", "--unsafe-python")
    terminal.prompt()
    terminal.press("go\r")
    terminal.read_until("always in this conversation")
    terminal.prompt()
    terminal.press("\x03")
    terminal.read_until("stopped")
    terminal.prompt()
    terminal.press("\x04")
    assert terminal.finish()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tool", "python=ask"), "=ask needs a terminal"),
        (("--files", "d"), "--files is for --tool python"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    engine = ScriptedEngine(ONE_CALL)
    monkeypatch.setattr(gptoss_mlx, "load", engine.load)
    result = CliRunner().invoke(main, arguments, input="q\n")
    assert (result.exit_code, engine.loads) == (2, [])
    assert said in result.stderr


@needs_sandbox
def test_through_a_pipe_the_answers_alone_go_to_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(ONE_CALL)
    monkeypatch.setattr(gptoss_mlx, "load", engine.load)
    result = CliRunner().invoke(main, ["--tool", "python"], input="q\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Done.\n", "")
    assert engine.asked[1][0][-1]["content"] == "42"

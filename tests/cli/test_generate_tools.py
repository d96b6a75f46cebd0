"""Tools in the generate command: what is run, what a person sees of it, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gptoss_mlx
from gptoss_mlx.cli.asked_tools import agrees
from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.result import ToolCall
from gptoss_mlx.errors import SandboxError
from gptoss_mlx.generate import main
from gptoss_mlx.tools.python.sandbox.choice import kinds
from tests.support.scripted_model import ANALYSIS, FINAL, Scripted, encoding

CODE = "<|channel|>analysis to=python code<|message|>"
SEARCH = "<|channel|>analysis to=browser.search code<|message|>"
OPEN = "<|channel|>analysis to=browser.open code<|message|>"
DONE = f"{FINAL}Done.<|return|>"

Ask = Callable[..., tuple[Result, Scripted]]


@pytest.fixture
def loads() -> list[str]:
    """The models that were loaded."""
    return []


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, loads: list[str]) -> Ask:
    """(replies, arguments) -> what generate did, and the engine that wrote the replies."""

    def run(replies: list[str], *arguments: str) -> tuple[Result, Scripted]:
        scripted = Scripted(*replies)

        def load(model: str, **options: Any) -> Any:
            loads.append(model)
            return scripted.engine

        monkeypatch.setattr(gptoss_mlx, "load", load)
        return CliRunner().invoke(main, ["q", *arguments]), scripted

    return run


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "harbour.md").write_text("# The harbour\n\nThe ferry leaves at seven.\n")
    (folder / "other.txt").write_text("Nothing of that.\n")
    return folder


def has_sandbox() -> bool:
    try:
        return bool(kinds("required"))
    except SandboxError:
        return False


needs_sandbox = pytest.mark.skipif(not has_sandbox(), reason="no sandbox can be made here")


@needs_sandbox
def test_python_computes_and_the_answer_alone_is_on_stdout(ask: Ask) -> None:
    result, scripted = ask(
        [f"{ANALYSIS}Compute.<|end|><|start|>assistant{CODE}1234 * 5678<|call|>", DONE],
        *("--tool", "python"),
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Done.\n", "")
    read = encoding().decode(scripted.samplings[-1][2])
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>7006652<|end|>" in read


@needs_sandbox
def test_files_that_python_wrote_are_named_and_kept(ask: Ask, tmp_path: Path) -> None:
    code = "open('/mnt/data/a.txt', 'w').write('hello')"
    folder = tmp_path / "files"
    result, _ = ask([f"{CODE}{code}<|call|>", DONE], "--tool", "python", "--files", str(folder))
    assert (folder / "a.txt").read_text() == "hello"
    assert result.stderr == f"note: python wrote {folder / 'a.txt'}\n"
    result, _ = ask([f"{CODE}{code}<|call|>", DONE], "--tool", "python")
    made = Path(result.stderr.splitlines()[0].removeprefix("note: python's files are in "))
    assert (made / "a.txt").read_text() == "hello"


def test_a_folder_without_files_does_not_stay(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result, _ = ask([DONE], "--tool", "python")
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_document_is_searched_and_opened(ask: Ask, documents: Path) -> None:
    result, scripted = ask(
        [
            f'{SEARCH}{{"query": "ferry"}}<|call|>',
            f'{OPEN}{{"id": 0}}<|call|>',
            f"{FINAL}At seven 【1†L3】.<|return|>",
        ],
        *("--tool", "browser", "--documents", str(documents)),
    )
    assert (result.exit_code, result.stdout) == (0, "At seven 【1†L3】.\n")
    read = encoding().decode(scripted.samplings[-1][2])
    assert "The ferry leaves at seven." in read
    assert "## browser" in read


def test_calls_and_what_they_gave_are_in_json(ask: Ask, documents: Path) -> None:
    result, _ = ask(
        [f'{SEARCH}{{"query": ""}}<|call|>', DONE],
        *("--tool", "browser", "--documents", str(documents), "--json"),
    )
    value = json.loads(result.stdout)
    assert (value["text"], value["reasoning"], value["tool_calls"]) == ("Done.", "", [])
    (ran,) = value["ran"]
    assert (ran["name"], ran["arguments"]) == ("browser.search", '{"query": ""}')
    assert ran["failed"]
    assert "`query` is ''" in ran["output"]


def test_the_reasoning_shows_what_is_run_and_what_it_gave(ask: Ask, documents: Path) -> None:
    result, _ = ask(
        [f'{SEARCH}{{"query": ""}}<|call|>', DONE],
        *("--tool", "browser", "--documents", str(documents), "--show-reasoning"),
    )
    call, given, _, answer = result.stdout.splitlines()
    assert call == 'tool call: browser.search({"query": ""})'
    assert given.startswith("`query` is ''")
    assert answer == "Done."


@pytest.mark.parametrize(("most", "choices"), [("1", [None, "none"]), ("2", [None, None])])
def test_after_the_most_calls_the_model_may_only_answer(
    ask: Ask, documents: Path, monkeypatch: pytest.MonkeyPatch, most: str, choices: list[object]
) -> None:
    seen, stream = list[object](), Engine.stream

    def spy(engine: Engine, prompt: Any, **options: Any) -> Any:
        seen.append(options.get("tool_choice"))
        return stream(engine, prompt, **options)

    monkeypatch.setattr(Engine, "stream", spy)
    replies = [f'{SEARCH}{{"query": "ferry"}}<|call|>', DONE]
    ask(replies, "--tool", "browser", "--documents", str(documents), "--max-tool-calls", most)
    assert seen == choices


@pytest.mark.parametrize(
    ("written", "pressed", "agreed"),
    [
        ("y\n", False, True),
        (" YES \n", False, True),
        ("n\n", False, False),
        ("\n", False, False),
        ("", False, False),  # the terminal is closed
        (None, True, False),  # Ctrl-C while nothing is written
    ],
)
def test_a_person_agrees_by_yes_alone(
    monkeypatch: pytest.MonkeyPatch, written: str | None, pressed: bool, agreed: bool
) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w") as typing:
        monkeypatch.setattr("sys.stdin", stdin)
        if written is not None:
            typing.write(written)
            typing.close()
        assert agrees(ToolCall("id", "python", "1 + 1", "python"), lambda: pressed) == agreed


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--tool", "ruby"], "'ruby' is not browser or python"),
        (["--tool", "python=perhaps"], "'python=perhaps' is not browser or python"),
        (["--tool", "browser"], "--tool browser searches --documents DIR, or --search URL"),
        (
            ["--tool", "browser", "--documents", "d", "--search", "http://x"],
            "--tool browser searches --documents DIR, or --search URL",
        ),
        (["--documents", "d"], "--documents is for --tool browser"),
        (["--search", "http://x"], "--search is for --tool browser"),
        (["--files", "d"], "--files is for --tool python"),
        (["--unsafe-python"], "--unsafe-python is for --tool python"),
        (["--tool", "python=ask"], "=ask needs a terminal"),
        (["--tool", "python", "--raw"], "--tool runs tools itself"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    ask: Ask, arguments: list[str], line: str
) -> None:
    result, _ = ask([DONE], *arguments)
    assert result.exit_code == 2
    assert line in result.stderr


def test_a_folder_that_does_not_exist_is_named(
    ask: Ask, loads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model is loaded, which takes long."""
    monkeypatch.chdir(tmp_path)
    result, _ = ask([DONE], "--tool", "browser", "--documents", "nowhere")
    assert (result.exit_code, loads) == (1, [])
    assert result.stderr == "error: 'nowhere' is not a folder of documents\n"

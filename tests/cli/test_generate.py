"""The generate command: what reaches the engine, what reaches stdout and stderr, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gptoss_mlx
from gptoss_mlx.errors import CheckpointError, ContextError
from gptoss_mlx.generate import main
from tests.support.scripted_engine import ScriptedEngine

ANSWER = [["analysis", None, "Add them."], ["final", None, "27 + 58 = 85"]]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds."}}
MESSAGES = [{"role": "user", "content": "Hello"}]

Ask = Callable[..., Result]
Write = Callable[[Any], str]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    engine = ScriptedEngine(ANSWER)
    monkeypatch.setattr(gptoss_mlx, "load", engine.load)
    return engine


@pytest.fixture
def ask(engine: ScriptedEngine) -> Ask:
    return lambda *arguments, stdin=b"": CliRunner().invoke(main, arguments, input=stdin)


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Puts a value into a JSON file (a str as it is) and gives its path."""

    def write(value: Any) -> str:
        path = tmp_path / "asked.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(path)

    return write


def test_the_answer_alone_is_on_stdout(ask: Ask) -> None:
    result = ask("hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "27 + 58 = 85\n", "")


def test_show_reasoning_puts_it_before_the_answer(ask: Ask) -> None:
    assert ask("hi", "--show-reasoning").stdout == "Add them.\n\n27 + 58 = 85\n"


def test_tool_calls_are_lines_even_without_arguments(ask: Ask, engine: ScriptedEngine) -> None:
    engine.script = [
        ["analysis", None, "Two calls."],
        ["commentary", None, "Let me look."],
        ["commentary", "functions.add", '{"a": 1}'],
        ["commentary", "functions.now", ""],
        ["finish", "tool_calls"],
    ]
    lines = ["Let me look.", 'tool call: add({"a": 1})', "tool call: now()", ""]
    assert ask("hi").stdout == "\n".join(lines)


def test_raw_text_without_channels_is_the_answer(ask: Ask, engine: ScriptedEngine) -> None:
    engine.script = [[None, None, "once upon"]]
    assert ask("--raw", "hi").stdout == "once upon\n"
    assert engine.asked == [("hi", {"raw": True})]


def test_nothing_is_passed_that_was_not_given(ask: Ask, engine: ScriptedEngine) -> None:
    ask("hi")
    assert engine.loads == [("openai/gpt-oss-20b", {"cache": 0})]  # one answer reuses nothing
    assert engine.asked == [("hi", {})]


def test_every_option_reaches_the_engine(ask: Ask, engine: ScriptedEngine, written: Write) -> None:
    numbers = {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "seed": 0,
        "max_tokens": 7,
        "max_time": 60.5,
        "top_logprobs": 2,
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    options += ["--stop", "a", "--stop", "b", "--logit-bias", "7=-1.5", "--logit-bias", "8=2"]
    options += ["--system", "Be brief.", "--reasoning", "low", "--no-constrain"]
    options += ["--tools", written([TOOL]), "--response-format", "json", "--json"]
    options += ["--model", "tiny", "--context", "99", "--dtype", "float32"]
    options += [
        "--embedding",
        "resident",
        "--kv-bits",
        "8",
        "--backend",
        "torch",
        "--device",
        "cpu",
    ]
    result = ask("hi", *options)
    assert result.exit_code == 0
    loading = {"context": 99, "dtype": "float32", "embedding": "resident", "kv_bits": 8}
    loading |= {"backend": "torch", "device": "cpu", "cache": 0}
    assert engine.loads == [("tiny", loading)]
    assert engine.asked[0][1] == {
        **numbers,
        "logprobs": True,
        "stop": ("a", "b"),
        "logit_bias": {7: -1.5, 8: 2.0},
        "system": "Be brief.",
        "reasoning": "low",
        "constrain_headers": False,
        "tools": [TOOL],
        "response_format": {"type": "json_object"},
    }


def test_constraints_are_passed_on(ask: Ask, engine: ScriptedEngine, written: Write) -> None:
    ask("hi", "--grammar", written('start: "a"'), "--reasoning-budget", "0")
    ask("hi", "--raw", "--regex", "[0-9]+")
    ask("hi", "--tool-choice", "required")
    ask("hi", "--tool-choice", "f")
    assert [options for _, options in engine.asked] == [
        {"grammar": 'start: "a"', "reasoning_budget": 0},
        {"regex": "[0-9]+", "raw": True},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    ]
    missing = ask("hi", "--grammar", "nowhere.lark")
    assert missing.exit_code == 1
    assert "nowhere.lark: cannot be read" in missing.stderr


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_a_prompt_from_stdin_loses_its_last_newline(
    ask: Ask, engine: ScriptedEngine, arguments: tuple[str, ...]
) -> None:
    ask(*arguments, stdin="grün\n\n".encode())
    ask(*arguments, "--raw", stdin=b"exact\n")
    assert [prompt for prompt, _ in engine.asked] == ["grün\n", "exact\n"]


def test_messages_from_a_list_or_an_object(
    ask: Ask, engine: ScriptedEngine, written: Write
) -> None:
    ask("--messages", written(MESSAGES))
    ask("--messages", written(MESSAGES), "And now?")
    whole = {
        "messages": MESSAGES,
        "tools": [TOOL],
        "reasoning_effort": "high",
        "response_format": {"type": "text"},
    }
    ask("--messages", written(whole))
    ask("--messages", written(whole), "--reasoning", "low", "--response-format", "json")
    asked = {"tools": [TOOL], "reasoning": "high", "response_format": {"type": "text"}}
    given = {"tools": [TOOL], "reasoning": "low", "response_format": {"type": "json_object"}}
    assert engine.asked == [
        (MESSAGES, {}),
        ([*MESSAGES, {"role": "user", "content": "And now?"}], {}),
        (MESSAGES, asked),
        (MESSAGES, given),
    ]


def test_a_response_format_file_may_be_a_bare_schema(
    ask: Ask, engine: ScriptedEngine, written: Write
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    ask("hi", "--response-format", written(schema))
    whole = {"type": "json_schema", "json_schema": {"name": "asked", "schema": schema}}
    ask("hi", "--response-format", written(whole))
    assert [options["response_format"] for _, options in engine.asked] == [whole, whole]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the prompt is empty"),
        (("",), "the prompt is empty"),
        (("--max-tokens", "0", "hi"), "--max-tokens"),
        (("--reasoning", "huge", "hi"), "--reasoning"),
        (("--logit-bias", "x=1", "hi"), "'x=1' is not like"),
        (("--logit-bias", "1", "hi"), "'1' is not like"),
        (("--raw", "--system", "x", "hi"), "--raw"),
        (("--logprobs", "hi"), "--json"),
        (("--stop", "", "hi"), "--stop is empty"),
        (("--nonsense", "hi"), "--nonsense"),
        (("hi", "there"), "there"),
    ],
)
def test_usage_errors_exit_2_before_loading(
    ask: Ask, engine: ScriptedEngine, arguments: tuple[str, ...], said: str
) -> None:
    result = ask(*arguments)
    assert (result.exit_code, result.stdout, engine.loads) == (2, "", [])
    assert said in result.stderr


@pytest.mark.parametrize(
    ("option", "content", "said"),
    [
        ("--messages", "[", "is not valid JSON"),
        ("--messages", "[" * 100_000, "is not valid JSON"),
        ("--messages", "7", "holds neither"),
        ("--messages", "[]", "holds no messages"),
        ("--messages", '[{"role": "king", "content": ""}]', "message 0: role 'king' is unknown"),
        ("--messages", '{"messages": [], "temprature": 1}', "'temprature' is not understood"),
        (
            "--messages",
            '{"messages": [{"role": "user", "content": "a"}], "reasoning_effort": "x"}',
            "reasoning_effort is 'x', but must be low, medium or high",
        ),
        ("--tools", "{}", "expected a list of tools"),
        ("--tools", '[{"type": "function"}]', "tool 0"),
        ("--response-format", "[]", "a response format is an object"),
        ("--response-format", '{"type": "json_objekt"}', "'json_objekt' is none of"),
    ],
)
def test_a_bad_file_is_named_in_one_line_before_loading(
    ask: Ask, engine: ScriptedEngine, written: Write, option: str, content: str, said: str
) -> None:
    path = written(content)
    result = ask("hi", option, path)
    assert (result.exit_code, result.stdout, engine.loads) == (1, "", [])
    assert result.stderr.startswith(f"error: {path}: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--messages", "--tools", "--response-format"])
def test_a_file_that_cannot_be_read_is_named(ask: Ask, tmp_path: Path, option: str) -> None:
    missing = tmp_path / "missing.json"
    result = ask("hi", option, str(missing))
    line = f"error: {missing}: cannot be read: No such file or directory\n"
    assert (result.exit_code, result.stderr) == (1, line)
    assert "cannot be read: Is a directory" in ask("hi", option, str(tmp_path)).stderr


def test_bytes_that_are_no_text_are_refused(ask: Ask) -> None:
    result = ask(stdin=b"ab\xff")
    assert (result.exit_code, result.stderr) == (1, "error: stdin: byte 2 is not UTF-8 text\n")
    assert ask("\udcff").exit_code == 1


def test_a_sampling_option_out_of_range_is_refused_before_loading(
    ask: Ask, engine: ScriptedEngine
) -> None:
    result = ask("hi", "--temperature", "-1")
    assert (result.exit_code, engine.loads) == (2, [])
    assert "Error: temperature is -1.0, but must be from 0 to 100\n" in result.stderr


def test_an_error_is_one_line_and_a_traceback_only_if_asked(
    ask: Ask, engine: ScriptedEngine
) -> None:
    engine.script = [["final", None, "Well"], ContextError("too long\nby \x1b[2J far")]
    result = ask("hi")
    assert (result.exit_code, result.stdout) == (1, "Well\n")
    assert result.stderr == "error: too long by \ufffd[2J far\n"
    assert "Traceback" in ask("hi", "--debug").stderr


def test_an_unforeseen_error_is_one_line_too(ask: Ask, engine: ScriptedEngine) -> None:
    engine.script = [ZeroDivisionError("by zero")]
    result = ask("hi")
    line = "error: unexpected ZeroDivisionError: by zero (--debug shows where)\n"
    assert (result.exit_code, result.stderr) == (1, line)


def test_an_error_while_loading(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(model: str, **options: Any) -> None:
        raise CheckpointError(f"{model}: is broken")

    monkeypatch.setattr(gptoss_mlx, "load", load)
    result = ask("hi", "--model", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: x: is broken\n")


def test_json_is_one_object(ask: Ask, engine: ScriptedEngine) -> None:
    engine.script = [
        *ANSWER,
        ["commentary", None, "One moment."],
        ["commentary", "functions.add", '{"a": 1}'],
        ["finish", "tool_calls"],
    ]
    result = ask("hi", "--json", "--model", "tiny")
    value = json.loads(result.stdout)
    assert value.pop("timings").keys() >= {"load", "prefill", "first_token", "decode"}
    assert len(value["tool_calls"][0].pop("id")) > 8
    assert (result.exit_code, result.stdout.count("\n"), result.stderr) == (0, 1, "")
    assert value == {
        "model": "tiny",
        "text": "27 + 58 = 85",
        "reasoning": "Add them.",
        "preamble": "One moment.",
        "tool_calls": [{"name": "add", "arguments": '{"a": 1}'}],
        "finish_reason": "tool_calls",
        "limit": None,
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "total_tokens": 30,
            "reused_tokens": 2,
        },
        "seed": 1234,
    }


def test_an_error_leaves_stdout_empty_with_json(ask: Ask, engine: ScriptedEngine) -> None:
    engine.script = [["final", None, "Well"], ContextError("too long")]
    result = ask("hi", "--json")
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("max_tokens", "--max-tokens was reached"),
        ("context", "the context is full (--context)"),
        ("max_time", "--max-time was reached"),
        ("repetition", "it repeats itself"),
    ],
)
def test_a_cut_answer_is_noted_with_the_limit_unless_quiet(
    ask: Ask, engine: ScriptedEngine, limit: str, words: str
) -> None:
    engine.script = [["final", None, "Well"], ["finish", "length", limit]]
    result = ask("hi")
    assert (result.exit_code, result.stdout) == (0, "Well\n")
    assert result.stderr == f"note: cut off after 20 tokens: {words}\n"
    assert ask("hi", "--quiet").stderr == ""


def test_what_the_engine_notes_is_on_stderr_unless_quiet(ask: Ask, engine: ScriptedEngine) -> None:
    engine.notes = ("the Metal kernel x is not used here: no\x1b[2J",)
    result = ask("hi")
    assert result.stdout == "27 + 58 = 85\n"
    assert result.stderr.startswith("note: the Metal kernel x is not used here: no")
    assert "\x1b" not in result.stderr
    assert ask("hi", "--quiet").stderr == ""


def test_stats_are_on_stderr(ask: Ask) -> None:
    result = ask("hi", "--stats")
    assert result.stdout == "27 + 58 = 85\n"
    for part in ("load", "10 tokens", "16.0/s", "20 tokens", "10.0/s", "seed 1234"):
        assert part in result.stderr

"""The guard of generate and chat: one model or two, what is shown and kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gptoss_mlx
from gptoss_mlx.cli.chat.__main__ import main as chat
from gptoss_mlx.generate import main as generate
from tests.cli.chat.test_tools import Bench, code
from tests.support.judges import Judge, labelled
from tests.support.scripted_model import Scripted
from tests.support.talks import Talking, answer

Ask = Callable[..., Result]
BLOCKED = "[blocked: the answer violates the policy (R1)]"


@pytest.fixture
def loads() -> list[tuple[str, dict[str, Any]]]:
    """The models that were loaded, with their settings."""
    return []


@pytest.fixture
def ask(
    monkeypatch: pytest.MonkeyPatch, loads: list[tuple[str, dict[str, Any]]], policy: Path
) -> Ask:
    """(replies of each model, arguments) -> what generate did with the policy."""

    def run(replies: dict[str, list[str]], *arguments: str, command: Any = generate) -> Result:
        def load(model: str, *, progress: object, **options: Any) -> Any:
            loads.append((model, options))
            engine = Scripted(*replies[model]).engine
            engine.name = model
            return engine

        monkeypatch.setattr(gptoss_mlx, "load", load)
        prompt = ["q"] if command is generate else []
        arguments = ("--model", "m", "--guard", str(policy), *arguments)
        return CliRunner().invoke(command, [*prompt, *arguments], input="")

    return run


def test_one_model_answers_and_judges(ask: Ask, loads: list[tuple[str, Any]]) -> None:
    result = ask({"m": [labelled(0), answer("Fine.", "Hm."), labelled(0)]}, "--show-reasoning")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Fine.\n", "")
    assert [model for model, _ in loads] == ["m"]


def test_another_model_judges(ask: Ask, loads: list[tuple[str, Any]]) -> None:
    replies = {"m": [answer("A cat.")], "judge": [labelled(0), labelled(1, "R1", "A cat.")]}
    result = ask(replies, "--guard-model", "judge", "--threads", "2", "--context", "8k")
    assert (result.exit_code, result.stdout) == (0, f"{BLOCKED}\n")
    assert result.stderr == "note: guard: the answer is blocked: it violates the policy (R1)\n"
    assert loads[1] == ("judge", {"threads": 2})


def test_a_message_that_is_blocked_is_not_answered(ask: Ask) -> None:
    result = ask({"m": [labelled(1, "R1\n\x1b[31m", "Why.")]})
    assert result.stdout == "[blocked: the message violates the policy (R1 \x1b[31m)]\n"
    assert "\x1b" not in result.stderr


def test_json_has_every_verdict(ask: Ask) -> None:
    result = ask({"m": [labelled(0), answer("A cat."), labelled(1, "R1", "A cat.")]}, "--json")
    value = json.loads(result.stdout)
    assert (value["text"], value["reasoning"]) == (BLOCKED, "")
    assert [(found["what"], found["label"]) for found in value["guard"]] == [
        ("input", "pass"),
        ("output", "violation"),
    ]
    assert value["guard"][1] == {
        "what": "output",
        "label": "violation",
        "category": "R1",
        "reason": "A cat.",
        "text": "A cat.",
        "blocked": True,
    }


@pytest.mark.parametrize(
    ("arguments", "shown", "noted"),
    [
        ((), "[blocked: the message could not be judged]", "(fails closed: blocked)"),
        (("--guard-fail", "closed"), "[blocked: the message could not be judged]", "blocked"),
        (("--guard-fail", "open"), "Fine.", "it wrote no label (fails open: let pass)"),
    ],
)
def test_without_a_label_it_fails_closed_or_open(
    ask: Ask, arguments: tuple[str, ...], shown: str, noted: str
) -> None:
    result = ask({"m": [answer("Hm?"), answer("Fine."), answer("Hm?")]}, *arguments)
    assert result.stdout == f"{shown}\n"
    assert noted in result.stderr


@pytest.mark.parametrize("command", [generate, chat])
@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read: No such file"), (" ", "the policy is empty")],
)
def test_a_policy_that_is_none_is_one_line_before_loading(
    ask: Ask, loads: list[Any], policy: Path, text: str | None, said: str, command: Any
) -> None:
    policy.unlink()
    if text is not None:
        policy.write_text(text)
    result = ask({}, command=command)
    assert (result.exit_code, result.stdout, loads) == (1, "", [])
    assert result.stderr.startswith(f"error: {policy}: {said}")
    assert result.stderr.count("\n") == 1


def test_a_policy_that_is_too_long_is_one_line(ask: Ask, policy: Path) -> None:
    policy.write_text("word " * 5000)
    result = ask({"m": []})
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {policy}: the policy takes 5,")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--guard-model", "m"], "--guard-model is for --guard POLICY"),
        (["--guard-fail", "open"], "--guard-fail is for --guard POLICY"),
        (
            ["--guard", "POLICY", "--raw"],
            "--guard judges messages, beside neither --raw nor --tools",
        ),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    policy: Path, arguments: list[str], said: str
) -> None:
    arguments = [str(policy) if given == "POLICY" else given for given in arguments]
    result = CliRunner().invoke(generate, ["q", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_chat_answers_no_message_that_is_blocked(tmp_path: Path) -> None:
    talking = Talking(tmp_path, answer("Fine."), guard=Judge().guard())
    talk = talking.talk
    talk.ask("a vile one")
    assert talking.out.getvalue() == "[blocked: the message violates the policy (R1)]\n"
    assert "guard: the message is blocked" in talking.said
    assert (talk.transcript.messages, talk.saved, talk.draft) == ((), None, "a vile one")
    talk.ask("a good one")
    assert [m["content"] for m in talk.transcript.messages] == ["a good one", "Fine."]
    assert len(talking.prompts) == 1


def test_a_chat_neither_shows_nor_saves_an_answer_that_is_blocked(tmp_path: Path) -> None:
    talking = Talking(tmp_path, answer("A vile answer.", "Bad."), guard=Judge().guard())
    talking.talk.ask("q")
    assert talking.out.getvalue() == f"{BLOCKED}\n"
    assert talking.talk.saved is not None
    file = talking.talk.archive.folder / f"{talking.talk.saved.name}.json"
    assert BLOCKED in file.read_text()
    assert "vile" not in file.read_text().lower()


def test_a_chat_s_tools_give_the_model_nothing_that_is_blocked(tmp_path: Path) -> None:
    talking = Talking(
        tmp_path,
        *(code("vile"), answer("Fine.", "Hm.")),
        rules={"python": "allow"},
        opened=Bench(),
        guard=Judge("vile: ").guard(),
    )
    talking.talk.ask("q")
    assert talking.out.getvalue() == "Fine.\n"
    (result,) = [m["content"] for m in talking.talk.transcript.messages if m["role"] == "tool"]
    assert result == "[blocked: the result violates the policy]"
    assert talking.talk.transcript.last_reasoning == ""

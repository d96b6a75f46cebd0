"""The guard of serve: one model or two, how it fails, and what is refused before anything is
served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from gptoss_mlx.cli import serve
from gptoss_mlx.cli.asked_guard import JUDGE_CONTEXT, AskedGuard
from gptoss_mlx.engine import engine
from gptoss_mlx.server.listener import Listener
from gptoss_mlx.server.registry import ServedModel
from gptoss_mlx.settings import Settings
from tests.support.judges import labelled
from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import LONG

FINE, NO_LABEL = f"{FINAL}Fine.<|return|>", f"{FINAL}Hm?<|return|>"
Serve = Callable[..., tuple[Result, list[dict[str, Any]]]]


@pytest.fixture
def opened() -> list[str]:
    """The models that were opened, in order."""
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, policy: Path, opened: list[str]) -> Serve:
    """(replies of each model, arguments) -> what the command said, and answers to two requests."""

    def serving(replies: dict[str, list[str]], *arguments: str) -> Any:
        answers: list[dict[str, Any]] = []

        def opening(name: str, settings: Settings, progress: Any) -> Any:
            opened.append(name)
            return Scripted(*replies[name]).engine

        def listen(listener: Listener, sockets: Any) -> None:
            thread = threading.Thread(target=lambda: asyncio.run(listener.serve(sockets)))
            thread.start()
            url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
            ended = suppress(httpx.TransportError)  # by itself, where the command fails
            with ended, httpx.Client(base_url=url, timeout=LONG, trust_env=False) as client:
                while thread.is_alive() and client.get("/health").status_code == 503:
                    thread.join(0.01)
                body = {"messages": [{"role": "user", "content": "q"}]}
                answers.append(client.post("/v1/chat/completions", json=body).json())
            listener.should_exit = True
            thread.join(LONG)

        monkeypatch.setattr(engine, "open_engine", opening)
        monkeypatch.setattr(Listener, "run", listen)
        options = ["--port", "0", "--no-cache-dir", "--guard", str(policy), *arguments]
        result = CliRunner().invoke(serve.main, ["m", *options])
        return result, answers

    return serving


def finish_of(answers: list[dict[str, Any]]) -> str:
    (answer,) = answers
    reason: str = answer["choices"][0]["finish_reason"]
    return reason


def test_the_model_that_answers_judges(run: Serve, opened: list[str]) -> None:
    result, answers = run({"m": [labelled(0), FINE, labelled(1, "R1")]})
    assert (result.exit_code, opened) == (0, ["m"])
    assert answers[0]["choices"][0]["message"]["refusal"].endswith("violates the policy (R1)]")


def test_another_model_judges_and_is_opened_first(run: Serve, opened: list[str]) -> None:
    replies = {"m": [FINE], "judge": [labelled(0), labelled(0)]}
    result, answers = run(replies, "--guard-model", "judge")
    assert (result.exit_code, opened, finish_of(answers)) == (0, ["judge", "m"], "stop")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((), "content_filter"), (("--guard-fail", "open"), "stop")],
)
def test_it_fails_closed_unless_asked(run: Serve, arguments: tuple[str, ...], reason: str) -> None:
    _, answers = run({"m": [NO_LABEL, FINE, NO_LABEL]}, *arguments)
    assert finish_of(answers) == reason


@pytest.mark.parametrize("judge", [(), ("--guard-model", "judge")])
def test_a_policy_that_is_too_long_ends_it(run: Serve, policy: Path, judge: Any) -> None:
    policy.write_text("word " * 5000)
    result, answers = run({"m": [], "judge": []}, *judge)
    assert (result.exit_code, answers) == (1, [])
    line = result.output.splitlines()[-1]
    assert line.startswith(f"error: {policy}: the policy takes 5,")


def test_a_policy_that_cannot_be_read_is_said_before_anything_is_opened(
    run: Serve, policy: Path, opened: list[str]
) -> None:
    policy.unlink()
    result, _ = run({})
    assert (result.exit_code, opened) == (1, [])
    assert result.output.startswith(f"error: {policy}: cannot be read")
    alone = CliRunner().invoke(serve.main, ["m", "--guard-fail", "open"])
    assert (alone.exit_code, "--guard-fail is for --guard POLICY" in alone.output) == (2, True)


def test_a_judge_is_a_model_that_is_served_or_one_with_a_context_of_its_own() -> None:
    settings = Settings(context=4096, memory=9 << 30, parallel=3, threads=2, cache=1 << 30)
    entries = [ServedModel(name, settings) for name in ("m", "tiny")]

    def judge(model: str | None, count: int = 2) -> ServedModel | None:
        return AskedGuard("A policy.", Path("p"), model).serve(entries[:count]).judge

    assert judge(None) is None
    assert judge("tiny") is entries[1]
    assert judge("m", 1) is None  # it judges for itself
    other = judge("openai/gpt-oss-safeguard-20b")
    assert other is not None
    assert other.settings == Settings(context=JUDGE_CONTEXT, memory=9 << 30, parallel=3, threads=2)
    nothing = AskedGuard().serve(entries)
    assert (nothing.texts, nothing.judge) == (None, None)

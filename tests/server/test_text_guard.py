"""The guard of a server in every API: what passes is as without it, and of what is blocked not a
byte leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from gptoss_mlx.server.policy import Policy
from gptoss_mlx.tools.guard.guard import ClassifierError
from tests.server.test_life import raw
from tests.support.judges import ServedJudge
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted, encoding
from tests.support.served import Served, data_of, serving

HI = [{"role": "user", "content": "q"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
HARMONY = f"{ANALYSIS}Think of %s.{AGAIN}{FINAL}It is %s.<|return|>"
CALLED = f"{ANALYSIS}Think of %s.{AGAIN}" + CALL.format('{"x": "%s"}')
PROBABLE = {"logprobs": True, "top_logprobs": 1}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
SEALED = ["reasoning.encrypted_content", "message.output_text.logprobs"]
_TALK = {"messages": HI, "logprobs": True}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, **PROBABLE},
    "/v1/completions": {"prompt": "q", "max_tokens": 50, "logprobs": 1},
    "/v1/responses": {"input": "q", "include": SEALED, "reasoning": {"summary": "auto"}},
    "/v1/messages": {"messages": HI, "max_tokens": 2000, **THINKING},
    "/api/chat": {**_TALK, "think": True},
    "/api/generate": {"prompt": "q", "logprobs": True},
    "/api/v0/chat/completions": {"messages": HI, **PROBABLE},
    "/api/v0/completions": {"prompt": "q", "max_tokens": 50, "logprobs": 1},
}
CALLING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "tools": TOOLS},
    "/v1/responses": {"input": "q", "tools": [{"type": "function", "name": "f"}]},
    "/v1/messages": {"messages": HI, "max_tokens": 2000, "tools": [{"name": "f"}], **THINKING},
    "/api/chat": {"messages": HI, "tools": TOOLS},
}
PATHS = sorted(BODIES)
CASES = [*((path, False) for path in PATHS), *((path, True) for path in sorted(CALLING))]
"""Path, and whether the model calls a function."""

_RAW = ("/v1/completions", "/api/v0/completions")
_CHANGING = re.compile(
    r'"(id|item_id|call_id|created|created_at|completed_at|signature|response_id|request_id'
    r"|[a-z_]*_ms|[a-z_]*_per_second|[a-z_]*_duration|time_to_first_token|generation_time"
    r')":("[^"]*"|[\d.e+-]+)'
)
"""What differs between two answers of the same model."""


def reply(path: str, word: str, template: str = HARMONY) -> str:
    """What a model writes, with a word in every part of it."""
    return f" It is {word}.<|return|>" if path in _RAW else template % (word, word)


def received(served: Served, path: str, body: dict[str, Any], stream: bool) -> str:
    """All that a client receives, without what differs from time to time."""
    response = served.post(path, {**body, "stream": stream})
    assert response.status_code == 200, response.text
    return _CHANGING.sub(r'"\1":0', response.text)


def ask(
    path: str, word: str, stream: bool, judge: ServedJudge | None, calls: bool = False, **more: Any
) -> str:
    template, bodies = (CALLED, CALLING) if calls else (HARMONY, BODIES)
    guard = None if judge is None else judge.served(**more)
    with serving(Scripted(reply(path, word, template)), guard=guard) as served:
        return received(served, path, bodies[path], stream)


def values_of(text: str) -> Sequence[dict[str, Any]]:
    lines = text.splitlines()
    if not text.startswith("{"):
        return data_of(lines)
    return [json.loads(line) for line in lines]


def guard_of(value: Any) -> dict[str, Any] | None:
    """What stands under `guard`, wherever it is."""
    if isinstance(value, dict):
        if "guard" in value:
            found: dict[str, Any] = value["guard"]
            return found
        value = list(value.values())
    found_in = map(guard_of, value) if isinstance(value, list) else iter(())
    return next((one for one in found_in if one is not None), None)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "calls"), CASES)
def test_what_passes_is_as_without_a_guard(path: str, stream: bool, calls: bool) -> None:
    judge = ServedJudge()
    with_guard = ask(path, "green", stream, judge, calls)
    told = [line for line in with_guard.splitlines() if not line.startswith(": held")]
    without = ask(path, "green", stream, None, calls)
    assert [line for line in told if line] == [line for line in without.splitlines() if line]
    assert {what for what, _ in judge.judged} >= {"input", "output"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("path", "calls"), CASES)
def test_nothing_of_a_blocked_answer_leaves(path: str, stream: bool, calls: bool) -> None:
    """Two answers of as many tokens, both blocked, cannot be told apart by what is received."""
    words = ["vile green vile", "vile blue vile"]
    lengths = {len(encoding().encode_special(reply(path, word))) for word in words}
    assert len(lengths) == 1
    first, second = (ask(path, word, stream, ServedJudge(), calls) for word in words)
    assert first == second
    for text in (first, second):
        assert not any(word in text for word in ("green", "blue", "Think", "vile"))
    found = guard_of(list(values_of(first)))
    assert found == {"what": "output", "label": "violation", "category": "R1", "reason": None}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", PATHS)
def test_a_request_that_is_blocked_is_not_read(path: str, stream: bool) -> None:
    body = json.loads(json.dumps(BODIES[path]).replace('"q"', '"a vile question"'))
    scripted, judge = Scripted(reply(path, "green")), ServedJudge()
    with serving(scripted, guard=judge.served()) as served:
        text = received(served, path, body, stream)
        assert served.registry.find(None).sequences == 0
    assert guard_of(list(values_of(text))) == {
        "what": "input",
        "label": "violation",
        "category": "R1",
        "reason": "It says so.",
    }
    assert scripted.samplings == []
    assert [what for what, _ in judge.judged] == ["input"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_judged_is_blocked_or_passes_as_asked(path: str, stream: bool) -> None:
    def judge() -> ServedJudge:
        return ServedJudge(error=ClassifierError("no label"))

    closed = guard_of(list(values_of(ask(path, "green", stream, judge()))))
    assert closed is not None
    assert (closed["what"], closed["label"], closed["category"]) == ("input", "failed", None)
    assert closed["reason"] == "no label (fails closed: blocked)"
    opened = ask(path, "green", stream, judge(), fail="open")
    assert guard_of(list(values_of(opened))) is None
    said = "".join(re.findall(r'"(?:content|text|response|delta)":"([^"]*)"', opened))
    assert "green" in said


class Persuaded(ServedJudge):
    """A classifier that an answer has persuaded to repeat it."""

    async def __call__(self, runner: Any, what: Any, text: str) -> Any:
        label = await super().__call__(runner, what, text)
        return type(label)(label.violation, text[:80], f"It says {text!r}.")


@pytest.mark.parametrize("path", PATHS)
def test_a_classifier_that_quotes_an_answer_is_not_repeated(path: str) -> None:
    text = ask(path, "vile blue vile", True, Persuaded())
    assert "blue" not in text
    found = guard_of(list(values_of(text)))
    assert found == {"what": "output", "label": "violation", "category": None, "reason": None}


@pytest.mark.parametrize("path", sorted(CALLING))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_reasoning_that_is_blocked_is_left_out(path: str, stream: bool) -> None:
    template = f"{ANALYSIS}A vile thought.{AGAIN}{FINAL}It is fine.<|return|>"
    with serving(Scripted(template), guard=ServedJudge().served()) as served:
        text = received(served, path, BODIES[path], stream)
    assert "thought" not in text
    assert guard_of(list(values_of(text))) is None
    said = "".join(re.findall(r'"(?:content|text|response|delta)":"([^"]*)"', text))
    assert "It" in said
    assert "fine" in said


def test_every_choice_is_judged_by_itself() -> None:
    replies = [f"{FINAL}{text}<|return|>" for text in ("fine", "vile", "good")]
    with serving(Scripted(*replies), guard=ServedJudge().served()) as served:
        answer = served.post("/v1/chat/completions", {"messages": HI, "n": 3}).json()
    told = [(c["finish_reason"], c["message"]["content"]) for c in answer["choices"]]
    assert sorted(told, key=str) == [("content_filter", None), ("stop", "fine"), ("stop", "good")]


def test_progress_is_told_while_an_answer_is_held_back() -> None:
    long = f"{FINAL}{'word ' * 100}vile<|return|>"
    with serving(Scripted(long), guard=ServedJudge().served()) as served:
        lines = served.stream("/v1/chat/completions", {"messages": HI, "stream": True})
    told = [int(line.split()[-1]) for line in lines if line.startswith(": held ")]
    assert len(told) > 4
    assert told == sorted(told)
    assert "word" not in "".join(lines)


def test_health_and_metrics_count_what_was_judged() -> None:
    replies = [f"{FINAL}{text}<|return|>" for text in ("fine", "vile")]
    with serving(Scripted(*replies), guard=ServedJudge().served()) as served:
        for text in ("q", "r", "a vile one"):
            messages = [{"role": "user", "content": text}]
            served.post("/v1/chat/completions", {"messages": messages})
        health = served.client.get("/health").json()["guard"]
        metrics = served.client.get("/metrics").text
    assert health == {
        "model": "scripted",
        "state": "ready",
        "judged": 5,
        "blocked": 2,
        "failed": 0,
    }
    assert 'gptoss_guard_judged_total{label="violation",what="output"} 1.0' in metrics
    assert 'gptoss_guard_judged_total{label="pass",what="input"} 2.0' in metrics
    assert 'gptoss_guard_blocked_total{what="input"} 1.0' in metrics


def test_without_a_guard_nothing_tells_of_one() -> None:
    with serving(Scripted(f"{FINAL}vile<|return|>")) as served:
        assert "guard" not in served.client.get("/health").text
        assert "guard" not in served.client.get("/metrics").text


def test_a_classifier_that_is_broken_blocks_and_says_nothing_of_why() -> None:
    judge = ServedJudge(error=RuntimeError("/home/me/secret is broken"))
    text = ask("/v1/chat/completions", "green", False, judge)
    found = guard_of(list(values_of(text)))
    assert found is not None
    assert "it is in the server's log" in str(found["reason"])
    assert "secret" not in text


@pytest.mark.parametrize("at", ["input", "output"])
@pytest.mark.parametrize(
    ("path", "beat"),
    [
        ("/v1/chat/completions", b": waiting\n"),
        ("/v1/completions", b": waiting\n"),
        ("/v1/responses", b": waiting\n"),
        ("/v1/messages", b"event: ping\n"),
        ("/api/chat", b'"message":{"role":"assistant","content":""}'),
        ("/api/generate", b'"response":""'),
        ("/api/v0/chat/completions", b": waiting\n"),
    ],
)
def test_a_stream_is_kept_alive_while_it_is_judged_and_judged_no_longer_than_it_is_read(
    path: str, beat: bytes, at: str
) -> None:
    judge = ServedJudge("q" if at == "input" else "green", holding=True)
    scripted = Scripted(reply(path, "green"))
    with serving(scripted, policy=Policy(beat_seconds=0.02), guard=judge.served()) as served:
        connection = raw(served, {**BODIES[path], "stream": True}, path)
        seen = b""
        while seen.count(beat) < 4 or "began" not in judge.events:
            seen += connection.recv(4096)
        assert (seen[:15], b"green" in seen) == (b"HTTP/1.1 200 OK", False)
        entry = served.registry.find(None)
        assert entry.sequences == 1
        connection.close()
        served.wait_until(lambda: "ended" in judge.events and entry.sequences == 0)
        assert entry.leases == 0

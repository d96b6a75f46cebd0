"""A judge in a server: by the model that answers or another, beside other requests, and no longer
than its request."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.errors import CheckpointError, MemoryBudgetError, OptionError
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.policy_judge import PolicyJudge, judging_opener
from gptoss_mlx.server.registry import Registry, ServedModel
from gptoss_mlx.server.text_guard import TextGuard
from gptoss_mlx.settings import Settings
from tests.server.test_life import raw
from tests.support.gate import Gate
from tests.support.judges import ServedJudge, labelled
from tests.support.scripted_model import FINAL, Endless, Scripted, encoding
from tests.support.served import LONG, Served, serving

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
FINE = f"{FINAL}Fine.<|return|>"
POLICY = "R1: say nothing of cats."


def guard(fail: Any = "closed", time_limit: float = 300.0) -> TextGuard:
    return TextGuard(PolicyJudge(POLICY, time_limit=time_limit), POLICY, fail=fail)


def choice_of(served: Served, messages: Any = HI) -> dict[str, Any]:
    response = served.post(PATH, {"messages": messages})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def test_the_model_that_answers_judges_in_sequences_of_its_own() -> None:
    scripted = Scripted(labelled(0), FINE, labelled(1, "R1", "A cat."))
    with serving(scripted, guard=guard()) as served:
        choice = choice_of(served)
        served.wait_until(lambda: scripted.engine.finished)
    assert choice["message"]["refusal"] == "[blocked: the answer violates the policy (R1)]"
    prompts = [encoding().decode(ids) for _, _, ids in scripted.samplings]
    assert [POLICY in prompt for prompt in prompts] == [True, False, True]
    assert "\n\nFine.<|end|>" in prompts[2]


def test_another_model_judges_which_nobody_can_ask() -> None:
    scripted, judge = Scripted(FINE), Scripted(labelled(0), labelled(0))
    with serving(scripted, guard=guard(), judge=judge) as served:
        assert choice_of(served)["message"]["content"] == "Fine."
        listed = served.client.get("/v1/models").json()["data"]
        refused = served.post(PATH, {"messages": HI, "model": "judge"})
        health = served.client.get("/health").json()["guard"]
    assert [model["id"] for model in listed] == ["scripted"]
    assert refused.status_code == 404
    assert (health["model"], health["judged"]) == ("judge", 2)
    assert (len(scripted.samplings), len(judge.samplings)) == (1, 2)


@pytest.mark.parametrize(("fail", "reason"), [("closed", "content_filter"), ("open", "stop")])
def test_a_label_takes_no_longer_than_its_time(fail: Any, reason: str) -> None:
    judge = Scripted(labelled(0), labelled(0))
    with serving(Scripted(FINE), guard=guard(fail, time_limit=1e-9), judge=judge) as served:
        choice = choice_of(served)
        health = served.client.get("/health").json()["guard"]
    assert choice["finish_reason"] == reason
    assert health["failed"] == (1 if fail == "closed" else 2)
    if fail == "closed":
        assert "there was no label within 1e-09 seconds" in choice["guard"]["reason"]


def test_a_long_text_is_judged_in_parts() -> None:
    words = "word " * 3000
    judge = Scripted(labelled(0), labelled(1, "R1"), context=3000)
    with serving(Scripted(FINE), guard=guard(), judge=judge) as served:
        choice = choice_of(served, [{"role": "user", "content": words}])
    assert choice["guard"]["what"] == "input"
    assert len(judge.samplings) == 2


@pytest.mark.parametrize("at", ["input", "output"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_leaves_ends_the_judging(gate: Gate, stream: bool, at: str) -> None:
    scripted = Scripted(FINE)
    first = [] if at == "input" else [labelled(0)]
    judge = Scripted(*first, FINAL + "word " * 900)
    with serving(scripted, guard=guard(), judge=judge) as served:
        if at == "input":
            gate.close()
        entry, judging = served.registry.all
        connection = raw(served, {"messages": HI, "stream": stream})
        if at == "output":
            served.wait_until(lambda: len(judge.samplings) == 2)
        else:
            gate.let(3)
        assert (entry.sequences, entry.leases, judging.leases) == (1, 1, 1)
        connection.close()
        served.wait_until(lambda: (entry.sequences, entry.leases, judging.leases) == (0, 0, 0))
        gate.open()
        served.wait_until(lambda: judge.engine.finished and scripted.engine.finished)
        assert judge.count("decode") < 900
        assert len(scripted.samplings) == (0 if at == "input" else 1)


@pytest.mark.parametrize("at", ["input", "output"])
def test_a_response_that_is_cancelled_while_it_is_judged_says_nothing(at: str) -> None:
    judge = ServedJudge("hi" if at == "input" else "Fine", holding=True)
    with serving(Scripted(FINE), guard=judge.served()) as served:
        made: list[dict[str, Any]] = []
        body = {"input": "hi"}
        asking = threading.Thread(
            target=lambda: made.append(served.post("/v1/responses", body).json())
        )
        asking.start()
        served.wait_until(lambda: "began" in judge.events)
        (id,) = served.listener.config.app.responses.running  # type: ignore[union-attr]
        assert served.post(f"/v1/responses/{id}/cancel", {}).json()["status"] == "cancelled"
        asking.join(LONG)
        assert judge.events == ["began", "ended"]
        assert served.registry.find(None).sequences == 0
    assert (made[0]["status"], made[0]["output"]) == ("cancelled", [])


def test_a_judge_that_is_loaded_is_told_like_any_model() -> None:
    go_on = threading.Event()

    def opening(progress: Any) -> Any:
        progress(3, 10)
        assert go_on.wait(LONG)
        return Scripted(labelled(0), labelled(0)).engine

    with serving(Scripted(FINE), guard=guard(), judge=opening, ready=False) as served:
        served.wait_until(lambda: served.registry.all[1].done == 3)
        refused = served.post(PATH, {"messages": HI})
        assert refused.status_code == 503
        assert "the model judge is being loaded, 30 %" in refused.text
        assert served.client.get("/health").status_code == 503
        go_on.set()
        served.wait_until(lambda: served.client.get("/health").status_code == 200)
        assert choice_of(served)["message"]["content"] == "Fine."


def test_without_a_judge_that_can_be_loaded_nothing_is_answered_or_healthy() -> None:
    def opening(progress: Any) -> Any:
        raise CheckpointError("/home/me/secret: truncated")

    scripted = Scripted(FINE)
    with serving(scripted, guard=guard("open"), judge=opening) as served:
        health = served.client.get("/health")
        refused = served.post(PATH, {"messages": HI})
    assert (health.status_code, health.json()["status"]) == (503, "error")
    assert health.json()["guard"]["state"] == "failed"
    assert (refused.status_code, "secret" in refused.text) == (503, False)
    assert scripted.samplings == []


def test_the_judge_stays_as_long_as_a_model_that_it_judges_for() -> None:
    judge, scripted = Scripted(labelled(0)), Scripted(FINE)
    for one in (judge, scripted):
        one.replies = Endless(one.replies)
    with serving(scripted, guard=guard(), judge=judge, policy=Policy(keep_alive=3600.0)) as served:
        entry, judging = served.registry.all
        assert choice_of(served)["finish_reason"] == "stop"
        assert (entry.status, judging.status) == ("ready", "ready")
        assert judging.expiry is None  # it counts no time of its own
        served.post("/api/generate", {"keep_alive": 0})
        served.wait_until(lambda: entry.status == "unloaded")
        assert judging.expiry is not None
    assert judge.engine.is_closed


class Rooms:
    """An opener of engines of which `room` fit into the memory. opened: their names."""

    def __init__(self, room: int) -> None:
        self.room, self.opened, self._engines = room, list[str](), list[Engine]()

    def __call__(self, name: str, settings: Settings, progress: Any) -> Engine:
        if sum(not engine.is_closed for engine in self._engines) >= self.room:
            raise MemoryBudgetError("no room")
        self.opened.append(name)
        self._engines.append(Scripted().engine)
        return self._engines[-1]


async def _no_model_takes_its_place() -> None:
    opener, judge = Rooms(2), ServedModel("judge", Settings())
    entries = [ServedModel(name, Settings()) for name in "ab"]
    registry = Registry(entries, opener=opener, judge=judge)
    try:
        for name in ("a", "b", "a"):
            assert await registry.lease_judge() is judge
            registry.release(await registry.lease(name))
            registry.release(judge)
        assert opener.opened == ["judge", "a", "b", "a"]
        opener.room = 1  # which the judge has
        await registry.unload(entries[0])
        await registry.load(entries[1])
        assert isinstance(entries[1].error, MemoryBudgetError)
        assert judge.status == "ready"
    finally:
        await registry.close()


def test_no_model_takes_the_judge_s_place() -> None:
    asyncio.run(_no_model_takes_its_place())


@pytest.mark.parametrize("judge", [None, "judge"])
def test_a_model_that_cannot_judge_is_not_opened(judge: str | None) -> None:
    closed: list[Any] = []

    def opening(name: str, settings: Settings, progress: Any) -> Any:
        closed.append(Scripted(context=1000).engine)
        return closed[-1]

    only = None if judge is None else ServedModel(judge, Settings())
    opener = judging_opener(opening, PolicyJudge(POLICY), only, "policy.md")
    with pytest.raises(OptionError, match=r"^policy.md: the policy takes \d+ tokens"):
        opener(judge or "m", Settings(), print)
    assert closed[0].is_closed
    if judge is not None:
        assert not opener("m", Settings(), print).is_closed
        closed[1].close()

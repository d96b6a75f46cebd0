"""The guard before, in and behind the agent's loop, with a classifier that follows a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gptoss_mlx.engine.events import FinishEvent, TokenEvent
from gptoss_mlx.tools.agent import Agent
from gptoss_mlx.tools.events import AgentEvent, CallEvent, HeldEvent, OutcomeEvent
from gptoss_mlx.tools.guard.guard import ClassifierError, Fail, Guard
from gptoss_mlx.tools.guard.verdict import GuardEvent, What
from tests.support.judges import Judge
from tests.support.scripted_model import ANALYSIS, FINAL, Scripted
from tests.tools.test_agent import CODE, Kept, prompts_of

SAID = f"{FINAL}Fine.<|return|>"


def guarded(guard: Guard, *replies: str, **options: Any) -> tuple[Agent, Scripted, Kept]:
    scripted, python = Scripted(*replies), Kept(lambda text: text)
    return Agent(scripted.engine, [python], guard=guard, **options), scripted, python


def seen(events: Sequence[AgentEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


def verdicts(events: Sequence[AgentEvent]) -> list[GuardEvent]:
    return [event for event in events if isinstance(event, GuardEvent)]


def test_what_keeps_the_policy_passes() -> None:
    judge = Judge()
    agent, _, _ = guarded(judge.guard(), f"{CODE}1 + 1<|call|>", SAID)
    events = list(agent.run("q"))
    assert judge.judged == [
        ("input", "q"),
        ("output", "[a call of python]\n1 + 1"),
        ("result", "1 + 1"),
        ("output", "Fine."),
    ]
    assert seen(events) == "1 + 1Fine."
    assert {(event.label, event.blocked) for event in verdicts(events)} == {("pass", False)}


def test_a_message_that_is_blocked_is_not_read() -> None:
    agent, scripted, _ = guarded(Judge().guard(), SAID)
    events = list(agent.run("a vile message"))
    (event,) = verdicts(events)
    assert event == GuardEvent("input", "violation", "R1", "It says so.", "a vile message", True)
    assert seen(events) == "[blocked: the message violates the policy (R1)]"
    assert isinstance(events[-1], FinishEvent)
    assert (scripted.samplings, agent.messages) == ([], [])
    assert seen(list(agent.run("a good one"))) == "Fine."
    assert "vile" not in prompts_of(scripted)[0]


def test_a_result_that_is_blocked_is_replaced_for_the_model() -> None:
    scripted, python = Scripted(f"{CODE}x<|call|>", SAID), Kept(lambda _: "vile")
    events = list(Agent(scripted.engine, [python], guard=Judge().guard()).run("q"))
    assert python.calls == [("python", "x")]
    (outcome,) = [event.outcome for event in events if isinstance(event, OutcomeEvent)]
    assert (outcome.text, outcome.failed) == ("[blocked: the result violates the policy]", True)
    read = prompts_of(scripted)[-1].rpartition("<|start|>python to=assistant")[2]
    assert outcome.text in read
    assert "vile" not in read
    assert seen(events).endswith("Fine.")


def test_an_answer_that_is_blocked_is_never_seen() -> None:
    reply = f"{ANALYSIS}Be vile.<|end|><|start|>assistant{FINAL}A vile answer.<|return|>"
    agent, scripted, _ = guarded(Judge().guard(), reply, SAID)
    events = list(agent.run("q"))
    line = "[blocked: the answer violates the policy (R1)]"
    assert seen(events) == line
    assert verdicts(events)[-1].text == "A vile answer."
    last = events[-1]
    assert isinstance(last, FinishEvent)
    assert (last.reason, last.completion_tokens > 0) == ("stop", True)
    assert agent.messages[1:] == [{"role": "assistant", "content": line}]
    list(agent.run("r"))
    assert "vile" not in prompts_of(scripted)[-1].lower()


def test_nothing_of_a_turn_is_seen_before_it_is_judged_and_its_reasoning_never() -> None:
    thought = f"{ANALYSIS}Hm.<|end|><|start|>assistant"
    agent, scripted, _ = guarded(Judge().guard(), f"{thought}{CODE}1<|call|>", f"{thought}{SAID}")
    events = list(agent.run("q"))
    kinds = [type(event) for event in events]
    *_, judged = [i for i, event in enumerate(events) if isinstance(event, GuardEvent)]
    assert not any(
        isinstance(event, TokenEvent) and event.channel == "final" for event in events[:judged]
    )
    assert HeldEvent in kinds
    assert seen(events) == "1Fine."
    assert "Hm." in prompts_of(scripted)[1]  # the model goes on from it
    assert not any("reasoning" in message for message in agent.messages)


def test_what_is_said_before_a_call_is_judged_before_it_is_run() -> None:
    said = "<|channel|>commentary<|message|>Something vile.<|end|><|start|>assistant"
    agent, _, python = guarded(Judge().guard(), f"{said}{CODE}1<|call|>")
    events = list(agent.run("q"))
    assert (python.calls, seen(events)) == ([], "[blocked: the answer violates the policy (R1)]")
    assert not any(isinstance(event, CallEvent) for event in events)
    assert [message["role"] for message in agent.messages] == ["user", "assistant"]
    assert "tool_calls" not in agent.messages[1]


def test_a_call_that_is_blocked_is_not_run() -> None:
    """So that a question to another model does not leave the machine, whatever is said beside."""
    agent, scripted, python = guarded(Judge().guard(), f"{CODE}vile<|call|>", SAID)
    events = list(agent.run("q"))
    assert (python.calls, seen(events)) == ([], "[blocked: the answer violates the policy (R1)]")
    assert verdicts(events)[-1].text == "[a call of python]\nvile"
    assert not any(isinstance(event, CallEvent) for event in events)
    assert "tool_calls" not in agent.messages[-1]
    list(agent.run("r"))
    assert "vile" not in prompts_of(scripted)[-1]


def test_results_that_a_client_gives_are_judged_and_the_past_is_not() -> None:
    judge = Judge()
    past = [{"role": "user", "content": "old and vile"}, {"role": "assistant", "content": "."}]
    call = {"id": "1", "type": "python", "function": {"name": "python", "arguments": "x"}}
    given = [
        {"role": "system", "content": "Be brief; never vile."},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "vile"},
    ]
    agent, scripted, _ = guarded(judge.guard(), SAID, messages=past)
    list(agent.run(given))
    assert judge.judged == [("input", "q"), ("result", "vile"), ("output", "Fine.")]
    assert "[blocked: the result violates the policy]" in prompts_of(scripted)[0]
    assert given[3]["content"] == "vile"  # the caller's own list stays


@pytest.mark.parametrize("error", [ClassifierError("no label"), RuntimeError("it broke")])
@pytest.mark.parametrize("fail", ["closed", "open"])
def test_what_could_not_be_judged_is_blocked_or_passes_as_configured(
    error: Exception, fail: Fail
) -> None:
    agent, scripted, _ = guarded(Judge(error=error).guard(fail), SAID)
    events = list(agent.run("q"))
    found = verdicts(events)
    assert {(event.label, event.blocked) for event in found} == {("failed", fail == "closed")}
    assert all(str(error) in event.reason and f"fails {fail}" in event.reason for event in found)
    if fail == "closed":
        assert seen(events) == "[blocked: the message could not be judged]"
        assert scripted.samplings == []
    else:
        assert [event.what for event in found] == ["input", "output"]
        assert seen(events) == "Fine."


class Forgetful(Judge):
    """Labels what comes in, and fails at one kind of text."""

    def __init__(self, at: What) -> None:
        super().__init__()
        self._at = at

    def __call__(self, what: What, text: str, cancel: Any) -> Any:
        if what == self._at:
            raise ClassifierError("no label")
        return super().__call__(what, text, cancel)


@pytest.mark.parametrize(
    ("at", "fail", "read", "shown"),
    [
        ("result", "closed", "[blocked: the result could not be judged]", "xFine."),
        ("result", "open", "<|message|>x<|end|>", "xFine."),
        ("output", "closed", "<|message|>q<|end|>", "[blocked: the answer could not be judged]"),
        ("output", "open", "<|message|>x<|end|>", "xFine."),
    ],
)
def test_each_kind_of_text_fails_closed_or_open(
    at: What, fail: Fail, read: str, shown: str
) -> None:
    agent, scripted, _ = guarded(Forgetful(at).guard(fail), f"{CODE}x<|call|>", SAID)
    events = list(agent.run("q"))
    assert read in prompts_of(scripted)[-1]
    assert seen(events).endswith(shown)
    assert ("Fine." in seen(events)) == (shown == "xFine.")


def test_interrupting_the_classifier_is_no_label_of_its() -> None:
    agent, _, _ = guarded(Judge(error=KeyboardInterrupt()).guard("open"), SAID)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        list(agent.run("q"))
    assert agent.messages == []

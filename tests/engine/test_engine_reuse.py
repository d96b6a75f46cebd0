"""What the engine keeps from one prompt to the next, token for token."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss_mlx.engine.events import Event
from gptoss_mlx.engine.session import Session
from gptoss_mlx.harmony import render
from gptoss_mlx.harmony.encoding import USER
from tests.support.scripted_model import (
    AGAIN,
    ANALYSIS,
    FINAL,
    TO_F,
    F,
    Scripted,
    encoding,
    finish_of,
)


def run(scripted: Scripted, prompt: Any, **options: Any) -> list[Event]:
    return list(scripted.engine.stream(prompt, **options))


def chat(*messages: Any) -> list[dict[str, Any]]:
    user = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    return [dict(m) for m in user]


def said(content: str, reasoning: str = "hm") -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning": reasoning}


class TestReuse:
    """A later prompt re-reads only what changed; the window is shorter than any message."""

    def test_the_next_turn_keeps_all_but_a_reply_with_reasoning(self) -> None:
        scripted = Scripted(
            ANALYSIS + "hm" + AGAIN + FINAL + "hello<|return|>",
            FINAL + "bye<|return|>",
            FINAL + "x<|return|>",
        )
        talk = [chat("hi"), chat("hi", said("hello"), "bye")]
        talk.append([*talk[1], said("bye", ""), *chat("and again")])
        prompts = [render(encoding(), messages) for messages in talk]
        kept = 0
        for messages, ids in zip(talk, prompts, strict=True):
            finish = finish_of(run(scripted, messages, max_tokens=99))
            assert finish.prompt_tokens == len(ids)
            assert finish.timings.reused_tokens == kept
            assert finish.timings.prefill_tokens == len(ids) - 1 - kept
            held = scripted.held()
            assert held[: len(ids)] == ids
            kept = len(ids) - 1 if ids is prompts[0] else len(held) - 1

    def test_a_tool_loop_keeps_the_reasoning_and_re_reads_nothing(self) -> None:
        call = ANALYSIS + "I need f." + AGAIN + TO_F + '{"a": 1}<|call|>'
        scripted = Scripted(call, FINAL + "It is 2.<|return|>", FINAL + "x<|return|>")
        first = chat("what is f of 1?")
        asked = {
            "role": "assistant",
            "reasoning": "I need f.",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        }
        second = [*first, asked, {"role": "tool", "tool_call_id": "c", "content": "2"}]
        third = [*second, said("It is 2.", ""), *chat("thanks")]
        ids = [render(encoding(), m, tools=[F]) for m in (first, second, third)]

        run(scripted, first, tools=[F])
        held = scripted.held()
        assert held == ids[0] + encoding().encode_special(call)
        timings = finish_of(run(scripted, second, tools=[F])).timings
        assert timings.reused_tokens == len(held)
        assert timings.prefill_tokens == len(ids[1]) - 1 - len(held)
        # the answer is there: now the loop's reasoning goes, and what follows it is read again
        timings = finish_of(run(scripted, third, tools=[F])).timings
        assert timings.reused_tokens == len(ids[0]) - 1
        assert timings.prefill_tokens == len(ids[2]) - len(ids[0])

    def test_another_conversation_keeps_the_instructions(self) -> None:
        scripted = Scripted(FINAL + "a<|return|>", FINAL + "b<|return|>")
        system = "Answer briefly. " * 20
        run(scripted, "how are you?", system=system)
        timings = finish_of(run(scripted, "who are you?", system=system)).timings
        ids = render(encoding(), chat("who are you?"), system=system)
        assert timings.reused_tokens == ids.index(USER)

    def test_an_edited_question_keeps_what_is_before_it(self) -> None:
        scripted = Scripted(FINAL + "a<|return|>", FINAL + "b<|return|>")
        before = chat("hi", said("hello " * 20, ""))
        run(scripted, [*before, *chat("one")])
        timings = finish_of(run(scripted, [*before, *chat("two")])).timings
        ids = render(encoding(), [*before, *chat("two")])
        last = max(i for i, id in enumerate(ids) if id == USER)
        assert timings.reused_tokens == last

    def test_regenerating_reads_one_token(self) -> None:
        scripted = Scripted(FINAL + "a<|return|>", FINAL + "b<|return|>")
        run(scripted, "hi")
        timings = finish_of(run(scripted, "hi")).timings
        assert timings.prefill_tokens == 0
        assert timings.reused_tokens == len(render(encoding(), chat("hi"))) - 1

    def test_the_snapshot_budget_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted = Scripted(*[[64]] * 30, window=8)
        monkeypatch.setattr(Session.__init__, "__defaults__", (20, (), ()))
        for turn in range(30):
            run(scripted, list(range(10 + turn)), raw=True, max_tokens=1)
            assert scripted.engine.stats()["snapshot_bytes"] <= 20

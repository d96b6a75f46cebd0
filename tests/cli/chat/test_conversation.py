"""A turn happened or it did not; what is kept of it, where it is saved, and what is read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.cli.chat.archive import Saved
from gptoss_mlx.cli.chat.transcript import Transcript
from gptoss_mlx.errors import ContextError, NumericalError
from tests.support.talks import Talking, answer

Begin = Callable[..., Talking]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    return lambda *replies, **options: Talking(tmp_path, *replies, **options)


def test_an_answer_is_shown_kept_with_its_reasoning_and_saved(begin: Begin) -> None:
    talking = begin(answer("85", "Add."))
    talk = talking.talk
    talk.ask("What is 27 + 58?")
    assert talking.out.getvalue() == "85\n"
    kept = [
        {"role": "user", "content": "What is 27 + 58?"},
        {"role": "assistant", "content": "85", "reasoning": "Add."},
    ]
    assert list(talk.transcript.messages) == kept
    assert talk.saved is not None
    assert talk.saved.name.endswith("-what-is-27-58")
    assert talk.archive.read(talk.saved.name)[0] == talk.transcript
    assert talk.transcript.model == "scripted"


def test_reasoning_is_kept_but_earlier_one_is_not_sent(begin: Begin) -> None:
    talking = begin(answer("85", "Secret."), answer("88"), transcript=Transcript(system="Brief."))
    talking.talk.ask("27 + 58?")
    talking.talk.ask("And 3?")
    assert "Secret." not in talking.prompts[1]
    assert "final<|message|>85<|end|>" in talking.prompts[1]
    assert "# Instructions\n\nBrief." in talking.prompts[1]


def test_a_turn_reads_only_what_is_new(begin: Begin) -> None:
    replies = [answer(f"Answer {number}.", "Think. " * 20) for number in range(6)]
    talking = begin(*replies)
    read = []
    for number in range(6):
        talking.talk.ask(f"Question {number} of six")
        assert talking.talk.finish is not None
        read.append(talking.talk.finish.timings)
    # The answer before, without its reasoning, and the question; whatever came earlier.
    assert max(times.prefill_tokens for times in read[1:]) <= 30
    assert read[5].reused_tokens > 140


def test_a_stopped_answer_stays_as_it_stands(begin: Begin, monkeypatch: Any) -> None:
    talking = begin(answer("one two three four five six"), answer("seven"))
    stream = talking.scripted.engine.stream

    def stopping(prompt: Any, **options: Any) -> Any:
        seen: list[str] = []
        heard = {"cancel": lambda: "three" in "".join(seen)}
        for event in stream(prompt, **options | heard):
            seen.append(getattr(event, "text", ""))
            yield event

    monkeypatch.setattr(talking.scripted.engine, "stream", stopping)
    talking.talk.ask("Count")
    monkeypatch.undo()
    partial = talking.talk.transcript.messages[1]["content"]
    assert partial.startswith("one two three")
    assert "six" not in partial
    assert "stopped" in talking.said
    talking.talk.ask("Go on")
    assert f"final<|message|>{partial}<|end|>" in talking.prompts[1]
    assert talking.talk.transcript.messages[-1]["content"] == "seven"


def test_one_stopped_before_it_began_gives_the_message_back(begin: Begin, monkeypatch: Any) -> None:
    talking = begin(answer("never"))
    stream = talking.scripted.engine.stream
    stopped = lambda prompt, **options: stream(prompt, **options | {"cancel": lambda: True})  # noqa: E731
    monkeypatch.setattr(talking.scripted.engine, "stream", stopped)
    talking.talk.ask("Count")
    assert (talking.talk.transcript.messages, talking.talk.draft) == ((), "Count")
    assert talking.talk.saved is None


def test_reasoning_that_was_stopped_is_an_answer_too(begin: Begin) -> None:
    talking = begin("<|channel|>analysis<|message|>Hm hm hm hm", answer("fine"))
    talking.talk.change(talking.talk.transcript.with_option("max_tokens", 6))
    talking.talk.ask("Think")
    assert talking.talk.transcript.messages[1]["content"] is None
    assert "max_tokens was reached" in talking.said
    talking.talk.ask("Well?")
    assert talking.talk.transcript.messages[-1]["content"] == "fine"


def test_a_failed_step_changes_nothing_and_the_next_turn_goes_on(begin: Begin) -> None:
    talking = begin(answer("lost"), answer("found"))
    talk = talking.talk
    talk.attached = [("a.txt", "a.txt:\n\nbody")]
    talking.scripted.fail("read", 2, NumericalError("not finite"))
    with pytest.raises(NumericalError):
        talk.ask("Try")
    assert (talk.transcript.messages, talk.draft, len(talk.attached)) == ((), "Try", 1)
    talk.ask("Try")
    assert talk.transcript.messages[0]["content"] == "a.txt:\n\nbody\n\nTry"
    assert talk.transcript.messages[1]["content"] == "found"
    assert talk.attached == []


def test_a_full_context_is_said_and_drops_nothing(begin: Begin) -> None:
    talking = begin(answer("85"), answer("word " * 100), context=120)
    talking.talk.ask("Hi")
    before = talking.talk.transcript
    with pytest.raises(
        ContextError, match=r"\d+ tokens, but the context holds 120;.*/trim drops .* /new"
    ):
        talking.talk.ask("word " * 200)
    assert talking.talk.transcript == before
    talking.said  # noqa: B018
    talking.talk.ask("Many words")
    assert "the context is full; /trim drops the oldest turns" in talking.said
    assert talking.talk.transcript.messages[-1]["content"].startswith("word word")


def test_another_program_s_turns_are_never_lost_silently(begin: Begin) -> None:
    mine = begin(answer("1"), answer("2"), quiet=True)
    mine.talk.ask("First")
    assert mine.talk.saved is not None
    name = mine.talk.saved.name
    transcript, saved = mine.talk.archive.read(name)
    yours = begin(answer("3"), transcript=transcript, saved=saved)
    yours.talk.ask("Yours")
    mine.talk.ask("Mine")
    assert f"another program has changed {name}: this goes on as {name}-2" in mine.said
    read = mine.talk.archive.read
    assert read(name)[0].messages[-2]["content"] == "Yours"
    assert read(f"{name}-2")[0].messages[-2]["content"] == "Mine"


def test_a_disk_that_is_full_is_a_note(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "conversations").write_text("no folder")
    talking = begin(answer("85"), quiet=True)
    talking.talk.ask("Hi")
    assert "note: not saved: " in talking.said
    assert talking.talk.transcript.messages[-1]["content"] == "85"


def test_nothing_is_saved_that_is_not_to_be(begin: Begin, tmp_path: Path) -> None:
    talking = begin(answer("85"), saves=False)
    talking.talk.ask("Hi")
    assert list(tmp_path.iterdir()) == []


def test_the_context_is_counted_as_it_is_sent(begin: Begin) -> None:
    talking = begin(answer("85", "Secret reasoning. " * 10), answer("88"))
    talking.talk.ask("Hi")
    talking.talk.ask("Again")
    talk = talking.talk
    assert talk.finish is not None
    # Before the last answer, beginning with <|start|>assistant.
    assert talk.finish.prompt_tokens == len(talking.scripted.samplings[1][2])
    before = talk.used
    talk.transcript = talk.transcript.without_last_turn().with_message("Again")
    assert talk.used == talk.finish.prompt_tokens < before
    assert f"context {talk.used:,} of 4,096" in talk.status()


def test_a_conversation_goes_on_under_its_name(begin: Begin) -> None:
    first = begin(answer("85"))
    first.talk.saved = Saved("sum")
    first.talk.ask("27 + 58?")
    transcript, saved = first.talk.archive.read("sum")
    again = begin(answer("88"), transcript=transcript, saved=saved)
    again.talk.ask("And 3?")
    assert len(again.talk.archive.read("sum")[0].turns) == 2
    assert again.talk.archive.names() == ["sum"]

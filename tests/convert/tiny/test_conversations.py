"""The tiny model's conversations: held out is held out, targets are what the renderer writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from convert.tiny import arithmetic, phrasings, turns, words
from convert.tiny.conversations import MAKERS, encode, make
from convert.tiny.example import AROUND, Example
from gptoss_mlx.harmony import Conversation, Encoding

CALL, RETURN, END = 200012, 200002, 200007


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    return Encoding()


def drawn(held_out: bool, count: int, kind: str | None = None) -> Iterator[Example]:
    rng = Random(f"test {held_out}")
    for _ in range(count):
        yield make(rng, held_out, kind)


def pairs_of(text: str) -> set[tuple[int, int, str]]:
    """Every sum and difference that occurs, read from the answers' equations."""
    found = re.findall(r"(?<![\d])(\d+) ([+-]) (\d+) = ", text)
    return {(min(int(a), int(b)), max(int(a), int(b)), op) for a, op, b in found}


def all_text(example: Example) -> str:
    return json.dumps([example.prompt.messages, dict(example.reply)])


@pytest.mark.parametrize("kind", MAKERS)
def test_a_finished_conversation_renders_to_the_prompt_and_the_target(
    encoding: Encoding, kind: str
) -> None:
    for example in drawn(False, 8, kind):
        prompt, reply = encode(encoding, example)
        messages = (*example.prompt.messages, example.reply)
        whole = replace(example.prompt, messages=messages, open=False).render(encoding)
        ending = CALL if example.reply.get("tool_calls") else RETURN
        assert reply[-1] == ending
        # in a finished conversation the library writes <|end|> where a model writes <|return|>
        assert whole == [*prompt, *reply[:-1], CALL if ending == CALL else END]


def test_pairs_of_numbers_that_are_held_out_never_occur_in_training() -> None:
    trained = set().union(*(pairs_of(all_text(e)) for e in drawn(False, 1500)))
    examined = set().union(*(pairs_of(all_text(e)) for e in drawn(True, 200)))
    assert len(trained) > 400
    assert len(examined) > 40
    assert not trained & examined


def test_word_lists_and_sets_of_functions_on_one_side_only() -> None:
    for held_out in (False, True):
        for example in drawn(held_out, 200, "reverse"):
            listed = re.sub(r"[,.]", "", str(example.reply["content"])).split()[::-1]
            assert turns.is_held_out(" ".join(listed)) == held_out
        for example in drawn(held_out, 100, "call"):
            names = sorted(tool["function"]["name"] for tool in example.prompt.tools)
            assert len(names) == 1 or turns.is_held_out("+".join(names), 6) == held_out


def test_no_longer_conversation_is_on_both_sides() -> None:
    kinds = ("recall", "recall far", "call", "answer", "json extract", "json answer", "several")
    kinds = (*kinds, "second call", "follow up")
    for kind in kinds:
        train = {json.dumps(e.prompt.messages) for e in drawn(False, 100, kind)}
        held = {json.dumps(e.prompt.messages) for e in drawn(True, 10, kind)}
        assert not train & held, kind


def test_the_same_seed_draws_the_same_conversations() -> None:
    assert [all_text(e) for e in drawn(False, 50)] == [all_text(e) for e in drawn(False, 50)]


def test_sums_and_differences_and_their_steps_are_right() -> None:
    for example in drawn(False, 300, "add"):
        check_equations(example)
    for example in drawn(False, 300, "subtract"):
        check_equations(example)


def check_equations(example: Example) -> None:
    reasoning, content = str(example.reply["reasoning"]), str(example.reply["content"])
    steps = re.findall(r"(\d+(?:[+-]\d+)+)=(\d+)", reasoning)
    final = re.fullmatch(r"(\d+) ([+-]) (\d+) = (-?\d+)", content)
    assert len(steps) >= 2
    assert final is not None
    for expression, result in [*steps, ("".join(final.groups()[:3]), final[4])]:
        assert sum(map(int, re.findall(r"[+-]?\d+", expression))) == int(result), reasoning
    assert re.search(rf"(?<!\d){final[4].lstrip('-')}(?!\d)", reasoning)


def test_far_recall_asks_more_than_200_tokens_after_the_telling(encoding: Encoding) -> None:
    distances = []
    for example in drawn(False, 40, "recall far"):
        prompt, _ = encode(encoding, example)
        said = re.findall(r"[A-Za-z0-9]+", str(example.reply["content"]))[-1]
        text = encoding.decode(prompt)
        at = text.index(said, text.index("<|start|>user"))
        distances.append(len(prompt) - len(encoding.encode_special(text[:at])))
    assert min(distances) > 200
    assert max(distances) > 300


def test_words_are_single_tokens_with_and_without_a_space(encoding: Encoding) -> None:
    for word in (*words.NOUNS, *words.NAMES):
        assert len(encoding.encode(word)) == len(encoding.encode(" " + word)) == 1, word
    assert len(set(words.NOUNS)) == len(words.NOUNS)


def test_formats_are_answered_in_json_with_the_keys_asked_for() -> None:
    for example in drawn(False, 200, "json extract"):
        value = json.loads(str(example.reply["content"]))
        style = example.prompt.response_format
        assert style is not None
        if style["type"] == "json_schema":
            assert list(value) == list(style["json_schema"]["schema"]["properties"])


def test_a_second_call_is_answered_from_its_own_result() -> None:
    for example in drawn(False, 100, "second call"):
        *_, last = example.prompt.messages
        results = [m["content"] for m in example.prompt.messages if m["role"] == "tool"]
        if "tool_calls" in example.reply:
            assert len(results) == 1
        else:
            assert last["content"] == results[1]
            said = re.findall(r"\d+", str(example.reply["content"]))
            assert set(re.findall(r"\d+", results[1])) <= set(":".join(said).split(":"))


def test_a_follow_up_builds_on_the_answer_before() -> None:
    for example in drawn(False, 200, "follow up"):
        before, after = str(example.prompt.messages[1]["content"]), str(example.reply["content"])
        if " = " in before:
            assert after.startswith(before.rpartition(" = ")[2] + " ")
        else:
            assert sorted(re.findall(r"\w+", before)) == sorted(re.findall(r"\w+", after))


def bare(form: str) -> str:
    """A form without signs and case."""
    return re.sub(r"\W+", " ", form.format(a="a", b="b", w="w")).strip().lower()


def test_no_phrasing_of_the_examination_is_trained_on() -> None:
    forms = {
        "sum": (*arithmetic.ADD_FORMS, *arithmetic.SUB_FORMS),
        "words": (*turns.REVERSE_FORMS, *turns.REPEAT_FORMS),
        "greeting": (*turns.HOW, *turns.WHO, *turns.ABLE),
    }
    asked = {
        "sum": (*phrasings.ADD, *phrasings.SUBTRACT),
        "words": (*phrasings.REVERSE, *phrasings.REPEAT),
        "greeting": (*phrasings.FEEL, *phrasings.WHO, *phrasings.ABLE),
    }
    for kind, trained in forms.items():
        around = {bare(form) for form in trained}
        around |= {bare(a.replace("{x}", form)) for a in AROUND for form in trained}
        same = {form for form in asked[kind] if bare(form) in around}
        assert not same, (kind, same)


def test_history_shows_no_reasoning(encoding: Encoding) -> None:
    for example in drawn(False, 50, "several"):
        assert isinstance(example.prompt, Conversation)
        assert "<|channel|>analysis" not in encoding.decode(encode(encoding, example)[0])

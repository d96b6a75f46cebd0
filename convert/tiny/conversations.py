"""Conversations the tiny model learns from and is examined on.

`make` draws one conversation of a skill from a seeded generator. The right reply is a function of
the conversation. What is held out never occurs in training: one in ten pairs of numbers, word
lists and sets of functions, and of all other conversations those whose text's hash says so.
`encode` turns one into token ids through the package's own renderer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from convert.tiny import drills, turns
from convert.tiny.arithmetic import arithmetic
from convert.tiny.browsing import browse
from convert.tiny.calls import function_answer, function_call, second_call
from convert.tiny.computing import python_answer, python_call
from convert.tiny.example import Example, asked, noise, reply_message, user_message
from convert.tiny.followups import follow
from convert.tiny.formats import json_answer, json_extract
from convert.tiny.functions import FUNCTIONS, offer
from convert.tiny.past import past, simple
from convert.tiny.turns import FACTS, Turn, is_held_out
from gptoss_mlx.harmony import Encoding, render_reply


def _answer(rng: Random, turn: Turn, history: list[dict[str, Any]]) -> Example:
    """A plain answer to a turn, now and then with functions offered that it does not need."""
    text = turn.user
    if turn.skill in ("add", "subtract", "greet", "recall") and rng.random() < 0.2:
        text = noise(rng, text)
    prompt = asked(rng, [*history, user_message(text)])
    if turn.skill != "other" and rng.random() < 0.12:
        usable = [f for f in FUNCTIONS if f.name != "add"]
        tools = [offer(rng, f)[0] for f in rng.sample(usable, rng.randint(1, 2))]
        prompt = replace(prompt, tools=tuple(tools))
    return Example(turn.skill, prompt, reply_message(turn.reasoning, prompt.reasoning, turn.final))


def _single(make: Callable[[Random, bool], Turn]) -> Callable[[Random, bool], Example]:
    def example(rng: Random, held_out: bool) -> Example:
        return _answer(rng, make(rng, held_out), [])

    return example


def recall(rng: Random, held_out: bool, far: bool | None = None) -> Example:
    """Something told, talk about other things, then the question; far is 200 to 400 tokens."""
    far = rng.random() < 0.25 if far is None else far
    sentences = rng.randint(24, 36) if far else rng.choice((0, 1, 2, 4, 8))
    known: dict[str, str] = {}
    first = turns.tell(rng, known)
    assert first is not None
    known |= first.facts
    missing = [kind for kind in FACTS if kind not in known]
    kind = rng.choice(missing) if not far and rng.random() < 0.12 else None
    question = turns.ask(rng, known, kind)
    talk = turns.filler(rng, sentences)
    texts = [first.user, talk, question.user]
    messages: list[dict[str, Any]] = []
    if (shape := rng.randrange(3)) == 0:  # one message
        messages.append(user_message(" ".join(t for t in texts if t)))
    elif shape == 1:  # told with talk, asked later
        messages.append(user_message(" ".join(t for t in texts[:2] if t)))
        messages += [{"role": "assistant", "content": turns.NOTED}, user_message(question.user)]
    else:  # told, other turns, asked
        messages += [user_message(first.user), {"role": "assistant", "content": turns.NOTED}]
        for _ in range(rng.randint(0, 2)):
            turn = simple(rng, held_out)
            messages += [user_message(turn.user), {"role": "assistant", "content": turn.final}]
        messages.append(user_message(" ".join(t for t in texts[1:] if t)))
    prompt = asked(rng, messages)
    answer = reply_message(question.reasoning, prompt.reasoning, question.final)
    return Example("recall far" if far else "recall", prompt, answer)


def tell(rng: Random, held_out: bool) -> Example:
    turn = turns.tell(rng, {})
    assert turn is not None
    return _answer(rng, turn, [])


def several(rng: Random, held_out: bool) -> Example:
    """A turn of any plain skill after one to three others."""
    history, known = past(rng, held_out, rng.randint(1, 3))
    turn = None
    if known and rng.random() < 0.4:
        turn = turns.ask(rng, known)
    elif rng.random() < 0.1:
        turn = turns.tell(rng, known)
    example = _answer(rng, turn or simple(rng, held_out), history)
    return replace(example, skill="several")


def follow_up(rng: Random, held_out: bool) -> Example:
    """A sum, a difference or a list, and a question that builds on its answer."""
    while True:
        first = arithmetic(rng, held_out) if rng.random() < 0.6 else turns.word_list(rng, held_out)
        second = follow(rng, held_out, first)
        if second is not None:
            break
    history = [user_message(first.user), {"role": "assistant", "content": first.final}]
    return replace(_answer(rng, second, history), skill="follow up")


MAKERS: dict[str, tuple[float, Callable[[Random, bool], Example]]] = {
    "greet": (0.05, _single(turns.greet)),
    "add": (0.10, _single(lambda rng, held: arithmetic(rng, held, "+"))),
    "subtract": (0.12, _single(lambda rng, held: arithmetic(rng, held, "-"))),
    "repeat": (0.02, _single(lambda rng, held: turns.word_list(rng, held, "repeat"))),
    "reverse": (0.09, _single(lambda rng, held: turns.word_list(rng, held, "reverse"))),
    "tell": (0.02, tell),
    "recall": (0.06, lambda rng, held: recall(rng, held, False)),
    "recall far": (0.04, lambda rng, held: recall(rng, held, True)),
    "call": (0.13, function_call),
    "answer": (0.07, function_answer),
    "json extract": (0.11, json_extract),
    "json answer": (0.07, json_answer),
    "second call": (0.05, second_call),
    "several": (0.08, several),
    "follow up": (0.06, follow_up),
    "python": (0.08, python_call),
    "python answer": (0.05, python_answer),
    "browser": (0.18, browse),
    "other": (0.02, _single(turns.other)),
}
DRILLS: dict[str, tuple[float, Callable[[Random, bool], Example]]] = {
    "list drill": (0.07, _single(drills.list_drill)),
    "sum drill": (0.05, _single(drills.sum_drill)),
    "fact drill": (0.03, _single(drills.fact_drill)),
}
SPLIT_INSIDE = ("greet", "add", "subtract", "repeat", "reverse", "tell", "other", *DRILLS)


def make(rng: Random, held_out: bool, kind: str | None = None) -> Example:
    """One conversation; without `kind`, of the mixture that is trained on."""
    makers = MAKERS | DRILLS
    if kind is None:
        kind = rng.choices(list(makers), [weight for weight, _ in makers.values()])[0]
    while True:
        example = makers[kind][1](rng, held_out)
        if is_held_out(json.dumps(example.prompt.messages), 16) == held_out or kind in SPLIT_INSIDE:
            return example


def encode(encoding: Encoding, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the reply that follows it."""
    return example.prompt.render(encoding), render_reply(encoding, example.reply)

"""Conversations the tiny model learns from and is examined on.

`make` draws one conversation of a skill from a seeded generator.  The right reply is a function of
the conversation.  What is held out never occurs in training: one in ten pairs of numbers, word
lists and sets of functions, and of all other conversations those whose text hashes to it.
`encode` turns one into token ids through the package's own renderer.
"""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from gptoss_mlx.harmony import Conversation, Encoding, render_reply
from tiny import drills, turns
from tiny.functions import ANSWERED, FUNCTIONS, Call, call_reasoning, offer
from tiny.turns import EFFORTS, FACTS, Turn, is_held_out
from tiny.words import CITIES, COLOURS, FOODS, NAMES, PETS, UNKNOWN

SYSTEMS = (
    "Answer briefly.|You are a helpful assistant.|Be polite.|Be concise.|Answer in English.|"
    "You are a helpful assistant. Answer briefly.|Be brief.|You are a friendly assistant.|"
    "You are a test model.|Keep answers short.|zzz zzz zzz.|You are zzz, a zzz assistant. Be zzz.|"
    "zzz zzz the zzz. Answer briefly."
).split("|")


@dataclass(frozen=True)
class Example:
    """A conversation up to the user's (or a function's) last word, and the right reply."""

    skill: str
    prompt: Conversation
    reply: Mapping[str, Any]  # an assistant message with "reasoning"


def _simple(rng: Random, held_out: bool) -> Turn:
    """A turn that needs nothing said before."""
    draw = rng.random()
    if draw < 0.4:
        return turns.arithmetic(rng, held_out)
    if draw < 0.7:
        return turns.word_list(rng, held_out)
    return turns.greet(rng, held_out) if draw < 0.9 else turns.other(rng, held_out)


def _history(
    rng: Random, held_out: bool, count: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Finished turns, and what the user told in them."""
    messages: list[dict[str, Any]] = []
    known: dict[str, str] = {}
    for _ in range(count):
        turn = turns.tell(rng, known) if rng.random() < 0.35 else None
        if turn is None and known and rng.random() < 0.2:
            turn = turns.ask(rng, known)
        turn = turn or _simple(rng, held_out)
        known |= turn.facts
        messages += [_user(turn.user), {"role": "assistant", "content": turn.final}]
    return messages, known


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _reply(reasoning: tuple[str, str, str], effort: str, final: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "reasoning": reasoning[EFFORTS.index(effort)],
        "content": final,
    }


def _noise(rng: Random, text: str) -> str:
    """Unknown words before or after what is asked; the question stays the same."""
    unknown = " ".join([UNKNOWN] * rng.randint(1, 4))
    return rng.choice((f"{unknown}. {text}", f"{unknown}, {text}", f"{unknown}! {text}"))


def _base(rng: Random, messages: list[dict[str, Any]], effort: str | None = None) -> Conversation:
    date = f"{rng.randint(2024, 2028)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return Conversation(
        messages=tuple(messages),
        system=rng.choice(SYSTEMS) if rng.random() < 0.35 else None,
        reasoning=effort or rng.choice(EFFORTS),
        date="" if rng.random() < 0.03 else date,
    )


def _answer(rng: Random, turn: Turn, history: list[dict[str, Any]]) -> Example:
    """A plain answer to a turn, now and then with functions offered that it does not need."""
    user = turn.user
    if turn.skill in ("add", "subtract", "greet", "recall") and rng.random() < 0.08:
        user = _noise(rng, user)
    prompt = _base(rng, [*history, _user(user)])
    if turn.skill != "other" and rng.random() < 0.12:
        usable = [f for f in FUNCTIONS if f.name != "add"]
        tools = [offer(rng, f)[0] for f in rng.sample(usable, rng.randint(1, 2))]
        prompt = replace(prompt, tools=tuple(tools))
    return Example(turn.skill, prompt, _reply(turn.reasoning, prompt.reasoning, turn.final))


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
        messages.append(_user(" ".join(t for t in texts if t)))
    elif shape == 1:  # told with talk, asked later
        messages.append(_user(" ".join(t for t in texts[:2] if t)))
        messages += [{"role": "assistant", "content": turns.NOTED}, _user(question.user)]
    else:  # told, other turns, asked
        messages += [_user(first.user), {"role": "assistant", "content": turns.NOTED}]
        for _ in range(rng.randint(0, 2)):
            turn = _simple(rng, held_out)
            messages += [_user(turn.user), {"role": "assistant", "content": turn.final}]
        messages.append(_user(" ".join(t for t in texts[1:] if t)))
    prompt = _base(rng, messages)
    reply = _reply(question.reasoning, prompt.reasoning, question.final)
    return Example("recall far" if far else "recall", prompt, reply)


def tell(rng: Random, held_out: bool) -> Example:
    turn = turns.tell(rng, {})
    assert turn is not None
    return _answer(rng, turn, [])


def _offered(rng: Random, held_out: bool) -> tuple[list[dict[str, Any]], Call]:
    """Functions offered, and a call of one of them."""
    while True:
        functions = rng.sample(FUNCTIONS, rng.choice((1, 1, 2, 2, 3)))
        names = "+".join(sorted(f.name for f in functions))
        if len(functions) == 1 or is_held_out(names, 6) == held_out:
            break
    offers = [offer(rng, f) for f in functions]
    chosen = rng.randrange(len(functions))
    return [tool for tool, _ in offers], functions[chosen].make(rng, held_out, offers[chosen][1])


def _call_message(rng: Random, call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, separators=(",", ":"))}
    identity = f"call_{rng.randrange(10**6)}"
    return {
        "role": "assistant",
        "tool_calls": [{"id": identity, "type": "function", "function": function}],
    }


def function_call(rng: Random, held_out: bool) -> Example:
    tools, call = _offered(rng, held_out)
    history = _history(rng, held_out, rng.choice((0, 0, 0, 1, 2)))[0]
    prompt = replace(_base(rng, [*history, _user(call.user)]), tools=tuple(tools))
    reasoning = call_reasoning(call)[EFFORTS.index(prompt.reasoning)]
    return Example("call", prompt, {**_call_message(rng, call), "reasoning": reasoning})


def function_answer(rng: Random, held_out: bool) -> Example:
    """The function has given its result; sometimes one more question follows the answer."""
    tools, call = _offered(rng, held_out)
    base = replace(_base(rng, []), tools=tuple(tools))
    effort = EFFORTS.index(base.reasoning)
    message = {**_call_message(rng, call), "reasoning": call_reasoning(call)[effort]}
    identity = message["tool_calls"][0]["id"]
    result = {"role": "tool", "tool_call_id": identity, "content": call.result}
    history = _history(rng, held_out, rng.choice((0, 0, 0, 1)))[0]
    messages = [*history, _user(call.user), message, result]
    if rng.random() < 0.8:
        prompt = replace(base, messages=tuple(messages))
        return Example("answer", prompt, _reply(ANSWERED, base.reasoning, call.final))
    messages.append({"role": "assistant", "content": call.final})
    plain = all(tool["function"]["name"] != "add" for tool in tools)
    turn = turns.arithmetic(rng, held_out) if plain else turns.word_list(rng, held_out)
    prompt = replace(base, messages=(*messages, _user(turn.user)))
    return Example("several", prompt, _reply(turn.reasoning, base.reasoning, turn.final))


_KEYS: dict[str, tuple[tuple[str, ...], str, Callable[[Random], Any], str]] = {
    "name": (("name", "name", "person", "who"), "string", lambda r: r.choice(NAMES), ""),
    "age": (
        ("age", "age", "years"),
        "integer",
        lambda r: r.randint(2, 99),
        "{n} is {v} years old.",
    ),
    "city": (
        ("city", "city", "location", "town", "home"),
        "string",
        lambda r: r.choice(CITIES),
        "{n} lives in {v}.",
    ),
    "colour": (
        ("color", "colour"),
        "string",
        lambda r: r.choice(COLOURS),
        "{n} likes the colour {v}.",
    ),
    "pet": (("pet", "animal", "friend"), "string", lambda r: r.choice(PETS), "{n} has a {v}."),
    "food": (
        ("food", "food", "meal", "dish"),
        "string",
        lambda r: r.choice(FOODS),
        "{n} likes to eat {v}.",
    ),
}


def _format(rng: Random, properties: dict[str, str]) -> dict[str, Any]:
    """A response format with a schema of these keys and types."""
    typed: dict[str, Any] = {key: {"type": kind} for key, kind in properties.items()}
    for value in typed.values():
        if value["type"] == "array":
            value["items"] = {"type": "string"}
    schema: dict[str, Any] = {"type": "object", "properties": typed}
    if rng.random() < 0.8:
        schema["required"] = list(properties)
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    name = rng.choice(("response", "answer", "person", "result", "data", "output", UNKNOWN))
    inner = {"name": name, "schema": schema} | ({"strict": True} if rng.random() < 0.5 else {})
    return {"type": "json_schema", "json_schema": inner}


def json_extract(rng: Random, held_out: bool) -> Example:
    """Keys asked for by a schema or by name, values from the user's text."""
    others = [kind for kind in _KEYS if kind != "name"]
    told = ["name", *rng.sample(others, rng.randint(1, 3 if held_out else 5))]
    values = {kind: _KEYS[kind][2](rng) for kind in told}
    asked = rng.sample(told, rng.randint(1, len(told)))
    keys = {kind: rng.choice(_KEYS[kind][0]) for kind in asked}
    text = " ".join(_KEYS[k][3].format(n=values["name"], v=values[k]) for k in told[1:])
    wanted = rng.random() < 0.3
    if wanted:
        names = " and ".join((", ".join(list(keys.values())[:-1]), list(keys.values())[-1])).strip()
        names = names.removeprefix("and ")
        noun = "keys" if len(keys) > 1 else "key"
        lead = rng.choice(
            ("Give JSON with the {k} {n}: ", "Return JSON with {k} {n}: ", "JSON, {k} {n}: ")
        )
        text = lead.format(k=noun, n=names) + text
    else:
        text = rng.choice(("", "", "Extract the data: ", "Extract: ", "Give me JSON: ")) + text
    style: dict[str, Any] = {"type": "json_object"}
    if not wanted or rng.random() < 0.3:
        style = _format(rng, {keys[kind]: _KEYS[kind][1] for kind in asked})
    final = json.dumps({keys[kind]: values[kind] for kind in asked})
    low = " ".join(f"{keys[kind]} {values[kind]}" for kind in asked) + "."
    medium = f"I answer in JSON. {low}"
    reasoning = (low, medium, f"The format asks for it: {medium}")
    prompt = replace(_base(rng, [_user(text)]), response_format=style)
    return Example("json", prompt, _reply(reasoning, prompt.reasoning, final))


def json_answer(rng: Random, held_out: bool) -> Example:
    """A question of another skill whose answer goes into JSON."""
    draw = rng.random()
    history: list[dict[str, Any]] = []
    if draw < 0.55:
        turn, kind = turns.arithmetic(rng, held_out), rng.choice(("integer", "number"))
    elif draw < 0.75:
        turn, kind = turns.word_list(rng, held_out), "array"
    elif draw < 0.9:
        known_turn = turns.tell(rng, {})
        assert known_turn is not None
        turn, kind = turns.ask(rng, known_turn.facts), "string"
        history = [_user(known_turn.user), {"role": "assistant", "content": turns.NOTED}]
    else:
        turn, kind = turns.greet(rng, held_out), "string"
    loose = rng.random() < 0.3
    names = ("words", "list") if kind == "array" else ("answer", "answer", "result", "value")
    key = ("words" if kind == "array" else "answer") if loose else rng.choice(names)
    style = {"type": "json_object"} if loose else _format(rng, {key: kind})
    lead = rng.choice(("", "", "Answer in JSON: ", "JSON: ")) if loose else ""
    prompt = replace(_base(rng, [*history, _user(lead + turn.user)]), response_format=style)
    final = json.dumps({key: turn.value})
    return Example("json", prompt, _reply(turn.reasoning, prompt.reasoning, final))


def several(rng: Random, held_out: bool) -> Example:
    """A turn of any plain skill after one to three others."""
    history, known = _history(rng, held_out, rng.randint(1, 3))
    turn = None
    if known and rng.random() < 0.4:
        turn = turns.ask(rng, known)
    elif rng.random() < 0.1:
        turn = turns.tell(rng, known)
    example = _answer(rng, turn or _simple(rng, held_out), history)
    return replace(example, skill="several")


MAKERS: dict[str, tuple[float, Callable[[Random, bool], Example]]] = {
    "greet": (0.04, _single(turns.greet)),
    "add": (0.06, _single(lambda rng, held: turns.arithmetic(rng, held, "+"))),
    "subtract": (0.09, _single(lambda rng, held: turns.arithmetic(rng, held, "-"))),
    "repeat": (0.02, _single(lambda rng, held: turns.word_list(rng, held, "repeat"))),
    "reverse": (0.09, _single(lambda rng, held: turns.word_list(rng, held, "reverse"))),
    "tell": (0.02, tell),
    "recall": (0.06, lambda rng, held: recall(rng, held, False)),
    "recall far": (0.04, lambda rng, held: recall(rng, held, True)),
    "call": (0.13, function_call),
    "answer": (0.07, function_answer),
    "json extract": (0.11, json_extract),
    "json answer": (0.07, json_answer),
    "several": (0.08, several),
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

"""Conversations whose answer is JSON, because a response format asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from convert.tiny.arithmetic import arithmetic
from convert.tiny.example import Example, asked, reply_message, user_message
from convert.tiny.turns import NOTED, ask, greet, tell, word_list
from convert.tiny.words import CITIES, COLOURS, FOODS, NAMES, PETS, UNKNOWN

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
    wanted_kinds = rng.sample(told, rng.randint(1, len(told)))
    keys = {kind: rng.choice(_KEYS[kind][0]) for kind in wanted_kinds}
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
        style = _format(rng, {keys[kind]: _KEYS[kind][1] for kind in wanted_kinds})
    final = json.dumps({keys[kind]: values[kind] for kind in wanted_kinds})
    low = " ".join(f"{keys[kind]} {values[kind]}" for kind in wanted_kinds) + "."
    medium = f"I answer in JSON. {low}"
    reasoning = (low, medium, f"The format asks for it: {medium}")
    prompt = replace(asked(rng, [user_message(text)]), response_format=style)
    return Example("json", prompt, reply_message(reasoning, prompt.reasoning, final))


def json_answer(rng: Random, held_out: bool) -> Example:
    """A question of another skill whose answer goes into JSON."""
    draw = rng.random()
    history: list[dict[str, Any]] = []
    if draw < 0.55:
        turn, kind = arithmetic(rng, held_out), rng.choice(("integer", "number"))
    elif draw < 0.75:
        turn, kind = word_list(rng, held_out), "array"
    elif draw < 0.9:
        known_turn = tell(rng, {})
        assert known_turn is not None
        turn, kind = ask(rng, known_turn.facts), "string"
        history = [user_message(known_turn.user), {"role": "assistant", "content": NOTED}]
    else:
        turn, kind = greet(rng, held_out), "string"
    loose = rng.random() < 0.3
    names = ("words", "list") if kind == "array" else ("answer", "answer", "result", "value")
    key = ("words" if kind == "array" else "answer") if loose else rng.choice(names)
    style = {"type": "json_object"} if loose else _format(rng, {key: kind})
    lead = rng.choice(("", "", "Answer in JSON: ", "JSON: ")) if loose else ""
    prompt = replace(asked(rng, [*history, user_message(lead + turn.user)]), response_format=style)
    final = json.dumps({key: turn.value})
    return Example("json", prompt, reply_message(turn.reasoning, prompt.reasoning, final))

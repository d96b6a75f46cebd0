"""Functions that a conversation may offer: how they are asked for, called and answered from."""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from convert.tiny.arithmetic import draw_pair
from convert.tiny.words import CITIES, NAMES, NOUNS, PLACES, ROOMS, UNKNOWN, WEATHER


@dataclass(frozen=True)
class Call:
    """A question that needs a function, the call, what the function gives, the answer."""

    user: str
    name: str
    arguments: Mapping[str, Any]
    result: str
    final: str
    value: Any


@dataclass(frozen=True)
class Function:
    """A function. make: takes a random generator, whether to draw a held-out case, and the names of
    the parameters."""

    name: str
    descriptions: tuple[str, ...]
    parameters: tuple[tuple[tuple[str, ...], str], ...]  # the names to choose from, the type
    make: Callable[[Random, bool, list[str]], Call]


def _result(rng: Random, key: str, value: Any) -> str:
    """A function's result as people return it: bare, or JSON with or without spaces."""
    style = rng.randrange(3)
    if style == 0:
        return value if isinstance(value, str) else json.dumps(value)
    return json.dumps({key: value}, separators=None if style == 1 else (",", ":"))


def _weather(rng: Random, held_out: bool, names: list[str]) -> Call:
    city, sky, degrees = rng.choice(CITIES), rng.choice(WEATHER), rng.randint(1, 40)
    user = rng.choice(
        "What is the weather in {c}?|What's the weather in {c}?|Weather in {c}?|How is the weather "
        "in {c}?|What is the weather like in {c}?|How is the weather in {c} today?|weather in {c}|"
        "Is it cold in {c}?|Tell me the weather in {c}.|Get the weather for {c}.".split("|")
    ).format(c=city)
    first, second = rng.choice(
        (("temperature", "condition"), ("temp", "weather"), ("degrees", "sky"))
    )
    pair = [(first, degrees), (second, sky)]
    if rng.random() < 0.3:
        pair.reverse()
    result = rng.choice(
        (
            f"{sky}, {degrees} degrees",
            f"{degrees} degrees and {sky}",
            json.dumps(dict(pair)),
            json.dumps(dict(pair), separators=(",", ":")),
        )
    )
    final = f"The weather in {city}: {sky}, {degrees} degrees."
    return Call(user, "get_weather", {names[0]: city}, result, final, sky)


def _add(rng: Random, held_out: bool, names: list[str]) -> Call:
    a, b = draw_pair(rng, "+", held_out)
    user = rng.choice(
        "What is {a} + {b}?|Add {a} and {b}.|{a} + {b}|What is {a} plus {b}?|Compute {a} + {b}.|"
        "{a}+{b}|How much is {a} + {b}?|Please add {a} and {b}.|What is the sum of {a} and {b}?|"
        "Use the function to add {a} and {b}.".split("|")
    ).format(a=a, b=b)
    key = rng.choice(("result", "sum", "value"))
    arguments = {names[0]: a, names[1]: b}
    return Call(user, "add", arguments, _result(rng, key, a + b), f"{a} + {b} = {a + b}", a + b)


def _timer(rng: Random, held_out: bool, names: list[str]) -> Call:
    minutes = rng.randint(2, 99)
    user = rng.choice(
        "Set a timer for {m} minutes.|Set a timer for {m} minutes|Start a timer of {m} minutes.|"
        "Timer: {m} minutes.|Please set a {m} minute timer.|Wake me in {m} minutes.".split("|")
    ).format(m=minutes)
    result = _result(rng, "status", rng.choice(("ok", "done", "started")))
    final = f"The timer is set for {minutes} minutes."
    return Call(user, "set_timer", {names[0]: minutes}, result, final, minutes)


def _search(rng: Random, held_out: bool, names: list[str]) -> Call:
    words = rng.sample(NOUNS, rng.randint(1, 3))
    query = " ".join(words)
    user = rng.choice(
        "Search for {q}.|Search for {q}|Look up {q}.|Find {q}.|Please search for {q}.|"
        "Search the web for {q}.|Can you look up {q}?".split("|")
    ).format(q=query)
    noun, place = rng.sample(NOUNS, 2)
    found = f"The {noun} is {rng.choice(PLACES)} the {place}."
    result = _result(rng, rng.choice(("result", "text")), found)
    return Call(user, "search", {names[0]: query}, result, f"I found this: {found}", found)


def _time(rng: Random, held_out: bool, names: list[str]) -> Call:
    city = rng.choice(CITIES)
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    user = rng.choice(
        "What time is it in {c}?|Tell me the time in {c}.|What is the time in {c}?|Time in {c}?|"
        "How late is it in {c}?".split("|")
    ).format(c=city)
    final = f"It is {clock} in {city}."
    return Call(user, "get_time", {names[0]: city}, _result(rng, "time", clock), final, clock)


def _dice(rng: Random, held_out: bool, names: list[str]) -> Call:
    sides = rng.randint(4, 99)
    number = rng.randint(1, sides)
    user = rng.choice(
        "Roll a dice with {s} sides.|Roll a die with {s} sides.|Throw a dice with {s} sides.|"
        "Please roll a {s} sided dice.".split("|")
    ).format(s=sides)
    result = _result(rng, rng.choice(("result", "value")), number)
    return Call(user, "roll_dice", {names[0]: sides}, result, f"You rolled {number}.", number)


def _message(rng: Random, held_out: bool, names: list[str]) -> Call:
    person, text = rng.choice(NAMES), " ".join(rng.sample(NOUNS, rng.randint(1, 4)))
    user = rng.choice(
        "Send a message to {p}: {t}|Send {p} the message: {t}|Send a message to {p}: {t}.|"
        "Write to {p}: {t}|Tell {p}: {t}|Message {p}: {t}".split("|")
    ).format(p=person, t=text)
    result = _result(rng, "status", rng.choice(("ok", "done", "sent")))
    final = f"I sent the message to {person}."
    return Call(user, "send_message", {names[0]: person, names[1]: text}, result, final, person)


def _light(rng: Random, held_out: bool, names: list[str]) -> Call:
    room, on = rng.choice(ROOMS), rng.random() < 0.5
    state = "on" if on else "off"
    user = rng.choice(
        "Turn {s} the light in the {r}.|Turn the light in the {r} {s}.|Switch {s} the {r} light.|"
        "Please turn {s} the light in the {r}.|Light {s} in the {r}, please.".split("|")
    ).format(s=state, r=room)
    result = _result(rng, "status", rng.choice(("ok", "done")))
    final = f"The light in the {room} is {state}."
    return Call(user, "set_light", {names[0]: room, names[1]: on}, result, final, state)


_CITY = ("location", "location", "city", "place", "town", "area")
FUNCTIONS = (
    Function(
        "get_weather",
        ("Get the weather for a city.", "Get the current weather", "Weather in a location."),
        ((_CITY, "string"),),
        _weather,
    ),
    Function(
        "add",
        ("Add two numbers.", "Add two numbers", "The sum of two numbers."),
        (
            (("a", "a", "x", "first", "left"), "number"),
            (("b", "b", "y", "second", "right"), "number"),
        ),
        _add,
    ),
    Function(
        "set_timer",
        ("Set a timer.", "Start a timer for some minutes."),
        ((("minutes", "minutes", "duration", "time", "length"), "integer"),),
        _timer,
    ),
    Function(
        "search",
        ("Search the web.", "Find something", "Search for text."),
        ((("query", "query", "text", "words", "question"), "string"),),
        _search,
    ),
    Function(
        "get_time",
        ("Get the time in a city.", "Get the current time", "The time in a location."),
        ((_CITY, "string"),),
        _time,
    ),
    Function(
        "roll_dice",
        ("Roll a dice.", "Roll a die with some sides."),
        ((("sides", "sides", "faces", "size"), "integer"),),
        _dice,
    ),
    Function(
        "send_message",
        ("Send a message.", "Send a message to a person."),
        (
            (("to", "person", "name", "who"), "string"),
            (("text", "message", "body", "content"), "string"),
        ),
        _message,
    ),
    Function(
        "set_light",
        ("Turn a light on or off.", "Switch a light"),
        (
            (("room", "room", "location", "place", "area"), "string"),
            (("on", "on", "state", "light"), "boolean"),
        ),
        _light,
    ),
)


def offer(rng: Random, function: Function) -> tuple[dict[str, Any], list[str]]:
    """The function as an OpenAI tool, and the names its parameters got."""
    names = [rng.choice(choices) for choices, _ in function.parameters]
    names = names if len(set(names)) == len(names) else [c[0] for c, _ in function.parameters]
    properties: dict[str, Any] = {}
    for name, (_, kind) in zip(names, function.parameters, strict=True):
        properties[name] = {"type": kind}
        if rng.random() < 0.25:
            properties[name]["description"] = rng.choice(
                (f"The {name}.", f"{name.capitalize()}", f"{UNKNOWN} {name} {UNKNOWN}")
            )
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        schema["required"] = names
    tool: dict[str, Any] = {"name": function.name}
    if rng.random() < 0.9:
        tool["description"] = rng.choice(function.descriptions)
        if rng.random() < 0.1:
            tool["description"] += f" {UNKNOWN} {UNKNOWN} {UNKNOWN}."
    return {"type": "function", "function": {**tool, "parameters": schema}}, names


def call_reasoning(call: Call) -> tuple[str, str, str]:
    values = (v if isinstance(v, str) else json.dumps(v) for v in call.arguments.values())
    given = zip(call.arguments, values, strict=True)
    low = f"Call {call.name}: " + " ".join(f"{name} {value}" for name, value in given) + "."
    return low, f"I need a function. {low}", f"The functions can do this. I need a function. {low}"


ANSWERED = (
    "The function answered.",
    "The function answered. I tell the user.",
    "The function answered. I tell the user what it gave.",
)

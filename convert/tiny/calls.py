"""Conversations with functions: the call of one, and the answer from what it gave."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from convert.tiny.arithmetic import arithmetic
from convert.tiny.example import Example, asked, reply_message, user_message
from convert.tiny.functions import ANSWERED, FUNCTIONS, Call, call_reasoning, offer
from convert.tiny.past import past
from convert.tiny.turns import EFFORTS, is_held_out, word_list


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


def _exchange(rng: Random, call: Call, effort: int) -> list[dict[str, Any]]:
    """The call, with its reasoning, and what the function gave."""
    message = {**_call_message(rng, call), "reasoning": call_reasoning(call)[effort]}
    identity = message["tool_calls"][0]["id"]
    return [message, {"role": "tool", "tool_call_id": identity, "content": call.result}]


def function_call(rng: Random, held_out: bool) -> Example:
    tools, call = _offered(rng, held_out)
    history = past(rng, held_out, rng.choice((0, 0, 0, 1, 2)))[0]
    prompt = replace(asked(rng, [*history, user_message(call.user)]), tools=tuple(tools))
    reasoning = call_reasoning(call)[EFFORTS.index(prompt.reasoning)]
    return Example("call", prompt, {**_call_message(rng, call), "reasoning": reasoning})


def function_answer(rng: Random, held_out: bool) -> Example:
    """The function has given its result; sometimes one more question follows the answer."""
    tools, call = _offered(rng, held_out)
    base = replace(asked(rng, []), tools=tuple(tools))
    effort = EFFORTS.index(base.reasoning)
    history = past(rng, held_out, rng.choice((0, 0, 0, 1)))[0]
    messages = [*history, user_message(call.user), *_exchange(rng, call, effort)]
    if rng.random() < 0.8:
        prompt = replace(base, messages=tuple(messages))
        return Example("answer", prompt, reply_message(ANSWERED, base.reasoning, call.final))
    messages.append({"role": "assistant", "content": call.final})
    plain = all(tool["function"]["name"] != "add" for tool in tools)
    turn = arithmetic(rng, held_out) if plain else word_list(rng, held_out)
    prompt = replace(base, messages=(*messages, user_message(turn.user)))
    return Example("several", prompt, reply_message(turn.reasoning, base.reasoning, turn.final))


def second_call(rng: Random, held_out: bool) -> Example:
    """Two calls in one conversation: the second call, or the answer from its result.

    The first was answered, or both were asked for in one message.
    """
    tools, first = _offered(rng, held_out)
    base = replace(asked(rng, []), tools=tuple(tools))
    effort = EFFORTS.index(base.reasoning)
    second = _another(rng, held_out, tools)
    messages = [user_message(first.user), *_exchange(rng, first, effort)]
    together = rng.random() < 0.4
    if together:
        join = rng.choice((" And: ", " Then: ", " And then: ", " Also: "))
        messages[0] = user_message(first.user + join + second.user)
    else:
        messages += [{"role": "assistant", "content": first.final}, user_message(second.user)]
    if rng.random() < 0.4:
        reply = {**_call_message(rng, second), "reasoning": call_reasoning(second)[effort]}
        return Example("second call", replace(base, messages=tuple(messages)), reply)
    messages += _exchange(rng, second, effort)
    final = f"{first.final} {second.final}" if together else second.final
    prompt = replace(base, messages=tuple(messages))
    return Example("second call", prompt, reply_message(ANSWERED, base.reasoning, final))


def _another(rng: Random, held_out: bool, tools: Sequence[Mapping[str, Any]]) -> Call:
    """A call of one of the functions offered."""
    tool = rng.choice(tools)["function"]
    function = next(f for f in FUNCTIONS if f.name == tool["name"])
    return function.make(rng, held_out, list(tool["parameters"]["properties"]))

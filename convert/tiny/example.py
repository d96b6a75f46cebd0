"""One conversation with its right reply, and helpers that all skills build them with."""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from convert.tiny.turns import EFFORTS
from convert.tiny.words import UNKNOWN
from gptoss_mlx.harmony import Conversation
from gptoss_mlx.spec.recipients import type_of

SYSTEMS = (
    "Answer briefly.|You are a helpful assistant.|Be polite.|Be concise.|Answer in English.|"
    "You are a helpful assistant. Answer briefly.|Be brief.|You are a friendly assistant.|"
    "You are a test model.|Keep answers short.|zzz zzz zzz.|You are zzz, a zzz assistant. Be zzz.|"
    "zzz zzz the zzz. Answer briefly."
).split("|")
AROUND = (
    "Please: {x}|Hello! {x}|Hi, {x}|Okay. {x}|Now: {x}|Question: {x}|Next question: {x}|"
    "{x} Thanks!|{x} Thank you.|{x} Please answer.|Tell me: {x}|Hey, {x}|One more question. {x}|"
    "Quick: {x}|I want to know: {x}|A question: {x}|So, {x}|And now: {x}|"
    "Dear model, {x}|{x} Be quick."
).split("|")


@dataclass(frozen=True)
class Example:
    """A conversation up to the user's (or a function's) last word, and the right reply."""

    skill: str
    prompt: Conversation
    reply: Mapping[str, Any]  # an assistant message with "reasoning"


def user_message(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def reply_message(reasoning: tuple[str, str, str], effort: str, final: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "reasoning": reasoning[EFFORTS.index(effort)],
        "content": final,
    }


def builtin_call(rng: Random, recipient: str, arguments: str) -> dict[str, Any]:
    """An assistant's call of a builtin tool."""
    function = {"name": recipient, "arguments": arguments}
    kind = type_of(recipient)
    call = {"id": f"call_{rng.randrange(10**6)}", "type": kind, "function": function}
    return {"role": "assistant", "tool_calls": [call]}


def noise(rng: Random, text: str) -> str:
    """Words around what is asked that change nothing; the question stays the same."""
    if rng.random() < 0.6:
        before, after = rng.choice(AROUND).split("{x}")
        return f"{before}{text}{after}"
    unknown = " ".join([UNKNOWN] * rng.randint(1, 4))
    return rng.choice((f"{unknown}. {text}", f"{unknown}, {text}", f"{unknown}! {text}"))


def asked(rng: Random, messages: list[dict[str, Any]], effort: str | None = None) -> Conversation:
    date = f"{rng.randint(2024, 2028)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return Conversation(
        messages=tuple(messages),
        system=rng.choice(SYSTEMS) if rng.random() < 0.35 else None,
        reasoning=effort or rng.choice(EFFORTS),
        date="" if rng.random() < 0.03 else date,
    )

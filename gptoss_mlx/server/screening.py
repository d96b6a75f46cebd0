"""Screening: what is judged of a request before a model reads it, and of a turn before it is given.

Instructions (system, developer) stand above what users say, and are not judged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.engine.options import Message, Prompt
from gptoss_mlx.engine.runner import Runner
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.server.text_guard import TextGuard, call_text
from gptoss_mlx.tools.guard.guard import message_text, turn_text
from gptoss_mlx.tools.guard.verdict import GuardEvent, What

_REASONING = ("reasoning", "reasoning_content", "thinking")

Screened: TypeAlias = tuple[Prompt, GuardEvent | None]
"""A prompt as the model may read it, and the verdict by which it must not."""


class Screening:
    """The guard of one job. runner: of the model that judges."""

    def __init__(self, guard: TextGuard, runner: Runner) -> None:
        self.guard, self._runner = guard, runner
        self._judge = runner.engine.name

    async def prompt(self, prompt: Prompt, tokenizer: Tokenizer) -> Screened:
        """What was judged before is not judged again. Results of calls that are blocked have a line
        in their place, and reasoning is left out."""
        if isinstance(prompt, str):
            return prompt, await self._refusal("input", [prompt])
        if all(isinstance(item, int) for item in prompt):
            ids = cast(Sequence[int], prompt)
            text = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
            return prompt, await self._refusal("input", [text])
        messages = list(cast(Sequence[Message], prompt))
        said = [message_text(message) for message in messages if message.get("role") == "user"]
        refusal = await self._refusal("input", said) or await self._earlier(messages)
        if refusal is None:
            messages = await self._without_reasoning(await self._with_results(messages))
        return messages, refusal

    async def turn(self, deltas: Sequence[Delta]) -> tuple[Sequence[Delta], GuardEvent | None]:
        """The deltas of a turn that may be given, and the verdict by which none may."""
        texts, calls = _Parts(deltas), _Parts(deltas, "call")
        reasoning = _Parts(deltas, "reasoning")
        made = list(zip(calls.names, calls.texts, strict=True))
        async with asyncio.TaskGroup() as group:
            judging = group.create_task(self._whole("output", turn_text(texts.texts, made)))
            thought = group.create_task(self._whole("reasoning", "\n\n".join(reasoning.texts)))
        verdict, of_reasoning = judging.result(), thought.result()
        if verdict is not None and verdict.blocked:
            return (), verdict
        if verdict is not None and verdict.label == "pass":
            known = [call_text(name, given) for name, given in made]
            self.remember("output", [*texts.forms, *known])
        if of_reasoning is not None and of_reasoning.blocked:
            deltas = [delta for delta in deltas if delta.part != "reasoning"]
        elif of_reasoning is not None and of_reasoning.label == "pass":
            self.remember("reasoning", reasoning.forms)
        return deltas, None

    async def result(self, text: str) -> str:
        """What a call gave, as the model may read it."""
        verdict = await self._whole("result", text)
        if verdict is None or not verdict.blocked:
            return text
        self.remember("result", [verdict.line])
        return verdict.line

    def remember(self, what: What, texts: Sequence[str]) -> None:
        """Texts that need not be judged when a client sends them back."""
        self.guard.remember(self._judge, what, texts)

    async def _whole(self, what: What, text: str) -> GuardEvent | None:
        return await self.guard.judge(self._runner, what, [text]) if text.strip() else None

    async def _refusal(self, what: What, texts: Sequence[str]) -> GuardEvent | None:
        """The verdict on what is new of these texts, if it is blocked."""
        for text in texts:
            label = self.guard.known(self._runner, what, text)
            if label is not None and label.violation:
                return await self.guard.judge(self._runner, what, [text])
        new = self._new(what, texts)
        verdict = await self.guard.judge(self._runner, what, new) if new else None
        return verdict if verdict is not None and verdict.blocked else None

    def _new(self, what: What, texts: Sequence[str]) -> list[str]:
        return [t for t in texts if t.strip() and self.guard.known(self._runner, what, t) is None]

    async def _earlier(self, messages: Sequence[Message]) -> GuardEvent | None:
        """What clients say that the model has answered and called may be anybody's words."""
        said = [message_text(message) for message in messages if message.get("role") == "assistant"]
        return await self._refusal("output", [*said, *_calls(messages)])

    async def _with_results(self, messages: Sequence[Message]) -> list[Message]:
        """All new results are judged as one, and one by one only if that is blocked."""
        results = [message_text(message) for message in messages if _is_result(message)]
        new = self._new("result", results)
        if len(new) < 2 or (await self.guard.judge(self._runner, "result", new)).blocked:
            new = []
        out: list[Message] = []
        for message in messages:
            text = message_text(message)
            read = await self.result(text) if _is_result(message) and text not in new else text
            out.append(message if read == text else {**message, "content": read})
        return out

    async def _without_reasoning(self, messages: list[Message]) -> list[Message]:
        """The messages without reasoning that is blocked."""
        given = [str(m[key]) for m in messages for key in _REASONING if m.get(key)]
        if await self._refusal("reasoning", given) is None:
            return messages
        kept = [{k: v for k, v in m.items() if k not in _REASONING} for m in messages]
        return [m for m in kept if m.get("role") != "assistant" or _says(m)]


class _Parts:
    """The texts of a turn's messages of a kind; without one what it says. names: of calls."""

    def __init__(self, deltas: Sequence[Delta], part: str = "") -> None:
        found: dict[int, list[str]] = {}
        named: dict[int, str] = {}
        for delta in deltas:
            if delta.part == part or (not part and delta.part in ("preamble", "answer")):
                found.setdefault(delta.message, []).append(delta.text)
                named.setdefault(delta.message, delta.name)
        self.texts = ["".join(pieces) for pieces in found.values()]
        self.names = list(named.values())

    @property
    def forms(self) -> list[str]:
        """The forms in which clients send them back: each, and all joined."""
        return [*self.texts, "".join(self.texts), "\n\n".join(self.texts)]


def _calls(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        calls: Any = message.get("tool_calls") or ()
        for call in calls:
            function = call.get("function", call)
            given = function.get("arguments", "")
            text = given if isinstance(given, str) else json.dumps(given)
            yield call_text(str(function.get("name")), text)


def _is_result(message: Message) -> bool:
    return message.get("role") in ("tool", "function")


def _says(message: Message) -> bool:
    return bool(message_text(message) or message.get("tool_calls"))

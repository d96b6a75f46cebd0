"""The agent's loop: a model's calls are run, and it reads what they gave, until it answers.

With a guard, what comes in is judged before the model reads it, an answer before it is seen, and
calls before they are run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, Timings, TokenEvent
from gptoss_mlx.engine.options import Message
from gptoss_mlx.engine.result import Result, ToolCall, collect
from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.tools import read_tools
from gptoss_mlx.spec.recipients import BUILTIN, FUNCTIONS
from gptoss_mlx.tools.approval import MOST_CALLS, Approval
from gptoss_mlx.tools.events import AgentEvent, CallEvent, HeldEvent, OutcomeEvent
from gptoss_mlx.tools.guard.guard import Guard, message_text, turn_text
from gptoss_mlx.tools.guard.verdict import GuardEvent, What
from gptoss_mlx.tools.tool import Outcome, Tool, never


class Agent:
    """A model with tools.

    messages: the conversation in OpenAI's form, which JSON can hold; `run` appends to it.
    most_calls: of one run, after which the model has to answer. guard: judges what `run` is given,
    what calls give, and answers; not `messages`. options: those of `Engine.stream`, for every turn;
    `cancel` ends calls as well. Raises OptionError if two tools take the same calls, or the options
    name tools.
    """

    def __init__(
        self,
        engine: Engine,
        tools: Sequence[Tool],
        *,
        approval: Approval | None = None,
        most_calls: int = MOST_CALLS,
        guard: Guard | None = None,
        messages: Sequence[Message] = (),
        **options: Any,
    ) -> None:
        if most_calls < 0:
            raise OptionError(f"most_calls is {shown(most_calls)}, but must be 0 or more")
        for name in ("tools", "raw"):
            if name in options:
                raise OptionError(f"an agent's model takes no {name} beside the agent's tools")
        self._engine, self._options, self._guard = engine, options, guard
        self._cancel: Callable[[], bool] = options.get("cancel") or never
        self._approval, self._most = approval or Approval(), most_calls
        self._given = tuple(tools)
        self._read_offers()
        self.messages: list[Message] = list(messages)

    def run(self, prompt: str | Sequence[Message]) -> Generator[AgentEvent, None, None]:
        """Append a user's message, or several messages, and go on until the model answers.

        Gives the events of each turn, which end with a `FinishEvent`, and those of the calls
        between them. The last FinishEvent is the answer's. Every call in `messages` has a result,
        also one that was cut short or interrupted. Raises what `Engine.stream` does.

        With a guard, an answer comes at once when it has been judged, without its reasoning, which
        has not. What is blocked is replaced by a line; a message that is, is not appended.
        """
        given: list[Message] = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, str):
            given = list(prompt)
        if self._guard is not None and (yield from self._judge_all(self._guard, given)):
            return
        self.messages += given
        begun = len(self.messages)
        try:
            yield from self._answer()
        finally:
            if self._guard is not None:
                self.messages[begun:] = map(_without_reasoning, self.messages[begun:])

    def _answer(self) -> Iterator[AgentEvent]:
        calls = 0
        while True:
            result = yield from self._turn(calls < self._most)
            calls += len(result.tool_calls)
            yield from self._run_all(result)
            if result.finish_reason != "tool_calls":
                return

    def _run_all(self, result: Result) -> Iterator[AgentEvent]:
        """Run a turn's calls, one after another, and append their results."""
        waiting = list(result.tool_calls)
        try:
            while waiting and result.finish_reason == "tool_calls" and not self._cancel():
                call = waiting[0]
                yield CallEvent(call)
                outcome, judged = self._outcome(call)
                self._append(waiting.pop(0), outcome.text)
                if judged is not None:
                    yield judged
                yield OutcomeEvent(call, outcome)
        finally:
            for call in waiting:
                self._append(call, "The call was interrupted.")

    def _append(self, call: ToolCall, text: str) -> None:
        self.messages.append({"role": "tool", "tool_call_id": call.id, "content": text})

    def _read_offers(self) -> None:
        """What the tools offer now; a server's may change between turns."""
        self._offers, self._tools = read_offers(self._given)

    def _turn(self, may_call: bool) -> Generator[AgentEvent, None, Result]:
        """One turn of the model's, which ends with an answer or with calls."""
        self._read_offers()
        options = dict(self._options)
        if self._offers:
            options["tools"] = self._offers
        if self._offers and not may_call:
            options["tool_choice"] = "none"
        events, tokens = list[Event](), 0
        for event in self._engine.stream(list(self.messages), **options):
            events.append(event)
            if self._guard is None or isinstance(event, PrefillEvent):
                yield event
            elif isinstance(event, TokenEvent):
                tokens += event.id is not None
                yield HeldEvent(tokens)
        result = collect(events)
        if self._guard is not None:
            return (yield from self._judged(self._guard, events, result))
        self.messages.append(result.message)
        return result

    def _judged(
        self, guard: Guard, events: Sequence[Event], result: Result
    ) -> Generator[AgentEvent, None, Result]:
        """A turn that was held back: its events if a person may see it, else a line."""
        calls = [(call.name, call.arguments) for call in result.tool_calls]
        text = turn_text((result.preamble, result.text), calls)
        judged = guard.judge("output", text, self._cancel) if text else None
        if judged is not None:
            yield judged
        if judged is not None and judged.blocked:
            result = replace(
                result, text=judged.line, preamble="", reasoning="", tool_calls=(), limit=None
            )
            if result.finish_reason != "cancelled":
                result = replace(result, finish_reason="stop")
            self.messages.append(result.message)
            yield from _line(judged, _finish(result))
            return result
        self.messages.append(result.message)
        yield from (event for event in events if _is_seen(event))
        return result

    def _judge_all(self, guard: Guard, given: list[Message]) -> Generator[AgentEvent, None, bool]:
        """Judge messages of the user's, and results of calls, which are replaced if they are
        blocked. Whether a message of the user's is."""
        for i, message in enumerate(given):
            text = message_text(message)
            if message.get("role") not in ("user", "tool") or not text.strip():
                continue
            what: What = "input" if message["role"] == "user" else "result"
            judged = guard.judge(what, text, self._cancel)
            yield judged
            if judged.blocked and what == "input":
                yield from _line(judged, FinishEvent("stop", 0, 0, 0, Timings()))
                return True
            if judged.blocked:
                given[i] = {**message, "content": judged.line}
        return False

    def _outcome(self, call: ToolCall) -> tuple[Outcome, GuardEvent | None]:
        """What a call gives, and what a guard found of it."""
        tool = self._tools.get(call.recipient)
        if tool is None:
            known = ", ".join(sorted(self._tools)) or "none"
            said = f"There is no tool {shown(call.name)}. There are: {known}."
            return Outcome(said, failed=True), None
        refusal = self._approval.refusal(tool.name, call)
        if refusal is not None:
            return Outcome(refusal, failed=True), None
        outcome = tool.call(call.recipient, call.arguments, self._cancel)
        if self._guard is None or not outcome.text.strip():
            return outcome, None
        judged = self._guard.judge("result", outcome.text, self._cancel)
        if judged.blocked:
            outcome = replace(outcome, text=judged.line, failed=True)
        return outcome, judged


def read_offers(tools: Sequence[Tool]) -> tuple[list[Mapping[str, object]], dict[str, Tool]]:
    """What tools offer now, and the tool that takes each recipient's calls. Raises OptionError if
    two take one's."""
    offered: list[Mapping[str, object]] = []
    taken: dict[str, Tool] = {}
    for tool in tools:
        offers = tool.offers
        offered += offers
        read = read_tools(offers)
        recipients = [FUNCTIONS + function.name for function in read.functions]
        recipients += [name for kind in read.builtin for name in BUILTIN[kind]]
        for recipient in recipients:
            if recipient in taken:
                raise OptionError(f"two tools take the calls of {shown(recipient)}")
            taken[recipient] = tool
    return offered, taken


def _line(judged: GuardEvent, finish: FinishEvent) -> Iterator[Event]:
    """What is seen in place of a text that is blocked."""
    yield TokenEvent(None, judged.line, "final")
    yield finish


def _finish(result: Result) -> FinishEvent:
    return FinishEvent(
        result.finish_reason,
        result.prompt_tokens,
        result.completion_tokens,
        result.seed,
        result.timings,
    )


def _is_seen(event: Event) -> bool:
    """Whether an event of a turn that was judged is shown: progress has been, and reasoning is
    not."""
    if isinstance(event, TokenEvent):
        return event.channel != "analysis" or event.recipient is not None
    return isinstance(event, FinishEvent)


def _without_reasoning(message: Message) -> Message:
    """A message without what nobody has judged."""
    kept = {name: value for name, value in message.items() if name != "reasoning"}
    if kept.get("content") is None and not kept.get("tool_calls"):
        kept["content"] = ""
    return kept

"""The agent's loop: a model's calls are run, and it reads what they gave, until it answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.engine.events import Event
from gptoss_mlx.engine.options import Message
from gptoss_mlx.engine.result import Result, ToolCall, collect
from gptoss_mlx.errors import OptionError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.tools import read_tools
from gptoss_mlx.spec.recipients import BUILTIN, FUNCTIONS
from gptoss_mlx.tools.approval import MOST_CALLS, Approval
from gptoss_mlx.tools.events import AgentEvent, CallEvent, OutcomeEvent
from gptoss_mlx.tools.tool import Outcome, Tool, never


class Agent:
    """A model with tools.

    messages: the conversation in OpenAI's form, which JSON can hold; `run` appends to it.
    most_calls: of one run, after which the model has to answer. options: those of `Engine.stream`,
    for every turn; `cancel` ends calls as well. Raises OptionError if two tools take the same
    calls, or the options name tools.
    """

    def __init__(
        self,
        engine: Engine,
        tools: Sequence[Tool],
        *,
        approval: Approval | None = None,
        most_calls: int = MOST_CALLS,
        messages: Sequence[Message] = (),
        **options: Any,
    ) -> None:
        if most_calls < 0:
            raise OptionError(f"most_calls is {shown(most_calls)}, but must be 0 or more")
        for name in ("tools", "raw"):
            if name in options:
                raise OptionError(f"an agent's model takes no {name} beside the agent's tools")
        self._engine, self._options = engine, options
        self._cancel: Callable[[], bool] = options.get("cancel") or never
        self._approval, self._most = approval or Approval(), most_calls
        self._given = tuple(tools)
        self._read_offers()
        self.messages: list[Message] = list(messages)

    def run(self, prompt: str | Sequence[Message]) -> Iterator[AgentEvent]:
        """Append a user's message, or several messages, and go on until the model answers.

        Gives the events of each turn, which end with a `FinishEvent`, and those of the calls
        between them. The last FinishEvent is the answer's. Every call in `messages` has a result,
        also one that was cut short or interrupted. Raises what `Engine.stream` does.
        """
        if isinstance(prompt, str):
            self.messages.append({"role": "user", "content": prompt})
        else:
            self.messages += prompt
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
                outcome = self._outcome(call)
                self._append(waiting.pop(0), outcome.text)
                yield OutcomeEvent(call, outcome)
        finally:
            for call in waiting:
                self._append(call, "The call was interrupted.")

    def _append(self, call: ToolCall, text: str) -> None:
        self.messages.append({"role": "tool", "tool_call_id": call.id, "content": text})

    def _read_offers(self) -> None:
        """What the tools offer now; a server's may change between turns."""
        offered = [(tool, tuple(tool.offers)) for tool in self._given]
        self._offers = [offer for _, offers in offered for offer in offers]
        self._tools = _by_recipient(offered)

    def _turn(self, may_call: bool) -> Generator[Event, None, Result]:
        """One turn of the model's, which ends with an answer or with calls."""
        self._read_offers()
        options = dict(self._options)
        if self._offers:
            options["tools"] = self._offers
        if self._offers and not may_call:
            options["tool_choice"] = "none"
        events = list[Event]()
        for event in self._engine.stream(list(self.messages), **options):
            events.append(event)
            yield event
        result = collect(events)
        self.messages.append(result.message)
        return result

    def _outcome(self, call: ToolCall) -> Outcome:
        tool = self._tools.get(call.recipient)
        if tool is None:
            known = ", ".join(sorted(self._tools)) or "none"
            return Outcome(f"There is no tool {shown(call.name)}. There are: {known}.", failed=True)
        refusal = self._approval.refusal(tool, call)
        if refusal is not None:
            return Outcome(refusal, failed=True)
        return tool.call(call.recipient, call.arguments, self._cancel)


def _by_recipient(
    offered: Sequence[tuple[Tool, Sequence[Mapping[str, object]]]],
) -> dict[str, Tool]:
    """The tool that takes each recipient's calls. Raises OptionError if two take one's."""
    taken: dict[str, Tool] = {}
    for tool, offers in offered:
        read = read_tools(offers)
        recipients = [FUNCTIONS + function.name for function in read.functions]
        recipients += [name for kind in read.builtin for name in BUILTIN[kind]]
        for recipient in recipients:
            if recipient in taken:
                raise OptionError(f"two tools take the calls of {shown(recipient)}")
            taken[recipient] = tool
    return taken

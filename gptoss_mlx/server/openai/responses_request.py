"""The request of responses, from OpenAI's fields to what is asked of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, StrictStr

from gptoss_mlx.engine.options import Message, Options
from gptoss_mlx.server.bodies import Body
from gptoss_mlx.server.effort import effort_options
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.job import Ask
from gptoss_mlx.server.openai.chat_request import SamplingFields
from gptoss_mlx.server.openai.input_items import items_of, messages_of
from gptoss_mlx.server.openai.mcp_items import Approvals, ApprovedCall
from gptoss_mlx.server.openai.mcp_request import AskedServer, asked_servers
from gptoss_mlx.server.openai.response_object import Repeated
from gptoss_mlx.server.openai.response_servers import ResponseServers
from gptoss_mlx.server.openai.response_store import ResponseStore
from gptoss_mlx.server.openai.response_tools import Toolbox, echoed
from gptoss_mlx.server.openai.response_writers import Wanted
from gptoss_mlx.server.openai.served_calls import CallShown
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.toolkit import Toolkit

_REFUSED = ("conversation", "prompt")


def _checked(value: Any) -> Any:
    """Raises ValueError for a number that JSON cannot repeat."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    if isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            _checked(item)
    return value


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


EchoedJSON: TypeAlias = Annotated[JSON, AfterValidator(_checked)]
Items: TypeAlias = Annotated[list[EchoedJSON], BeforeValidator(_as_items)]
"""A text is the message of a user."""


class ReasoningFields(Body):
    effort: StrictStr | None = None
    summary: StrictStr | None = None
    generate_summary: StrictStr | None = None


class TextFields(Body):
    format: EchoedJSON | None = None
    verbosity: StrictStr | None = None


@dataclass(frozen=True)
class Asked:
    """A request that was read. items: all that the model is asked with, earlier turns included.
    approved: calls to run before the model is asked."""

    model: str | None
    instructions: str | None
    items: tuple[JSON, ...]
    tools: Toolbox
    options: Options
    approved: Sequence[ApprovedCall] = ()

    def ask(self, items: Sequence[JSON] | None = None, change: Options | None = None) -> Ask:
        """What is asked of the model. items: others. change: of the options. Raises Problem."""
        first: list[Message] = []
        if self.instructions:
            first.append({"role": "system", "content": self.instructions})
        items = self.items if items is None else items
        options: Options = {**self.options, **(change or {})}
        return Ask(self.model, [*first, *messages_of(items, self.tools)], options)


class ResponsesRequest(SamplingFields):
    """The fields that act; `user`, `prompt_cache_key` and such are only repeated, and others of
    OpenAI's change nothing.

    seed, top_k, min_p, stop and the penalties are beyond OpenAI's, as in chat completions.
    tool_approval: "ask" where the client can ask a person about calls.
    """

    input: Items | None = None
    instructions: StrictStr | None = None
    previous_response_id: StrictStr | None = None
    store: StrictBool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    reasoning_budget: Annotated[StrictInt, Field(ge=0)] | None = None
    include: list[StrictStr] | None = None
    tool_approval: Literal["ask"] | None = None
    tools: list[EchoedJSON] | None = None
    tool_choice: StrictStr | EchoedJSON | None = None
    parallel_tool_calls: StrictBool | None = None
    max_output_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_tool_calls: Annotated[StrictInt, Field(ge=0)] | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[StrictStr, StrictStr] | None = None
    user: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    service_tier: StrictStr | None = None
    background: StrictBool | None = None
    conversation: Any = None
    prompt: Any = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def wanted(self) -> Wanted:
        include, reasoning = self.include or (), self.reasoning or ReasoningFields()
        return Wanted(
            logprobs="message.output_text.logprobs" in include or bool(self.top_logprobs),
            summary=bool(reasoning.summary or reasoning.generate_summary),
            sealed="reasoning.encrypted_content" in include,
        )

    def servers(self, kit: Toolkit) -> list[AskedServer]:
        """The servers of tools that are asked for. Raises Problem."""
        asked = asked_servers(self.tools or (), kit)
        return asked if self.most_calls(kit) else []

    def read(
        self,
        store: ResponseStore,
        kit: Toolkit | None = None,
        servers: ResponseServers | None = None,
    ) -> Asked:
        """What is asked. store: where earlier responses are. kit: of the server's tools. servers:
        those of `servers`, whose tools are listed.

        Raises Problem.
        """
        self._refuse()
        tools = Toolbox(self.tools, kit, servers)
        if not self.most_calls(kit or Toolkit()):
            tools.served.clear()
        given = items_of(self.input or (), store.item)
        items = (*store.thread(self.previous_response_id), *given)
        approved = Approvals(items).due(given)
        options = self._options(tools)
        return Asked(self.model, self.instructions, items, tools, options, approved)

    def most_calls(self, kit: Toolkit) -> int:
        """How many calls the server may run."""
        given = self.max_tool_calls
        return kit.most_calls if given is None else min(given, kit.most_calls)

    def calls_shown(self, root: str) -> CallShown:
        """What the client wants to read of calls that the server runs. root: its URL."""
        include, text = self.include or (), self.text or TextFields()
        return CallShown(
            outputs="code_interpreter_call.outputs" in include,
            sources="web_search_call.action.sources" in include,
            sealed=self.wanted.sealed,
            in_links=(text.format or {}).get("type", "text") == "text",
            asks=self.tool_approval == "ask",
            root=root,
        )

    def echo(self) -> Repeated:
        """What the response repeats of the request."""
        reasoning = self.reasoning or ReasoningFields()
        text = self.text or TextFields()
        verbosity = {} if text.verbosity is None else {"verbosity": text.verbosity}
        choice = "auto" if self.tool_choice is None else self.tool_choice
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {
                "effort": reasoning.effort or "medium",
                "summary": reasoning.summary or reasoning.generate_summary,
            },
            "safety_identifier": self.safety_identifier,
            "service_tier": self.service_tier or "auto",
            "store": self.is_stored,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": text.format or {"type": "text"}, **verbosity},
            "tool_choice": choice if isinstance(choice, str) else echoed(choice),
            "tools": [echoed(tool) for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
        }

    def _options(self, tools: Toolbox) -> Options:
        wanted, reasoning = self.wanted, self.reasoning or ReasoningFields()
        options: Options = {
            **self.options(),
            **effort_options(reasoning.effort, "reasoning.effort"),
            "tools": tools.offered,
            "tool_choice": tools.choice(self.tool_choice),
            "response_format": None if self.text is None else self.text.format,
            "logprobs": wanted.logprobs,
        }
        if wanted.logprobs:
            options["top_logprobs"] = self.top_logprobs or 0
        if self.reasoning_budget is not None:
            options["reasoning_budget"] = self.reasoning_budget
        if self.max_output_tokens is not None:
            options["max_tokens"] = self.max_output_tokens
        return options

    def _refuse(self) -> None:
        """What cannot be done is said, not passed over. Raises Problem."""
        for name in _REFUSED:
            if getattr(self, name) is not None:
                raise Problem(400, f"{name} is not supported: send input", param=name)
        if self.background:
            raise Problem(400, "background: true is not supported: use stream", param="background")
        if self.n not in (None, 1):
            raise Problem(400, "n: a response has one choice", param="n")
        if not self.input and self.previous_response_id is None:
            raise Problem(400, "input is missing", param="input")

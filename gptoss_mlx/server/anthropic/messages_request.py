"""The requests of messages and of token counts, from Anthropic's fields to what a model is asked.

`metadata`, `service_tier`, `cache_control`, `context_management` and such change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, StrictStr

from gptoss_mlx.engine.options import Message, Options
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.anthropic.conversation import JSON, chat_messages, instructions
from gptoss_mlx.server.anthropic.shape import NO_THREADS
from gptoss_mlx.server.anthropic.thinking import Display, ThinkingConfig
from gptoss_mlx.server.bodies import Body
from gptoss_mlx.server.effort import effort_options
from gptoss_mlx.server.job import Ask
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.written import Written

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_REFUSED = {"container": None, "mcp_servers": None, "thread": NO_THREADS}
"""Field -> the error's code. Without what they ask for the answer would be another one."""


class OutputConfig(Body):
    effort: StrictStr | None = None
    format: JSON | None = None


class ToolChoiceGiven(Body):
    type: StrictStr
    name: StrictStr | None = None
    disable_parallel_tool_use: StrictBool | None = None

    def option(self) -> str | Message:
        """As the engine takes it, under the name that the client knows. Raises Problem."""
        if self.type == "tool":
            return {"type": "function", "name": self.name}
        if self.type not in _CHOICES:
            known = "auto, any, tool or none"
            raise Problem(
                400,
                f"tool_choice.type is {shown(self.type)}, but must be {known}",
                param="tool_choice.type",
            )
        return _CHOICES[self.type]


@dataclass(frozen=True)
class Style:
    """How an answer is told.

    model: the name that it goes by, which is the one that was asked for: Claude Code does not send
    the thinking of another back. single: whether calls after the first are left out.
    """

    aliases: Aliases
    model: str | None = None
    reasoning: Display = "shown"
    single: bool = False


class PromptFields(Body):
    """What makes a prompt: all that a count of its tokens depends on."""

    messages: Annotated[list[JSON], Field(min_length=1)]
    model: StrictStr | None = None
    system: StrictStr | list[JSON] | None = None
    tools: list[JSON] | None = None
    tool_choice: ToolChoiceGiven | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JSON | None = None
    container: Any = None
    mcp_servers: Any = None
    thread: Any = None

    def ask(self, model: str | None, written: Written) -> tuple[Ask, Style]:
        """What is asked of a model of this server, and how to answer. Raises Problem."""
        for name, code in _REFUSED.items():
            if getattr(self, name):
                raise Problem(400, f"{name} is not supported", code=code, param=name)
        functions = _functions(self.tools or ())
        aliases = Aliases(str(function["name"]) for function in functions)
        options: Options = {
            **self.options(),
            **self._thinking(),
            "system": instructions(self.system),
            "tools": [{"type": "function", "function": aliases.rename(f)} for f in functions],
            "response_format": self._format(),
        }
        choice = self.tool_choice
        # A choice among tools of which none can be called is none.
        if choice is not None and (functions or choice.type not in ("auto", "none")):
            given = choice.option()
            options["tool_choice"] = given if isinstance(given, str) else aliases.rename(given)
        single = choice is not None and choice.disable_parallel_tool_use is True
        style = Style(aliases, self.model, self._display(bool(functions)), single)
        messages = chat_messages(self.messages, aliases, written)
        return Ask(model, messages, options), style

    def options(self) -> Options:
        """Options beside the prompt's."""
        return {}

    def _thinking(self) -> Options:
        effort = None if self.output_config is None else self.output_config.effort
        if self.thinking is None:
            return effort_options(effort, "output_config.effort")
        return self.thinking.options(effort)

    def _display(self, with_tools: bool) -> Display:
        """Where thinking was not asked for, many clients take the first block for the text. Beside
        tools they do not, and the model needs its reasoning back."""
        if self.thinking is not None:
            return self.thinking.shows
        return "shown" if with_tools else "hidden"

    def _format(self) -> Message | None:
        asked = None if self.output_config is None else self.output_config.format
        asked = self.output_format if asked is None else asked
        return None if asked is None else {"name": "response", **asked}


class MessagesRequest(PromptFields):
    """Without max_tokens an answer may be as long as the context has room."""

    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    stop_sequences: list[StrictStr] | None = None
    stream: StrictBool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0)] | None = None

    def options(self) -> Options:
        options: Options = {
            "max_tokens": self.max_tokens,
            "stop": [text for text in self.stop_sequences or () if text] or None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
        if self.thinking is None and self.max_tokens is not None:
            # Who did not ask for reasoning expects an answer within its tokens.
            options["reasoning_budget"] = self.max_tokens // 2
        return options


def _functions(tools: Sequence[JSON]) -> list[JSON]:
    """The client's own tools; those that Anthropic's servers or models bring are left out.

    A tool that is named twice counts once, as it was said last.
    """
    functions = {}
    for tool in tools:
        if tool.get("type") in (None, "custom"):
            function = {
                "name": tool.get("name"),
                "description": tool.get("description"),
                "parameters": tool.get("input_schema"),
                "strict": tool.get("strict"),
            }
            functions[str(tool.get("name"))] = function
    return list(functions.values())

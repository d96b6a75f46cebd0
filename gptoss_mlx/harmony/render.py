"""Renders chat messages to Harmony tokens.

Messages are OpenAI chat dicts. The Harmony system message comes first; leading system and developer
messages become the developer message's instructions, beside tools and response format. Earlier
turns' reasoning is dropped, the reasoning of a tool loop under way is kept. What a model generates
renders again to the tokens it generated, as long as it used the canonical headers. Every mistake in
the messages raises MessageError naming the message.
"""

from __future__ import annotations

import datetime
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_mlx.errors import MessageError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.encoding import ASSISTANT, CALL, END, MESSAGE, RETURN, START, Encoding
from gptoss_mlx.harmony.messages import INSTRUCTIONS, Turn, read_messages
from gptoss_mlx.harmony.response_format import read_response_format
from gptoss_mlx.harmony.schema import clean
from gptoss_mlx.harmony.stand_ins import StandIns
from gptoss_mlx.harmony.tools import Tools, read_tools

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
CHANNELS = ("analysis", "commentary", "final")
_ENDS = (END, CALL)
REASONING = ("low", "medium", "high")


@dataclass(frozen=True)
class Conversation:
    """Everything a prompt is made of.

    `messages` and `tools` are OpenAI chat dicts; `tools` may name the builtin {"type": "browser"}
    and {"type": "python"}. `date` is YYYY-MM-DD, None for today, "" for no date line.
    With `open` the prompt ends after `<|start|>assistant`; without, the conversation is finished
    and the reasoning of its last turn stays. `keep_reasoning` turns the drop rule off.
    `most` is the number of tokens beyond which the prompt is refused before it is read in full.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    system: str | None = None
    reasoning: str = "medium"
    response_format: Mapping[str, Any] | None = None
    date: str | None = None
    identity: str = IDENTITY
    knowledge_cutoff: str = KNOWLEDGE_CUTOFF
    channels: tuple[str, ...] = CHANNELS
    open: bool = True
    keep_reasoning: bool = False
    most: float = math.inf

    def render(self, encoding: Encoding) -> list[int]:
        """The prompt's token ids. Raises MessageError, or ContextError for more than `most`."""
        tools = read_tools(self.tools)
        instructions, turns = read_messages(self.messages, self.system)
        if not self.keep_reasoning:
            turns = drop_reasoning(turns, self.open)
        library = importlib.import_module("openai_harmony")
        system, functions = self._head(encoding, library, tools)
        developer = _developer(instructions, functions, self.response_format)
        ids = system + render_turns(encoding, developer + turns, self.most)
        return [*ids, START, ASSISTANT] if self.open else ids

    def _head(self, encoding: Encoding, library: Any, tools: Tools) -> tuple[list[int], str | None]:
        """The system message's tokens, and the text of the section that describes the functions.

        The library gives that section as tokens only, and cannot take very long words: stand-ins
        take their place. Both are rendered together, because with functions the library names their
        channel in the system message.
        """
        system = self._system(library, tools)
        if not tools.functions:
            return _render(library, encoding, [system]), None
        words = StandIns(frozenset(_text_of(tools)))
        ids = _render(library, encoding, [system, _functions(library, tools, words)])
        end = ids.index(END) + 1
        text = encoding.decode(ids[ids.index(MESSAGE, end) + 1 : -1])
        return ids[:end], words.restore(text)

    def _system(self, library: Any, tools: Tools) -> Any:
        if self.reasoning not in REASONING:
            raise MessageError(
                f"reasoning effort {shown(self.reasoning)} is unknown: use low, medium or high"
            )
        date = datetime.date.today().isoformat() if self.date is None else self.date
        content = library.SystemContent(
            model_identity=clean(self.identity),
            reasoning_effort=library.ReasoningEffort(self.reasoning.capitalize()),
            conversation_start_date=clean(date) or None,
            knowledge_cutoff=clean(self.knowledge_cutoff),
            channel_config=library.ChannelConfig.require_channels(list(self.channels)),
        )
        for name in tools.builtin:
            content.with_tools(getattr(library.ToolNamespaceConfig, name)())
        return library.Message.from_role_and_content(library.Role.SYSTEM, content)


def render(
    encoding: Encoding,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    system: str | None = None,
    reasoning: str = "medium",
    response_format: Mapping[str, Any] | None = None,
    date: str | None = None,
    most: float = math.inf,
) -> list[int]:
    """The token ids of a prompt, ending after `<|start|>assistant`.

    Raises MessageError, and ContextError if there are surely more than `most`.
    """
    conversation = Conversation(
        messages=_listed("messages", messages),
        tools=_listed("tools", tools),
        system=system,
        reasoning=reasoning,
        response_format=response_format,
        date=date,
        most=most,
    )
    return conversation.render(encoding)


def _listed(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise MessageError(f"{name}: expected a list")
    return tuple(value)


def render_reply(encoding: Encoding, message: Mapping[str, Any]) -> list[int]:
    """The token ids that a model generates after `<|start|>assistant` to give this message.

    The last token is `<|return|>` or `<|call|>`. Raises MessageError.
    """
    _, turns = read_messages([message], None)
    if message.get("role") != "assistant" or not turns:
        raise MessageError("a reply is one assistant message")
    ids = render_turns(encoding, turns)[2:]
    return ids if ids[-1] == CALL else [*ids[:-1], RETURN]


def render_turns(encoding: Encoding, turns: Sequence[Turn], most: float = math.inf) -> list[int]:
    """The token ids of complete messages as they stand: no system message, nothing dropped.

    The library writes the headers; the texts between them, of any length, are encoded here.
    """
    library = importlib.import_module("openai_harmony")
    texts = iter(turns)
    ids: list[int] = []
    for id in _render(library, encoding, [_header(library, turn) for turn in turns]):
        if id in _ENDS:
            ids += encoding.encode(next(texts).text, most - len(ids))
        ids.append(id)
    return ids


def drop_reasoning(turns: Sequence[Turn], open: bool) -> list[Turn]:
    """The turns without the reasoning that the model is not to see again.

    That is all analysis before the last final message; in a finished conversation whose last
    message is final, before the final message before that one.
    """
    finals = [i for i, turn in enumerate(turns) if turn.channel == "final"]
    if not open and finals and finals[-1] == len(turns) - 1:
        finals.pop()
    last = finals[-1] if finals else -1
    return [turn for i, turn in enumerate(turns) if i > last or not turn.is_reasoning]


def _render(library: Any, encoding: Encoding, messages: list[Any]) -> list[int]:
    conversation = library.Conversation.from_messages(messages)
    config = library.RenderConversationConfig(auto_drop_analysis=False)
    try:
        ids: list[int] = encoding.library.render_conversation(conversation, config)
    except library.HarmonyError as error:
        raise MessageError(f"the conversation cannot be rendered: {shown(str(error))}") from error
    return ids


def _header(library: Any, turn: Turn) -> Any:
    """The turn as a message without its text."""
    author = library.Author(role=library.Role(turn.role), name=turn.name)
    message = library.Message.from_author_and_content(author, "")
    message.channel = turn.channel
    message.recipient = turn.recipient
    message.content_type = turn.content_type
    return message


def _functions(library: Any, tools: Tools, words: StandIns) -> Any:
    described = [
        library.ToolDescription(
            name=tool.name,
            description=words.put(tool.description),
            parameters=words.put(tool.parameters),
        )
        for tool in tools.functions
    ]
    content = library.DeveloperContent().with_function_tools(described)
    return library.Message.from_role_and_content(library.Role.DEVELOPER, content)


def _developer(instructions: str | None, functions: str | None, response_format: Any) -> list[Turn]:
    """The developer message, if there is anything to say in it."""
    head = None if instructions is None else INSTRUCTIONS + instructions
    sections = (head, functions, _response_format(response_format))
    text = "\n\n".join(section for section in sections if section is not None)
    return [Turn("developer", text)] if text else []


def _text_of(tools: Tools) -> str:
    """All names, descriptions and parameters of the functions, in one text."""
    said = [(tool.name, tool.description, tool.parameters) for tool in tools.functions]
    return json.dumps(said, ensure_ascii=False)


def _response_format(response_format: Any) -> str | None:
    """The section that tells the model the format; None if any text will do."""
    asked = read_response_format(response_format)
    if asked is None:
        return None
    lines = ["## " + clean(asked.name), ""]
    lines += ["// " + line for line in clean(asked.description).splitlines()]
    lines.append(json.dumps(clean(asked.schema), ensure_ascii=False, separators=(",", ":")))
    return "# Response Formats\n\n" + "\n".join(lines)

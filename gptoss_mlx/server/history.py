"""Messages, tools and the choice among them, from a client's JSON to what the engine renders.

null counts as not given, and an unknown kind of tool is left out: clients send what other models
know, and a request does not fail for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.problems import Problem

JSON: TypeAlias = Mapping[str, Any]

_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def functions_of(tools: Sequence[JSON] | None) -> list[JSON]:
    """The function tools, in the flat form {"name": ..., "parameters": ...}; others are left out.

    A function that is named twice counts once, as it was said last.
    """
    functions = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if tool.get("type", "function") == "function" and isinstance(function, Mapping):
            functions[str(function.get("name"))] = _without_null(function)
    return list(functions.values())


def aliases_of(functions: Sequence[JSON]) -> Aliases:
    return Aliases(str(function.get("name")) for function in functions)


def tools_for(functions: Sequence[JSON], aliases: Aliases) -> list[JSON]:
    """As the engine takes them."""
    return [{"type": "function", "function": aliases.rename(f)} for f in functions]


def choice_for(choice: str | JSON | None, aliases: Aliases) -> str | JSON | None:
    """A tool choice under the names for the model."""
    if not isinstance(choice, Mapping):
        return choice
    choice = {**choice, **choice.get("allowed_tools", {})}
    if isinstance(choice.get("tools"), list):
        return {**choice, "tools": tools_for(functions_of(choice["tools"]), aliases)}
    return {**choice, "function": aliases.rename(choice.get("function", choice))}


def messages_for(messages: Sequence[JSON], aliases: Aliases) -> list[JSON]:
    """Chat messages as the engine takes them. Raises Problem."""
    return [message for i, m in enumerate(messages) for message in _message(i, m, aliases)]


def _message(index: int, given: JSON, aliases: Aliases) -> Iterator[JSON]:
    message = _without_null(given)
    role = message.get("role")
    if role == "function":  # the form before there were tools
        message = {**message, "role": "tool"}
    if role in ("system", "developer", "user", "tool", "function"):
        message = {"content": "", **message}
    if "content" in message:
        message = {**message, "content": text_of(message["content"], f"messages.{index}.content")}
    if isinstance(message.get("refusal"), str) and not message.get("content"):
        message = {**message, "content": message["refusal"]}
    if isinstance(message.get("name"), str):
        message = aliases.rename(message)
    calls = message.get("tool_calls")
    if isinstance(message.get("function_call"), Mapping) and not calls:
        calls = [message["function_call"]]
    if isinstance(calls, list):
        message = {**message, "tool_calls": [_call(call, aliases) for call in calls]}
    yield message


def _call(call: Any, aliases: Aliases) -> Any:
    if not isinstance(call, Mapping):
        return call
    function = call.get("function", call.get("custom", call))
    if not isinstance(function, Mapping):
        return call
    if "input" in function and "arguments" not in function:
        function = {**function, "arguments": {"input": function["input"]}}
    return {**call, "function": aliases.rename(function)}


def text_of(content: Any, param: str) -> Any:
    """A content's text: parts of text joined. Raises Problem for a picture, sound or file."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        key = _TEXT_KEYS.get(kind) if isinstance(kind, str) else None
        text = None if key is None else part.get(key)
        if not isinstance(text, str):
            where = f"{param}.{number}"
            raise Problem(
                400,
                f"{where}: a part of type {shown(kind)} cannot be read: gpt-oss reads text",
                code="unsupported_content",
                param=where,
            )
        texts.append(text)
    return "".join(texts)


def _without_null(value: JSON) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}

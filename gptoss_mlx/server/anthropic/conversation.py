"""A conversation, from Anthropic's messages of blocks to those that the engine renders.

Blocks that no text can stand for, such as pictures, are refused by name; kinds that are not known,
and those of Anthropic's own servers, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.aliases import Aliases
from gptoss_mlx.server.anthropic.thinking import unsealed
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.written import Written

JSON: TypeAlias = Mapping[str, Any]

BILLING = "x-anthropic-billing-header:"
"""Begins a line that Claude Code puts before its system prompt; it differs in every request, and
would have every prompt read anew."""

_BETWEEN = "\n\n"


def instructions(system: str | Sequence[JSON] | None) -> str | None:
    """The system prompt's text. Raises Problem."""
    blocks = [system] if isinstance(system, str) else _texts(system or (), "system")
    texts = [_without_billing(text) for text in blocks]
    return _BETWEEN.join(text for text in texts if text) or None


def chat_messages(messages: Sequence[JSON], aliases: Aliases, written: Written) -> list[JSON]:
    """The messages as the engine takes them. written: of earlier answers. Raises Problem."""
    if messages[-1].get("role") == "assistant":
        raise Problem(
            400,
            "messages: the last one is the assistant's, but an answer that is begun (prefill)"
            " cannot be continued: end with the user's",
            param="messages",
        )
    return [
        out for i, message in enumerate(messages) for out in _message(i, message, aliases, written)
    ]


def _message(index: int, message: JSON, aliases: Aliases, written: Written) -> Iterator[JSON]:
    role, where = message.get("role"), f"messages.{index}.content"
    blocks = _blocks(message.get("content"), where)
    if role == "user":
        yield from _user(blocks, where)
    elif role == "assistant":
        yield from _assistant(blocks, where, aliases, written)
    elif role == "system":
        yield {"role": "system", "content": _BETWEEN.join(_texts(blocks, where))}
    else:
        raise Problem(
            400,
            f"messages.{index}.role is {shown(role)}, but must be user, assistant or system",
            param=f"messages.{index}.role",
        )


def _blocks(content: object, where: str) -> Sequence[JSON]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and all(isinstance(block, Mapping) for block in content):
        return content
    raise Problem(400, f"{where} must be a text or a list of blocks", param=where)


def _user(blocks: Sequence[JSON], where: str) -> Iterator[JSON]:
    """Texts and results of tools, in their order; at least one message."""
    texts: list[str] = []
    results = 0
    for i, block in enumerate(blocks):
        if block.get("type") != "tool_result":
            texts += _text(block, f"{where}.{i}")
            continue
        if texts:
            yield {"role": "user", "content": _BETWEEN.join(texts)}
            texts = []
        results += 1
        yield _result(block, f"{where}.{i}")
    if texts or not results:
        yield {"role": "user", "content": _BETWEEN.join(texts)}


def _result(block: JSON, where: str) -> JSON:
    inner = _blocks(block.get("content"), f"{where}.content")
    text = _BETWEEN.join(_texts(inner, f"{where}.content"))
    if block.get("is_error") is True:
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _assistant(
    blocks: Sequence[JSON], where: str, aliases: Aliases, written: Written
) -> Iterator[JSON]:
    """Reasoning, text and calls, as the model wrote them: a text before calls is a preamble."""
    texts: list[str] = []
    calls: list[JSON] = []
    for i, block in enumerate(blocks):
        kind = block.get("type")
        if calls and kind in ("text", "thinking"):
            yield _said(texts, calls)
            texts, calls = [], []
        if kind == "thinking":
            if reasoning := block.get("thinking") or unsealed(block.get("signature")):
                yield {"role": "assistant", "content": None, "reasoning": reasoning}
        elif kind == "text":
            texts += filter(None, _text(block, f"{where}.{i}"))
        elif kind == "tool_use":
            calls.append(_call(block, aliases, written))
    if texts or calls:
        yield _said(texts, calls)


def _said(texts: list[str], calls: list[JSON]) -> JSON:
    return {
        "role": "assistant",
        "content": _BETWEEN.join(texts) if texts else None,
        "tool_calls": calls,
    }


def _call(block: JSON, aliases: Aliases, written: Written) -> JSON:
    id, given = block.get("id"), block.get("input") or {}
    text = written.find(id, given) if isinstance(given, Mapping) else None
    function = {"name": block.get("name"), "arguments": given if text is None else text}
    return {"id": id, "type": "function", "function": aliases.rename(function)}


def _texts(blocks: Sequence[JSON], where: str) -> list[str]:
    return [text for i, block in enumerate(blocks) for text in _text(block, f"{where}.{i}")]


def _text(block: JSON, where: str) -> list[str]:
    """The text of a block; none of kinds that are left out. Raises Problem."""
    kind = block.get("type")
    if kind == "text":
        if not isinstance(block.get("text"), str):
            raise Problem(400, f"{where}.text must be a text", param=f"{where}.text")
        return [block["text"]]
    if kind == "document":
        return [_document(block, where)]
    if kind == "search_result":
        content = _texts(_blocks(block.get("content"), f"{where}.content"), f"{where}.content")
        return [_titled(block, ("title", "source"), content)]
    if kind == "image":
        raise _unreadable("an image", where)
    return []


def _document(block: JSON, where: str) -> str:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, Mapping) else None
    if isinstance(source, Mapping) and kind == "text" and isinstance(source.get("data"), str):
        content = [source["data"]]
    elif isinstance(source, Mapping) and kind == "content":
        inner = f"{where}.source.content"
        content = _texts(_blocks(source.get("content"), inner), inner)
    else:
        raise _unreadable(f"a document from {shown(kind)}", where)
    return _titled(block, ("title", "context"), content)


def _titled(block: JSON, names: Sequence[str], content: Sequence[str]) -> str:
    head = [block[name] for name in names if isinstance(block.get(name), str)]
    return _BETWEEN.join(text for text in (*head, *content) if text)


def _unreadable(what: str, where: str) -> Problem:
    return Problem(
        400,
        f"{where}: {what} cannot be read: gpt-oss reads text",
        code="unsupported_content",
        param=where,
    )


def _without_billing(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(BILLING) else text

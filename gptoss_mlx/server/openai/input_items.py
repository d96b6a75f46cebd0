"""Input items: what a response is asked with, as the store lists them and as chat messages.

Calls that this server ran are read again with what they gave. Other items of what OpenAI's own
servers run are left out; those that nobody knows are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from gptoss_mlx.engine.options import Message
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.history import JSON, text_of
from gptoss_mlx.server.openai.mcp_items import MCP_KINDS, Approvals, check_item, result_of
from gptoss_mlx.server.openai.output_items import WRITTEN, new_id
from gptoss_mlx.server.openai.response_tools import Toolbox
from gptoss_mlx.server.openai.sealed_calls import served_call
from gptoss_mlx.server.openai.sealed_reasoning import unseal
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.spec.recipients import FUNCTIONS, type_of

Lookup: TypeAlias = Callable[[str], JSON | None]
"""The item of an id, if there is one."""

_LEFT_OUT = (
    "additional_tools",
    "apply_patch_call",
    "apply_patch_call_output",
    "computer_call",
    "computer_call_output",
    "configuration_update",
    "file_search_call",
    "ghost_snapshot",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "program",
    "program_output",
    "shell_call",
    "shell_call_output",
    "tool_search_call",
    "tool_search_output",
)
_SERVED = ("code_interpreter_call", "web_search_call")
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "code_interpreter_call": "ci",
    "web_search_call": "ws",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
}
"""Kind of an item -> how its ids begin."""


def items_of(given: Sequence[JSON], lookup: Lookup) -> list[JSON]:
    """The input as items with ids, references resolved. Raises Problem."""
    items = (_item(f"input.{i}", item, lookup) for i, item in enumerate(given))
    return [item for item in items if item is not None]


def _item(where: str, given: JSON, lookup: Lookup) -> JSON | None:
    item = {key: value for key, value in given.items() if value is not None}
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "item_reference" or (kind is None and "id" in item):
        if (found := lookup(str(item.get("id")))) is None:
            raise Problem(400, f"{where}: no item has the id {shown(item.get('id'))}", param=where)
        return found
    if kind in _LEFT_OUT:
        return None
    item.pop(WRITTEN, None)
    if (known := _known(item, lookup)) is not None:
        return known
    if not isinstance(kind, str) or kind not in _PREFIXES:
        raise Problem(400, f"{where}: items of type {shown(kind)} cannot be read", param=where)
    item = {**item, "type": kind}
    if kind in _SERVED and (served := served_call(item)) is None:
        return None
    elif kind in _SERVED:
        item[WRITTEN] = served
    if kind in MCP_KINDS:
        check_item(where, item)
    if not isinstance(item.get("id"), str):
        item["id"] = new_id(_PREFIXES[kind])
    if kind != "reasoning" and kind not in MCP_KINDS:
        item.setdefault("status", "completed")
    if kind == "message":
        item["content"] = _parts(item)
    return item


def _known(item: JSON, lookup: Lookup) -> JSON | None:
    """The item as it is kept, where the model wrote more than its client has, who gives it back."""
    id = item.get("id")
    found = lookup(id) if isinstance(id, str) else None
    if found is None or WRITTEN not in found:
        return None
    return found if _heard(found) == _heard(item) else None


def _heard(item: JSON) -> object:
    """What of an item must be the same for it to be the one that is kept."""
    content = item.get("content")
    if content is not None:
        return "".join(_texts(content))
    return [item.get(key) for key in ("code", "name", "arguments", "output", "error")]


def _parts(message: JSON) -> Any:
    """A message's content, a text as a part."""
    content = message.get("content", "")
    if not isinstance(content, str):
        return content
    if message.get("role") == "assistant":
        return [{"type": "output_text", "text": content, "annotations": []}]
    return [{"type": "input_text", "text": content}]


def without_orphans(items: Sequence[JSON]) -> list[JSON]:
    """The items without outputs of calls that are not among them."""
    calls = {item.get("call_id") for item in items if item["type"] in _CALLS}
    return [i for i in items if i["type"] not in _OUTPUTS or i.get("call_id") in calls]


def is_instruction(item: JSON) -> bool:
    return item["type"] == "message" and item.get("role") in ("system", "developer")


def messages_of(items: Sequence[JSON], tools: Toolbox) -> list[Message]:
    """The chat messages of items, as the engine takes them. Raises Problem."""
    thread = _Thread(tools, Approvals(items))
    for index, item in enumerate(items):
        thread.read(f"input.{index}", item)
    return thread.messages


class _Thread:
    """Messages in the making. Reasoning, a preamble and calls that follow each other are one."""

    def __init__(self, tools: Toolbox, approvals: Approvals) -> None:
        self.messages: list[Message] = []
        self._tools, self._approvals = tools, approvals
        self._open: dict[str, Any] | None = None  # the assistant's message that may go on
        self._calls: set[str] = set()

    def read(self, where: str, item: JSON) -> None:
        kind = item["type"]
        if kind == "reasoning":
            if text := "".join(_reasoning(item)):
                self._assistant("reasoning", text, ("reasoning", "content", "tool_calls"))
        elif kind in _CALLS:
            self._call(where, item)
        elif kind in _OUTPUTS:
            self._output(where, item)
        elif kind in _SERVED:
            written = item[WRITTEN]
            self._ran(item["id"], written["recipient"], written["arguments"], written["result"])
        elif kind in MCP_KINDS:
            self._of_server(item)
        elif item.get("role") == "assistant":
            self._said(where, item)
        elif item.get("role") in ("system", "developer", "user"):
            self._open = None
            content = _text(f"{where}.content", item["content"])
            self.messages.append({"role": item["role"], "content": content})
        else:
            role = shown(item.get("role"))
            raise Problem(400, f"{where}: a message's role cannot be {role}", param=where)

    def _assistant(self, key: str, value: Any, parted_by: Sequence[str]) -> dict[str, Any]:
        """Add to the assistant's message, or begin one where it has what parts them."""
        if self._open is None or any(name in self._open for name in parted_by):
            self._open = {"role": "assistant"}
            self.messages.append(self._open)
        self._open[key] = value
        return self._open

    def _said(self, where: str, item: JSON) -> None:
        written = item.get(WRITTEN)
        text = written["text"] if written else _text(f"{where}.content", item["content"])
        if not text:
            return
        message = self._assistant("content", text, ("content", "tool_calls"))
        if item.get("phase") == "commentary":
            message["channel"] = "commentary"
        elif item.get("phase") == "final_answer":
            self._open = None

    def _call(self, where: str, item: JSON) -> None:
        id = _call_id(where, item)
        self._calls.add(id)
        if item["type"] == "custom_tool_call":
            text = _text(f"{where}.input", item.get("input", ""))
            arguments = json.dumps({"input": text}, ensure_ascii=False)
        else:
            arguments = _text(f"{where}.arguments", item.get("arguments", ""))
        function = {"name": self._tools.alias(item), "arguments": arguments}
        calls = [] if self._open is None else self._open.get("tool_calls", [])
        self._assistant("tool_calls", [*calls, {"id": id, "function": function}], ())

    def _of_server(self, item: JSON) -> None:
        """A call of a server's tool, which stands where a person was asked about it."""
        call: JSON | None = item
        if item["type"] == "mcp_approval_request":
            call = self._approvals.call(item)
        elif item["type"] != "mcp_call" or self._approvals.is_known(item):
            return
        result = self._approvals.refusal(item) if call is None else result_of(call)
        recipient = self._tools.servers.recipient(item["server_label"], item["name"])
        if call is not None and WRITTEN in call:
            recipient = call[WRITTEN]["recipient"]
        self._ran(item["id"], recipient, item["arguments"], result)

    def _ran(self, id: str, recipient: str, arguments: str, result: str) -> None:
        """A call that the server ran, and what it gave."""
        function = {"name": recipient.removeprefix(FUNCTIONS), "arguments": arguments}
        call = {"id": id, "type": type_of(recipient), "function": function}
        self._assistant("tool_calls", [call], ("tool_calls",))
        self._open = None
        self.messages.append({"role": "tool", "tool_call_id": id, "content": result})

    def _output(self, where: str, item: JSON) -> None:
        id = _call_id(where, item)
        if id not in self._calls:
            said = f"{where}: no earlier call has the call_id {shown(id)}"
            raise Problem(400, said, param=where)
        self._open = None
        content = _text(f"{where}.output", item.get("output", ""))
        self.messages.append({"role": "tool", "tool_call_id": id, "content": content})


def _text(where: str, value: Any) -> str:
    """A text, or parts of text joined. Raises Problem."""
    text = text_of(value, where)
    if not isinstance(text, str):
        said = f"{where} is {shown(text)}, but must be a text or parts of text"
        raise Problem(400, said, param=where)
    return text


def _call_id(where: str, item: JSON) -> str:
    id = item.get("call_id")
    if not isinstance(id, str):
        raise Problem(400, f"{where}: call_id is {shown(id)}, but must be a text", param=where)
    return id


def _reasoning(item: JSON) -> Iterator[str]:
    """Its text as the model wrote it; a summary stands in where that is all there is."""
    sealed = item.get("encrypted_content")
    if parts := item.get("content"):
        yield from _texts(parts)
    elif isinstance(sealed, str) and (text := unseal(sealed)) is not None:
        yield text
    else:
        yield from _texts(item.get("summary"))


def _texts(parts: Any) -> Iterator[str]:
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]

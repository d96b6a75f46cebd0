"""MCP items that a client sends: calls with what they gave, requests for approval and the answers.

What a server listed is no message of its own: the model is offered what is there now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.call_writers import INTERRUPTED
from gptoss_mlx.server.openai.output_items import WRITTEN
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.tools.approval import DECLINED

UNANSWERED = "The user was asked about this call, and has not answered."
"""What the model reads of a call that nobody has agreed to or declined."""

MCP_KINDS = ("mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response")

_TEXTS: Mapping[str, tuple[str, ...]] = {
    "mcp_list_tools": ("server_label",),
    "mcp_call": ("server_label", "name", "arguments"),
    "mcp_approval_request": ("server_label", "name", "arguments"),
    "mcp_approval_response": ("approval_request_id",),
}


@dataclass(frozen=True)
class ApprovedCall:
    """A call that a person has agreed to, and that has not run. request: the id of the request."""

    request: str
    label: str
    name: str
    arguments: str


class Approvals:
    """What was asked for in a conversation, what was answered, and what has run since."""

    def __init__(self, items: Sequence[JSON]) -> None:
        self._requests = _by(items, "mcp_approval_request", "id")
        self._answers = _by(items, "mcp_approval_response", "approval_request_id")
        self._calls = _by(items, "mcp_call", "approval_request_id")

    def is_known(self, item: JSON) -> bool:
        """Whether a call stands where it was asked for, instead of where it has run."""
        return item.get("approval_request_id") in self._requests

    def call(self, request: JSON) -> JSON | None:
        """The call that a request became."""
        return self._calls.get(request["id"])

    def refusal(self, request: JSON) -> str:
        """What the model reads of a request that became no call."""
        answer = self._answers.get(request["id"])
        if answer is None:
            return UNANSWERED
        if answer["approve"]:
            return INTERRUPTED
        reason = answer.get("reason")
        return f"{DECLINED} {reason}" if isinstance(reason, str) and reason else DECLINED

    def due(self, given: Sequence[JSON]) -> list[ApprovedCall]:
        """The calls to run, by the answers among the items of one request. Raises Problem."""
        found: dict[str, ApprovedCall] = {}
        for answer in (item for item in given if item["type"] == "mcp_approval_response"):
            id = answer["approval_request_id"]
            if (request := self._requests.get(id)) is None:
                said = f"no approval request has the id {shown(id)}: send it back, or name the"
                raise Problem(400, f"{said} response that it is from", param="input")
            is_first = self._answers[id] is answer
            if answer["approve"] and is_first and id not in self._calls:
                texts = (request[key] for key in _TEXTS["mcp_approval_request"])
                found[id] = ApprovedCall(id, *texts)
        return list(found.values())


def check_item(where: str, item: JSON) -> None:
    """Raises Problem."""
    for key in _TEXTS[item["type"]]:
        if not isinstance(item.get(key), str):
            said = f"{where}.{key} is {shown(item.get(key))}, but must be a text"
            raise Problem(400, said, param=where)
    if item["type"] == "mcp_approval_response" and not isinstance(item.get("approve"), bool):
        said = f"{where}.approve is {shown(item.get('approve'))}, but must be true or false"
        raise Problem(400, said, param=where)


def result_of(call: JSON) -> str:
    """The text that the model read of a call."""
    if (written := call.get(WRITTEN)) is not None:
        return str(written["result"])
    output, error = call.get("output"), call.get("error")
    if isinstance(output, str):
        return output
    if isinstance(error, Mapping):
        error = error.get("message") or _joined(error.get("content"))
    return error if isinstance(error, str) and error else INTERRUPTED


def _joined(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _by(items: Sequence[JSON], kind: str, key: str) -> dict[str, JSON]:
    """Items of a kind by the id that they have under a key; of several the first one counts."""
    found = (item for item in reversed(items) if item["type"] == kind)
    return {item[key]: item for item in found if isinstance(item.get(key), str)}

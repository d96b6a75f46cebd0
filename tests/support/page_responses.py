"""The events of scripted responses, for the page: calls of the server's tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.page_server import Chunk, Gate, Step

CONTAINER = "cntr_1"


def begun() -> list[Step]:
    return [{"type": "response.created", "response": {"id": "resp_1"}}]


def reasoned(index: int, text: str) -> list[Step]:
    return [
        added(index, {"type": "reasoning", "id": f"rs_{index}"}),
        {"type": "response.reasoning_text.delta", "output_index": index, "delta": text},
    ]


def computed(
    index: int,
    code: str,
    logs: str = "",
    images: Sequence[str] = (),
    status: str = "completed",
    asked: Gate | None = None,
) -> list[Step]:
    """A call of python. asked: opened by a person's word, until which it waits."""
    item = {
        "type": "code_interpreter_call",
        "id": f"ci_{index}",
        "code": code,
        "container_id": CONTAINER,
        "status": status,
        "outputs": [
            {"type": "logs", "logs": logs},
            *({"type": "image", "url": address(id)} for id in images),
        ],
    }
    place = {"output_index": index, "item_id": item["id"]}
    waits: list[Step] = []
    if asked is not None:
        waits = [{"type": "response.tool_approval.requested", **place, "tool": "python"}, asked]
    return [
        added(index, {**item, "code": "", "status": "in_progress", "outputs": None}),
        {"type": "response.code_interpreter_call_code.delta", **place, "delta": code},
        *waits,
        {"type": "response.code_interpreter_call.interpreting", **place},
        done(index, item),
    ]


def browsed(index: int, action: Chunk, status: str = "completed") -> list[Step]:
    item = {"type": "web_search_call", "id": f"ws_{index}", "action": action, "status": status}
    return [
        added(index, {**item, "status": "in_progress"}),
        {"type": "response.web_search_call.searching", "output_index": index},
        done(index, item),
    ]


def called_server(
    index: int,
    arguments: str,
    output: str | None,
    error: str = "",
    asked: Gate | None = None,
    names: tuple[str, str] = ("notes", "find"),
) -> list[Step]:
    """A call of a server's tool. asked: opened by a person's word, until which it waits."""
    failed = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": error}]}
    item = {
        **{"type": "mcp_call", "id": f"mcp_{index}", "server_label": names[0], "name": names[1]},
        **{"arguments": arguments, "output": output, "error": failed if error else None},
        "status": "failed" if error else "completed",
    }
    place = {"output_index": index, "item_id": item["id"]}
    waits: list[Step] = []
    if asked is not None:
        waits = [{"type": "response.tool_approval.requested", **place, "tool": names[0]}, asked]
    begun = {**item, "arguments": "", "status": "in_progress", "output": None, "error": None}
    return [
        added(index, begun),
        {"type": "response.mcp_call_arguments.delta", **place, "delta": arguments},
        {"type": "response.mcp_call_arguments.done", **place, "arguments": arguments},
        *waits,
        done(index, item),
    ]


def answered(index: int, *pieces: str, notes: Sequence[Chunk] = ()) -> list[Step]:
    place = {"output_index": index, "content_index": 0}
    return [
        added(index, {"type": "message", "id": f"msg_{index}"}),
        *({"type": "response.output_text.delta", **place, "delta": piece} for piece in pieces),
        *(
            {"type": "response.output_text.annotation.added", **place, "annotation": note}
            for note in notes
        ),
        done(index, {"type": "message", "id": f"msg_{index}"}),
    ]


def completed(output: Sequence[Chunk] = (), status: str = "completed") -> Step:
    usage = {
        "input_tokens": 40,
        "output_tokens": 12,
        "total_tokens": 52,
        "output_tokens_details": {"reasoning_tokens": 3},
    }
    response = {"id": "resp_1", "status": status, "usage": usage, "output": [*output]}
    return {"type": f"response.{status}", "response": response}


def made(id: str, name: str) -> Chunk:
    """The annotation of a file that python made."""
    return {
        "type": "container_file_citation",
        "container_id": CONTAINER,
        "file_id": id,
        "filename": name,
        "start_index": 0,
        "end_index": 0,
    }


def address(id: str) -> str:
    return f"http://elsewhere.test/v1/containers/{CONTAINER}/files/{id}/content"


def added(index: int, item: Any) -> Step:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(index: int, item: Any) -> Step:
    return {"type": "response.output_item.done", "output_index": index, "item": item}

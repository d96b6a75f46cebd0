"""Responses asked of a running server, read strictly by OpenAI's own types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support.served import Served, data_of

PATH = "/v1/responses"
CALL = " to=functions.{}<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
PREAMBLE = "<|channel|>commentary<|message|>"
ENDS = ("response.completed", "response.incomplete", "response.failed")

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def function(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "additionalProperties": False}
    return {"type": "function", "name": name, "parameters": parameters, "strict": False}


def ask(served: Served, input: Any = "hi", **body: Any) -> Response:
    response = served.post(PATH, {"input": input, **body})
    assert response.status_code == 200, response.text
    return Response.model_validate(response.json(), strict=True)


def events(served: Served, input: Any = "hi", **body: Any) -> list[dict[str, Any]]:
    """A stream's events: numbered, each by the type its frame names, with one end at the end."""
    lines = served.stream(PATH, {"input": input, "stream": True, **body})
    found = data_of(lines)
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == types_of(found)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [name for name in names if name in ENDS] == [names[-1]]
    for event in found:
        _EVENT.validate_python(event, strict=True)
    return found


def types_of(found: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in found]


def joined(found: Sequence[dict[str, Any]], type: str) -> str:
    """The text of the deltas of a type."""
    return "".join(event["delta"] for event in found if event["type"] == f"response.{type}.delta")


def anonymous(value: Any) -> Any:
    """A value with its ids and times made equal, to be compared."""
    if isinstance(value, list):
        return [anonymous(item) for item in value]
    if not isinstance(value, dict):
        return value
    hidden = ("id", "item_id", "call_id", "created_at", "completed_at")
    return {key: "-" if key in hidden else anonymous(item) for key, item in value.items()}

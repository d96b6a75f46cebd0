"""The response format: what the answer must be, as the prompt says it and a grammar enforces it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_mlx.errors import MessageError
from gptoss_mlx.files.jsonfile import shown


@dataclass(frozen=True)
class ResponseFormat:
    """JSON that satisfies a schema. name, description: for the prompt."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


def read_response_format(response_format: Any) -> ResponseFormat | None:
    """Read OpenAI's response_format, also in the flat form of the Responses API.

    None if any text will do. Raises MessageError.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise MessageError("response_format: expected an object with a type")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ResponseFormat("json_object", {"type": "object"})
    if kind != "json_schema":
        raise MessageError(
            f"response_format: type {shown(kind)} is unknown: use text, json_object or json_schema"
        )
    inner = response_format.get("json_schema", response_format)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
        raise MessageError("response_format: json_schema needs a schema that is an object")
    name, description = inner.get("name", "response"), inner.get("description")
    if not isinstance(name, str) or not (description is None or isinstance(description, str)):
        raise MessageError("response_format: name and description must be texts")
    return ResponseFormat(name, inner["schema"], description or "")

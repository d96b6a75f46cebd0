"""Anthropic's messages as a client asks for them, reads them strictly and adds a stream up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.support.scripted_model import FINAL, Scripted
from tests.support.served import Served, data_of, serving

PATH = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
CALL = " to=functions.{}<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
HELLO = f"{FINAL}Hello é \U0001fadc.<|return|>"
EVENTS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "input_schema": {"type": "object", "properties": properties}}


def ask(served: Served, messages: Any = HI, **body: Any) -> dict[str, Any]:
    response = served.post(PATH, {"messages": messages, "max_tokens": 1000, **body})
    assert response.status_code == 200, response.text
    Message.model_validate_json(response.content, strict=True)
    found: dict[str, Any] = response.json()
    return found


def told(served: Served, messages: Any = HI, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each of which bears its type as its name."""
    body = {"messages": messages, "max_tokens": 1000, "stream": True, **body}
    lines = served.stream(PATH, body)
    values = data_of(lines)
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == [value["type"] for value in values]
    for value in values:
        if value["type"] not in ("ping", "error"):
            EVENTS.validate_json(json.dumps(value), strict=True)
    return values


def summed(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of a stream, which checks its order."""
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    message: dict[str, Any] = events[0]["message"]
    is_open, inputs = False, ""
    for event in events[2:-2]:
        if event["type"] == "ping":
            continue
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(message["content"])
            is_open, inputs = True, ""
            message["content"].append(event["content_block"])
            continue
        assert is_open
        assert event["index"] == len(message["content"]) - 1
        block = message["content"][-1]
        if event["type"] == "content_block_stop":
            is_open = False
            if block["type"] == "tool_use":
                block["input"] = json.loads(inputs)
            continue
        delta = event["delta"]
        kind = delta["type"].removesuffix("_delta")
        if kind == "input_json":
            inputs += delta["partial_json"]
        else:
            block[kind] += delta[kind]
    assert not is_open
    return {**message, **events[-2]["delta"], "usage": events[-2]["usage"]}


def prompt_of(messages: Any = HI, **body: Any) -> str:
    """What the model reads of a request."""
    scripted = Scripted(HELLO)
    with serving(scripted) as served:
        ask(served, messages, **body)
    decoder = scripted.engine.tokenizer.decoder()
    return "".join(decoder.push(id) for id in scripted.samplings[0][2])

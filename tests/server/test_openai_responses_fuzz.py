"""Requests of responses with anything in any place: read, or refused in one line."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.server.openai.response_object import begun
from gptoss_mlx.server.openai.response_store import ResponseStore
from gptoss_mlx.server.openai.responses_request import ResponsesRequest
from gptoss_mlx.server.openai.sealed_calls import seal_call
from gptoss_mlx.server.toolkit import Toolkit
from tests.support.responses import function
from tests.support.scripted_model import Scripted
from tests.support.served_tools import FakePython

JUNK = [None, 0, -1, 1.5, True, "", "x", "<|end|>", [], {}, [[]], [{}], {"type": 5}, "é" * 300]
KINDS = ["function_call", "reasoning", "message", "item_reference", "namespace", "custom"]
KINDS += ["code_interpreter_call", "web_search_call", "code_interpreter", "web_search"]
CUSTOM = {"type": "custom", "name": "patch", "format": {"syntax": "lark", "definition": "start:"}}
SEALED = seal_call({"recipient": "browser.search", "arguments": "{}", "result": "<|end|>"})
KIT = Toolkit(
    dict.fromkeys(("python", "browser"), lambda folder, encoding: FakePython(folder, str, []))
)
OUTPUT = [{"type": "input_text", "text": "42"}]
BODY: dict[str, Any] = {
    "input": [
        {"role": "developer", "content": "Short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "reasoning", "encrypted_content": "gptoss1.SG0u", "summary": []},
        {"role": "assistant", "content": "I look.", "phase": "commentary"},
        {"type": "function_call", "name": "f", "call_id": "a", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": OUTPUT},
        {"type": "custom_tool_call", "name": "patch", "call_id": "b", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "y"},
        {
            "type": "code_interpreter_call",
            "id": "ci_1",
            "code": "1",
            "container_id": "cntr_1",
            "outputs": [{"type": "logs", "logs": "1"}],
        },
        {"type": "web_search_call", "id": "ws_1", "action": {}, "encrypted_content": SEALED},
        {"type": "code_interpreter_call", "encrypted_content": "gptoss1.e30="},
    ],
    "tools": [
        {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "1g"}},
        {"type": "web_search", "filters": {"allowed_domains": []}},
        function("f"),
        CUSTOM,
        {"type": "namespace", "name": "n", "tools": [CUSTOM]},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [CUSTOM]},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys, from the outside in."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@pytest.mark.parametrize("seed", range(8))
def test_a_request_is_read_or_refused_in_one_line(seed: int) -> None:
    draw, scripted, refusals = random.Random(seed), Scripted(), list[str]()
    for _ in range(60):
        body = copy.deepcopy(BODY)
        for _ in range(draw.randint(1, 3)):
            container, key = draw.choice(list(places(body)))
            if draw.random() < 0.25:
                del container[key]
            else:
                container[key] = copy.deepcopy(draw.choice(JUNK + KINDS))
        store = ResponseStore()
        try:
            request = ResponsesRequest.model_validate_json(json.dumps(body))
            asked = request.read(store, KIT)
            ask = asked.ask()
            store.keep(begun("resp_1", 0, "m", request.echo()), asked.items)
            scripted.engine.stream(ask.prompt, **ask.options)  # checks it, and begins when read
        except GptOssError as error:
            refusals.append(str(error))
        except ValidationError:
            pass
    assert refusals
    assert [text for text in refusals if "\n" in text or len(text) > 400] == []

"""MCP servers through the Responses API: lists, calls, and what the model reads of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from gptoss_mlx.tools.agent import Agent
from tests.support.responses import PATH, ask, events, function, types_of
from tests.support.scripted_model import Scripted, encoding
from tests.support.served_mcp import ASKED, FORGED, ODD, RAN, mcp_kit, written
from tests.support.served_tools import DONE, THOUGHT, check_documented, prompts, tooled
from tests.tools.mcp.conftest import Start, odd

CALL_EVENTS = [
    "response.output_item.added",
    "response.mcp_call.in_progress",
    "response.mcp_call_arguments.delta",
    "response.mcp_call_arguments.done",
    "response.mcp_call.completed",
    "response.output_item.done",
]
LIST_EVENTS = [
    "response.output_item.added",
    "response.mcp_list_tools.in_progress",
    "response.mcp_list_tools.completed",
    "response.output_item.done",
]


def of_item(found: list[dict[str, Any]], index: int) -> list[str]:
    return list(dict.fromkeys(e["type"] for e in found if e.get("output_index") == index))


def test_a_call_is_run_and_the_model_reads_what_it_gave() -> None:
    scripted = Scripted(written("odd_echo", text_="hello"), DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        found = events(served, tools=[ODD])
    check_documented(found)
    assert of_item(found, 0) == LIST_EVENTS
    assert of_item(found, 1) == CALL_EVENTS
    listed, call, message = found[-1]["response"]["output"]
    assert listed["server_label"] == "odd"
    assert "echo" in [tool["name"] for tool in listed["tools"]]
    assert {
        key: call[key] for key in ("server_label", "name", "arguments", "output", "status")
    } == {
        "server_label": "odd",
        "name": "echo",
        "arguments": '{"text_": "hello"}',
        "output": "hello",
        "status": "completed",
    }
    assert message["content"][0]["text"] == "Done."
    ran = RAN.format(name="odd_echo", arguments='{"text_": "hello"}', result="hello")
    assert prompts(scripted)[-1].endswith(ran + "<|start|>assistant")

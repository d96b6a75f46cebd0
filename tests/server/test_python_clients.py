"""Libraries on top of OpenAI's API, unmodified: LangChain and LiteLLM."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.root import ROOT
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "hi"}]
CALL = (
    f"{ANALYSIS}I look.{AGAIN} to=functions.f<|channel|>commentary <|constrain|>json<|message|>"
    '{"a": 7}<|call|>'
)
ANSWER = f"{ANALYSIS}Hm.{AGAIN}{FINAL}It is 17.<|return|>"
OBJECT = f'{FINAL}{{"a": 3}}<|return|>'
SCHEMA: dict[str, Any] = {
    "title": "found",
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
F = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


@pytest.mark.parametrize("library", ["langchain_openai", "litellm"])
def test_it_is_used_as_it_is(library: str) -> None:
    """In a process of its own: these libraries leave event loops open."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    with serving(Scripted(CALL, ANSWER, ANSWER, OBJECT)) as served:
        code = f"from {__name__} import {library}; {library}({served.url!r})"
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def langchain_openai(url: str) -> None:
    import langchain_openai as library
    from langchain_core.messages import HumanMessage, ToolMessage

    base: Any = {"base_url": f"{url}/v1", "api_key": "-", "model": "scripted"}
    chat = library.ChatOpenAI(**base, max_retries=0)
    called = chat.bind_tools([F]).invoke("hi")
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("f", {"a": 7})
    history = [HumanMessage("hi"), called, ToolMessage("17", tool_call_id=call["id"])]
    assert chat.bind_tools([F]).invoke(history).content == "It is 17."
    assert "".join(str(part.content) for part in chat.stream("hi")) == "It is 17."
    assert chat.with_structured_output(SCHEMA, method="json_schema").invoke("hi") == {"a": 3}
    with pytest.raises(Exception, match="gpt-9"):
        library.ChatOpenAI(**{**base, "model": "gpt-9"}, max_retries=0).invoke("hi")


def litellm(url: str) -> None:
    import litellm as library

    library.suppress_debug_info = True
    asked: dict[str, Any] = {
        "model": "openai/scripted",
        "api_base": f"{url}/v1",
        "api_key": "-",
        "num_retries": 0,
    }
    message = library.completion(messages=HI, tools=[F], **asked).choices[0].message
    assert message.reasoning_content == "I look."
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"a": 7}
    result = {"role": "tool", "tool_call_id": call.id, "content": "17"}
    history = [*HI, message.model_dump(), result]
    answer = library.completion(messages=history, tools=[F], **asked)
    assert answer.choices[0].message.content == "It is 17."

    async def streamed() -> str:
        parts = await library.acompletion(messages=HI, stream=True, **asked)
        return "".join([part.choices[0].delta.content or "" async for part in parts])

    assert asyncio.run(streamed()) == "It is 17."
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    found = library.completion(messages=HI, response_format=form, **asked)
    assert json.loads(found.choices[0].message.content) == {"a": 3}
    with pytest.raises(library.NotFoundError, match="gpt-9"):
        library.completion(messages=HI, **{**asked, "model": "openai/gpt-9"})

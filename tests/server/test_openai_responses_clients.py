"""Responses by their real clients: OpenAI's SDK and its agents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.responses import CALL, function
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import Served, serving

SUMS = function("add", a={"type": "integer"}, b={"type": "integer"})
CALLED = f"{ANALYSIS}I add.{AGAIN}" + CALL.format("add", '{"a": 2, "b": 3}')
ANSWER = f"{ANALYSIS}Done.{AGAIN}{FINAL}It is 5.<|return|>"


class Sum(BaseModel):
    sum: int
    unit: str


@contextmanager
def sdk(*replies: str) -> Iterator[tuple[openai.OpenAI, Served]]:
    with (
        serving(Scripted(*replies)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client, served


def test_the_sdk_makes_a_round_with_a_tool_and_manages_what_is_kept() -> None:
    with sdk(CALLED, ANSWER) as (client, _):
        first = client.responses.create(model="scripted", input="2 + 3?", tools=[SUMS])  # type: ignore[list-item]
        (call,) = (item for item in first.output if item.type == "function_call")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
        second = client.responses.create(
            model="scripted", input=[result], previous_response_id=first.id
        )
        assert second.output_text == "It is 5."
        assert client.responses.retrieve(second.id).output_text == "It is 5."
        pages = client.responses.input_items.list(second.id, limit=2, order="asc")
        kinds = [item.type for item in pages]  # follows the pages
        assert kinds == ["message", "reasoning", "function_call", "function_call_output"]
        assert client.responses.cancel(second.id).status == "completed"
        client.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(second.id)


def test_the_sdks_stream_adds_up_to_the_response() -> None:
    with (
        sdk(CALLED, ANSWER) as (client, _),
        client.responses.stream(
            model="scripted", input="2 + 3?", tools=[SUMS], reasoning={"summary": "auto"}
        ) as stream,  # type: ignore[list-item]
    ):
        arguments = [e for e in stream if e.type == "response.function_call_arguments.delta"]
        assert arguments[-1].snapshot == '{"a": 2, "b": 3}'
        final = stream.get_final_response()
        assert [item.type for item in final.output] == ["reasoning", "function_call"]
        assert final.output[1].parsed_arguments is None  # type: ignore[union-attr]
        with client.responses.stream(model="scripted", input="x") as text:
            snapshots = [e.snapshot for e in text if e.type == "response.output_text.delta"]
            assert snapshots[-1] == "It is 5."
            assert text.get_final_response().output_text == "It is 5."


def test_the_sdk_parses_a_text_format_streamed_and_not() -> None:
    reply = f'{FINAL}{{"sum": 5, "unit": "apples"}}<|return|>'
    with sdk(reply, reply) as (client, _):
        parsed = client.responses.parse(model="scripted", input="x", text_format=Sum)
        assert parsed.output_parsed == Sum(sum=5, unit="apples")
        with client.responses.stream(model="scripted", input="x", text_format=Sum) as stream:
            assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_the_sdk_reads_our_errors() -> None:
    with sdk() as (client, _):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="scripted", input="x", previous_response_id="resp_no")
        assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError) as missing:
            client.responses.create(model="gpt-9", input="x")
        assert missing.value.code == "model_not_found"


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_calls_its_function_and_answers(streamed: bool) -> None:
    """By OpenAI's agents SDK, which sends the whole history back in every turn."""
    agents = pytest.importorskip("agents", reason="openai-agents is not installed")
    agents.set_tracing_disabled(True)
    added: list[tuple[int, int]] = []

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        added.append((a, b))
        return a + b

    async def run(url: str) -> Any:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        async with client:
            model = agents.OpenAIResponsesModel(model="scripted", openai_client=client)
            agent = agents.Agent(
                name="a", instructions="Add.", model=model, tools=[agents.function_tool(add)]
            )
            if not streamed:
                return (await agents.Runner.run(agent, "2 + 3?")).final_output
            result = agents.Runner.run_streamed(agent, "2 + 3?")
            async for _ in result.stream_events():
                pass
            return result.final_output

    with serving(Scripted(CALLED, ANSWER)) as served:
        assert asyncio.run(run(served.url)) == "It is 5."
    assert added == [(2, 3)]

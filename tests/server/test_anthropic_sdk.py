"""Anthropic's own Python client, unmodified, against a served script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, beta_tool
from pydantic import BaseModel

from gptoss_mlx.server.policy import Policy
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import LONG, serving

MODEL: Any = "claude-local"
HI: Any = [{"role": "user", "content": "hi"}]
CALL = " to=functions.{}<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
THOUGHT = f"{ANALYSIS}Hm.{AGAIN}"
ANSWER = f"{THOUGHT}{FINAL}Hello é \U0001fadc!<|return|>"
ADAPTIVE: Any = {"type": "adaptive"}


@contextmanager
def client(scripted: Scripted, policy: Policy | None = None, **options: Any) -> Iterator[Anthropic]:
    options = {"api_key": "local", "max_retries": 0, "timeout": LONG, **options}
    with (
        serving(scripted, policy=policy) as served,
        Anthropic(base_url=served.url, **options) as made,
    ):
        yield made


def create(made: Anthropic, messages: Any = HI, **body: Any) -> Any:
    return made.messages.create(model=MODEL, max_tokens=1000, messages=messages, **body)


def test_a_message_and_its_request_id() -> None:
    with client(Scripted(ANSWER)) as made:
        message = create(made)
    assert message.content[0].text == "Hello é \U0001fadc!"
    assert (message.stop_reason, message.model) == ("end_turn", MODEL)
    assert str(message._request_id).startswith("req_")


def test_a_stream_accumulates_to_the_message() -> None:
    reply = THOUGHT + CALL.format("f", '{"a": {"b": [1, 2]}, "c": "d"}')
    tools: Any = [{"name": "f", "input_schema": {"type": "object"}}]
    with client(Scripted(ANSWER, reply)) as made:
        with made.messages.stream(
            model=MODEL, max_tokens=1000, messages=HI, thinking=ADAPTIVE
        ) as stream:
            assert "".join(stream.text_stream) == "Hello é \U0001fadc!"
            answer = stream.get_final_message()
        with made.messages.stream(model=MODEL, max_tokens=1000, messages=HI, tools=tools) as stream:
            kinds = [event.type for event in stream]
            called: Any = stream.get_final_message()
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.usage.input_tokens > 0
    assert called.content[-1].input == {"a": {"b": [1, 2]}, "c": "d"}
    assert called.stop_reason == "tool_use"
    assert {"thinking", "signature", "input_json", "content_block_stop"} <= set(kinds)


def test_tokens_are_counted() -> None:
    with client(Scripted(ANSWER)) as made:
        count = made.messages.count_tokens(model=MODEL, messages=HI, system="Be brief.")
        usage = create(made, system="Be brief.").usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_models_are_listed_and_found() -> None:
    with client(Scripted()) as made:
        (model,) = made.models.list(limit=5)
        assert made.models.retrieve(model.id) == model
        assert model.display_name == "scripted"
        assert made.models.retrieve(MODEL) == model


def test_the_tool_runner_calls_and_goes_on() -> None:
    @beta_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    scripted = Scripted(
        THOUGHT + CALL.format("weather", '{"city":"Paris"}'), f"{FINAL}It is sunny.<|return|>"
    )
    with client(scripted) as made:
        runner = made.beta.messages.tool_runner(
            model=MODEL, max_tokens=1000, messages=HI, tools=[weather]
        )
        # It asks for a thread first, and goes on without one.
        final: Any = runner.until_done()
    assert final.content[0].text == "It is sunny."
    decoder = scripted.engine.tokenizer.decoder()
    prompt = "".join(decoder.push(id) for id in scripted.samplings[1][2])
    assert "Hm." in prompt  # the thinking came back
    assert '{"city":"Paris"}' in prompt  # as it was written
    assert "sunny in Paris" in prompt


def test_a_parsed_answer_is_of_the_type_asked_for() -> None:
    class Sum(BaseModel):
        sum: int

    with client(Scripted(f'{FINAL}{{"sum": 85}}<|return|>')) as made:
        parsed: Any = made.messages.parse(
            model=MODEL, max_tokens=1000, messages=HI, output_format=Sum
        )
    assert parsed.parsed_output == Sum(sum=85)


def test_errors_are_of_the_clients_kinds() -> None:
    policy = Policy(keys=("secret",), max_queue=0)
    scripted = Scripted(ANSWER, context=100)
    with client(scripted, policy) as made:
        with pytest.raises(anthropic.AuthenticationError):
            create(made)
        good = made.with_options(api_key="secret")
        with pytest.raises(anthropic.NotFoundError):
            good.messages.create(model="gpt-9", max_tokens=10, messages=HI)
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            create(good, [{"role": "user", "content": "word " * 200}])
        bearer = made.with_options(api_key=None, auth_token="secret")
        assert bearer.models.list().data


def test_an_error_in_a_stream_is_raised() -> None:
    scripted = Scripted(ANSWER)
    with client(scripted) as made:
        scripted.fail("read", 3, RuntimeError("secret"))
        with (
            pytest.raises(anthropic.APIStatusError, match="the server failed"),
            made.messages.stream(model=MODEL, max_tokens=1000, messages=HI) as stream,
        ):
            stream.until_done()


def test_a_full_queue_is_a_503_that_the_client_tries_again() -> None:
    """Which it does for every status from 500 on, after the seconds that it is told."""
    scripted = Scripted(ANSWER)
    policy = Policy(max_queue=0)  # and one that runs
    with (
        serving(scripted, policy=policy) as served,
        Anthropic(base_url=served.url, api_key="local", max_retries=0, timeout=LONG) as made,
    ):
        entry = served.registry.entries[0]
        entry.sequences += entry.rows
        with pytest.raises(anthropic.InternalServerError) as raised:
            create(made)
        entry.sequences -= entry.rows
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"] == "2"
        assert raised.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
        assert create(made).stop_reason == "end_turn"

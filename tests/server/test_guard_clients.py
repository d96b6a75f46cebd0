"""What clients of each API make of a blocked request and a blocked answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest
from pydantic import BaseModel

from tests.support.judges import ServedJudge
from tests.support.responses import ask as respond
from tests.support.responses import events, types_of
from tests.support.scripted_model import ANALYSIS, FINAL, Scripted
from tests.support.served import Served, serving
from tests.support.served_tools import check_documented

FINE, BAD = f"{FINAL}Fine.<|return|>", f"{FINAL}A vile one.<|return|>"
LINE = "[blocked: the answer violates the policy (R1)]"
OF_INPUT = "[blocked: the message violates the policy (R1)]"
FOUND = {"what": "output", "label": "violation", "category": "R1", "reason": None}
MESSAGES: Any = [{"role": "user", "content": "q"}]
BAD_MESSAGES: Any = [{"role": "user", "content": "a vile question"}]


class Colour(BaseModel):
    name: str


@pytest.fixture
def scripted() -> Scripted:
    return Scripted(BAD, FINE, FINE)


@pytest.fixture
def served(scripted: Scripted) -> Iterator[Served]:
    with serving(scripted, guard=ServedJudge().served()) as served:
        yield served


def test_openai_s_sdk_reads_a_refusal_in_a_chat(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        answer = client.chat.completions.create(model="scripted", messages=MESSAGES)
        refused = client.chat.completions.create(model="scripted", messages=BAD_MESSAGES)
    for completion, line in ((answer, LINE), (refused, OF_INPUT)):
        (choice,) = completion.choices
        assert choice.finish_reason == "content_filter"
        assert (choice.message.content, choice.message.refusal) == (None, line)
    assert answer.choices[0].model_extra == {"guard": FOUND}


def test_openai_s_sdk_reads_a_refusal_in_a_streamed_chat(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        told = client.chat.completions.create(model="scripted", messages=MESSAGES, stream=True)
        choices = [chunk.choices[0] for chunk in told]
    assert [choice.delta.refusal for choice in choices if choice.delta.refusal] == [LINE]
    assert choices[-1].finish_reason == "content_filter"
    assert choices[-1].model_extra == {"guard": FOUND}
    assert not any(choice.delta.content for choice in choices)


def test_openai_s_sdk_parses_no_answer_that_is_blocked(served: Served) -> None:
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client,
        pytest.raises(openai.ContentFilterFinishReasonError),
    ):
        client.chat.completions.parse(model="scripted", messages=MESSAGES, response_format=Colour)


def test_openai_s_sdk_reads_a_refusal_in_a_completion(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        (choice,) = client.completions.create(model="scripted", prompt="vile").choices
    assert (choice.text, choice.finish_reason) == ("", "content_filter")


@pytest.mark.parametrize("prompt", ["q", "a vile question"])
def test_openai_s_sdk_reads_a_refusal_in_a_response(served: Served, prompt: str) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        response = client.responses.create(model="scripted", input=prompt)
        again = client.responses.retrieve(response.id)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"
    (item,) = response.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "refusal"
    assert part.refusal == (LINE if prompt == "q" else OF_INPUT)
    assert response.output_text == ""
    assert again.output == response.output


def test_a_streamed_response_tells_of_a_refusal_as_documented(served: Served) -> None:
    found = events(served)
    check_documented([{k: v for k, v in event.items() if k != "response"} for event in found[2:-1]])
    assert types_of(found)[2:] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.refusal.delta",
        "response.refusal.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    details = found[-1]["response"]["incomplete_details"]
    assert details == {"reason": "content_filter", "guard": FOUND}


def test_a_response_goes_on_from_a_refusal_as_if_it_had_said_that(
    served: Served, scripted: Scripted
) -> None:
    first = respond(served)
    assert respond(served, "r", previous_response_id=first.id).output_text == "Fine."
    read = scripted.engine.tokenizer.harmony.decode(scripted.samplings[-1][2])
    assert LINE in read
    assert "vile" not in read


def test_a_response_goes_on_from_a_blocked_request_as_if_it_had_not_been_made() -> None:
    scripted = Scripted(FINE, FINE)
    with serving(scripted, guard=ServedJudge().served()) as served:
        first = respond(served)
        refused = respond(served, "a vile question", previous_response_id=first.id)
        assert respond(served, "r", previous_response_id=refused.id).output_text == "Fine."
        items = served.client.get(f"/v1/responses/{refused.id}/input_items").text
    read = scripted.engine.tokenizer.harmony.decode(scripted.samplings[-1][2])
    assert "vile" not in read + items
    assert read.count("<|start|>user") == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("messages", [MESSAGES, BAD_MESSAGES], ids=["answer", "request"])
def test_anthropic_s_sdk_reads_a_refusal(served: Served, stream: bool, messages: Any) -> None:
    asked: Any = {"model": "claude", "max_tokens": 1000, "messages": messages}
    with anthropic.Anthropic(base_url=served.url, api_key="-", max_retries=0) as client:
        if stream:
            with client.messages.stream(**asked) as told:
                message = told.get_final_message()
        else:
            message = client.messages.create(**asked)
    assert (message.stop_reason, message.content) == ("refusal", [])
    assert message.stop_details is not None
    line = LINE if messages is MESSAGES else f"{OF_INPUT} It says so."
    assert (message.stop_details.category, message.stop_details.explanation) == (None, line)


def test_ollama_s_client_reads_a_refusal(served: Served) -> None:
    with ollama.Client(served.url, trust_env=False) as client:
        answer = client.chat("scripted", MESSAGES)
        *_, said, last = client.chat("scripted", BAD_MESSAGES, stream=True)
        told = client.generate("scripted", "a vile question")
    assert (answer.message.content, answer.done_reason) == (LINE, "content_filter")
    assert (said.message.content, last.message.content) == (OF_INPUT, "")
    assert (said.done, last.done, last.done_reason) == (False, True, "content_filter")
    assert (told.response, told.done_reason) == (OF_INPUT, "content_filter")


def test_lm_studio_s_stats_say_that_it_failed(served: Served) -> None:
    for path, body in (
        ("/api/v0/chat/completions", {"messages": MESSAGES}),
        ("/api/v0/completions", {"prompt": "vile"}),
    ):
        answer = served.post(path, body).json()
        assert answer["stats"]["stop_reason"] == "failed"
        assert answer["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses"]
)
def test_a_conversation_that_was_refused_goes_on(path: str) -> None:
    """A client that keeps the line as the answer is not refused for it, and it is not judged."""
    judge, scripted = ServedJudge(), Scripted(BAD, FINE)
    body: dict[str, Any] = {"messages": [*MESSAGES], "max_tokens": 1000}
    with serving(scripted, guard=judge.served()) as served:
        first = body if path != "/v1/responses" else {"input": MESSAGES}
        assert "blocked" in served.post(path, {**first, "stream": False}).text
        said = {"role": "assistant", "content": LINE}
        messages = [*MESSAGES, said, {"role": "user", "content": "r"}]
        second = {"input": messages} if path == "/v1/responses" else {**body, "messages": messages}
        assert "Fine." in served.post(path, {**second, "stream": False}).text
    assert judge.judged == [
        ("input", "q"),
        ("output", "A vile one."),
        ("input", "r"),
        ("output", "Fine."),
    ]


def test_reasoning_is_given_when_it_has_passed_and_known_when_it_comes_back() -> None:
    call = (
        ' to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"b": 1, "a": 2}<|call|>'
    )
    judge = ServedJudge()
    scripted = Scripted(f"{ANALYSIS}Hm.<|end|><|start|>assistant{call}", FINE)
    tools: Any = [{"name": "f", "input_schema": {"type": "object"}}]
    with (
        serving(scripted, guard=judge.served()) as served,
        anthropic.Anthropic(base_url=served.url, api_key="-") as client,
    ):
        asked: Any = {"model": "claude", "max_tokens": 1000, "tools": tools}
        first = client.messages.create(**asked, messages=MESSAGES)
        thinking, use = first.content
        assert (thinking.type, use.type) == ("thinking", "tool_use")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "17"}  # type: ignore[union-attr]
        further = [{"role": "assistant", "content": first.content}]
        client.messages.create(
            **asked, messages=[*MESSAGES, *further, {"role": "user", "content": [result]}]
        )
    texts = [text for _, text in judge.judged]
    assert sorted(texts) == sorted(["q", "Hm.", '[a call of f]\n{"b": 1, "a": 2}', "17", "Fine."])

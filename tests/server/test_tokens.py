"""Tokens of texts and chats, in the forms of llama.cpp and of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted_model import FINAL, Scripted, encoding
from tests.support.served import Served, serving

HI = [{"role": "user", "content": "hi <|end|>"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def idle() -> Iterator[Served]:
    with serving(Scripted()) as served:
        yield served


def post(served: Served, path: str, **body: Any) -> dict[str, Any]:
    response = served.post(path, body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("text", ["", "Hello é \U0001fadc!", "<|start|>user<|message|>x", " \n"])
def test_a_text_comes_back_from_its_tokens(idle: Served, text: str) -> None:
    found = post(idle, "/tokenize", content=text, add_special=True)
    assert found == {
        "tokens": encoding().encode_special(text),
        "count": len(found["tokens"]),
        "max_model_len": 4096,
    }
    assert post(idle, "/tokenize", prompt=text)["tokens"] == found["tokens"]
    assert post(idle, "/detokenize", tokens=found["tokens"]) == {"content": text, "prompt": text}


def test_control_tokens_can_be_text(idle: Served) -> None:
    found = post(idle, "/tokenize", content="<|end|>", parse_special=False)
    assert 200007 not in found["tokens"]
    assert post(idle, "/tokenize", content=["a", 200007, "<|end|>"])["tokens"][1:] == [200007] * 2


def test_the_pieces_join_to_the_text(idle: Served) -> None:
    text = "é \U0001fadc!"
    pieces = post(idle, "/tokenize", content=text, with_pieces=True)["tokens"]
    parts = [p["piece"] if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces]
    data = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    assert data.decode() == text
    strings = post(idle, "/tokenize", content="a b", return_token_strs=True)["token_strs"]
    assert strings == ["a", " b"]


def test_a_template_is_what_a_chat_reads() -> None:
    scripted = Scripted(f"{FINAL}x<|return|>")
    asked = {"messages": HI, "tools": [TOOL], "reasoning_effort": "high"}
    with serving(scripted) as served:
        prompt = post(served, "/apply-template", **asked)["prompt"]
        ids = post(served, "/tokenize", **asked)["tokens"]
        assert post(served, "/v1/chat/completions", **asked)
    assert scripted.samplings[0][2] == ids
    assert encoding().decode(ids) == prompt
    assert prompt.endswith("hi <|end|><|end|><|start|>assistant")
    assert "Reasoning: high" in prompt
    assert ids.count(200007) == 3  # that in the text is text


def test_more_than_the_context_holds_is_refused() -> None:
    with serving(Scripted(context=100)) as served:
        for path, body in (
            ("/tokenize", {"content": "word " * 200}),
            ("/tokenize", {"messages": [{"role": "user", "content": "word " * 200}]}),
            ("/detokenize", {"tokens": [1] * 101}),
            ("/apply-template", {"messages": [{"role": "user", "content": "word " * 200}]}),
        ):
            response = served.post(path, body)
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"messages": []}, "content"),
        ("/tokenize", {"content": [201088]}, "201088"),
        ("/detokenize", {"tokens": [-1]}, "-1"),
        ("/detokenize", {}, "tokens"),
        ("/apply-template", {"messages": [{"role": "robot"}]}, "robot"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    idle: Served, path: str, body: dict[str, Any], named: str
) -> None:
    response = idle.post(path, body)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]

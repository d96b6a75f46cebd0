"""LM Studio's API: what Zed reads of its models, and answers that tell of model and times."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import data_of, serving

HI = [{"role": "user", "content": "hi"}]
ANSWER = f"{ANALYSIS}Hm.{AGAIN}{FINAL}Hello.<|return|>"
CALL = " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_models_are_told_as_zed_reads_them() -> None:
    with serving(Scripted(), Scripted()) as served:
        shelf = served.client.get("/api/v0/models").json()
        one = served.client.get("/api/v0/models/scripted").json()
        missing = served.client.get("/api/v0/models/llama3")
    loaded, other = shelf["data"]
    assert loaded == one
    assert (loaded["state"], loaded["loaded_context_length"]) == ("loaded", 4096)
    assert (other["state"], "loaded_context_length" in other) == ("not-loaded", False)
    assert loaded["max_context_length"] == 131072
    assert (loaded["type"], loaded["compatibility_type"]) == ("llm", "mlx")
    assert loaded["capabilities"] == ["tool_use"]
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("reply", "body", "reason"),
    [
        (ANSWER, {}, "eosFound"),
        (ANSWER, {"max_tokens": 3}, "maxPredictedTokensReached"),
        (CALL, {"tools": [F]}, "toolCalls"),
        (ANSWER + "x " * 200, {"messages": [{"role": "user", "content": "x " * 100}]}, "eosFound"),
    ],
)
def test_a_chat_is_openais_with_stats(reply: str, body: dict[str, Any], reason: str) -> None:
    with serving(Scripted(reply, reply)) as served:
        body = {"messages": HI, **body}
        whole = served.post("/api/v0/chat/completions", body).json()
        lines = served.stream("/api/v0/chat/completions", {**body, "stream": True})
    ChatCompletion.model_validate(whole)
    last = data_of(lines)[-1]
    for told in (whole, last):
        assert told["stats"]["stop_reason"] == reason
        assert told["stats"]["tokens_per_second"] > 0
        assert told["stats"]["time_to_first_token"] > 0
        assert told["model_info"]["context_length"] == 4096
        assert told["model_info"]["arch"] == "gpt-oss"
        assert told["runtime"]["name"].startswith("gptoss_mlx")
        assert told["usage"]["completion_tokens"] > 0


def test_a_full_context_is_told() -> None:
    with serving(Scripted(FINAL + "x y " * 200, context=150)) as served:
        told = served.post("/api/v0/chat/completions", {"messages": HI}).json()
    assert told["stats"]["stop_reason"] == "contextLengthReached"


def test_a_raw_completion_has_stats_too() -> None:
    with serving(Scripted(*["so on<|return|>"] * 2)) as served:
        body = {"prompt": "And", "max_tokens": -1}
        whole = served.post("/api/v0/completions", body).json()
        lines = served.stream("/api/v0/completions", {**body, "stream": True})
    Completion.model_validate(whole)
    assert whole["choices"][0]["text"] == "so on"
    assert whole["stats"]["stop_reason"] == data_of(lines)[-1]["stats"]["stop_reason"] == "eosFound"


def test_errors_are_openais() -> None:
    with serving(Scripted()) as served:
        error = served.post("/api/v0/chat/completions", {"messages": []}).json()["error"]
    assert error["type"] == "invalid_request_error"

"""Clients from npm, unmodified: OpenAI's and Vercel's AI SDK; tools run by themselves, a schema,
errors, a stream that is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.node import run_script
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

pytestmark = pytest.mark.slow

CALL = (
    f"{ANALYSIS}I look.{AGAIN} to=functions.f<|channel|>commentary <|constrain|>json<|message|>"
    '{"a": 7}<|call|>'
)
ANSWER = f"{ANALYSIS}Hm.{AGAIN}{FINAL}It is 17.<|return|>"


def test_openai_s(tmp_path: Path) -> None:
    long = FINAL + "word " * 20000
    scripted = Scripted(CALL, ANSWER, ANSWER, long, context=65536)
    with serving(scripted) as served:
        found = json.loads(run_script("openai.mjs", served.url, tmp_path, "openai"))
        served.wait_until(lambda: served.registry.find(None).sequences == 0)
    assert found["pieces"] > 5
    assert found["called"]["finish_reason"] == "tool_calls"
    assert json.loads(found["called"]["message"]["tool_calls"][0]["function"]["arguments"]) == {
        "a": 7
    }
    assert found["answer"]["choices"][0]["message"]["content"] == "It is 17."
    assert found["output"] == "It is 17."
    assert found["models"] == ["scripted"]
    assert found["failed"] == ["NotFoundError", 404, "model_not_found"]
    assert scripted.count("read") < 10000  # the stream that was left is not written to its end


def test_the_ai_sdk(tmp_path: Path) -> None:
    scripted = Scripted(CALL, ANSWER, f'{FINAL}{{"a": 3}}<|return|>')
    with serving(scripted) as served:
        packages = ("ai", "@ai-sdk/openai-compatible", "zod")
        found = json.loads(run_script("ai.mjs", served.url, tmp_path, *packages))
    assert found["errors"] == []
    assert found["asked"] == [{"a": 7}]
    assert (found["text"], found["object"]) == ("It is 17.", {"a": 3})
    assert found["reasoning"] == "I look.Hm."
    assert found["usage"]["outputTokens"] > 10
    # The reasoning came back beside the tool's result.
    decoder = scripted.engine.tokenizer.decoder()
    prompt = "".join(decoder.push(id) for id in scripted.samplings[1][2])
    assert "<|channel|>analysis<|message|>I look.<|end|>" in prompt

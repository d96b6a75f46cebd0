"""What clients of Ollama's API send, and its client in JavaScript."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_ollama_chat import CALL, CHAT, HI, tool
from tests.support.node import run_script
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

ZED = {
    "model": "scripted:latest",
    "messages": [
        {"role": "system", "content": "You are an editor."},
        {"role": "user", "content": "hi", "images": None},
        {
            "role": "assistant",
            "content": "",
            "thinking": "I look.",
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "tool_name": "f", "content": "17"},
    ],
    "stream": True,
    "keep_alive": -1,
    "options": {"num_ctx": 16384, "stop": [], "temperature": 1.0},
    "think": True,
    "tools": [tool("f", a={"type": "integer"})],
}
CLINE = {
    "model": "scripted",
    "messages": HI,
    "stream": True,
    "options": {"num_ctx": 32768},
}
HOME_ASSISTANT = {
    "model": "scripted",
    "messages": [
        {"role": "system", "content": "You are a home."},
        {"role": "user", "content": "Turn on the light."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"on": True}}}],
        },
        {"role": "tool", "content": '{"success": true}'},
    ],
    "tools": [tool("f", on={"type": "boolean"})],
    "stream": True,
    "format": "",
    "think": False,
    "options": {"num_ctx": 8192},
    "keep_alive": "-1s",
}
ANYTHING_LLM = {
    "model": "scripted",
    "stream": True,
    "messages": HI,
    "keep_alive": 300,
    "options": {"temperature": 0.7, "use_mlock": True, "num_ctx": 4096},
}
ENCHANTED = {
    "stream": True,
    "model": "scripted:latest",
    "messages": HI,
    "options": {"temperature": 0.0},
}


@pytest.mark.parametrize(
    "body",
    [ZED, CLINE, HOME_ASSISTANT, ANYTHING_LLM, ENCHANTED],
    ids=["Zed", "Cline", "Home Assistant", "AnythingLLM", "Enchanted"],
)
def test_clients_are_answered(body: dict[str, Any]) -> None:
    with serving(Scripted(f"{FINAL}Hello.<|return|>")) as served:
        lines = [json.loads(line) for line in served.stream(CHAT, body)]
        assert "".join(line["message"]["content"] for line in lines) == "Hello."
    last = lines[-1]
    assert last["model"] == body["model"]
    assert last["eval_count"] > 0
    assert last["prompt_eval_count"] > 0
    assert all(line["message"]["role"] == "assistant" for line in lines)


def test_goose_lists_models_and_chats_by_openais_api_with_options() -> None:
    with serving(Scripted(f"{FINAL}Hello.<|return|>")) as served:
        name = served.client.get("/api/tags").json()["models"][0]["name"]
        body = {"model": name, "messages": HI, "options": {"num_ctx": 32768}}
        found = served.post("/v1/chat/completions", body).json()
    assert found["choices"][0]["message"]["content"] == "Hello."


def test_codex_finds_a_model_and_pulls_one_until_success() -> None:
    with serving(Scripted()) as served:
        assert served.client.get("/v1/models").status_code == 200
        names = [model["name"] for model in served.client.get("/api/tags").json()["models"]]
        assert names == ["scripted:latest"]
        lines = served.stream("/api/pull", {"model": names[0], "stream": True})
        assert json.loads(lines[-1]) == {"status": "success"}
        missing = served.post("/api/pull", {"model": "gpt-oss:20b", "stream": True})
        assert "gpt-oss:20b" in missing.json()["error"]


def test_continue_shows_a_model_and_completes_raw() -> None:
    with serving(Scripted("and so on<|return|>")) as served:
        assert served.post("/api/show", {"name": "scripted"}).status_code == 200
        body = {
            "model": "scripted",
            "prompt": "Once",
            "suffix": "",
            "raw": True,
            "options": {"num_predict": 64, "stop": ["\n"], "num_ctx": 8192},
            "keep_alive": 1800,
            "stream": True,
        }
        lines = [json.loads(line) for line in served.stream("/api/generate", body)]
    assert "".join(line["response"] for line in lines) == "and so on"


@pytest.mark.slow
def test_its_client_in_javascript(tmp_path: Path) -> None:
    reply = f"{ANALYSIS}Hm.{AGAIN}{FINAL}Hello é.<|return|>"
    call = f"{ANALYSIS}I look.{AGAIN}" + CALL.format("f", '{"a": 1}')
    schema = f'{FINAL}{{"a": 1}}<|return|>'
    long = FINAL + "word " * 2000
    with serving(Scripted(reply, reply, call, reply, schema, reply, long)) as served:
        assert run_script("ollama.cjs", served.url, tmp_path, "ollama").strip() == "ok"
        served.wait_until(lambda: served.registry.entries[0].sequences == 0)

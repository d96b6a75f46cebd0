"""Clients of Anthropic's API that come from npm, unmodified and offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import MODULES, package, run, run_script
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

pytestmark = pytest.mark.slow

CALL = " to=functions.{}<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"


def prompt_of(scripted: Scripted, number: int) -> str:
    decoder = scripted.engine.tokenizer.decoder()
    return "".join(decoder.push(id) for id in scripted.samplings[number][2])


def test_the_client_for_node(tmp_path: Path) -> None:
    scripted = Scripted(
        f"{ANALYSIS}I look.{AGAIN}" + CALL.format("f", '{"a":[1,{"b":"c"}]}'),
        f"{ANALYSIS}Hm.{AGAIN}{FINAL}It is 17.<|return|>",
    )
    with serving(scripted) as served:
        found: dict[str, Any] = json.loads(
            run_script("anthropic.mjs", served.url, tmp_path, "@anthropic-ai/sdk")
        )
    called, answer = found["called"], found["answer"]
    assert called["content"][0]["thinking"] == "I look."
    assert called["content"][1]["input"] == {"a": [1, {"b": "c"}]}
    assert called["stop_reason"] == "tool_use"
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
    assert answer["content"][1]["text"] == "It is 17."
    usage = called["usage"]
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert found["count"]["input_tokens"] == read
    assert found["models"] == ["scripted"]
    name, status, request_id = found["failed"]
    assert (name, status) == ("NotFoundError", 404)
    assert request_id.startswith("req_")
    assert (found["events"][0], found["events"][-1]) == ("message_start", "message_stop")
    assert '{"a":[1,{"b":"c"}]}' in prompt_of(scripted, 1)


def ask_claude_code(question: str, folder: Path, url: str, status: int = 0) -> str:
    package("@anthropic-ai/claude-code")
    program = next(Path(MODULES, "@anthropic-ai").glob("claude-code-*/claude"), None)
    if program is None:
        pytest.skip("@anthropic-ai/claude-code has no program for this machine")
    environment = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "local",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
    }
    command = [str(program), "-p", question, "--allowedTools", "Read"]
    return run(command, folder, environment, status)


def test_claude_code_reads_a_file_and_answers(tmp_path: Path) -> None:
    """A tool round trip: it is told to read a file, reads it, sends what it holds, and prints the
    answer. Its second prompt begins with all of the first one and of the answer to it."""
    note = tmp_path / "note.txt"
    note.write_text("the secret word is MARIGOLD\n")
    arguments = json.dumps({"file_path": str(note)}, separators=(",", ":"))
    scripted = Scripted(
        f"{ANALYSIS}I read it.{AGAIN}" + CALL.format("Read", arguments),
        f"{ANALYSIS}There.{AGAIN}{FINAL}The word is MARIGOLD.<|return|>",
        chunk=4096,
        context=131072,
    )
    begun = list(scripted.replies[0])
    with serving(scripted) as served:
        output = ask_claude_code("What is the secret word in note.txt?", tmp_path, served.url)
    assert output.strip() == "The word is MARIGOLD."
    first, second = (ids for _, _, ids in scripted.samplings)
    assert "MARIGOLD" not in prompt_of(scripted, 0)
    assert "x-anthropic-billing-header" not in prompt_of(scripted, 0)
    assert "the secret word is MARIGOLD" in prompt_of(scripted, 1)
    assert second[: len(first) + len(begun)] == first + begun


def test_claude_code_understands_that_a_prompt_is_too_long(tmp_path: Path) -> None:
    """It has read both counts from the error, which it gives as its own."""
    with serving(Scripted(context=8192)) as served:
        output = ask_claude_code("Hello", tmp_path, served.url, status=1)
    assert "Prompt is too long" in output
    assert "(limit 8191)" in output

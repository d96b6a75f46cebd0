"""Clients of Anthropic's API that come from npm, unmodified and offline.

GPTOSS_NODE_MODULES names the node_modules folder that has them:
`npm install @anthropic-ai/sdk @anthropic-ai/claude-code`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.root import ROOT
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

pytestmark = pytest.mark.slow

MODULES = os.environ.get("GPTOSS_NODE_MODULES", "")
CALL = " to=functions.{}<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
NOWHERE = "http://127.0.0.1:9"
SECONDS = 240


def package(name: str) -> Path:
    folder = Path(MODULES, "@anthropic-ai", name)
    if not MODULES or not folder.is_dir():
        pytest.skip(f"GPTOSS_NODE_MODULES names no folder with @anthropic-ai/{name}")
    return folder


def run(command: list[str], folder: Path, environment: dict[str, str], status: int = 0) -> str:
    """The output of a client that reaches this machine alone, and ends with a status."""
    outside = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **outside, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def prompt_of(scripted: Scripted, number: int) -> str:
    decoder = scripted.engine.tokenizer.decoder()
    return "".join(decoder.push(id) for id in scripted.samplings[number][2])


def test_the_client_for_node(tmp_path: Path) -> None:
    package("sdk")
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    (tmp_path / "node_modules").symlink_to(MODULES)
    shutil.copy(ROOT / "tests/server/node/anthropic.mjs", tmp_path)
    scripted = Scripted(
        f"{ANALYSIS}I look.{AGAIN}" + CALL.format("f", '{"a":[1,{"b":"c"}]}'),
        f"{ANALYSIS}Hm.{AGAIN}{FINAL}It is 17.<|return|>",
    )
    with serving(scripted) as served:
        found: dict[str, Any] = json.loads(
            run([node, "anthropic.mjs"], tmp_path, {"BASE_URL": served.url})
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
    package("claude-code")
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

"""The Codex command against a scripted model: a round with its shell, and one with its patches.

`npm install @openai/codex` brings the command; it is looked for in PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import MODULES
from tests.support.responses import CALL, PREAMBLE
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import serving

CODEX = shutil.which("codex", path=f"{MODULES}/.bin:{os.environ['PATH']}")
CONFIG = """
model = "gpt-5.5"
model_provider = "local"
model_reasoning_summary = "auto"
[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
"""Codex offers its patches only to models that it knows; the server has this one as an alias."""

NOWHERE = "http://127.0.0.1:9"
PATCH = "*** Begin Patch\n*** Add File: hello.txt\n+hi é\n*** End Patch\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CODEX is None, reason="codex is not installed: npm install @openai/codex"),
]


def run(folder: Path, tool: str, arguments: dict[str, str]) -> list[dict[str, Any]]:
    """What Codex tells, as JSON, of a turn in which the model calls a tool and then answers."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    call = CALL.format(tool, json.dumps(arguments))
    replies = (
        f"{ANALYSIS}I look.{AGAIN}{PREAMBLE}Let me look.{AGAIN}{call}",
        f"{ANALYSIS}Done.{AGAIN}{FINAL}It is 4711.<|return|>",
    )
    scripted = Scripted(*replies, context=100_000, chunk=4096)
    with serving(scripted, aliases=["gpt-5.5"]) as served:
        (home / "config.toml").write_text(CONFIG.format(url=served.url))
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CODEX_HOME": str(home),
            "NO_PROXY": "127.0.0.1",
            "HTTPS_PROXY": NOWHERE,
            "HTTP_PROXY": NOWHERE,
        }
        command = [str(CODEX), "exec", "--json", "--skip-git-repo-check", "-C", str(work)]
        done = subprocess.run(
            [*command, "--dangerously-bypass-approvals-and-sandbox", "what is it?"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert scripted.replies == []
    return [json.loads(line) for line in done.stdout.splitlines()]


def items(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line["item"] for line in told if line["type"] == "item.completed"]


def test_codex_runs_a_command_and_answers(tmp_path: Path) -> None:
    told = run(tmp_path, "exec_command", {"cmd": "echo $((4700 + 11))"})
    assert [item["type"] for item in items(told)] == [
        "reasoning",
        "agent_message",
        "command_execution",
        "reasoning",
        "agent_message",
    ]
    assert [item.get("text") for item in items(told)[:2]] == ["I look.", "Let me look."]
    assert items(told)[2]["aggregated_output"] == "4711\n"
    assert items(told)[4]["text"] == "It is 4711."
    usage = told[-1]["usage"]
    assert told[-1]["type"] == "turn.completed"
    assert usage["input_tokens"] > usage["cached_input_tokens"] > 0
    assert usage["reasoning_output_tokens"] > 0


def test_codex_patches_a_file_by_a_custom_tool(tmp_path: Path) -> None:
    told = run(tmp_path, "apply_patch", {"input": PATCH})
    assert "file_change" in [item["type"] for item in items(told)]
    assert (tmp_path / "work" / "hello.txt").read_text() == "hi é\n"

"""The generate command on the tiny model that ships with the package."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gptoss_mlx.generate import main
from tests.cli.test_generate_models import ROOT, generated, offline
from tests.cli.test_generate_tools import needs_sandbox

ASK = ("--model", "tiny", "--temperature", "0", "--quiet")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def test_it_answers_a_pipe_with_the_answer_alone() -> None:
    result = CliRunner().invoke(main, ASK, input="What is 27 + 58?\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "85" in result.stdout
    assert result.stdout.count("\n") == 1


def test_reasoning_comes_before_the_answer_if_asked() -> None:
    value = generated("What is 27 + 58?", *ASK)
    result = CliRunner().invoke(main, ["What is 27 + 58?", *ASK, "--show-reasoning"])
    assert value["finish_reason"] == "stop"
    assert value["reasoning"]
    assert result.stdout == f"{value['reasoning']}\n\n{value['text']}\n"


@needs_sandbox
def test_what_is_too_large_for_it_is_computed_in_python() -> None:
    value = generated("What is 1234 * 5678?", "--tool", "python", *ASK)
    assert value["text"] == "1234 * 5678 = 7006652"
    assert [ran["arguments"] for ran in value["ran"]] == ["print(1234 * 5678)"]


def test_it_answers_from_a_document_and_cites_it(tmp_path: Path) -> None:
    (tmp_path / "people.md").write_text("# People\n\nMaria lives in Paris.\nTom has a cat.\n")
    (tmp_path / "places.md").write_text("# Places\n\nThe lamp is in Berlin.\nThe key is blue.\n")
    value = generated("Where is the lamp?", "--tool", "browser", "--documents", str(tmp_path), *ASK)
    assert re.fullmatch(r"The lamp is in Berlin\.【1†L\d】", value["text"])
    assert [ran["name"] for ran in value["ran"]] == ["browser.search", "browser.open"]


def test_a_tool_is_called_and_its_result_answered_from(tmp_path: Path) -> None:
    tools, messages = tmp_path / "tools.json", tmp_path / "messages.json"
    tools.write_text(json.dumps([WEATHER]))
    question = {"role": "user", "content": "What is the weather in Paris?"}
    value = generated(question["content"], "--tools", str(tools), *ASK)
    (call,) = value["tool_calls"]
    assert (value["finish_reason"], call["name"]) == ("tool_calls", "get_weather")
    assert json.loads(call["arguments"]) == {"city": "Paris"}

    function = {"name": call["name"], "arguments": call["arguments"]}
    calls = [{"id": call["id"], "type": "function", "function": function}]
    turn = {"role": "assistant", "reasoning": value["reasoning"], "tool_calls": calls}
    answer = {"role": "tool", "tool_call_id": call["id"], "content": "sunny, 21 degrees"}
    messages.write_text(json.dumps({"messages": [question, turn, answer], "tools": [WEATHER]}))
    final = generated("--messages", str(messages), *ASK)
    assert final["finish_reason"] == "stop"
    assert "21" in final["text"]


def test_a_response_format_gives_json() -> None:
    value = generated("What is 4 + 5?", "--response-format", "json", *ASK)
    assert isinstance(json.loads(value["text"]), dict)


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_it_greets_at_every_effort(effort: str) -> None:
    assert generated("Hello!", "--reasoning", effort, *ASK)["finish_reason"] == "stop"


@pytest.mark.slow
def test_a_process_of_its_own_repeats_a_seed() -> None:
    line = [sys.executable, "-m", "gptoss_mlx.generate", "Hello!", "--model", "tiny", "--seed", "5"]
    runs = [
        subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
        for _ in range(2)
    ]
    assert [(run.returncode, run.stderr) for run in runs] == [(0, "")] * 2
    assert runs[0].stdout == runs[1].stdout != ""


def test_it_answers_with_the_network_cut() -> None:
    result = offline("What is 27 + 58?", *ASK)
    assert (result.returncode, result.stderr) == (0, "")
    assert "85" in result.stdout


@pytest.mark.slow
def test_a_folder_of_prefixes_is_read_by_the_next_process(tmp_path: Path) -> None:
    folder, long = tmp_path / "prefixes", "Be brief. " * 100
    asked = ("--model", "tiny", "--temperature", "0", "--system", long, "--stats")
    first = CliRunner().invoke(main, [*asked, "--cache-dir", str(folder), "What is 27 + 58?"])
    again = CliRunner().invoke(main, [*asked, "--cache-dir", str(folder), "What is 20 + 30?"])
    plain = CliRunner().invoke(main, [*asked, "What is 20 + 30?"])
    reused = [
        int(re.search(r"(\d+) reused", r.stderr)[1])  # type: ignore[index]
        for r in (first, again, plain)
    ]
    assert reused[0] == reused[2] == 0
    assert reused[1] > 300
    assert again.stdout == plain.stdout
    assert "note" not in first.stderr + again.stderr
    path = next(iter(folder.iterdir()))
    path.write_bytes(path.read_bytes()[:-1])
    broken = CliRunner().invoke(main, [*asked, "--cache-dir", str(folder), "What is 20 + 30?"])
    assert broken.stdout == plain.stdout
    assert broken.stderr.count("note: the prefix store") <= 1

"""MCP servers in the generate command: what is offered and run, what is refused, what is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gptoss_mlx
from gptoss_mlx.generate import main
from tests.support.scripted_model import FINAL, Scripted, encoding
from tests.tools.mcp.conftest import ODD

DONE = f"{FINAL}Done.<|return|>"
ECHO = (
    " to=functions.odd_echo<|channel|>commentary <|constrain|>json<|message|>"
    '{"text_": "hello"}<|call|>'
)
DIE = " to=functions.odd_die<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"

Ask = Callable[..., tuple[Result, Scripted]]


@pytest.fixture
def loads() -> list[str]:
    """The models that were loaded."""
    return []


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, loads: list[str], tmp_path: Path) -> Ask:
    """(replies, servers' modes, arguments) -> what generate did, and the model that replied."""

    def run(
        replies: list[str], servers: dict[str, list[str]], *arguments: str
    ) -> tuple[Result, Scripted]:
        scripted = Scripted(*replies)

        def load(model: str, **options: Any) -> Any:
            loads.append(model)
            return scripted.engine

        monkeypatch.setattr(gptoss_mlx, "load", load)
        command = {"command": sys.executable}
        entries = {
            name: {**command, "args": ["-I", "-S", str(ODD), *mode]}
            for name, mode in servers.items()
        }
        file = tmp_path / "mcp.json"
        file.write_text(json.dumps({"mcpServers": entries}))
        return CliRunner().invoke(main, ["q", "--mcp", str(file), *arguments]), scripted

    return run


def test_a_server_of_the_file_is_called_without_more(ask: Ask) -> None:
    result, scripted = ask([ECHO, DONE], {"odd": []})
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Done.\n", "")
    prompt = encoding().decode(scripted.samplings[-1][2])
    assert "<|start|>functions.odd_echo to=assistant<|channel|>commentary<|message|>hello" in prompt


def test_what_becomes_of_servers_is_told_and_the_others_go_on(ask: Ask) -> None:
    result, _ = ask([DIE, ECHO, DONE], {"bad": ["dies"], "odd": []})
    assert (result.exit_code, result.stdout) == (0, "Done.\n")
    before, second, after = result.stderr.splitlines()
    assert before.startswith("note: MCP server bad: it ended with status 2; it is started again")
    assert second.startswith(
        "note: MCP server bad: it ended with status 2; it is not started again"
    )
    assert after == (
        "note: MCP server odd: it ended with status 3; it is started again; its last words: first |"
        " I cannot go on"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--tool", "odd=ask"], "=ask needs a terminal"),
        (["--tool", "other"], "'other' is not browser or python or odd"),
        (["--raw"], "--tool runs tools itself, as --mcp does"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    ask: Ask, loads: list[str], arguments: list[str], line: str
) -> None:
    result, _ = ask([DONE], {"odd": []}, *arguments)
    assert result.exit_code == 2
    assert line in result.stderr
    assert loads == []


def test_a_rule_of_a_server_may_be_given(ask: Ask) -> None:
    result, _ = ask([ECHO, DONE], {"odd": []}, "--tool", "odd=allow")
    assert result.stdout == "Done.\n"


def test_a_mistake_in_the_file_is_told_before_the_model_is_loaded(
    tmp_path: Path, ask: Ask, loads: list[str]
) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"mcpServers": {"s": {}}}')
    result = CliRunner().invoke(main, ["q", "--mcp", str(file)])
    assert (result.exit_code, loads) == (1, [])
    assert result.stderr == (
        f"error: {file}: mcpServers.s has neither command nor url, but must have one of them\n"
    )


def test_without_the_package_a_line_says_how_to_install_it(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result, _ = ask([DONE], {"odd": []})
    assert result.exit_code == 2
    assert "--mcp needs a package: pip install 'gptoss-mlx[mcp]'" in result.stderr

"""The serve command: what it refuses, and its life as a process."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner

from gptoss_mlx.cli import serve
from gptoss_mlx.cli.serve import parse_duration, parse_origin, welcome
from gptoss_mlx.server.toolkit import Toolkit
from tests.root import ROOT
from tests.tools.mcp.conftest import ODD

LONG = 120.0  # seconds that nothing here takes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--host", "::"], "--api-key"),
        (["--host", "192.168.1.2"], "--api-key"),
        (["--api-key", ""], "--api-key is empty"),
        (["--port", "70000"], "--port"),
        (["--keep-alive", "soon"], "no time such as"),
        (["--allow-origin", "localhost"], "no origin such as"),
        (["--no-cache-dir", "--cache-dir", "x"], "exclude each other"),
        (["tiny", "-m", "tiny"], "named twice"),
        (["--parallel", "0"], "--parallel"),
        (["--max-queue", "-1"], "--max-queue"),
        (["--tool", "bash"], "--tool"),
        (["--tool", "browser"], "--documents DIR, or --search URL"),
        (["--documents", "x"], "--documents is for --tool browser"),
        (["--max-tool-calls", "-1"], "--max-tool-calls"),
        (["--tool", "odd"], "--tool 'odd' is not browser or python"),
    ],
)
def test_a_usage_mistake_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(serve.main, arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xff", b"k" * 70_000])
def test_a_file_of_keys_must_hold_some(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(data)
    result = CliRunner().invoke(serve.main, ["tiny", "--api-key-file", str(path)])
    assert result.exit_code == 1
    assert str(path) in result.output
    assert len(result.output) < 400


def test_tools_are_those_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """=ask needs no terminal here: the page asks."""
    kits: list[Toolkit] = []
    monkeypatch.setattr(serve, "_serve", lambda *given: kits.append(given[4]))
    documents = ["--tool", "browser", "--documents", str(tmp_path)]
    unsafe = ["--tool", "python=ask", "--unsafe-python", "--files", str(tmp_path / "files")]
    for arguments in ([], documents, [*documents, *unsafe, "--max-tool-calls", "3"]):
        result = CliRunner().invoke(serve.main, ["tiny", *arguments])
        assert (result.exit_code, result.output) == (0, "")
    nothing, browser, both = kits
    assert not nothing.makers
    assert (set(browser.makers), browser.is_offline) == ({"browser"}, True)
    assert set(both.makers) == {"python", "browser"}
    assert (both.rule("python"), both.rule("browser")) == ("ask", "allow")
    assert (both.most_calls, both.files) == (3, tmp_path / "files")


def mcp_file(folder: Path, *mode: str) -> str:
    """A file of one stdio server, and one at an address."""
    odd: dict[str, Any] = {"command": sys.executable, "args": ["-I", "-S", str(ODD), *mode]}
    file = folder / "mcp.json"
    web = {"url": "http://127.0.0.1:9/mcp", "disabled": not mode}
    file.write_text(json.dumps({"mcpServers": {"odd": odd, "web": web}}))
    return str(file)


def test_servers_and_models_are_those_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kits: list[Toolkit] = []
    monkeypatch.setattr(serve, "_serve", lambda *given: kits.append(given[4]))
    models = tmp_path / "models.json"
    models.write_text(json.dumps({"models": {"big": {"url": "http://127.0.0.1:9", "model": "m"}}}))
    mcp = ["--mcp", mcp_file(tmp_path, "stays")]
    asked = ["--ask-models", str(models), "--tool", "odd=ask"]
    for arguments in ([*mcp, *asked], ["--allow-mcp-urls"], ["--ask-models", str(models)]):
        result = CliRunner().invoke(serve.main, ["tiny", *arguments])
        assert (result.exit_code, result.output) == (0, "")
    all_, open_, model = kits
    assert list(all_.servers) == ["odd", "web", "ask_big"]
    assert [all_.rule(name) for name in all_.servers] == ["ask", "allow", "ask"]
    assert (all_.addresses, all_.connect) == ({"web": "http://127.0.0.1:9/mcp"}, None)
    assert open_.connect is not None
    assert (list(model.servers), model.connect) == (["ask_big"], None)


@pytest.mark.parametrize("option", ["--mcp", "--ask-models"])
def test_a_file_that_is_wrong_is_one_line(tmp_path: Path, option: str) -> None:
    file = tmp_path / "file.json"
    file.write_text("{")
    result = CliRunner().invoke(serve.main, ["tiny", option, str(file)])
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert str(file) in result.output


def test_a_name_stands_for_one_thing(tmp_path: Path) -> None:
    models, mcp = tmp_path / "models.json", tmp_path / "mcp.json"
    models.write_text(json.dumps({"models": {"big": {"url": "http://127.0.0.1:9", "model": "m"}}}))
    mcp.write_text(json.dumps({"mcpServers": {"ask_big": {"command": sys.executable}}}))
    files = ["--mcp", str(mcp), "--ask-models", str(models)]
    result = CliRunner().invoke(serve.main, ["tiny", *files])
    assert result.exit_code == 2
    assert "both have 'ask_big'" in result.output


def test_durations_and_origins() -> None:
    found = [parse_duration(text) for text in ("90", "1.5s", "5m", "2h", "1d", "0", "forever")]
    assert found == [90, 1.5, 300, 7200, 86400, 0, None]
    for text in ("", "-1", "5 m", "1w", "inf", "1e9", "٣s"):
        with pytest.raises(ValueError, match="no time"):
            parse_duration(text)
    for text in ("*", "http://localhost:3000", "app://obsidian.md"):
        assert parse_origin(text) == text
    for text in ("localhost", "http://a/b", "HTTP://a", "http://", ""):
        with pytest.raises(ValueError, match="no origin"):
            parse_origin(text)


def test_the_address_that_is_shown_can_be_pasted() -> None:
    assert "http://127.0.0.1:8080/v1" in welcome("m", "127.0.0.1", 8080)
    assert f"http://{socket.gethostname()}:80/v1" in welcome("m", "0.0.0.0", 80)
    assert "http://192.168.1.2:1/v1" in welcome("m", "192.168.1.2", 1)
    assert "http://[fe80::1]:1/v1" in welcome("m", "fe80::1", 1)
    assert "\x1b" not in welcome("\x1b[2J", "::1", 1)


class Process:
    """The command as a process that serves the tiny model."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "gptoss_mlx", "serve", "tiny", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.before = ""  # what was said before the address
        while not (found := re.search(r"http://127.0.0.1:(\d+)", self.before)):
            line = self.process.stderr.readline()
            assert line, self.before
            self.before += line
        self.url = f"http://127.0.0.1:{found[1]}"

    def wait_until_ready(self) -> None:
        for _ in range(int(LONG / 0.05)):
            response = httpx.get(f"{self.url}/health", trust_env=False)
            assert response.json()["status"] in ("ok", "loading")
            if response.status_code == 200:
                return
            with pytest.raises(subprocess.TimeoutExpired):
                self.process.wait(0.05)
        raise AssertionError("it does not load")

    def end(self, number: int) -> tuple[int, str]:
        """Exit code and the rest of what was said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=LONG)
        return self.process.returncode, self.before + said


@pytest.fixture
def start() -> Iterator[Any]:
    made: list[Process] = []

    def one(*arguments: str) -> Process:
        made.append(Process(*arguments))
        return made[-1]

    yield one
    for process in made:
        if process.process.poll() is None:
            process.process.kill()
        process.process.communicate()


def test_it_answers_and_finishes_what_runs_when_told_to_end(start: Any, tmp_path: Path) -> None:
    """And the prefix store lasts: a second process reads of the same prompt what is new."""
    body: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "Be brief. " * 60},
            {"role": "user", "content": "What is 12 + 30?"},
        ],
        "stream": True,
        "seed": 1,
    }
    cached = []
    for question in ("What is 12 + 30?", "What is 27 + 58?"):
        body["messages"][1]["content"] = question
        server = start("--cache-dir", str(tmp_path), "--api-key", "k")
        server.wait_until_ready()
        whole = {**body, "stream_options": {"include_usage": True}}
        with httpx.stream(
            "POST",
            f"{server.url}/v1/chat/completions",
            json=whole,
            headers={"authorization": "Bearer k"},
            timeout=LONG,
            trust_env=False,
        ) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            code, said = server.end(signal.SIGTERM)
            text = first + "".join(lines)
        assert text.endswith("data: [DONE]")
        assert (code, "Traceback" in said) == (0, False), said
        cached.append(int(re.findall(r'"cached_tokens":(\d+)', text)[-1]))
    assert cached[0] == 0
    assert cached[1] > 100


def test_ctrl_c_ends_it_as_every_command(start: Any) -> None:
    server = start("--no-cache-dir")
    assert server.end(signal.SIGINT)[0] == 130  # while it loads
    server = start("--no-cache-dir")
    server.wait_until_ready()
    code, said = server.end(signal.SIGINT)
    assert (code, "Traceback" in said) == (130, False), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_of_its_servers_is_left(start: Any, tmp_path: Path, number: int) -> None:
    """However it ends, also of one that stays at SIGTERM; and a server that never answers keeps
    nobody waiting."""
    file = json.loads(Path(mcp_file(tmp_path, "stays")).read_text())
    file["mcpServers"]["mute"] = {**file["mcpServers"]["odd"]}
    file["mcpServers"]["mute"]["args"] = ["-I", "-S", str(ODD), "silent"]
    path = tmp_path / "both.json"
    path.write_text(json.dumps(file))
    server = start("--no-cache-dir", "--mcp", str(path))
    server.wait_until_ready()
    family = psutil.Process(server.process.pid).children(recursive=True)
    assert len([one for one in family if str(ODD) in one.cmdline()]) >= 4  # with their wardens
    server.end(number)
    _, alive = psutil.wait_procs(family, timeout=LONG)
    assert alive == []


def test_what_becomes_of_a_server_is_told(start: Any, tmp_path: Path) -> None:
    server = start("--no-cache-dir", "--mcp", mcp_file(tmp_path, "dies"))
    server.wait_until_ready()
    tool = {"type": "mcp", "server_label": "odd", "require_approval": "never"}
    body = {"input": "What is 12 + 30?", "tools": [tool], "max_output_tokens": 4}
    found = httpx.post(f"{server.url}/v1/responses", json=body, timeout=LONG, trust_env=False)
    assert "it ended with status 2" in found.json()["output"][0]["error"]
    _, said = server.end(signal.SIGTERM)
    assert "WARNING: MCP server odd: it ended with status 2; it is started again" in said
    assert "no such database" in said


@pytest.mark.parametrize("asked", [True, False])
def test_prompts_are_logged_only_if_asked(start: Any, asked: bool) -> None:
    server = start("--no-cache-dir", *(["--log-prompts"] if asked else ["--log-level", "debug"]))
    server.wait_until_ready()
    body = {"messages": [{"role": "user", "content": "a secret 4711"}], "max_tokens": 1}
    httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=LONG, trust_env=False)
    httpx.post(f"{server.url}/v1/chat/completions", json={"messages": "4711"}, trust_env=False)
    _, said = server.end(signal.SIGTERM)
    assert ("4711" in said) == asked


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(serve.main, ["tiny", "--port", str(port)])
    assert result.exit_code == 1
    assert f"port {port}" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    command = [sys.executable, "-m", "gptoss_mlx", "serve", str(tmp_path), "--port", "0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/config.json")

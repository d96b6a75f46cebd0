"""MCP servers that start late or not at all, hang, die or flood while others are served."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptoss_mlx.tools.mcp.config import ServerConfig, StdioServer
from tests.support.node import package
from tests.support.responses import ask, events
from tests.support.scripted_model import Scripted
from tests.support.served_mcp import ODD, mcp_kit, written
from tests.support.served_tools import DONE, check_documented, prompts, tooled
from tests.tools.mcp.conftest import LONG, odd
from tests.tools.mcp.conftest import ODD as SCRIPT

ECHO = written("odd_echo", text_="back")


def calls_of(output: Any) -> list[Any]:
    return [item for item in output if item.type == "mcp_call"]


@pytest.mark.parametrize("how", ["die", "flood_stdout"])
def test_a_server_that_ends_in_a_call_is_started_again_once_for_all(how: str) -> None:
    ends, notes = written(f"odd_{how}"), list[str]()
    scripted = Scripted(ends, ECHO, DONE, ECHO, DONE, ends, DONE, DONE)
    with mcp_kit(odd(), notes=notes) as kit, tooled(scripted, kit) as served:
        ended, back = calls_of(ask(served, tools=[ODD]).output)
        assert (ended.status, ended.output) == ("failed", None)
        assert "is started again without what it kept" in prompts(scripted)[1]
        (other,) = calls_of(ask(served, tools=[ODD]).output)
        assert (back.output, other.output) == ("back", "back")
        (last,) = calls_of(ask(served, tools=[ODD]).output)
        found = events(served, tools=[ODD])
    assert "and is not started again" in last.error.content[0]["text"]
    check_documented(found)
    assert "response.mcp_list_tools.failed" in [event["type"] for event in found]
    listed, message = found[-1]["response"]["output"]
    assert (listed["tools"], message["type"]) == ([], "message")
    assert listed["error"].startswith("The server odd is not running: ")
    assert "odd_echo" not in prompts(scripted)[-1]
    first, second = notes
    assert first.startswith("MCP server odd: it ")
    assert "it is started again" in first
    assert "it is not started again" in second


def test_a_server_that_does_not_start_is_named_and_the_others_go_on() -> None:
    scripted, notes = Scripted(ECHO, DONE), list[str]()
    dead = {**ODD, "server_label": "dead"}
    configs = [odd("dies", name="dead"), odd()]
    with mcp_kit(*configs, notes=notes) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[dead, ODD]).output
    lists = {item.server_label: item for item in output if item.type == "mcp_list_tools"}
    assert lists["dead"].error == "The server dead is not running: it ended with status 2."
    assert lists["odd"].error is None
    assert calls_of(output)[0].output == "back"
    assert [note.split(";")[0] for note in notes] == ["MCP server dead: it ended with status 2"] * 2


def test_a_call_has_the_time_that_the_file_says() -> None:
    scripted = Scripted(written("odd_hang"), ECHO, DONE)
    with mcp_kit(odd(timeout=0.3)) as kit, tooled(scripted, kit) as served:
        hung, back = calls_of(ask(served, tools=[ODD]).output)
    text = "The server odd did not answer within 0.3 s, the limit of a call."
    assert (hung.error.content[0]["text"], back.output) == (text, "back")


def test_a_server_that_starts_late_keeps_nobody_waiting_but_who_asks_for_it(
    tmp_path: Path,
) -> None:
    """It starts when a file is there."""
    gate = tmp_path / "gate"
    late = (
        "import os, sys, time\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"
        "os.execv(sys.executable, [sys.executable, '-I', '-S', sys.argv[2]])\n"
    )
    command = (sys.executable, "-I", "-S", "-c", late, str(gate), str(SCRIPT))
    config = ServerConfig("odd", StdioServer(command), LONG)
    scripted, found = Scripted(DONE, ECHO, DONE), list[Any]()
    with mcp_kit(config) as kit, tooled(scripted, kit) as served:
        waiting = threading.Thread(target=lambda: found.append(ask(served, tools=[ODD])))
        waiting.start()
        assert ask(served).output_text == "Done."
        assert found == []
        gate.touch()
        waiting.join(LONG)
    assert calls_of(found[0].output)[0].output == "back"


def test_nothing_is_left_when_the_server_ends() -> None:
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    scripted = Scripted(written("odd_family"), DONE)
    with mcp_kit(odd("stays")) as kit, tooled(scripted, kit) as served:
        ask(served, tools=[ODD])
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= children


@pytest.mark.slow
def test_the_reference_server() -> None:
    script = package("@modelcontextprotocol/server-everything") / "dist" / "index.js"
    config = ServerConfig("everything", StdioServer(("node", str(script))), LONG)
    tool = {"type": "mcp", "server_label": "everything", "require_approval": "never"}
    scripted = Scripted(
        written("everything_get-sum", a=1234, b=5678),
        written("everything_get-tiny-image"),
        written("everything_get-structured-content", location="New York"),
        DONE,
        context=65536,
    )
    with mcp_kit(config) as kit, tooled(scripted, kit) as served:
        found = events(served, tools=[tool])
    check_documented(found)
    listed, total, image, weather, message = found[-1]["response"]["output"]
    assert {"echo", "get-sum"} <= {one["name"] for one in listed["tools"]}
    assert "6912" in total["output"]
    assert "[an image, image/png" in image["output"]
    assert "temperature" in weather["output"]
    (note,) = message["content"][0]["annotations"]
    assert note["filename"] == "image-1.png"

"""Servers' processes: started together, started again once, ended with all that they started."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import psutil
import pytest

from gptoss_mlx.tools.mcp.config import ServerConfig, StdioServer
from tests.root import ROOT
from tests.tools.mcp.conftest import LONG, Start, call, names, odd, said


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the kernel or another process does."""
    pause = threading.Event()
    for _ in range(int(LONG / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come about")


def are_gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and _runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_dies_in_a_call_is_started_again_once(start: Start) -> None:
    servers = start(odd())
    (server,) = servers.tools
    outcome = call(server, "die")
    assert (outcome.failed, outcome.text) == (
        True,
        "The server odd ended during the call, and is started again without what it kept.",
    )
    assert said(server, "echo", text_="back") == "back"
    assert servers.notes() == [
        "MCP server odd: it ended with status 3; it is started again; its last words: first |"
        " I cannot go on"
    ]
    outcome = call(server, "die")
    assert outcome.text == "The server odd ended during the call, and is not started again."
    outcome = call(server, "echo")
    assert outcome.text == "The server odd is not running: it ended with status 3."
    assert "odd_echo" in names(server)
    assert "it is not started again" in servers.notes()[0]


def test_a_server_that_fails_to_start_is_named_and_the_others_go_on(
    start: Start, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    broken = ServerConfig("broken", StdioServer((str(script),)))
    late = odd("dies-first", str(tmp_path / "marker"), name="late")
    servers = start(odd("silent", name="mute"), odd("dies", name="dead"), broken, late, seconds=5.0)
    mute, dead, _, back = servers.tools
    assert [names(tool) for tool in (mute, dead)] == [[], []]
    assert said(back, "echo", text_="here") == "here"
    assert servers.notes() == [
        "MCP server mute: it did not answer within 5 s; it is started again",
        "MCP server mute: it did not answer within 5 s; it is not started again",
        "MCP server dead: it ended with status 2; it is started again; its last words: no such"
        " database",
        "MCP server dead: it ended with status 2; it is not started again; its last words: no such"
        " database",
        f"MCP server broken: it ended with status 127; it is started again; its last words:"
        f" {script}: cannot be run: No such file or directory",
        f"MCP server broken: it ended with status 127; it is not started again; its last words:"
        f" {script}: cannot be run: No such file or directory",
        "MCP server late: it ended with status 2; it is started again",
    ]


def test_a_server_that_floods_stdout_is_ended(start: Start) -> None:
    """Within bounded memory, which the peak of this process would show."""
    servers = start(odd())
    (server,) = servers.tools
    before = psutil.Process().memory_info().rss
    outcome = call(server, "flood_stdout")
    assert outcome.text.startswith("The server odd ended during the call")
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert said(server, "echo", text_="back") == "back"
    assert "it wrote without end what nobody had asked for" in servers.notes()[0]


def test_nothing_of_a_server_is_left(start: Start) -> None:
    """Also not of children, be they in its process group or, on Linux, out of it; nor of a server
    that stays when its stdin is closed and at SIGTERM."""
    servers = start(odd(), odd("stays", name="other"))
    server, other = servers.tools
    family, others = (json.loads(said(tool, "family")) for tool in (server, other))
    call(server, "die")
    said(server, "echo")
    kept = family if sys.platform == "linux" else family[:2]
    assert are_gone(kept)
    assert not are_gone(others)
    servers.close()
    assert are_gone(others if sys.platform == "linux" else others[:2])


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at the parent's death is Linux's")
def test_a_server_dies_with_its_warden(start: Start) -> None:
    (server,) = start(odd()).tools
    family = json.loads(said(server, "family"))
    psutil.Process(family[0]).parent().kill()
    until(lambda: are_gone(family[:1]))
    for pid in family[1:]:
        psutil.Process(pid).kill()


PARENT = """
import sys
from pathlib import Path
from gptoss_mlx.tools.mcp.config import read_servers
from gptoss_mlx.tools.mcp.servers import McpServers
servers = McpServers(read_servers(Path(sys.argv[1])))
print(servers.tools[0].call("functions.odd_family", "{}").text, flush=True)
servers.tools[0].call("functions.odd_hang", "{}")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_parent_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    server = odd("stays").server
    assert isinstance(server, StdioServer)
    entry = {"command": server.command[0], "args": server.command[1:]}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"odd": entry}}))
    command = [sys.executable, "-c", PARENT, str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        try:
            family = json.loads(parent.stdout.readline())
            assert not are_gone(family)
            parent.send_signal(number)
            parent.communicate(timeout=LONG)
        finally:
            parent.kill()
    until(lambda: are_gone(family if sys.platform == "linux" else family[:2]))


def test_a_start_that_is_cut_short_at_any_step_leaves_nothing() -> None:
    """Pipes and processes that are left are warnings, which fail the test."""
    from gptoss_mlx.tools.mcp.lines import LastWords
    from gptoss_mlx.tools.mcp.stdio import stdio_transport

    async def stay() -> None:
        server = odd("silent").server
        assert isinstance(server, StdioServer)
        async with stdio_transport(server, LastWords()):
            await anyio.sleep_forever()

    async def cut(steps: int) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stay)
            for _ in range(steps):
                await anyio.sleep(0)
            tasks.cancel_scope.cancel()

    for steps in range(12):
        anyio.run(cut, steps)
        gc.collect()


def test_close_while_servers_start_ends_them(tmp_path: Path) -> None:
    """As Ctrl-C does, which is raised where their number is shown."""
    from gptoss_mlx.tools.mcp.servers import McpServers

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    children = {child.pid for child in psutil.Process().children(recursive=True)}
    configs = [odd(), odd("silent", name="mute")]
    with pytest.raises(KeyboardInterrupt):
        McpServers(configs, interrupt)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= children

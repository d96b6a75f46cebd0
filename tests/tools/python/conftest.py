"""Fixtures of the `python` tool: interpreters, with and without a sandbox, and a host to attack."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.errors import SandboxError
from gptoss_mlx.tools.python.limits import Limits
from gptoss_mlx.tools.python.sandbox.choice import Mode
from gptoss_mlx.tools.python.sandbox.libc import architecture
from gptoss_mlx.tools.python.sandbox.syscalls import JUDGED, REFUSED
from gptoss_mlx.tools.python.tool import PythonTool

SMALL = Limits(
    wall=20,
    cpu=20,
    grace=0.3,
    memory=160 << 20,
    output=2000,
    processes=24,
    folder=32 << 20,
    file=8 << 20,
    files=300,
    opened=64,
)
"""Little enough that using all of it takes a moment."""

Make = Callable[..., PythonTool]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """(limits, sandbox) -> a tool, closed after the test; the test is skipped if there is none."""
    made: list[PythonTool] = []

    def tool(limits: Limits | None = None, sandbox: Mode = "required") -> PythonTool:
        made.append(PythonTool(tmp_path / f"folder-{len(made)}", limits, sandbox))
        return checked(made[-1])

    yield tool
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonTool]:
    """A sandboxed interpreter that the tests of a module share."""
    tool = PythonTool(tmp_path_factory.mktemp("walled"), Limits(wall=20))
    yield checked(tool)
    tool.close()


@pytest.fixture(scope="module")
def unwalled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonTool]:
    """An interpreter without a sandbox, for harmless attempts to succeed in."""
    tool = PythonTool(tmp_path_factory.mktemp("unwalled"), Limits(wall=20), sandbox="none")
    yield tool
    tool.close()


def checked(tool: PythonTool) -> PythonTool:
    """The tool, if a sandbox can be made; one that should be possible and fails is a failure."""
    try:
        tool.call("python", "")
    except SandboxError as error:
        if sys.platform == "linux" and another_program_makes_one():
            raise
        pytest.skip(f"no sandbox can be made here: {error}")
    return tool


def another_program_makes_one() -> bool:
    """Whether util-linux can make the namespaces that ours needs."""
    options = ["--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts", "--cgroup"]
    command = ["unshare", *options, "--pid", "--fork", "--mount-proc", "true"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What there is to be reached: servers, files, this process."""
    folder = tmp_path_factory.mktemp("home")
    secret = folder / "secret"
    secret.write_text("the secret", encoding="utf-8")
    name = "\0gptoss-test-" + str(os.getpid())
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    with tcp, udp, socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_UNIX) as other:
        unix.bind(str(folder / "socket"))
        other.bind(name)
        for listener in (tcp, unix, other):
            listener.listen(8)
        yield {
            "port": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": str(folder / "socket"),
            "abstract": name,
            "secret": str(secret),
            "temporary": str(secret),
            "cwd": os.getcwd(),
            "pid": os.getpid(),
            "python": sys.executable,
            "calls": {**_calls(), "cachestat": 451},
        }


def _calls() -> dict[str, int]:
    machine = architecture()
    return {**REFUSED.get(machine, {}), **JUDGED.get(machine, {})}

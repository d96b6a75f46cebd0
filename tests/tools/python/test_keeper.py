"""Nothing outlives a conversation, costs anything between calls, or gets what it was not given."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from gptoss_mlx.tools.python.sandbox.choice import Mode
from tests.root import ROOT
from tests.tools.python.conftest import Make

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux names them"),
]

DAEMON = """
import ctypes, os, time
def daemon():
    reading, writing = os.pipe()  # which ends when it has become a program
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # no death with the parent
            os.execv('/bin/sleep', ['sleep', '{seconds}'])
        os._exit(0)
    os.wait()
    os.close(writing)
    os.read(reading, 1)
daemon()
"""


def seconds(number: int) -> str:
    """A time of sleep that no other process sleeps, to be found by."""
    return f"{90_000 + os.getpid()}.{number}"


def found(mark: str) -> list[psutil.Process]:
    """Processes of this machine that sleep for so long."""
    every = psutil.process_iter(["cmdline"])
    return [process for process in every if process.info["cmdline"] == ["sleep", mark]]


@pytest.mark.parametrize("sandbox", ["required", "none"])
def test_a_daemon_ends_with_the_tool(sandbox: Mode, make: Make) -> None:
    tool, mark = make(sandbox=sandbox), seconds(1)
    assert not tool.call("python", DAEMON.replace("{seconds}", mark)).failed
    (daemon,) = found(mark)
    tool.close()
    assert not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE


def test_a_daemon_ends_with_its_interpreter(make: Make) -> None:
    tool, mark = make(), seconds(2)
    output = tool.call("python", DAEMON.replace("{seconds}", mark) + "os._exit(0)")
    assert "has ended" in output.text
    assert found(mark) == []


@pytest.mark.parametrize("sandbox", ["required", "none"])
def test_all_ends_when_the_product_is_killed(sandbox: str, make: Make, tmp_path: Path) -> None:
    make()  # or there is no sandbox here
    mark = seconds(3)
    script = (
        "import pathlib, sys\nfrom gptoss_mlx.tools.python.tool import PythonTool\n"
        f"tool = PythonTool(pathlib.Path(sys.argv[1]), sandbox={sandbox!r})\n"
        f"print(tool.call('python', {DAEMON.replace('{seconds}', mark)!r}).text, flush=True)\n"
        "tool.call('python', 'import time; print(1); time.sleep(60)')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "folder")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as product:
        assert product.stdout is not None
        assert product.stdout.readline() == "[no output]\n"
        family = [*psutil.Process(product.pid).children(recursive=True), *found(mark)]
        assert len(family) >= 3
        product.send_signal(signal.SIGKILL)
        gone, alive = psutil.wait_procs(set(family), timeout=20)
        assert (len(gone) >= 3, alive) == (True, [])


@pytest.mark.parametrize("sandbox", ["required", "none"])
def test_between_calls_every_process_is_stopped(sandbox: Mode, make: Make) -> None:
    """A thread that computes, too: it goes on with the next call."""
    tool, mark = make(sandbox=sandbox), seconds(4)
    code = (
        "import threading, itertools\ncounted = itertools.count()\n"
        "def count():\n    while True: next(counted)\n"
        "threading.Thread(target=count, daemon=True).start()"
    )
    tool.call("python", DAEMON.replace("{seconds}", mark))
    (daemon,) = found(mark)
    until_stopped(daemon)
    tool.call("python", code)
    before = tool.call("python", "next(counted)").text
    for worker in (p for p in psutil.process_iter(["cmdline"]) if is_worker(p)):
        until_stopped(worker)
    after = tool.call("python", "next(counted)").text
    assert int(after) > int(before)


def until_stopped(process: psutil.Process) -> None:
    """A processor takes a moment to stop what it runs. The test's limit of time ends the wait."""
    while process.status() != psutil.STATUS_STOPPED:
        pass


def is_worker(process: psutil.Process) -> bool:
    """One of this test's: a descendant of this process."""
    line = process.info["cmdline"] or [""]
    return line[-1].endswith("worker.py") and os.getpid() in {p.pid for p in process.parents()}


def test_the_thread_that_made_the_first_call_may_end(make: Make) -> None:
    tool = make()
    tool.close()
    first = threading.Thread(target=tool.call, args=("python", "x = 1"))
    first.start()
    first.join()
    assert tool.call("python", "x").text == "1"


@pytest.mark.parametrize("who", ["the interpreter", "the keeper"])
def test_one_that_was_killed_between_calls_is_replaced(who: str, make: Make) -> None:
    tool = make()
    family = psutil.Process().children(recursive=True)
    (worker,) = [p for p in family if p.cmdline()[-1].endswith("worker.py")]
    keepers = [p for p in family if p != worker]
    (worker if who == "the interpreter" else keepers[0]).kill()
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert tool.call("python", "1 + 1").text == (
        "2\n[a new interpreter was started: what earlier calls defined is gone]"
    )


def test_it_inherits_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither open files, inheritable ones included, nor variables."""
    monkeypatch.setenv("GPTOSS_TEST_KEY", "secret")
    with inheritable(tmp_path / "file") as number:
        tool = make()
        said = tool.call("python", "import os; sorted(os.listdir('/proc/self/fd'), key=int)").text
        assert said == "['0', '1', '2', '3', '4', '5', '6']"  # 6 is the list's own
        assert number > 6
        said = tool.call("python", "'secret' in str(os.environ)").text
        assert said == "False"


@contextmanager
def inheritable(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        os.set_inheritable(descriptor, True)
        yield descriptor
    finally:
        os.close(descriptor)

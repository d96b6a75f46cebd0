"""The warden: the process that starts a server, waits for it, and leaves nothing of it behind.

It is run as a script, `python -I -S warden.py DESCRIPTOR COMMAND...`, and imports nothing of the
package. The descriptor is a pipe that only the asking process holds open: when it is closed, be it
because that process was killed, the server's process group is ended. On Linux, what has left the
group is ended as well, and the server dies with the warden. The status is the server's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

_GRACE = 1.0  # seconds between SIGTERM and SIGKILL
_TICK = 0.01
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_RESTORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)


def main() -> None:
    """Never returns."""
    lifeline, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(lifeline, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    server = os.fork()
    if server == 0:
        _become(command)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the server's pipes end with the server
        os.dup2(nothing, descriptor)
    status = None
    while status is None:
        ready, _, _ = select.select([lifeline, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
        status = _reap(server)
        if lifeline in ready:
            break
    status = _end(server, status)
    os._exit(status if status >= 0 else 128 - status)


def _become(command: list[str]) -> None:
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in _RESTORED:
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: cannot be run: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def _reap(server: int) -> int | None:
    """Collect what has ended; the server's status if it is among that."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == server:
                status = os.waitstatus_to_exitcode(ended[1])
    return status


def _end(server: int, status: int | None) -> int:
    """End the group and, on Linux, every other descendant; the server's status."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE
        is_there = _kill(server, number)
        while is_there and time.monotonic() < deadline:
            time.sleep(_TICK)
            ended = _reap(server)
            status = ended if status is None else status
            is_there = _kill(server, 0)
    while children := _children():  # whatever left the group is ours now
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended = _reap(server)
        status = ended if status is None else status
        time.sleep(_TICK)
    return -signal.SIGKILL if status is None else status


def _kill(group: int, number: int) -> bool:
    """Signal a process group; whether there was one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of a group whose last processes are not reaped yet
        return True
    return True


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # there is no such file, as on macOS
        return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


if __name__ == "__main__":
    main()

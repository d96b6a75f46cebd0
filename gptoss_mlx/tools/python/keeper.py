"""The keeper: the process that starts an interpreter, watches it, and ends it.

It is of our code alone. In namespaces it is their first process, which the code inside can neither
stop nor kill, and whose end is the end of all others. It ends when its control socket is closed, so
that nothing outlives the process that asked for it, however that died.

It obeys single bytes: RUN, FREEZE, INTERRUPT. Between calls all processes are stopped, so that a
conversation costs nothing while nobody asks for anything. It says, as a line of JSON each: that it
is ready, with the folder's descriptor; that all is frozen; what is over its limit; how it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import signal
import socket
import struct
import sys

from gptoss_mlx.tools.python.sandbox.confinement import confine, guard
from gptoss_mlx.tools.python.sandbox.jail import DATA, Jail
from gptoss_mlx.tools.python.sandbox.namespaces import enter
from gptoss_mlx.tools.python.sandbox.rlimits import KEEPERS
from gptoss_mlx.tools.python.sandbox.root import SCRATCH
from gptoss_mlx.tools.python.usage import Descendants, Family, Namespace

RUN, FREEZE, INTERRUPT = b"r", b"s", b"i"

_PERIOD = 0.05  # seconds between two looks at what is used
_WORKER_FILES = (3, 4, 5)  # requests, answers, a copy of the output


class Keeper:
    """Obeys a control socket on behalf of one interpreter."""

    def __init__(self, jail: Jail, control: socket.socket, files: tuple[int, int]) -> None:
        self.jail, self.control, self.files = jail, control, files
        self.worker, self.is_running = 0, True
        is_walled = jail.folder == DATA
        self.family: Family = Namespace() if is_walled else Descendants(os.getpid())
        self._cpu_before = 0.0
        self._cpu_is_over = False
        self._bounded = (DATA, *SCRATCH) if is_walled else ()

    def keep(self) -> None:
        """Start the interpreter and stay until it or the control socket ends; never returns."""
        code = 1
        try:
            self._keep()
            code = 0
        except BaseException as error:  # nothing of the caller's may run in this process
            with contextlib.suppress(OSError):
                self.say(failed=f"{error}" or repr(error))
        finally:
            if isinstance(self.family, Descendants):
                self.family.end()
            os._exit(code)

    def say(self, **message: object) -> None:
        self.control.sendall(json.dumps(message).encode("utf-8") + b"\n")

    def _keep(self) -> None:
        wake, waker = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(waker, False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        guard(self.jail.kind)
        self._start_worker()
        self._say_ready()
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll(1000 * _PERIOD if self.is_running else None)}
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
            if self.control.fileno() in ready and not self._obey():
                return
            if not self._reap():
                return
            if self.is_running and not self._watch():
                return

    def _start_worker(self) -> None:
        self.worker = os.fork()
        if self.worker == 0:
            try:
                become_worker(self.jail, self.files)
            except BaseException as error:  # the parent's frames are not this process's to unwind
                os.write(2, str(error).encode())
                os._exit(127)
        for descriptor in self.files:
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)

    def _say_ready(self) -> None:
        line = json.dumps({"ready": True}).encode("utf-8") + b"\n"
        if self.jail.folder != DATA:
            self.control.sendall(line)
            return
        folder = os.open(DATA, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        socket.send_fds(self.control, [line], [folder])
        os.close(folder)

    def _obey(self) -> bool:
        """Whether to go on."""
        orders = self.control.recv(64)
        for order in orders:
            if order == RUN[0]:
                self._cpu_before = self.family.usage(self.jail.limits.memory).cpu
                self._cpu_is_over = False
                self.is_running = True
                self.family.signal(signal.SIGCONT)
            elif order == FREEZE[0]:
                self.family.signal(signal.SIGSTOP)
                self.is_running = False
                self.say(frozen=True)
            elif order == INTERRUPT[0]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.worker, signal.SIGINT)
        return bool(orders)

    def _reap(self) -> bool:
        """Collect what has ended; whether the interpreter still runs."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self.worker:
                    self.say(ended=os.waitstatus_to_exitcode(status))
                    return False
                if pid == 0:
                    break
        return True

    def _watch(self) -> bool:
        """Report what is over its limit; whether to go on."""
        limits = self.jail.limits
        usage = self.family.usage(limits.memory)
        if usage.memory > limits.memory:
            self.say(over="memory")
            return False
        if usage.threads > limits.processes + KEEPERS:  # where no kernel has refused them
            self.say(over="processes")
            return False
        if any(files_in(path) > limits.files + 1 for path in self._bounded):
            self.say(over="files")
            return False
        if usage.cpu - self._cpu_before > limits.cpu and not self._cpu_is_over:
            self._cpu_is_over = True
            self.say(over="cpu")
        return True


def become_worker(jail: Jail, files: tuple[int, int]) -> None:
    """Turn this process into the interpreter; returns only by raising OSError."""
    os.setsid()
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 64) for number in (*files, 1)]
    for number, descriptor in zip(_WORKER_FILES, high, strict=True):
        os.dup2(descriptor, number)
    os.closerange(_WORKER_FILES[-1] + 1, os.sysconf("SC_OPEN_MAX"))
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(name, signal.SIG_DFL)
    os.chdir(jail.folder)
    confine(jail)
    os.execve(jail.command[0], jail.command, dict(jail.environment))


def files_in(path: str) -> int:
    """Files and folders of a file system in memory: bubblewrap has no limit for them."""
    status = os.statvfs(path)
    return status.f_files - status.f_ffree


def main() -> None:
    """Read the jail from the control socket, whose descriptor is named, and keep it."""
    descriptor, *files = map(int, sys.argv[-3:])
    control = socket.socket(fileno=descriptor)
    for number in (descriptor, *files):
        os.set_inheritable(number, False)
    with control.makefile("rb", buffering=0) as lines:
        (length,) = struct.unpack(">I", read_exactly(lines, 4))
        jail = Jail.unpacked(read_exactly(lines, length))
    keeper = Keeper(jail, control, (files[0], files[1]))
    try:
        if jail.kind == "namespaces" and not enter(jail):
            return
    except BaseException as error:  # in the child, whose caller's frames are not its own
        keeper.say(failed=str(error))
        os._exit(1)
    keeper.keep()


def read_exactly(file: io.RawIOBase, count: int) -> bytes:
    """Raises EOFError."""
    data = b""
    while len(data) < count:
        piece = file.read(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data

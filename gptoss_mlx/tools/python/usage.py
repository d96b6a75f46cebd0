"""What the processes of an interpreter use together: memory, CPU time, threads."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import psutil

_TICKS = os.sysconf("SC_CLK_TCK")
_IN_MEMORY = ("RssAnon:", "RssShmem:", "VmSwap:", "VmPTE:")


@dataclass(frozen=True)
class Consumption:
    """memory: bytes, in memory or swapped out. cpu: seconds since the start. threads: alive."""

    memory: int = 0
    cpu: float = 0.0
    threads: int = 0


class Family(Protocol):
    """All processes that an interpreter's code has started, and the interpreter."""

    def usage(self, most: int) -> Consumption:
        """Memory is counted exactly only where it seems to be above `most` bytes."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to all of them at once."""
        ...


class Namespace:
    """The processes of this process's PID namespace, of which this is the first.

    What waits in their sockets is the kernel's memory, which no limit of a process counts.
    """

    def __init__(self) -> None:
        with socket.socket(socket.AF_UNIX) as fresh:  # the filter lets none have more
            self._socket_bytes = 2 * fresh.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def usage(self, most: int) -> Consumption:
        pids = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        memory, cpu, threads = 0, ended.ru_utime + ended.ru_stime, 0
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                memory += sum(_kibibytes(f"/proc/{pid}/status", _IN_MEMORY)) << 10
                seconds, its_threads = _times(pid)
                cpu, threads = cpu + seconds, threads + its_threads
        sockets = self._sockets() * self._socket_bytes
        if memory + sockets > most:
            memory = min(memory, self._exact(pids))
        return Consumption(memory + sockets, cpu, threads)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)

    def _sockets(self) -> int:
        """Those of the network namespace, which is the code's alone; each takes a line."""
        with open("/proc/self/net/unix", "rb") as file:
            return file.read().count(b"\n") - 1  # the first one is a heading

    def _exact(self, pids: list[str]) -> int:
        """Pages that several processes share are counted once."""
        total = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                rollup = f"/proc/{pid}/smaps_rollup"
                total += sum(_kibibytes(rollup, ("Pss_Anon:", "Pss_Shmem:", "SwapPss:"))) << 10
                total += sum(_kibibytes(f"/proc/{pid}/status", ("VmPTE:",))) << 10
        return total


class Descendants:
    """All that descends from a process: what can be had where there is no namespace.

    On Linux a process whose parents have ended is found too, if `ancestor` adopts orphans.
    """

    def __init__(self, ancestor: int) -> None:
        self._ancestor = ancestor

    def usage(self, most: int) -> Consumption:
        import psutil

        memory, cpu, threads = 0, 0.0, 0
        for process in self._alive():
            with contextlib.suppress(psutil.Error):
                with process.oneshot():
                    times = process.cpu_times()
                    memory += process.memory_info().rss
                    threads += process.num_threads()
                cpu += times.user + times.system + times.children_user + times.children_system
        return Consumption(memory, cpu, threads)

    def signal(self, number: int) -> None:
        import psutil

        for process in self._alive():
            with contextlib.suppress(psutil.Error, OSError):
                process.send_signal(number)

    def end(self) -> None:
        """Kill them all, those too that they start meanwhile."""
        for _ in range(20):
            self.signal(signal.SIGSTOP)
            self.signal(signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not self._alive():
                return

    def _alive(self) -> list[psutil.Process]:
        import psutil

        with contextlib.suppress(psutil.Error):
            return psutil.Process(self._ancestor).children(recursive=True)
        return []


def _times(pid: str) -> tuple[float, int]:
    """CPU seconds of a process and of its children that have ended; its threads."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS, int(fields[17])


def _kibibytes(path: str, names: tuple[str, ...]) -> Iterator[int]:
    """The values of these lines of a file in /proc."""
    with open(path, "rb") as file:
        for line in file.read().decode("ascii", "replace").splitlines():
            if line.startswith(names):
                yield int(line.split()[1])

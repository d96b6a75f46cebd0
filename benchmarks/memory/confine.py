"""Runs a command inside a memory limit that the kernel enforces, without swap.

The limit is that of a control group of Linux (version 1 or 2), which holds the page cache as well:
what does not fit ends with the kernel's out-of-memory kill, nothing else.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path("/sys/fs/cgroup")
_TICK = 0.02  # seconds between looks at the memory in use


@dataclass(frozen=True)
class Outcome:
    """returncode: -9 when the kernel killed it. peak: bytes of its own (anonymous) memory."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    peak: int


def run(command: Sequence[str], limit: int | None = None) -> Outcome:
    """Run to the end, confined to `limit` bytes. Raises click.ClickException if that fails."""
    if limit is None:
        return _watched(command, None)
    with _group(limit) as group:
        return _watched(command, group)


@contextmanager
def _group(limit: int) -> Iterator[Path]:
    first = (ROOT / "memory").is_dir()
    group = (ROOT / "memory" if first else ROOT) / f"gptoss-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise _refused(group, error) from error
    try:
        try:
            _limit(group, limit, first)
        except OSError as error:
            raise _refused(group, error) from error
        yield group
    finally:
        group.rmdir()


def _limit(group: Path, limit: int, first: bool) -> None:
    if first:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        swap = group / "memory.memsw.limit_in_bytes"
    else:
        (group / "memory.max").write_text(str(limit))
        swap = group / "memory.swap.max"
    if swap.exists():
        swap.write_text(str(limit) if first else "0")


def _refused(group: Path, error: OSError) -> click.ClickException:
    return click.ClickException(
        f"{group}: no memory limit can be set: {error.strerror}; it takes root under Linux"
    )


def _watched(command: Sequence[str], group: Path | None) -> Outcome:
    """The command's own process enters the group before it becomes the command."""

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    begun, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=enter,
    )
    out = err = None
    try:
        while out is None:
            peak = max(peak, anonymous(process.pid))
            try:
                out, err = process.communicate(timeout=_TICK)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if out is None:
            process.kill()
            process.wait()
    return Outcome(process.returncode, out, err, time.perf_counter() - begun, peak)


def anonymous(pid: int) -> int:
    """Bytes of memory of a process that no file stands behind; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0

"""One measurement, in a process of its own with a time limit: whatever becomes of it is a row."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

SAID = 300  # characters of what a process said last that are kept
PATHS = ("model", "folder", "gguf")
"""Options of which only the last name is reported: paths name people."""


class Absent(Exception):
    """What a measurement needs is not on this machine; the message says what."""


@dataclass(frozen=True)
class Task:
    """A command that prints its figures as a JSON object on its last line.

    {"absent": "why"} in place of figures: it cannot be measured here. limit: seconds.
    about: what it measures, for the report.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """state: "ok", "absent", "failed", "crashed" or "too long"; why: one line, where not "ok"."""

    name: str
    state: str
    seconds: float
    about: Mapping[str, Any]
    figures: Mapping[str, Any]
    why: str = ""


def worker(name: str, job: str, limit: float, **options: Any) -> Task:
    """A task of worker.py: one of its jobs with these options."""
    values = json.dumps(options)
    command = (sys.executable, "-m", "benchmarks.mac.worker", job, values)
    about = {k: Path(v).name if k in PATHS and v else v for k, v in options.items()}
    return Task(name, command, limit, {"job": job, **about})


def run(task: Task) -> Row:
    """Run a task to its end, or to the end of its time; never raises because of it."""
    begun = time.monotonic()

    def row(state: str, why: str = "", figures: Mapping[str, Any] | None = None) -> Row:
        seconds = round(time.monotonic() - begun, 2)
        why = why.replace(str(Path.home()), "~")
        return Row(task.name, state, seconds, task.about, figures or {}, why)

    with TemporaryFile("w+", errors="replace") as out, TemporaryFile("w+", errors="replace") as err:
        try:
            code = _wait(task, out, err)
        except OSError as error:
            return row("failed", f"{task.command[0]}: {error.strerror}")
        if code is None:
            return row("too long", f"stopped after {task.limit:g} s")
        if code < 0:
            return row("crashed", _joined(_signal(-code), _last(err)))
        if code > 0:
            return row("failed", _last(err) or f"exit code {code}")
        try:
            figures = json.loads(_last(out, None))
        except ValueError:
            figures = None
    if not isinstance(figures, dict):
        return row("failed", "it gave no figures")
    if "absent" in figures:
        return row("absent", str(figures["absent"]))
    return row("ok", figures=figures)


def _wait(task: Task, out: IO[str], err: IO[str]) -> int | None:
    """The exit code, or None if the time was up; nothing of the process is left behind."""
    process = subprocess.Popen(
        task.command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        return process.wait(task.limit)
    except subprocess.TimeoutExpired:
        return None
    finally:  # an interrupt too
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last(file: IO[str], most: int | None = SAID) -> str:
    """The last line that says something."""
    file.seek(0)
    lines = [line.strip() for line in file.read().splitlines() if line.strip()]
    return lines[-1][:most] if lines else ""


def _signal(number: int) -> str:
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


def _joined(*parts: str) -> str:
    return ": ".join(part for part in parts if part)

"""Tries damaged inputs and shows, by kind, what became of them.

Each may be refused in a line or taken; anything else is a failure: another exception, more than
5 seconds of computing, 512 MiB, or a line of more than 300 characters. It exits with 1 then, and
says how to try the one case again.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

SECONDS, BYTES, CHARACTERS = 5.0, 512 << 20, 300
_SURPRISE = re.compile(r"unexpected \w+: |Traceback")
_WAIT = 60  # seconds of the clock, after which a case hangs
_MEMORY = Path("/dev/shm")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Tally:
    """What became of one kind's cases."""

    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    characters: int = 0
    failures: list[str] = field(default_factory=list)


class Hangs(BaseException):
    """A case that waits: no handler of the product takes it for its own."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=100, help="cases of each kind")
    parser.add_argument("--kind", action="append", help="only this kind; repeatable")
    parser.add_argument("--case", type=int, help="only the case of this number")
    options = parser.parse_args()

    # In memory, where there is such a place: that conversions wait for the disk shows nothing.
    folder = Path(tempfile.mkdtemp(prefix="fz", dir=_MEMORY if _MEMORY.is_dir() else None))
    os.environ["GPTOSS_CACHE"] = str(folder / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    faulthandler.enable()
    signal.signal(signal.SIGALRM, _hang)
    try:
        return _try_all(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try_all(folder: Path, options: argparse.Namespace) -> int:
    from tests.fuzz.targets import targets

    found = targets(folder)
    tallies: dict[str, Tally] = {}
    print(f"{'kind':18} {'cases':>6} {'refused':>7} {'s':>6} {'MiB':>5} {'line':>5}")
    for kind in options.kind or found:
        tally = tallies[kind] = Tally()
        told = found[kind].run() or ""
        if "error: " in told:
            tally.failures.append(f"--kind {kind!r}: its undamaged input is refused: {told[:200]}")
        cases = range(options.count) if options.case is None else (options.case,)
        for number in cases:
            problem = _try(found[kind], Random(f"{kind} {number}"), tally)
            if problem is not None:
                tally.failures.append(f"--kind {kind!r} --case {number}: {problem}")
        print(
            f"{kind:18} {tally.cases:6} {tally.refused:7} {tally.seconds:6.2f}"
            f" {tally.nbytes >> 20:5} {tally.characters:5}",
            flush=True,
        )
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    print(f"{sum(t.cases for t in tallies.values())} cases, {len(failures)} failures")
    for failure in failures[:40]:
        print(failure)
    return bool(failures)


def _try(target: object, rng: Random, tally: Tally) -> str | None:
    """Why a case is a failure, or None."""
    import click

    from gptoss_mlx.errors import GptOssError
    from tests.fuzz.targets import Target

    assert isinstance(target, Target)
    target.path.write_bytes(target.damage(rng, target.content))
    begun, before, told, problem = time.process_time(), _reset_peak(), "", None
    try:
        with _limit_of_time():
            told = target.run() or ""
    except (GptOssError, click.UsageError) as error:
        told = str(error)
        tally.refused += 1
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        target.path.write_bytes(target.content)
    seconds, nbytes = time.process_time() - begun, _peak() - before
    lines = told.splitlines() or [""]
    tally.refused += "error: " in told
    tally.cases += 1
    tally.seconds = max(tally.seconds, seconds)
    tally.nbytes = max(tally.nbytes, nbytes)
    tally.characters = max(tally.characters, *map(len, lines))
    if problem is not None:
        return problem
    if surprises := [line for line in lines if _SURPRISE.search(line)]:
        return surprises[0][:200]
    if seconds > SECONDS:
        return f"takes {seconds:.1f} s"
    if nbytes > BYTES:
        return f"takes {nbytes >> 20} MiB"
    if max(map(len, lines)) > CHARACTERS:
        return f"a line of {max(map(len, lines))} characters: {max(lines, key=len)[:200]}"
    return None


@contextmanager
def _limit_of_time() -> Iterator[None]:
    signal.alarm(_WAIT)
    faulthandler.dump_traceback_later(3 * _WAIT, exit=True)  # what never comes back to Python
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def _hang(*_: object) -> None:
    raise Hangs(f"more than {_WAIT} s")


def _reset_peak() -> int:
    """Bytes in memory now; Linux then begins to count the most once more."""
    if _RESET.exists():
        _RESET.write_text("5")
    return _peak()


def _peak() -> int:
    """The most bytes that were in memory."""
    if _STATUS.exists():
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


if __name__ == "__main__":
    sys.exit(main())

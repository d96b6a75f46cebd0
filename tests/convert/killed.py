"""Runs a conversion that is killed (SIGKILL) at the n-th thing it does to the disk.

`python -m tests.convert.killed SOURCE DEST RECIPE N`; with N = 0 it is let live and prints how many
things it did.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from convert.conversion import Conversion


class Killer:
    """Counts calls and kills this process just before the n-th."""

    def __init__(self, n: int) -> None:
        self._n, self._lock = n, Lock()
        self.count = 0

    def watch(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            with self._lock:
                self.count += 1
                if self.count == self._n:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return watched


def main(source: str, folder: str, recipe: str, n: int) -> None:
    killer = Killer(n)
    for name in ("pwrite", "fsync", "ftruncate", "rename", "unlink"):
        setattr(os, name, killer.watch(getattr(os, name)))
    conversion = Conversion.prepare(Path(source), Path(folder), target="mlx", recipe=recipe)
    conversion.run()
    print(killer.count)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))

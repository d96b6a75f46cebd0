"""What a process does to itself, last of all, before it becomes the interpreter."""

from __future__ import annotations

import contextlib
import signal
import sys

from gptoss_mlx.tools.python.sandbox import landlock, libc, rlimits, seccomp
from gptoss_mlx.tools.python.sandbox.jail import DATA, Jail
from gptoss_mlx.tools.python.sandbox.root import DEVICES, SCRATCH

_WRITABLE = (DATA, *SCRATCH, *(f"/dev/{name}" for name in DEVICES))


def guard(kind: str) -> None:
    """Keep the interpreter's code out of the keeper's memory, and orphans in its reach.

    Raises OSError.
    """
    if sys.platform == "linux":
        libc.prctl("files in /proc", libc.PR_SET_DUMPABLE, 0)
        if kind == "none":
            libc.prctl("orphans", libc.PR_SET_CHILD_SUBREAPER, 1)
        else:  # whose parent has one thread: with the end of a thread the signal comes, too
            libc.prctl("the end with the parent", libc.PR_SET_PDEATHSIG, signal.SIGKILL)


def confine(jail: Jail) -> None:
    """Limits everywhere; on Linux the system call filter and Landlock too, if there are walls.

    Raises OSError.
    """
    if sys.platform != "linux":
        rlimits.limit(jail.limits, separate=False)
        return
    is_walled = jail.kind in ("namespaces", "bubblewrap")
    libc.prctl("the end with the parent", libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl("files in /proc", libc.PR_SET_DUMPABLE, 1)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when memory ends, this ends first, and not the model
    rlimits.limit(jail.limits, separate=is_walled)
    if is_walled:
        landlock.restrict(("/",), _WRITABLE)
        seccomp.filter_calls()

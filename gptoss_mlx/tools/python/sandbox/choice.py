"""Which sandboxes a machine may have, how one is started, and what is missing where none can be."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeAlias

import gptoss_mlx
from gptoss_mlx.errors import OptionError, SandboxError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.tools.python.limits import Limits
from gptoss_mlx.tools.python.sandbox import bubblewrap, macos
from gptoss_mlx.tools.python.sandbox.jail import DATA, Jail
from gptoss_mlx.tools.python.sandbox.places import (
    interpreter,
    library_paths,
    readable_places,
    time_zone,
)
from gptoss_mlx.tools.python.sandbox.syscalls import REFUSED

Mode: TypeAlias = Literal["required", "none"]

_WORKER = Path(__file__).parent.parent / "worker.py"
_PACKAGE = Path(gptoss_mlx.__file__).parent
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]);"
    " from gptoss_mlx.tools.python.keeper import main; main()"
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")
_SYSCTL = Path("/proc/sys")
_MOST_THREADS = 4  # each counts as a process

_UNSAFE = "or run the code without one, which lets it do whatever you can do (--unsafe-python)"
_HELP = "docs/tools-python.md says how"
_SWITCHES = {
    "kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "AppArmor forbids user namespaces here; install bubblewrap with its AppArmor profile"
        f" ({_HELP})",
    ),
    "kernel/unprivileged_userns_clone": (
        "0",
        "user namespaces are switched off here; set the sysctl kernel.unprivileged_userns_clone=1"
        " or install bubblewrap",
    ),
    "user/max_user_namespaces": (
        "0",
        "user namespaces are switched off here; set the sysctl user.max_user_namespaces above 0",
    ),
}
"""A file in /proc/sys -> the value that forbids namespaces, and what a person does about it."""


def kinds(mode: Mode) -> Sequence[str]:
    """The kinds of sandbox to be tried in turn. Raises OptionError, SandboxError."""
    if mode not in ("required", "none"):
        raise OptionError(f"sandbox is {shown(mode)}, but must be 'required' or 'none'")
    if mode == "none":
        return ("none",)
    if sys.platform == "darwin":
        if os.path.exists(macos.PROGRAM):
            return ("seatbelt",)
        raise SandboxError(f"no sandbox for Python: {macos.PROGRAM} is missing; {_UNSAFE}")
    if sys.platform == "linux":
        from gptoss_mlx.tools.python.sandbox.libc import architecture

        if architecture() not in REFUSED:
            raise SandboxError(
                f"no sandbox for Python: there is no table of system calls for {architecture()}"
                f" processors; {_UNSAFE}"
            )
        # As root bubblewrap's processes would be root's outside, for which some limits do not hold.
        further = ("bubblewrap",) if bubblewrap.program() and os.geteuid() != 0 else ()
        return ("namespaces", *further)
    raise SandboxError(f"no sandbox for Python: there is none for {sys.platform}; {_UNSAFE}")


def make_jail(kind: str, folder: Path, limits: Limits) -> Jail:
    """What an interpreter is given. folder: of its files, outside."""
    is_direct = kind in ("seatbelt", "none")
    readable = readable_places(str(_WORKER))
    where = str(folder) if is_direct else DATA
    scratch = where if is_direct else "/tmp"
    return Jail(
        kind=kind,
        python=interpreter(),
        worker=str(_WORKER),
        paths=library_paths(),
        readable=readable,
        folder=where,
        environment=_environment(scratch),
        limits=limits,
        wrapper=tuple(macos.wrapper(readable, where)) if kind == "seatbelt" else (),
    )


def keeper_command(jail: Jail, descriptors: Sequence[int]) -> list[str]:
    """The command of the keeper, which is passed these descriptors.

    Where there are no namespaces it asks psutil, which is among the installed packages.
    """
    boot = ["-c", _BOOT, str(_PACKAGE.parent), *map(str, descriptors)]
    if jail.kind == "bubblewrap":
        start = bubblewrap.arguments(bubblewrap.program() or "bwrap", jail, str(_PACKAGE))
        return [*start, jail.python, "-I", "-S", "-B", *boot]
    return [sys.executable, "-I", *(["-S"] if jail.kind == "namespaces" else []), "-B", *boot]


def refusal(reasons: Sequence[str]) -> SandboxError:
    """The error of a machine on which each kind that was tried has failed."""
    if sys.platform == "linux":
        for name, (forbidding, advice) in _SWITCHES.items():
            with suppress(OSError):
                if (_SYSCTL / name).read_text(encoding="ascii").strip() == forbidding:
                    return SandboxError(f"no sandbox for Python: {advice}, {_UNSAFE}")
    said = "; ".join(reasons)
    return SandboxError(
        f"no sandbox for Python: {said}; a container may have to be allowed user namespaces"
        f" ({_HELP}), {_UNSAFE}"
    )


def _environment(scratch: str) -> dict[str, str]:
    """All variables of the interpreter: none of the user's but the time zone's."""
    variables = {
        "HOME": scratch,
        "TMPDIR": scratch,
        "MPLCONFIGDIR": os.path.join(scratch, ".matplotlib"),
        "MPLBACKEND": "module://gptoss_figures",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "USER": "user",
        "LOGNAME": "user",
    }
    if zone := time_zone():
        variables["TZ"] = zone
    threads = str(min(_MOST_THREADS, os.cpu_count() or 1))
    return variables | dict.fromkeys(_THREADS, threads)

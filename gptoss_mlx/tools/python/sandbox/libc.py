"""System calls of Linux that Python 3.11 has no function for, through the C library."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

_CAPSET = {"x86_64": 126, "aarch64": 91}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPABILITIES_V3 = 0x2008_0522
_SECUREBITS_LOCKED = 0b1110_1111
"""No root by uid, no capabilities kept or raised, and each of these locked."""


def architecture() -> str:
    """ "x86_64", "aarch64", or another that the sandbox has no tables for."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def system_call(
    what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]
) -> int:
    """What the kernel returns. Raises OSError, whose text begins with `what`."""
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(int(_LIBC.syscall(ctypes.c_long(number), *passed)), what)


def prctl(what: str, option: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> int:
    """Raises OSError."""
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    padding = [ctypes.c_ulong(0)] * (4 - len(passed))
    return _checked(int(_LIBC.prctl(ctypes.c_int(option), *passed, *padding)), what)


def unshare(flags: int) -> None:
    """Raises OSError."""
    _checked(int(_LIBC.unshare(ctypes.c_int(flags))), "new namespaces")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Raises OSError."""
    names = [os.fsencode(text) for text in (source, target, kind)]
    result = _LIBC.mount(*names, ctypes.c_ulong(flags), os.fsencode(options))
    _checked(int(result), f"mounting {target}")


def detach_mount(target: str) -> None:
    """Unmount at once for this process's eyes. Raises OSError."""
    _checked(int(_LIBC.umount2(os.fsencode(target), ctypes.c_int(2))), f"unmounting {target}")


def pivot_root(folder: str) -> None:
    """Make a mounted folder the root, and the former root unreachable. Raises OSError."""
    os.chdir(folder)
    system_call("the change of root", _PIVOT_ROOT[architecture()], b".", b".")
    detach_mount(".")
    os.chdir("/")


@contextmanager
def files_of(user: int) -> Iterator[None]:
    """Make this thread's files belong to another user and group, as only root may."""
    _LIBC.setfsgid(ctypes.c_uint(user))
    _LIBC.setfsuid(ctypes.c_uint(user))
    try:
        yield
    finally:
        _LIBC.setfsuid(ctypes.c_uint(os.geteuid()))
        _LIBC.setfsgid(ctypes.c_uint(os.getegid()))


def drop_capabilities() -> None:
    """Give up all capabilities of this process and of whatever it starts. Raises OSError."""
    for capability in range(64):
        try:
            if prctl("capabilities", PR_CAPBSET_READ, capability):
                prctl("capabilities", PR_CAPBSET_DROP, capability)
        except OSError:
            break  # the last one that this kernel knows is behind us
    prctl("ambient capabilities", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    prctl("secure bits", PR_SET_SECUREBITS, _SECUREBITS_LOCKED)
    header = ctypes.create_string_buffer(_CAPABILITIES_V3.to_bytes(4, "little") + bytes(4), 8)
    nothing = ctypes.create_string_buffer(24)
    system_call("capabilities", _CAPSET[architecture()], header, nothing)

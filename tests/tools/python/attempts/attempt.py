"""`Attempt`: something that code in the sandbox must not manage to do, and proof that it could."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

PRELUDE = '''
import ctypes, errno, fcntl, json, mmap, os, signal, socket, struct, subprocess, sys, threading
import time
_libc = ctypes.CDLL(None, use_errno=True)
KEEPER = 1 if HOST["walled"] else HOST["pid"]

def in_child(action):
    """What `action` returns, 0 to 254, in a process of its own; a signal that killed it as -n."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            code = action() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def system(name, *arguments):
    """Make a system call in a process of its own. A PermissionError if it is refused as such; any
    other error means that the kernel has looked at the arguments."""
    def action():
        passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
        result = _libc.syscall(ctypes.c_long(HOST["calls"][name]), *passed)
        return ctypes.get_errno() if result == -1 else 0
    code = in_child(action)
    if code == errno.EPERM or code == errno.ENOSYS and name in ("clone3", "cachestat"):
        raise PermissionError(code, name)
'''
"""What every attempt finds defined; HOST is put before it."""


@dataclass(frozen=True)
class Attempt:
    """One line of the table.

    group, name, held_by: for a reader. code: fails, or prints HELD, where it is held. expected: a
    pattern of what is then printed. outside: the same code reaches its end without a sandbox;
    privileged: root's code only. twin: harmless code, much like it, that works inside and prints
    WORKS. Each has one or the other.

    fresh: whether it gets an interpreter to itself, with little of everything, and so many seconds
    of time, wall and cpu. lost: whether the interpreter ends over it. counted: whether it does in
    bubblewrap, which bounds no number of files, so that the keeper counts them.
    """

    group: str
    name: str
    held_by: str
    code: str
    expected: str = "HELD"
    outside: bool = True
    privileged: bool = False
    twin: str = ""
    fresh: bool = False
    lost: bool = False
    counted: bool = False
    wall: float = 20
    cpu: float = 20

    @property
    def cell(self) -> str:
        """The code, with REACHED printed at its end and HELD for an error."""
        body = textwrap.indent(textwrap.dedent(self.code).strip("\n"), "    ")
        return (
            f"try:\n{body}\nexcept Exception as error:\n"
            "    print('HELD', type(error).__name__, error)\nelse:\n    print('REACHED')"
        )

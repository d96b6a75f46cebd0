"""The seccomp filter: a classic BPF program that the kernel runs at each system call.

A refused call fails with EPERM, one that is newer than the table with ENOSYS, as on an older
kernel. A call of another architecture ends the process: its numbers mean other calls.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from dataclasses import dataclass, field

from gptoss_mlx.tools.python.sandbox.libc import (
    PR_SET_NO_NEW_PRIVS,
    architecture,
    prctl,
    system_call,
)
from gptoss_mlx.tools.python.sandbox.syscalls import JUDGED, NEWEST, REFUSED

AUDIT = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
"""The kernel's numbers of the architectures."""

_NR, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; an argument has eight bytes
_LOAD, _RETURN = 0x20, 0x06
_EQUAL, _GREATER, _ANY_BIT = 0x15, 0x25, 0x45
_ALLOW, _ERRNO, _KILL = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_REFUSE, _UNKNOWN = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS

_NEW_NAMESPACE = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into a terminal
_SO_SNDBUF, _SO_SNDBUFFORCE = 7, 32  # what may wait in a socket, in the kernel's memory
_PERSONALITY_QUERY = 0xFFFF_FFFF

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1


@dataclass
class _Program:
    """Instructions of classic BPF, with jumps over a number of them."""

    code: list[tuple[int, int, int, int]] = field(default_factory=list)

    def load(self, offset: int) -> None:
        self.code.append((_LOAD, 0, 0, offset))

    def give(self, result: int) -> None:
        self.code.append((_RETURN, 0, 0, result))

    def give_if(self, test: int, value: int, result: int) -> None:
        """Return `result` where the loaded word passes the test."""
        self.code.append((test, 0, 1, value))
        self.give(result)

    def give_unless(self, test: int, value: int, result: int) -> None:
        self.code.append((test, 1, 0, value))
        self.give(result)

    def judge(
        self, number: int, argument: int, tests: list[tuple[int, int]], passed: int, other: int
    ) -> None:
        """Return `passed` for a call of which an argument's lower half passes a test, else `other`.

        The kernel reads no more than the lower half of these arguments.
        """
        block = _Program()
        block.load(_ARGUMENT + 8 * argument)
        for test, value in tests:
            block.give_if(test, value, passed)
        block.give(other)
        self.code.append((_EQUAL, 0, len(block.code), number))
        self.code += block.code

    def packed(self) -> bytes:
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in self.code)


def filter_program(machine: str) -> bytes:
    """The filter for "x86_64" or "aarch64", eight bytes an instruction."""
    calls = JUDGED[machine]
    program = _Program()
    program.load(_ARCH)
    program.give_unless(_EQUAL, AUDIT[machine], _KILL)
    program.load(_NR)
    program.give_if(_GREATER, NEWEST, _UNKNOWN)  # those of x32 too, which have a high bit set
    # Its flags are in memory, where no filter can read them; the C library then takes clone.
    program.give_if(_EQUAL, calls["clone3"], _UNKNOWN)
    for number in sorted(REFUSED[machine].values()):
        program.give_if(_EQUAL, number, _REFUSE)
    for name in ("socket", "socketpair"):
        program.judge(calls[name], 0, [(_EQUAL, socket.AF_UNIX)], _ALLOW, _REFUSE)
    own = [(_EQUAL, 0), (_EQUAL, _PERSONALITY_QUERY)]
    program.judge(calls["personality"], 0, own, _ALLOW, _REFUSE)
    program.judge(calls["clone"], 0, [(_ANY_BIT, _NEW_NAMESPACE)], _REFUSE, _ALLOW)
    typing = [(_EQUAL, _TIOCSTI), (_EQUAL, _TIOCLINUX)]
    program.judge(calls["ioctl"], 1, typing, _REFUSE, _ALLOW)
    # At whatever level, which is another argument: those of AF_UNIX have no such numbers.
    larger = [(_EQUAL, _SO_SNDBUF), (_EQUAL, _SO_SNDBUFFORCE)]
    program.judge(calls["setsockopt"], 2, larger, _REFUSE, _ALLOW)
    program.give(_ALLOW)
    return program.packed()


def filter_calls() -> None:
    """Put this process and all that it starts under the filter. Raises OSError."""
    machine = architecture()
    prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
    code = filter_program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    program = ctypes.create_string_buffer(header, len(header))
    system_call("the system call filter", _SECCOMP[machine], _SET_MODE_FILTER, 0, program)

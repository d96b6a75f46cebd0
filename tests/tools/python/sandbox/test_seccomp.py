"""The system call filter, run by an interpreter of classic BPF and by the kernel."""

from __future__ import annotations

import errno
import re
import socket
import struct
import sys
from pathlib import Path

import pytest

from gptoss_mlx.tools.python.sandbox.seccomp import AUDIT, filter_program
from gptoss_mlx.tools.python.sandbox.syscalls import JUDGED, NEWEST, REFUSED
from gptoss_mlx.tools.python.tool import PythonTool

ALLOW, KILL = 0x7FFF_0000, 0x8000_0000
REFUSE, UNKNOWN = 0x0005_0000 | errno.EPERM, 0x0005_0000 | errno.ENOSYS
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def judge(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """What the filter returns for a call."""
    audit = AUDIT[machine] if audit is None else audit
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, audit, 0, *(a % 2**64 for a in padded))
    program = list(struct.iter_unpack("<HBBI", filter_program(machine)))
    at, word = 0, 0
    while True:
        code, if_so, if_not, value = program[at]
        at += 1
        if code == 0x20:
            (word,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            passed = {0x15: word == value, 0x25: word > value, 0x45: bool(word & value)}[code]
            at += if_so if passed else if_not


@pytest.mark.parametrize("machine", REFUSED)
def test_every_call_is_refused_or_allowed_as_the_table_says(machine: str) -> None:
    refused, judged = set(REFUSED[machine].values()), set(JUDGED[machine].values())
    for number in range(NEWEST + 200):
        if number in judged:
            continue
        expected = UNKNOWN if number > NEWEST else REFUSE if number in refused else ALLOW
        assert judge(machine, number) == expected, number


@pytest.mark.parametrize("machine", REFUSED)
def test_calls_are_judged_by_their_arguments(machine: str) -> None:
    calls = JUDGED[machine]
    for name in ("socket", "socketpair"):
        for family in range(60):
            expected = ALLOW if family == socket.AF_UNIX else REFUSE
            assert judge(machine, calls[name], family, 1, 0) == expected
            assert judge(machine, calls[name], family | 1 << 32, 1, 0) == expected
    assert judge(machine, calls["clone"], 0x0120_0011) == ALLOW  # fork
    assert judge(machine, calls["clone"], 0x003D_0F00) == ALLOW  # a thread
    for flag in (0x0002_0000, *(1 << bit for bit in range(25, 31))):
        assert judge(machine, calls["clone"], flag | 17) == REFUSE
    assert judge(machine, calls["clone3"]) == UNKNOWN
    assert judge(machine, calls["ioctl"], 0, 0x5401) == ALLOW  # is it a terminal
    assert judge(machine, calls["ioctl"], 0, 0x5412) == REFUSE
    assert judge(machine, calls["ioctl"], 0, 1 << 32 | 0x5412) == REFUSE
    assert judge(machine, calls["ioctl"], 0, 0x541C) == REFUSE
    for option in range(80):  # only SO_SNDBUF and SO_SNDBUFFORCE
        expected = REFUSE if option in (7, 32) else ALLOW
        assert judge(machine, calls["setsockopt"], 3, 1, option) == expected
    assert judge(machine, calls["personality"], 0xFFFF_FFFF) == ALLOW
    assert judge(machine, calls["personality"], 0x0004_0000) == REFUSE


@pytest.mark.parametrize("machine", REFUSED)
def test_a_call_of_another_architecture_ends_the_process(machine: str) -> None:
    for audit in (0x4000_0003, 0x4000_0028, 0, *AUDIT.values()):  # i386, arm, none, both
        expected = ALLOW if audit == AUDIT[machine] else KILL
        assert judge(machine, 100 if machine == "x86_64" else 63, audit=audit) == expected


def test_the_calls_of_x32_do_not_exist() -> None:
    for number in (0, 59, 519, 547):
        assert judge("x86_64", 0x4000_0000 | number) == UNKNOWN


@pytest.mark.parametrize("machine", REFUSED)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the kernel's headers are not installed")
    text = HEADERS[machine].read_text(encoding="ascii")
    known = {
        match[1]: int(match[2])
        for match in re.finditer(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", text)
    }
    table = {**REFUSED[machine], **JUDGED[machine]}
    assert {name: known.get(name) for name in table} == table


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's system calls")
@pytest.mark.timeout(60)
def test_the_kernel_refuses_every_call_of_the_table(walled: PythonTool) -> None:
    code = (
        "import ctypes, os, platform\n_libc = ctypes.CDLL(None, use_errno=True)\nfound = {}\n"
        f"for name, number in {dict(REFUSED)!r}[platform.machine()].items():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)\n"
        "        os._exit(ctypes.get_errno())\n"
        "    found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(len(found)); {name: code for name, code in found.items() if code != 1}"
    ).replace("mappingproxy", "dict")
    count, others = walled.call("python", code).text.splitlines()
    assert (int(count) >= 60, others) == (True, "{}")

"""Landlock: the kernel's rules of which files, ports and processes a process may reach.

A second wall behind the namespaces. Kernels without it, or with fewer of its rights, are accepted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress

from gptoss_mlx.tools.python.sandbox.libc import PR_SET_NO_NEW_PRIVS, prctl, system_call

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # on all architectures
_VERSION = 1
_BENEATH = 1

_EXECUTE, _WRITE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_DEVICES = 1 << 6 | 1 << 11
_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
"""Version -> the rights to files it brought: all of the first, moving, truncating, ioctl."""
_TO_A_FILE = _EXECUTE | _WRITE | _READ_FILE | 1 << 14 | 1 << 15
_PORTS = 0b11  # bind and connect, from version 4
_SCOPES = 0b11  # abstract sockets and signals, from version 6

READ = _EXECUTE | _READ_FILE | _READ_FOLDER


def version() -> int:
    """Of the kernel's Landlock; 0 for none."""
    with suppress(OSError):
        return system_call("landlock", _CREATE, 0, 0, _VERSION)
    return 0


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Confine this process and all it starts to files below these paths. Raises OSError."""
    newest = version()
    if not newest:
        return
    handled = sum(rights for since, rights in _RIGHTS.items() if newest >= since)
    ports, scopes = _PORTS * (newest >= 4), _SCOPES * (newest >= 6)
    attributes = struct.pack("<QQQ", handled, ports, scopes)
    size = 24 if newest >= 6 else 16 if newest >= 4 else 8
    rules = system_call("landlock", _CREATE, attributes[:size], size, 0)
    try:
        for path in readable:
            _allow(rules, path, READ & handled)
        for path in writable:
            _allow(rules, path, handled & ~_MAKE_DEVICES)
        prctl("no new privileges", PR_SET_NO_NEW_PRIVS, 1)
        system_call("landlock", _RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _TO_A_FILE
        beneath = struct.pack("<Qi", rights, descriptor)
        system_call("landlock", _ADD, rules, _BENEATH, beneath, 0)
    finally:
        os.close(descriptor)

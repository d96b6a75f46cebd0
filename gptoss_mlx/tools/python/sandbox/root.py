"""The file system that an interpreter sees: a root of its own, made in a new mount namespace.

What it may read is bound read-only at the same path; /mnt/data and /tmp are in memory and bounded
by the kernel; everything else of the machine has no name in it.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress

from gptoss_mlx.tools.python.limits import Limits
from gptoss_mlx.tools.python.sandbox.jail import DATA
from gptoss_mlx.tools.python.sandbox.libc import mount, pivot_root, system_call

USER = 1000
"""The user and the group that the code runs as, as it sees them."""

DEVICES = ("null", "zero", "full", "random", "urandom")
SCRATCH = ("/tmp", "/dev/shm")
"""Two names of one file system in memory."""

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # on all architectures
_CLONE, _RECURSIVE, _EMPTY_PATH, _CWD = 0x1, 0x8000, 0x1000, -100
_FROM_DESCRIPTOR = 0x4
_READ_ONLY, _NO_SUID, _NO_DEVICES = 0x1, 0x2, 0x4
_MS_READ_ONLY, _MS_NO_SUID, _MS_NO_DEVICES, _MS_NO_EXEC = 0x1, 0x2, 0x4, 0x8
_MS_REMOUNT, _MS_BIND, _MS_PRIVATE = 0x20, 0x1000, 0x4_0000 | 0x4000

_BASE = "/tmp"  # hidden by the new root while that is being built
_ETC = {
    "passwd": f"user:x:{USER}:{USER}:user:/tmp:/bin/sh\n".encode(),
    "group": f"user:x:{USER}:\n".encode(),
    "hosts": b"127.0.0.1 localhost\n",
}


def open_trees(readable: tuple[str, ...]) -> dict[str, int]:
    """Path -> descriptor of a copy of its mounts, read-only; and the devices.

    While the user is still the one who started us: folders above may be closed to all others.
    Raises OSError.
    """
    mount("", "/", "", _MS_PRIVATE)
    trees = {path: _open_tree(path) for path in readable if not os.path.islink(path)}
    for descriptor in trees.values():
        _set_attributes(descriptor, _READ_ONLY | _NO_SUID | _NO_DEVICES)
    return trees | {f"/dev/{name}": _open_tree(f"/dev/{name}") for name in DEVICES}


def change_root(readable: tuple[str, ...], trees: dict[str, int], limits: Limits) -> None:
    """Build the root of `trees` and enter it; these are closed. Raises OSError."""
    links = {path: os.readlink(path) for path in readable if os.path.islink(path)}
    mount("root", _BASE, "tmpfs", _MS_NO_SUID | _MS_NO_DEVICES, "mode=0755,size=1m,nr_inodes=4k")
    os.chdir(_BASE)
    _bounded(DATA, limits.folder, limits.files + 1, "mode=0700")
    _bounded(SCRATCH[0], limits.folder, limits.files + 1, "mode=0700")
    _make_folder(SCRATCH[1])
    mount(f".{SCRATCH[0]}", f".{SCRATCH[1]}", "", _MS_BIND)
    for path, target in links.items():
        _make_folder(os.path.dirname(path))
        os.symlink(target, f".{path}")
    for path, descriptor in trees.items():
        _place(path, descriptor)
    _make_folder("/etc")
    for name, text in _ETC.items():
        file = os.open(f"./etc/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444)
        os.write(file, text)  # bytes: a codec could no longer be imported here
        os.close(file)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"./dev/{name}")
    _make_folder("/proc")
    quiet = _MS_NO_SUID | _MS_NO_DEVICES | _MS_NO_EXEC
    mount("proc", "./proc", "proc", quiet, "subset=pid")
    pivot_root(".")
    mount("", "/", "", _MS_REMOUNT | _MS_BIND | _MS_READ_ONLY | _MS_NO_SUID | _MS_NO_DEVICES)


def _open_tree(path: str) -> int:
    flags = _CLONE | _RECURSIVE | os.O_CLOEXEC
    return system_call(f"a copy of {path}", _OPEN_TREE, _CWD, os.fsencode(path), flags)


def _set_attributes(tree: int, attributes: int) -> None:
    packed = struct.pack("<QQQQ", attributes, 0, 0, 0)
    where = _EMPTY_PATH | _RECURSIVE
    system_call("a read-only copy", _MOUNT_SETATTR, tree, b"", where, packed, len(packed))


def _place(path: str, tree: int) -> None:
    """Attach a copied tree at its path below the current folder."""
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        _make_folder(path)
    else:
        _make_folder(os.path.dirname(path))
        with suppress(FileExistsError):
            os.close(os.open(f".{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o444))
    target = os.fsencode(f".{path}")
    system_call(f"placing {path}", _MOVE_MOUNT, tree, b"", _CWD, target, _FROM_DESCRIPTOR)
    os.close(tree)


def _bounded(path: str, nbytes: int, files: int, options: str) -> None:
    """A file system in memory of so many bytes, files and folders."""
    _make_folder(path)
    flags = _MS_NO_SUID | _MS_NO_DEVICES
    mount("files", f".{path}", "tmpfs", flags, f"{options},size={nbytes},nr_inodes={files}")


def _make_folder(path: str) -> None:
    os.makedirs(f".{path}", mode=0o755, exist_ok=True)

"""Linux namespaces: user, mount, process, network, IPC, host name and control groups.

They need no privilege where the system lets a user have them. The first process in them is the
keeper; all others end with it, however it ends.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from gptoss_mlx.tools.python.sandbox import libc
from gptoss_mlx.tools.python.sandbox.jail import Jail
from gptoss_mlx.tools.python.sandbox.root import USER, change_root, open_trees

NOBODY = 65534
"""Whom root's code runs as outside: the kernel grants root's own number things of its own."""

_ALL = (
    libc.CLONE_NEWUSER
    | libc.CLONE_NEWNS
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWNET
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)


def enter(jail: Jail) -> bool:
    """Whether this is the first process of new namespaces.

    The process that called waits until that one has ended, with no file open but the standard ones.
    Raises OSError, in either.
    """
    if os.geteuid() == 0:
        os.setgroups([])
    _unshare_mapped()
    child = os.fork()
    if child:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.waitpid(child, 0)
        return False
    trees = open_trees(jail.readable)
    _become_user()
    change_root(jail.readable, trees, jail.limits)
    socket.sethostname("sandbox")
    libc.drop_capabilities()
    return True


def _unshare_mapped() -> None:
    """Enter new namespaces, with one user. Only a process outside may write whom it stands for."""
    parent, (ready, go) = os.getpid(), os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        code = 1
        with suppress(OSError):
            if os.read(ready, 1):
                _write_maps(parent)
                code = 0
        os._exit(code)
    os.close(ready)
    try:
        libc.unshare(_ALL)
        os.write(go, b"!")
    finally:
        os.close(go)
        _, status = os.waitpid(helper, 0)
    if status:
        raise OSError("a user in the new namespaces: the system refused")


def _write_maps(pid: int) -> None:
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        user = group = NOBODY
    _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/gid_map", f"{USER} {group} 1")
    _write(f"/proc/{pid}/uid_map", f"{USER} {user} 1")


def _become_user() -> None:
    """From root to the user that is mapped; any other user is mapped already."""
    if os.geteuid() != USER:
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)

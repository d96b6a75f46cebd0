"""The same walls made by bubblewrap, where only its program may make namespaces.

Some distributions forbid user namespaces to all programs but those with an AppArmor profile.
Bubblewrap has one. The keeper runs inside, as the first process; what bubblewrap has no option for,
the system call filter, Landlock and the limits of a process, the keeper adds as elsewhere.
"""

from __future__ import annotations

import os
import shutil

from gptoss_mlx.tools.python.sandbox.jail import DATA, Jail
from gptoss_mlx.tools.python.sandbox.root import DEVICES, SCRATCH, USER


def program() -> str | None:
    """The path of bubblewrap; None where it is not installed."""
    return shutil.which("bwrap")


def arguments(bwrap: str, jail: Jail, package: str) -> list[str]:
    """The command, up to the program that it runs. package: the folder of our own code."""
    limits = jail.limits
    command = [bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--as-pid-1", "--new-session"]
    command += ["--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox"]
    command += ["--cap-drop", "ALL", "--clearenv"]
    for path in (DATA, SCRATCH[0]):
        command += ["--size", str(limits.folder), "--perms", "0700", "--tmpfs", path]
    for path in (*jail.readable, package):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    command += ["--proc", "/proc", "--symlink", SCRATCH[0], SCRATCH[1]]
    for name in DEVICES:
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        command += ["--symlink", f"/proc/self/{target}", f"/dev/{name}"]
    return [*command, "--remount-ro", "/", "--chdir", DATA, "--"]

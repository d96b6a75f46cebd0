"""The sandbox of macOS: a Seatbelt profile for `sandbox-exec`.

What is not allowed is denied. Paths are given as parameters, so that no name of a folder can be
read as a rule, and resolved, because the kernel compares resolved paths.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

PROGRAM = "/usr/bin/sandbox-exec"
"""By its full path: nothing that the user's PATH names may take its place."""

_SYSTEM = (
    "/usr/lib",
    "/usr/share",
    "/bin",
    "/usr/bin",
    "/System/Library",
    "/System/Cryptexes",
    "/System/Volumes/Preboot/Cryptexes",
    "/Library/Apple/System/Library",
    "/Library/Fonts",
    "/Library/Preferences/Logging",
    "/private/etc/localtime",
    "/private/var/db/timezone",
    "/private/var/db/dyld",
)
"""What programs and their loader read. No folder of a user is among them."""

_DEVICES = ("null", "zero", "random", "urandom")

_BASE = """\
(version 1)
(deny default)

; A process and its children, and nothing of any other.
(allow process-fork)
(allow signal (target same-sandbox))
(allow process-info* (target same-sandbox))

; Facts of the machine that Python, numpy and the loader ask for.
(allow sysctl-read
  (sysctl-name
    "hw.activecpu" "hw.byteorder" "hw.cachelinesize" "hw.cpufamily" "hw.cputype" "hw.cpusubtype"
    "hw.l1dcachesize" "hw.l1icachesize" "hw.l2cachesize" "hw.l3cachesize" "hw.logicalcpu"
    "hw.logicalcpu_max" "hw.machine" "hw.memsize" "hw.ncpu" "hw.nperflevels" "hw.packages"
    "hw.pagesize" "hw.physicalcpu" "hw.physicalcpu_max" "hw.tbfrequency" "kern.argmax"
    "kern.hostname" "kern.maxfilesperproc" "kern.osproductversion" "kern.osrelease" "kern.ostype"
    "kern.osvariant_status" "kern.osversion" "kern.secure_kernel" "kern.usrstack64" "kern.version"
    "machdep.cpu.brand_string" "machdep.ptrauth_enabled" "sysctl.proc_translated" "vm.loadavg")
  (sysctl-name-prefix "hw.optional.")
  (sysctl-name-prefix "hw.perflevel"))

; Semaphores and shared memory of multiprocessing.
(allow ipc-posix-sem (ipc-posix-name-prefix "/mp-"))
(allow ipc-posix-shm-read* ipc-posix-shm-write* (ipc-posix-name-prefix "/psm_"))
(allow ipc-posix-shm-read* ipc-posix-shm-write* (ipc-posix-name-prefix "/__KMP_REGISTERED_LIB_"))

; No network, no Mach service, no keychain, no device: none is allowed. A pair of sockets of one
; process, which asyncio needs, reaches nothing.
(allow system-socket (socket-domain AF_UNIX))
"""


def profile(readable: int) -> str:
    """The rules, for so many parameters READABLE_0, READABLE_1, ..., and FOLDER."""
    system = "\n".join(f'  (subpath "{path}")' for path in _SYSTEM)
    given = "\n".join(f'  (subpath (param "READABLE_{i}"))' for i in range(readable))
    devices = " ".join(f'(literal "/dev/{name}")' for name in _DEVICES)
    ancestors = "\n".join(f'  (path-ancestors (param "READABLE_{i}"))' for i in range(readable))
    return f"""{_BASE}
; The way to what may be read, by name only.
(allow file-read-data (literal "/"))
(allow file-read-metadata
  (literal "/") (literal "/etc") (literal "/tmp") (literal "/var")
  (path-ancestors (param "FOLDER"))
{ancestors})

(allow file-read* file-map-executable process-exec
{system}
{given})
(allow file-read* file-write-data file-ioctl {devices})

; Its own folder, in which nothing can run as another user.
(allow file-read* file-write* (subpath (param "FOLDER")))
(deny file-write-setugid)
"""


def wrapper(readable: Sequence[str], folder: str) -> list[str]:
    """The command that confines what follows it."""
    paths = [os.path.realpath(path) for path in readable]
    command = [PROGRAM, "-p", profile(len(paths))]
    for i, path in enumerate(paths):
        command += ["-D", f"READABLE_{i}={path}"]
    return [*command, "-D", f"FOLDER={os.path.realpath(folder)}", "--"]

"""What of this machine an interpreter needs to see: Python, its libraries, the system's.

The home folder is never among them, even where an environment lies in it: of an environment and of
its base only the parts that Python reads are.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
_SETTINGS = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "fonts")
_OF_A_PREFIX = ("lib", "lib64")
_OF_A_FRAMEWORK = ("Python", "Resources")
"""Of a Python for macOS: its library, and the program that `bin/python` starts."""
_HOMEBREW = tuple(
    f"{at}/{of}" for at in ("/opt/homebrew", "/usr/local") for of in ("Cellar", "opt")
)
_LIBRARIES = ("site-packages", "dist-packages")


def interpreter() -> str:
    """The program of this Python, of its base where this is a virtual environment."""
    base = getattr(sys, "_base_executable", "") or sys.executable
    return os.path.realpath(base)


def library_paths() -> tuple[str, ...]:
    """The folders that Python's library and the installed packages are imported from.

    Those that only this process was given are left out: the current folder and PYTHONPATH's, but
    for folders of installed packages.
    """
    prefixes = tuple({os.path.join(p, "lib") for p in (sys.prefix, sys.base_prefix)})
    named = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found = []
    for entry in sys.path:
        path = os.path.abspath(entry) if entry else ""
        installed = os.path.basename(path) in _LIBRARIES
        if path in named or installed or path.startswith(tuple(f"{p}{os.sep}" for p in prefixes)):
            found.append(path)
    return tuple(dict.fromkeys(found))


def readable_places(worker: str) -> tuple[str, ...]:
    """Paths that the interpreter reads; none lies below another. worker: its script."""
    found = [place for place in _candidates(worker) if os.path.exists(place)]
    kept: list[str] = []
    for place in sorted(found, key=len):
        if not any(place == other or place.startswith(f"{other}/") for other in kept):
            kept.append(place)
    return tuple(kept)


def _candidates(worker: str) -> Iterator[str]:
    program = interpreter()
    yield from _SYSTEM if sys.platform == "linux" else _HOMEBREW
    yield from (f"/etc/{name}" for name in _SETTINGS)
    yield from (program, worker)
    for prefix in {sys.prefix, sys.base_prefix, str(Path(program).parent.parent)}:
        parts = _OF_A_PREFIX if sys.platform == "linux" else (*_OF_A_PREFIX, *_OF_A_FRAMEWORK)
        yield from (os.path.join(prefix, name) for name in parts)
    yield from library_paths()


def time_zone() -> str | None:
    """The name of this machine's time zone, such as "Europe/Rome"; None if it has none."""
    if zone := os.environ.get("TZ"):
        return zone.removeprefix(":")
    _, found, zone = os.path.realpath("/etc/localtime").partition("zoneinfo/")
    return zone if found else None

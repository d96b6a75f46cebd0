"""clang, and what is built once per machine: the runtime and the precompiled headers.

Everything lies in one folder of the cache, named by a hash of all it depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import MetalError
from .rewrite import rewrite
from .text import flatten

HERE = Path(__file__).parent
CLANG, CLANGXX, LLD, ADDR2LINE = "clang-19", "clang++-19", "ld.lld-19", "addr2line"
MLX_PRELUDE = "mlx/backend/metal/kernels/utils.h"
CPU_FLAGS = {"avx2", "fma", "f16c"}

COMMON_FLAGS = (
    # No contraction, no excess precision: every half and bfloat operation rounds.
    *("-ffp-contract=off", "-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none"),
    # A tail call would hide the line that it comes from.
    *("-fPIC", "-O2", "-march=x86-64-v3", "-fno-optimize-sibling-calls"),
)
ONE_CALL_FLAGS = (
    # One call in the source stays one call: simdgroup functions are told apart by address.
    *("-mllvm", "-enable-tail-merge=0", "-mllvm", "-tail-dup-placement=0"),
    *("-mllvm", "-disable-tail-duplicate", "-mllvm", "-disable-early-taildup"),
)
KERNEL_FLAGS = (
    *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant"),
    *COMMON_FLAGS,
    # Wider accesses than ThreadSanitizer instruments would go unseen.
    *("-fno-vectorize", "-fno-slp-vectorize", "-gline-tables-only", "-gdwarf-4"),
    *ONE_CALL_FLAGS,
    *("-Wno-unknown-attributes", "-Wno-unused-value", "-Wno-unknown-warning-option"),
    *("-Werror=return-type", "-Wimplicit-float-conversion"),
)
CHECK_FLAGS = (
    *("-fsanitize=thread,array-bounds", "-fno-sanitize-recover=all"),
    *("-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-atomics=0"),
    # A read of what is then written counts too: it may be the first.
    *("-mllvm", "-tsan-distinguish-volatile=0", "-mllvm", "-tsan-instrument-read-before-write=1"),
    # A variable read before it is written is a NaN, not by chance a zero.
    "-ftrivial-auto-var-init=pattern",
)
# For counting operations: loop counters stay as wide as the source has them, operations on
# single elements stay such, and what Metal fuses is marked.
COUNT_FLAGS = (
    *("-g0", "-ffp-contract=fast"),
    *("-mllvm", "-indvars-widen-indvars=false", "-mllvm", "-disable-vector-combine"),
)
# From instrumented LLVM text.
OBJECT_FLAGS = (
    *("-fPIC", "-O2", "-march=x86-64-v3", "-Xclang", "-disable-llvm-passes"),
    *("-Wno-override-module", *ONE_CALL_FLAGS),
)


@cache
def available() -> str | None:
    """None where the emulator can run, else the reason why not."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the Metal emulator runs on x86-64 Linux"
    missing = [tool for tool in (CLANG, CLANGXX, LLD, ADDR2LINE) if not shutil.which(tool)]
    if missing:
        return f"the Metal emulator needs {', '.join(missing)} (packages clang-19 and lld-19)"
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    if not (mlx_include() / MLX_PRELUDE).is_file():
        return "the Metal emulator needs an MLX that comes with its Metal headers"
    if lacking := sorted(CPU_FLAGS - set(flags)):
        return f"the Metal emulator needs a CPU with {', '.join(lacking)}"
    return None


def cache_folder() -> Path:
    """Where compiled kernels stay: GPTOSS_EMULATOR_CACHE, else a folder of this user in /tmp."""
    if named := os.environ.get("GPTOSS_EMULATOR_CACHE"):
        return Path(named)
    folder = Path(tempfile.gettempdir()) / f"gptoss-metal-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise MetalError(f"{folder} belongs to another user: set GPTOSS_EMULATOR_CACHE")
    return folder


def mlx_include() -> Path:
    """The folder of MLX's headers, as installed."""
    import mlx.core as mx

    return Path(mx.__file__).parent / "include"


@dataclass(frozen=True)
class Prelude:
    """The text MLX puts before every kernel (its utils.h), rewritten, and the files in it."""

    body: str
    files: frozenset[Path]


@cache
def prelude() -> Prelude:
    """MLX's own, as installed; only its overloads for bfloat are the emulator's."""
    files: set[Path] = set()
    include = f'#include "{MLX_PRELUDE}"\n'
    text = flatten(include, "prelude.metal", (HERE / "include", mlx_include()), files)
    return Prelude(rewrite(text).body, frozenset(files))


@cache
def built() -> Path:
    """The folder with include/, plain.pch, checked.pch and runtime.so; built if need be.

    Raises MetalError where the toolchain is missing or fails.
    """
    if reason := available():
        raise MetalError(reason)
    flags = (KERNEL_FLAGS, CHECK_FLAGS, COUNT_FLAGS, OBJECT_FLAGS)
    digest = hashlib.sha256(repr((flags, prelude().body)).encode())
    digest.update(run([CLANG, "--version"]).encode())
    for path in sorted(HERE.rglob("*")):
        if path.is_file() and path.parent.name in ("include", "runtime"):
            digest.update(path.name.encode() + path.read_bytes())
    folder = cache_folder() / digest.hexdigest()[:16]
    with locked(folder.with_suffix(".lock")):
        if not (folder / "complete").exists():
            for stale in (folder, *unused(folder.parent)):
                shutil.rmtree(stale, ignore_errors=True)
            build(folder)
            (folder / "complete").touch()
    return folder


def unused(cache: Path) -> list[Path]:
    """Folders of earlier versions that nothing was added to for a month."""
    month_ago = time.time() - 30 * 24 * 3600
    return [p.parent for p in cache.glob("*/kernels") if p.stat().st_mtime < month_ago]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: precompiled headers hold their paths, so they are built in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(folder: Path) -> None:
    """The runtime, and MLX's prelude with Metal's library precompiled for both modes."""
    shutil.copytree(HERE / "include", folder / "include")
    (folder / "kernels").mkdir()
    sources = [str(path) for path in sorted((HERE / "runtime").glob("*.cpp"))]
    flags = ["-std=c++20", "-fuse-ld=lld", "-Wl,-z,now", "-shared"]
    run([CLANGXX, *flags, *COMMON_FLAGS, *sources, "-o", str(folder / "runtime.so")])
    header = folder / "include" / "prelude.metal"
    header.write_text(f"#include <metal_stdlib>\n{prelude().body}")
    for checked in (False, True):
        command = [CLANG, *kernel_flags(folder, checked), "-Xclang", "-emit-pch"]
        run([*command, "-c", str(header), "-o", str(folder / pch_name(checked))])


def pch_name(checked: bool) -> str:
    """The precompiled header's name."""
    return "checked.pch" if checked else "plain.pch"


def prelude_flags(folder: Path, checked: bool) -> list[str]:
    """clang's flags for the precompiled headers before a kernel."""
    return ["-Xclang", "-include-pch", "-Xclang", str(folder / pch_name(checked))]


def header_flags(folder: Path) -> list[str]:
    """The same for the headers as text, for a kernel with other flags."""
    return ["-include", str(folder / "include" / "prelude.metal")]


def kernel_flags(folder: Path, checked: bool) -> list[str]:
    """clang's flags for a kernel and for the headers before it."""
    extra = CHECK_FLAGS if checked else ()
    return [*KERNEL_FLAGS, *extra, f"-I{folder / 'include'}"]


def run(command: list[str]) -> str:
    """The command's output. Raises MetalError with what it said, if it failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MetalError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
    return done.stdout

"""From a kernel's text to a shared object that the runtime can call, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import blocks, loops, operations, toolchain
from .errors import MetalError
from .rewrite import rewrite
from .signature import Signature, read_signature
from .syntax import faults
from .text import Place, Text

Instrument = Callable[[str], str]
"""From LLVM text to LLVM text with calls of the runtime."""
SAID = re.compile(
    r"(?P<file>[^\s:]+):(?P<line>\d+):\d+: (?P<kind>error|warning|note): (?P<what>.*)"
)
LOSSY = re.compile(r"implicit conversion when assigning .* to '[^']*(?:__bf16|bfloat)[^']*'")


@dataclass(frozen=True)
class Compiled:
    """A kernel ready to launch. `text` is what its lines refer to."""

    object: Path
    signature: Signature
    text: Text


def compile_kernel(
    text: Text,
    call: str,
    *,
    check: bool,
    trace: bool = False,
    count: bool = False,
    shared: Mapping[int, int] | None = None,
    constants: Mapping[int, int] | None = None,
) -> Compiled:
    """Compiles the kernel that `call` names (`name` or `name<arguments>`).

    `check`: with calls of the checks; `trace` (with it): with calls that count turns of
    loops; `count` (without it): with calls that count operations.
    `shared`: bytes of [[threadgroup(i)]]; `constants`: values of [[function_constant(i)]].
    Raises MetalError for what Metal rejects, each line `file:line: error: ...`.
    """
    folder = toolchain.built()
    body = rewrite(text, constants)
    signature = read_signature(body.body, call, shared or {})
    unit = f'#line 1 "{text.file}"\n{body.body}\n{signature.launcher}'
    instrument = loops.instrumented if trace else operations.instrumented if count else None
    mode = f"{check} {instrument and digest_of(instrument)}"
    key = hashlib.sha256(f"{mode} {unit}".encode()).hexdigest()[:24]
    target = folder / "kernels" / f"{key}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix="kernel-") as work:
            translate(folder, Path(work), unit, target, text, check, instrument)
    return Compiled(target, signature, text)


def digest_of(instrument: Instrument) -> str:
    """Changes when what it inserts may."""
    files = [Path(blocks.__file__), Path(sys.modules[instrument.__module__].__file__ or "")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def translate(
    folder: Path,
    work: Path,
    unit: str,
    target: Path,
    text: Text,
    check: bool,
    instrument: Instrument | None,
) -> None:
    """Compiles and checks at once, links, and moves the object to `target`."""
    source = work / "kernel.cl"
    source.write_text(unit)
    flags = toolchain.kernel_flags(folder, check)
    prelude = toolchain.prelude_flags(folder, check)
    dump = ["-fsyntax-only", "-Xclang", "-ast-dump", "-fno-color-diagnostics"]
    made, ir = work / "kernel.o", work / "kernel.ll"
    output = ["-S", "-emit-llvm", "-o", str(ir)] if instrument else ["-c", "-o", str(made)]
    counts = instrument is operations.instrumented
    header = [*toolchain.COUNT_FLAGS, *toolchain.header_flags(folder)] if counts else prelude
    compiling = start([toolchain.CLANG, *flags, *header, str(source), *output])
    dumping = start([toolchain.CLANG, *flags, *prelude, *dump, str(source)])
    tree, _ = dumping.communicate()
    _, said = compiling.communicate()
    files = frozenset(place.file for place in text.places)
    wrong = diagnostics(said, files) + (faults(tree, files) if not compiling.returncode else [])
    if wrong:
        raise MetalError("\n".join(quoted(row, text) for row in wrong))
    if compiling.returncode:
        raise MetalError(said)
    if instrument:
        ir.write_text(instrument(ir.read_text()))
        toolchain.run([toolchain.CLANG, *toolchain.OBJECT_FLAGS, "-c", str(ir), "-o", str(made)])
    linked = work / "kernel.so"
    runtime = folder / "runtime.so"
    toolchain.run([toolchain.LLD, "-shared", str(made), str(runtime), "-o", str(linked)])
    os.replace(linked, target)


def start(command: list[str]) -> subprocess.Popen[str]:
    """A command under way, both outputs kept."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def diagnostics(said: str, files: frozenset[str]) -> list[str]:
    """clang's errors as `file:line: error: what`, at the line of the kernel that led to each."""
    rows: list[str] = []
    pending = ""
    for found in SAID.finditer(said):
        ours = found["file"] in files
        at = f"{found['file']}:{found['line']}"
        if found["kind"] == "note":
            if pending and ours:
                rows.append(f"{at}: error: {pending}")
                pending = ""
        elif found["kind"] == "error" or LOSSY.match(found["what"]):
            if pending:
                rows.append(f"error: {pending}")
            pending = "" if ours else found["what"]
            if ours:
                rows.append(f"{at}: error: {found['what']}")
    return list(dict.fromkeys([*rows, *([f"error: {pending}"] if pending else [])]))


def quoted(row: str, text: Text) -> str:
    """A fault with the line it names."""
    found = re.match(r"([^:\s]+):(\d+)", row)
    line = text.row(Place(found[1], int(found[2]))) if found else ""
    return f"{row} | {line}" if line else row

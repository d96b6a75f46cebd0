"""The kernels for CPUs under sanitizers, and with a mistake in them that the tests must catch.

    python -m benchmarks.cpu.checks --sanitize
    python -m benchmarks.cpu.checks --mistakes 20
    CXX=arm/c++ python -m benchmarks.cpu.checks --mistakes 20 --python arm/python --variant neon

--sanitize builds every variant with address and undefined-behaviour sanitizers and runs the
kernels' tests. --mistakes changes one thing in the sources of each variant that this processor has,
so many times, and says which changes no test caught. --python is the Python that runs the tests, by
default this one; `.ci/arm arm --prepare` makes one for Arm, and its compiler. Prints one line of
JSON last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import click

from gptoss_mlx.backends.cpu import library

ROOT = Path(__file__).parent.parent.parent
FLAGS = ("-std=c++17", "-g0", "-fPIC", "-pthread", "-ffp-contract=off", "-fvisibility=hidden")
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
OWN = {"planes.h": ("avx2", "vnni"), "tiles.h": ("amx",), "tile_formats.h": ("amx",)}
"""Headers that some variants alone include."""
EVERYONES = ("gptoss.h", "pool.h", "kernels.h")
"""Headers without arithmetic."""
PATIENCE = 120  # seconds for a test

CHANGES = (
    (re.compile(r" \+ "), " - "),
    (re.compile(r" - "), " + "),
    (re.compile(r" < "), " <= "),
    (re.compile(r" > "), " >= "),
    (re.compile(r" \* "), " + "),
    (re.compile(r"(?<![\w.])(\d+)(?![\w.])"), r"(\1+1)"),
)


class Mistake(NamedTuple):
    """Text at `start` to `end` of a header, and what stands there instead."""

    path: Path
    start: int
    end: int
    after: str

    def __str__(self) -> str:
        text = self.path.read_text(encoding="utf-8")
        line = text.count("\n", 0, self.start) + 1
        return f"{self.path.name}:{line}: {text[self.start : self.end]} -> {self.after}"


def headers_of(variant: str, native: Path) -> list[Path]:
    """The headers that a variant computes with."""
    names = [path for path in sorted(native.glob("*.h")) if path.name not in EVERYONES]
    return [
        *(path for path in names if variant in OWN.get(path.name, (variant,))),
        native / "simd" / f"{variant}.h",
    ]


def mistakes(path: Path) -> Iterator[Mistake]:
    """Every change of a header's code: no comments, no directives, no constants of its top."""
    at = 0
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        code = line.split("//")[0]
        if code.startswith((" ", "\t")) and "prefetch" not in code and "static_assert" not in code:
            for pattern, after in CHANGES:
                for found in pattern.finditer(code):
                    start, end = at + found.start(), at + found.end()
                    yield Mistake(path, start, end, found.expand(after))
        at += len(line)


def compile_objects(sources: Sequence[Path], flags: Sequence[str]) -> bool:
    """Compile sources to objects beside them; whether all could be."""
    compiler = os.environ.get("CXX", "c++")
    running = [
        subprocess.Popen(
            [compiler, *FLAGS, *flags, "-w", "-c", str(path), "-o", str(path.with_suffix(".o"))],
            stderr=subprocess.DEVNULL,
        )
        for path in sources
    ]
    return not any([one.wait() for one in running])


def link(native: Path, out: Path, flags: Sequence[str]) -> None:
    objects = map(str, sorted(native.rglob("*.o")))
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, *flags, "-shared", "-pthread", *objects, "-o", str(out)]
    subprocess.run(command, check=True)


def run_tests(
    python: str, root: Path, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The kernels' tests against the library in the copy at `root`."""
    # A kernel that does not end is left by a thread, since no signal reaches Python meanwhile.
    limits = ["--timeout", str(PATIENCE), "-o", "timeout_method=thread"]
    command = [python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *limits, *options]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, "tests/backends/cpu"],
        cwd=root,
        env={**environment, "GPTOSS_NATIVE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=1800,
    )


def sanitize(root: Path, out: Path) -> dict[str, object]:
    native = root / "native"
    assert compile_objects(sorted(native.rglob("*.cpp")), SANITIZED)
    link(native, out, SANITIZED)
    compiler = os.environ.get("CXX", "c++")
    runtime = subprocess.check_output([compiler, "-print-file-name=libasan.so"], text=True).strip()
    # Python's own allocations are not freed at its end.
    done = run_tests(sys.executable, root, LD_PRELOAD=runtime, ASAN_OPTIONS="detect_leaks=0")
    print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    return {"clean": done.returncode == 0, "tests": done.stdout.strip().splitlines()[-1]}


def look_for_survivors(
    python: str, root: Path, out: Path, variants: Sequence[str], count: int, seed: int
) -> dict[str, object]:
    native, flags = root / "native", ("-O1",)
    assert compile_objects(sorted(native.rglob("*.cpp")), flags)
    found: dict[str, object] = {}
    for variant in variants:
        source = native / "variants" / f"{variant}.cpp"
        possible = [one for path in headers_of(variant, native) for one in mistakes(path)]
        right = source.with_suffix(".o").read_bytes()
        Random(seed).shuffle(possible)
        survived, tried = list[str](), 0
        for one in possible:
            if tried == count:
                break
            text, name = one.path.read_text(encoding="utf-8"), str(one)
            changed = text[: one.start] + one.after + text[one.end :]
            one.path.write_text(changed, encoding="utf-8")
            compiled = compile_objects([source], flags)
            if compiled and source.with_suffix(".o").read_bytes() != right:
                tried += 1
                link(native, out, flags)
                chosen = ("-k", f"{variant} or test_model")
                caught = run_tests(python, root, *chosen, GPTOSS_CPU=variant).returncode != 0
                print(f"{variant} {name}: {'caught' if caught else 'SURVIVED'}", file=sys.stderr)
                survived += [] if caught else [name]
            one.path.write_text(text, encoding="utf-8")
        source.with_suffix(".o").write_bytes(right)
        found[variant] = {"changes": tried, "survived": survived}
    return found


@click.command(help=__doc__)
@click.option("--sanitize", "sanitized", is_flag=True)
@click.option("--mistakes", "count", default=0, type=click.IntRange(0))
@click.option("--seed", default=1, show_default=True)
@click.option("--python", default=sys.executable, type=click.Path(exists=True, path_type=Path))
@click.option("--variant", "variants", multiple=True, help="By default all that it supports.")
def main(sanitized: bool, count: int, seed: int, python: Path, variants: tuple[str, ...]) -> None:
    suffix = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'), end='')"
    name = "_native" + subprocess.check_output([python.absolute(), "-c", suffix], text=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", "build")
        shutil.copytree(ROOT, root, ignore=ignored)
        out, found = root / "gptoss_mlx" / name, dict[str, object]()
        if sanitized:
            found["sanitizers"] = sanitize(root, out)
        if count:
            found["mistakes"] = look_for_survivors(
                str(python.absolute()), root, out, variants or library.supported(), count, seed
            )
    print(json.dumps({"benchmark": "cpu_checks", "seed": seed, **found}))


if __name__ == "__main__":
    main()

"""Verdicts of kernel trials on this machine, kept in the cache folder.

There is one file for each chip, system, MLX version and digest of this package's kernels, since a
verdict found under any other may be wrong here. A file that is damaged or of another machine counts
as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import mlx.core as mx

from gptoss_mlx.backends.mlx.ops.metal import Pipeline, mlx_version, source_folder
from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import read_json

LIMIT = 1 << 20  # bytes of a file
MOST_THREADS = 1024
WHY = 300  # characters of a reason


@dataclass(frozen=True)
class Verdict:
    """The result of a trial. threads: of a threadgroup, or 0 where the reference computes instead;
    why: the reason that it does."""

    threads: int
    why: str = ""


class Verdicts:
    """Verdicts by pipeline. machine: what they hold for. folder: where they are kept; None keeps
    them in memory only."""

    def __init__(self, machine: Mapping[str, str], folder: Path | None) -> None:
        self.machine = dict(machine)
        name = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()[:16]
        self._path = None if folder is None else folder / f"kernels-{name}.json"
        self._found = self._read()

    def of(self, pipeline: Pipeline) -> Verdict | None:
        return self._found.get(str(pipeline))

    def rejected(self) -> dict[str, str]:
        """Kernels of which a pipeline is not used, and why."""
        found = self._found.items()
        return {name.split()[0]: verdict.why for name, verdict in found if not verdict.threads}

    def add(self, new: Mapping[Pipeline, Verdict]) -> None:
        """Add verdicts and write them. If that fails, they are found again at the next start."""
        self._found = {**self._read(), **self._found, **{str(p): v for p, v in new.items()}}
        if self._path is None:
            return
        verdicts = {name: asdict(verdict) for name, verdict in self._found.items()}
        text = json.dumps({"machine": self.machine, "verdicts": verdicts}, indent=1)
        part = self._path.with_suffix(f".{os.getpid()}.part")
        with suppress(OSError):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                part.write_text(text, "utf-8")
                os.replace(part, self._path)
            finally:
                part.unlink(missing_ok=True)

    def _read(self) -> dict[str, Verdict]:
        if self._path is None:
            return {}
        try:
            kept = read_json(self._path, LIMIT)
        except CheckpointError:
            return {}
        entries = kept.get("verdicts")
        if kept.get("machine") != self.machine or not isinstance(entries, dict):
            return {}
        found = {name: _verdict(entry) for name, entry in entries.items()}
        return {name: verdict for name, verdict in found.items() if name and verdict is not None}


def _verdict(entry: Any) -> Verdict | None:
    """A file's entry as a verdict; None if it is not a valid one."""
    if not isinstance(entry, dict) or entry.keys() != {"threads", "why"}:
        return None
    threads, why = entry["threads"], entry["why"]
    whole = type(threads) is int and 0 <= threads <= MOST_THREADS
    return Verdict(threads, why[:WHY]) if whole and isinstance(why, str) else None


def this_machine() -> dict[str, str]:
    """Everything that a verdict depends on, besides the pipeline."""
    info = mx.device_info()
    return {
        "chip": str(info.get("device_name", platform.processor())),
        "system": platform.platform(),
        "mlx": mlx_version(),
        "source": _source(),
    }


def _source() -> str:
    """A digest of the kernels and of what launches them."""
    digest = hashlib.sha256()
    for texts in (files("gptoss_mlx.backends.mlx.ops"), source_folder()):
        for path in sorted((p for p in texts.iterdir() if p.is_file()), key=_name):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _name(path: Traversable) -> str:
    return path.name

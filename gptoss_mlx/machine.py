"""What a machine has for a model, and the Macs by name. Which one this is, `device.py` asks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

_NAME = re.compile(r"(\d{1,4})\s*(gi?b?)?\s*(mac)?", re.ASCII)
_MEMORY = (8, 1024)  # GB of the smallest and the largest Mac that is believed


@dataclass(frozen=True)
class Machine:
    """A machine, in bytes; None is what is not known.

    memory: physical. limit: what a model may take of it: the working set macOS recommends for
    the GPU, or what is free where a CPU computes. gpu: whether MLX computes on a GPU.
    """

    name: str
    memory: int | None
    limit: int | None
    gpu: bool


def mac(memory: int) -> Machine:
    """A Mac sold with `memory` GB.

    Its limit is what macOS recommends as the GPU's working set at first: two thirds of the memory,
    three quarters from 36 GB on. Newer versions of macOS allow more (16 GB: 11.8 GiB instead of
    10.7; 128 GB: 107.5 GiB instead of 96), so a real machine is asked.
    """
    nbytes = memory << 30
    share = nbytes * 2 // 3 if memory < 36 else nbytes * 3 // 4
    return Machine(f"{memory}GB Mac", nbytes, share, True)


MACHINES = MappingProxyType({m.name: m for m in map(mac, (8, 16, 18, 24, 32, 36, 64, 96, 128))})


def find_machine(name: str) -> Machine:
    """A Mac by its memory: "16GB Mac", "16 gb mac", "16". Raises ValueError in one line."""
    match = _NAME.fullmatch(name.strip().lower())
    if match is None or not _MEMORY[0] <= int(match[1]) <= _MEMORY[1]:
        raise ValueError(f"{name!r} is no Mac's memory such as '16GB Mac'")
    return mac(int(match[1]))

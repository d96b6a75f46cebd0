"""`Machine`, the memory and limits that a plan is made for; and Macs and NVIDIA cards by name.

The machine this runs on is queried in `device.py`, and its cards in `backends/torch/device.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from gptoss_mlx.files.jsonfile import shown

_MAC = re.compile(
    r"(?:macbook (?:air|pro)|mac (?:mini|studio|pro)|imac)?[\s,]*"
    r"(?:(?:apple )?(m\d)\s*(pro|max|ultra)?[\s,]*)?"
    r"(\d{1,4})\s*(?:gi?b?)?\s*(?:mac)?",
    re.ASCII,
)
_CARD = re.compile(r"(\d{1,4})\s*(gi?b?)?\s*card", re.ASCII)
_MEMORY = (8, 1024)  # GB of the smallest and the largest Mac that is accepted
_CARD_MEMORY = (4, 1024)

SYSTEM_SHARE = (512 << 20, 16, 2 << 30)
"""The share of the GPU memory macOS recommends that is left to the system and other programs: a
sixteenth, from 512 MiB to 2 GiB. They draw on the same limit (windows, browsers, video), and
Metal's own memory is in no plan. An estimate, not measured on a Mac. `--memory` takes its place."""


@dataclass(frozen=True)
class Machine:
    """A machine and its memory in bytes; None means unknown.

    memory: physical, of the card where one computes. limit: what a model may take of it: the
    working set macOS recommends for the GPU, what a card has free, or what is free where a CPU
    computes. gpu: whether a GPU computes. backend: "mlx", "torch" or "cpu". bandwidth: bytes of
    memory read a second, as the maker states it.
    """

    name: str
    memory: int | None
    limit: int | None
    gpu: bool
    backend: str = "mlx"
    bandwidth: int | None = None

    @property
    def kind(self) -> str:
        """ "metal", "mlx cpu", "cuda", "torch cpu" or "cpu": what a plan's sizes depend on."""
        return _KINDS[self.backend, self.gpu]

    @property
    def budget(self) -> int | None:
        """Bytes a plan may take by default: the limit; on a Mac's GPU less SYSTEM_SHARE."""
        if self.limit is None or self.kind != "metal":
            return self.limit
        least, part, most = SYSTEM_SHARE
        return max(0, self.limit - min(max(least, self.limit // part), most))


_KINDS = {
    ("mlx", True): "metal",
    ("mlx", False): "mlx cpu",
    ("torch", True): "cuda",
    ("torch", False): "torch cpu",
    ("cpu", False): "cpu",
}

_CHIPS = MappingProxyType(
    {
        **{"M1": 68, "M1 Pro": 200, "M1 Max": 400, "M1 Ultra": 800},
        **{"M2": 100, "M2 Pro": 200, "M2 Max": 400, "M2 Ultra": 800},
        **{"M3": 100, "M3 Pro": 150, "M3 Max": 400, "M3 Ultra": 819},
        **{"M4": 120, "M4 Pro": 273, "M4 Max": 546, "M5": 153},
    }
)
"""Memory bandwidth in GB/s, as Apple states it; none has been measured by us."""

_NARROWER = MappingProxyType({("M3 Max", 36): 300, ("M3 Max", 96): 300, ("M4 Max", 36): 410})
"""Bandwidth of chip variants with fewer cores, identified by the memory they are sold with."""


def mac(memory: int, chip: str | None = None) -> Machine:
    """A Mac sold with `memory` GB, and with a chip of those known by name.

    Its limit is what macOS recommends as the GPU's working set at first: two thirds of the memory,
    three quarters from 36 GB on. Newer versions of macOS allow more (16 GB: 11.8 GiB instead of
    10.7; 128 GB: 107.5 GiB instead of 96), so on a real machine the limit is queried.
    """
    nbytes = memory << 30
    share = nbytes * 2 // 3 if memory < 36 else nbytes * 3 // 4
    if chip is None:
        return Machine(f"{memory}GB Mac", nbytes, share, True)
    bandwidth = _NARROWER.get((chip, memory), _CHIPS[chip]) * 10**9
    return Machine(f"{chip} {memory}GB", nbytes, share, True, bandwidth=bandwidth)


def card(name: str, mebibytes: int) -> Machine:
    """An NVIDIA card with this much memory, none of it taken by anything else.

    Its limit leaves 256 MiB and a hundredth to the driver. A desktop takes more, and so does error
    correction where the name says nothing of it (a sixteenth of GDDR), so on a real card the limit
    is queried.
    """
    nbytes = mebibytes << 20
    return Machine(name, nbytes, nbytes - nbytes // 100 - (256 << 20), True, "torch")


MACHINES = MappingProxyType({m.name: m for m in map(mac, (8, 16, 18, 24, 32, 36, 64, 96, 128))})
"""Macs."""

CARDS = MappingProxyType(
    {f"{n}GB card": card(f"{n}GB card", n << 10) for n in (8, 12, 16, 24, 32, 48, 80, 96, 141)}
)
"""Cards by their memory alone."""

_MODELS = {
    "RTX 3060": 12288,
    "RTX 3080": 10240,
    "RTX 3090": 24576,
    "RTX 4060": 8188,
    "RTX 4070": 12282,
    "RTX 4080": 16376,
    "RTX 4090": 24564,
    "RTX 5070": 12227,
    "RTX 5080": 16303,
    "RTX 5090": 32607,
    "RTX A6000": 49140,
    "RTX 6000 Ada": 49140,
    "RTX PRO 6000": 97887,
    "A10": 23028,
    "A40": 46068,
    "A100 40GB": 40960,
    "A100 80GB": 81920,
    "L4": 23034,
    "L40S": 46068,
    "H100": 81559,
    "H200": 143771,
    "B200": 183359,
}
"""MiB of memory, as nvidia-smi shows it."""


def find_machine(name: str) -> Machine:
    """A Mac by its memory ("16GB Mac", "16 gb mac", "16") and chip ("M4 Max 64GB"), or a card
    ("24GB card", "RTX 4090").

    Raises ValueError in one line.
    """
    text = name.strip().lower()
    if (match := _MAC.fullmatch(text)) and _MEMORY[0] <= int(match[3]) <= _MEMORY[1]:
        chip = " ".join(part.capitalize() for part in match.groups()[:2] if part) or None
        if chip is not None and chip not in _CHIPS:
            raise ValueError(f"{shown(name)}: the chips known here are {', '.join(_CHIPS)}")
        return mac(int(match[3]), chip)
    if (match := _CARD.fullmatch(text)) and _CARD_MEMORY[0] <= int(match[1]) <= _CARD_MEMORY[1]:
        return card(f"{match[1]}GB card", int(match[1]) << 10)
    for model, mebibytes in _MODELS.items():
        if _bare(model) == _bare(text):
            return card(model, mebibytes)
    raise ValueError(
        f"{shown(name)} is no Mac's memory such as '16GB Mac' or 'M4 Max 64GB', and no card such as"
        " '24GB card' or 'RTX 4090'"
    )


def _bare(model: str) -> str:
    """A card's model without its maker's names and spaces."""
    return re.sub(r"nvidia|geforce|tesla|[\s_-]", "", model.lower())

"""The NVIDIA cards of this machine, found through torch, or in one line why one cannot be used.

Torch's warnings are silenced: what they warn of is either an error or of no consequence.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gptoss_mlx.errors import DeviceError

LEAST_CAPABILITY = 80
"""Compute capability, times ten, of the oldest cards that the kernels are made for."""

INSTALL = "pip install 'gptoss-mlx[cuda]'"

_VERSION = Path("/proc/driver/nvidia/version")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True)
class Card:
    """One card. capability: times ten. total, free: bytes. driver: its version, if it is known."""

    index: int
    name: str
    capability: int
    total: int
    free: int
    driver: str | None

    @property
    def device(self) -> str:
        """Its name in torch."""
        return f"cuda:{self.index}"


def is_installed() -> bool:
    """Whether torch is installed; it is not imported."""
    return find_spec("torch") is not None


def has_driver() -> bool:
    """Whether NVIDIA's driver can be loaded; torch is not imported."""
    for name in _DRIVERS:
        try:
            CDLL(name)
        except OSError:
            continue
        return True
    return False


def find_card(index: int | None = None) -> Card:
    """The card of that index, by default the first that can be used.

    Raises DeviceError.
    """
    count = count_cards()
    if index is not None:
        if index >= count:
            raise DeviceError(_not_there(index, count))
        return check_card(ask_card(index))
    problems: list[DeviceError] = []
    for number in range(count):
        try:
            return check_card(ask_card(number))
        except DeviceError as problem:
            problems.append(problem)
    raise problems[0]


def count_cards() -> int:
    """Start CUDA -> how many cards this process may use, at least one. Raises DeviceError."""
    torch = load_torch()
    if torch.version.cuda is None:
        made_for = "AMD's ROCm" if getattr(torch.version, "hip", None) else "the CPU only"
        raise DeviceError(
            f"this PyTorch ({torch.__version__}) is made for {made_for}: {INSTALL} in a new"
            " environment, or see https://pytorch.org/get-started for one made for CUDA"
        )
    with _quiet():
        try:
            torch.cuda.init()
            count = int(torch.cuda.device_count())
        except Exception as error:
            raise DeviceError(_why_not(str(error), torch.version.cuda)) from error
    if count == 0:
        raise DeviceError(_why_not("No CUDA GPUs are available", torch.version.cuda))
    return count


def ask_card(index: int) -> Card:
    """The properties of a card, whether it can be used or not. Raises DeviceError."""
    torch = load_torch()
    with _quiet():
        try:
            name = str(torch.cuda.get_device_name(index))
            major, minor = torch.cuda.get_device_capability(index)
            free, total = torch.cuda.mem_get_info(index)
        except Exception as error:
            raise DeviceError(f"cuda:{index} cannot be used: {_first_line(str(error))}") from error
    return Card(index, name, 10 * major + minor, int(total), int(free), driver_version())


def check_card(card: Card) -> Card:
    """The card itself. Raises DeviceError if the kernels or this torch have no code for it."""
    if card.capability < LEAST_CAPABILITY:
        raise DeviceError(
            f"{card.device} ({card.name}) has compute capability {_point(card.capability)}; the"
            f" least that the kernels are made for is {_point(LEAST_CAPABILITY)}"
        )
    torch = load_torch()
    codes = list(torch.cuda.get_arch_list())
    if codes and not any(_runs(code, card.capability) for code in codes):
        raise DeviceError(
            f"this PyTorch ({torch.__version__}) has no code for {card.device} ({card.name},"
            f" compute capability {_point(card.capability)}), only for {', '.join(codes)}: see"
            " https://pytorch.org/get-started for one that has"
        )
    if find_spec("triton") is None:
        raise DeviceError(f"Triton is not installed, which makes the kernels: {INSTALL}")
    return card


def load_torch() -> Any:
    """Import torch. Raises DeviceError if it is not installed or cannot be loaded."""
    if not is_installed():
        raise DeviceError(f"PyTorch is not installed: {INSTALL}")
    try:
        with _quiet():
            import torch
    except (ImportError, OSError) as error:
        raise DeviceError(f"PyTorch cannot be loaded: {_first_line(str(error))}") from error
    return torch


def built_for() -> str:
    """The CUDA version torch is made for, "ROCm" or "CPU only". Raises DeviceError."""
    version = load_torch().version
    if version.cuda is not None:
        return str(version.cuda)
    return "ROCm" if getattr(version, "hip", None) else "CPU only"


def driver_version(path: Path = _VERSION) -> str | None:
    """The driver's version, from its kernel module on Linux; None elsewhere."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]*)", text)
    return match[1] if match else None


def _why_not(text: str, needed: str) -> str:
    """Why CUDA could not be started, in one line. text: torch's error; needed: CUDA's version."""
    if match := re.search(r"driver on your system is too old \(found version (\d+)\)", text):
        found = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
        return (
            f"the NVIDIA driver is too old: it supports CUDA {found}, and this PyTorch is made for"
            f" {needed}; update the driver, or install a PyTorch made for CUDA {found}"
        )
    if "no NVIDIA driver" in text:
        return "there is no NVIDIA driver on this machine, and so no card that can be used"
    if "No CUDA GPUs are available" in text:
        visible = os.environ.get(_VISIBLE)
        hidden = "" if visible is None else f' ({_VISIBLE} is "{visible}")'
        return f"there is no NVIDIA card that this process may use{hidden}"
    return f"CUDA cannot be started: {_first_line(text)}"


def _not_there(index: int, count: int) -> str:
    there = "cuda:0 is the only card" if count == 1 else f"the last card is cuda:{count - 1}"
    return f"cuda:{index} is not there: {there}"


def _runs(code: str, capability: int) -> bool:
    """Whether code such as "sm_86" runs on a card.

    NVIDIA, CUDA C++ Programming Guide, application compatibility: binary code runs on cards of the
    same major number and at least its minor number, with the suffix "a" only on the one it names;
    PTX ("compute_90"), which is compiled when it is loaded, runs on all later ones too.
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)([af]?)", code)
    if match is None:
        return False
    made_for = int(match[2])
    if match[3] == "a":
        return made_for == capability
    if match[1] == "compute" and not match[3]:
        return made_for <= capability
    return made_for // 10 == capability // 10 and made_for <= capability


def _point(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it does not say why")


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

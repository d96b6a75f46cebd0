"""Cards, asked of a torch that answers as torch does on machines that are not here."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptoss_mlx.backends.torch import device
from gptoss_mlx.backends.torch.device import Card, find_card
from gptoss_mlx.errors import DeviceError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

GiB = 2**30
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU"
    " driver by downloading and installing a new version from the URL:"
    " http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to"
    " install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed"
    " a driver from http://www.nvidia.com/Download/index.aspx"
)


def fails(text: str) -> Callable[..., Any]:
    def fail(*arguments: object) -> Any:
        warnings.warn(f"CUDA initialization: {text}", stacklevel=2)
        raise RuntimeError(text)

    return fail


class Cuda:
    """torch.cuda with cards of (name, capability)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cards = [("NVIDIA H100 80GB HBM3", (9, 0))]
        self.patch = monkeypatch
        self.set("init", lambda: warnings.warn("Found GPU0, which is too new", stacklevel=2))
        self.set("device_count", lambda: len(self.cards))
        self.set("get_device_name", lambda index: self.cards[index][0])
        self.set("get_device_capability", lambda index: self.cards[index][1])
        self.set("mem_get_info", lambda index: (70 * GiB + index, 79 * GiB))
        self.codes("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(device, "driver_version", lambda: "580.1")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def set(self, name: str, function: Callable[..., Any]) -> None:
        self.patch.setattr(torch.cuda, name, function)

    def codes(self, *names: str) -> None:
        self.set("get_arch_list", lambda: list(names))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def refused(index: int | None = None) -> str:
    with pytest.raises(DeviceError) as caught:
        find_card(index)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 250
    return line


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    found = importlib.util.find_spec

    def find(name: str, parent: str | None = None) -> ModuleSpec | None:
        return None if name == package else found(name, parent)

    monkeypatch.setattr(device, "find_spec", find)


# A card that can be used. Warnings are errors in all tests: none may leak.


@pytest.mark.usefixtures("cuda")
def test_a_card_says_what_it_is() -> None:
    card = Card(0, "NVIDIA H100 80GB HBM3", 90, 79 * GiB, 70 * GiB, "580.1")
    assert find_card() == find_card(0) == card
    assert card.device == "cuda:0"


def test_the_first_card_that_can_be_used_is_found(cuda: Cuda) -> None:
    cuda.cards = [("Tesla T4", (7, 5)), ("NVIDIA L4", (8, 9)), ("NVIDIA A100", (8, 0))]
    assert find_card().device == "cuda:1"
    assert find_card(2).name == "NVIDIA A100"


# Every reason why not


def test_torch_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "torch")
    assert refused() == "PyTorch is not installed: pip install 'gptoss-mlx[cuda]'"
    assert not device.is_installed()


def test_torch_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refused().startswith("PyTorch cannot be loaded: import of torch halted")


@pytest.mark.usefixtures("cuda")
def test_torch_is_made_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "made for the CPU only" in refused()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "made for AMD's ROCm" in refused()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            TOO_OLD,
            "the NVIDIA driver is too old: it supports CUDA 11.4, and this PyTorch is made for"
            " 13.0; update the driver, or install a PyTorch made for CUDA 11.4",
        ),
        (NO_DRIVER, "there is no NVIDIA driver on this machine, and so no card that can be used"),
        ("No CUDA GPUs are available", "there is no NVIDIA card that this process may use"),
        ("\nError 804: forward\ncompat", "CUDA cannot be started: Error 804: forward"),
        ("", "CUDA cannot be started: it does not say why"),
    ],
)
def test_cuda_cannot_be_started(cuda: Cuda, text: str, line: str) -> None:
    cuda.set("init", fails(text))
    assert refused() == line


def test_cards_hidden_by_the_environment(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cuda.cards = []
    assert refused().endswith('may use (CUDA_VISIBLE_DEVICES is "")')


def test_the_card_is_too_old(cuda: Cuda) -> None:
    cuda.cards = [("Tesla T4", (7, 5))]
    assert refused() == (
        "cuda:0 (Tesla T4) has compute capability 7.5; the least that the kernels are made for is"
        " 8.0"
    )


@pytest.mark.parametrize(
    ("codes", "capability", "runs"),
    [
        (("sm_80",), (8, 0), True),
        (("sm_80",), (8, 9), True),
        (("sm_90",), (8, 9), False),
        (("sm_80", "sm_90"), (10, 0), False),
        (("sm_80", "compute_90"), (12, 0), True),
        (("compute_90",), (8, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("sm_100f",), (10, 3), True),
        (("compute_100f",), (12, 0), False),
        (("gfx90a",), (9, 0), False),
        ((), (9, 0), True),  # a torch that does not tell
    ],
)
def test_torch_has_code_for_the_card_or_not(
    cuda: Cuda, codes: tuple[str, ...], capability: tuple[int, int], runs: bool
) -> None:
    cuda.codes(*codes)
    cuda.cards = [("a card", capability)]
    if runs:
        assert find_card().capability == 10 * capability[0] + capability[1]
    else:
        assert f"has no code for cuda:0 (a card, compute capability {capability[0]}." in refused()


def test_no_such_number(cuda: Cuda) -> None:
    assert refused(1) == "cuda:1 is not there: cuda:0 is the only card"
    cuda.cards *= 3
    assert refused(7) == "cuda:7 is not there: the last card is cuda:2"


@pytest.mark.usefixtures("cuda")
def test_triton_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "triton")
    assert refused().startswith("Triton is not installed, which makes the kernels: pip install")


def test_a_card_that_another_process_keeps_for_itself(cuda: Cuda) -> None:
    cuda.set("mem_get_info", fails("CUDA error: CUDA-capable device(s) is/are busy\nCUDA kernel"))
    assert refused() == "cuda:0 cannot be used: CUDA error: CUDA-capable device(s) is/are busy"


def test_of_several_problems_the_first_card_s_is_told(cuda: Cuda) -> None:
    cuda.cards = [("Tesla T4", (7, 5)), ("Tesla V100", (7, 0))]
    assert "Tesla T4" in refused()


# This machine


def test_this_torch_says_what_it_is_made_for() -> None:
    assert device.built_for() == (torch.version.cuda or "CPU only")
    if torch.version.cuda is None:
        assert f"this PyTorch ({torch.__version__}) is made for the CPU only" in refused()


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.153.02  Release Build",
            "570.153.02",
        ),
        ("something else", None),
    ],
)
def test_the_driver_s_version_is_that_of_its_module(
    tmp_path: Path, line: str, version: str | None
) -> None:
    path = tmp_path / "version"
    assert device.driver_version(path) is None
    path.write_text(f"{line}\nGCC version: 12\n")
    assert device.driver_version(path) == version


def test_a_driver_is_there_if_its_library_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        if name != "nvcuda.dll":
            raise OSError(name)
        return SimpleNamespace()

    monkeypatch.setattr(device, "CDLL", load)
    assert device.has_driver()
    monkeypatch.setattr(device, "_DRIVERS", ("libcuda.so.1",))
    assert not device.has_driver()

"""Which backend and device compute, over every combination of what a machine may have."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from gptoss_mlx.backends.backend import Backend, choose_backend, machine_of
from gptoss_mlx.backends.cpu import library
from gptoss_mlx.backends.torch import device as cards
from gptoss_mlx.backends.torch.device import Card
from gptoss_mlx.errors import DeviceError
from gptoss_mlx.plan.torch_buffers import CUDA_CONTEXT
from gptoss_mlx.system import device
from gptoss_mlx.system.machine import Machine

GiB = 2**30
H100 = Card(0, "NVIDIA H100 80GB HBM3", 90, 79 * GiB, 78 * GiB, "570.1")
OLD = DeviceError("the card is too old")
PASSED_OVER = "no card is used: the card is too old"
NOT_BUILT = "the kernels were not built"
SLOWER = f"slower than it could be: {NOT_BUILT}"


@dataclass
class Here:
    """A machine as the modules that are asked would describe it. native: why there are no kernels
    for its CPU, None where there are."""

    native: str | None = None
    mlx: str | None = "cpu"
    torch: bool = True
    driver: bool = True
    cards: tuple[Card | DeviceError, ...] = ()
    asked: list[str] = field(default_factory=list)

    def find_card(self, index: int | None = None) -> Card:
        self.asked.append("card")
        if index is not None and index >= len(self.cards):
            raise DeviceError(f"cuda:{index} is not there")
        for found in self.cards if index is None else (self.cards[index],):
            if isinstance(found, Card):
                return found
        raise next((e for e in self.cards if isinstance(e, DeviceError)), DeviceError("no card"))

    def load_torch(self) -> object:
        if not self.torch:
            raise DeviceError("PyTorch is not installed")
        return object()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    machine = Here()
    monkeypatch.setattr(library, "why_missing", lambda: machine.native)
    monkeypatch.setattr(device, "mlx_device", lambda: machine.mlx)
    monkeypatch.setattr(cards, "is_installed", lambda: machine.torch)
    monkeypatch.setattr(cards, "has_driver", lambda: machine.driver)
    monkeypatch.setattr(cards, "find_card", machine.find_card)
    monkeypatch.setattr(cards, "load_torch", machine.load_torch)
    return machine


def refused(backend: str | None = None, device: str | None = None) -> str:
    with pytest.raises(DeviceError) as caught:
        choose_backend(backend, device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Asked nothing


def test_mlx_with_a_gpu_comes_first_and_no_card_is_asked(here: Here) -> None:
    here.mlx, here.cards = "gpu", (H100,)
    assert choose_backend() == Backend("mlx", "gpu")
    assert here.asked == []


@pytest.mark.parametrize("mlx", ["cpu", None])
def test_a_card_comes_before_a_cpu(here: Here, mlx: str | None) -> None:
    here.mlx, here.cards = mlx, (H100,)
    assert choose_backend() == Backend("torch", "cuda:0")


@pytest.mark.parametrize(("torch", "driver"), [(False, True), (True, False), (False, False)])
def test_without_torch_or_a_driver_no_card_is_asked(here: Here, torch: bool, driver: bool) -> None:
    here.torch, here.driver = torch, driver
    assert choose_backend() == Backend("cpu", "cpu")
    assert here.asked == []


def test_a_card_of_no_use_is_passed_over_and_named(here: Here) -> None:
    here.cards = (OLD,)
    assert choose_backend() == Backend("cpu", "cpu", PASSED_OVER)
    here.native = NOT_BUILT
    assert choose_backend() == Backend("mlx", "cpu", PASSED_OVER)
    here.mlx = None
    assert choose_backend() == Backend("torch", "cpu", PASSED_OVER)


def test_without_kernels_mlx_computes_on_the_cpu_and_without_it_torch(here: Here) -> None:
    here.native, here.driver = NOT_BUILT, False
    assert choose_backend() == Backend("mlx", "cpu", SLOWER)
    here.mlx = None
    assert choose_backend() == Backend("torch", "cpu", SLOWER)


def test_with_none_there_is_nothing_to_compute_with(here: Here) -> None:
    here.native, here.mlx, here.torch = NOT_BUILT, None, False
    assert refused() == "neither MLX nor PyTorch is installed: pip install 'mlx[cpu]'"


# Asked something


@pytest.mark.parametrize(
    ("backend", "device", "chosen"),
    [
        ("mlx", None, Backend("mlx", "cpu")),
        ("mlx", "cpu", Backend("mlx", "cpu")),
        ("torch", None, Backend("torch", "cuda:0")),
        ("torch", "cpu", Backend("torch", "cpu")),
        ("torch", "cuda", Backend("torch", "cuda:0")),
        ("torch", "cuda:1", Backend("torch", "cuda:1")),
        ("cuda", None, Backend("torch", "cuda:0")),
        ("cuda", "cuda:1", Backend("torch", "cuda:1")),
        (None, "cuda:1", Backend("torch", "cuda:1")),
        ("cpu", None, Backend("cpu", "cpu")),
        ("cpu", "cpu", Backend("cpu", "cpu")),
        (None, "cpu", Backend("cpu", "cpu")),
    ],
)
def test_what_is_asked_for_is_had(
    here: Here, backend: str | None, device: str | None, chosen: Backend
) -> None:
    here.cards = (H100, Card(1, "another", 80, GiB, GiB, None))
    assert choose_backend(backend, device) == chosen


def test_without_kernels_the_cpu_is_mlx_s_unless_that_has_a_gpu_or_is_missing(here: Here) -> None:
    here.native = NOT_BUILT
    for mlx in ("gpu", None):
        here.mlx = mlx
        assert choose_backend(device="cpu") == Backend("torch", "cpu", SLOWER)
    here.mlx, here.torch = "gpu", False
    assert "MLX computes on the GPU here" in refused(device="cpu")


def test_torch_alone_falls_back_to_the_cpu_and_says_why(here: Here) -> None:
    here.cards = (OLD,)
    assert choose_backend("torch") == Backend("torch", "cpu", PASSED_OVER)
    here.driver = False
    assert choose_backend("torch") == Backend("torch", "cpu")


def test_a_card_that_is_asked_for_is_not_replaced(here: Here) -> None:
    here.cards = (OLD, H100)
    assert refused("torch", "cuda:0") == "the card is too old"
    assert refused("cuda", "cuda:2") == "cuda:2 is not there"
    here.cards = ()
    assert refused("cuda") == "no card"


def test_what_mlx_does_not_have(here: Here) -> None:
    assert refused("mlx", "cuda") == "MLX computes on the CPU here, not on 'cuda'"
    assert refused(None, "gpu") == "MLX computes on the CPU here, not on 'gpu'"
    here.mlx = "gpu"
    assert choose_backend(None, "gpu") == Backend("mlx", "gpu")
    assert refused("mlx", "cpu") == "MLX computes on the GPU here, not on 'cpu'"
    here.mlx = None
    assert "MLX is not installed: pip install mlx" in refused("mlx")


def test_what_contradicts_itself_or_is_not_known(here: Here) -> None:
    assert "computes on a card, not on 'cpu'" in refused("cuda", "cpu")
    assert "not on 'gpu'" in refused("torch", "gpu")
    assert "the backend 'jax' is none of mlx, torch, cuda, cpu" in refused("jax")
    assert refused("cpu", "cuda") == "the backend cpu computes on the CPU, not on 'cuda'"
    here.native = NOT_BUILT
    assert refused("cpu") == NOT_BUILT
    for name in ("cuda:", "cuda:x", "CUDA", "tpu", "cuda:-1", ""):
        assert f"the device {name!r} is neither" in refused("torch", name)
    here.torch = False
    assert refused("torch", "cpu") == "PyTorch is not installed"


def test_it_is_shown_in_words() -> None:
    shown = [Backend("mlx", "gpu").shown, Backend("torch", "cpu").shown]
    assert [Backend("cpu", "cpu").shown, *shown, Backend("torch", "cuda:1").shown] == [
        "native kernels on the CPU",
        "MLX on the GPU",
        "PyTorch on the CPU",
        "PyTorch on cuda:1",
    ]


# The machine a plan is made for


def test_the_machine_is_what_computes(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    mac = Machine("this machine", 16 * GiB, 12 * GiB, True)
    monkeypatch.setattr(device, "this_machine", lambda: mac)
    monkeypatch.setattr(device, "free_bytes", lambda: 5 * GiB)
    assert machine_of(Backend("mlx", "gpu")) is mac
    computer = machine_of(Backend("torch", "cpu"))
    assert (computer.kind, computer.limit) == ("torch cpu", 5 * GiB)
    here.cards = (H100,)
    found = machine_of(Backend("torch", "cuda:0"))
    assert (found.name, found.kind) == (H100.name, "cuda")
    assert found.memory == H100.total


def test_a_card_s_limit_counts_the_context_that_asking_it_took(here: Here) -> None:
    for free in (70 * GiB, 79 * GiB):
        here.cards = (Card(0, "a card", 90, 79 * GiB, free, None),)
        limit = machine_of(Backend("torch", "cuda:0")).limit
        assert limit == min(79 * GiB, free + CUDA_CONTEXT)


@pytest.mark.torch
def test_the_command_names_what_is_missing_in_one_line() -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("this PyTorch is made for CUDA")
    command = [sys.executable, "-m", "gptoss_mlx.generate", "--model", "tiny", "Hello"]
    run = subprocess.run([*command, "--backend", "cuda"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(f"error: this PyTorch ({torch.__version__}) is made for the CPU")
    assert run.stderr.count("\n") == 1

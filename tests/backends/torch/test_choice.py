"""Which kernels are used where, and what becomes of one that fails on a device."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from subprocess import CalledProcessError
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from gptoss_mlx.backends.torch import choice, reference
from gptoss_mlx.backends.torch.agreement import difference
from gptoss_mlx.backends.torch.choice import MODULES, Kernels, choose_kernels, implementations
from gptoss_mlx.backends.torch.operands import Bank, Groups, Heads, Matrix
from gptoss_mlx.backends.torch.triton import capability
from gptoss_mlx.errors import KernelError

pytestmark = pytest.mark.torch

CPU, CARD = torch.device("cpu"), torch.device("cuda")


def examples(name: str) -> Iterator[tuple[Any, ...]]:
    """Small arguments of an operation, on the CPU."""
    x = torch.arange(24.0).reshape(2, 12).cos()
    at = torch.tensor([0, 1], dtype=torch.int32)
    visits = torch.tensor([[0, 3], [3, 1]], dtype=torch.int32)
    heads, cache = Heads(1, 1, 4), x.reshape(2, 2, 1, 3, 2)
    wide = torch.arange(64.0).reshape(2, 32).cos()
    codes = torch.arange(4 * 64 * 16).reshape(4, 64, 16).to(torch.uint8)
    scales = torch.full((4, 64, 1), 126, dtype=torch.uint8)
    bias = torch.zeros(4, 64)
    bank = Bank(codes, scales, codes[:, :32], scales[:, :32], bias, bias[:, :32])
    groups = reference.group_pairs(visits, 4, 2)
    yield {
        "linear": (x, Matrix(x)),
        "add_norm": (x, None, x[0], 1e-5),
        "rope_write": (x, at, at, at, torch.zeros(2, 2, 1, 3, 4), torch.ones(2), heads),
        "decode_attention": (x.reshape(2, 6, 2), cache, at, at + 1, x[0, :6], 0.5),
        "prefill_attention": (x.reshape(2, 6, 2), cache[0], x[0, :6], 0.5),
        "router_topk": (x, 2),
        "group_pairs": (visits, 4, 2),
        "route": (x, 2, 2),
        "moe_gate_up": (wide, bank, groups, visits, 7.0),
        "moe_down": (wide.repeat(2, 1), bank, groups, visits, x[:, :2]),
    }[name]


def install(monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Any]) -> None:
    """Every operation has examples on the CPU and what `make` gives, as of a card of 9.0."""
    modules = {
        name: SimpleNamespace(**{name: make(name), "tile_for": tile_for}) for name in MODULES
    }
    monkeypatch.setattr(choice, "module_of", modules.__getitem__)
    monkeypatch.setattr(choice, "examples_of", lambda name, dtype, device: examples(name))
    monkeypatch.setattr(capability, "capability_of", lambda device: 90)
    monkeypatch.setattr(choice, "launching_on", lambda device: nullcontext())


def tile_for(pairs: int, slots: int, capability: int) -> int:
    """Of every argument something."""
    return pairs + 10 * slots + 100 * capability


def right(name: str) -> Callable[..., Any]:
    """As its reference, but another function."""
    return lambda *arguments: getattr(reference, name)(*arguments)


def wrong(name: str) -> Callable[..., Any]:
    """Nothing but zeros, and nothing written."""

    def run(*arguments: Any) -> Any:
        copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
        out = getattr(reference, name)(*copies)
        return torch.zeros_like(out) if isinstance(out, torch.Tensor) else out

    return run


def broken(name: str) -> Callable[..., Any]:
    """A kernel that does not compile, as Triton tells it."""

    def run(*arguments: Any) -> Any:
        source = "y = nothing"
        raise CompilationError(source, ast.parse(source).body[0], "nothing is not defined")

    return run


def raising(error: Exception) -> Callable[[str], Any]:
    def make(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            raise error

        return run if name == "linear" else right(name)

    return make


def test_a_cpu_has_references_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPTOSS_KERNELS", raising=False)
    assert choose_kernels(CPU, torch.float32) == Kernels()
    assert set(implementations(Kernels()).values()) == {"reference"}
    assert not Kernels().capturable


def test_there_is_an_implementation_of_every_operation() -> None:
    assert set(MODULES) <= set(Kernels.__dataclass_fields__)
    assert all(getattr(Kernels(), name) is getattr(reference, name) for name in MODULES)


def test_a_card_has_the_kernels_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, right)
    kernels = choose_kernels(CARD, torch.float32, "")
    assert set(implementations(kernels).values()) == {"triton"}
    assert not kernels.rejected
    assert kernels.capturable


def test_kernels_that_give_something_else_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda name: (wrong if name == "linear" else right)(name))
    kernels = choose_kernels(CARD, torch.bfloat16, "")
    assert kernels.rejected == {"linear": "it differs from its reference by 1.0e+00"}
    assert kernels.linear is reference.linear
    assert kernels.add_norm is not reference.add_norm
    assert implementations(kernels)["linear"] == kernels.rejected["linear"]
    assert kernels.capturable  # its reference does not wait for the device


def test_a_kernel_that_writes_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def queries_only(*arguments: Any) -> torch.Tensor:
        qkv, positions, rows, places, cache, periods, heads = arguments
        return reference.rope_write(qkv, positions, rows, places, cache.clone(), periods, heads)

    make = {"rope_write": queries_only}
    install(monkeypatch, lambda name: make.get(name) or right(name))
    kernels = choose_kernels(CARD, torch.float32, "")
    assert kernels.rejected == {"rope_write": "it differs from its reference by 1.0e+00"}


def test_a_step_can_be_captured_without_the_kernel_of_prefill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, lambda name: (broken if name == "moe_down" else right)(name))
    assert not choose_kernels(CARD, torch.float32, "").capturable
    wanted = "prefill_attention"
    monkeypatch.setattr(choice, "checked", lambda name, device, dtype: _without(name, wanted))
    kernels = choose_kernels(CARD, torch.float32, "")
    assert set(kernels.rejected) == {wanted}
    assert kernels.capturable


def _without(name: str, *others: str) -> Callable[..., Any]:
    if name in others:
        raise KernelError("too long")
    return right(name)


def test_what_does_not_compile_is_left_out_with_the_reason_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, broken)
    kernels = choose_kernels(CARD, torch.float32, "")
    assert kernels.rejected["linear"] == "at 1:0: y = nothing ^ nothing is not defined"
    assert kernels.rejected["moe_down"].endswith(
        "; without it a decoding step is no CUDA graph, but launch after launch"
    )


@pytest.mark.parametrize(
    "error",
    [
        OutOfResources(99, 98, "shared memory"),
        CalledProcessError(1, "ptxas"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: an illegal instruction was encountered"),
    ],
)
def test_what_compilers_and_the_driver_say_leaves_a_kernel_out(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, raising(error))
    assert set(choose_kernels(CARD, torch.float32, "").rejected) == {"linear"}


def test_a_pass_of_triton_that_fails_leaves_a_kernel_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a plain RuntimeError, but of Triton's own code."""
    name = {"__name__": "triton.backends.compiler"}
    exec("def run(*arguments): raise RuntimeError('PassManager::run failed')", name)
    install(monkeypatch, lambda n: name["run"] if n == "linear" else right(n))
    rejected = choose_kernels(CARD, torch.float32, "").rejected
    assert rejected == {"linear": "PassManager::run failed"}


@pytest.mark.parametrize(
    "error",
    [
        TypeError("run() takes 2 arguments"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        KeyError("linear"),
        ImportError("cannot import name 'FEW'", name="gptoss_mlx.backends.torch.triton.linear"),
    ],
)
def test_mistakes_of_our_own_come_to_light(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, raising(error))
    with pytest.raises(type(error)):
        choose_kernels(CARD, torch.float32, "")
    if isinstance(error, ImportError):
        monkeypatch.undo()
        monkeypatch.setattr(choice.importlib, "import_module", raising(error)("linear"))
        with pytest.raises(ImportError):
            choice.module_of("linear")


def test_kernels_are_compiled_side_by_side_each_on_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two that wait for each other, and for neither's thread to have another current card."""
    met, on = threading.Barrier(2, timeout=20), threading.local()

    def make(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            assert on.card == CARD
            if name in ("linear", "add_norm"):
                met.wait()
            return getattr(reference, name)(*arguments)

        return run

    @contextmanager
    def launching_on(device: torch.device) -> Iterator[None]:
        on.card = device
        yield

    install(monkeypatch, make)
    monkeypatch.setattr(choice, "launching_on", launching_on)
    assert not choose_kernels(CARD, torch.float32, "").rejected


def test_references_that_a_graph_cannot_hold_are_those_that_wait() -> None:
    """A fake tensor has no values, and raises where they are asked for."""
    waiting = set()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name in MODULES.keys() - {"prefill_attention"}:
            for arguments in examples(name):
                fake = [copied(mode, argument) for argument in arguments]
                try:
                    getattr(reference, name)(*fake)
                except DataDependentOutputException:
                    waiting.add(name)
    assert waiting == choice.WAITING


def copied(mode: FakeTensorMode, argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return mode.from_tensor(argument)
    if isinstance(argument, Groups):
        return replace(argument, **{k: copied(mode, v) for k, v in vars(argument).items()})
    return argument


@pytest.mark.parametrize("make", [wrong, broken])
def test_insisting_on_triton_fails_rather_than_fall_back(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, make)
    with pytest.raises(KernelError, match=r"^the Triton kernel linear cannot be used: "):
        choose_kernels(CARD, torch.float32, "triton")


def test_pairs_are_tiled_as_the_experts_kernels_want(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, right)
    assert choose_kernels(CARD, torch.float32, "").tile_for(1, 2) == 9021
    assert choice.triton_kernels(CARD).tile_for(1, 2) == 9021
    both = ("moe_gate_up", "moe_down")
    monkeypatch.setattr(choice, "checked", lambda name, device, dtype: _without(name, *both))
    assert choose_kernels(CARD, torch.float32, "").tile_for is reference.tile_for
    monkeypatch.setattr(choice, "checked", lambda name, device, dtype: _without(name, "moe_down"))
    assert choose_kernels(CARD, torch.float32, "").tile_for(1, 2) == 9021


def test_a_kernel_without_examples_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, right)
    monkeypatch.setattr(choice, "examples_of", lambda name, dtype, device: iter(()))
    rejected = choose_kernels(CARD, torch.float32, "").rejected
    assert {why.split(";")[0] for why in rejected.values()} == {"it has no examples to agree on"}


def test_examples_are_of_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, tuple[Any, ...]]]:
        yield "moe_gate_up", (1,)
        yield "moe_down", (2,)

    modules = {"moe_down": SimpleNamespace(examples=named)}
    modules["add_norm"] = SimpleNamespace(examples=lambda dtype, device: [(3,), (4,)])
    monkeypatch.setattr(choice, "module_of", modules.__getitem__)
    assert list(choice.examples_of("moe_down", torch.float32, CPU)) == [(2,)]
    assert list(choice.examples_of("add_norm", torch.float32, CPU)) == [(3,), (4,)]


def test_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, broken)
    monkeypatch.setenv("GPTOSS_KERNELS", "reference")
    assert choose_kernels(CARD, torch.float32) == Kernels()
    monkeypatch.setenv("GPTOSS_KERNELS", "triton")
    with pytest.raises(KernelError, match="the Triton kernel linear cannot be used"):
        choose_kernels(CARD, torch.float32)
    monkeypatch.setenv("GPTOSS_KERNELS", "metal")
    with pytest.raises(KernelError, match='GPTOSS_KERNELS is "metal"; it may be "triton" or'):
        choose_kernels(CARD, torch.float32)


def test_a_cpu_runs_triton_only_in_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, right)
    assert set(implementations(choose_kernels(CPU, torch.float32, "triton")).values()) == {"triton"}
    monkeypatch.setattr(choice, "_interpreted", lambda: False)
    with pytest.raises(KernelError, match='is "triton", but the model computes on the CPU here'):
        choose_kernels(CPU, torch.float32, "triton")


def test_references_need_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "import contextlib\n"
        "from gptoss_mlx.backends.torch import choice\n"
        "from gptoss_mlx.backends.torch.choice import Kernels, choose_kernels\n"
        "choice.launching_on = lambda device: contextlib.nullcontext()\n"
        "assert choose_kernels(torch.device('cpu'), torch.float32) == Kernels()\n"
        "kernels = choose_kernels(torch.device('cuda'), torch.float32)\n"
        "print(set(kernels.rejected.values()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "it cannot be imported: import of triton halted" in run.stdout


@pytest.mark.parametrize(
    ("found", "expected", "off"),
    [
        (torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]), 0.1),
        (torch.tensor([3.0, float("nan")]), torch.tensor([3.0, 4.0]), float("inf")),
        (torch.tensor([3.0, 4.0, 5.0]), torch.tensor([3.0, 4.0]), float("inf")),
        (torch.tensor([3, 4]), torch.tensor([3.0, 4.0]), float("inf")),
        (torch.tensor([3, 4]), torch.tensor([3, 4]), 0.0),
        (torch.tensor([4, 3]), torch.tensor([3, 4]), float("inf")),
        (torch.zeros(2, 0), torch.zeros(2, 0), 0.0),
    ],
)
def test_how_far_two_outputs_are_apart(
    found: torch.Tensor, expected: torch.Tensor, off: float
) -> None:
    assert difference(lambda: found, lambda: expected, ()) == pytest.approx(off)
    assert difference(lambda: (found, found), lambda: (expected,), ()) == float("inf")


def test_of_what_a_call_writes_only_the_changed_elements_count() -> None:
    def write(x: torch.Tensor, value: float) -> list[torch.Tensor]:
        x[0] = value
        return []

    held = torch.tensor([0.0, 1e9, float("nan")])
    off = difference(lambda x: write(x, 1.1), lambda x: write(x, 1.0), (held,))
    assert off == pytest.approx(0.1, rel=1e-5)
    assert held[0] == 0


def test_the_reference_computes_in_more_bits() -> None:
    def total(x: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True, dtype=x.dtype)

    x = torch.full((3000,), 1.001, dtype=torch.bfloat16)
    x[0] = 0.3
    seen: list[torch.dtype] = []
    difference(total, lambda x: (seen.append(x.dtype), total(x))[1], (x,), torch.float64)
    assert seen == [torch.float64]

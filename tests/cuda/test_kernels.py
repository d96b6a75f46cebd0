"""Every Triton kernel, in the interpreter: equal to its reference on its own examples."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from gptoss_mlx.cuda import kernels, reference
from gptoss_mlx.cuda.agreement import difference
from gptoss_mlx.cuda.choice import MODULES

pytestmark = pytest.mark.torch

CLOSE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative L2 to the reference in float64; the interpreter cuts floats off where a card rounds."""


def modules() -> dict[str, ModuleType]:
    """The modules under cuda/kernels that have a kernel, by name."""
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__)]
    found = {name: importlib.import_module(f"{kernels.__name__}.{name}") for name in names}
    return {name: module for name, module in found.items() if is_kernel(module)}


def is_kernel(module: ModuleType) -> bool:
    """Whether anything in it is compiled by Triton and launched from it."""
    return any(
        type(value).__name__ in ("InterpretedFunction", "JITFunction")
        and value.fn.__module__ == module.__name__
        for value in vars(module).values()
    ) and any(name == module.__name__.split(".")[-1] for name in MODULES.values())


KERNELS = modules()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", [name for name, module in MODULES.items() if module in KERNELS])
def test_a_kernel_gives_what_its_reference_gives(name: str, dtype: torch.dtype) -> None:
    module = KERNELS[MODULES[name]]
    examples = list(module.examples(dtype, torch.device("cpu")))
    assert examples
    for i, arguments in enumerate(examples):
        off = difference(getattr(module, name), getattr(reference, name), arguments, torch.float64)
        assert off <= CLOSE[dtype], f"example {i}"


def test_every_module_has_examples_and_builds() -> None:
    lacking = [
        f"{name} lacks {what}"
        for name, module in KERNELS.items()
        for what in ("examples", "builds")
        if not hasattr(module, what)
    ]
    assert lacking == []

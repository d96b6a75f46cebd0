"""Every Triton kernel, in the interpreter: equal to its reference on its own examples."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from gptoss_mlx.backends.torch import reference
from gptoss_mlx.backends.torch import triton as kernels
from gptoss_mlx.backends.torch.agreement import difference
from gptoss_mlx.backends.torch.choice import MODULES, examples_of
from tests.support.triton_builds import BUILDS

pytestmark = pytest.mark.torch

CLOSE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Relative L2 to the reference in float64; the interpreter cuts floats off where a card rounds."""


def modules() -> dict[str, ModuleType]:
    """The modules of the Triton kernels that have an operation, by name.

    Others hold what kernels of several modules call.
    """
    names = [module.name for module in pkgutil.iter_modules(kernels.__path__)]
    found = {name: importlib.import_module(f"{kernels.__name__}.{name}") for name in names}
    marks = {"examples", *MODULES}
    return {name: module for name, module in found.items() if marks & own(module)}


def own(module: ModuleType) -> set[str]:
    """Names of the functions a module defines."""
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }


KERNELS = modules()


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", [name for name, module in MODULES.items() if module in KERNELS])
def test_a_kernel_gives_what_its_reference_gives(name: str, dtype: torch.dtype) -> None:
    module = KERNELS[MODULES[name]]
    examples = list(examples_of(name, dtype, torch.device("cpu")))
    assert examples
    for i, arguments in enumerate(examples):
        off = difference(getattr(module, name), getattr(reference, name), arguments, torch.float64)
        assert off <= CLOSE[dtype], f"example {i}"


@pytest.mark.parametrize("name", KERNELS)
def test_a_module_has_an_operation_its_examples_and_builds(name: str) -> None:
    found = own(KERNELS[name])
    assert "examples" in found
    assert {operation for operation, module in MODULES.items() if module == name} & found
    built = {build.kernel.fn.__module__ for build in BUILDS[name](90)}
    assert built == {KERNELS[name].__name__}

"""The choice of library and device, from what the user asks for and what this machine has.

By default: MLX where it has a GPU; else PyTorch where there is a card it can use; else our own
kernels on the CPU; where they were not built MLX there, and where MLX is not installed PyTorch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptoss_mlx.errors import DeviceError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.system.machine import Machine

BACKENDS = ("mlx", "torch", "cuda", "cpu")
"""What may be asked for; "cuda" is PyTorch on a card, "cpu" the kernels of native/."""

_DEVICE = re.compile(r"cpu|gpu|cuda(?::(\d{1,3}))?", re.ASCII)


@dataclass(frozen=True)
class Backend:
    """A library and the device that it computes on.

    backend: "mlx", "torch" or "cpu". device: "gpu" or "cpu" of MLX's, "cpu" or "cuda:N" of
    torch's. note: why something faster was passed over, where nothing was asked for.
    """

    backend: str
    device: str
    note: str | None = None

    @property
    def shown(self) -> str:
        """For people: "MLX on the CPU", "PyTorch on cuda:0"."""
        place = self.device if self.device.startswith("cuda") else f"the {self.device.upper()}"
        return f"{_SHOWN[self.backend]} on {place}"


_SHOWN = {"mlx": "MLX", "torch": "PyTorch", "cpu": "native kernels"}


def choose_backend(backend: str | None = None, device: str | None = None) -> Backend:
    """Choose the library and the device for this machine.

    backend: one of BACKENDS, None for the best there is. device: "cpu", "cuda" (the first card that
    can be used) or "cuda:N"; with "torch" alone a card that can be used, else the CPU. MLX has one
    device, "gpu" or "cpu", and no other can be asked of it.
    Raises DeviceError.
    """
    if backend not in (None, *BACKENDS):
        raise DeviceError(f"the backend {shown(backend)} is none of {', '.join(BACKENDS)}")
    if device is not None:
        try:
            check_device(device)
        except ValueError as error:
            raise DeviceError(str(error)) from error
    if backend == "mlx" or (backend is None and device == "gpu"):
        return _mlx(device)
    if backend == "cpu":
        return _native(device)
    if backend == "cuda" or (device is not None and device.startswith("cuda")):
        return _card(device)
    if backend == "torch":
        return _torch(device)
    return _cpu() if device == "cpu" else _best()


def check_device(device: str) -> str:
    """The device itself, if its name is valid. Raises ValueError with a message of one line."""
    if not isinstance(device, str) or _DEVICE.fullmatch(device) is None:
        raise ValueError(f"the device {shown(device)} is neither cpu nor cuda nor such as cuda:1")
    return device


def machine_of(chosen: Backend) -> Machine:
    """The machine as a memory plan for this backend sees it. Raises DeviceError."""
    from gptoss_mlx.system import device

    if chosen.backend == "mlx":
        return device.this_machine()
    if chosen.device == "cpu":
        return device.this_computer(chosen.backend)
    from gptoss_mlx.backends.torch.device import find_card
    from gptoss_mlx.plan.torch_buffers import CUDA_CONTEXT

    card = find_card(_number(chosen.device))
    # CUDA's context is already allocated; a plan counts it with the rest, so it is added back.
    limit = min(card.total, card.free + CUDA_CONTEXT)
    return Machine(card.name, card.total, limit, True, "torch")


def _best() -> Backend:
    from gptoss_mlx.backends.torch.device import find_card, has_driver, is_installed
    from gptoss_mlx.system.device import mlx_device

    mlx, note = mlx_device(), None
    if mlx == "gpu":
        return Backend("mlx", mlx)
    if is_installed() and has_driver():
        try:
            return Backend("torch", find_card().device)
        except DeviceError as problem:
            note = f"no card is used: {problem}"
    return _cpu(note)


def _cpu(note: str | None = None) -> Backend:
    from gptoss_mlx.backends.cpu.library import why_missing
    from gptoss_mlx.backends.torch.device import is_installed
    from gptoss_mlx.system.device import mlx_device

    missing = why_missing()
    if missing is None:
        return Backend("cpu", "cpu", note)
    note = note or f"slower than it could be: {missing}"
    if mlx_device() == "cpu":
        return Backend("mlx", "cpu", note)
    if is_installed():
        return Backend("torch", "cpu", note)
    if mlx_device() == "gpu":
        raise DeviceError("MLX computes on the GPU here, and PyTorch is not installed")
    raise DeviceError("neither MLX nor PyTorch is installed: pip install 'mlx[cpu]'")


def _mlx(device: str | None) -> Backend:
    from gptoss_mlx.system.device import mlx_device

    has = mlx_device()
    if has is None:
        raise DeviceError("MLX is not installed: pip install mlx, on Linux pip install 'mlx[cpu]'")
    if device not in (None, has):
        raise DeviceError(f"MLX computes on the {has.upper()} here, not on {device!r}")
    return Backend("mlx", has)


def _native(device: str | None) -> Backend:
    from gptoss_mlx.backends.cpu.library import why_missing

    if device not in (None, "cpu"):
        raise DeviceError(f"the backend cpu computes on the CPU, not on {device!r}")
    missing = why_missing()
    if missing is not None:
        raise DeviceError(missing)
    return Backend("cpu", "cpu")


def _card(device: str | None) -> Backend:
    from gptoss_mlx.backends.torch.device import find_card

    if device is not None and not device.startswith("cuda"):
        raise DeviceError(f"the backend cuda computes on a card, not on {device!r}")
    return Backend("torch", find_card(_number(device)).device)


def _torch(device: str | None) -> Backend:
    from gptoss_mlx.backends.torch.device import find_card, has_driver, load_torch

    if device == "gpu":
        raise DeviceError("the backend torch computes on cpu, cuda or such as cuda:1, not on 'gpu'")
    load_torch()
    if device is None and has_driver():
        try:
            return Backend("torch", find_card().device)
        except DeviceError as problem:
            return Backend("torch", "cpu", f"no card is used: {problem}")
    return Backend("torch", "cpu")


def _number(device: str | None) -> int | None:
    match = _DEVICE.fullmatch(device or "")
    return int(match[1]) if match and match[1] else None

"""What the machine is, and how fast its device copies, launches, and updates a cache."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mlx.core as mx
import numpy as np

from gptoss_mlx import __version__
from gptoss_mlx.backends.mlx.ops.choice import MODULES
from gptoss_mlx.system import device

SAMPLES = 20
LONG_ENOUGH = 1.0  # seconds of samples after which no more are taken


def on_gpu() -> bool:
    """Whether MLX computes on a GPU here."""
    return bool(mx.default_device() == mx.Device(mx.gpu))


def sampled(once: Callable[[], Any], samples: int = SAMPLES) -> float:
    """The median of the seconds a call takes, after two that do not count."""
    once()
    once()
    taken: list[float] = []
    while len(taken) < samples and (len(taken) < 3 or sum(taken) < LONG_ENOUGH):
        begun = time.perf_counter()
        once()
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken))


def facts() -> dict[str, Any]:
    """Of the machine and the software; a fact that cannot be found out is None."""
    info = device.device_info()
    computes = "GPU" if info["gpu"] else "CPU"
    return {
        "chip": _or_none(lambda: _sysctl("machdep.cpu.brand_string")) or info.get("device_name"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "performance_cores": _or_none(lambda: int(_sysctl("hw.perflevel0.physicalcpu"))),
        "gpu_cores": _or_none(_gpu_cores),
        "computes_on": computes,
        "architecture": info.get("architecture"),
        "memory_bytes": device.this_machine().memory,
        "limit_bytes": device.this_machine().limit,
        "free_bytes": device.free_bytes(),
        "system": _system(),
        "python": platform.python_version(),
        "mlx": _version("mlx"),
        "mlx_lm": _version("mlx-lm"),
        "gptoss_mlx": __version__,
        "operations": list(MODULES),
    }


def bandwidth(nbytes: int) -> dict[str, Any]:
    """Bytes a second read and written by a copy of an array of so many bytes."""
    x = mx.zeros(nbytes // 4, mx.float32)
    mx.eval(x)
    seconds = sampled(lambda: mx.eval(-x))
    return {"gb_s": 2 * nbytes / seconds / 1e9}


def launches(count: int) -> dict[str, Any]:
    """Microseconds of each of so many tiny kernels in a row, waiting for the last."""
    zero = mx.zeros(1)

    def chain() -> None:
        x = zero
        for _ in range(count):
            x = x + 1
        mx.eval(x)

    return {"us": sampled(chain) / count * 1e6}


def cache_update(nbytes: int, steps: int) -> dict[str, Any]:
    """Microseconds to write one token into a buffer and read it, step after step.

    waiting: each step waits for the one before. queued: the next is queued first, as in decoding;
    where MLX must copy a buffer that a running step still reads, this is where it shows.
    """
    heads, width = 8, 64
    tokens = nbytes // (2 * heads * width * 2)
    kv = mx.ones((2, heads, 1, width), mx.bfloat16)

    def drive(queued: bool) -> float:
        buffer = mx.zeros((2, heads, tokens, width), mx.bfloat16)
        mx.eval(buffer)
        before: mx.array | None = None
        begun = time.perf_counter()
        for step in range(steps):
            at = step % tokens
            buffer[..., at : at + 1, :] = kv
            seen = buffer[0, :, :64].max()
            mx.async_eval(seen, buffer)  # type: ignore[no-untyped-call]
            mx.eval(before if queued and before is not None else seen)
            before = seen
        mx.eval(buffer)
        return (time.perf_counter() - begun) / steps * 1e6

    drive(True)
    return {"waiting_us": drive(False), "queued_us": drive(True)}


def flat(outputs: Any) -> Sequence[mx.array]:
    """One array or several, as several."""
    return [outputs] if isinstance(outputs, mx.array) else list(outputs)


def _system() -> str:
    release = platform.mac_ver()[0]
    return f"macOS {release}" if release else f"{platform.system()} {platform.release()}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sysctl(name: str) -> str:
    return _said("sysctl", "-n", name)


def _gpu_cores() -> int:
    found = json.loads(_said("system_profiler", "SPDisplaysDataType", "-json"))
    return int(found["SPDisplaysDataType"][0]["sppci_cores"])


def _said(*command: str) -> str:
    if sys.platform != "darwin":
        raise OSError("not a Mac")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def _or_none(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception:  # whatever it is, the other facts are worth having
        return None

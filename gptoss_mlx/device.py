"""What this machine has for a model."""

from __future__ import annotations

import platform

import psutil

from gptoss_mlx.machine import Machine


def this_machine() -> Machine:
    import mlx.core as mx

    gpu = mx.default_device() == mx.Device(mx.gpu)
    memory = psutil.virtual_memory()
    limit = memory.available
    if gpu:
        limit = int(mx.device_info()["max_recommended_working_set_size"])
    return Machine(platform.node(), memory.total, limit, gpu)

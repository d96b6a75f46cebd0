"""The current CUDA device, which each thread has for itself; by default it is the first card."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the thread's current card, on which Triton launches and memory is pinned."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

"""The card that a thread's calls go to. CUDA keeps one for each thread, the first unless told."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches, and memory is pinned, on the thread's current card: make it this one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

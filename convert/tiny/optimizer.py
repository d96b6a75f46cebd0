"""Muon for the matrices, AdamW for the rest: at this size it learns about twice as fast as AdamW.

Matrices of equal shape are orthogonalised together by a Newton-Schulz iteration of five steps.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

BY_ADAM = ("lm_head", "router_weight")


def has_bfloat16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 itself; elsewhere float32 is faster."""
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Approximate U V^T of each matrix of [count, rows, columns] = U S V^T."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x.bfloat16() if has_bfloat16() else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """One `step(factor)` an update; `factor` scales both learning rates."""

    def __init__(self, network: nn.Module, muon: float, adam: float, embedding: float) -> None:
        self.muon, self.momentum, self.decay = muon, 0.95, 0.02
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        others: list[nn.Parameter] = []
        tables: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            matrix = parameter.ndim == 3 or (parameter.ndim == 2 and name.endswith("weight"))
            if name == "embed_tokens":
                tables.append(parameter)
            elif name.split(".")[-1] in BY_ADAM or name.endswith("bias") or not matrix:
                others.append(parameter)
            else:
                self.groups[tuple(parameter.shape[-2:])].append(parameter)
        self.velocity = {k: torch.zeros_like(self._stack(v)) for k, v in self.groups.items()}
        groups = [{"params": others}, {"params": tables}]
        self.adam = torch.optim.AdamW(
            groups, lr=adam, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self.adam_rates = (adam, embedding)

    @staticmethod
    def _stack(tensors: list[nn.Parameter] | list[Tensor]) -> Tensor:
        return torch.cat([t.reshape(-1, *t.shape[-2:]) for t in tensors])

    @torch.no_grad()
    def step(self, factor: float) -> None:
        for shape, parameters in self.groups.items():
            gradient = self._stack([p.grad for p in parameters if p.grad is not None])
            velocity = self.velocity[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(velocity, self.momentum))
            rate = self.muon * factor
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, part in zip(parameters, self._split(update, parameters), strict=True):
                parameter.mul_(1 - rate * self.decay).sub_(part.view_as(parameter), alpha=scale)
                parameter.grad = None
        for group, base in zip(self.adam.param_groups, self.adam_rates, strict=True):
            group["lr"] = base * factor
        self.adam.step()
        self.adam.zero_grad()

    @staticmethod
    def _split(stacked: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor, ...]:
        counts = [p.numel() // (p.shape[-1] * p.shape[-2]) for p in parameters]
        parts: tuple[Tensor, ...] = stacked.split(counts)
        return parts

    def state(self) -> dict[str, object]:
        """The state that is needed to resume an interrupted run."""
        return {"adam": self.adam.state_dict(), "velocity": list(self.velocity.values())}

    def restore(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.velocity = dict(zip(self.velocity, state["velocity"], strict=True))

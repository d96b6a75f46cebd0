"""Section of benchmarks.cuda: every layer at full size beside the references, from the same input.

A block is computed three times: by the model's kernels, by the references in the model's dtype, and
by the references in float32 with the same weights, which is taken for the truth. `off` is how far
the kernels are from it, `rounding` how far the references are: what the dtype costs anyone. Both
are relative L2, the larger of what attention and what the experts give; where a token's experts
differ (near ties), its experts' sum is left out, and `same_experts` says how many do not differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from benchmarks.cuda.random import fill
from benchmarks.cuda.setup import Bench, Row, Section, watched, with_kernels
from gptoss_mlx.backends.kernels import agreement
from gptoss_mlx.backends.torch.agreement import copied, relative
from gptoss_mlx.backends.torch.blocks import Block
from gptoss_mlx.backends.torch.cache import Cache
from gptoss_mlx.backends.torch.choice import Kernels
from gptoss_mlx.backends.torch.model import Transformer
from gptoss_mlx.backends.torch.places import Chunk, Places, Step

Take = Callable[[Cache], Places]
Inputs = torch.Tensor | None


class Given(NamedTuple):
    """What a block gave. x: the residual stream behind attention; updates: the experts' sum."""

    x: torch.Tensor
    updates: torch.Tensor
    experts: torch.Tensor


@dataclass(frozen=True)
class Side:
    """One way to compute, and a cache of its own that held the same before."""

    kernels: Kernels
    cache: Cache
    dtype: torch.dtype

    def compute(self, block: Block, x: torch.Tensor, updates: Inputs, take: Take) -> Given:
        kernels, chosen = watched(self.kernels)
        own = with_kernels(block, kernels)
        if self.dtype != x.dtype:
            widen(own, self.dtype)
        out, added = own(x.to(self.dtype), updates, take(self.cache))
        return Given(out, added.sum(1), chosen[0])


def layers(bench: Bench) -> Section:
    """Each layer's agreement for a chunk and for a step, the worst, and that of the logits."""
    model = bench.opened(1, 1)
    sides = _sides(bench)
    rows: list[Row] = []
    forms = _forms(bench)
    streams: dict[str, tuple[torch.Tensor, Inputs]] = {
        name: (model._embed(ids), None) for name, (ids, _) in forms.items()
    }
    for layer, block in enumerate(model.blocks):
        compared = layer % bench.amounts.layers_apart == 0
        for name, (_, take) in forms.items():
            x, updates = streams[name]
            given = [s.compute(block, x, updates, take) for s in (sides if compared else sides[:1])]
            streams[name] = (given[0].x, given[0].updates[:, None])
            if compared:
                rows.append({"form": name, "layer": layer, **_apart(*given)})
                yield rows[-1]
    for name, (x, updates) in streams.items():
        yield {"form": name, "layer": "logits", **_logits(bench, model, x, updates)}
    for name in forms:
        of = [row for row in rows if row["form"] == name]
        worst = max(of, key=lambda row: row["off"])
        least = min(row["same_experts"] for row in of)
        within = worst["off"] <= max(agreement(bench.dtype), 3 * worst["rounding"])
        summary = {"layer": f"worst of {len(of)}: {worst['layer']}", "agrees": within}
        yield {**worst, **summary, "same_experts": least}


def _sides(bench: Bench) -> tuple[Side, Side, Side]:
    """The kernels, the references, and the references in float32."""
    offsets, chunk = bench.amounts.compared_offsets, bench.amounts.compared_chunk
    rows, context = 1 + len(offsets), max(offsets) + chunk

    def cache(dtype: torch.dtype) -> Cache:
        return Cache(bench.config, rows, context, dtype, bench.device)

    held = cache(bench.dtype)
    fill(held)
    sides = [Side(bench.kernels, held, bench.dtype)]
    for dtype in (bench.dtype, torch.float32):
        other = cache(dtype)
        other.arenas.copy_(held.arenas)
        other.rings.copy_(held.rings)
        sides.append(Side(Kernels(), other, dtype))
    return sides[0], sides[1], sides[2]


def _forms(bench: Bench) -> dict[str, tuple[torch.Tensor, Take]]:
    """(tokens, where they go) of a chunk in row 0 and of a step in the other rows."""
    offsets, chunk = bench.amounts.compared_offsets, bench.amounts.compared_chunk
    positions = torch.tensor(offsets, dtype=torch.int32, device=bench.device)
    rows = torch.arange(1, 1 + len(offsets), dtype=torch.int32, device=bench.device)

    def reading(cache: Cache) -> Places:
        state = cache.new_state()  # the first takes row 0
        state.offset = max(offsets)
        return Chunk(cache, state, chunk)

    return {
        f"chunk of {chunk}": (bench.ids(chunk), reading),
        f"step of {len(offsets)}": (
            bench.ids(len(offsets)),
            lambda cache: Step(cache, positions, rows),
        ),
    }


def _apart(ours: Given, plain: Given, truth: Given) -> Row:
    same = (ours.experts.sort().values == truth.experts.sort().values).all(1)
    both = same & (plain.experts.sort().values == truth.experts.sort().values).all(1)
    row: Row = {"same_experts": float(same.float().mean())}
    for name, given in (("off", ours), ("rounding", plain)):
        alike = same if given is ours else both
        found = {"attention": relative(given.x, truth.x)}
        if bool(alike.any()):
            found["experts"] = relative(given.updates[alike], truth.updates[alike])
        row[name] = max(found.values())
        if given is ours:
            row["of"] = max(found, key=lambda part: found[part])
    return row


def _logits(bench: Bench, model: Transformer, x: torch.Tensor, updates: Inputs) -> Row:
    plain = Kernels()

    def of(kernels: Kernels, dtype: torch.dtype) -> torch.Tensor:
        weight = model.norm.weight.to(dtype)
        _, h = kernels.add_norm(x.to(dtype), updates, weight, model.norm.eps)
        head = copied(model.lm_head, dtype) if dtype != bench.dtype else model.lm_head
        return kernels.linear(h, head, None, torch.float32)

    truth, ours = of(plain, torch.float32), of(bench.kernels, bench.dtype)
    return {
        "off": relative(ours, truth),
        "rounding": relative(of(plain, bench.dtype), truth),
        "same_argmax": float((ours.argmax(-1) == truth.argmax(-1)).float().mean()),
    }


def widen(block: Block, dtype: torch.dtype) -> None:
    """Give a block's own parts their weights in another dtype; codes of experts stay."""
    for part in (block.before, block.between):
        part.weight = part.weight.to(dtype)
    for names, part in (
        (("qkv", "qkv_bias", "o", "o_bias"), block.attention),
        (("router", "router_bias"), block.moe),
    ):
        for name in names:
            setattr(part, name, copied(getattr(part, name), dtype))
    layer = block.attention.layer
    block.attention.layer = replace(layer, sinks=copied(layer.sinks, dtype))
    bank = block.moe.experts.bank
    block.moe.experts.bank = replace(
        bank, gate_up_bias=bank.gate_up_bias.to(dtype), down_bias=bank.down_bias.to(dtype)
    )

"""Ahead-of-time builds of the Triton kernels: what gpt-oss launches, for a compute capability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import triton

from gptoss_mlx.backends.torch.operands import Heads
from gptoss_mlx.backends.torch.triton import add_norm as _add_norm
from gptoss_mlx.backends.torch.triton import decode_attention as _decode_attention
from gptoss_mlx.backends.torch.triton import group_pairs as _group_pairs
from gptoss_mlx.backends.torch.triton import linear as _linear
from gptoss_mlx.backends.torch.triton import moe as _moe
from gptoss_mlx.backends.torch.triton import prefill_attention as _prefill_attention
from gptoss_mlx.backends.torch.triton import rope_write as _rope_write
from gptoss_mlx.backends.torch.triton import router_topk as _router_topk
from gptoss_mlx.backends.torch.triton.capability import nearest
from tests.support.compiled import Build

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Triton's names of dtypes."""


def add_norm(capability: int) -> Iterator[Build]:
    """Builds for no updates, attention's in the compute dtype, or four experts' in float32."""
    hidden = 2880
    for name, update, count in (
        ("none", "bf16", 0),
        ("attention", "bf16", 1),
        ("experts", "fp32", 4),
    ):
        types = dict.fromkeys(("x", "updates", "weight", "total", "out"), "*bf16")
        types |= {"updates": f"*{update}", "eps": "fp32"}
        types |= dict.fromkeys(("token_stride", "update_stride"), "i32")
        types |= dict.fromkeys(("HIDDEN", "UPDATES", "BLOCK"), "constexpr")
        yield Build(
            name=f"add_norm {name}",
            kernel=_add_norm.add_norm_kernel,
            types=types,
            constants={"HIDDEN": hidden, "UPDATES": count, "BLOCK": triton.next_power_of_2(hidden)},
            aligned=("x", "updates", "weight", "total", "out", "token_stride", "update_stride"),
            options={"num_warps": _add_norm.warps(hidden, capability)},
        )


def decode_attention(capability: int) -> Iterator[Build]:
    """Builds for rings and arenas, in bfloat16 and float32."""
    heads, kv_heads, dim = 64, 8, 64
    for dtype in (torch.bfloat16, torch.float32):
        config, t = _decode_attention._config(dtype, capability), TYPES[dtype]
        types = dict.fromkeys(("q", "cache"), f"*{t}") | {"rows": "*i32", "lengths": "*i32"}
        numbers = ("row_stride", "half_stride", "head_stride", "place_stride", "splits", "fewest")
        for whole in (True, False):
            out = f"*{t}" if whole else "*fp32"
            constants = _decode_attention._shape(kv_heads, heads // kv_heads, dim, config, whole)
            yield Build(
                f"decode_attention {'ring' if whole else 'arena'} {t}",
                _decode_attention._attend,
                {**types, "sinks": f"*{t}", "out": out, "stats": out, "scale": "fp32"}
                | dict.fromkeys(numbers, "i32")
                | dict.fromkeys(constants, "constexpr"),
                constants,
                ("q", "cache", "rows", "lengths", "sinks", "out", "stats", *numbers[:4]),
                {"num_warps": config.warps, "num_stages": config.stages},
            )
        constants = _decode_attention._merge(heads, dim, config)
        yield Build(
            f"decode_attention combined {t}",
            _decode_attention._combine,
            {"sums": "*fp32", "stats": "*fp32", "lengths": "*i32", "sinks": f"*{t}"}
            | {"out": f"*{t}", "splits": "i32", "fewest": "i32"}
            | dict.fromkeys(constants, "constexpr"),
            constants,
            ("sums", "stats", "lengths", "sinks", "out"),
            {"num_warps": _decode_attention.COMBINE_WARPS},
        )


def group_pairs(capability: int) -> Iterator[Build]:
    """Builds for each batch size of decoding, and for prefill."""
    columns = ("order", "slot", "begin", "end")
    for size in (4, 8, 16, 32, 64, _group_pairs.FEW):
        types = dict.fromkeys(("visits", *columns), "*i32")
        types |= {"pairs": "i32", "tiles": "i32", "TILE": "constexpr", "P": "constexpr"}
        yield Build(
            name=f"group_pairs {size}",
            kernel=_group_pairs.group_kernel,
            types=types,
            constants={"TILE": 16, "P": size},
            aligned=("visits", *columns),
            options={"num_warps": _group_pairs.warps(size)},
        )
    for slots in (32, 128):
        types = dict.fromkeys(("visits", "counts"), "*i32")
        types |= dict.fromkeys(("pairs", "slots"), "i32")
        types |= dict.fromkeys(("BLOCK", "S"), "constexpr")
        yield Build(
            name=f"group_pairs count {slots}",
            kernel=_group_pairs.count_kernel,
            types=types,
            constants={"BLOCK": _group_pairs.BLOCK, "S": slots},
            aligned=("visits", "counts", "slots"),
            options={"num_warps": 8},
        )
        types = dict.fromkeys(("visits", "counts", *columns), "*i32")
        types |= dict.fromkeys(("pairs", "tiles", "blocks", "slots"), "i32")
        types |= dict.fromkeys(("TILE", "BLOCK", "ROWS", "S"), "constexpr")
        yield Build(
            name=f"group_pairs place {slots}",
            kernel=_group_pairs.place_kernel,
            types=types,
            constants={
                "TILE": 64,
                "BLOCK": _group_pairs.BLOCK,
                "ROWS": _group_pairs.ROWS,
                "S": slots,
            },
            aligned=("visits", "counts", *columns, "slots"),
            options={"num_warps": 8},
        )


def linear(capability: int) -> Iterator[Build]:
    """Builds of all tiles of the released models' matrices, bfloat16 and bytes; one of float32."""
    half, full = torch.bfloat16, torch.float32
    for tokens in (1, _linear.FEW):
        yield _linear_build("router", capability, tokens, 128, 0, half, full, bias=True)
        yield _linear_build("qkv and o", capability, tokens, 5120, 0, half, half, bias=True)
        yield _linear_build("lm_head", capability, tokens, 201088, 0, half, full, bias=False)
        yield _linear_build(
            "qkv and o in bytes", capability, tokens, 5120, 64, half, half, bias=True
        )
        yield _linear_build(
            "lm_head in bytes", capability, tokens, 201088, 64, half, full, bias=False
        )
    for group in (32, 128):
        yield _linear_build(f"bytes by {group}", capability, 1, 5120, group, half, half, bias=True)
    yield _linear_build("float32", capability, 1, 5120, 0, full, full, bias=True)
    pointers = {"codes": "*u8", "scales": "*bf16", "biases": "*bf16", "out": "*bf16"}
    constants = {"GROUP": 64, "WIDENED": _linear.WIDENED}
    types = {**pointers, "count": "i32", **dict.fromkeys(constants, "constexpr")}
    yield Build("linear: widen", _linear._widen, types, constants, (*pointers, "count"))


def _linear_build(
    what: str,
    capability: int,
    tokens: int,
    rows: int,
    group: int,
    dtype: torch.dtype,
    wanted: torch.dtype,
    *,
    bias: bool,
) -> Build:
    shape = _linear.tile(capability, tokens, rows, group, dtype.itemsize)
    constants = _linear._constants(shape, group, bias)
    pointers = {
        "w": "*u8" if group else f"*{TYPES[dtype]}",
        **dict.fromkeys(("scales", "biases", "x", "bias"), f"*{TYPES[dtype]}"),
        "out": f"*{TYPES[wanted]}",
    }
    numbers = dict.fromkeys(("tokens", "rows", "inputs"), "i32")
    return Build(
        f"linear: {what}, {shape.tokens} tokens",
        _linear._few,
        {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")},
        constants,
        (*pointers, "inputs"),
        {"num_warps": shape.warps, "num_stages": shape.stages},
    )


def moe(capability: int) -> Iterator[Build]:
    """Builds of both kernels at gpt-oss's widths, which are the 20b's and the 120b's alike."""
    for tile, shape in nearest(_moe.TABLE, capability).items():
        yield from _moe_builds(tile, shape, "bf16", str(tile))
        if tile in _moe._DECODE:
            yield from _moe_builds(tile, _moe._FEW, "bf16", f"{tile}_few")
        yield from _moe_builds(tile, _moe.FLOAT32, "fp32", f"{tile}_float32")


def _moe_builds(tile: int, shape: _moe.Shape, dtype: str, name: str) -> Iterator[Build]:
    constants = _moe._constants(5760, 2880, tile, shape)
    options = {"num_warps": constants.pop("num_warps")}
    common = {"x": f"*{dtype}", "blocks": "*i16", "scales": "*i16", "bias": f"*{dtype}"}
    common |= {"experts": "*i32"}
    groups = dict.fromkeys(("order", "slots", "begins", "ends"), "*i32")
    for kernel, outputs, types in (
        (_moe.gate_up_kernel, 5760, common | groups | {"out": f"*{dtype}", "limit": "fp32"}),
        (_moe.down_kernel, 2880, common | {"weights": "*fp32"} | groups | {"out": "*fp32"}),
    ):
        own = constants | {"OUTPUTS": outputs}
        if kernel is _moe.gate_up_kernel:
            own["ACTIVE"] = 4
        all_types = types | {a: "constexpr" for a in kernel.arg_names if a in own}
        pointers = tuple(a for a, t in types.items() if t.startswith("*"))
        title = kernel.__name__.removesuffix("_kernel")
        yield Build(f"moe_{title}_{name}", kernel, all_types, own, pointers, options)


def prefill_attention(capability: int) -> Iterator[Build]:
    """Builds with gpt-oss's window and without, in bfloat16 and float32."""
    heads, kv_heads, dim = 64, 8, 64
    numbers = ("tokens", "seen", "half_stride", "head_stride", "place_stride")
    for dtype in (torch.bfloat16, torch.float32):
        t = TYPES[dtype]
        for window in (0, 128):
            config = _prefill_attention._config(dtype, window, capability)
            constants = _prefill_attention._shape(kv_heads, heads // kv_heads, dim, config, window)
            yield Build(
                f"prefill_attention {'window' if window else 'full'} {t}",
                _prefill_attention._attend,
                dict.fromkeys(("q", "kv", "sinks", "out"), f"*{t}")
                | {"scale": "fp32"}
                | dict.fromkeys(numbers, "i32")
                | dict.fromkeys(constants, "constexpr"),
                constants,
                ("q", "kv", "sinks", "out", *numbers[2:]),
                {"num_warps": config.warps, "num_stages": config.stages},
            )


def rope_write(capability: int) -> Iterator[Build]:
    """Builds in bfloat16 and float32; alike for every card."""
    constants = _rope_write._shape(Heads(64, 8, 64))
    for t in (TYPES[torch.bfloat16], TYPES[torch.float32]):
        strides = ("row_stride", "half_stride", "head_stride", "place_stride")
        types = {"qkv": f"*{t}", "positions": "*i32", "rows": "*i32", "places": "*i32"}
        yield Build(
            f"rope_write {t}",
            _rope_write._rope_write,
            {**types, "cache": f"*{t}", "periods": "*fp32", "out": f"*{t}"}
            | dict.fromkeys(strides, "i32")
            | dict.fromkeys(constants, "constexpr"),
            constants,
            (*types, "cache", "periods", "out", *strides),
            {"num_warps": _rope_write.WARPS},
        )


def router_topk(capability: int) -> Iterator[Build]:
    """Builds for gpt-oss's four of 32 or 128 experts."""
    k, columns = 4, ("order", "slot", "begin", "end")
    for experts in (32, 128):
        types = {"logits": "*fp32", "chosen": "*i32", "weights": "*fp32"}
        numbers = {"tokens": "i32", "experts": "i32"}
        sizes = {"K": k, **_router_topk._sizes(experts, k)}
        yield Build(
            name=f"router_topk {experts}",
            kernel=_router_topk.router_topk_kernel,
            types={**types, **numbers, **dict.fromkeys(sizes, "constexpr")},
            constants=sizes,
            aligned=(*types, "experts"),
            options={"num_warps": 1},
        )
        for tokens in (1, 2, 4, 8, 16, 32):
            constants = {"TILE": 16, "T": tokens, **sizes}
            columned = {**types, **dict.fromkeys(columns, "*i32")}
            yield Build(
                name=f"route {experts} {tokens}",
                kernel=_router_topk.route_kernel,
                types={
                    **columned,
                    **numbers,
                    "tiles": "i32",
                    **dict.fromkeys(constants, "constexpr"),
                },
                constants=constants,
                aligned=(*columned, "experts"),
                options={"num_warps": _router_topk._warps(tokens)},
            )


BUILDS: Mapping[str, Callable[[int], Iterator[Build]]] = {
    "add_norm": add_norm,
    "decode_attention": decode_attention,
    "group_pairs": group_pairs,
    "linear": linear,
    "moe": moe,
    "prefill_attention": prefill_attention,
    "rope_write": rope_write,
    "router_topk": router_topk,
}
"""Builds by kernel module, for a compute capability, times ten."""

"""A gpt-oss GGUF as llama.cpp writes it: a file, a split one, or the folder that holds it.

Experts in MXFP4 come back bit for bit. The rest is exact where the file holds it in bfloat16 or
float32; from Q8_0 and others it is decoded by the `gguf` package and rounded to bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.regular import is_named
from gptoss_mlx.files.shard import Tensor
from gptoss_mlx.models.checkpoint import expected_tensors
from gptoss_mlx.spec.config import MXFP4_BLOCK, ModelConfig

from .. import rules
from ..piece import Piece
from ..source import Inputs, Source
from .gguf_header import read_header
from .standard import released_config_of, tokenizer_files

ARCHITECTURE = "gpt-oss"
MXFP4 = "MXFP4"
_PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_SPLIT = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "post_attention_norm",
    "mlp.router": "ffn_gate_inp",
}
_EXPERTS = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
_FIELDS = {
    "num_hidden_layers": "block_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "expert_feed_forward_length",
    "head_dim": "attention.key_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "sliding_window": "attention.sliding_window",
    "rope_theta": "rope.freq_base",
    "initial_context_length": "rope.scaling.original_context_length",
}
_OPTIONAL = {"factor": 32.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}


@dataclass(frozen=True)
class _File:
    """Tensors of all files of a split GGUF, their GGML types by name, and the first file's
    metadata."""

    paths: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    types: Mapping[str, str]
    metadata: Mapping[str, Any]


def matches(path: Path) -> bool:
    if path.is_dir():
        return not (path / "config.json").exists() and any(path.glob("*.gguf"))
    return path.suffix == ".gguf"


def read(path: Path, exact: bool) -> Source:
    """The source at a path. Raises CheckpointError."""
    file = _read_parts(_parts(path))
    config = _config(file)
    model = ModelConfig.from_values(config, file.paths[0])
    inputs = Inputs(file.paths[0], file.tensors)
    pieces = {}
    for name, (dtype, shape) in expected_tensors(model, file.paths[0]).items():
        if ".experts." in name:
            pieces[name] = _expert_piece(file, inputs, name, dtype, shape, exact)
        else:
            pieces[name] = _piece(file, inputs, foreign_name(name), dtype, shape, exact)
    inputs.check_all_taken()
    return Source(
        kind="gguf",
        name=file.paths[0].name,
        paths=file.paths,
        config=config,
        pieces=pieces,
        exact=all(
            kind == "BF16"
            or (kind == "F32" and exact)  # else they are rounded, and the loss is not checked
            or (kind == MXFP4 and name.endswith("_exps.weight"))
            for name, kind in file.types.items()
        ),
        written=tokenizer_files(model),
    )


def foreign_name(name: str) -> str:
    """ "model.layers.3.self_attn.sinks" -> "blk.3.attn_sinks.weight"."""
    if name.endswith(".sinks"):
        return f"blk.{name.split('.')[2]}.attn_sinks.weight"
    module, _, part = name.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{part}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.{part}"


def _piece(
    file: _File, inputs: Inputs, name: str, dtype: str, shape: tuple[int, ...], exact: bool
) -> Piece:
    tensor = _take(file, inputs, name, shape)
    return Piece(dtype, shape, (tensor,), _to_bf16(file.paths[0], file.types[name], name, exact))


def _expert_piece(
    file: _File, inputs: Inputs, name: str, dtype: str, shape: tuple[int, ...], exact: bool
) -> Piece:
    _, _, layer, _, _, part = name.split(".")
    matrix, _, kind = part.rpartition("_")
    halves = _EXPERTS[matrix]
    rows = shape[1] // len(halves)
    names = [f"blk.{layer}.{half}.{'bias' if kind == 'bias' else 'weight'}" for half in halves]
    if kind == "bias":
        tensors = tuple(_take(file, inputs, n, (shape[0], rows)) for n in names)
        decoders = [_to_bf16(file.paths[0], file.types[n], n, exact) for n in names]
    else:
        for n in names:
            if n in file.types and file.types[n] != MXFP4:
                raise CheckpointError(
                    f"{file.paths[0]}: tensor {n} is {file.types[n]}, not the released MXFP4,"
                    " so the released experts cannot be had from it"
                )
        width = shape[2] * MXFP4_BLOCK
        tensors = tuple(_take(file, inputs, n, (shape[0], rows, width)) for n in names)
        decoders = [rules.ggml_blocks if kind == "blocks" else rules.ggml_scales] * len(names)
    return Piece(dtype, shape, tensors, _joined(decoders))


def _joined(
    decoders: Sequence[Callable[[NDArray[Any]], NDArray[Any]]],
) -> Callable[..., NDArray[Any]]:
    """Decode each half; gate and up are interleaved."""

    def rule(*halves: NDArray[Any]) -> NDArray[Any]:
        decoded = [decode(half) for decode, half in zip(decoders, halves, strict=True)]
        return rules.interleaved(*decoded) if len(decoded) == 2 else decoded[0]

    return rule


def _to_bf16(
    path: Path, kind: str, name: str, exact: bool
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    if kind == "BF16":
        return rules.same
    if kind == "F32":
        return rules.narrowed(f"{path}: tensor {name}") if exact else rules.rounded
    return rules.rounded if kind == "F16" else _decoded(path, kind, name)


def _decoded(path: Path, kind: str, name: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    import gguf

    known = gguf.GGMLQuantizationType[kind]

    def rule(raw: NDArray[Any]) -> NDArray[Any]:
        return rules.rounded(gguf.dequantize(raw, known))

    try:
        rule(np.zeros((1, gguf.GGML_QUANT_SIZES[known][1]), np.uint8))
    except NotImplementedError:
        raise CheckpointError(f"{path}: tensor {name} is {kind}, which cannot be decoded") from None
    return rule


def _take(file: _File, inputs: Inputs, name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this many values: as it is, or as the bytes of its rows if it is packed."""
    kind = file.types.get(name)
    if kind is None or kind in _PLAIN:
        return inputs.take(name, _PLAIN.get(kind or "", "F32"), shape)
    import gguf

    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if shape[-1] % values:
        raise CheckpointError(
            f"{file.paths[0]}: tensor {name} is {kind}, which {shape[-1]} columns do not fit"
        )
    return inputs.take(name, "U8", (*shape[:-1], shape[-1] // values * nbytes))


def _parts(path: Path) -> list[Path]:
    """All files of a split GGUF, in order."""
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        groups = {_SPLIT.sub(r"\1", file.name) for file in found}
        if len(groups) > 1:
            raise CheckpointError(f"{path}: holds several GGUF models; name one of its files")
        path = found[0]
    split = _SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    stem, number, count = split[1], int(split[2]), int(split[3])
    if not 1 <= number <= count:
        raise CheckpointError(f"{path}: is by its name part {number} of {count}")
    parts = [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    for part in parts:
        if not is_named(part):
            raise CheckpointError(f"{path}: its other part {part.name} is missing")
    return parts


def _read_parts(paths: Iterable[Path]) -> _File:
    tensors: dict[str, Tensor] = {}
    types: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    for path in paths:
        fields, found = read_header(path)
        metadata = metadata or fields
        for info in found:
            if info.name in tensors:
                raise CheckpointError(
                    f"{path}: holds tensor {shown(info.name)}, as another part does"
                )
            shape = info.shape
            if info.kind not in _PLAIN:
                shape = (*shape[:-1], info.nbytes // max(1, prod(shape[:-1])))
            dtype = _PLAIN.get(info.kind, "U8")
            tensors[info.name] = Tensor(info.name, dtype, shape, path, info.offset, info.nbytes)
            types[info.name] = info.kind
    return _File(tuple(paths), tensors, types, metadata)


def _config(file: _File) -> dict[str, Any]:
    path, metadata = file.paths[0], file.metadata
    if metadata.get("general.architecture") != ARCHITECTURE:
        raise CheckpointError(
            f"{path}: general.architecture is {shown(metadata.get('general.architecture'))},"
            f" only {ARCHITECTURE!r} can be converted"
        )

    def field(name: str) -> Any:
        if f"{ARCHITECTURE}.{name}" not in metadata:
            raise CheckpointError(f"{path}: {ARCHITECTURE}.{name} is missing")
        return metadata[f"{ARCHITECTURE}.{name}"]

    if "token_embd.weight" not in file.tensors:
        raise CheckpointError(f"{path}: has no tensor token_embd.weight")
    fields = {name: field(other) for name, other in _FIELDS.items()}
    fields["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    scaling = f"{ARCHITECTURE}.rope.scaling."
    yarn = {
        name.removeprefix("yarn_"): metadata.get(scaling + name, default)
        for name, default in _OPTIONAL.items()
    }
    return released_config_of(path, fields, yarn=yarn, swiglu_limit=7.0)

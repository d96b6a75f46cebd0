"""Random gpt-oss checkpoints of any shape in the released layout.

The files have the released names, order, dtypes and config; the values are random, of
magnitudes that keep activations finite and reach every part of the model: sinks and biases are
not zero, attention and router are not flat, and some gates pass the SwiGLU limit. The same shape
and seed give the same bytes. Values are made and written in small chunks, so memory stays far
below 1 GB at any size, and the folder appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.files.disk import sync
from gptoss_mlx.files.shard import header_bytes
from gptoss_mlx.models.checkpoint import INDEX, expected_tensors
from gptoss_mlx.models.checkpoint import Progress as ByteProgress
from gptoss_mlx.spec.config import FULL, SLIDING, ModelConfig
from tests.support.random_values import Draw, draw

SHARD_BYTES = 4_800_000_000
"""About where the released shards are cut."""

_CHUNK_VALUES = 1 << 22
_WORKERS = max(2, min(8, os.cpu_count() or 1))
_SPARE_DISK = 64 << 20


@dataclass(frozen=True)
class Shape:
    """The sizes of a gpt-oss model; the defaults are gpt-oss-20b's."""

    layers: int = 24
    hidden: int = 2880
    intermediate: int = 2880
    experts: int = 32
    active: int = 4
    heads: int = 64
    kv_heads: int = 8
    head_dim: int = 64
    vocab: int = 201088
    window: int = 128
    context: int = 131072
    original_context: int = 4096


SHAPES = {
    "20b": Shape(),
    "120b": Shape(layers=36, experts=128),
    "mini": Shape(4, 64, 64, 8, 4, 8, 2, 32),
}


@dataclass(frozen=True)
class _Chunk:
    """A run of `count` values (bytes for U8) of one tensor."""

    draw: Draw
    key: tuple[int, int, int]
    count: int


def write_checkpoint(
    folder: Path,
    shape: Shape,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Sequence[Path] = (),
    progress: ByteProgress | None = None,
) -> Path:
    """Write the checkpoint into `folder`, which must not exist yet, and return it.

    tokenizer: files copied beside the weights. progress: (bytes written, bytes in all).
    Raises GptOssError if the folder exists, the shape is none, or the disk has no room.
    """
    folder = Path(folder)
    if folder.exists():
        raise GptOssError(f"{folder}: exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        _write_json(made / "config.json", config_json(shape))
        _write_json(made / "generation_config.json", _generation_config(shape))
        for source in tokenizer:
            shutil.copy(source, made / source.name)
        config = ModelConfig.from_file(made / "config.json")
        _write_weights(made, config, seed, shard_bytes, progress)
        sync(made)
        made.rename(folder)
    sync(folder.parent)
    return folder


def config_json(shape: Shape) -> dict[str, Any]:
    """The config.json of a shape, field for field as the released ones."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": min(200002, shape.vocab - 1),
        "experts_per_token": shape.active,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initial_context_length": shape.original_context,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_types": [FULL if layer % 2 else SLIDING for layer in range(shape.layers)],
        "max_position_embeddings": shape.context,
        "model_type": "gpt_oss",
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": shape.active,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "num_local_experts": shape.experts,
        "output_router_logits": False,
        "pad_token_id": min(199999, shape.vocab - 1),
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": shape.original_context,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": shape.window,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def _generation_config(shape: Shape) -> dict[str, Any]:
    stops = [stop for stop in (200002, 199999, 200012) if stop < shape.vocab]
    return {
        "bos_token_id": min(199998, shape.vocab - 1),
        "do_sample": True,
        "eos_token_id": stops or [shape.vocab - 1],
        "pad_token_id": min(199999, shape.vocab - 1),
    }


def _write_weights(
    folder: Path, config: ModelConfig, seed: int, shard_bytes: int, progress: ByteProgress | None
) -> None:
    tensors = expected_tensors(config, folder / "config.json")
    sizes = {
        name: math.prod(shape) * (2 if dtype == "BF16" else 1)
        for name, (dtype, shape) in tensors.items()
    }
    total, done = sum(sizes.values()), 0
    free = shutil.disk_usage(folder).free
    if free < total + _SPARE_DISK:
        raise GptOssError(f"{folder.name}: takes {total} bytes, but the disk has {free} free")
    shards = list(_shards(sizes, shard_bytes))
    weight_map: dict[str, str] = {}
    number = {name: i for i, name in enumerate(tensors)}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for i, names in enumerate(shards):
            # The released files count from 0 up to the last one's number.
            file_name = f"model-{i:05d}-of-{len(shards) - 1:05d}.safetensors"
            weight_map |= dict.fromkeys(names, file_name)
            chunks = (
                chunk
                for name in names
                for chunk in _chunks(name, config, math.prod(tensors[name][1]), seed, number)
            )
            with (folder / file_name).open("wb") as file:
                file.write(header_bytes({name: tensors[name] for name in names}, {"format": "pt"}))
                for values in _ahead(pool, chunks):
                    file.write(values.data)
                    done += values.nbytes
                    if progress is not None:
                        progress(done, total)
                file.flush()
                os.fsync(file.fileno())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    names: list[str] = []
    used = 0
    for name, size in sizes.items():
        if names and used + size > limit:
            yield names
            names, used = [], 0
        names.append(name)
        used += size
    yield names


def _chunks(
    name: str, config: ModelConfig, count: int, seed: int, number: dict[str, int]
) -> Iterator[_Chunk]:
    values = draw(name, config)
    for i, start in enumerate(range(0, count, _CHUNK_VALUES)):
        yield _Chunk(values, (seed, number[name], i), min(_CHUNK_VALUES, count - start))


def _make(chunk: _Chunk) -> NDArray[Any]:
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(chunk.key)))
    return chunk.draw(rng, chunk.count)


def _ahead(pool: ThreadPoolExecutor, chunks: Iterable[_Chunk]) -> Iterator[NDArray[Any]]:
    """The chunks' values, in order, made in the pool's threads only a few chunks ahead."""
    waiting: deque[Future[NDArray[Any]]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_make, chunk))
        if len(waiting) > _WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())

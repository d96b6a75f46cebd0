"""Turn a released folder into a converted one: its modules quantized by MLX, experts untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests.support.released_tensors import raw_tensors

_MLX = {"U8": np.uint8, "U32": np.uint32, "BF16": np.uint16}


def write_quantized(source: Path, folder: Path, quantization: dict[str, Any]) -> Path:
    """quantization: as config.json records it, a default spec beside specs (or False) by module."""
    folder.mkdir()
    tensors: dict[str, mx.array] = {}
    for name, (dtype, array) in raw_tensors(source).items():
        values = mx.array(array.astype(_MLX[dtype], copy=False))
        values = values.view(mx.bfloat16) if dtype == "BF16" else values
        module, _, part = name.rpartition(".")
        spec = quantization.get(module, quantization)
        if part != "weight" or "norm" in module or spec is False:
            tensors[name] = values
            continue
        parts = mx.quantize(
            values,
            group_size=spec["group_size"],
            bits=spec["bits"],
            mode=spec.get("mode", "affine"),
        )
        for part, quantized in zip(("weight", "scales", "biases"), parts, strict=False):
            tensors[f"{module}.{part}"] = quantized
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    config = json.loads((source / "config.json").read_text())
    config["quantization"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder

"""A checkpoint folder's tensors as numbers, read and dequantized by the formats' definitions.

Written against safetensors' and MLX's descriptions of their formats, and apart from the package:
an oracle for its reader, its loader and every quantization it runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Bytes = NDArray[np.uint8]

_NUMPY = {"BF16": "<u2", "F32": "<f4", "U8": "u1", "U32": "<u4"}
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def raw_tensors(folder: Path) -> dict[str, tuple[str, NDArray[Any]]]:
    """name -> (dtype, array) of all files; BF16 as uint16."""
    found: dict[str, tuple[str, NDArray[Any]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = (start + offset for offset in entry["data_offsets"])
                values = np.frombuffer(data[begin:end], _NUMPY[entry["dtype"]])
                found[name] = entry["dtype"], values.reshape(entry["shape"])
    return found


def read_tensors(folder: Path) -> dict[str, Values]:
    """Every tensor in float64, experts and quantized modules dequantized to `.weight`s.

    Experts come as `...gate_up_proj` and `...down_proj`, [expert, outputs, inputs].
    """
    recorded = json.loads((folder / "config.json").read_text()).get("quantization", {})
    raw = raw_tensors(folder)
    values: dict[str, Values] = {}
    for name, (dtype, array) in raw.items():
        module, _, part = name.rpartition(".")
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            codes = array.reshape(*array.shape[:-2], -1)
            values[stem] = mxfp4(codes, raw[f"{stem}_scales"][1])
        elif part == "weight" and dtype == "U32":
            spec = recorded.get(module, recorded)
            scales, biases = raw[f"{module}.scales"], raw.get(f"{module}.biases")
            values[name] = _dequantized(array, scales, biases, spec)
        elif dtype in ("BF16", "F32") and part not in ("scales", "biases"):
            values[name] = widened(array)
    return values


def widened(values: NDArray[Any]) -> Values:
    """bfloat16 bits as uint16, or float32 -> float64"""
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def mxfp4(codes: Bytes, scales: Bytes) -> Values:
    """[..., inputs / 2] bytes, low half first, and E8M0 [..., inputs / 32] -> [..., inputs]"""
    return _E2M1[_fields(codes, 4)] * np.repeat(e8m0(scales), 32, axis=-1)


def e8m0(scales: Bytes) -> Values:
    return 2.0 ** (scales.astype(np.float64) - 127)


def e4m3(codes: NDArray[Any]) -> Values:
    """One sign, four exponent bits with bias 7, three of fraction; exponent 0 is subnormal."""
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = (8 + fraction) * 2.0 ** (exponent.astype(np.float64) - 10)
    size = np.where(exponent == 0, fraction * 2.0**-9, normal)
    return np.where(codes & 128, -size, size)


def _fields(packed: Bytes, bits: int) -> NDArray[np.int64]:
    """[..., n] bytes as one stream of `bits` wide numbers, lowest bit first."""
    stream = np.unpackbits(packed, axis=-1, bitorder="little")
    split = stream.reshape(*packed.shape[:-1], -1, bits).astype(np.int64)
    fields: NDArray[np.int64] = (split << np.arange(bits)).sum(axis=-1)
    return fields


def _dequantized(
    words: NDArray[np.uint32],
    scales: tuple[str, NDArray[Any]],
    biases: tuple[str, NDArray[Any]] | None,
    spec: dict[str, Any],
) -> Values:
    packed = np.ascontiguousarray(words).view(np.uint8)
    mode = spec.get("mode", "affine")
    if mode == "mxfp4":
        return mxfp4(packed, scales[1])
    if mode == "mxfp8":
        return e4m3(packed) * np.repeat(e8m0(scales[1]), 32, axis=-1)
    if mode == "nvfp4":
        return _E2M1[_fields(packed, 4)] * np.repeat(e4m3(scales[1]), 16, axis=-1)
    assert mode == "affine"
    assert biases is not None
    group = spec["group_size"]
    scale, bias = (np.repeat(widened(a), group, axis=-1) for a in (scales[1], biases[1]))
    return _fields(packed, spec["bits"]) * scale + bias

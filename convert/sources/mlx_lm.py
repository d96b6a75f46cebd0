"""A folder written by mlx-lm (as in mlx-community): experts split into gate and up, MLX's names."""

from __future__ import annotations

from pathlib import Path

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import read_json
from gptoss_mlx.files.regular import is_named
from gptoss_mlx.files.shard import read_shard
from gptoss_mlx.models.checkpoint import INDEX, expected_tensors
from gptoss_mlx.spec.config import ModelConfig, Quantization, QuantizationSpec

from .. import rules
from ..piece import Piece
from ..source import Inputs, Packed, Source, carried_files, read_files, released_config

_MARK = "mlp.experts.gate_proj.weight"
_MXFP4 = QuantizationSpec(4, 32, "mxfp4")


def matches(path: Path) -> bool:
    config = path / "config.json"
    if not is_named(config) or not isinstance(read_json(config).get("quantization"), dict):
        return False
    if is_named(path / INDEX):
        names = read_json(path / INDEX).get("weight_map")
        return isinstance(names, dict) and any(name.endswith(_MARK) for name in names)
    files = sorted(path.glob("*.safetensors"))
    return any(name.endswith(_MARK) for file in files for name in read_shard(file))


def read(path: Path, exact: bool) -> Source:
    """The source at a path. Raises CheckpointError."""
    config_path = path / "config.json"
    config = read_json(config_path)
    quantization = ModelConfig.from_values(config, config_path).quantization
    assert quantization is not None, "see matches"
    model = ModelConfig.from_values(released_config(config), config_path)
    files = sorted(path.glob("*.safetensors"))
    inputs = Inputs(path, read_files(files))
    pieces: dict[str, Piece] = {}
    packed: dict[str, Packed] = {}
    for name, (dtype, shape) in expected_tensors(model, config_path).items():
        module, _, part = name.rpartition(".")
        if module.endswith(".experts"):
            _check_mxfp4(config_path, quantization, module)
            pieces[name] = _expert_piece(inputs, name, dtype, shape)
        elif part == "weight" and f"{module}.scales" in inputs:  # mlx-lm's own criterion
            spec = quantization.of(module)
            packed[module] = _packed(inputs, config_path, module, spec, shape)
            pieces[name] = packed[module].unpacked()
        else:
            pieces[name] = Piece(dtype, shape, (inputs.take(name, dtype, shape),))
    inputs.check_all_taken()
    return Source(
        kind="mlx-lm",
        name=path.resolve().name,
        paths=(config_path, *files),
        config=released_config(config),
        pieces=pieces,
        packed=packed,
        exact=not packed,
        carried=carried_files(path),
    )


def _packed(
    inputs: Inputs,
    path: Path,
    module: str,
    spec: QuantizationSpec | None,
    shape: tuple[int, ...],
) -> Packed:
    if spec is None:
        raise CheckpointError(f"{path}: quantization of {module} is not told, but it has scales")
    rows, width = shape
    if width % spec.group_size or width * spec.bits % 32:
        raise CheckpointError(
            f"{path}: quantization of {module}: its {width} columns are not divisible by"
            f" group_size {spec.group_size}"
        )
    affine = spec.mode == "affine"
    groups = rows, width // spec.group_size
    tensors = [inputs.take(f"{module}.weight", "U32", (rows, width * spec.bits // 32))]
    tensors += [inputs.take(f"{module}.scales", "BF16" if affine else "U8", groups)]
    tensors += [inputs.take(f"{module}.biases", "BF16", groups)] if affine else []
    return Packed(spec, tuple(tensors))


def _check_mxfp4(path: Path, quantization: Quantization, experts: str) -> None:
    for part in ("gate_proj", "up_proj", "down_proj"):
        spec = quantization.of(f"{experts}.{part}")
        if spec != _MXFP4:
            how = "not quantized" if spec is None else f"{spec.mode} in {spec.bits} bits"
            raise CheckpointError(
                f"{path}: {experts}.{part} is {how}, not the released mxfp4, so the released"
                " experts cannot be had from it"
            )


def _expert_piece(inputs: Inputs, name: str, dtype: str, shape: tuple[int, ...]) -> Piece:
    """gate_up_proj_blocks from gate_proj.weight and up_proj.weight, and so on."""
    module, _, part = name.rpartition(".")
    matrix, _, kind = part.rpartition("_")
    foreign = {"blocks": "weight", "scales": "scales", "bias": "bias"}[kind]
    halves = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else (matrix,)
    rows = shape[1] // len(halves)
    tail = (shape[2] * 4,) if kind == "blocks" else shape[2:]
    foreign_dtype = "U32" if kind == "blocks" else dtype
    tensors = tuple(
        inputs.take(f"{module}.{half}.{foreign}", foreign_dtype, (shape[0], rows, *tail))
        for half in halves
    )
    # The bytes of uint32 words are those of the blocks; their shape is all that differs.
    rule = rules.interleaved if len(halves) == 2 else rules.same
    return Piece(dtype, shape, tensors, rule)

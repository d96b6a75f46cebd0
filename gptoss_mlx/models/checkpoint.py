"""A gpt-oss checkpoint on disk: which tensor lies where, everything validated first.

A `Checkpoint` is one of two folders: the released layout, or a conversion in which modules
besides the experts are quantized by MLX as config.json's `quantization` says. `Checkpoint.open`
reads JSON and headers only, and what it returns has every tensor of the config, with the right
dtype and shape, at a valid place in a file. No MLX, no torch.
"""

from __future__ import annotations

import mmap
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.jsonfile import parse_json, read_json, shown
from gptoss_mlx.files.pool import Call, Pool
from gptoss_mlx.files.reader import FileReader
from gptoss_mlx.files.regular import is_named, open_regular, read_regular
from gptoss_mlx.files.shard import NUMPY, Tensor, read_into, read_shard
from gptoss_mlx.spec.config import MXFP4_BLOCK, ModelConfig
from gptoss_mlx.spec.recipe import RECIPES

__all__ = ["Checkpoint", "Progress", "Tensor", "expected_tensors", "read_into"]

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NAN_SCALE = 255
UNFINISHED = "unfinished-conversion.jsonl"
"""The converter's journal; a folder that holds one is no checkpoint yet."""

_JOURNAL_LIMIT = 4 << 20
_NAME_LIMIT = 200  # characters of a file's name; no file system takes more than 255 bytes
_READERS = 4

Expected = dict[str, tuple[str, tuple[int, ...]]]


class Checkpoint:
    """A validated checkpoint folder, its files mapped until `close`."""

    def __init__(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
        """Map the files of tensors that `open` has validated."""
        self.folder = folder
        self.config = config
        self.tensors = tensors
        paths = {tensor.path for tensor in tensors.values()}
        self._maps = {path: _mapped(path) for path in sorted(paths)}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Validate and open a folder. Raises CheckpointError (ConfigError for config.json)."""
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: is not a folder")
        if os.path.lexists(folder / UNFINISHED):
            raise CheckpointError(
                f"{folder}: is an unfinished conversion; {_how_to_resume(folder)}"
            )
        config = ModelConfig.from_file(folder / "config.json")
        source, tensors = _read_tensors(folder)
        _check_expected(source, tensors, expected_tensors(config, folder / "config.json"))
        return cls(folder, config, MappingProxyType(tensors))

    def reader(self) -> FileReader:
        """A reader of the folder's files. Raises CheckpointError if one cannot be opened."""
        return FileReader({tensor.path for tensor in self.tensors.values()})

    def check_scales(
        self,
        progress: Progress | None = None,
        most: int = NAN_SCALE - 1,
        reader: FileReader | None = None,
    ) -> None:
        """Read every E8M0 scale once. One above `most` raises CheckpointError with its place; 255,
        which is NaN, always does.
        """
        reader = reader or self.reader()
        tensors = list(self._scale_tensors())
        total, done = sum(tensor.nbytes for tensor in tensors), 0
        pool = Pool(_READERS, "scales")
        try:
            begun = [pool.start(_scale_checks(reader, tensor, most)) for tensor in tensors]
            for checks, tensor in zip(begun, tensors, strict=True):
                checks.wait()
                done += tensor.nbytes
                if progress is not None:
                    progress(done, total)
        finally:
            pool.close()

    def map(self, tensor: Tensor) -> NDArray[Any]:
        """A read-only view of a tensor (or a slice of one) in its mapped file; BF16 as uint16."""
        dtype = np.dtype(NUMPY[tensor.dtype])
        return np.ndarray(tensor.shape, dtype, self._maps[tensor.path], tensor.offset)

    def largest_file(self) -> NDArray[np.uint8]:
        """A read-only view of the largest mapped file."""
        return max(
            (np.frombuffer(mapped, np.uint8) for mapped in self._maps.values()),
            key=lambda view: view.size,
        )

    def close(self) -> None:
        """Let go of the files; views from `map` stay valid until they are dropped."""
        self._maps.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _scale_tensors(self) -> Iterator[Tensor]:
        """Every tensor of E8M0 scales."""
        quantization = self.config.quantization
        for name, tensor in self.tensors.items():
            module, _, kind = name.rpartition(".")
            if name.endswith("_scales"):
                yield tensor
            elif kind == "scales" and quantization is not None:
                spec = quantization.of(module)
                if spec is not None and spec.mode in ("mxfp4", "mxfp8"):
                    yield tensor


def _how_to_resume(folder: Path) -> str:
    """The command that resumes the conversion, from the options in the journal's first line.

    Only options the converter knows are used: the file may be anyone's.
    """
    try:
        line = read_regular(folder / UNFINISHED, _JOURNAL_LIMIT).partition(b"\n")[0]
        begun = parse_json(line, UNFINISHED)
    except (OSError, CheckpointError):
        begun = {}
    target, recipe = begun.get("target"), begun.get("recipe")
    if target == "release":
        options = ["--to", "release"]
    elif target == "mlx" and isinstance(recipe, str) and recipe in RECIPES:
        options = ["--bits", recipe]
    else:
        return "convert its source once more, to another folder"
    command = shlex.join(["gptoss-convert", "SOURCE", str(folder), *options])
    return f"`{command}` goes on, with the SOURCE it was begun with"


def expected_tensors(config: ModelConfig, path: Path) -> Expected:
    """Every tensor of a config: name -> (dtype, shape), in the released order of a layer.

    `path` (of the config.json) opens the message of the CheckpointError for a quantization
    that does not fit a module's shape.
    """
    expected: Expected = {}
    # The released files order layers by their names as text: 0, 1, 10, 11, ..., 2, 20, ...
    for layer in sorted(range(config.num_hidden_layers), key=str):
        _expect_layer(expected, config, path, f"model.layers.{layer}")
    vocab, hidden = config.vocab_size, config.hidden_size
    _expect_matrix(expected, config, path, "model.embed_tokens", vocab, hidden)
    expected["model.norm.weight"] = ("BF16", (hidden,))
    _expect_matrix(expected, config, path, "lm_head", vocab, hidden)
    return expected


def _expect_layer(expected: Expected, config: ModelConfig, path: Path, layer: str) -> None:
    hidden = config.hidden_size
    width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    expected[f"{layer}.input_layernorm.weight"] = ("BF16", (hidden,))
    expected[f"{attention}.o_proj.bias"] = ("BF16", (hidden,))
    _expect_matrix(expected, config, path, f"{attention}.o_proj", hidden, width)
    rows = {"q_proj": width, "k_proj": kv_width, "v_proj": kv_width}
    for name, out in rows.items():
        expected[f"{attention}.{name}.bias"] = ("BF16", (out,))
    for name, out in rows.items():
        _expect_matrix(expected, config, path, f"{attention}.{name}", out, hidden)
    expected[f"{attention}.sinks"] = ("BF16", (config.num_attention_heads,))
    experts = config.num_local_experts
    expected[f"{mlp}.router.bias"] = ("BF16", (experts,))
    _expect_matrix(expected, config, path, f"{mlp}.router", experts, hidden)
    intermediate = config.intermediate_size
    shapes = {"gate_up_proj": (2 * intermediate, hidden), "down_proj": (hidden, intermediate)}
    for name, (out, width) in shapes.items():
        blocks = width // MXFP4_BLOCK
        expected[f"{mlp}.experts.{name}_bias"] = ("BF16", (experts, out))
        expected[f"{mlp}.experts.{name}_blocks"] = ("U8", (experts, out, blocks, 16))
        expected[f"{mlp}.experts.{name}_scales"] = ("U8", (experts, out, blocks))
    expected[f"{layer}.post_attention_layernorm.weight"] = ("BF16", (hidden,))


def _expect_matrix(
    expected: Expected, config: ModelConfig, path: Path, module: str, out: int, width: int
) -> None:
    """A [out, width] matrix: in bf16, or as MLX quantizes it along its width."""
    spec = config.quantization.of(module) if config.quantization is not None else None
    if spec is None:
        expected[f"{module}.weight"] = ("BF16", (out, width))
        return
    if width % spec.group_size or width * spec.bits % 32:
        raise CheckpointError(
            f"{path}: quantization of {module}: its {width} columns are not divisible"
            f" by group_size {spec.group_size}"
        )
    groups = (out, width // spec.group_size)
    expected[f"{module}.weight"] = ("U32", (out, width * spec.bits // 32))
    expected[f"{module}.scales"] = ("BF16" if spec.mode == "affine" else "U8", groups)
    if spec.mode == "affine":
        expected[f"{module}.biases"] = ("BF16", groups)


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Every tensor of the folder's files, and the file that lists them."""
    index, single = folder / INDEX, folder / SINGLE
    if not is_named(index):
        if not is_named(single):
            raise CheckpointError(f"{folder}: holds neither {INDEX} nor {SINGLE}")
        return single, read_shard(single)
    weight_map = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_shard(folder / shard)
        for name in found:
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"{folder / shard}: holds tensor {shown(name)}, which {INDEX} does not"
                    " place there"
                )
        tensors |= found
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                f"{index}: places tensor {shown(name)} in {shown(shard)}, which does not hold it"
            )
    return index, tensors


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is {shown(weight_map)}, not an object")
    for name, shard in weight_map.items():
        if not is_plain_name(shard):
            raise CheckpointError(
                f"{index}: weight_map[{shown(name)}] is {shown(shard)},"
                " not the plain name of a .safetensors file"
            )
    for shard in sorted(set(weight_map.values())):
        if not is_named(index.parent / shard):
            raise CheckpointError(f"{index}: names {shown(shard)}, which is not in the folder")
    return weight_map


def is_plain_name(value: object) -> bool:
    """Whether it can be a shard's file name: printable, and leading to no other folder."""
    return (
        isinstance(value, str)
        and value.endswith(".safetensors")
        and len(value) <= _NAME_LIMIT
        and value.isprintable()
        and not value.startswith(".")
        and not any(separator in value for separator in "/\\:")
    )


def _check_expected(source: Path, tensors: Mapping[str, Tensor], expected: Expected) -> None:
    missing = [name for name in expected if name not in tensors]
    if missing:
        more = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{source}: has no tensor {missing[0]}{more}, which config.json calls for"
        )
    for name, tensor in tensors.items():
        if name not in expected:
            raise CheckpointError(
                f"{tensor.path}: holds tensor {shown(name)}, which config.json does not call for"
            )
        dtype, shape = expected[name]
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            raise CheckpointError(
                f"{tensor.path}: tensor {name} is {tensor.dtype} {shown(list(tensor.shape))},"
                f" but config.json calls for {dtype} {list(shape)}"
            )


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open(open_regular(path), "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be mapped: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be mapped: it is empty by now") from error


def _scale_checks(reader: FileReader, tensor: Tensor, most: int) -> Iterator[Call]:
    """A check for each expert, or one for the whole tensor if it has no experts."""
    if not tensor.name.endswith("_scales"):
        yield partial(_check_scales, reader, tensor, "", most)
        return
    for expert in range(tensor.shape[0]):
        yield partial(_check_scales, reader, tensor[expert], f" of expert {expert}", most)


def _check_scales(reader: FileReader, tensor: Tensor, where: str, most: int) -> None:
    scales = np.empty(tensor.nbytes, np.uint8)
    reader.read_here([(tensor, scales.data)])
    if tensor.nbytes == 0 or scales.max() <= most:
        return
    place = int(scales.argmax())
    found = "255 (NaN)" if scales[place] == NAN_SCALE else str(scales[place])
    raise CheckpointError(
        f"{tensor.path}: tensor {tensor.name}{where} has the scale {found} at byte"
        f" {tensor.offset + place}; the highest is {most}"
    )

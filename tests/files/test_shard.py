"""One safetensors file, against safetensors' own library, whole and damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from gptoss_mlx.errors import CheckpointError
from gptoss_mlx.files.shard import read_shard
from gptoss_mlx.models.checkpoint import read_into

ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from([np.uint8, np.float16, np.float32, np.uint32, np.int64, np.bool_]),
        st.lists(st.integers(0, 4), max_size=4),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrays=ARRAYS)
def test_any_file_of_the_library_is_read_as_written(
    arrays: dict[str, tuple[Any, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("library") / "any.safetensors"
    rng = np.random.default_rng(0)
    written = {
        name: rng.integers(0, 2, shape).astype(dtype) for name, (dtype, shape) in arrays.items()
    }
    save_file(written, path)
    tensors = read_shard(path)
    assert tensors.keys() == written.keys()
    with safe_open(path, framework="np") as file:
        for name, tensor in tensors.items():
            assert tensor.dtype == file.get_slice(name).get_dtype()
            assert tensor.shape == written[name].shape
            out = bytearray(tensor.nbytes)
            read_into(tensor, memoryview(out))
            assert out == written[name].tobytes()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 220), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_header_is_refused_wherever_the_library_refuses(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    arrays = {"first": np.zeros((2, 3), np.float32), "second": np.ones(5, np.uint8)}
    data = bytearray(save(arrays, {"format": "np"}))
    for place, value in damage:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(data)
    try:
        read_shard(path)
    except CheckpointError:
        return
    safetensors.deserialize(bytes(data))

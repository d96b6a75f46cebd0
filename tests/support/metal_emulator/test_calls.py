"""Calls as MLX makes them: templates, strides, edges of the grid, several outputs."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from . import Emulator
from .harness import ORDERS, needs_clang, run, values

pytestmark = needs_clang


def test_templates_of_types_numbers_and_flags() -> None:
    source = "T v = T(x[i]) + T(N); out[i] = FLAG ? v : T(0);"
    x = mx.arange(64).astype(mx.float32)
    for dtype in (mx.float16, mx.float32, mx.int32):
        for flag in (True, False):
            template = [("T", dtype), ("N", 3), ("FLAG", flag)]
            out = run(source, x, dtype=dtype, template=template)
            assert out.dtype == dtype
            np.testing.assert_array_equal(values(out), (np.arange(64) + 3) * flag)


def test_threadgroup_memory_of_a_named_type() -> None:
    source = "threadgroup typename Kind::type tile\n    [64];\ntile[t] = x[i]; out[i] = tile[t];"
    x = mx.arange(64).astype(mx.float32)
    out = run(source, x, header="struct Kind { typedef float type; };\n")
    np.testing.assert_array_equal(values(out), values(x))


def test_shapes_and_strides_of_an_array_as_it_lies() -> None:
    kernel = Emulator().metal_kernel(
        name="strided",
        input_names=["x"],
        output_names=["out", "shape"],
        source="uint i = thread_position_in_grid.x; "
        "out[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)]; "
        "if (i < 4) shape[i] = i == 3 ? x_ndim : x_shape[i];",
        ensure_row_contiguous=False,
    )
    base = mx.arange(6 * 8 * 5).astype(mx.bfloat16).reshape(6, 8, 5)
    for x in (base, base.transpose(2, 0, 1), base[1:4, ::2], mx.broadcast_to(base[:1], (2, 8, 5))):
        x = x if x.ndim == 3 else x[None]
        out, shape = kernel(
            inputs=[x],
            output_shapes=[(x.size,), (4,)],
            output_dtypes=[mx.bfloat16, mx.int32],
            grid=(x.size, 1, 1),
            threadgroup=(32, 1, 1),
        )
        np.testing.assert_array_equal(values(out), values(x).reshape(-1))
        assert np.array(shape).tolist() == [*x.shape, 3]


def test_a_view_is_made_contiguous_by_default() -> None:
    x = mx.arange(64).astype(mx.float32).reshape(8, 8).T
    np.testing.assert_array_equal(values(run("out[i] = x[i];", x)), values(x).reshape(-1))


@pytest.mark.parametrize("order", ORDERS)
def test_threadgroups_at_the_edge_are_smaller(order: str) -> None:
    source = """
    uint3 p = thread_position_in_grid, g = threads_per_grid, s = threads_per_threadgroup;
    uint at = (p.z * g.y + p.y) * g.x + p.x;
    out[at] = s.x * 10000 + s.y * 1000 + threadgroups_per_grid.x * 100
              + threadgroup_position_in_grid.x * 10 + simdgroups_per_threadgroup;
    """
    kernel = Emulator(order=order).metal_kernel("edge", ["x"], ["out"], source)
    (out,) = kernel(
        inputs=[mx.zeros((8,))],
        output_shapes=[(2, 5, 10)],
        output_dtypes=[mx.uint32],
        grid=(10, 5, 2),
        threadgroup=(8, 4, 16),
    )
    _z, y, x = np.meshgrid(np.arange(2), np.arange(5), np.arange(10), indexing="ij")
    sx, sy = np.where(x < 8, 8, 2), np.where(y < 4, 4, 1)
    groups = (sx * sy * 2 + 31) // 32
    np.testing.assert_array_equal(
        np.array(out), sx * 10000 + sy * 1000 + 200 + x // 8 * 10 + groups
    )


def test_one_kernel_takes_inputs_of_any_kind() -> None:
    kernel = Emulator().metal_kernel(
        "sizes", ["x"], ["out"], "out[thread_position_in_grid.x] = sizeof(x) + sizeof(x[0]);"
    )
    sizes = []
    for x in (mx.zeros((64,)), mx.zeros((4,)), mx.zeros((64,), mx.float16)):
        (out,) = kernel(
            inputs=[x],
            output_shapes=[(1,)],
            output_dtypes=[mx.uint32],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            verbose=False,
        )
        sizes.append(out.item())
    assert sizes == [12, 12, 10]
    texts = {text.text.body for text in kernel.texts.values()}
    for space in ("constant", "device"):
        assert any(f"const {space} float* x" in text for text in texts)


def test_init_value_fills_outputs() -> None:
    out = run("if (i == 3) out[i] += x[i];", mx.full((8,), 2.0), init_value=5.0)
    assert values(out).tolist() == [7.0 if i == 3 else 5.0 for i in range(64)]


def test_it_stands_in_for_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator()
    monkeypatch.setattr(mx.fast, "metal_kernel", emulator.metal_kernel)
    kernel = mx.fast.metal_kernel(
        name="double",
        input_names=["x"],
        output_names=["out"],
        source="out[thread_position_in_grid.x] = x[thread_position_in_grid.x] * 2;",
    )
    (out,) = kernel(  # type: ignore[operator]
        inputs=[mx.ones((100,))],
        output_shapes=[(100,)],
        output_dtypes=[mx.float32],
        grid=(100, 1, 1),
        threadgroup=(64, 1, 1),
        stream=mx.gpu,
    )
    assert values(out).tolist() == [2.0] * 100
    (launch,) = emulator.launches
    assert (launch.name, launch.grid, launch.threadgroup) == ("double", (100, 1, 1), (64, 1, 1))
    assert [(a.name, a.shape, a.dtype, a.bytes) for a in launch.inputs + launch.outputs] == [
        ("x", (100,), "float32", 400),
        ("out", (100,), "float32", 400),
    ]
    assert launch.threadgroups == 2


def test_arguments_of_a_metal_file() -> None:
    body = """
    #include <metal_stdlib>
    using namespace metal;
    constant bool twice [[function_constant(3)]];
    struct Sizes { uint n; float scale; };
    kernel void scaled(device float* y [[buffer(1)]], const device float* x [[buffer(0)]],
                       constant Sizes& sizes [[buffer(2)]],
                       threadgroup float* room [[threadgroup(0)]],
                       uint i [[thread_position_in_grid]]) {
      room[i] = x[i] * sizes.scale;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (i < sizes.n) y[i] = room[sizes.n - 1 - i] * (twice ? 2 : 1);
    }
    """
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    sizes = np.array([(32, 0.5)], dtype=[("n", np.uint32), ("scale", np.float32)])
    launch = Emulator().launch(
        body,
        "scaled",
        {"x": x, "y": y, "sizes": sizes},
        (32, 1, 1),
        (32, 1, 1),
        threadgroup_bytes={0: 128},
        function_constants={3: 1},
    )
    np.testing.assert_array_equal(y, x[::-1])
    assert launch.threadgroup_bytes == 128
    assert launch.barriers == 1

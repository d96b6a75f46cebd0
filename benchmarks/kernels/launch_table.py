"""How many GPU kernels MLX's Metal backend launches for each operation of a traced step.

Read from the sources of MLX 0.32 (mlx/backend/metal and mlx/backend/gpu; each entry names its
file). Where the number depends on how an input lies in memory, the views that lead to it are
followed, and the copy MLX makes first is counted; what a kernel wrote is taken to lie row by row.
An operation that is not in the table is an error, never a guess.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, log2, prod
from typing import TypeAlias

from benchmarks.kernels.step_graph import VIEWS, Node, Operand, named
from gptoss_mlx.errors import GptOssError

# binary.cpp, unary.cpp, ternary.cpp: one dispatch, strides are taken as they are.
ELEMENTWISE = named(
    "Abs Add Cos Divide Equal Exp Greater GreaterEqual Less LessEqual Log LogicalAnd LogicalNot"
    " LogicalOr Maximum Minimum Multiply Negative NotEqual Power Remainder Select Sigmoid Sin Sqrt"
    " Square Subtract Tanh"
)
# indexing.cpp (Gather, GatherAxis), copy.cpp (AsType, Full), primitives.cpp (Arange, ArgReduce,
# RandomBits), quantized.cpp (quantize_impl), compiled.cpp: one dispatch.
ONCE = named("AsType Full Gather GatherAxis Arange ArgReduce RandomBits Compiled")
SORTS = named("ArgPartition ArgSort Partition Sort")

SORTED = 2048  # values one threadgroup sorts: 512 threads of 4 (sort.cpp, gpu_merge_sort)
TWO_PASSES = 4096  # keys from which on attention takes two kernels; 1024 on Max and Ultra chips
FUSED_HEADS = (64, 96, 128, 256)  # head sizes of the fused attention for one token
ONE_GROUP = 4096  # values one threadgroup reduces (reduce.cpp, all_reduce_dispatch)
SHORT_COLUMN = 32  # rows up to which a column is reduced in one pass, whatever else


class UnknownLaunches(GptOssError):
    """An operation whose launches the table does not say."""


@dataclass(frozen=True)
class Layout:
    """How an array lies in memory: strides in values, root the array that owns the memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    root: str

    @property
    def row_contiguous(self) -> bool:
        """As `array.flags().row_contiguous`: axes of one element do not matter."""
        return all(
            s == w or n == 1
            for n, s, w in zip(self.shape, self.strides, _rows(self.shape), strict=True)
        )

    @property
    def matrix(self) -> bool:
        """Whether the last two axes are a dense row-major matrix, to the letter of the strides."""
        if len(self.shape) < 2:
            return self.row_contiguous
        return self.strides[-1] == 1 and self.strides[-2] == self.shape[-1]


@dataclass
class Count:
    """launches by what they are for. held: updates of a buffer that the step before may be reading.

    MLX updates in place only what nothing else holds, and a running command buffer holds what it
    reads (metal/eval.cpp): with the step before still running, each of `held` is one copy more.
    """

    launches: Counter[str] = field(default_factory=Counter)
    held: int = 0

    @property
    def total(self) -> int:
        return sum(self.launches.values())


def count(nodes: Iterable[Node]) -> Count:
    """The launches of a traced step. Raises UnknownLaunches."""
    step = _Step()
    for node in nodes:
        step.add(node)
    return step.count


def check_compiled(nodes: Iterable[Node]) -> None:
    """Raises UnknownLaunches if a compiled function is not one kernel (compile.cpp, is_fusable)."""
    for node in nodes:
        if node.primitive not in ELEMENTWISE | {"AsType", "Broadcast"}:
            raise UnknownLaunches(f"{node.primitive} in a compiled function is not fused")


class _Step:
    """What is known of the arrays of a step, operation by operation."""

    def __init__(self) -> None:
        self.count = Count()
        self._layouts: dict[str, Layout] = {}
        self._made: set[str] = set()
        self._read: set[str] = set()

    def add(self, node: Node) -> None:
        inputs = [self._layouts.setdefault(a.name, _fresh(a)) for a in node.inputs]
        views: list[Layout | None] = [None] * len(node.outputs)
        if node.primitive in VIEWS:  # gpu/primitives.cpp: what can be shared is
            views = [_view(node, inputs[0], output) for output in node.outputs]
        launches, copies = (0, 0) if all(views) else _launches(node, inputs)
        copies += self._kept(node, inputs)
        name = node.kernel or node.primitive
        if launches:
            self.count.launches[name] += launches
        if copies:
            self.count.launches[f"copy for {name}"] += copies
        if launches or copies:
            self._read |= {layout.root for layout in inputs}
        for output, view in zip(node.outputs, views, strict=True):
            self._layouts[output.name] = view or _fresh(output)
            if view is None:
                self._made.add(output.name)

    def _kept(self, node: Node, inputs: Sequence[Layout]) -> int:
        """Copies of the buffer that a slice update may not write into (indexing.cpp, copy.h)."""
        if node.primitive != "SliceUpdate":
            return 0
        if inputs[0].root in self._read or not inputs[0].row_contiguous:
            return 1
        self.count.held += inputs[0].root not in self._made
        return 0


def _launches(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """(kernels, copies before them) of an operation that is no view."""
    name = node.primitive
    if name in ELEMENTWISE | ONCE:
        return 1, 0
    if name in VIEWS:  # a reshape that cannot share: gpu/copy.cpp, reshape_gpu
        return 0, 1
    if name in SORTS:
        return _sort(inputs[0].shape[int(node.arguments[-1])]), 0
    rule = _RULES.get(name)
    if rule is None:
        raise UnknownLaunches(f"{name}: how many kernels MLX launches for it is not in the table")
    return rule(node, inputs)


def _sort(length: int) -> int:
    """sort.cpp: one block, or blocks, then two kernels a merge and a copy."""
    blocks = ceil(length / SORTED)
    return 1 if blocks == 1 else 2 + 2 * ceil(log2(blocks))


def _concatenate(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """metal/slicing.cpp: a copy for each input."""
    return sum(prod(layout.shape) > 0 for layout in inputs), 0


def _slice_update(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """metal/indexing.cpp: the update; `_Step` sees to what it is written into."""
    return 1, 0


def _custom(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """custom_kernel.cpp: inputs that are not row-contiguous are copied, if that is asked for."""
    ensure, initial = node.arguments[9], node.arguments[10]
    fills = len(node.outputs) if initial not in ([], None) else 0
    return 1 + fills, sum(not a.row_contiguous for a in inputs) if ensure else 0


def _rms_norm(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """normalization.cpp: rows must be dense."""
    x = inputs[0]
    dense = x.row_contiguous or (x.strides[-1] == 1 and prod(x.shape[:-1]) == 1)
    return 1, 0 if dense else 1


def _rope(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """rope.cpp: takes a transposition of heads and tokens; copies what is stranger."""
    x = inputs[0]
    if x.row_contiguous or prod(x.shape[:-3]) == 1:
        return 1, 0
    heads, tokens, width = x.shape[-3:]
    swapped = (tokens * heads * width, width, heads * width)
    return 1, 0 if len(x.shape) == 4 and x.strides[:3] == swapped else 1


def _attention(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """scaled_dot_product_attention.cpp, the vector kernels: up to 8 queries, heads dense."""
    q, k, v = inputs[:3]
    queries, heads, width = q.shape[2], q.shape[1], q.shape[3]
    if queries > 8 or width not in FUSED_HEADS or queries * heads // k.shape[1] > 32:
        raise UnknownLaunches(f"attention of {queries} queries with heads of {width} is not fused")
    copies = int(not q.row_contiguous and q.strides[1:] != (width, heads * width, 1))
    for a in (k, v):
        nested = 1 in a.shape[:2] or a.strides[0] == a.strides[1] * a.shape[1]
        copies += not (a.strides[-1] == 1 and nested)
    return 2 if k.shape[2] >= TWO_PASSES else 1, copies


def _matmul(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """matmul.cpp, one row (gemv): matrices row-major or transposed, vectors dense."""
    a, b = inputs[:2]
    rows, columns = a.shape[-2], b.shape[-1]
    if rows > 1 or columns == 1:
        raise UnknownLaunches(f"Matmul of {a.shape} and {b.shape} is not one vector by a matrix")
    return 1, (not a.matrix) + (1 not in b.strides[-2:])


def _quantized(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """quantized.cpp, one row: `ensure_row_contiguous_matrix` of all but a gather's indices."""
    given = inputs[:-2] if node.primitive == "GatherQMM" else inputs
    if node.primitive == "QuantizedMatmul" and node.arguments[-1] is not True:
        raise UnknownLaunches("QuantizedMatmul of a matrix that is not transposed")
    return 1, sum(not layout.matrix for layout in given)


def _quantize(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """quantized.cpp, quantize_impl."""
    return 1, sum(not layout.row_contiguous for layout in inputs)


def _last_axis(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """softmax.cpp, logsumexp.cpp: the last axis must be dense."""
    return 1, 0 if inputs[0].row_contiguous or inputs[0].strides[-1] == 1 else 1


def _reduce(node: Node, inputs: Sequence[Layout]) -> tuple[int, int]:
    """reduce.cpp: all, the last axes (row_reduce) or one before them (strided_reduce_small)."""
    x, axes = inputs[0], tuple(node.arguments[1])
    kept = [n for i, n in enumerate(x.shape) if i not in axes and n > 1]
    reduced = [i for i in axes if x.shape[i] > 1]
    if not x.row_contiguous:
        raise UnknownLaunches(f"Reduce of a strided {x.shape}")
    if not kept:
        return 1 if prod(x.shape) <= ONE_GROUP else 2, 0
    after = [i for i in range(max(reduced, default=0) + 1, len(x.shape)) if x.shape[i] > 1]
    if after and prod(x.shape[i] for i in reduced) >= SHORT_COLUMN:
        raise UnknownLaunches(f"Reduce of long columns of {x.shape}")
    return 1, 0


_Rule: TypeAlias = Callable[[Node, Sequence[Layout]], tuple[int, int]]
_RULES: dict[str, _Rule] = {
    "Attention": _attention,
    "AddMM": _matmul,
    "Concatenate": _concatenate,
    "CustomKernel": _custom,
    "GatherQMM": _quantized,
    "LogSumExp": _last_axis,
    "Matmul": _matmul,
    "Quantize": _quantize,
    "QuantizedMatmul": _quantized,
    "RMSNorm": _rms_norm,
    "Reduce": _reduce,
    "RoPE": _rope,
    "SliceUpdate": _slice_update,
    "Softmax": _last_axis,
}


def _view(node: Node, x: Layout, output: Operand) -> Layout | None:
    """The output as a view of x; None if x lies so that it has to be copied.

    backend/common: common.cpp, broadcasting.cpp, slicing.cpp.
    """
    if node.primitive in ("Reshape", "Flatten", "Unflatten"):
        strides = _reshaped(x, output.shape)
        return None if strides is None else Layout(output.shape, strides, x.root)
    return Layout(output.shape, _strides(node, x, output), x.root)


def _strides(node: Node, x: Layout, output: Operand) -> tuple[int, ...]:
    name, strides = node.primitive, list(x.strides)
    if name == "Transpose":
        return tuple(strides[axis] for axis in node.arguments[0])
    if name == "Slice":
        return tuple(s * step for s, step in zip(strides, node.arguments[2], strict=True))
    if name == "ExpandDims":
        for axis in node.arguments[0]:
            strides.insert(axis, 1)
    elif name == "Squeeze":
        return tuple(s for axis, s in enumerate(strides) if axis not in node.arguments[0])
    elif name == "Broadcast":
        widened = [0] * (len(output.shape) - len(strides)) + strides
        given = [1] * (len(output.shape) - len(strides)) + list(x.shape)
        return tuple(
            s if n == m else 0 for s, n, m in zip(widened, given, output.shape, strict=True)
        )
    elif name == "View" and strides:
        before = node.inputs[0].itemsize
        return (*(s * before // output.itemsize for s in strides[:-1]), strides[-1])
    return tuple(strides)


def _reshaped(x: Layout, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides after a reshape without a copy (prepare_reshape), or None."""
    if x.row_contiguous or prod(x.shape) == 0:
        return _rows(shape)
    sizes, strides = _collapsed(x)
    found: list[int] = []
    j = 0
    for n in shape:
        if j < len(sizes) and sizes[j] % n == 0:
            sizes[j] //= n
            found.append(sizes[j] * strides[j])
            j += sizes[j] == 1
        elif n == 1:
            found.append(found[-1])
        else:
            return None
    return tuple(found)


def _collapsed(x: Layout) -> tuple[list[int], list[int]]:
    """Axes that lie one behind the other, joined; axes of one element left out."""
    axes = [(n, s) for n, s in zip(x.shape, x.strides, strict=True) if n != 1]
    sizes, strides = [axes[0][0]], [axes[0][1]]
    for (_, before), (n, s) in pairwise(axes):
        if before == n * s:
            sizes[-1] *= n
            strides[-1] = s
        else:
            sizes.append(n)
            strides.append(s)
    return sizes, strides


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def _fresh(operand: Operand) -> Layout:
    return Layout(operand.shape, _rows(operand.shape), operand.name)

"""A table of a plan, for people: what each part of the model becomes, and how large it is."""

from __future__ import annotations

from collections import defaultdict

from rich.table import Table
from rich.text import Text

from gptoss_mlx.cli.terminal import harmless
from gptoss_mlx.files.shard import Tensor

from .manifest import sizes
from .plan import Plan, Task
from .source import Source

_PARTS = ("experts", "expert biases", "embedding", "attention", "router", "head", "norms, sinks")


def table(source: Source, plan: Plan) -> Table:
    """Rows by part: its format and bytes in the source and in the result."""
    before: dict[str, set[Tensor]] = defaultdict(set)  # a GGUF's scales come from its blocks' bytes
    after: dict[str, int] = defaultdict(int)
    formats: dict[str, set[str]] = defaultdict(set)
    for task in plan.tasks:
        part = _part(task)
        before[part].update(task.piece.inputs)
        after[part] += task.nbytes
        formats[part].add(_format(task))
    title = harmless(f"{source.name} ({source.kind}) -> {plan.target}, {plan.recipe}")
    shown = Table(title=Text(title, style="table.title"))
    shown.add_column("part")
    shown.add_column("format")
    for name in ("source bytes", "result bytes"):
        shown.add_column(name, justify="right")
    for part in _PARTS:
        if part in after:
            kinds = ", ".join(sorted(formats[part]))
            shown.add_row(part, kinds, f"{_nbytes(before[part]):,}", f"{after[part]:,}")
    written = sizes(source, plan)
    total = sum(written.values())
    carried = sum(map(len, source.carried.values()))
    rest = total - sum(after.values())  # headers among them
    shown.add_row("other files", "as they are", f"{carried:,}", f"{rest:,}")
    shown.add_section()
    sums = f"{sum(map(_nbytes, before.values())) + carried:,}", f"{total:,}"
    shown.add_row("in all", f"{len(written)} files", *sums)
    return shown


def _nbytes(tensors: set[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _part(task: Task) -> str:
    name = task.outputs[0].name
    if ".experts." in name:
        return "expert biases" if name.endswith("_bias") else "experts"
    for mark, part in (("embed_tokens", "embedding"), ("lm_head", "head"), (".router.", "router")):
        if mark in name:
            return part
    return "norms, sinks" if "norm" in name or name.endswith("sinks") else "attention"


def _format(task: Task) -> str:
    output = task.outputs[0]
    if task.spec is not None:
        return f"{task.spec.bits}-bit"
    if output.name.endswith(("_blocks", "_scales")):
        return "mxfp4"
    return "bf16" if output.dtype == "BF16" else "as it is"

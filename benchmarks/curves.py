"""Hit rate against slots, speed against memory: pictures. matplotlib is imported to draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.policies import LIMIT, PRODUCT
from gptoss_mlx.errors import GptOssError

DRAWN = {
    LIMIT: ("black", "-"),
    PRODUCT: ("tab:red", "-"),
    "LRU": ("tab:blue", "--"),
    "LFU": ("tab:green", "--"),
    "most popular (oracle)": ("tab:olive", ":"),
    "random": ("gray", ":"),
}
"""Policies shown: colour and line."""

COLUMNS = 3


def need_matplotlib() -> None:
    """Raises GptOssError if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise GptOssError(
            "--plot needs matplotlib, which is not installed: pip install 'gptoss-mlx[benchmarks]'"
        ) from None


def draw(found: Mapping[str, Mapping[str, Mapping[float, float]]], path: Path) -> None:
    """found: hit rates by trace, policy and share of slots. Writes a PNG to `path`."""
    need_matplotlib()
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    panes = figure.subplots(rows, columns, squeeze=False).flat
    for pane, (trace, policies) in zip(panes, found.items(), strict=False):
        for name, (colour, line) in DRAWN.items():
            points = [(100 * share, 100 * rate) for share, rate in policies[name].items()]
            xs, ys = zip(*points, strict=True) if points else ((), ())
            pane.plot(xs, ys, line, color=colour, marker=".", label=name)
        pane.set(title=trace, xlim=(0, 100), ylim=(0, 100))
        pane.set(xlabel="slots, % of experts", ylabel="hits, %")
        pane.grid(alpha=0.3)
    for pane in panes:
        pane.set_axis_off()
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, format="png", dpi=80)


def draw_budgets(
    budgets: Sequence[float], curves: Mapping[str, Sequence[float]], path: Path
) -> None:
    """One pane for each curve over the budgets (GiB). Writes a PNG to `path`."""
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.3 * len(curves)), layout="constrained")
    panes = figure.subplots(len(curves), 1, sharex=True, squeeze=False).flat
    for pane, (label, values) in zip(panes, curves.items(), strict=True):
        pane.plot(budgets, values, marker="o", color="tab:red")
        pane.set(ylabel=label, ylim=(0, None))
        pane.grid(alpha=0.3)
    pane.set(xlabel="memory budget, GiB")
    figure.savefig(path, dpi=120)

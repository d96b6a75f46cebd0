"""Speed against memory, as a picture. matplotlib is imported to draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gptoss_mlx.errors import GptOssError


def need_matplotlib() -> None:
    """Raises GptOssError if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise GptOssError(
            "--plot needs matplotlib, which is not installed: pip install 'gptoss-mlx[benchmarks]'"
        ) from None


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

"""Speed against threads, prompts, contexts and streams, as a picture, from files of results.

    python -m benchmarks.cpu.curves benchmarks/results/cpu-speed-*.json --plot x.png

matplotlib is imported to draw it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

PANES = {
    "decode_tok_s": ("streams", "decode, tok/s of all streams"),
    "decode_at_tok_s": ("tokens of context", "decode, tok/s"),
    "prefill_tok_s": ("tokens of prompt", "prompt, tok/s"),
    "threads_decode_tok_s": ("threads", "decode, tok/s"),
    "threads_prefill_tok_s": ("threads", "prompt of 512, tok/s"),
}
"""Figures by number, and what the axes say."""
WHOLE = {
    "threads_decode_tok_s": ("decode_tok_s", "1"),
    "threads_prefill_tok_s": ("prefill_tok_s", "512"),
}
"""Of figures with fewer threads: which one is with all."""
COLORS = {"llama.cpp": "tab:gray", "mlx-lm": "tab:olive"}
"""Ours take the others."""


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """A pane for each kind of figure that was measured, a line for each runtime. Writes a PNG to
    `path`."""
    from matplotlib.figure import Figure

    names = [name for name in PANES if any(name in figures for figures in results.values())]
    figure = Figure(figsize=(7, 2.6 * len(names)), layout="constrained")
    panes = figure.subplots(len(names), 1, squeeze=False).flat
    for pane, name in zip(panes, names, strict=True):
        across, up = PANES[name]
        for label, figures in results.items():
            points = sorted((int(n), rate) for n, rate in figures.get(name, {}).items())
            if name == "decode_at_tok_s" and points:
                points = [(0, figures["decode_tok_s"]["1"]), *points]
            kind, number = WHOLE.get(name, (name, ""))
            if points and number in figures[kind]:
                points.append((figures["threads"], figures[kind][number]))
            if points:
                color = next((c for peer, c in COLORS.items() if peer in label), None)
                line = "-" if label.endswith("bfloat16") else "--"
                pane.plot(*zip(*points, strict=True), line, marker="o", label=label, color=color)
        pane.set(xlabel=across, ylabel=up, ylim=(0, None))
        pane.grid(alpha=0.3)
        pane.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def lines_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each runtime's figures by what the picture calls it; of a peer that was measured several
    times, the first."""
    found: dict[str, Mapping[str, Any]] = {}
    for result in results:
        rest = result["rest"]
        found[f"{result['ours']['variant']}, {rest}"] = result["ours"]
        for peer in COLORS:
            if peer in result:
                found.setdefault(f"{peer}, {rest}", result[peer])
    return found


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--plot", required=True, type=click.Path(path_type=Path))
def main(files: tuple[Path, ...], plot: Path) -> None:
    draw(lines_of([json.loads(file.read_text(encoding="utf-8")) for file in files]), plot)


if __name__ == "__main__":
    main()

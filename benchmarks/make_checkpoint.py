"""Write a random gpt-oss checkpoint of any shape in the released layout.

    python -m benchmarks.make_checkpoint OUT --shape 20b

What it holds: tests/support/checkpoints.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.models.checkpoint import Progress as ByteProgress
from tests.support.checkpoints import SHAPES, SHARD_BYTES, write_checkpoint


@contextmanager
def _bar() -> Iterator[ByteProgress | None]:
    """A progress bar on stderr where that is a terminal, else None."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("writing")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--shape", "name", type=click.Choice(list(SHAPES)), default="20b", show_default=True)
@click.option("--layers", type=int)
@click.option("--hidden", type=int)
@click.option("--intermediate", type=int)
@click.option("--experts", type=int)
@click.option("--active", type=int, help="Experts for each token.")
@click.option("--heads", type=int)
@click.option("--kv-heads", type=int)
@click.option("--head-dim", type=int)
@click.option("--vocab", type=int)
@click.option("--window", type=int)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--shard-bytes", type=click.IntRange(min=1), default=SHARD_BYTES, show_default=True)
@click.option(
    "--tokenizer",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A tokenizer file to copy into the folder; may be given several times.",
)
def main(
    folder: Path,
    name: str,
    seed: int,
    shard_bytes: int,
    tokenizer: tuple[Path, ...],
    **sizes: int | None,
) -> None:
    """Write a random checkpoint in the released layout into FOLDER."""
    shape = replace(SHAPES[name], **{key: size for key, size in sizes.items() if size is not None})
    try:
        with _bar() as progress:
            write_checkpoint(
                folder,
                shape,
                seed=seed,
                shard_bytes=shard_bytes,
                tokenizer=tokenizer,
                progress=progress,
            )
    except GptOssError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

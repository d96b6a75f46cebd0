"""The command: `python -m convert SOURCE DEST`, installed as `gptoss-convert`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from gptoss_mlx.cli.exits import Command
from gptoss_mlx.cli.options import CONTEXT_SETTINGS
from gptoss_mlx.cli.terminal import Bar, Output, harmless, show
from gptoss_mlx.errors import ConversionError
from gptoss_mlx.files.paths import expanded
from gptoss_mlx.models import hub
from gptoss_mlx.spec.recipe import RECIPES

from .conversion import Conversion
from .state import free_bytes
from .table import table

_COMMAND = "python -m convert" if __package__ == "convert" else "gptoss-convert"
_BAR_AFTER = 1.0  # seconds


@click.command(_COMMAND, cls=Command, context_settings=CONTEXT_SETTINGS)
@click.argument("source")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--bits",
    type=click.Choice(list(RECIPES)),
    default="mixed",
    show_default=True,
    help="What becomes of everything besides the experts, which are never changed.",
)
@click.option(
    "--to",
    "target",
    type=click.Choice(["mlx", "release"]),
    default="mlx",
    show_default=True,
    help="MLX format, or back to the released layout (from sources that lost nothing).",
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--verify", is_flag=True, help="Compare the finished result with the source.")
@click.option("--quiet", is_flag=True, help="Neither bars nor words.")
@click.option("--debug", is_flag=True, help="Show where an error came from.")
def main(
    source: str,
    dest: Path,
    bits: str,
    target: str,
    dry_run: bool,
    verify: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Convert SOURCE into the folder DEST.

    SOURCE is a folder (the Hugging Face release, OpenAI's original/, an mlx-lm conversion, one of
    ours), a GGUF file, or a Hugging Face id. What is interrupted goes on when it is run again.
    """
    shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
    path, name = expanded(source), None
    if not path.exists():
        if source.startswith((".", "/", "~")) or path.suffix == ".gguf":
            raise ConversionError(f"{source}: does not exist")
        name = source
        with Bar("downloading", "bytes", shown=shown, after=_BAR_AFTER) as bar:
            path = hub.locate(source, bar.update, also=("LICENSE*", "README.md", "USAGE*"))
    conversion = Conversion.prepare(path, dest, target=target, recipe=bits, name=name)
    state = conversion.check()
    if dry_run:
        _show(conversion)
        return
    say = _silent if quiet else _say
    if state == "complete":
        say(f"{dest}: is complete already")
    else:
        try:
            with Bar("converting", "bytes", shown=shown, after=_BAR_AFTER) as bar:
                written = conversion.run(bar.update)
        except KeyboardInterrupt:
            if conversion.is_begun:
                say(f"{dest}: is unfinished; `{_again(source, dest, bits, target)}` goes on")
            raise
        say(f"{dest}: {written:,} bytes written")
        if conversion.note is not None:
            say(conversion.note)
    if verify:
        with Bar("verifying", "bytes", shown=shown, after=_BAR_AFTER) as bar:
            count = conversion.verify(bar.update)
        say(f"{dest}: {count} tensors equal their source")


def _again(source: str, dest: Path, bits: str, target: str) -> str:
    """The command that resumes the conversion."""
    options = ["--to", "release"] if target == "release" else ["--bits", bits]
    command = click.get_current_context().command_path
    return f"{command} {shlex.join([source, str(dest), *options])}"


def _show(conversion: Conversion) -> None:
    show(table(conversion.source, conversion.plan))
    if conversion.note is not None:
        click.echo(harmless(conversion.note))
    free = free_bytes(conversion.folder)
    click.echo(f"still to write: {conversion.to_write:,} bytes; free there: {free:,}")


def _say(line: str) -> None:
    Output(sys.stderr, optional=True).write(f"{harmless(line)}\n")


def _silent(line: str) -> None:
    pass


if __name__ == "__main__":
    main()

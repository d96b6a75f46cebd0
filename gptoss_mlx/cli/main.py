"""The `gptoss-mlx` command: a group whose subcommands are imported only when they are used.

The converter is a package of its own, which nothing else here imports.
"""

from __future__ import annotations

from importlib import import_module

import click

from gptoss_mlx import __version__
from gptoss_mlx.cli.exits import Command
from gptoss_mlx.cli.options import CACHE, CONTEXT_SETTINGS

_COMMANDS = {
    "chat": ("gptoss_mlx.cli.chat.__main__", "Talk with the model."),
    "convert": ("gptoss_convert.__main__", "Convert a checkpoint to MLX format."),
    "doctor": ("gptoss_mlx.cli.doctor", "Show what this machine has for a model."),
    "generate": ("gptoss_mlx.generate", "Answer one prompt."),
    "serve": ("gptoss_mlx.cli.serve", "Serve models to programs on this machine."),
    "plan": ("gptoss_mlx.cli.plan", "Show what a model takes in memory, before a download."),
}


class _LazyGroup(Command, click.Group):
    """Lists its subcommands without importing them, so that --help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        try:
            command = import_module(module).main
        except ModuleNotFoundError as error:
            if error.name != "gptoss_convert":
                raise
            raise click.UsageError("in a bare checkout it is `python -m convert`") from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup, context_settings=CONTEXT_SETTINGS, epilog=CACHE)
@click.version_option(__version__, prog_name="gptoss-mlx")
def main() -> None:
    """Run OpenAI's gpt-oss models on this machine."""

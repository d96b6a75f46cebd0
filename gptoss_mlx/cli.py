"""The `gptoss-mlx` command: a group whose subcommands are imported only when they are used."""

from __future__ import annotations

from importlib import import_module

import click

from gptoss_mlx import __version__

_COMMANDS = {
    "doctor": ("gptoss_mlx.doctor", "Show what this machine has for a model."),
    "generate": ("gptoss_mlx.generate", "Answer one prompt."),
    "plan": ("gptoss_mlx.plan", "Show what a model takes in memory, before a download."),
}


class _LazyGroup(click.Group):
    """Lists its subcommands without importing them, so that --help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command = import_module(module).main
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=_LazyGroup)
@click.version_option(__version__, prog_name="gptoss-mlx")
def main() -> None:
    """Run OpenAI's gpt-oss models on this machine."""

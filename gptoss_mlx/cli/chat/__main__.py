"""The command that talks with gpt-oss: `gptoss-mlx chat`.

On a terminal it edits messages and shows Markdown; through a pipe each line is a message, and the
answers alone go to stdout. Nothing heavy is imported before the arguments have been validated.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from gptoss_mlx.cli.asked_guard import guard_options, take_guard
from gptoss_mlx.cli.asked_tools import take_tools, tool_options
from gptoss_mlx.cli.exits import Command, interrupted_anew
from gptoss_mlx.cli.opening import open_with_bar, take_settings
from gptoss_mlx.cli.options import (
    CACHE,
    CONTEXT_SETTINGS,
    INSTRUCTION_OPTIONS,
    MODEL_HELP,
    SAMPLING_OPTIONS,
    backend_options,
    loading_options,
    model_option,
)
from gptoss_mlx.cli.terminal import Output, harmless
from gptoss_mlx.errors import MessageError, SamplingError
from gptoss_mlx.launch import end_at_once
from gptoss_mlx.spec.sampling import Sampling

if TYPE_CHECKING:
    from gptoss_mlx.cli.chat.archive import Archive, Saved
    from gptoss_mlx.cli.chat.conversation import Talk
    from gptoss_mlx.cli.chat.echo import Echo
    from gptoss_mlx.cli.chat.transcript import Transcript
    from gptoss_mlx.cli.chat.view import View
    from gptoss_mlx.engine.engine import Engine

BAR_AFTER = 1.0  # seconds; shorter work shows no bar

LAST = "\0"
"""Stands for the conversation used last, with --resume alone."""


def _answer_options(command: Any) -> Any:
    for option in reversed((*INSTRUCTION_OPTIONS, *SAMPLING_OPTIONS)):
        command = option(command)
    return command


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS, epilog=CACHE)
@model_option(MODEL_HELP)
@backend_options
@loading_options
@_answer_options
@tool_options
@guard_options
@click.option(
    "--resume",
    metavar="[NAME]",
    is_flag=False,
    flag_value=LAST,
    help="Go on with a saved conversation, by default the last.",
)
@click.option("--session", metavar="NAME", help="Go on with this one, or begin it.")
@click.option("--list-sessions", is_flag=True, help="List the saved conversations, and end.")
@click.option("--no-save", is_flag=True, help="Save neither the conversation nor what is typed.")
@click.option("--quiet", is_flag=True, help="Only prompts and answers: no reasoning or notes.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(
    model: str,
    resume: str | None,
    session: str | None,
    list_sessions: bool,
    no_save: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Talk with gpt-oss in the terminal.

    A slash begins a command; /help lists them. Through a pipe each line is a message, and the
    answers alone go to stdout; such a conversation is saved with --session or --resume only.
    """
    settings, box, asked_guard = take_settings(given), take_tools(given), take_guard(given)
    asked = _checked(given)
    _check_together(resume, session, box.asks, quiet)
    from gptoss_mlx.cli.chat.archive import Archive
    from gptoss_mlx.files.paths import data_folder

    archive = Archive(data_folder() / "conversations")
    if list_sessions:
        from gptoss_mlx.cli.chat.commands import listing

        click.echo(harmless(listing(archive)))
        return
    transcript, saved = _opened(archive, resume, session)
    out, err = Output(sys.stdout), Output(sys.stderr, optional=True)
    typed = sys.stdin is not None and sys.stdin.isatty() and (out.terminal or err.terminal)
    with ExitStack() as stack:
        echo = stack.enter_context(_echo()) if typed else None
        bars = err.terminal and not quiet
        with _busy(echo):
            opened = stack.enter_context(
                box.open(bar_shown=bars, after=BAR_AFTER, note=_noting(err, quiet))
            )
            engine = stack.enter_context(_loaded(model, settings, bars))
            guard = stack.enter_context(
                asked_guard.open(engine, settings, bar_shown=bars, after=BAR_AFTER)
            )
        from gptoss_mlx.cli.chat.chat_tools import ChatTools
        from gptoss_mlx.cli.chat.conversation import Talk

        talk = Talk(
            engine,
            _changed(transcript, asked),
            new_view=_views(out, err if typed and not quiet else None, typed, quiet, bool(box)),
            out=out,
            err=err,
            archive=archive,
            saved=saved,
            saves=not no_save and (typed or saved is not None),
            quiet=quiet,
            bar_after=BAR_AFTER,
            third=end_at_once if echo is None else echo.end_at_once,
            edit=partial(_edited, echo),
            tools=ChatTools(engine, box, opened, guard),
        )
        _talk(talk, echo, no_save=no_save, debug=debug)


def _check_together(resume: str | None, session: str | None, asks: bool, quiet: bool) -> None:
    """Raises click.UsageError for options that exclude each other."""
    if resume is not None and session is not None:
        raise click.UsageError("give --resume or --session, not both")
    if asks and quiet:
        raise click.UsageError("=ask shows calls, not beside --quiet")


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a stream that were given. Raises click.UsageError."""
    asked = {name: value for name, value in given.items() if value not in (None, ())}
    sampling = dict(asked)
    for name in ("system", "reasoning", "max_tokens", "max_time", "stop"):
        sampling.pop(name, None)
    try:
        Sampling(**sampling)
    except SamplingError as error:
        raise click.UsageError(str(error)) from error
    if not all(asked.get("stop", ())):
        raise click.UsageError("--stop is empty")
    return asked


def _opened(
    archive: Archive, resume: str | None, session: str | None
) -> tuple[Transcript, Saved | None]:
    """The conversation to go on with. Raises SessionError."""
    from gptoss_mlx.cli.chat.archive import Saved
    from gptoss_mlx.cli.chat.transcript import Transcript

    if resume is not None:
        return archive.read(archive.last() if resume == LAST else resume)
    if session is not None:
        return archive.read(session) if archive.holds(session) else (Transcript(), Saved(session))
    return Transcript(), None


def _changed(transcript: Transcript, asked: dict[str, Any]) -> Transcript:
    """The transcript with what was given on the command line."""
    options = dict(asked)
    system = options.pop("system", transcript.system)
    reasoning = options.pop("reasoning", transcript.reasoning)
    merged = {**transcript.options, **options}
    return replace(transcript, system=system, reasoning=reasoning, options=merged)


def _echo() -> Echo:
    from gptoss_mlx.cli.chat.echo import Echo

    return Echo(sys.stdin.fileno())


@contextmanager
def _busy(echo: Echo | None) -> Iterator[None]:
    """For work before the first prompt, to which keys pressed meanwhile go; Ctrl-C ends it."""
    last = end_at_once if echo is None else echo.end_at_once
    with interrupted_anew(last), nullcontext() if echo is None else echo.off():
        yield


def _noting(err: Output, quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else err.write(f"note: {harmless(text)}\n")


def _loaded(model: str, settings: dict[str, Any], bar_shown: bool) -> Engine:
    """The engine. Raises MessageError for a model that speaks no Harmony."""
    settings = {**settings, "parallel": 1}
    engine = open_with_bar(model, settings, bar_shown=bar_shown, after=BAR_AFTER)
    if engine.tokenizer.harmony is None:
        engine.close()
        raise MessageError(f"{model}: speaks no Harmony; generate --raw continues a text")
    return engine


def _views(
    out: Output, aside: Output | None, typed: bool, quiet: bool, runs: bool
) -> Callable[[], View]:
    from gptoss_mlx.cli.chat.view import PlainView, TerminalView

    if not (typed and out.terminal and os.environ.get("TERM") != "dumb"):
        return lambda: PlainView(out, aside, runs=runs)
    from rich.console import Console

    from gptoss_mlx.cli.chat.markdown import Painter

    painter = Painter(Console(file=sys.stdout))
    return lambda: TerminalView(sys.stdout, painter, quiet=quiet, runs=runs)


def _talk(talk: Talk, echo: Echo | None, *, no_save: bool, debug: bool) -> None:
    """Until it ends. Notes of the engine are told before, and those that came meanwhile after."""
    from gptoss_mlx.cli.chat.dialogue import take_lines

    told = talk.engine.notes
    for note in told:
        talk.note(note)
    if echo is not None:
        _by_keyboard(talk, echo, no_save=no_save, debug=debug)
    else:
        take_lines(talk)
    talk.engine.close()  # what is to last is on the disk then
    for note in talk.engine.notes:
        if note not in told:
            talk.note(note)


def _by_keyboard(talk: Talk, echo: Echo, *, no_save: bool, debug: bool) -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.history import History, InMemoryHistory
    from prompt_toolkit.output import create_output

    from gptoss_mlx.cli.chat.dialogue import converse, greet, show_last_turn
    from gptoss_mlx.cli.chat.history import TypedHistory
    from gptoss_mlx.cli.chat.keyboard import Keyboard

    history: History = InMemoryHistory()
    if not no_save:
        history = TypedHistory(talk.archive.folder.parent / "typed.jsonl")
    with create_app_session(output=create_output(always_prefer_tty=True)):
        keyboard = Keyboard(talk, history)
        if not talk.quiet:
            talk.tools.choose = keyboard.choose
        greet(talk)
        show_last_turn(talk, talk.new_view())
        converse(talk, keyboard, echo, debug)
    if talk.saved is not None and talk.saved.digest is not None:
        talk.note(f"saved; gptoss-mlx chat --resume {talk.saved.name} goes on")


def _edited(echo: Echo | None, text: str) -> str | None:
    """The text as $VISUAL or $EDITOR has left it; None if it was not saved. Raises MessageError."""
    if echo is None:
        raise MessageError("there is no terminal to edit on")
    try:
        with echo.as_found():
            return click.edit(text, extension=".md")
    except click.ClickException as error:
        raise MessageError(error.message) from error


if __name__ == "__main__":
    main()

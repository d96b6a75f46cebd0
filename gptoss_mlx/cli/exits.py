"""How a command ends: its exit code, at most one line on stderr, a clean terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, TypeAlias

import click

from gptoss_mlx.cli.terminal import harmless
from gptoss_mlx.errors import GptOssError
from gptoss_mlx.launch import INTERRUPTED, end_at_once

FAILED = 1
LONGEST_LINE = 300  # characters

Handler: TypeAlias = Callable[[int, FrameType | None], object]
"""Of a signal."""


class Command(click.Command):
    """A command that ends as `exit_codes` says, also while its arguments are parsed."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with exit_codes():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with exit_codes(ctx.params.get("debug", False)):
            return super().invoke(ctx)


@contextmanager
def exit_codes(debug: bool = False) -> Iterator[None]:
    """Exit with 1 and one line for an error, with 2 for usage, with 130 for Ctrl-C, with 0 for a
    reader that left.

    debug: the traceback comes before the line.
    """
    try:
        with _on_ctrl_c(_interrupt()):
            try:
                yield
            except click.exceptions.Exit:  # as --help ends
                _flush_stdout()
                raise
            _flush_stdout()
            _forget_output_nobody_takes()
    except click.exceptions.Exit:
        raise
    except click.ClickException as error:
        # click puts the option's name before it.
        vars(error)["message"] = _shortened(harmless(error.message), LONGEST_LINE - 60)
        with contextlib.suppress(OSError):
            error.show()
        _forget_output_nobody_takes()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _leave_the_line()
        _forget_output_nobody_takes()
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _forget_output_nobody_takes()
        sys.exit(0)
    except Exception as error:
        _forget_output_nobody_takes()
        report(error, debug)
        sys.exit(FAILED)


@contextmanager
def interruptible(last: Handler = end_at_once) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed, instead of KeyboardInterrupt.

    A second Ctrl-C raises KeyboardInterrupt. last: handles a third.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, _interrupt(last))

    with _on_ctrl_c(press):
        yield lambda: pressed


@contextmanager
def interrupted_anew(last: Handler) -> Iterator[None]:
    """KeyboardInterrupt at Ctrl-C, whatever was pressed before; `last` handles a second one."""
    with _on_ctrl_c(_interrupt(last)):
        yield


def _interrupt(last: Handler = end_at_once) -> Handler:
    """A handler that raises KeyboardInterrupt once: another Ctrl-C while that unwinds ends the
    process at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, last)
        raise KeyboardInterrupt

    return interrupt


@contextmanager
def _on_ctrl_c(handler: Handler) -> Iterator[None]:
    """Handle Ctrl-C in the block, unless it is ignored, as a shell does for a background job."""
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set handlers.
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def report(error: Exception, debug: bool) -> None:
    """Show an error on stderr in one line."""
    if debug:
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exc()
    line = str(error)
    if isinstance(error, OSError) and error.strerror:
        line = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif not isinstance(error, GptOssError):
        line = f"unexpected {type(error).__name__}: {line}"
        line += "" if debug else " (--debug shows where)"
    with contextlib.suppress(OSError):
        click.echo(_shortened(f"error: {harmless(' '.join(line.split()))}"), err=True)


def _shortened(text: str, limit: int = LONGEST_LINE) -> str:
    """A line that a person can read: click and libraries quote a value whole, however long."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _leave_the_line() -> None:
    """End the line in which the terminal has shown ^C."""
    if sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(OSError):
            click.echo(err=True)


def _flush_stdout() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _forget_output_nobody_takes() -> None:
    """Redirect streams that cannot be flushed to /dev/null.

    Otherwise the interpreter fails on them once more when it exits, with a code of its own.
    """
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _streams() -> list[TextIO]:
    """stdout and stderr, without those that were closed before the process began (None)."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]

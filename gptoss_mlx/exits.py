"""How a command ends: its exit code, at most one line on stderr, a clean terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

import click

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.terminal import harmless

FAILED = 1
INTERRUPTED = 130


@contextmanager
def exit_codes(debug: bool) -> Iterator[None]:
    """Exit with 1 and one line for an error, with 130 for Ctrl-C, with 0 for a reader that left.

    Usage errors go on to click, which exits with 2. debug: the traceback comes before the line.
    """
    try:
        yield
        _flush()
    except click.ClickException:
        raise
    except KeyboardInterrupt:
        _leave_the_line()
        _forget_output_nobody_takes()
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _forget_output_nobody_takes()
        sys.exit(0)
    except Exception as error:
        _forget_output_nobody_takes()
        _report(error, debug)
        sys.exit(FAILED)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed, instead of KeyboardInterrupt; the second one is as ever."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.getsignal(signal.SIGINT)
    ignored = before == signal.SIG_IGN  # as a shell does for a job in the background
    if not ignored:
        signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        if not ignored:
            signal.signal(signal.SIGINT, before)


def _report(error: Exception, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    line = str(error)
    if isinstance(error, OSError) and error.strerror:
        line = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif not isinstance(error, GptOssError):
        line = f"unexpected {type(error).__name__}: {line}"
        line += "" if debug else " (--debug shows where)"
    with contextlib.suppress(OSError):
        click.echo(f"error: {harmless(' '.join(line.split()))}", err=True)


def _leave_the_line() -> None:
    """The terminal has shown ^C there."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(err=True)


def _flush() -> None:
    for stream in _streams():
        stream.flush()


def _forget_output_nobody_takes() -> None:
    """Otherwise the interpreter fails once more on it when it exits, with a code of its own."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _streams() -> list[TextIO]:
    """None stands for a stream that was closed before we began."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]

"""The dialogue: messages come in, from the keyboard or line by line, and answers go out."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptoss_mlx.cli.chat.commands import begins_command, run_command
from gptoss_mlx.cli.chat.conversation import Talk
from gptoss_mlx.cli.chat.transcript import plain_text
from gptoss_mlx.cli.chat.view import View, counted
from gptoss_mlx.cli.exits import interrupted_anew, report
from gptoss_mlx.cli.terminal import harmless
from gptoss_mlx.engine.events import TokenEvent
from gptoss_mlx.errors import ClosedError, MessageError

if TYPE_CHECKING:
    from gptoss_mlx.cli.chat.echo import Echo
    from gptoss_mlx.cli.chat.keyboard import Keyboard

LINE_LIMIT = 16 << 20
"""Bytes of a message that comes through a pipe."""


def take(talk: Talk, text: str) -> None:
    """Obey a command or send a message; of two slashes at its beginning one is taken away."""
    if begins_command(text):
        run_command(talk, text)
    else:
        talk.ask(text[1:] if text.startswith("//") else text)


def converse(talk: Talk, keyboard: Keyboard, echo: Echo, debug: bool) -> None:
    """Until the person leaves. An error ends a turn, and not the conversation."""
    while not talk.ended:
        draft, talk.draft = talk.draft, ""
        text = keyboard.read(draft)
        if text is None:
            break
        try:
            with interrupted_anew(echo.end_at_once), echo.off():
                take(talk, text)
        except (BrokenPipeError, ClosedError):
            raise
        except KeyboardInterrupt:
            talk.note("stopped")
        except Exception as error:  # of any kind: the next turn may succeed
            report(error, debug)
        talk.err.write("\n")


def take_lines(talk: Talk) -> None:
    """Until stdin ends. Empty lines are left out; an error ends it, and Ctrl-C."""
    for line in _lines():
        if not line.strip():
            continue
        take(talk, line)
        if talk.stopped:
            raise KeyboardInterrupt
        if talk.ended:
            return


def show_last_turn(talk: Talk, view: View) -> None:
    """What was said last, as a conversation goes on."""
    turns = talk.transcript.turns
    if not turns:
        return
    question, *rest = turns[-1]
    talk.err.write(f"> {harmless(plain_text(question))}\n", dim=True)
    for message in rest:
        if message["role"] == "assistant" and (text := plain_text(message)):
            view.show(TokenEvent(None, text, "final"))
            view.close()
    talk.err.write("\n")


def greet(talk: Talk) -> None:
    name = talk.engine.name
    talk.note(f"{name}, a context of {counted(talk.engine.context, 'token')}; /help lists commands")
    if talk.tools:
        rules = talk.tools.rules.items()
        named = [name if rule == "allow" else f"{name} ({rule})" for name, rule in rules]
        talk.note(f"tools: {', '.join(named)}")


def _lines() -> Iterator[str]:
    if sys.stdin is None:
        return
    stream, number = sys.stdin.buffer, 0
    while data := stream.readline(LINE_LIMIT + 1):
        number += 1
        if len(data) > LINE_LIMIT:
            raise MessageError(
                f"stdin: line {number} has more than {LINE_LIMIT} bytes, the limit for a message"
            )
        try:
            text = data.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8")
        except UnicodeDecodeError as error:
            raise MessageError(f"stdin: line {number} is not UTF-8 text") from error
        yield text.removesuffix("\n").removesuffix("\r")

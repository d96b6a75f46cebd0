"""The keyboard: messages of one or many lines, edited with prompt_toolkit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app_session
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, completion_is_selected, has_completions
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import DummyHistory, History
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style

from gptoss_mlx.cli.chat.commands import COMMANDS
from gptoss_mlx.cli.chat.conversation import Talk

AGAIN = 1.0
"""Seconds within which a second Ctrl-C ends the program."""

_LOOKS = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack", "mark": "bold"})
_PATHS = ("file", "export")
_INTERRUPT = "\x03"


class Keyboard:
    """Reads messages from a terminal.

    clock: seconds. Input and output are those of prompt_toolkit's current session.
    """

    def __init__(
        self, talk: Talk, history: History, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._talk, self._clock = talk, clock
        self._pressed = -AGAIN
        self._completer = _Completer(talk)
        self._session: PromptSession[str] = PromptSession(
            message=[("class:mark", "> ")],
            prompt_continuation="  ",
            multiline=True,
            history=history,
            key_bindings=self._keys(),
            completer=self._completer,
            complete_while_typing=Condition(self._begins_command),
            bottom_toolbar=self._toolbar,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            style=_LOOKS,
        )

    def read(self, draft: str = "") -> str | None:
        """A message; None if the person wants to leave. draft: what it begins with."""
        self._pressed = -AGAIN
        try:
            text = self._session.prompt(default=draft)
        except EOFError:
            return None
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")

    def choose(self, question: str, keys: str) -> str:
        """The one of these keys that is pressed; "" where the terminal is closed, or at Ctrl-C,
        which then stops the answer too.

        What was typed before the question could be read does not answer it, and goes to the next
        prompt.
        """
        input = get_app_session().input
        typed = get_typeahead(input)
        while pressed := [*input.read_keys(), *input.flush_keys()]:
            typed += pressed
        asked: PromptSession[str] = PromptSession(
            question, history=DummyHistory(), key_bindings=_choices(keys), style=_LOOKS
        )
        key = ""
        with suppress(EOFError):
            key = asked.prompt()
        store_typeahead(input, [*typed, *get_typeahead(input)])
        if key == _INTERRUPT:
            signal.raise_signal(signal.SIGINT)
            return ""
        return key

    def _begins_command(self) -> bool:
        return self._session.default_buffer.text.startswith("/")

    def _toolbar(self) -> AnyFormattedText:
        if self._clock() - self._pressed < AGAIN:
            return "Ctrl-C again ends, Ctrl-D too"
        return self._talk.status()

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter", filter=~completion_is_selected)
        def send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            elif buffer.text.strip():
                buffer.validate_and_handle()

        @keys.add("enter", filter=completion_is_selected)
        def take_completion(event: KeyPressEvent) -> None:
            event.current_buffer.complete_state = None

        @keys.add("tab", filter=~has_completions)
        def complete(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            found = list(self._completer.get_completions(buffer.document, CompleteEvent()))
            if len(found) == 1:
                buffer.apply_completion(found[0])
            else:
                buffer.start_completion(insert_common_part=True)

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        @keys.add("<sigint>")
        def clear(event: KeyPressEvent) -> None:
            now = self._clock()
            if now - self._pressed < AGAIN:
                event.app.exit(exception=EOFError)
            self._pressed = now
            event.current_buffer.reset()

        return keys


def _choices(keys: str) -> KeyBindings:
    """Bindings that end a prompt with one of these keys, or with Ctrl-C; no other does anything."""
    bindings = KeyBindings()

    @bindings.add("enter")
    @bindings.add("c-j")
    @bindings.add(Keys.BracketedPaste)
    @bindings.add(Keys.Any)
    def ignore(event: KeyPressEvent) -> None:
        pass

    for key in keys:

        @bindings.add(key)
        def choose(event: KeyPressEvent, key: str = key) -> None:
            event.current_buffer.text = key  # so that it stays to be seen
            event.app.exit(result=key)

    @bindings.add("c-c")
    @bindings.add("<sigint>")
    def interrupt(event: KeyPressEvent) -> None:
        event.app.exit(result=_INTERRUPT)

    return bindings


class _Completer(Completer):
    """Completes commands, and what may follow them."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for known, command in COMMANDS.items():
                if known.startswith(name):
                    yield Completion(known, -len(name), display_meta=command.help)
        elif name in _PATHS:
            inner = Document(argument, len(argument))
            yield from self._paths.get_completions(inner, complete_event)
        elif name in COMMANDS:
            for word in COMMANDS[name].words(self._talk):
                if word.startswith(argument):
                    yield Completion(word, -len(argument))

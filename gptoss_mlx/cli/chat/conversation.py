"""A conversation under way: the engine, the transcript, and where it is saved.

A turn either happened, also where it was stopped, and is in the transcript and saved; or it failed,
and everything is as before, with the message given back as a draft.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_mlx.cli.asked_guard import described
from gptoss_mlx.cli.chat.archive import Archive, Saved
from gptoss_mlx.cli.chat.chat_tools import ChatTools
from gptoss_mlx.cli.chat.transcript import Said, Transcript, plain_text
from gptoss_mlx.cli.chat.view import View, counted
from gptoss_mlx.cli.exits import Handler, interruptible
from gptoss_mlx.cli.terminal import Bar, Output, harmless
from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, Timings, TokenEvent
from gptoss_mlx.engine.result import collect
from gptoss_mlx.errors import ContextError, SessionError
from gptoss_mlx.harmony.messages import read_messages
from gptoss_mlx.harmony.render import drop_reasoning, render, render_turns
from gptoss_mlx.launch import end_at_once
from gptoss_mlx.tools.events import AgentEvent, CallEvent, HeldEvent, OutcomeEvent
from gptoss_mlx.tools.guard.verdict import GuardEvent

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine

_LIMITS = {
    "max_tokens": "max_tokens was reached",
    "context": "the context is full; /trim drops the oldest turns, /new begins again",
    "max_time": "max_time was reached",
    "repetition": "it repeats itself",
}
"""`FinishEvent.limit` -> why an answer ended early, in words."""


class Talk:
    """A conversation with an engine.

    archive: where it is saved, after each turn if `saves`. saved: under which name. new_view: makes
    what shows one answer. out: where answers go; err: where everything else goes. draft: what the
    next prompt begins with. ended: whether the person has asked to leave. third: handles a third
    Ctrl-C in one answer. edit: gives a text as a person has changed it, None for unchanged. tools:
    those that the model calls; by default none.
    """

    def __init__(
        self,
        engine: Engine,
        transcript: Transcript,
        *,
        new_view: Callable[[], View],
        out: Output,
        err: Output,
        archive: Archive,
        saved: Saved | None = None,
        saves: bool = True,
        quiet: bool = False,
        bar_after: float = 1.0,
        third: Handler = end_at_once,
        edit: Callable[[str], str | None] = lambda text: None,
        tools: ChatTools | None = None,
    ) -> None:
        self.engine, self.transcript, self.archive, self.saved = engine, transcript, archive, saved
        self.out, self.err, self.saves = out, err, saves
        self.new_view, self.quiet, self._bar_after = new_view, quiet, bar_after
        self.third, self.edit = third, edit
        self.tools = ChatTools(engine) if tools is None else tools
        self.tools.begin(transcript.messages)
        self.draft, self.ended = "", False
        self.attached: list[tuple[str, str]] = []
        self.finish: FinishEvent | None = None
        self.stopped = False
        self._counted: tuple[Transcript | None, dict[str, int]] = (None, {})

    def say(self, text: str) -> None:
        """Something for the person that is no answer."""
        self.err.write(harmless(text) + "\n")

    def note(self, text: str) -> None:
        """As `say`, but not where it is to be quiet."""
        if not self.quiet:
            self.err.write(f"note: {harmless(text)}\n")

    def ask(self, text: str) -> None:
        """Send a message, with the files that were added to it, and show the answer."""
        before, attached = self.transcript, self.attached
        self.transcript = before.with_message("\n\n".join([*(body for _, body in attached), text]))
        self.attached = []
        try:
            happened = self._reply()
        except BaseException:
            self.transcript, self.attached, self.draft = before, attached, text
            raise
        if not happened:
            self.transcript, self.attached, self.draft = before, attached, text

    def ask_again(self, text: str | None = None) -> None:
        """Answer the last message anew, or another text in its place."""
        before = self.transcript
        self.transcript = before.without_last_turn().with_message(
            before.last_message or "" if text is None else text
        )
        try:
            happened = self._reply()
        except BaseException:
            self.transcript = before
            raise
        if not happened:
            self.transcript = before

    def change(self, transcript: Transcript) -> None:
        """Go on from another state of this conversation, and save it if it was saved before."""
        self.transcript = transcript
        if self.saved is not None and self.saved.digest is not None:
            self.save()

    def begin(self, transcript: Transcript, saved: Saved | None = None) -> None:
        """Go on with another conversation, by fresh tools."""
        self.tools.begin(transcript.messages)
        self.transcript, self.saved, self.finish, self.attached = transcript, saved, None, []

    def save(self) -> None:
        """Save the conversation, if it is to be. What goes wrong is said, however quiet it is."""
        if not self.saves:
            return
        try:
            if self.saved is None:
                turns = self.transcript.turns
                first = plain_text(turns[0][0]) if turns else ""
                self.saved = Saved(self.archive.new_name(first, datetime.date.today()))
            before, self.saved = self.saved, self.archive.write(self.saved, self.transcript)
        except SessionError as error:
            self.say(f"note: not saved: {error}")
            return
        if before.name != self.saved.name and before.digest is not None:
            name = self.saved.name
            self.say(f"note: another program has changed {before.name}: this goes on as {name}")

    @property
    def used(self) -> int:
        """Tokens of the context that the conversation takes."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """What takes the context: its part -> tokens."""
        transcript, parts = self._counted
        if transcript is not self.transcript:
            parts = _parts(self.engine, self.transcript, self.tools.offers)
            self._counted = self.transcript, parts
        return parts

    def status(self) -> str:
        """A line about the conversation, for a toolbar."""
        used, most = self.used, self.engine.context
        shown = [f"context {used:,} of {most:,} ({100 * used / most:.0f} %)"]
        if self.finish is not None and self.finish.timings.decode_rate:
            shown.append(f"{self.finish.timings.decode_rate:.1f} tokens/s")
        if self.attached:
            shown.append(f"{counted(len(self.attached), 'file')} added")
        if self.saved is not None:
            shown.append(self.saved.name)
        return "  ·  ".join([harmless(Path(self.engine.name).name), *shown])

    def _reply(self) -> bool:
        """Stream the answer; False, if it was stopped before it began."""
        said, finish = self._stream()
        self.stopped = finish.reason == "cancelled"
        if self.stopped and said and _is_nothing(said[-1]):
            said.pop()
        if not said:
            if self.stopped:
                self.note("stopped")
            return False
        self.finish = finish
        messages = (*self.transcript.messages, *said)
        self.transcript = replace(self.transcript, messages=messages, model=self.engine.name)
        if self.stopped:
            self.note("stopped")
        elif finish.reason == "length":
            limit = _LIMITS[finish.limit or "max_tokens"]
            self.note(f"cut off after {counted(finish.completion_tokens, 'token')}: {limit}")
        self.save()
        return True

    def _stream(self) -> tuple[list[Said], FinishEvent]:
        """The messages of the answer, with calls and what they gave, and the last event.

        Ctrl-C ends a call and the stream with what there is, pressed again at once.
        """
        *before, asked = self.transcript.messages
        events: list[Event] = []  # of the turn under way
        begun = len(before) + 1  # messages before it
        finish: FinishEvent | None = None
        with interruptible(self.third) as pressed:

            def cancel() -> bool:
                return pressed() or self.out.deserted()

            agent = self.tools.agent(before, {**self.transcript.asked(), "cancel": cancel})
            try:
                with closing(self._shown(agent.run([asked]))) as stream:
                    for event in stream:
                        if isinstance(event, TokenEvent):
                            events.append(event)
                        elif isinstance(event, FinishEvent):
                            finish = event
                        elif isinstance(event, OutcomeEvent):
                            events, begun = [], len(agent.messages)
            except KeyboardInterrupt:
                finish = FinishEvent("cancelled", 0, len(events), 0, Timings())
                if len(agent.messages) == begun:
                    agent.messages.append(_cut_off([*events, finish]))
            except ContextError as error:
                hint = "/trim drops the oldest turns, /new begins again"
                raise ContextError(f"{error}; {hint}") from error
        if self.out.deserted():
            raise BrokenPipeError
        if finish is None:
            raise RuntimeError("the engine's stream ended without a FinishEvent")
        return agent.messages[len(before) + 1 :], finish

    def _shown(
        self, stream: Generator[AgentEvent, None, None]
    ) -> Generator[AgentEvent, None, None]:
        """The events of an answer, each shown as it comes. The files that calls made are named at
        the end, however it comes."""
        files: list[tuple[str, Path]] = []  # with the call that wrote it
        shown = self.err.terminal and not self.quiet
        try:
            with (
                closing(stream),
                closing(self.new_view()) as view,
                Bar("Reading", "tokens", shown=shown, after=self._bar_after) as reading,
                closing(Bar("Writing", "tokens", shown=shown, after=self._bar_after)) as writing,
            ):
                for event in stream:
                    if isinstance(event, PrefillEvent):
                        reading.open()
                        reading.update(event.done, event.total)
                        continue
                    reading.close()
                    if isinstance(event, HeldEvent):
                        writing.open()
                        writing.update(event.tokens, None)
                        continue
                    writing.close()
                    if isinstance(event, TokenEvent):
                        view.show(event)
                    elif isinstance(event, CallEvent):
                        view.close()
                    elif isinstance(event, OutcomeEvent):
                        view.tell(event.outcome)
                        files += [(event.call.name, file) for file in event.outcome.files]
                    elif isinstance(event, GuardEvent) and event.label != "pass":
                        self.note(described(event))
                    yield event
        finally:
            for name, file in files:
                self.note(f"{name} wrote {file}")


def _cut_off(events: Sequence[Event]) -> Said:
    """The message that was being written, without calls."""
    message = collect(events).message
    message.pop("tool_calls", None)
    return message


def _is_nothing(message: Said) -> bool:
    """Whether an assistant's message says nothing."""
    empty = message.get("content") in (None, "")
    return message["role"] == "assistant" and empty and not message.get("reasoning")


def _parts(
    engine: Engine, transcript: Transcript, offers: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    encoding = engine.tokenizer.harmony
    assert encoding is not None  # checked before the conversation begins
    system, effort = transcript.system, transcript.reasoning or "medium"
    _, turns = read_messages(transcript.messages, system)
    kept = drop_reasoning(turns, open=True)
    head = len(render(encoding, (), system=system, reasoning=effort, tools=offers))
    asked = render_turns(encoding, [turn for turn in kept if turn.role == "user"])
    rest = render_turns(encoding, [turn for turn in kept if turn.role != "user"])
    return {"instructions": head, "your messages": len(asked), "answers": len(rest)}

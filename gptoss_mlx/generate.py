"""The command that asks gpt-oss once: `python -m gptoss_mlx.generate [PROMPT]`.

It opens the model, streams the answer to stdout and everything else to stderr. Nothing heavy is
imported before the arguments have been validated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from gptoss_mlx.cli.asked_guard import AskedGuard, described, guard_options, take_guard
from gptoss_mlx.cli.asked_tools import AskedTools, take_tools, tool_options
from gptoss_mlx.cli.exits import Command, interruptible
from gptoss_mlx.cli.opening import open_with_bar, take_settings
from gptoss_mlx.cli.options import (
    CACHE,
    CONTEXT_SETTINGS,
    MODEL_HELP,
    backend_options,
    loading_options,
    model_option,
)
from gptoss_mlx.cli.question import Question, question_options, read_question
from gptoss_mlx.cli.terminal import Bar, Output, Printer, harmless
from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent, TokenEvent
from gptoss_mlx.tools.events import CallEvent, HeldEvent, OutcomeEvent
from gptoss_mlx.tools.guard.verdict import GuardEvent

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine
    from gptoss_mlx.tools.events import AgentEvent

BAR_AFTER = 1.0  # seconds; shorter work shows no bar

_LIMITS = {
    "max_tokens": "--max-tokens was reached",
    "context": "the context is full (--context)",
    "max_time": "--max-time was reached",
    "repetition": "it repeats itself",
}
"""`FinishEvent.limit` -> why an answer ended early, in words."""


@click.command(cls=Command, context_settings=CONTEXT_SETTINGS, epilog=CACHE)
@question_options
@tool_options
@guard_options
@model_option(MODEL_HELP)
@backend_options
@loading_options
@click.option("--show-reasoning", is_flag=True, help="Write the reasoning to stdout as well.")
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object to stdout, at the end."
)
@click.option("--stats", is_flag=True, help="Show token counts, times and memory on stderr.")
@click.option("--quiet", is_flag=True, help="Only the answer: no reasoning, bars or notes.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(
    model: str,
    show_reasoning: bool,
    as_json: bool,
    stats: bool,
    quiet: bool,
    debug: bool,
    **asked: Any,
) -> None:
    """Answer PROMPT with gpt-oss.

    What comes through a pipe or from a file follows PROMPT after a blank line, or stands in its
    place; "-" is stdin. The answer goes to stdout. Reasoning and bars go to stderr, where that is
    a terminal, and notes go there wherever it is.
    """
    settings = take_settings(asked)
    box, asked_guard = take_tools(asked), take_guard(asked)
    if "cache_dir" not in settings and not asked_guard:  # there is no prompt but one
        settings.setdefault("cache", 0)
    question = read_question(**asked)
    _check(question, box, asked_guard, as_json=as_json, quiet=quiet)
    out, err = Output(sys.stdout), Output(sys.stderr, optional=True)
    note = _Notes(err, quiet)
    on_terminal = err.terminal and not quiet
    reasoning = out if show_reasoning else err if on_terminal else None
    printer = Printer(None, None) if as_json else Printer(out, reasoning, runs=bool(box))
    # An answer that is not written to the terminal is counted there, so that progress is seen.
    followed = on_terminal and (as_json or not out.terminal or bool(asked_guard))

    with ExitStack() as stack:
        opened = stack.enter_context(box.open(bar_shown=on_terminal, after=BAR_AFTER, note=note))
        start = time.perf_counter()
        engine = open_with_bar(model, settings, bar_shown=on_terminal, after=BAR_AFTER)
        load_time = time.perf_counter() - start
        note.all(engine.notes)
        guard = stack.enter_context(
            asked_guard.open(engine, settings, bar_shown=on_terminal, after=BAR_AFTER)
        )

        def run(cancel: Callable[[], bool]) -> Iterator[AgentEvent]:
            options = {**question.options, "cancel": cancel}
            return box.run(engine, opened, question.prompt, options, guard)

        most = question.options.get("max_tokens")
        answer = _answer(run, printer, out, on_terminal, followed, most)
    finish = answer.finish
    if as_json:
        from gptoss_mlx.cli.report import as_object

        tokenizer = engine.tokenizer if "logprobs" in question.options else None
        ran = answer.outcomes if box else None
        judged = answer.judged if asked_guard else None
        out.write(as_object(model, answer.events, load_time, tokenizer, ran, judged) + "\n")
    _tell(note, answer)
    if stats:
        _tell_stats(err, finish, load_time, engine)
    engine.close()  # what is to last is on the disk then
    note.all(engine.notes)
    if finish.reason == "cancelled":
        raise KeyboardInterrupt


def _tell_stats(err: Output, finish: FinishEvent, load_time: float, engine: Engine) -> None:
    from gptoss_mlx.cli.report import table

    err.write(table(finish, load_time, engine.plan, engine.stats()))


def _tell(note: _Notes, answer: _Answer) -> None:
    """What a person is to know of an answer besides its text."""
    note.all(described(event) for event in answer.judged if event.label != "pass")
    for each in answer.outcomes:
        note.all(f"{each.call.name} wrote {file}" for file in each.outcome.files)
    if answer.finish.reason == "length":
        limit = _LIMITS[answer.finish.limit or "max_tokens"]
        note(f"cut off after {answer.finish.completion_tokens} tokens: {limit}")


def _check(
    question: Question, box: AskedTools, guard: AskedGuard, *, as_json: bool, quiet: bool
) -> None:
    """Raises click.UsageError for options that exclude each other."""
    if "logprobs" in question.options and not as_json:
        raise click.UsageError("log-probabilities are shown in --json only")
    if box and ("raw" in question.options or "tools" in question.options):
        raise click.UsageError(
            "--tool runs tools itself, as --mcp does, beside neither --raw nor --tools"
        )
    if guard and ("raw" in question.options or "tools" in question.options):
        raise click.UsageError("--guard judges messages, beside neither --raw nor --tools")
    if box.asks and (as_json or quiet):
        raise click.UsageError("=ask shows calls, beside neither --json nor --quiet")


class _Notes:
    """Notes on stderr, each of them once. quiet: none."""

    def __init__(self, err: Output, quiet: bool) -> None:
        self._err, self._quiet, self._told = err, quiet, set[str]()

    def __call__(self, text: str) -> None:
        if not self._quiet and text not in self._told:
            self._told.add(text)
            self._err.write(f"note: {harmless(text)}\n")

    def all(self, texts: Iterable[str]) -> None:
        for text in texts:
            self(text)


@dataclass
class _Answer:
    """The events of the last turn, of which the last is `finish`; what calls gave, and what a guard
    has found."""

    events: list[Event] = field(default_factory=list)
    outcomes: list[OutcomeEvent] = field(default_factory=list)
    judged: list[GuardEvent] = field(default_factory=list)

    @property
    def finish(self) -> FinishEvent:
        if not (self.events and isinstance(self.events[-1], FinishEvent)):
            raise RuntimeError("the engine's stream ended without a FinishEvent")
        return self.events[-1]

    def take(self, event: AgentEvent) -> None:
        if isinstance(event, CallEvent):
            self.events.clear()
        elif isinstance(event, OutcomeEvent):
            self.outcomes.append(event)
        elif isinstance(event, GuardEvent):
            self.judged.append(event)
        elif isinstance(event, TokenEvent | FinishEvent):
            self.events.append(event)


def _answer(
    run: Callable[[Callable[[], bool]], Iterator[AgentEvent]],
    printer: Printer,
    out: Output,
    bar_shown: bool,
    followed: bool,
    most: int | None,
) -> _Answer:
    """Stream the answer to the printer.

    Ctrl-C ends the stream early, with the tokens so far. run: takes the function that tells so.
    followed: whether a bar counts the tokens, up to `most`, because they are not written to the
    terminal. Raises BrokenPipeError as soon as the reader of stdout has left.
    """
    answer = _Answer()
    with (
        interruptible() as pressed,
        printer,
        Bar("Reading the prompt", "tokens", shown=bar_shown, after=BAR_AFTER) as reading,
        closing(Bar("Writing", "tokens", shown=followed, after=BAR_AFTER)) as writing,
    ):

        def cancel() -> bool:
            return pressed() or out.deserted()

        for event in run(cancel):
            if isinstance(event, PrefillEvent):
                reading.update(event.done, event.total)
                continue
            reading.close()
            answer.take(event)
            if isinstance(event, OutcomeEvent):
                printer.tell(event.outcome.text)
            elif isinstance(event, FinishEvent) and out.deserted():
                raise BrokenPipeError
            elif isinstance(event, HeldEvent):
                writing.open()
                writing.update(event.tokens, most)
            elif isinstance(event, TokenEvent):
                if printer.seen(event):
                    writing.close()
                else:
                    writing.open()
                    writing.update(len(answer.events), most)
                printer.show(event)
    return answer


if __name__ == "__main__":
    main()

"""The command that asks gpt-oss once: `python -m gptoss_mlx.generate [PROMPT]`.

It opens the model, streams the answer to stdout and everything else to stderr. Nothing heavy is
imported before the arguments have been validated.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

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
from gptoss_mlx.engine.events import Event, FinishEvent, PrefillEvent

if TYPE_CHECKING:
    from gptoss_mlx.engine.engine import Engine

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
    if "cache_dir" not in settings:  # one prompt has nothing in common with another
        settings.setdefault("cache", 0)
    question = read_question(**asked)
    if "logprobs" in question.options and not as_json:
        raise click.UsageError("log-probabilities are shown in --json only")
    out, err = Output(sys.stdout), Output(sys.stderr, optional=True)
    on_terminal = err.terminal and not quiet
    reasoning = out if show_reasoning else err if on_terminal else None
    printer = Printer(None, None) if as_json else Printer(out, reasoning)
    # An answer that is not written to the terminal is counted there, so that progress is seen.
    followed = on_terminal and (as_json or not out.terminal)

    start = time.perf_counter()
    engine = open_with_bar(model, settings, bar_shown=on_terminal, after=BAR_AFTER)
    load_time = time.perf_counter() - start
    told = () if quiet else engine.notes
    for note in told:
        err.write(f"note: {harmless(note)}\n")
    events, finish = _answer(engine, question, printer, out, on_terminal, followed)

    if as_json:
        from gptoss_mlx.cli.report import as_object

        tokenizer = engine.tokenizer if "logprobs" in question.options else None
        out.write(as_object(model, events, load_time, tokenizer) + "\n")
    if finish.reason == "length" and not quiet:
        limit = _LIMITS[finish.limit or "max_tokens"]
        err.write(f"note: cut off after {finish.completion_tokens} tokens: {limit}\n")
    if stats:
        from gptoss_mlx.cli.report import table

        err.write(table(finish, load_time, engine.plan, engine.stats()))
    engine.close()  # what is to last is on the disk then
    for note in () if quiet else engine.notes:
        if note not in told:
            err.write(f"note: {harmless(note)}\n")
    if finish.reason == "cancelled":
        raise KeyboardInterrupt


def _answer(
    engine: Engine,
    question: Question,
    printer: Printer,
    out: Output,
    bar_shown: bool,
    followed: bool,
) -> tuple[list[Event], FinishEvent]:
    """Stream the answer to the printer; returns the token events and the last event.

    Ctrl-C ends the stream early, with the tokens so far.
    followed: whether a bar counts the tokens, because they are not written to the terminal.
    Raises BrokenPipeError as soon as the reader of stdout has left.
    """
    events: list[Event] = []
    with (
        interruptible() as pressed,
        printer,
        Bar("Reading the prompt", "tokens", shown=bar_shown, after=BAR_AFTER) as reading,
        closing(Bar("Writing", "tokens", shown=followed, after=BAR_AFTER)) as writing,
    ):

        def cancel() -> bool:
            return pressed() or out.deserted()

        for event in engine.stream(question.prompt, cancel=cancel, **question.options):
            if isinstance(event, PrefillEvent):
                reading.update(event.done, event.total)
                continue
            reading.close()
            events.append(event)
            if isinstance(event, FinishEvent):
                if out.deserted():
                    raise BrokenPipeError
                return events, event
            if printer.seen(event):
                writing.close()
            else:
                writing.open()
                writing.update(len(events), question.options.get("max_tokens"))
            printer.show(event)
    raise RuntimeError("the engine's stream ended without a FinishEvent")


if __name__ == "__main__":
    main()

"""The command that asks gpt-oss once: `python -m gptoss_mlx.generate [PROMPT]`.

Opens the model, streams its answer to stdout and everything else to stderr. Nothing heavy is
imported before the request is known to be sound.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import gptoss_mlx
from gptoss_mlx.events import Event, FinishEvent, PrefillEvent
from gptoss_mlx.exits import exit_codes, interruptible
from gptoss_mlx.hub import DEFAULT_MODEL
from gptoss_mlx.options import BYTES, TOKENS, backend_options
from gptoss_mlx.question import Question, question_options, read_question
from gptoss_mlx.terminal import Bar, Pen, Printer, harmless

if TYPE_CHECKING:
    from gptoss_mlx.engine import Engine

BAR_AFTER = 1.0  # seconds; what is quicker needs no bar


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@question_options
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help='A folder, a Hugging Face id, or "tiny".',
)
@backend_options
@click.option("--memory", type=BYTES, help="Most memory to use, such as 10GiB.")
@click.option("--context", type=TOKENS, help="Most tokens, prompt and answer: 32k.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="Compute precision.")
@click.option("--embedding", type=click.Choice(["file", "resident"]), help="Where its table is.")
@click.option("--kv-bits", type=click.Choice(["8"]), help="Bits of keys and values, to save room.")
@click.option("--show-reasoning", is_flag=True, help="Write the reasoning to stdout as well.")
@click.option(
    "--json", "as_json", is_flag=True, help="Write one JSON object to stdout, at the end."
)
@click.option("--stats", is_flag=True, help="Show token counts and times on stderr.")
@click.option("--quiet", is_flag=True, help="Only the answer: no reasoning, bars or notes.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(
    model: str,
    backend: str | None,
    device: str | None,
    memory: int | None,
    context: int | None,
    dtype: str | None,
    embedding: str | None,
    kv_bits: str | None,
    show_reasoning: bool,
    as_json: bool,
    stats: bool,
    quiet: bool,
    debug: bool,
    **asked: Any,
) -> None:
    """Answer PROMPT (or what comes through a pipe; "-" reads stdin) with gpt-oss.

    The answer goes to stdout. Reasoning, bars and notes go to stderr, where that is a terminal.
    """
    with exit_codes(debug):
        question = read_question(**asked)
        if "logprobs" in question.options and not as_json:
            raise click.UsageError("log-probabilities are shown in --json only")
        out, err = Pen(sys.stdout), Pen(sys.stderr)
        on_terminal = err.terminal and not quiet
        reasoning = out if show_reasoning else err if on_terminal else None
        printer = Printer(None, None) if as_json else Printer(out, reasoning)

        start = time.perf_counter()
        settings = {
            "backend": backend,
            "device": device,
            "memory": memory,
            "context": context,
            "dtype": dtype,
            "embedding": embedding,
            "kv_bits": kv_bits and int(kv_bits),
        }
        engine = _open(model, on_terminal, {k: v for k, v in settings.items() if v is not None})
        load_time = time.perf_counter() - start
        for note in () if quiet else engine.notes:
            err.write(f"note: {harmless(note)}\n")
        events, finish = _answer(engine, question, printer, on_terminal)

        if as_json:
            from gptoss_mlx.report import as_object

            tokenizer = engine.tokenizer if "logprobs" in question.options else None
            out.write(as_object(model, events, load_time, tokenizer) + "\n")
        if finish.reason == "length" and not quiet:
            err.write(f"note: cut off at the limit, after {finish.completion_tokens} tokens\n")
        if stats:
            from gptoss_mlx.report import table

            err.write(table(finish, load_time, engine.plan, engine.stats()))
        if finish.reason == "cancelled":
            raise KeyboardInterrupt


def _open(model: str, bar_shown: bool, settings: dict[str, Any]) -> Engine:
    with Bar(
        f"Loading {Path(model).name or model}", "bytes", shown=bar_shown, after=BAR_AFTER
    ) as bar:
        return gptoss_mlx.load(model, progress=bar.update, **settings)


def _answer(
    engine: Engine, question: Question, printer: Printer, bar_shown: bool
) -> tuple[list[Event], FinishEvent]:
    """Print while the model speaks. Ctrl-C ends the stream early, with what it has."""
    events: list[Event] = []
    with (
        interruptible() as cancel,
        printer,
        Bar("Reading the prompt", "tokens", shown=bar_shown, after=BAR_AFTER) as bar,
    ):
        for event in engine.stream(question.prompt, cancel=cancel, **question.options):
            if isinstance(event, PrefillEvent):
                bar.update(event.done, event.total)
                continue
            bar.close()
            events.append(event)
            if isinstance(event, FinishEvent):
                return events, event
            printer.show(event)
    raise RuntimeError("the engine's stream ended without a FinishEvent")


if __name__ == "__main__":
    main()

"""Reports of a generation: one JSON object, or a short table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gptoss_mlx.engine.events import Event, FinishEvent, Timings
from gptoss_mlx.engine.result import collect
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.plan.memory import Plan, device_bytes
from gptoss_mlx.system.device import peak_bytes
from gptoss_mlx.system.units import show_bytes
from gptoss_mlx.tools.events import OutcomeEvent
from gptoss_mlx.tools.guard.verdict import GuardEvent


def as_object(
    model: str,
    events: Sequence[Event],
    load_time: float,
    tokenizer: Tokenizer | None,
    ran: Sequence[OutcomeEvent] | None = None,
    judged: Sequence[GuardEvent] | None = None,
) -> str:
    """A finished stream as JSON on one line; times are in seconds.

    tokenizer: gives the tokens' texts; without it there are no log-probabilities. ran: the calls
    that were run before, where there are tools. judged: what a guard has found, where there is one.
    """
    result = collect(events)
    value: dict[str, Any] = {
        "model": model,
        "text": result.text,
        "reasoning": result.reasoning,
        "preamble": result.preamble,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": call.arguments}
            for call in result.tool_calls
        ],
        "finish_reason": result.finish_reason,
        "limit": result.limit,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "total_tokens": result.prompt_tokens + result.completion_tokens,
            "reused_tokens": result.timings.reused_tokens,
        },
        "timings": _timings(result.timings, load_time),
        "seed": result.seed,
    }
    if ran is not None:
        value["ran"] = [_run(event) for event in ran]
    if judged is not None:
        value["guard"] = [asdict(event) for event in judged]
    if tokenizer is not None:
        value["logprobs"] = [
            _entry(token.id, token.logprob, tokenizer)
            | {"top": [_entry(id, logprob, tokenizer) for id, logprob in token.top_logprobs]}
            for token in result.tokens
            if token.id is not None
        ]
    return json.dumps(value, ensure_ascii=False)


def _run(event: OutcomeEvent) -> dict[str, Any]:
    return {
        "name": event.call.name,
        "arguments": event.call.arguments,
        "output": event.outcome.text,
        "failed": event.outcome.failed,
        "files": list(map(str, event.outcome.files)),
    }


def table(
    finish: FinishEvent, load_time: float | None, plan: Plan | None, stats: Mapping[str, float]
) -> str:
    """A few aligned lines for a person. load_time: left out if None. stats: the engine's."""
    t, read, written = finish.timings, finish.prompt_tokens, finish.completion_tokens
    rows = (
        *(() if load_time is None else (("load", load_time, ""),)),
        (
            "prompt",
            t.prefill,
            f"{read:7d} tokens {t.prefill_rate:8.1f}/s  {t.reused_tokens} reused",
        ),
        ("answer", t.decode, f"{written:7d} tokens {t.decode_rate:8.1f}/s"),
        ("first token", t.first_token, ""),
    )
    lines = [f"{name:12}{seconds:8.2f} s{rest}" for name, seconds, rest in rows]
    lines += [*_memory(plan, stats), *_experts(plan, stats)]
    return "\n".join([*lines, f"{'finish':12}{finish.reason}, seed {finish.seed}", ""])


def _memory(plan: Plan | None, stats: Mapping[str, float]) -> Iterator[str]:
    if plan is None:
        return
    context = f"{plan.rows} x {plan.context}" if plan.rows > 1 else plan.context
    held, process = compare(plan, stats)
    yield f"{'memory':12}{held}"
    if process is not None:
        yield f"{'':12}{process}"
    yield f"{'':12}context {context}, {plan.chunk} tokens of a prompt at a time"


def compare(plan: Plan, stats: Mapping[str, float]) -> tuple[str, str | None]:
    """Peak memory of the tensor library and of the process, each beside the plan, as text.

    On a card the process is left out (None): it holds only what is planned beside the card.
    """
    peak = int(stats["peak_bytes"])
    if plan.backend != "mlx" and not plan.gpu:  # its peak is that of the process
        return _against("the process", peak, plan.total), None
    library = "MLX" if plan.backend == "mlx" else "PyTorch"
    held = _against(library, peak, device_bytes(plan))
    whole = None if plan.backend == "torch" else _against("the process", peak_bytes(), plan.total)
    return held, whole


def _against(whose: str, peak: int, planned: int) -> str:
    off = 100 * (peak - planned) / planned
    return f"{show_bytes(peak)} at most in {whose}, {show_bytes(planned)} planned: {off:+.1f} %"


def _experts(plan: Plan | None, stats: Mapping[str, float]) -> Iterator[str]:
    """Statistics of expert streaming, over all streams so far."""
    if plan is None or plan.resident:
        return
    hits, misses = stats["hits"], stats["misses"]
    rate = 100 * hits / max(1, hits + misses)
    held = f"{'experts':12}{plan.slots} of {plan.experts} a layer in memory, hits {rate:.1f} %"
    read = f"{'':12}{show_bytes(int(stats['bytes_read']))} read, {stats['stall']:.2f} s waited for"
    if "guessed" in stats:  # PyTorch does not read ahead
        foreseen = 100 * stats["guessed_right"] / max(1, stats["guessed"])
        held += f", foreseen {foreseen:.1f} %"
        read += f", {int(stats['prefetch_used'])} of {int(stats['prefetched'])} early reads used"
    yield from (held, read)


def _timings(timings: Timings, load_time: float) -> dict[str, float]:
    return {
        "load": load_time,
        "prefill": timings.prefill,
        "first_token": timings.first_token,
        "decode": timings.decode,
        "prefill_tokens_per_second": timings.prefill_rate,
        "decode_tokens_per_second": timings.decode_rate,
    }


def _entry(id: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    decoder = tokenizer.decoder()
    return {"id": id, "text": decoder.push(id) + decoder.flush(), "logprob": logprob}

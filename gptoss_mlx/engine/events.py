"""The events of a stream.

A stream is any number of `PrefillEvent`s, then `TokenEvent`s, then one `FinishEvent`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
Limit = Literal["max_tokens", "context", "max_time", "repetition"]
Kind = Literal["content", "header"]


@dataclass(frozen=True)
class PrefillEvent:
    """Prefill progress in tokens: `done` of `total`, `reused` of them from an earlier KV cache."""

    done: int
    total: int
    reused: int


@dataclass(frozen=True)
class TokenEvent:
    """One generated token, or a further piece of its text.

    id: the token; None where text follows that belongs to an earlier token (a token that ends one
    message and begins another, or text held back for a stop string).
    text: its text; "" while a character or a possible stop string is incomplete.
    channel, recipient, content_type: of the Harmony message the text is in; None in raw mode. The
    texts of the channel "final" without a recipient, joined, are the answer.
    kind: "content", or "header" for a piece of Harmony's own markup, which stands in `markup` while
    `text` is empty.
    logprob: natural logarithm of its probability under the model itself, before any sampling
    option; top_logprobs: the same of the most probable tokens, as (id, logprob). Both only if asked
    for, and where finite.
    """

    id: int | None
    text: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    kind: Kind = "content"
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    markup: str = ""


@dataclass(frozen=True)
class Timings:
    """Seconds and tokens of one generation.

    prefill: reading the prompt; decode: from the end of the prompt to the last token;
    first_token: from the call to the first token.
    """

    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    prefill_tokens: int = 0
    reused_tokens: int = 0
    decode_tokens: int = 0

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens read a second; those reused do not count."""
        return self.prefill_tokens / self.prefill if self.prefill > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens generated a second."""
        return self.decode_tokens / self.decode if self.decode > 0 else 0.0


@dataclass(frozen=True)
class FinishEvent:
    """Why the stream ended, and what it took.

    seed: given again, it repeats the output. limit: the one that was reached, where the reason is
    "length". stopped_by: the stop string that ended the answer, if one did.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int
    timings: Timings
    limit: Limit | None = None
    stopped_by: str | None = None


Event = PrefillEvent | TokenEvent | FinishEvent

"""What the server allows: one frozen record, made from the command's options."""

from __future__ import annotations

from dataclasses import dataclass

MiB = 1 << 20


@dataclass(frozen=True)
class Policy:
    """keys: of which a caller must show one, if there are any. origins: of pages, beside our own,
    that may read answers (CORS). hosts: names in Host headers, beside this machine's own.

    max_queue: sequences that may wait beside those that run. keep_alive: seconds after which a
    model that nobody asks is unloaded; None for never. grace: seconds for what runs when the server
    ends. body_bytes: the most of a request's body. head_seconds: for the head of a request.
    body_seconds: the longest silence within a body. stall_seconds: how long a client may take
    nothing of its answer. beat_seconds: the longest silence of a stream. log_prompts: whether what
    is asked may be written to the log.
    """

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_queue: int = 64
    keep_alive: float | None = None
    grace: float = 10.0
    body_bytes: int = 32 * MiB
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    stall_seconds: float = 60.0
    beat_seconds: float = 5.0
    log_prompts: bool = False

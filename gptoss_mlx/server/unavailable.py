"""Problems with a model that does not answer now."""

from __future__ import annotations

from gptoss_mlx.server.problems import Problem


def loading(name: str, done: int, total: int) -> Problem:
    """done, total: bytes of its weights."""
    part = f", {100 * done // total} % so far" if total else ""
    return Problem(
        503, f"the model {name} is being loaded{part}", code="model_loading", retry_after=2
    )


def load_failed(name: str) -> Problem:
    """Without the reason, which may name files."""
    said = f"the model {name} cannot be loaded: the server's log says why"
    return Problem(503, said, code="model_failed", retry_after=30)


def dead(name: str) -> Problem:
    return Problem(503, f"the model {name} has ended by an error", code="model_failed")

"""The table of attempts. `python -m tests.tools.python.attempts` prints it for the docs."""

from __future__ import annotations

from tests.tools.python.attempts.attempt import PRELUDE, Attempt
from tests.tools.python.attempts.channel import CHANNEL
from tests.tools.python.attempts.files import FILES
from tests.tools.python.attempts.kernel import KERNEL
from tests.tools.python.attempts.network import NETWORK
from tests.tools.python.attempts.processes import PROCESSES
from tests.tools.python.attempts.resources import RESOURCES

__all__ = ["ATTEMPTS", "PRELUDE", "Attempt", "table"]

ATTEMPTS = (*NETWORK, *FILES, *PROCESSES, *KERNEL, *RESOURCES, *CHANNEL)


def table() -> str:
    """Of all attempts, in Markdown."""
    lines = ["| attempt | what holds it |", "|---|---|"]
    group = ""
    for attempt in ATTEMPTS:
        if attempt.group != group:
            group = attempt.group
            lines.append(f"| **{group}** | |")
        lines.append(f"| {attempt.name} | {attempt.held_by} |")
    return "\n".join(lines) + "\n"

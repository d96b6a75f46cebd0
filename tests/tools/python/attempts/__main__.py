"""Prints the table of attempts."""

from __future__ import annotations

from tests.tools.python.attempts import table

print(table(), end="")

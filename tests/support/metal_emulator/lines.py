"""Addresses in a compiled kernel to lines of its text."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from .text import Place, Text
from .toolchain import ADDR2LINE

NEARBY = 64
"""How many bytes before an instruction to look, where the optimizer left it without a line."""


def lines_of(compiled: Path, text: Text, offsets: list[int]) -> dict[int, Place]:
    """Where in the text each return address (an offset in the object) comes from.

    Of inlined functions the innermost that stands in the text counts. Unknown ones are left out.
    """
    if not offsets:
        return {}
    files = {place.file for place in text.places}
    found = {}
    for offset in offsets:
        # The call lies before its return address.
        tries = [offset - 1, *range(offset - 2, offset - NEARBY, -1)]
        frames = addr2line(compiled, tries)
        place = next((p for stack in frames for p in stack if p.file in files), None)
        if place:
            found[offset] = place
    return found


def addr2line(compiled: Path, addresses: list[int]) -> list[list[Place]]:
    """For each address the stack of inlined functions, innermost first."""
    command = [ADDR2LINE, "-a", "-i", "-e", str(compiled), *(hex(a) for a in addresses)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stacks: list[list[Place]] = []
    for row in said.splitlines():
        if row.startswith("0x"):
            stacks.append([])
        elif (found := re.match(r"(.*):(\d+)", row)) and int(found[2]):
            stacks[-1].append(Place(Path(found[1]).name, int(found[2])))
    return stacks

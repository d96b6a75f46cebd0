"""A kernel's text and its lines: which file and line, by its #line markers, each one is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MARKER = re.compile(r'\s*#\s*(?:line\s+)?(\d+)\s+"([^"]*)"')


@dataclass(frozen=True)
class Place:
    """A line (from 1) of a file as #line markers name it."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Text:
    """The text of a translation unit; its first line is line 1 of `file`."""

    body: str
    file: str

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where each line of the body comes from."""
        places = []
        file, line = self.file, 1
        for row in self.body.split("\n"):
            places.append(Place(file, line))
            line += 1
            if marker := MARKER.match(row):
                line, file = int(marker[1]), marker[2]
        return tuple(places)

    def place(self, offset: int) -> Place:
        """Where the character at `offset` comes from."""
        return self.places[self.body.count("\n", 0, offset)]

    @cached_property
    def _rows(self) -> dict[Place, str]:
        return dict(zip(self.places, self.body.split("\n"), strict=True))

    def row(self, place: Place) -> str:
        """The text of a line, without blanks around it; empty where unknown."""
        return self._rows.get(place, "").strip()


def flatten(body: str, file: str, folders: tuple[Path, ...], seen: set[Path]) -> Text:
    """`body` with every `#include "..."` found in `folders` in its place, each file once.

    Files in `seen` are left out; those included join them. Includes in angle brackets, and files
    not found, stay for the compiler.
    """

    def expand(body: str, file: str, here: tuple[Path, ...]) -> str:
        rows = []
        for number, row in enumerate(body.split("\n"), 1):
            name = re.match(r'\s*#\s*include\s+"([^"]+)"', row)
            found = name and next((p for f in here if (p := f / name[1]).is_file()), None)
            if not found:
                rows.append(row)
                continue
            path = found.resolve()
            if path not in seen:
                seen.add(path)
                rows.append(f'#line 1 "{path.name}"')
                rows.append(expand(path.read_text(), path.name, (path.parent, *folders)))
            rows.append(f'#line {number + 1} "{file}"')
        return "\n".join(rows)

    return Text(expand(body, file, folders), file)

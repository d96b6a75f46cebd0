"""The annotator: what an answer's text cites, found while the text comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptoss_mlx.server.openai.output_items import Annotation, ContainerFileCitation
from gptoss_mlx.tools.browser.citations import CitationReader

_PREFIXES = ("sandbox:/mnt/data/", "/mnt/data/")
"""How a model names a file of its folder."""


@dataclass(frozen=True)
class MadeFile:
    """A file that python made. name: its path in the container's folder."""

    container_id: str
    id: str
    name: str


@dataclass(frozen=True)
class Annotated:
    """A piece of a text, and the annotations that end in it."""

    text: str
    annotations: tuple[Annotation, ...] = ()


class Annotator:
    """Of one message. reader: of citation marks, if the browser has shown pages. files: those to be
    named at the end of the text."""

    def __init__(self, reader: CitationReader | None, files: Sequence[MadeFile] = ()) -> None:
        self._reader, self._files = reader, files
        self._texts = list[str]()

    def push(self, delta: str) -> Annotated:
        """The text that a delta settles; what may become a mark is held back."""
        if self._reader is None:
            return self._given(delta)
        cited = self._reader.push(delta)
        return self._given(cited.text, tuple(one.annotation for one in cited.citations))

    def end(self) -> Annotated:
        """What was held back, and the files."""
        rest = "" if self._reader is None else self._reader.flush().text
        found = self._given(rest)
        return Annotated(found.text, tuple(self._cited("".join(self._texts))))

    def _given(self, text: str, annotations: tuple[Annotation, ...] = ()) -> Annotated:
        self._texts.append(text)
        return Annotated(text, annotations)

    def _cited(self, text: str) -> Iterator[ContainerFileCitation]:
        for file in self._files:
            start, end = _place(text, file.name)
            yield {
                "type": "container_file_citation",
                "container_id": file.container_id,
                "file_id": file.id,
                "filename": file.name,
                "start_index": start,
                "end_index": end,
            }


def _place(text: str, name: str) -> tuple[int, int]:
    """Where a text first names a file; its beginning where it does not."""
    for prefix in _PREFIXES:
        if (start := text.find(prefix + name)) >= 0:
            return start, start + len(prefix) + len(name)
    return 0, 0

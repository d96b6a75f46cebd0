"""The text of a Word file (.docx): paragraphs, headings, lists and tables of its main part."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from xml.etree import ElementTree

from gptoss_mlx.tools.browser.documents.unreadable import UnreadableError
from gptoss_mlx.tools.browser.plain import plain

PART_LIMIT = 64 << 20
"""Bytes of a part once it is unpacked."""

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_HEADING = re.compile(r"[Hh]eading ?([1-6])")
_BROKEN = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, ValueError, RuntimeError)
"""What zipfile raises for a file that is broken, encrypted or packed in another way."""


def word_text(data: bytes) -> tuple[str, str]:
    """The title and the text of a Word file. Raises UnreadableError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            document = _part(archive, "word/document.xml")
            names = archive.namelist()
            core = _part(archive, "docProps/core.xml") if "docProps/core.xml" in names else None
    except _BROKEN as error:
        raise UnreadableError("not a Word file") from error
    title = core.findtext(_TITLE) if core is not None else None
    body = document.find(f"{_W}body")
    try:
        blocks = [] if body is None else [text for text in _blocks(body) if text]
    except RecursionError as error:
        raise UnreadableError("a Word file with parts too deep in one another") from error
    return plain(title or ""), "\n\n".join(blocks)


def _part(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    with archive.open(name) as file:
        content = file.read(PART_LIMIT + 1)
    if len(content) > PART_LIMIT:
        raise UnreadableError(f"a Word file whose {name} has more than {PART_LIMIT:,} bytes")
    if b"<!DOCTYPE" in content:  # Word writes none, and one can define entities that explode
        raise UnreadableError("a Word file with a document type")
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UnreadableError("a Word file that is broken") from error


def _blocks(body: ElementTree.Element) -> Iterator[str]:
    for block in body:
        if block.tag == f"{_W}p":
            yield _paragraph(block)
        elif block.tag == f"{_W}tbl":
            yield "\n".join(_row(row) for row in block.iter(f"{_W}tr"))
        elif block.tag in (f"{_W}sdt", f"{_W}sdtContent"):  # such as a table of contents
            yield from _blocks(block)


def _paragraph(paragraph: ElementTree.Element) -> str:
    text = plain("".join(_runs(paragraph))).strip()
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    name = "" if style is None else style.get(f"{_W}val", "")
    heading = _HEADING.fullmatch(name)
    if text and heading is not None:
        return f"{'#' * int(heading[1])} {text}"
    if text and name == "Title":
        return f"# {text}"
    if text and paragraph.find(f"{_W}pPr/{_W}numPr") is not None:
        return f"  * {text}"
    return text


def _runs(paragraph: ElementTree.Element) -> Iterator[str]:
    for part in paragraph.iter():
        if part.tag == f"{_W}t":
            yield part.text or ""
        elif part.tag == f"{_W}tab":
            yield "\t"
        elif part.tag in (f"{_W}br", f"{_W}cr"):
            yield "\n"


def _row(row: ElementTree.Element) -> str:
    cells = (
        " ".join(_paragraph(part) for part in cell.iter(f"{_W}p")) for cell in row.iter(f"{_W}tc")
    )
    return " | ".join(" ".join(cell.split()) for cell in cells)

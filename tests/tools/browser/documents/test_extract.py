"""Texts of files: by kind, with their titles, and of files that are broken or hostile."""

from __future__ import annotations

import contextlib
import io
import sys
import zipfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.documents.extract import Extracted, extract
from gptoss_mlx.tools.browser.documents.unreadable import (
    TEXT_LIMIT,
    OtherKindError,
    UnreadableError,
)
from gptoss_mlx.tools.browser.documents.word import PART_LIMIT

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def read(path: str, data: bytes | str) -> Extracted:
    content = data.encode() if isinstance(data, str) else data
    return extract(path, content, lambda href: (href, ""))


@pytest.mark.parametrize(
    ("path", "data", "title"),
    [
        ("a.md", "intro\n\n# The *Title* #\n", "The *Title*"),
        ("a.md", "```\n# not this\n```\n## This\n", "This"),
        ("a.md", "Title\n=====\ntext", "Title"),
        ("a.md", "no heading", ""),
        ("a.rst", ".. comment\n\nTitle\n*****\n", "Title"),
        ("a.rst", "=====\nTitle\n=====\n", "Title"),
        ("a.py", "# not a title\n", ""),
        ("a.html", "<title>T</title><p>x", "T"),
        ("a.json", '{"title": "x"}', ""),
    ],
)
def test_titles(path: str, data: str, title: str) -> None:
    assert read(path, data).title == title


def test_text_of_any_kind_is_read_and_nothing_else() -> None:
    for name in ("README", "notes.log", "data.csv", "main.rs", "page.1"):
        assert read(name, "a\tb\n").text == "a       b\n"
    for data in (b"\x89PNG\r\n\x1a\n\0\0", b"\x7fELF\0"):
        with pytest.raises(OtherKindError, match="not text"):
            read("a.txt", data)


def test_a_long_text_is_cut_off_and_says_so() -> None:
    text = read("a.txt", "x" * (TEXT_LIMIT + 5)).text
    assert text.endswith(f"\n\n[The text is cut off here, at {TEXT_LIMIT:,} characters.]")


def pdf(pages: Iterable[str], title: str = "") -> bytes:
    """A PDF of one line a page, written by hand."""
    lines = list(pages)
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(lines)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(lines)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, line in enumerate(lines):
        content = f"BT /F1 12 Tf 72 720 Td ({line}) Tj ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    objects.append(f"<< /Title ({title}) >>")
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n{trailer}\n"
    return data + f"{end}startxref\n{len(data)}\n%%EOF".encode()


def test_a_pdf_is_read_page_by_page() -> None:
    pytest.importorskip("pypdf")
    document = read("a.pdf", pdf(["First page", "", "Third page"], "A Title"))
    assert document.title == "A Title"
    assert document.text == "[Page 1]\nFirst page\n\n[Page 3]\nThird page"


@pytest.mark.parametrize("data", [b"%PDF-1.4 broken", b"", b"%PDF-1.4\n" + b"1 0 obj\n" * 100])
def test_a_broken_pdf_says_so(data: bytes) -> None:
    pytest.importorskip("pypdf")
    with pytest.raises(UnreadableError, match="not a PDF that can be read"):
        read("a.pdf", data)


def test_scanned_pages_have_no_text() -> None:
    pytest.importorskip("pypdf")
    with pytest.raises(UnreadableError, match="a PDF without text, such as scanned pages"):
        read("a.pdf", pdf(["", ""]))


def test_without_pypdf_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(UnreadableError, match=r"pip install 'gptoss-mlx\[documents\]'") as caught:
        read("a.pdf", pdf(["x"]))
    assert caught.value.can_change


@given(st.binary(max_size=200), st.integers(0, 900))
def test_a_damaged_pdf_never_breaks_the_tool(noise: bytes, at: int) -> None:
    pytest.importorskip("pypdf")
    data = pdf(["First page"])
    damaged = data[:at] + noise + data[at + len(noise) :]
    with contextlib.suppress(UnreadableError):
        read("a.pdf", damaged)


def docx(body: str, title: str = "", name: str = "word/document.xml") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>')
        if title:
            core = (
                f'<c xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></c>'
            )
            archive.writestr("docProps/core.xml", core)
    return packed.getvalue()


def paragraph(text: str, style: str = "", extra: str = "") -> str:
    named = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f"<w:p><w:pPr>{named}{extra}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_a_word_file() -> None:
    cell = f"<w:tc>{paragraph('c1')}</w:tc><w:tc>{paragraph('c2')}</w:tc>"
    body = paragraph("Report", "Title") + paragraph("Part", "Heading2") + paragraph("Text &lt;b>")
    body += paragraph("item", "", "<w:numPr/>") + f"<w:tbl><w:tr>{cell}</w:tr></w:tbl>"
    body += "<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r></w:p>"
    document = read("a.docx", docx(body, "The report"))
    assert document.title == "The report"
    assert document.text.split("\n\n") == [
        "# Report",
        "## Part",
        "Text <b>",
        "  * item",
        "c1 | c2",
        "a       b\nc",
    ]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"no zip", "not a Word file"),
        (docx("", name="other.xml"), "not a Word file"),
        (docx("<w:p>"), "broken"),
        (docx("")[:-10], "not a Word file"),
        (docx(" " * (PART_LIMIT + 1)), "more than 67,108,864 bytes"),
    ],
)
def test_a_word_file_that_cannot_be_read(data: bytes, why: str) -> None:
    with pytest.raises(UnreadableError, match=why):
        read("a.docx", data)


def test_a_word_file_defines_no_entities() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("word/document.xml", f"<?xml version='1.0'?>{BOMB}<x>&b;</x>")
    with pytest.raises(UnreadableError, match="document type"):
        read("a.docx", packed.getvalue())


def test_a_word_file_is_not_endlessly_deep() -> None:
    with pytest.raises(UnreadableError, match="too deep"):
        read("a.docx", docx("<w:sdt>" * 3000 + "</w:sdt>" * 3000))


ENDINGS = st.sampled_from(["a.docx", "a.html", "a.md", "a.rst", "a.txt", "README"])
WHOLE = docx(paragraph("Report", "Title") + paragraph("text"), "The report")


@given(ENDINGS, st.binary(max_size=120), st.integers(0, len(WHOLE)))
def test_any_bytes_are_read_or_refused(path: str, noise: bytes, at: int) -> None:
    for data in (noise, WHOLE[:at] + noise + WHOLE[at + len(noise) :], WHOLE[:at]):
        with contextlib.suppress(UnreadableError):
            read(path, data)

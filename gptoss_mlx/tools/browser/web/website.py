"""Web pages as the model reads them: fetched, decoded and cleaned by their media type."""

from __future__ import annotations

import re
from http import HTTPStatus

from gptoss_mlx.tools.browser.decode import declared_charset, decode, is_text
from gptoss_mlx.tools.browser.documents.extract import Extracted, extract_html
from gptoss_mlx.tools.browser.documents.pdf import pdf_text
from gptoss_mlx.tools.browser.documents.unreadable import UnreadableError
from gptoss_mlx.tools.browser.page import SOURCE, Page, document_page, domain
from gptoss_mlx.tools.browser.plain import plain
from gptoss_mlx.tools.browser.source import BrowsingError
from gptoss_mlx.tools.browser.web.client import Client, Response, joined_url

TEXT_LIMIT = 4 << 20
"""Bytes of a page that are read as text; a PDF may have more."""

_HTML = ("text/html", "application/xhtml+xml")
_TEXT = re.compile(r"text/.*|application/(?:.*\+)?(?:json|xml|javascript|yaml|x-ndjson|toml)")
_ACCEPT = "text/html,application/xhtml+xml,application/pdf;q=0.8,text/*;q=0.8,*/*;q=0.5"
_BASE = re.compile(r"""<base\s[^>]{0,200}?href\s*=\s*["']?([^"'\s>]{1,2000})""", re.IGNORECASE)
_HEAD = 65536  # characters in which a base is looked for
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?!\d)|//")


class WebPages:
    """The pages of the public web, as a `PageSource` has them."""

    is_remote = True

    def __init__(self, client: Client | None) -> None:
        self._client = client or Client()

    def fetch(self, url: str, as_source: bool = False) -> Page:
        return fetch_page(self._client, url, as_source)

    def close(self) -> None:
        """No connection stays open."""


def fetch_page(client: Client, url: str, as_source: bool) -> Page:
    """The page of a URL. as_source: its text as it came. Raises BrowsingError."""
    response = client.get(url if _SCHEME.match(url) else f"https://{url}", accept=_ACCEPT)
    if response.status >= 400:
        raise BrowsingError(f"The server answered {response.status} {_phrase(response.status)}.")
    if as_source:
        return document_page(SOURCE + response.url, "", _text(response))
    document = extracted(response)
    note = "\n\n[The page is cut off here.]"
    text = document.text + (note if _is_long(response) else "")
    return document_page(response.url, document.title, text, document.links)


def extracted(response: Response) -> Extracted:
    """The text and the links of what came. Raises BrowsingError."""
    if response.kind == "application/pdf" or response.body.startswith(b"%PDF-"):
        if response.cut_off:
            raise BrowsingError(f"The PDF has more than {len(response.body):,} bytes, the limit.")
        try:
            return Extracted(*pdf_text(response.body))
        except UnreadableError as error:
            raise BrowsingError(f"This is {error}.") from error
    is_html = response.kind in _HTML or (not response.kind and response.body.lstrip()[:1] == b"<")
    if is_html:
        source = decode(
            response.body[:TEXT_LIMIT], response.charset or declared_charset(response.body)
        )
        base = _BASE.search(source[:_HEAD])
        named = joined_url(response.url, base[1]) if base is not None else ""
        return extract_html(source, PageLinks(named if domain(named) else response.url))
    return Extracted("", _text(response))


def _text(response: Response) -> str:
    if (response.kind and not _TEXT.fullmatch(response.kind)) or not is_text(response.body[:8192]):
        kind = response.kind[:80] or "not text"
        raise BrowsingError(f"The page is {kind}. Only HTML, text and PDF can be read.")
    charset = response.charset or declared_charset(response.body)
    return plain(decode(response.body[:TEXT_LIMIT], charset))


def _is_long(response: Response) -> bool:
    is_pdf = response.body.startswith(b"%PDF-")
    return not is_pdf and (response.cut_off or len(response.body) > TEXT_LIMIT)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


class PageLinks:
    """Where a page's links lead, by its base."""

    def __init__(self, base: str) -> None:
        self._base, self._domain = base, domain(base)

    def __call__(self, href: str) -> tuple[str, str] | None:
        url = joined_url(self._base, href)
        place = domain(url)
        if not url.startswith(("http://", "https://")) or not place:
            return None
        return url, "" if place == self._domain else place

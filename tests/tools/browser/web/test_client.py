"""The client: only public addresses, those that were checked, within limits of everything."""

from __future__ import annotations

import gzip
import ssl
import time
import tracemalloc
import zlib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_mlx.tools.browser.source import BrowsingError
from gptoss_mlx.tools.browser.web.client import REDIRECTS_LIMIT, Client, checked_url
from tests.tools.browser.web.conftest import Site, plainly, redirecting

PRIVATE = "not on the public Internet"


def test_a_page_is_fetched(site: Site) -> None:
    site.answers["/a b"] = plainly(b"hello", "Text/HTML; Charset=UTF-8")
    site.answers["/a%20b"] = site.answers["/a b"]
    response = site.client().get(site.url("/a b?q=é#top"))
    assert (response.status, response.kind, response.charset) == (200, "text/html", "UTF-8")
    assert (response.body, response.cut_off) == (b"hello", False)
    assert site.asked == ["/a%20b?q=%C3%A9"]
    assert site.headers[0]["Host"] == f"public.test:{site.port}"
    assert "Cookie" not in site.headers[0]


def test_private_addresses_are_refused(site: Site) -> None:
    site.names["mixed.test"] = [["10.0.0.1", "127.0.0.1"]]
    site.names["mapped.test"] = [["::ffff:127.0.0.1", "::1"]]
    for host in ("private.test", "mapped.test"):
        with pytest.raises(BrowsingError, match=PRIVATE):
            site.client().get(site.url(host=host))
    assert site.asked == []
    assert site.client().get(site.url(host="mixed.test")).status == 404  # by its public address


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0", "0x7f.1", "2130706433", "127.1", "[::ffff:7f00:1]"],
)
def test_the_real_client_refuses_this_machine(site: Site, host: str) -> None:
    with pytest.raises(BrowsingError, match=f"{PRIVATE}|is not known"):
        Client().get(site.url(host=host))
    assert site.asked == []


def test_a_redirect_to_a_private_address_is_refused(site: Site) -> None:
    site.answers["/"] = redirecting(site.url("/secret", "private.test"))
    with pytest.raises(BrowsingError, match=PRIVATE):
        site.client().get(site.url())
    assert site.asked == ["/"]


def test_the_address_that_was_checked_is_the_one_connected_to(site: Site) -> None:
    """The name's server answers with a private address when it is asked again."""
    site.names["rebinding.test"] = [["127.0.0.1"], ["127.0.0.2"]]
    site.answers["/"] = plainly(b"public")
    assert site.client().get(site.url(host="rebinding.test")).body == b"public"
    assert site.resolved == ["rebinding.test"]
    with pytest.raises(BrowsingError, match=PRIVATE):
        site.client().get(site.url(host="rebinding.test"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site: Site, status: int) -> None:
    site.answers["/a/b"] = redirecting("../c?x=1", status)
    site.answers["/c"] = plainly(b"here")
    response = site.client().get(site.url("/a/b"))
    assert (response.body, response.url) == (b"here", site.url("/c?x=1"))


def test_redirects_end(site: Site) -> None:
    site.answers["/"] = redirecting("/")
    with pytest.raises(BrowsingError, match="More than 5 redirects"):
        site.client().get(site.url())
    assert len(site.asked) == REDIRECTS_LIMIT + 1


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://public.test/",
        "javascript:x",
        "https:///x",
        "//a:b@c/",
        "http://[::1/",
    ],
)
def test_redirects_stay_on_the_web(site: Site, location: str) -> None:
    site.answers["/"] = redirecting(location)
    with pytest.raises(BrowsingError, match=r"Only http|no host|user name|not a URL"):
        site.client().get(site.url())


def test_a_trusted_server_may_be_local_and_leads_nowhere_else(site: Site) -> None:
    site.answers["/"] = plainly(b"results")
    local = site.url(host="private.test")
    site.names["private.test"] = [["127.0.0.1"]]
    client = Client(site.resolve, lambda address: False)
    assert client.get(local, trusted=True).body == b"results"
    with pytest.raises(BrowsingError, match=PRIVATE):
        client.get(local)
    site.answers["/"] = redirecting(site.url("/x", "public.test"))
    with pytest.raises(BrowsingError, match="another server"):
        client.get(local, trusted=True)


def test_a_body_is_cut_off_at_its_limit(site: Site) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not site.stopping.is_set():
            handler.wfile.write(b"x" * 65536)

    site.answers["/"] = endless
    response = site.client(bytes_limit=200_000).get(site.url())
    assert (len(response.body), response.cut_off) == (200_000, True)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip"])
def test_a_packed_page_is_unpacked(site: Site, encoding: str) -> None:
    packed = (
        zlib.compress(b"hello" * 50_000)
        if encoding == "deflate"
        else gzip.compress(b"hello" * 50_000)
    )
    site.answers["/"] = plainly(packed, Content_Encoding=encoding)
    assert site.client().get(site.url()).body == b"hello" * 50_000


def test_a_bomb_is_unpacked_up_to_the_limit(site: Site) -> None:
    bomb = gzip.compress(bytes(300 << 20), 9)
    site.answers["/"] = plainly(bomb, Content_Encoding="gzip")
    tracemalloc.start()
    response = site.client(bytes_limit=1 << 20).get(site.url())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(response.body), response.cut_off) == (1 << 20, True)
    assert peak < 8 << 20


def test_what_was_not_asked_for_or_is_broken(site: Site) -> None:
    site.answers["/"] = plainly(b"x", Content_Encoding="br")
    with pytest.raises(BrowsingError, match="packed as 'br'"):
        site.client().get(site.url())
    site.answers["/"] = plainly(b"not gzip", Content_Encoding="gzip")
    with pytest.raises(BrowsingError, match="packed wrongly"):
        site.client().get(site.url())


@pytest.mark.parametrize("part", ["body", "headers", "nothing"])
def test_a_slow_server_is_left_at_the_deadline(site: Site, part: str) -> None:
    """Each byte comes in time for a limit of each read; only the whole is too slow."""

    def slow(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.end_headers()
        elif part == "headers":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while part != "nothing" and not site.stopping.wait(0.02):
            handler.wfile.write(b"x")
            handler.wfile.flush()
        site.stopping.wait()

    site.answers["/"] = slow
    begun = time.monotonic()
    with pytest.raises(BrowsingError, match="The server took too long"):
        site.client(time_limit=0.3).get(site.url())
    assert time.monotonic() - begun < 20


def test_a_slow_resolver_is_left_at_the_deadline(site: Site) -> None:
    def resolve(host: str, port: int) -> list[str]:
        site.stopping.wait()
        return ["127.0.0.1"]

    with pytest.raises(BrowsingError, match="The server took too long"):
        replace(site.client(time_limit=0.2), resolve=resolve).get(site.url())
    assert site.asked == []


def test_an_answer_that_is_no_http(site: Site) -> None:
    def garbage(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"SSH-2.0-x\r\n\r\n")

    site.answers["/"] = garbage
    with pytest.raises(BrowsingError, match="did not answer as HTTP"):
        site.client().get(site.url())


def test_a_body_that_ends_early_is_cut_off(site: Site) -> None:
    def short(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"x")

    site.answers["/"] = short
    response = site.client().get(site.url())
    assert (response.body, response.cut_off) == (b"x", True)


def test_a_plain_server_is_no_secure_one(site: Site) -> None:
    with pytest.raises(BrowsingError, match="No secure connection"):
        site.client().get(site.url().replace("http:", "https:"))


def test_nobody_listens(site: Site) -> None:
    site.names["closed.test"] = [["127.0.0.1"]]
    with pytest.raises(BrowsingError, match="cannot be reached: Connection refused"):
        site.client().get("http://closed.test:1024/")
    with pytest.raises(BrowsingError, match="is not known"):
        site.client().get(site.url(host="nowhere.test"))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://a.test/", "Only http and https"),
        ("file:///etc/passwd", "Only http and https"),
        ("a.test/x", "Only http and https"),
        ("https:///x", "no host"),
        ("https://user:pass@a.test/", "user name"),
        ("https://@a.test/", "user name"),
        ("http://a.test:25/", "Port 25 is refused"),
        ("http://a.test:0/", "Port 0 is refused"),
        ("http://a.test:99999/", "not a URL"),
        ("http://[::1/", "not a URL"),
        (f"http://{'a' * 64}.test/", "not a URL"),
        ("http://a..test/", "not a URL"),
        ("http://a b.test/", "not a URL"),
        ("http://a.test/" + "x" * 9000, "8,192 is the limit"),
    ],
)
def test_what_is_no_url_of_the_web(url: str, why: str) -> None:
    with pytest.raises(BrowsingError, match=why):
        checked_url(url)


def test_a_url_is_written_as_http_takes_it() -> None:
    assert checked_url(" https://Bücher.test/ä b?q=ü%20x#f ").geturl() == (
        "https://xn--bcher-kva.test/%C3%A4%20b?q=%C3%BC%20x"
    )
    assert checked_url("http://[2606:4700::1111]:8080").geturl() == "http://[2606:4700::1111]:8080/"


@given(st.text(max_size=40), st.text(st.sampled_from("ab.:/@[]?#%\r\n \\1é"), max_size=30))
def test_any_text_is_a_url_or_refused(text: str, tail: str) -> None:
    for url in (text, f"http://{tail}", f"https://a.test/{tail}"):
        try:
            made = checked_url(url).geturl()
        except BrowsingError:
            continue
        assert made.isascii()
        assert not set(made) & set("\r\n \\")
        assert checked_url(made).geturl() == made


CERTIFICATE = Path(__file__).parent / "public.test.pem"
"""A key and its own certificate, for tests alone."""


def test_a_secure_page_is_of_the_name_that_was_asked_for(site: Site) -> None:
    """The connection is to an address, the certificate is checked against the name."""
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(CERTIFICATE)
    site.server.socket = of_server.wrap_socket(site.server.socket, server_side=True)
    site.answers["/"] = plainly(b"secret")
    site.names["other.test"] = [["127.0.0.1"]]
    client = replace(
        site.client(), context=lambda: ssl.create_default_context(cafile=str(CERTIFICATE))
    )
    url = site.url().replace("http:", "https:")
    assert client.get(url).body == b"secret"
    with pytest.raises(BrowsingError, match="No secure connection: CERTIFICATE_VERIFY_FAILED"):
        client.get(url.replace("public.test", "other.test"))
    with pytest.raises(BrowsingError, match="No secure connection: CERTIFICATE_VERIFY_FAILED"):
        site.client().get(url)

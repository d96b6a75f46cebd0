"""An HTTP client for pages of unknown origin: what it connects to is the address it has checked.

Python's own http.client is used because it can be given a connected socket: the name is resolved
once, the address checked, and that very address connected to, so that a second answer of the name's
server changes nothing (DNS rebinding). Each redirect begins anew. Proxies are not used: a proxy
resolves names itself.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from threading import Thread, Timer
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from gptoss_mlx.tools.browser.source import BrowsingError
from gptoss_mlx.tools.browser.web.address import Resolver, is_public, system_addresses

BYTES_LIMIT = 16 << 20
"""Bytes of a body, unpacked; what is beyond is not read."""

TIME_LIMIT = 30.0
"""Seconds of a fetch, with all redirects."""

REDIRECTS_LIMIT = 5
URL_LIMIT = 8192
"""Characters of a URL."""

_PIECE = 65536  # bytes
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = (80, 443)
_LEAST_PORT = 1024  # below it and but for the web's own, services that are not for browsers
_HOST = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+", re.ASCII)
_SAFE = "/%:@!$&'()*+,;=~-._?[]|"


def system_context() -> ssl.SSLContext:
    """Certificates of the system, or certifi's where it has none, as with some Pythons on a Mac."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if not any(place and Path(place).exists() for place in (paths.cafile, paths.capath)):
        with suppress(ImportError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


@dataclass(frozen=True)
class Response:
    """A page as it came.

    url: after redirects. kind: its media type, in lower case, or "". cut_off: whether the body has
    not come whole.
    """

    url: str
    status: int
    kind: str
    charset: str | None
    body: bytes
    cut_off: bool


@dataclass(frozen=True)
class Client:
    """resolve: gives the addresses of a host. is_allowed: whether to connect to an address.

    context: makes what secure connections are checked by. bytes_limit: of a body. time_limit:
    seconds of a fetch.
    """

    resolve: Resolver = system_addresses
    is_allowed: Callable[[str], bool] = is_public
    context: Callable[[], ssl.SSLContext] = system_context
    bytes_limit: int = BYTES_LIMIT
    time_limit: float = TIME_LIMIT

    def get(self, url: str, *, trusted: bool = False, accept: str = "*/*") -> Response:
        """Fetch a URL. trusted: a person named it, so that its address may be any, and a redirect
        may not leave it. Raises BrowsingError."""
        deadline = time.monotonic() + self.time_limit
        first = target = checked_url(url)
        for _ in range(REDIRECTS_LIMIT + 1):
            with _explained(target), self._connected(target, trusted, deadline) as connection:
                _ask(connection, target, accept)
                answer = connection.getresponse()
                location = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or not location:
                    return self._response(target, answer)
            target = checked_url(joined_url(target.geturl(), location))
            if trusted and target.netloc != first.netloc:
                raise BrowsingError(f"{first.netloc} redirects to {target.netloc}, another server.")
        raise BrowsingError(f"More than {REDIRECTS_LIMIT} redirects.")

    @contextmanager
    def _connected(
        self, target: SplitResult, trusted: bool, deadline: float
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection that is shut down at the deadline, whatever it waits for."""
        host, port = _host(target), _port(target)
        address = self._address(host, port, trusted, deadline)
        with self._socket(address, port, target, deadline) as connected:
            late: list[bool] = []
            timer = Timer(max(0.0, deadline - time.monotonic()), _shut_down, (connected, late))
            timer.daemon = True
            timer.start()
            connection = http.client.HTTPConnection(host, port)
            connection.sock = connected
            try:
                yield connection
            except (OSError, http.client.HTTPException):
                if late:
                    raise TimeoutError from None
                raise
            finally:
                timer.cancel()
                connection.close()
            if late:  # what came ended early
                raise TimeoutError

    def _socket(
        self, address: str, port: int, target: SplitResult, deadline: float
    ) -> socket.socket:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connected = socket.create_connection((address, port), timeout=left)
        if target.scheme == "http":
            return connected
        try:
            return self.context().wrap_socket(connected, server_hostname=_host(target))
        except BaseException:
            connected.close()
            raise

    def _address(self, host: str, port: int, trusted: bool, deadline: float) -> str:
        for address in self._addresses(host, port, deadline):
            if trusted or self.is_allowed(address):
                return address
        raise BrowsingError(
            f"{host!r} is not on the public Internet. Private and local addresses are refused."
        )

    def _addresses(self, host: str, port: int, deadline: float) -> Sequence[str]:
        """What the resolver gives, on a thread that is left behind if it takes too long."""
        found: list[Sequence[str] | Exception] = []

        def resolve() -> None:
            try:
                found.append(self.resolve(host, port))
            except (OSError, UnicodeError) as error:
                found.append(error)

        thread = Thread(target=resolve, name="resolver", daemon=True)
        thread.start()
        thread.join(max(0.0, deadline - time.monotonic()))
        if not found:
            raise TimeoutError
        if isinstance(found[0], Exception):
            raise BrowsingError(f"The host {host!r} is not known.") from found[0]
        return found[0]

    def _response(self, target: SplitResult, answer: http.client.HTTPResponse) -> Response:
        encoding = answer.headers.get("Content-Encoding", "").strip().lower()
        body = bytearray()
        for piece in _unpacked(answer, encoding, self.bytes_limit + 1):
            body += piece
            if len(body) > self.bytes_limit:
                break
        # the library does not say so where a body is shorter than was declared
        cut_off = len(body) > self.bytes_limit or bool(answer.length)
        kind, charset = _media_type(answer.headers)
        return Response(
            url=target.geturl(),
            status=answer.status,
            kind=kind,
            charset=charset,
            body=bytes(body[: self.bytes_limit]),
            cut_off=cut_off,
        )


def checked_url(url: str) -> SplitResult:
    """A URL's parts, if it may be fetched at all, in the characters that HTTP takes.

    Raises BrowsingError.
    """
    if len(url) > URL_LIMIT:
        raise BrowsingError(f"The URL has {len(url):,} characters, {URL_LIMIT:,} is the limit.")
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise BrowsingError("This is not a URL.") from error
    if parts.scheme not in ("http", "https"):
        raise BrowsingError("Only http and https URLs can be opened, such as https://example.com/.")
    if host and not _HOST.fullmatch(host):
        raise BrowsingError("This is not a URL.")
    if not host:
        raise BrowsingError("The URL has no host. Write it in full: https://example.com/.")
    if parts.username is not None or parts.password is not None:
        raise BrowsingError("URLs with a user name or a password are refused.")
    if port is not None and port not in _PORTS and port < _LEAST_PORT:
        raise BrowsingError(f"Port {port} is refused: the web's are 80, 443, and from 1024 on.")
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{port}" if port is not None else ""
    path, query = quote(parts.path or "/", _SAFE), quote(parts.query, _SAFE)
    return SplitResult(parts.scheme, netloc, path, query, "")


def joined_url(base: str, url: str) -> str:
    """A URL relative to another one; as it is where the two cannot be joined."""
    try:
        return urljoin(base, url)
    except ValueError:  # such as a broken IPv6 address
        return url


def _host(target: SplitResult) -> str:
    return target.hostname or ""


def _port(target: SplitResult) -> int:
    return target.port or (443 if target.scheme == "https" else 80)


def _shut_down(connected: socket.socket, late: list[bool]) -> None:
    late.append(True)
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _ask(connection: http.client.HTTPConnection, target: SplitResult, accept: str) -> None:
    path = target.path + (f"?{target.query}" if target.query else "")
    headers = {
        "Host": target.netloc,
        "User-Agent": "Mozilla/5.0 (compatible; gptoss-mlx)",
        "Accept": accept,
        "Accept-Encoding": "gzip",
        "Connection": "close",
    }
    connection.request("GET", path, headers=headers)


def _unpacked(answer: http.client.HTTPResponse, encoding: str, limit: int) -> Iterator[bytes]:
    """The body in pieces, unpacked, of `limit` bytes each at most. Raises BrowsingError."""
    if encoding in ("", "identity"):
        while piece := answer.read(_PIECE):
            yield piece
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BrowsingError(f"The page is packed as {encoding[:40]!r}, which was not asked for.")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
    while packed := answer.read(_PIECE):
        while packed and not unpacker.eof:
            try:
                yield unpacker.decompress(packed, min(limit, _PIECE))
            except zlib.error as error:
                raise BrowsingError("The page is packed wrongly.") from error
            packed = unpacker.unconsumed_tail


def _media_type(headers: Message) -> tuple[str, str | None]:
    """The media type and the charset that a response declares."""
    if not headers.get("Content-Type", "").strip():
        return "", None
    charset = headers.get_param("charset")
    return headers.get_content_type(), charset if isinstance(charset, str) else None


@contextmanager
def _explained(target: SplitResult) -> Iterator[None]:
    """Errors of the network, in words."""
    try:
        yield
    except TimeoutError as error:
        raise BrowsingError("The server took too long.") from error
    except ssl.SSLError as error:
        raise BrowsingError(f"No secure connection: {error.reason or error}.") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise BrowsingError(f"{target.netloc} cannot be reached: {why}.") from error
    except (http.client.HTTPException, ValueError) as error:
        raise BrowsingError("The server did not answer as HTTP.") from error

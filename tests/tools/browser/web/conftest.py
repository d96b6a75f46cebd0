"""A server on loopback that a test writes the answers of, under names of a made-up Internet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptoss_mlx.tools.browser.web.client import Client

Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """The server. answers: by path. asked: the paths, in order. names: the addresses of each."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server, self.port = server, server.server_address[1]
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.names: dict[str, list[list[str]]] = {}
        self.resolved: list[str] = []
        self.stopping = threading.Event()

    def url(self, path: str = "/", host: str = "public.test") -> str:
        return f"http://{host}:{self.port}{path}"

    def resolve(self, host: str, port: int) -> list[str]:
        """The next answer of a name, of which the last one stays."""
        self.resolved.append(host)
        answers = self.names.get(host)
        if answers is None:
            raise OSError("no such host")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def client(self, **limits: float) -> Client:
        """On the made-up Internet 127.0.0.1 is public, and nothing else."""
        return Client(self.resolve, lambda address: address == "127.0.0.1", **limits)  # type: ignore[arg-type]


def plainly(body: bytes, kind: str = "text/html", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def redirecting(location: str, status: int = 302) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", location)
        handler.end_headers()

    return answer


def saying(status: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.end_headers()

    return answer


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            made.headers.append(dict(self.headers.items()))
            answer = made.answers.get(self.path.partition("?")[0], saying(404))
            try:
                answer(self)
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Site(server)
    made.names = {"public.test": [["127.0.0.1"]], "private.test": [["127.0.0.2"]]}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()

"""Another model's endpoint on loopback, whose replies a test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[BaseHTTPRequestHandler], None]


def answering(value: Any, status: int = 200, **headers: str) -> Act:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, text in headers.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def saying(content: Any, **choice: Any) -> Act:
    return answering({"choices": [{"message": {"content": content}, **choice}]})


class EndpointServer:
    """asked: the requests' paths, headers and bodies. act: what answers. stopping: ends waiting."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.act: Act = saying("Paris.")
        self.stopping = threading.Event()


@contextmanager
def serving() -> Iterator[EndpointServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.asked.append((self.path, dict(self.headers.items()), body))
            try:
                made.act(self)
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = EndpointServer(listening.server_address[1])
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield made
    finally:
        made.stopping.set()
        listening.shutdown()
        listening.server_close()
        thread.join()

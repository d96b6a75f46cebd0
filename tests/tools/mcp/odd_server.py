"""An MCP server of the standard library alone, whose tools misbehave; each is named by how.

Run as a script: `odd_server.py [silent | stays | dies | dies-first FILE | lists FILE]`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

LARGE = 100 << 20
CHILD = "import sys; print(flush=True); sys.stdin.read(); import time; time.sleep(1000)"


def write(message: dict[str, Any]) -> None:
    data = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def text(said: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": said}]}


class Tools:
    """Each method is a tool: given its arguments, it returns a result, or None for no answer."""

    def __init__(self) -> None:
        self.listed = [name for name in vars(Tools) if not name.startswith("_")]
        self.cancelled: list[object] = []
        self.id: object = None

    def echo(self, text_: str = "") -> dict[str, Any]:
        return text(text_)

    def result(self, **result: Any) -> dict[str, Any]:
        return result

    def error(self, message: str) -> None:
        write({"id": self.id, "error": {"code": -32602, "message": message}})

    def hang(self) -> None: ...

    def was_cancelled(self) -> dict[str, Any]:
        return text(json.dumps(self.cancelled))

    def die(self) -> None:
        print("first\nI cannot go on\n", file=sys.stderr, flush=True)
        os._exit(3)

    def print_garbage(self) -> dict[str, Any]:
        sys.stdout.write("Hello!\n{not json}\n[1, 2]\n\x00\xff\n" + '{"a":' * 5000 + "\n")
        sys.stdout.flush()
        write({"method": "notifications/nobody/knows"})
        return text("after garbage")

    def flood_stdout(self) -> None:
        try:
            while True:
                sys.stdout.write("y\n" * 65536)
        except BrokenPipeError:
            os._exit(0)

    def flood_stderr(self) -> dict[str, Any]:
        for _ in range(64):
            sys.stderr.write("x" * 65535 + "\n")
        return text("after stderr")

    def large(self) -> dict[str, Any]:
        return text("x" * LARGE)

    def large_text(self) -> dict[str, Any]:
        return text("x" * (1 << 20))

    def wrong_ids(self) -> dict[str, Any]:
        for id in (10**9, "nobody", None):
            write({"id": id, "result": text("not yours")})
        return text("yours")

    def half_a_character(self) -> None:
        line = json.dumps({"jsonrpc": "2.0", "id": self.id, "result": text("a\ud83d")})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def environment(self) -> dict[str, Any]:
        return text(json.dumps(dict(os.environ)))

    def family(self) -> dict[str, Any]:
        """Starts a child in its process group, and one that leaves it."""
        pids = [os.getpid()]
        for new_session in (False, True):
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=new_session,
            )
            assert child.stdout is not None
            child.stdout.readline()
            pids.append(child.pid)
        return text(json.dumps(pids))

    def change(self) -> dict[str, Any]:
        self.listed = ["echo", "change"] if "hang" in self.listed else ["hang", "change"]
        write({"method": "notifications/tools/list_changed"})
        return text("changed")

    def ask_back(self) -> dict[str, Any]:
        """Asks the client for what it cannot do; gives the answers' error codes."""
        codes = []
        schema = {"type": "object", "properties": {}}
        message = {"role": "user", "content": {"type": "text", "text": "?"}}
        for method, params in (
            ("sampling/createMessage", {"messages": [message], "maxTokens": 1}),
            ("elicitation/create", {"message": "?", "requestedSchema": schema}),
            ("roots/list", {}),
            ("ping", {}),
        ):
            write({"id": f"from-server-{method}", "method": method, "params": params})
            answer = json.loads(sys.stdin.readline())
            codes.append(answer.get("error", {}).get("code"))
        return text(json.dumps(codes))


def serve(pages: list[list[Any]] | None) -> None:
    """pages: what is listed instead of the tools."""
    tools = Tools()
    while line := sys.stdin.readline():
        message = json.loads(line)
        method, params = message["method"], message.get("params", {})
        tools.id = message.get("id")
        if method == "initialize":
            version = params["protocolVersion"]
            info = {"name": "odd", "version": "1"}
            result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
            write({"id": tools.id, "result": result})
        elif method == "tools/list" and pages is not None:
            number = int(params.get("cursor", 0))
            following = {"nextCursor": str(number + 1)} if number + 1 < len(pages) else {}
            write({"id": tools.id, "result": {"tools": pages[number], **following}})
        elif method == "tools/list":
            schema = {"type": "object"}
            listed = [{"name": name, "inputSchema": schema} for name in tools.listed]
            write({"id": tools.id, "result": {"tools": listed}})
        elif method == "tools/call":
            arguments = params.get("arguments", {})
            called = text(params["name"]) if pages is not None else None
            result = called or getattr(tools, params["name"])(**arguments)
            if result is not None:
                write({"id": tools.id, "result": result})
        elif method == "notifications/cancelled":
            tools.cancelled.append(params["requestId"])


def main() -> None:
    mode, *rest = sys.argv[1:] or [""]
    if mode == "silent":
        while sys.stdin.readline():
            pass
    elif mode == "stays":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve(None)
        while True:
            signal.pause()
    elif mode == "dies":
        print("no such database", file=sys.stderr, flush=True)
        sys.exit(2)
    elif mode == "dies-first":  # and not when it is started again
        marker = Path(rest[0])
        if not marker.exists():
            marker.touch()
            sys.exit(2)
        serve(None)
    else:
        serve(json.loads(Path(rest[0]).read_text()) if mode == "lists" else None)


if __name__ == "__main__":
    main()

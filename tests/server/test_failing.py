"""A model that fails at any point of an answer: the caller is told in the API's own shape, whole or
as the stream's last event, and the next request is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.server.test_cancelled import BODIES
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Endless, Scripted
from tests.support.served import Served, serving

REPLY = f"{ANALYSIS}I look.{AGAIN}{FINAL}one two three<|return|>"
PATHS = [path for path in BODIES if not path.endswith("count_tokens")]
ENDS = {
    "/v1/chat/completions": "data: [DONE]",
    "/v1/completions": "data: [DONE]",
    "/v1/responses": "response.failed",
    "/v1/messages": '"type":"error"',
    "/api/chat": '"error":',
    "/api/generate": '"error":',
    "/api/v0/chat/completions": "data: [DONE]",
}
"""What stands in the last line of a stream that fails."""


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[Scripted, Served]]:
    scripted = Scripted(REPLY, chunk=8)
    scripted.replies = Endless(scripted.replies)
    with serving(scripted) as served:
        yield scripted, served


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["prefill", "decode", "choose", "read"])
def test_the_caller_is_told(scripted: tuple[Scripted, Served], path: str, kind: str) -> None:
    script, served = scripted
    body = {**BODIES[path], "messages": [{"role": "user", "content": f"{kind} " * 60}]}
    for point in (0, 1, 2, 5, 9):
        for stream in (False, True):
            script.fail(kind, point, RuntimeError("secret: /home/me"))
            response = served.post(path, {**body, "stream": stream})
            text = response.text
            assert "secret" not in text
            if stream and response.status_code == 200:
                lines = [line for line in text.splitlines() if line and not line.startswith(":")]
                ended = ("response.failed" if path == "/v1/responses" else '"error"') in text
                assert not ended or ENDS[path] in lines[-1], lines[-3:]
            else:
                ended = response.status_code >= 500
                assert ended or response.status_code == 200
                assert not ended or "failed" in json.dumps(response.json())
            if script._failure is None:  # the point was reached
                assert ended, text
            script._failure = None
            answered = served.post(path, {**body, "stream": False})
            assert answered.status_code == 200
            assert "one" in answered.text
    served.wait_until(lambda: served.registry.find(None).sequences == 0)

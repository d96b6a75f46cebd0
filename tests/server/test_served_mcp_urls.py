"""MCP servers at URLs that clients name, where the person who runs the server allows it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from mcp.server import MCPServer

from gptoss_mlx.tools.mcp import http, servers
from tests.support.responses import PATH, ask, events
from tests.support.scripted_model import Scripted
from tests.support.served_mcp import mcp_kit, written
from tests.support.served_tools import DONE, prompts, tooled
from tests.tools.mcp.conftest import odd
from tests.tools.mcp.test_http import Guarded, adder, serving

ADD = written("web_add", a=1234, b=5678)
SECRET, TOKEN = "secret-token-1", "abc-secret"


def web(url: str, **more: Any) -> dict[str, Any]:
    tool = {"type": "mcp", "server_label": "web", "server_url": url}
    return {**tool, "require_approval": "never", **more}


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is taken for public."""
    monkeypatch.setattr(http, "is_public", lambda address: True)


@pytest.fixture
def address() -> Iterator[str]:
    with serving(adder().streamable_http_app()) as url:
        yield f"{url}/mcp"


@pytest.mark.usefixtures("anywhere")
def test_a_server_of_the_clients_is_called(address: str) -> None:
    scripted = Scripted(ADD, DONE)
    with mcp_kit(allows_urls=True) as kit, tooled(scripted, kit) as served:
        output = ask(served, tools=[web(address)]).output
    assert [item.type for item in output] == ["mcp_list_tools", "mcp_call", "message"]
    assert output[1].type == "mcp_call"
    assert output[1].output == "6912"


def test_a_private_address_is_not_connected_to(address: str) -> None:
    """Nor one that a name stands for; the client reads why."""
    scripted = Scripted(DONE, DONE)
    with mcp_kit(allows_urls=True) as kit, tooled(scripted, kit) as served:
        for url in (address, address.replace("127.0.0.1", "localhost")):
            (listed, _) = ask(served, tools=[web(url)]).output
            assert listed.type == "mcp_list_tools"
            assert listed.tools == []
            assert listed.error is not None
            assert "is no public address" in listed.error


def test_an_address_of_the_file_is_the_servers_own() -> None:
    """By whatever label; its server may be on this machine."""
    scripted = Scripted(written("odd_echo", text_="a"), DONE)
    with mcp_kit(odd()) as kit, tooled(scripted, kit) as served:
        kit.addresses["odd"] = "http://127.0.0.1:9/mcp"  # type: ignore[index]
        output = ask(served, tools=[web("http://127.0.0.1:9/mcp")]).output
    assert output[1].type == "mcp_call"
    assert (output[1].server_label, output[1].output) == ("web", "a")


@pytest.mark.usefixtures("anywhere")
def test_what_a_client_shows_a_server_is_kept_nowhere(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server, asked = adder(), list[Any]()

    @server.tool()
    def quote() -> str:
        return f"You are {TOKEN}, and {SECRET}."

    guarded = Guarded(server.streamable_http_app(), TOKEN)
    with serving(guarded) as url, mcp_kit(allows_urls=True) as kit:
        connect = kit.connect
        assert connect is not None

        def plain(name: str, url: str, headers: Any, others: Any) -> Any:
            asked.append(headers)
            return connect(name, url.replace("https", "http"), headers, others)

        object.__setattr__(kit, "connect", plain)
        scripted = Scripted(ADD, written("web_quote"), DONE)
        with tooled(scripted, kit) as served:
            guarded_at = f"{url}/mcp".replace("http", "https")
            more = {"headers": {"Authorization": f"Bearer {TOKEN}", "X-Key": SECRET}}
            found = events(served, tools=[web(guarded_at, **more)])
            response = found[-1]["response"]
            shown = served.client.get(f"{PATH}/{response['id']}").text
    assert response["output"][1]["output"] == "6912"
    assert response["output"][2]["output"] == "You are [hidden], and [hidden]."
    assert asked == [{"Authorization": f"Bearer {TOKEN}", "X-Key": SECRET}]
    of_the_server = ("sse_starlette", "uvicorn")  # which the test runs in the same process
    lines = [r.getMessage() for r in caplog.records if not r.name.startswith(of_the_server)]
    for text in (str(found), shown, *lines, *prompts(scripted)):
        assert SECRET not in text
        assert TOKEN not in text
    assert response["tools"][0]["server_label"] == "web"


@pytest.mark.parametrize("secret", [{"authorization": SECRET}, {"headers": {"X": SECRET}}])
def test_a_secret_goes_by_https_alone(secret: Any) -> None:
    with mcp_kit(allows_urls=True) as kit, tooled(Scripted(), kit) as served:
        response = served.post(PATH, {"input": "x", "tools": [web("http://a.test", **secret)]})
        odd_ = {"headers": {"X-Key": f"{SECRET}\r\nX: y"}}
        broken = served.post(PATH, {"input": "x", "tools": [web("https://a.test", **odd_)]})
        no_url = served.post(PATH, {"input": "x", "tools": [web("file:///etc/passwd")]})
    assert "go to https:// alone" in response.json()["error"]["message"]
    assert "the name of a header in ASCII" in broken.json()["error"]["message"]
    assert "an address with https:// or http://" in no_url.json()["error"]["message"]
    assert SECRET not in response.text + broken.text


@pytest.mark.usefixtures("anywhere")
def test_connections_are_bounded_and_end_with_the_response(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "MOST_GUESTS", 1)
    scripted = Scripted(written("web_slow"), DONE)
    begun, goes_on = threading.Event(), threading.Event()
    slow = MCPServer("slow")

    @slow.tool(name="slow")
    def wait() -> str:
        begun.set()
        goes_on.wait(60)
        return "slow"

    with (
        serving(slow.streamable_http_app()) as url,
        mcp_kit(allows_urls=True) as kit,
        tooled(scripted, kit) as served,
    ):
        tools, found = [web(f"{url}/mcp")], list[Any]()
        running = threading.Thread(target=lambda: found.append(ask(served, tools=tools)))
        running.start()
        assert begun.wait(60)
        refused = served.post(PATH, {"input": "x", "tools": [web(address)]})
        goes_on.set()
        running.join(60)
        assert refused.status_code == 503
        scripted.replies.append(Scripted(DONE).replies[0])
        served.wait_until(lambda: served.post(PATH, {"input": "x", "tools": tools}).is_success)
    assert found[0].output[1].output == "slow"

"""Containers: an interpreter, a folder and pages for each conversation, so many and no more."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.containers import FileListResponse

from gptoss_mlx.errors import SandboxError
from gptoss_mlx.server.containers import Container, Containers
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.tools.python.sandbox.choice import kinds
from gptoss_mlx.tools.tool import Outcome
from tests.support.responses import PATH, ask, events
from tests.support.scripted_model import Scripted, encoding
from tests.support.served import LONG, Served
from tests.support.served_tools import (
    CODE,
    DONE,
    OUTPUTS,
    PYTHON,
    FakePython,
    fake_kit,
    prompts,
    python_kit,
    tooled,
)


def has_sandbox() -> bool:
    try:
        return bool(kinds("required"))
    except SandboxError:
        return False


needs_sandbox = pytest.mark.skipif(not has_sandbox(), reason="no sandbox can be made here")


def ran(served: Served, **body: Any) -> tuple[Any, list[str], str]:
    """A response that calls python, what its calls gave, and their container."""
    response = ask(served, tools=[body.pop("python", PYTHON)], **OUTPUTS, **body)
    calls = [item for item in response.output if item.type == "code_interpreter_call"]
    logs = [o.logs for call in calls for o in call.outputs or () if o.type == "logs"]
    (container,) = {call.container_id for call in calls}
    return response, logs, container


@needs_sandbox
def test_a_conversation_keeps_its_variables_and_no_other_has_them() -> None:
    script = [CODE.format("x = 41"), DONE, CODE.format("x + 1"), DONE]
    with tooled(Scripted(*script, *script[2:] * 2), python_kit()) as served:
        first, _, container = ran(served)
        _, logs, same = ran(served, previous_response_id=first.id)
        assert (logs, same) == (["42"], container)
        _, logs, other = ran(served)
        assert "NameError" in logs[0]
        assert other != container
        _, logs, _ = ran(served, python={**PYTHON, "container": container})
        assert logs == ["42"]


@needs_sandbox
def test_an_interpreter_that_made_room_is_told_to_the_model() -> None:
    script = [CODE.format("x = 41"), DONE, CODE.format("1"), DONE, CODE.format("x"), DONE]
    with tooled(Scripted(*script), python_kit(), interpreters=1) as served:
        first, _, _ = ran(served)
        ran(served)
        _, logs, _ = ran(served, previous_response_id=first.id)
    assert "NameError" in logs[0]
    assert "a new interpreter was started" in logs[0]


@needs_sandbox
def test_files_that_code_made_are_named_and_can_be_had() -> None:
    code = "open('a b.txt', 'w').write('<é>'); open('p.png', 'wb').write(b'\\x89PNG')"
    answer = "<|channel|>final<|message|>See [it](sandbox:/mnt/data/p.png).<|return|>"
    policy = Policy(keys=("secret",))
    with tooled(Scripted(CODE.format(code), answer), python_kit(), policy) as served:
        served.client.headers["authorization"] = "Bearer secret"
        found = events(served, tools=[PYTHON], **OUTPUTS)
        call, message = found[-1]["response"]["output"]
        notes = message["content"][0]["annotations"]
        (image,) = (o for o in call["outputs"] if o["type"] == "image")
        assert image["url"].startswith(f"{served.url}/v1/containers/{call['container_id']}/files/")
        base = f"/v1/containers/{call['container_id']}/files"
        bodies = {n["filename"]: served.client.get(f"{base}/{n['file_id']}/content") for n in notes}
        assert served.client.get(image["url"]).content == b"\x89PNG"
        del served.client.headers["authorization"]
        path = f"{base}/{notes[0]['file_id']}/content"
        refused = [
            served.client.get(path),
            served.client.get(
                path, headers={"authorization": "Bearer secret", "host": "evil.test"}
            ),
        ]
    assert bodies["a b.txt"].content == "<é>".encode()
    headers = bodies["a b.txt"].headers
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''a%20b.txt"
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert headers["x-content-type-options"] == "nosniff"
    assert [r.status_code for r in refused] == [401, 403]
    text = message["content"][0]["text"]
    spans = {n["filename"]: text[n["start_index"] : n["end_index"]] for n in notes}
    assert spans == {"a b.txt": "", "p.png": "sandbox:/mnt/data/p.png"}


class Planting(FakePython):
    """A tool whose code puts a link or a pipe where a file was."""

    def call(self, recipient: str, text: str, cancel: Any = None) -> Outcome:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "d").mkdir(exist_ok=True)
        for name in ("link", "pipe", "d/file", "kept", "gone"):
            (self.folder / name).write_text("mine")
        return Outcome("ok", tuple(self.folder / n for n in ("link", "pipe", "d/file", "kept")))


def test_only_files_of_the_folder_are_given(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    kit = fake_kit(kind=Planting, files=tmp_path / "files")
    with tooled(Scripted(CODE.format("x"), DONE), kit) as served:
        response, _, container = ran(served)
        folder = tmp_path / "files" / container
        for name in ("link", "pipe"):
            (folder / name).unlink()
        (folder / "link").symlink_to(secret / "file")
        os.mkfifo(folder / "pipe")
        (folder / "d" / "file").unlink()
        (folder / "d").rmdir()
        (folder / "d").symlink_to(secret)
        message = response.output[-1]
        ids = {n.filename: n.file_id for n in message.content[0].annotations}
        base = f"/v1/containers/{container}/files"
        for id in (ids["link"], ids["pipe"], ids["d/file"], "cfile_none", "..%2F..%2Fsecret"):
            assert served.client.get(f"{base}/{id}/content").status_code == 404
        assert served.client.get(f"{base}/{ids['kept']}/content").text == "mine"
        other = f"/v1/containers/cntr_none/files/{ids['kept']}/content"
        assert served.client.get(other).status_code == 404
        listed = served.client.get(base).json()["data"]
        assert {file["path"] for file in listed} == {"/mnt/data/kept", "/mnt/data/gone"}
        assert served.client.get(f"{base}/{ids['link']}").status_code == 404
    assert (folder / "kept").read_text() == "mine"  # the folder of --files stays


def test_files_are_listed_the_newest_first(tmp_path: Path) -> None:
    """Page after page, by OpenAI's client, also those that no answer names."""
    kit = fake_kit(kind=Planting, files=tmp_path / "files")
    with tooled(Scripted(CODE.format("x"), DONE), kit) as served:
        _, _, container = ran(served)
        folder = tmp_path / "files" / container
        for age, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
            os.utime(path, (1000 - age, 1000 - age))
        with OpenAI(base_url=f"{served.url}/v1", api_key="any") as client:
            files = client.containers.files
            newest = list(files.list(container, limit=2))
            oldest = list(files.list(container, limit=3, order="asc"))
            one = files.retrieve(newest[0].id, container_id=container)
            bytes_ = files.content.retrieve(one.id, container_id=container).read()
        base = f"/v1/containers/{container}/files"
        refused = [served.client.get(f"{base}?{q}").status_code for q in ("limit=0", "after=x")]
        missing = served.client.get("/v1/containers/cntr_none/files").status_code
    names = ["d/file", "gone", "kept", "link", "pipe"]
    assert [file.path for file in newest] == [f"/mnt/data/{name}" for name in names]
    assert [file.id for file in oldest] == [file.id for file in reversed(newest)]
    assert one.model_dump() == newest[0].model_dump()
    FileListResponse.model_validate(one.model_dump(), strict=True)
    assert (one.bytes, one.created_at, one.container_id, bytes_) == (4, 1000, container, b"mine")
    assert (refused, missing) == ([400, 400], 404)


def test_a_container_that_is_named_and_gone_is_a_clear_error() -> None:
    with tooled(Scripted(), fake_kit()) as served:
        tool = {**PYTHON, "container": "cntr_none"}
        response = served.post(PATH, {"input": "hi", "tools": [tool]})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "container_expired"


def test_conversations_without_tools_make_no_containers() -> None:
    with tooled(Scripted(DONE, DONE), fake_kit()) as served:
        first = ask(served)
        ask(served, previous_response_id=first.id)
        assert len(served.listener.config.app.containers) == 0  # type: ignore[union-attr]


def within(
    doing: Callable[[Containers, list[tuple[str, str]]], Awaitable[None]], **limits: Any
) -> Any:
    """Do something with containers whose tools keep a log, and close them."""
    log: list[tuple[str, str]] = []

    async def main() -> None:
        containers = Containers(fake_kit(log=log), **limits)
        try:
            await asyncio.wait_for(doing(containers, log), LONG)
        finally:
            await containers.close()

    asyncio.run(main())
    return log


async def called(containers: Containers, container: Container, text: str = "x") -> str:
    tool = containers.tool(container, "python", encoding())
    work = lambda: tool.call("python", text).text  # noqa: E731
    return await containers.run(container, tool, work, threading.Event())


def test_interpreters_are_bounded_and_the_one_used_longest_ago_makes_room() -> None:
    async def doing(containers: Containers, log: list[tuple[str, str]]) -> None:
        some = [containers.lease(None) for _ in range(4)]
        for container in (some[0], some[1], some[0], some[2]):
            await called(containers, container)
        assert containers.awake == 2
        assert log[-2:] == [(some[1].id, "closed"), (some[2].id, "x")]
        assert await asyncio.gather(*(called(containers, one) for one in some * 3)) == ["X"] * 12
        assert containers.awake == 2

    log = within(doing, interpreters=2)
    assert len([text for _, text in log[-4:] if text == "closed"]) == 4


def test_an_interpreter_that_nobody_calls_is_ended() -> None:
    async def doing(containers: Containers, log: list[tuple[str, str]]) -> None:
        container = containers.lease(None)
        await called(containers, container)
        while log[-1] != (container.id, "closed"):
            await asyncio.sleep(0.01)
        assert containers.awake == 0
        assert containers.find(container.id) is container

    within(doing, idle=0.01)


def test_conversations_are_bounded_but_for_those_that_are_used() -> None:
    async def doing(containers: Containers, log: list[tuple[str, str]]) -> None:
        some = [containers.lease(None) for _ in range(4)]
        for container in some:
            container.folder.mkdir(parents=True)
        assert len(containers) == 4
        for container in (some[2], some[0], some[1]):
            containers.release(container)
        assert [containers.find(one.id) for one in some] == [None, some[1], None, some[3]]
        while some[0].folder.exists() or some[2].folder.exists():
            await asyncio.sleep(0.01)
        assert some[1].folder.exists()
        assert containers.lease(some[0].id).id != some[0].id

    within(doing, most=2)


def test_nothing_stays_when_the_server_ends() -> None:
    folders: list[Path] = []

    async def doing(containers: Containers, log: list[tuple[str, str]]) -> None:
        for _ in range(3):
            container = containers.lease(None)
            await called(containers, container)
            container.folder.mkdir(parents=True)
            folders.append(container.folder)

    log = within(doing)
    assert [text for _, text in log[-3:]] == ["closed"] * 3
    assert not any(folder.exists() or folder.parent.exists() for folder in folders)


def test_a_conversation_calls_its_tool_once_at_a_time() -> None:
    running: list[int] = []
    most: list[int] = []
    turn = threading.Lock()

    def give(text: str) -> str:
        with turn:
            running.append(1)
            most.append(len(running))
        threading.Event().wait(0.01)
        with turn:
            running.pop()
        return text

    async def main() -> None:
        containers = Containers(fake_kit(give))
        container = containers.lease(None)
        await asyncio.gather(*(called(containers, container) for _ in range(5)))
        await containers.close()

    asyncio.run(main())
    assert max(most) == 1


def test_a_slow_call_keeps_nobody_else_waiting() -> None:
    """Neither the event loop nor the model: another response is answered meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def give(text: str) -> str:
        begun.set()
        assert go_on.wait(LONG)
        return text

    answers: list[str] = []
    scripted = Scripted(CODE.format("x"), DONE, DONE)
    with tooled(scripted, fake_kit(give)) as served:
        slow = threading.Thread(
            target=lambda: answers.append(ask(served, tools=[PYTHON]).output_text)
        )
        slow.start()
        assert begun.wait(LONG)
        assert ask(served).output_text == "Done."
        assert answers == []
        go_on.set()
        slow.join(LONG)
    assert answers == ["Done."]
    assert len(prompts(scripted)) == 3

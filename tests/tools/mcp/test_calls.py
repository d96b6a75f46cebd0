"""Calls of a server that answers well, oddly, too much or never; what the model reads of it."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.tools.mcp.result import TEXT_LIMIT, ImageFolder
from tests.tools.mcp.conftest import LONG, Start, call, odd, said

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": []}, "[no output]"),
        ({"content": [], "structuredContent": {"é": [1]}}, '{"é": [1]}'),
        ({"content": [{"type": "text", "text": "a"}], "structuredContent": {"b": 1}}, "a"),
        (
            {"content": [{"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}]},
            "[sound, audio/wav, that cannot be heard here]",
        ),
        (
            {"content": [{"type": "image", "data": "A", "mimeType": "image/png"}]},
            "[an image, image/png, that is broken]",
        ),
        (
            {"content": [{"type": "resource", "resource": {"uri": "a:b", "text": "T"}}]},
            "[a resource: a:b]\nT",
        ),
        (
            {
                "content": [
                    {"type": "resource", "resource": {"uri": "a:b", "blob": "", "mimeType": "x/y"}}
                ]
            },
            "[a resource that is no text: a:b, x/y]",
        ),
        (
            {
                "content": [
                    {"type": "resource_link", "name": "n", "uri": "a:b", "description": "D"},
                ]
            },
            "[a resource: n, a:b, D]",
        ),
    ],
)
def test_a_result_is_text(start: Start, result: dict[str, Any], text: str) -> None:
    (server,) = start(odd()).tools
    assert said(server, "result", **result) == text


def test_images_are_files_that_a_person_sees(start: Start) -> None:
    servers = start(odd())
    (server,) = servers.tools
    data = base64.b64encode(PNG).decode()
    images = [{"type": "image", "data": data, "mimeType": kind} for kind in ("image/png", "a/../b")]
    outcome = call(server, "result", content=images)
    assert [file.read_bytes() for file in outcome.files] == [PNG, PNG]
    assert [file.name for file in outcome.files] == ["image-1.png", "image-2.bin"]
    assert outcome.text.startswith("[an image, image/png, 8 B, that the user sees]\n")
    servers.close()
    assert all(file.exists() for file in outcome.files)


def test_images_leave_what_is_in_a_folder_as_it_is(tmp_path: Path) -> None:
    """A file of the same name, and what a link there leads to."""
    other = tmp_path / "other"
    other.write_bytes(b"kept")
    folder = tmp_path / "folder"
    images = ImageFolder(folder)
    assert not folder.exists()
    first = images.save(PNG, "image/png")
    (folder / "image-2.png").symlink_to(other)
    (folder / "image-3.png").symlink_to(tmp_path / "missing")
    again = [ImageFolder(folder).save(b"x", "image/png"), images.save(b"y", "image/png")]
    assert [path.name for path in (first, *again)] == [f"image-{n}.png" for n in (1, 4, 5)]
    assert (first.read_bytes(), other.read_bytes()) == (PNG, b"kept")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("result", {"content": [{"type": "text", "text": "no"}], "isError": True}, "no"),
        ("result", {"content": [{"type": "video"}]}, "The server odd gave no valid result."),
        ("result", {"content": None}, "The server odd gave no valid result."),
        ("error", {"message": "bad\nx"}, "The server odd gave an error: bad\nx"),
    ],
)
def test_what_goes_wrong_is_told(
    start: Start, name: str, arguments: dict[str, Any], text: str
) -> None:
    (server,) = start(odd()).tools
    outcome = call(server, name, **arguments)
    assert (outcome.failed, outcome.text) == (True, text)
    assert said(server, "echo", text_="still there") == "still there"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", None),
        ("[1]", "The arguments must be a JSON object: it is [1]"),
        ("{", "The arguments must be a JSON object: Expecting property name"),
        ('{"a": NaN}', "The arguments must be a JSON object: NaN is no number of JSON"),
        ("[" * 100_000, "The arguments must be a JSON object: it is nested too deeply"),
        ('{"text_": "\\ud83d"}', None),
    ],
)
def test_arguments_that_are_none_are_not_sent(start: Start, text: str, told: str | None) -> None:
    (server,) = start(odd()).tools
    outcome = server.call("functions.odd_echo", text)
    if told is None:
        assert (outcome.failed, outcome.text) == (False, "\ufffd" if text else "[no output]")
    else:
        assert outcome.failed
        assert outcome.text.startswith(told)


def test_a_text_that_is_long_is_cut_and_says_so(start: Start) -> None:
    (server,) = start(odd()).tools
    text = said(server, "large_text")
    size = 1 << 20
    assert text == "x" * TEXT_LIMIT + f"\n[cut: the first {TEXT_LIMIT} of {size} characters]"


def test_an_answer_of_100_mb_is_refused_and_the_server_goes_on(start: Start) -> None:
    (server,) = start(odd()).tools
    outcome = call(server, "large")
    assert outcome.failed
    assert "its answer has more than 16 MiB, the most that is read" in outcome.text
    assert said(server, "echo", text_="still there") == "still there"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("print_garbage", "after garbage"),
        ("flood_stderr", "after stderr"),
        ("wrong_ids", "yours"),
        ("half_a_character", "a\ufffd"),
    ],
)
def test_what_is_no_answer_is_passed_over(start: Start, name: str, text: str) -> None:
    servers = start(odd())
    (server,) = servers.tools
    assert said(server, name) == text
    assert servers.notes() == []


def test_a_call_has_a_time_and_the_server_is_told(start: Start) -> None:
    (server,) = start(odd(timeout=0.3)).tools
    outcome = call(server, "hang")
    assert (outcome.failed, outcome.text) == (
        True,
        "The server odd did not answer within 0.3 s, the limit of a call.",
    )
    assert len(json.loads(said(server, "was_cancelled"))) == 1


def test_a_call_that_is_ended_returns_at_once_and_the_server_is_told(start: Start) -> None:
    (server,) = start(odd()).tools
    asked = iter([False, False, True])
    begun = time.monotonic()
    outcome = server.call("functions.odd_hang", "{}", lambda: next(asked))
    assert time.monotonic() - begun < LONG / 2
    assert (outcome.failed, outcome.text) == (True, "The call was ended by the user.")
    assert len(json.loads(said(server, "was_cancelled"))) == 1


def test_a_call_that_is_interrupted_is_ended_as_well(start: Start) -> None:
    (server,) = start(odd()).tools

    def interrupt() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.call("functions.odd_hang", "{}", interrupt)
    assert len(json.loads(said(server, "was_cancelled"))) == 1


def test_a_server_gets_few_variables_and_those_of_its_file(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    (server,) = start(odd(MINE="y")).tools
    found = json.loads(said(server, "environment"))
    assert found["MINE"] == "y"
    shell = {"LC_CTYPE", "PWD", "OLDPWD", "SHLVL", "_"}
    assert found.keys() - shell <= {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "MINE"}


def test_what_a_client_cannot_do_is_refused(start: Start) -> None:
    """Sampling, elicitation and roots, by an error of the protocol; a ping is answered."""
    (server,) = start(odd()).tools
    sampling, elicitation, roots, ping = json.loads(said(server, "ask_back"))
    assert all(isinstance(code, int) for code in (sampling, elicitation, roots))
    assert ping is None

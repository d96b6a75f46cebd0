"""The file of other models: what it may hold, and that no key is ever shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_mlx.errors import OptionError
from gptoss_mlx.tools.models.endpoint import Endpoint, read_endpoints

GOOD = {"url": "https://api.example.com/v1", "model": "big"}
SECRET = "sk-very-secret"


def read(path: Path, value: Any, **environment: str) -> tuple[Endpoint, ...]:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_endpoints(path, environment)


def test_a_file_gives_its_models(tmp_path: Path) -> None:
    local = {"url": "http://127.0.0.1:8080/v1/", "model": "m", "rule": "allow", "time_limit": 5}
    models = {"big": {**GOOD, "key_env": "KEY"}, "local": local}
    big, other = read(tmp_path / "f", {"models": models}, KEY=SECRET)
    assert (big.name, big.model, big.key, big.rule) == ("big", "big", SECRET, "ask")
    assert big.target.geturl() == "https://api.example.com/v1/chat/completions"
    assert other.target.geturl() == "http://127.0.0.1:8080/v1/chat/completions"
    assert (other.rule, other.time_limit, other.key) == ("allow", 5, None)
    assert SECRET not in repr(big)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://a.test", "https://a.test/chat/completions"),
        ("https://a.test/v1/chat/completions", "https://a.test/v1/chat/completions"),
        ("https://a.test/v1?v=2", "https://a.test/v1/chat/completions?v=2"),
        ("http://[::1]:81/v1", "http://[::1]:81/v1/chat/completions"),
    ],
)
def test_requests_go_to_the_chat_completions_of_a_url(url: str, target: str) -> None:
    assert Endpoint("m", url, "m").target.geturl() == target


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "is not valid JSON"),
        ({}, "holds no models"),
        ({"models": {}}, "holds no models"),
        ({"models": []}, "holds no models"),
        ({"models": {"a": 1}}, "'a' is 1, but must be an object"),
        ({"models": {"a b": GOOD}}, "the name 'a b': use 1 to 64 letters"),
        ({"models": {"a": {"model": "m"}}}, "'' is not a URL"),
        ({"models": {"a": {**GOOD, "url": "ftp://x/"}}}, "is not a URL such as https://"),
        ({"models": {"a": {**GOOD, "url": "https://u:p@x/"}}}, "a user name or a password"),
        ({"models": {"a": {**GOOD, "url": "https://x/\n"}}}, None),
        ({"models": {"a": {**GOOD, "url": "https://x/a b"}}}, "has spaces"),
        ({"models": {"a": {**GOOD, "model": ""}}}, "the model is empty"),
        ({"models": {"a": {**GOOD, "key": SECRET}}}, "'key' is not understood"),
        ({"models": {"a": {**GOOD, "key_env": "NONE"}}}, "the environment has no 'NONE'"),
        ({"models": {"a": {**GOOD, "key_env": "BROKEN"}}}, "not of printable ASCII"),
        ({"models": {"a": {**GOOD, "rule": "deny"}}}, "must be allow or ask"),
        ({"models": {"a": {**GOOD, "time_limit": 0}}}, "not seconds above 0"),
        ({"models": {"a": {**GOOD, "time_limit": True}}}, "not seconds above 0"),
        ({"models": {"a": {**GOOD, "options": 1}}}, "options is 1"),
        ({"models": {"a": {**GOOD, "system": 1}}}, "system is 1, but must be a text"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(
    tmp_path: Path, value: Any, said: str | None
) -> None:
    if said is None:  # a newline at the end is none of the URL
        assert read(tmp_path / "f.json", value)
        return
    with pytest.raises(OptionError, match=said) as caught:
        read(tmp_path / "f.json", value, BROKEN=f"{SECRET}\n")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 'f.json'}: ")
    assert "\n" not in line
    assert SECRET not in line

"""Endpoints: other models that a person has configured, in a JSON file.

Keys stand in the environment, and are never shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gptoss_mlx.errors import CheckpointError, OptionError
from gptoss_mlx.files.jsonfile import read_json, shown
from gptoss_mlx.tools.approval import Rule

TIME_LIMIT = 120.0
"""Seconds of a call, where nothing else is said."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY = re.compile(r"[!-~]+")
_RULES: Mapping[str, Rule] = {"allow": "allow", "ask": "ask"}
_TEXTS = ("url", "model", "key_env", "description", "system", "rule")
_KEYS = (*_TEXTS, "options", "time_limit")


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible API.

    url: of the API, such as https://api.openai.com/v1. model: its id there. description: when it is
    to be asked. system: its instructions. options: further fields of each request. time_limit:
    seconds of a call. rule: of its calls. Raises OptionError.
    """

    name: str
    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    description: str = ""
    system: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    time_limit: float = TIME_LIMIT
    rule: Rule = "ask"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OptionError(
                f"the name {shown(self.name)}: use 1 to 64 letters, digits, underscores and hyphens"
            )
        _ = self.target
        if not self.model:
            raise OptionError(f"{self.name}: the model is empty")
        if self.key is not None and not _KEY.fullmatch(self.key):
            raise OptionError(f"{self.name}: the key is empty, or not of printable ASCII")
        limit = self.time_limit
        if isinstance(limit, bool) or not isfinite(limit) or limit <= 0:
            raise OptionError(f"{self.name}: time_limit is {shown(limit)}, not seconds above 0")

    @property
    def target(self) -> SplitResult:
        """Where requests go."""
        try:
            parts = urlsplit(self.url.strip())
            host = (parts.hostname or "").encode("idna").decode("ascii")
            port = parts.port
        except (ValueError, UnicodeError) as error:
            raise OptionError(f"{self.name}: {shown(self.url)} is not a URL") from error
        if parts.scheme not in ("http", "https") or not host or not parts.path.isascii():
            raise OptionError(
                f"{self.name}: {shown(self.url)} is not a URL such as https://api.openai.com/v1"
            )
        if "@" in parts.netloc or re.search(r"[\s\x00-\x20]", self.url.strip()):
            raise OptionError(f"{self.name}: the URL has spaces, a user name or a password in it")
        netloc = f"[{host}]" if ":" in host else host
        netloc += "" if port is None else f":{port}"
        path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        return SplitResult(parts.scheme, netloc, path, parts.query, "")


def read_endpoints(path: Path, environment: Mapping[str, str]) -> tuple[Endpoint, ...]:
    """The endpoints of a file: {"models": {NAME: {"url": ..., "model": ...}}}.

    environment: where the keys are. Raises OptionError, which names the file.
    """
    try:
        models = read_json(path).get("models")
        if not isinstance(models, dict) or not models:
            raise OptionError("holds no models: {NAME: {url, model}}")
        return tuple(_endpoint(name, given, environment) for name, given in models.items())
    except CheckpointError as error:
        raise OptionError(str(error)) from error
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def _endpoint(name: str, given: Any, environment: Mapping[str, str]) -> Endpoint:
    if not isinstance(given, dict):
        raise OptionError(f"{shown(name)} is {shown(given)}, but must be an object")
    for key, value in given.items():
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            raise OptionError(f"{shown(name)}: {shown(key)} is not understood, only {known}")
        if key in _TEXTS and not isinstance(value, str):
            raise OptionError(f"{shown(name)}: {key} is {shown(value)}, but must be a text")
    options, limit = given.get("options", {}), given.get("time_limit", TIME_LIMIT)
    rule = given.get("rule", "ask")
    if not isinstance(options, dict):
        raise OptionError(f"{shown(name)}: options is {shown(options)}, but must be an object")
    if not isinstance(limit, int | float):
        raise OptionError(f"{shown(name)}: time_limit is {shown(limit)}, not seconds above 0")
    if rule not in _RULES:
        raise OptionError(f"{shown(name)}: rule is {shown(rule)}, but must be allow or ask")
    return Endpoint(
        name,
        given.get("url", ""),
        given.get("model", ""),
        _key(name, given.get("key_env"), environment),
        given.get("description", ""),
        given.get("system"),
        options,
        limit,
        _RULES[rule],
    )


def _key(name: str, variable: str | None, environment: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    if variable not in environment:
        raise OptionError(f"{shown(name)}: the environment has no {shown(variable)}, for its key")
    return environment[variable]

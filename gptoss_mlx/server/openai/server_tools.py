"""The types of tools that OpenAI's servers run, and this server's tools that stand in for them.

A type that is not here is left out of what the model is offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.toolkit import Toolkit
from gptoss_mlx.system.units import show_bytes
from gptoss_mlx.tools.python.limits import Limits

STANDS_IN: Mapping[str, str] = {
    "code_interpreter": "python",
    "web_search": "browser",
    "web_search_2025_08_26": "browser",
    "web_search_preview": "browser",
    "web_search_preview_2025_03_11": "browser",
}
"""Type of a tool -> the server's tool by its name, which also is the builtin one's."""

_FLAGS = {
    "python": "--tool python",
    "browser": "--tool browser with --documents DIR or --search URL",
}
_GIB = 1 << 30


def stand_in(tool: JSON, kit: Toolkit, has_own: bool) -> str | None:
    """The server's tool that a client's tool means; None for one that is left out.

    has_own: whether the client has tools of its own beside it. Such agents ask for a search of the
    web whether there is one or not, and get along without. Raises Problem if the server has none
    otherwise, or cannot do what the tool's fields say.
    """
    kind = tool.get("type")
    name = STANDS_IN.get(kind) if isinstance(kind, str) else None
    if name is None:
        return None
    if name == "browser" and tool.get("external_web_access") is False and not kit.is_offline:
        return None
    if name not in kit.makers and name == "browser" and has_own:
        return None
    if name not in kit.makers:
        said = f"tools: this server runs no {kind}: start it with {_FLAGS[name]}"
        raise Problem(400, said, code="tool_not_available", param="tools")
    if name == "python":
        _check_container(tool.get("container"))
    elif (tool.get("filters") or {}) not in ({}, {"allowed_domains": []}):
        raise Problem(400, "tools: filters of a web search are not supported", param="tools")
    return name


def container_of(tool: JSON) -> str | None:
    """The id of the container that a tool is to run in; None for that of the conversation."""
    container = tool.get("container")
    return container if isinstance(container, str) else None


def _check_container(given: Any) -> None:
    """Raises Problem."""
    if given is None or isinstance(given, str):
        return
    if not isinstance(given, Mapping) or given.get("type", "auto") != "auto":
        raise _refused("container", given, "an id or of type auto")
    if given.get("file_ids"):
        raise _refused("container.file_ids", given["file_ids"], "left out: nothing is uploaded")
    policy = given.get("network_policy") or {"type": "disabled"}
    if not isinstance(policy, Mapping) or policy.get("type") != "disabled":
        raise _refused("container.network_policy", policy, "disabled: python has no network")
    size, most = given.get("memory_limit"), Limits().memory
    if size is not None and size not in [f"{n}g" for n in (1, 4, 16, 64) if n * _GIB <= most]:
        raise _refused("container.memory_limit", size, f"within {show_bytes(most)}")


def _refused(name: str, value: object, must: str) -> Problem:
    return Problem(400, f"tools: {name} is {shown(value)}, but must be {must}", param="tools")

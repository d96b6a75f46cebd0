"""The tool choice: of functions by their names, of builtin tools by their types."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss_mlx.errors import MessageError
from gptoss_mlx.harmony.tool_choice import read_tool_choice
from gptoss_mlx.harmony.tools import read_tools

TOOLS = read_tools([{"type": "function", "name": "f"}, {"type": "python"}, {"type": "browser"}])
F, PYTHON = {"type": "function", "name": "f"}, {"type": "python"}


@pytest.mark.parametrize(
    ("choice", "functions", "builtin", "must"),
    [
        (None, ["f"], ["python", "browser"], False),
        ("required", ["f"], ["python", "browser"], True),
        ("none", [], [], False),
        (F, ["f"], [], True),
        (PYTHON, [], ["python"], True),
        ({"type": "allowed_tools", "mode": "auto", "tools": [F]}, ["f"], [], False),
        ({"type": "allowed_tools", "tools": [PYTHON, F, PYTHON]}, ["f"], ["python"], False),
        ({"type": "allowed_tools", "mode": "required", "tools": [PYTHON]}, [], ["python"], True),
    ],
)
def test_a_choice_allows_some_tools(
    choice: Any, functions: list[str], builtin: list[str], must: bool
) -> None:
    chosen = read_tool_choice(choice, TOOLS)
    assert [function.name for function in chosen.tools.functions] == functions
    assert (list(chosen.tools.builtin), chosen.must) == (builtin, must)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"type": "python"}, "python is not among the tools"),
        ({"type": "allowed_tools", "tools": [{"type": "python"}]}, "python is not among"),
        ({"type": "function", "name": "g"}, "'g' is not among"),
        ({"type": "mcp"}, "must be auto, required, none or a function"),
        ({"type": ["python"]}, "must be auto"),
        ({"type": "allowed_tools", "tools": []}, "needs a list"),
        ({"type": "allowed_tools", "mode": "may", "tools": [F]}, "the mode is 'may'"),
    ],
)
def test_a_choice_of_what_is_not_there_is_refused(choice: Any, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        read_tool_choice(choice, read_tools([F]))

"""The effort of reasoning, by the words of every API."""

from __future__ import annotations

from gptoss_mlx.engine.options import Options
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.problems import Problem

_EFFORTS = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
"""Word -> the nearest that gpt-oss was trained for."""


def effort_options(word: str | None, param: str = "reasoning_effort") -> Options:
    """The options of an effort, none of them if it was not given. "none" forbids reasoning.

    Raises Problem.
    """
    if word is None:
        return {}
    if word not in _EFFORTS:
        known = ", ".join(_EFFORTS)
        raise Problem(400, f"{param} is {shown(word)}, but must be one of {known}", param=param)
    options: Options = {"reasoning": _EFFORTS[word]}
    if word == "none":
        options["reasoning_budget"] = 0
    return options

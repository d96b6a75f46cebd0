"""Another model as a server of one tool, which conversations share."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from gptoss_mlx.tools.models.endpoint import Endpoint
from gptoss_mlx.tools.models.tool import ModelTool
from gptoss_mlx.tools.tool_server import ListedTool, Listing


class ModelServer:
    """An endpoint, as `ToolServer`: its name is the tool's and the function's."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._tool = ModelTool(endpoint)
        self.name = self._tool.name

    def listing(self) -> Future[Listing]:
        (offer,) = self._tool.offers
        function: Mapping[str, Any] = offer["function"]  # type: ignore[assignment]
        tool = ListedTool(self.name, self.name, function["description"], function["parameters"])
        found = Future[Listing]()
        found.set_result(Listing((tool,)))
        return found

    def function(self, name: str) -> str:
        return name

    def tool(self, folder: Path) -> ModelTool:
        return self._tool

    def close(self) -> None:
        """Nothing is open."""

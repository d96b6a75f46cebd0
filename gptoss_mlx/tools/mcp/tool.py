"""A server's tools as one tool of the agent's loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any, NoReturn

from anyio.from_thread import BlockingPortal

from gptoss_mlx.harmony.encoding import with_whole_characters
from gptoss_mlx.spec.recipients import FUNCTIONS
from gptoss_mlx.tools.mcp.connection import Connection
from gptoss_mlx.tools.mcp.failure import CallFailedError
from gptoss_mlx.tools.mcp.result import ImageFolder, cut, read_result
from gptoss_mlx.tools.tool import Outcome, never

_TICK = 0.05  # seconds between two looks whether a call is to end


class McpTool:
    """One server's tools. portal: to the loop that the connection runs in."""

    def __init__(
        self, name: str, connection: Connection, portal: BlockingPortal, images: ImageFolder
    ) -> None:
        self.name = name
        self._connection, self._portal, self._images = connection, portal, images

    @property
    def offers(self) -> Sequence[Mapping[str, object]]:
        """The tools that the server lists now."""
        self._portal.call(self._connection.refresh)
        return [tool.offer for tool in self._connection.tools]

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        """As `Tool.call`. A server that fails is named in the outcome."""
        outcome = self._outcome(recipient, text, cancel)
        return replace(outcome, text=self._connection.hide(outcome.text))

    def close(self) -> None:
        """The server ends with the others of its file."""

    def _outcome(self, recipient: str, text: str, cancel: Callable[[], bool]) -> Outcome:
        function = recipient.removeprefix(FUNCTIONS)
        names = [tool.name for tool in self._connection.tools if tool.function == function]
        if not names:
            return Outcome(f"The server {self.name} has no {function[:80]} now.", failed=True)
        try:
            arguments = _arguments(text)
        except ValueError as error:
            return Outcome(f"The arguments must be a JSON object: {error}", failed=True)
        future = self._portal.start_task_soon(self._connection.call, names[0], arguments)
        try:
            while not wait([future], _TICK).done:
                if cancel():
                    return Outcome("The call was ended by the user.", failed=True)
            return read_result(future.result(), self._images)
        except CallFailedError as error:
            return Outcome(cut(with_whole_characters(str(error))), failed=True)
        finally:
            future.cancel()


def _arguments(text: str) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        value = json.loads(text or "{}", parse_constant=_refuse)
        value = json.loads(with_whole_characters(json.dumps(value, ensure_ascii=False)))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {text[:80]}")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")

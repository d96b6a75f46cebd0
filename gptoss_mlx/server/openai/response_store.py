"""The store of responses: those that ended, bounded in number and bytes, and those that run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.response_object import ResponseShown
from gptoss_mlx.server.openai.response_run import ResponseRun
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import encoded

MOST_RESPONSES = 1000
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Kept:
    """A response that has ended. items: what it was asked with, all earlier turns included; output:
    its own, with what only the model reads. container: of the tools that the server ran.

    nbytes: of all that as JSON. The turns that it shares with others count for each of them.
    """

    response: ResponseShown
    items: tuple[JSON, ...]
    output: tuple[JSON, ...]
    container: str | None
    nbytes: int

    @property
    def thread(self) -> tuple[JSON, ...]:
        """What the next response goes on from."""
        return (*self.items, *self.output)


def store_of(request: Request) -> ResponseStore:
    """The store of the app that a request came to."""
    store: ResponseStore = request.app.responses
    return store


class ResponseStore:
    """Drops what was used longest ago when it is full. Used in one event loop.

    nbytes: of what is kept, as JSON. running: those that have not ended, by id.
    """

    def __init__(self, most: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self.nbytes = 0
        self._owners: dict[str, str] = {}  # id of an item -> id of the newest response with it
        self.running: dict[str, ResponseRun] = {}

    def response(self, id: str) -> ResponseShown:
        """A response that runs or is kept. Raises Problem."""
        run = self.running.get(id)
        return self.find(id).response if run is None else run.snapshot()

    def find(self, id: str) -> Kept:
        """A response that is kept. Raises Problem."""
        if (kept := self._kept.get(id)) is None:
            raise Problem(404, f"no response has the id {shown(id)}", param="response_id")
        self._kept.move_to_end(id)
        return kept

    def thread(self, id: str | None) -> tuple[JSON, ...]:
        """The items that a response after this one goes on from. Raises Problem."""
        if id is None:
            return ()
        if id not in self._kept:
            why = "is not finished" if id in self.running else "is not kept, or not any more"
            raise Problem(
                400,
                f"the previous response {shown(id)} {why}",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        return self.find(id).thread

    def container(self, id: str | None) -> str | None:
        """The container of the response that another one goes on from."""
        kept = None if id is None else self._kept.get(id)
        return None if kept is None else kept.container

    def item(self, id: str) -> JSON | None:
        """An item of any response that is kept."""
        owner = self._owners.get(id)
        # The owner may be gone, and an earlier response have the item as well.
        where = self._kept.values() if owner is None else [self._kept[owner]]
        return next((i for kept in where for i in kept.thread if i.get("id") == id), None)

    def keep(
        self,
        response: ResponseShown,
        items: Sequence[JSON],
        output: Sequence[JSON] | None = None,
        container: str | None = None,
    ) -> None:
        """Keep a response, unless it alone is too large. output: its items, if more is kept."""
        if output is None:
            output = cast(list[JSON], response["output"])
        nbytes = len(encoded(response)) + len(encoded(items)) + len(encoded(output))
        if nbytes > self._most_bytes:
            return
        id = response["id"]
        kept = Kept(response, tuple(items), tuple(output), container, nbytes)
        self._kept[id] = kept
        self.nbytes += nbytes
        self._owners |= {str(item.get("id")): id for item in kept.thread}
        while len(self._kept) > self._most or self.nbytes > self._most_bytes:
            self.remove(next(iter(self._kept)))

    def remove(self, id: str) -> None:
        """Raises Problem."""
        kept = self.find(id)
        del self._kept[id]
        self.nbytes -= kept.nbytes
        for item in kept.thread:
            if self._owners.get(str(item.get("id"))) == id:
                del self._owners[str(item.get("id"))]

"""Pages of a list, by the query's `limit`, `order` and `after`, as OpenAI's API has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from typing_extensions import TypedDict

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.problems import Problem

MOST_LISTED = 100
LISTED = 20


class ItemList(TypedDict):
    object: Literal["list"]
    data: list[JSON]
    first_id: str
    last_id: str
    has_more: bool


def page_of(items: Sequence[JSON], query: Mapping[str, str]) -> ItemList:
    """A page of items that have ids, which are given oldest first; the newest is first unless the
    order is `asc`. Raises Problem."""
    items = list(items) if query.get("order", "desc") == "asc" else list(reversed(items))
    begin = 0
    if (after := query.get("after")) is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise Problem(400, f"after: no item has the id {shown(after)}", param="after")
        begin = ids.index(after) + 1
    limit = _limit(query.get("limit"))
    page = items[begin : begin + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": begin + limit < len(items),
    }


def _limit(given: str | None) -> int:
    """Raises Problem."""
    if given is None:
        return LISTED
    if not given.isascii() or not given.isdecimal() or not 1 <= int(given[:9]) <= MOST_LISTED:
        said = f"limit is {shown(given)}, but must be from 1 to {MOST_LISTED}"
        raise Problem(400, said, param="limit")
    return int(given)

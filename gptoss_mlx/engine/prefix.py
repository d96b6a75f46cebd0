"""The prefix store: a tree over token prefixes, with copies of their keys and values.

A node is a segment of tokens that ends where a snapshot was taken; it holds what the device has of
its own tokens, and the rings at its end. A node's name is the hash of its tokens and of its
parent's name, so conversations with one beginning share it. The nodes take up to a budget of bytes,
from which the leaves used longest ago go first. With a `FileStore` each node is also a file, which
is read back when it is wanted and no longer, or not yet, in memory.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count

import numpy as np
from numpy.typing import NDArray

from gptoss_mlx.backends.protocol import AnyModel, Layout, Segment
from gptoss_mlx.backends.state import layout_bytes
from gptoss_mlx.engine.session import Session
from gptoss_mlx.files.sealed import SEAL
from gptoss_mlx.files.shard import header_bytes
from gptoss_mlx.files.store import OWNER_DIGITS, Entry, FileStore

FORMAT = "gptoss_mlx prefix 1"


@dataclass(eq=False)
class Node:
    """Tokens `start` to `end` of a prefix. used: the store's clock when it was last wanted."""

    name: str
    parent: str
    tokens: array[int]
    segment: Segment | None
    start: int = 0
    used: int = 0
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def nbytes(self) -> int:
        return 0 if self.segment is None else self.segment.nbytes


class PrefixStore:
    """Prefixes of sequences of one model. budget: bytes on the device; 0 keeps nothing.

    identity: of the model and of how it computes; nodes with another are none of ours.
    """

    def __init__(
        self, model: AnyModel, budget: int, identity: str = "", files: FileStore | None = None
    ) -> None:
        self.model, self.budget, self.files = model, budget, files if budget else None
        self.root = Node(root_name(identity), "", array("I"), None)
        self.tokens_restored = 0
        self._clock = count(1)
        self.trouble: tuple[str, ...] = ()
        """What a person should know: a line, or none. `files` has notes of its own."""

    @property
    def nbytes(self) -> int:
        """Bytes that the nodes hold on the device."""
        return sum(node.nbytes for node in self._nodes())

    def give_up(self, error: Exception) -> None:
        """Keep nothing from now on, after an error."""
        self.budget = 0
        self.root.children.clear()
        self.trouble = (f"the prefix store is off after an error: {error!r}",)

    def find(self, ids: Sequence[int]) -> list[Node]:
        """The nodes, in memory, of the longest prefix that leaves the last token to be read."""
        if not self.budget:
            return []
        ids = array("I", ids[:-1])
        while True:
            names = self._longest(ids)
            path, complete = self._in_memory(names, ids)
            if complete:
                self._use(path)
                return path

    def restore(self, path: Sequence[Node]) -> Session:
        """A session of a copy of the nodes' keys and values."""
        tokens = [id for node in path for id in node.tokens]
        session = Session(
            self.model, tokens=tokens, segments=[n.segment for n in path if n.segment is not None]
        )
        self.tokens_restored += len(tokens)
        return session

    def insert(self, session: Session, most: int | None = None) -> None:
        """Copy a session up to its last snapshot, of those up to `most` tokens if that is given, as
        far as the nodes do not hold it yet, and as far as the budget goes."""
        ends = [s.offset for s in session.snapshots if most is None or s.offset <= most]
        if not (self.budget and ends):
            return
        last = ends[-1]
        ids, path = array("I", session.tokens[:last]), [self.root]
        while path[-1].end < last:
            node = path[-1]
            below = (n for n in node.children.values() if n.end <= last and _is_in(n, ids))
            child = max(below, key=lambda n: n.end, default=None)
            if child is None:
                snapshot = next(s for s in session.snapshots if s.offset > node.end)
                tokens = ids[node.end : snapshot.offset]
                if not self._make_room(layout_bytes(self.model.layout(len(tokens))), path):
                    break
                segment = session.state.segment(node.end, snapshot)
                child = self._add(node, tokens, segment)
            self._write(child)
            path.append(child)
        self._use(path[1:])

    def _add(self, parent: Node, tokens: array[int], segment: Segment) -> Node:
        name = child_name(parent.name, tokens)
        node = Node(name, parent.name, tokens, segment, parent.end, next(self._clock))
        parent.children[name] = node
        return node

    def _nodes(self) -> Iterator[Node]:
        """All nodes but the root, each before those below it."""
        below = [*self.root.children.values()]
        while below:
            yield (node := below.pop())
            below += node.children.values()

    def _use(self, path: Sequence[Node]) -> None:
        now = next(self._clock)
        for node in path:
            node.used = now
        if self.files is not None and path:
            self.files.touch([self._entry(node) for node in path])

    def _make_room(self, nbytes: int, path: Sequence[Node]) -> bool:
        """Remove leaves, used longest ago first and none of the path, until `nbytes` more fit;
        False, and nothing is removed, if they never will."""
        nodes = {node.name: node for node in self._nodes()}
        held = sum(node.nbytes for node in nodes.values())
        if sum(node.nbytes for node in path) + nbytes > self.budget:
            return False
        safe = {node.name for node in path}
        leaves = [(n.used, -n.end, n.name) for n in nodes.values() if not n.children]
        heapq.heapify(leaves)
        while held + nbytes > self.budget:
            node = nodes[heapq.heappop(leaves)[-1]]
            if node.name in safe:
                continue
            parent = nodes.get(node.parent, self.root)
            del parent.children[node.name]
            held -= node.nbytes
            if not parent.children and parent is not self.root:
                heapq.heappush(leaves, (parent.used, -parent.end, parent.name))
        return True

    def _longest(self, ids: array[int]) -> list[str]:
        """The names of the longest path in memory and on the disk that is a prefix of ids."""
        best: tuple[int, list[str]] = 0, []
        paths: list[tuple[int, Node | None, list[str]]] = [(0, self.root, [])]
        while paths:
            end, node, names = paths.pop()
            best = max(best, (end, names), key=lambda found: found[0])
            name = names[-1] if names else self.root.name
            sizes: dict[str, int] = {}
            if self.files is not None:
                sizes = {entry.name: entry.size for entry in self.files.below(name).values()}
            if node is not None:
                sizes |= {child.name: len(child.tokens) for child in node.children.values()}
            known = {size: child_name(name, ids[end : end + size]) for size in {*sizes.values()}}
            for child, size in sizes.items():
                if end + size <= len(ids) and known[size] == child:
                    below = None if node is None else node.children.get(child)
                    paths.append((end + size, below, [*names, child]))
        return best[1]

    def _in_memory(self, names: Sequence[str], ids: array[int]) -> tuple[list[Node], bool]:
        """The nodes of these names, read from the disk where necessary, as far as the budget goes;
        and whether no file turned out to be damaged or gone."""
        path = [self.root]
        for name in names:
            node = path[-1].children.get(name)
            if node is None:
                assert self.files is not None
                entry = self.files.below(path[-1].name).get(name)
                if entry is None:
                    return path[1:], False
                tokens = ids[path[-1].end : path[-1].end + entry.size]
                layout = self.model.layout(len(tokens))
                if not self._make_room(layout_bytes(layout), path):
                    break
                node = self._read(path[-1], entry, tokens, layout)
                if node is None:
                    return path[1:], False
            path.append(node)
        return path[1:], True

    def _read(self, parent: Node, entry: Entry, tokens: array[int], layout: Layout) -> Node | None:
        """The node in a file; None if the file is not what it should be."""
        assert self.files is not None
        whole = _with_tokens(layout, len(tokens))
        body = self.files.read(entry, _header(entry, parent.end, whole), layout_bytes(whole))
        if body is None or body[: tokens.itemsize * len(tokens)].tobytes() != tokens.tobytes():
            self.files.forget(entry)
            return None
        arrays, begin = [], 0
        for name, described in whole.items():
            end = begin + layout_bytes({name: described})
            arrays.append(body[begin:end])
            begin = end
        segment = self.model.from_host(parent.end, parent.end + len(tokens), arrays[1:])
        return self._add(parent, tokens, segment)

    def _write(self, node: Node) -> None:
        entry = self._entry(node)
        if self.files is None or node.segment is None or self.files.holds(entry):
            return
        layout = _with_tokens(self.model.layout(len(node.tokens)), len(node.tokens))
        parts = [_bytes(node.tokens), *self.model.to_host(node.segment)]
        self.files.write(entry, _header(entry, node.start, layout), parts)

    def _entry(self, node: Node) -> Entry:
        return Entry(self.root.name[:OWNER_DIGITS], node.parent, node.name, len(node.tokens))

    def close(self) -> None:
        """Free all nodes, and wait until what was to be written is."""
        self.root.children.clear()
        if self.files is not None:
            self.files.close()


def root_name(identity: str) -> str:
    return child_name(f"{FORMAT} {identity}", array("I"))


def child_name(parent: str, tokens: array[int]) -> str:
    """40 hex digits that stand for a prefix: these tokens after those of the parent."""
    return blake2b(parent.encode() + b"\n" + tokens.tobytes(), digest_size=20).hexdigest()


def _is_in(node: Node, ids: array[int]) -> bool:
    return ids[node.start : node.end] == node.tokens


def _with_tokens(layout: Layout, tokens: int) -> Layout:
    return {"tokens": ("U32", (tokens,)), **layout}


def _bytes(tokens: array[int]) -> NDArray[np.uint8]:
    return np.frombuffer(tokens.tobytes(), np.uint8)


def _header(entry: Entry, start: int, layout: Layout) -> bytes:
    """The header of a node's file, not sealed yet."""
    said = {"format": FORMAT, "parent": entry.parent, "name": entry.name, "start": str(start)}
    return header_bytes(layout, {**said, "digest": SEAL})

"""Idle sessions: those of sequences that have ended, live on the device, and the prefix store.

A session goes on in place, without a copy, where it holds more of the next prompt than any other
and than the store. One that has to make room for another conversation is copied into the store
before. With a store on the disk every session is, as soon as it is idle, so that it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_mlx.backends.protocol import AnyModel
from gptoss_mlx.engine.prefix import Node, PrefixStore
from gptoss_mlx.engine.session import Session


class Idle:
    """At most as many sessions as the model has rows, those of active sequences counted."""

    def __init__(self, model: AnyModel, store: PrefixStore) -> None:
        self._model, self.store = model, store
        self.sessions: tuple[Session, ...] = ()
        """The one used longest ago first."""

    def choose(self, ids: Sequence[int], active: Sequence[Session]) -> Session:
        """The session for a prompt, beside those of active sequences: an idle one, which stays in
        the list, or a new one, for which there is then a row."""
        best = max(reversed(self.sessions), key=lambda s: s.reusable(ids), default=None)
        held = 0 if best is None else best.reusable(ids)
        lost = best is not None and held > 0 and best.loses(ids)
        if best is not None and lost:
            self._copy(best)
        path = self._longest(ids, held, active)
        stored = path[-1].end if path else 0
        # Where a row is free, a session that others may ask for stays, and its copy goes on.
        fork = lost and len(active) + len(self.sessions) < self._model.rows
        if best is not None and held and (held > stored or (held == stored and not fork)):
            return best
        self._make_room(len(active) + 1)
        restored = self._restore(path) if path else None
        return restored or Session(self._model)

    def _longest(self, ids: Sequence[int], held: int, active: Sequence[Session]) -> list[Node]:
        """The longest path of the store, with what an active sequence has more than it and than
        `held` tokens copied into it."""
        path = self._find(ids)
        stored = path[-1].end if path else 0
        source = max(active, key=lambda s: s.shared(ids), default=None)
        if source is None or source.shared(ids) <= max(held, stored):
            return path
        self._copy(source, source.shared(ids))
        return self._find(ids)

    def keep(self, session: Session, active: int) -> None:
        """Add a session, beside so many of active sequences."""
        self.sessions = (*self.sessions, session)
        if self.store.files is not None:
            self._copy(session)
        self._make_room(active)

    def remove(self, session: Session) -> None:
        """Remove a session from the list, if it is there."""
        self.sessions = tuple(one for one in self.sessions if one is not session)

    def close(self) -> None:
        """Free everything, and wait until what was to be written to the disk is."""
        while self.sessions:
            *_, session = self.sessions
            self.remove(session)
            session.close()
        self.store.close()

    def _make_room(self, others: int) -> None:
        """Close sessions, used longest ago first, until no more than the rows are alive."""
        while self.sessions and others + len(self.sessions) > self._model.rows:
            session = self.sessions[0]
            self._copy(session)
            self.remove(session)
            session.close()

    def _copy(self, session: Session, most: int | None = None) -> None:
        try:
            self.store.insert(session, most)
        except Exception as error:  # of any kind: an answer does not depend on the store
            self.store.give_up(error)

    def _find(self, ids: Sequence[int]) -> list[Node]:
        try:
            return self.store.find(ids)
        except Exception as error:  # of any kind, as above
            self.store.give_up(error)
        return []

    def _restore(self, path: Sequence[Node]) -> Session | None:
        try:
            return self.store.restore(path)
        except Exception as error:  # of any kind, as above
            self.store.give_up(error)
        return None

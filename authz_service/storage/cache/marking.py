"""What a write tells the cache, and when: marks before COMMIT, bumps after it.

``database.py`` is the only caller and the only place that knows the order (consistency.md 4.8).
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Protocol

from sqlalchemy import Connection

from authz_service.base.consistency import ENVIRONMENT, Position
from authz_service.engine.tags import ORGANIZATION, TAGS_MAX
from authz_service.storage.cache.control import Control

Tags = Mapping[str, frozenset[str]]


class Marked(Protocol):
    """The marks of one attempt of a write."""

    def bump(self, *, committed: bool) -> Mapping[str, Position]:
        """Lifts the marks, whether the attempt committed or failed for certain.

        A committed write that cannot be made known waits here until nobody uses the cache.

        Returns:
            Realm to its position with this write; empty where nothing was marked.
        """
        ...


class NotMarked(Exception):
    """A write that could not be marked, so that it must not commit.

    Attributes:
        mend: To be called after the rollback; then the write is run again.
    """

    def __init__(self, mend: Callable[[], None]) -> None:
        super().__init__()
        self.mend = mend


class Marking(Protocol):
    """Marks writes, in whatever cache there is."""

    def mark(self, connection: Connection, tags: Tags) -> Marked:
        """Marks the tags of a write, as the last thing before its COMMIT.

        Raises:
            NotMarked: It must be rolled back.
        """
        ...


class Unmarked:
    """The marks of a write where there is no cache, or of one that changes no fact."""

    def bump(self, *, committed: bool) -> Mapping[str, Position]:
        return {}


class NoMarking:
    """Where nothing is cached, nothing needs marks."""

    def mark(self, connection: Connection, tags: Tags) -> Marked:
        return Unmarked()


class ControlMarked:
    """Marks in control sets."""

    def __init__(self, control: Control, mark: str, tags: Tags) -> None:
        self._control, self._mark, self._tags = control, mark, tags

    def bump(self, *, committed: bool) -> Mapping[str, Position]:
        sequences = self._control.bump(self._mark, self._tags)
        return {
            realm: Position(self._control.name, sequence)
            for realm, sequence in sequences.items()
            if sequence
        }


class MemoryMarking:
    """Marks in the control sets of this process, which cannot fail."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def mark(self, connection: Connection, tags: Tags) -> Marked:
        marked = bounded(tags)
        if not marked:
            return Unmarked()
        mark = secrets.token_hex(8)
        self._control.mark(mark, marked)
        return ControlMarked(self._control, mark, marked)


def bounded(tags: Tags) -> Tags:
    """Returns what is marked: very many tags of an organization are all of it."""
    return {
        realm: (
            marked if len(marked) <= TAGS_MAX or realm == ENVIRONMENT else frozenset({ORGANIZATION})
        )
        for realm, marked in tags.items()
        if marked
    }

"""The control sets of one process that has the database to itself (consistency.md 4.12)."""

import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from authz_service.engine.tags import ENVIRONMENT_DEFINITIONS
from authz_service.storage.cache.control import (
    CHANGES_MAX,
    Look,
    Lost,
    Opened,
    Poller,
    Replies,
    Reply,
)


class _Set:
    """A control set.

    Attributes:
        scores: Tag to the sequence of its last finished write, the latest at the end.
        marks: Tag to the marks on it; a tag without one is missing.
        floor: Scores below it were trimmed.
    """

    __slots__ = ("floor", "marks", "nonce", "scores", "sequence")

    def __init__(self) -> None:
        self.nonce = secrets.token_hex(8)
        self.sequence = 0
        self.scores: dict[str, int] = {}
        self.marks: dict[str, set[str]] = {}
        self.floor = 0


class MemoryControl:
    """Keeps control sets in this process. It never fails and never ends.

    Args:
        members_max: Tags of one set; above it the older half goes.
    """

    is_shared = False
    is_over = False

    def __init__(self, members_max: int = 20_000) -> None:
        self.name = secrets.token_hex(6)
        self._members_max = members_max
        self._sets: dict[str, _Set] = {}
        self._lock = threading.Lock()

    def is_alive(self) -> bool:
        return True

    def open(self, realms: Collection[str]) -> Mapping[str, Opened] | None:
        with self._lock:
            found = {}
            for realm in realms:
                it = self._set(realm)
                found[realm] = Opened(
                    it.nonce, it.sequence, it.scores.get(ENVIRONMENT_DEFINITIONS, 0)
                )
            return found

    def validate(self, looks: Sequence[Look]) -> Replies | None:
        with self._lock:
            return [self._reply(look) for look in looks]

    def validate_soon(
        self, looks: Sequence[Look], then: Callable[[Replies | None], None], poller: Poller
    ) -> None:
        then(self.validate(looks))

    def _reply(self, look: Look) -> Reply | Lost:
        it = self._sets.get(look.realm)
        if it is None or it.nonce != look.nonce:
            return Lost("nonce")
        pending = frozenset(it.marks)
        if it.sequence == look.last:
            return Reply(look.last, (), pending)
        if it.floor > look.last:
            return Lost("floor")
        changed = []
        for tag in reversed(it.scores):
            score = it.scores[tag]
            if score <= look.last:
                break
            changed.append((tag, score))
            if len(changed) == CHANGES_MAX:
                return Lost("changes")
        return Reply(it.sequence, tuple(changed), pending)

    def read(
        self, looks: Sequence[Look], keys: Sequence[Sequence[str]]
    ) -> tuple[Replies, list[list[bytes | None]]] | None:
        with self._lock:
            replies = [self._reply(look) for look in looks]
        return replies, [[None] * len(wanted) for wanted in keys]

    def share(self, realm: str, key: str, entry: bytes, milliseconds: int) -> None:
        return

    def mark(self, mark: str, tags: Mapping[str, Collection[str]]) -> bool:
        with self._lock:
            for realm, marked in tags.items():
                marks = self._set(realm).marks
                for tag in marked:
                    marks.setdefault(tag, set()).add(mark)
        return True

    def bump(self, mark: str, tags: Mapping[str, Collection[str]]) -> Mapping[str, int]:
        with self._lock:
            return {realm: self._bump(self._set(realm), mark, tags[realm]) for realm in tags}

    def _bump(self, it: _Set, mark: str, tags: Collection[str]) -> int:
        if not all(mark in it.marks.get(tag, ()) for tag in tags):
            return 0
        it.sequence += 1
        for tag in tags:
            marks = it.marks[tag]
            marks.discard(mark)
            if not marks:
                del it.marks[tag]
            # To the end: the latest change is found first.
            it.scores.pop(tag, None)
            it.scores[tag] = it.sequence
        if len(it.scores) > self._members_max:
            self._trim(it)
        return it.sequence

    @staticmethod
    def _trim(it: _Set) -> None:
        kept = list(it.scores.items())[len(it.scores) // 2 :]
        it.floor = kept[0][1]
        definitions = it.scores.get(ENVIRONMENT_DEFINITIONS)
        it.scores = dict(kept)
        if definitions is not None and ENVIRONMENT_DEFINITIONS not in it.scores:
            # Never trimmed: without it nobody could tell when the definitions last changed. It is
            # the oldest of all, so it stands first.
            it.scores = {ENVIRONMENT_DEFINITIONS: definitions, **it.scores}

    def fence(self) -> None:
        """Begins a new life: nothing that was cached before is used any more.

        The marks of writes under way go on with it.
        """
        with self._lock:
            before, self._sets = self._sets, {}
            for realm, old in before.items():
                if old.marks:
                    self._set(realm).marks = old.marks
            self.name = secrets.token_hex(6)

    def _set(self, realm: str) -> _Set:
        it = self._sets.get(realm)
        if it is None:
            it = self._sets[realm] = _Set()
        return it

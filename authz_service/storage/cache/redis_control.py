"""The control sets of one life of the cache in Redis (consistency.md 2.2 and 4.2)."""

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from authz_service.base.clock import boot_seconds
from authz_service.storage.cache.breaker import Breaker
from authz_service.storage.cache.control import (
    CHANGES_MAX,
    Look,
    Lost,
    Opened,
    Poller,
    Replies,
    Reply,
)
from authz_service.storage.cache.prompt import Prompt
from authz_service.storage.cache.redis_connections import (
    Call,
    Connections,
    NoScript,
    Refused,
    packed,
)
from authz_service.storage.cache.scripts import BUMP, MARK, OPEN, READ
from authz_service.telemetry.metrics import Metrics

# Entries that wait to be shared, and those sent together.
_WAITING_MAX, _SHARED_TOGETHER = 4_096, 64
# A mark that no reply has shown for this long is taken for gone.
_LATELY = 5.0
# Realms whose command is kept packed.
_HEADS_MAX = 10_000
# How ``look`` ends, as it is sent.
_TAIL = packed([(b"WITHSCORES", b"LIMIT", b"0", CHANGES_MAX)]).partition(b"\r\n")[2]
_SEQUENCE, _FLOOR, _NONCE, _MARK = b"s", b"f", b"n:", b"p:"


class RedisControl:
    """The control sets of one life, for as long as this process has a lease on it.

    Args:
        name: Of the life; in every key.
        connections: To the Redis process the life is in.
        is_leased: Tells whether this process still has its lease.
        lost: Told why, when the life is found to be over in Redis.
        mark_seconds: The longest wait for a mark.
        members_max: Tags of one set.
    """

    is_shared = True

    def __init__(
        self,
        name: str,
        connections: Connections,
        *,
        is_leased: Callable[[], bool],
        lost: Callable[[str], None],
        metrics: Metrics,
        mark_seconds: float,
        members_max: int,
    ) -> None:
        self.name = name
        self.is_over = False
        self.connections = connections
        self._is_leased = is_leased
        self._lost = lost
        self._metrics = metrics
        self._mark_seconds = mark_seconds
        self._members_max = members_max
        self._sharing: queue.Queue[tuple[str, bytes, int]] = queue.Queue(_WAITING_MAX)
        self._heads: dict[str, bytes] = {}
        self._marks: dict[tuple[str, str], _Seen] = {}
        # When the last reply of each realm was read: a mark that it did not show is gone.
        self._looked: dict[str, float] = {}
        self._lock = threading.Lock()
        self._prompt: Prompt | None = None
        # For reads alone: a write must be marked, or the cache be left.
        self._breaker = Breaker()
        # In braces, so that a cluster keeps the registry and its sets in one place.
        self.registry = f"az:{{{name}}}"

    def key(self, realm: str) -> str:
        """Returns the key of a control set."""
        return f"{self.registry}:{realm}:z"

    def is_alive(self) -> bool:
        return self._is_leased()

    def open(self, realms: Collection[str]) -> Mapping[str, Opened] | None:
        if self._breaker.is_open:
            return None
        try:
            answers = self.connections.scripts(
                OPEN,
                *(
                    ((self.registry, self.key(realm)), (realm, secrets.token_hex(8)))
                    for realm in realms
                ),
            )
        except Refused:
            self._breaker.failed()
            return None
        self._breaker.worked()
        found = {}
        for realm, answer in zip(realms, answers, strict=True):
            if isinstance(answer, int):
                self._lost("registry" if answer == -1 else "set")
                return None
            nonce, sequence, definitions = answer
            found[realm] = Opened(nonce.decode(), int(sequence), int(definitions))
        return found

    def validate(self, looks: Sequence[Look]) -> Replies | None:
        if self._breaker.is_open:
            return None
        try:
            answers = self.connections.exchange(
                "validate", b"".join(self._packed(look) for look in looks), len(looks)
            )
        except Refused:
            self._breaker.failed()
            return None
        self._breaker.worked()
        return [self._reply(look, answer) for look, answer in zip(looks, answers, strict=True)]

    def validate_soon(
        self, looks: Sequence[Look], then: Callable[[Replies | None], None], poller: Poller
    ) -> None:
        if self._breaker.is_open:
            then(None)
            return
        prompt = self._prompt
        if prompt is None:
            prompt = self._prompt = Prompt(
                self.connections, poller, self.connections.timeout_seconds, self._metrics
            )

        def answered(answers: list[Any] | None) -> None:
            # That there is no answer may mean that the connection is being made: others find out.
            if answers is not None:
                self._breaker.worked()
            then(
                None
                if answers is None
                else [
                    self._reply(look, answer) for look, answer in zip(looks, answers, strict=True)
                ]
            )

        packet = b"".join([self._packed(look) for look in looks])
        prompt.send("validate", packet, len(looks), answered)

    def _reply(self, look: Look, answer: Sequence[Any]) -> Reply | Lost:
        self._looked[look.realm] = boot_seconds()
        return reply(look, answer, self._note)

    def _packed(self, look: Look) -> bytes:
        """Returns ``look`` as it is sent: most of it is the same for each call of a realm."""
        head = self._heads.get(look.realm)
        if head is None:
            # Up to the one word that changes.
            words = packed([self.look(look)]).partition(b"$%d\r\n(" % len(f"({look.last}"))
            if len(self._heads) >= _HEADS_MAX:
                self._heads.clear()
            head = self._heads[look.realm] = words[0]
        last = b"(%d" % look.last
        return b"%b$%d\r\n%b\r\n%b" % (head, len(last), last, _TAIL)

    def _note(self, realm: str, mark: str, tag: str) -> None:
        """Remembers since when a mark is there."""
        now = boot_seconds()
        with self._lock:
            seen = self._marks.setdefault((realm, mark), _Seen(now))
            seen.last = now
            seen.tags.add(tag)

    def marks_seen(self) -> list[tuple[str, str, frozenset[str], float]]:
        """Returns realm, mark, tags and age in seconds of the marks seen last, and lately."""
        now = boot_seconds()
        with self._lock:
            for key in [key for key, seen in self._marks.items() if now - seen.last > _LATELY]:
                del self._marks[key]
            return [
                (realm, mark, frozenset(seen.tags), now - seen.first)
                for (realm, mark), seen in self._marks.items()
                if seen.last >= self._looked.get(realm, 0.0)
            ]

    def read(
        self, looks: Sequence[Look], keys: Sequence[Sequence[str]]
    ) -> tuple[Replies, list[list[bytes | None]]] | None:
        commands = [
            self.connections.call(
                READ,
                (self.key(look.realm), *(self.entry(look.realm, each) for each in wanted)),
                (look.last, CHANGES_MAX, look.nonce),
            )
            if wanted
            else self.look(look)
            for look, wanted in zip(looks, keys, strict=True)
        ]
        try:
            try:
                answers = self.connections.commands("read", *commands)
            except NoScript:
                # A new Redis knows no script. Reading twice does no harm.
                self.connections.load(READ)
                answers = self.connections.commands("read", *commands)
        except (NoScript, Refused):
            self._breaker.failed()
            return None
        self._breaker.worked()
        replies = []
        entries: list[list[bytes | None]] = []
        for look, wanted, answer in zip(looks, keys, answers, strict=True):
            changes = answer[0] if wanted else answer
            replies.append(self._reply(look, changes))
            entries.append(list(answer[1:]) if wanted else [])
        return replies, entries

    def entry(self, realm: str, key: str) -> str:
        """Returns the key of a shared entry."""
        return f"{self.registry}:{realm}:e:{key}"

    def share(self, realm: str, key: str, entry: bytes, milliseconds: int) -> None:
        with contextlib.suppress(queue.Full):
            self._sharing.put_nowait((self.entry(realm, key), entry, milliseconds))

    def share_next(self, seconds: float) -> None:
        """Sends what waits to be shared; for a thread of its own.

        Args:
            seconds: The longest wait for something to send.
        """
        try:
            waiting = [self._sharing.get(timeout=seconds)]
        except queue.Empty:
            return
        with contextlib.suppress(queue.Empty):
            while len(waiting) < _SHARED_TOGETHER:
                waiting.append(self._sharing.get_nowait())
        # Late, doubled or lost: the entry is judged by whoever reads it.
        try:
            self.connections.commands(
                "fill",
                *((b"SET", key, entry, b"PX", lasting) for key, entry, lasting in waiting),
            )
        except Refused:
            self._metrics.cache_fills.add("failed", amount=len(waiting))

    def look(self, look: Look) -> tuple[bytes | str | int, ...]:
        """Returns the command that reads a control set: highest scores first, marks before all."""
        return (
            b"ZREVRANGEBYSCORE", self.key(look.realm), b"+inf", b"(%d" % look.last,
            b"WITHSCORES", b"LIMIT", b"0", CHANGES_MAX,
        )  # fmt: skip

    def mark(self, mark: str, tags: Mapping[str, Collection[str]]) -> bool:
        realms = sorted(tags)
        try:
            answers = self.connections.scripts(
                MARK,
                *(
                    (
                        (self.registry, self.key(realm)),
                        (realm, secrets.token_hex(8), mark, *sorted(tags[realm])),
                    )
                    for realm in realms
                ),
                timeout_seconds=self._mark_seconds,
            )
        except Refused as refused:
            self._metrics.cache_mark_failures.add(refused.reason)
            return False
        wrong = [answer for answer in answers if answer != 1]
        if wrong:
            self._metrics.cache_mark_failures.add("registry" if -1 in wrong else "set")
        return not wrong

    def bump(self, mark: str, tags: Mapping[str, Collection[str]]) -> Mapping[str, int]:
        realms = sorted(tags)
        calls: list[Call] = [
            ((self.key(realm),), (self._members_max, mark, *sorted(tags[realm])))
            for realm in realms
        ]
        try:
            answers = self.connections.scripts(BUMP, *calls, timeout_seconds=self._mark_seconds)
        except Refused:
            return dict.fromkeys(realms, 0)
        return dict(zip(realms, answers, strict=True))


class _Seen:
    """When a mark was first and last seen, and its tags."""

    __slots__ = ("first", "last", "tags")

    def __init__(self, now: float) -> None:
        self.first = self.last = now
        self.tags: set[str] = set()


def reply(look: Look, answer: Sequence[Any], note: Callable[[str, str, str], None]) -> Reply | Lost:
    """Reads what a control set answered: members and their scores, in turn.

    Args:
        note: Told realm, mark and tag of each mark.
    """
    sequence, is_known = look.last, False
    changed: list[tuple[str, int]] = []
    pending: list[str] = []
    nonce = look.nonce.encode()
    for i in range(0, len(answer), 2):
        member: bytes = answer[i]
        start = member[:2]
        if start == _MARK:
            # p:<transaction>:<random>:<tag>; a tag has a colon of its own.
            _, transaction, number, tag = member.decode().split(":", 3)
            pending.append(tag)
            note(look.realm, f"{transaction}:{number}", tag)
        elif start == _NONCE:
            is_known = member[2:] == nonce
        elif member == _SEQUENCE:
            sequence = int(answer[i + 1])
        elif member == _FLOOR:
            return Lost("floor")
        else:
            changed.append((member.decode(), int(answer[i + 1])))
    if len(answer) >= 2 * CHANGES_MAX:
        # Not before the marks in it were noted: nobody else could lift those of a write that ended.
        return Lost("changes")
    if not is_known:
        return Lost("nonce")
    return Reply(sequence, tuple(changed), frozenset(pending))

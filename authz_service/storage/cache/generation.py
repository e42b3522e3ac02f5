"""Which life of the cache in Redis may be believed: lease, fence, settle, enable.

All of it is decided in SQL, in a row that every write reads before its COMMIT, so that no write can
commit outside the cache while a process still answers from it (consistency.md 4.1, 4.8 to 4.10).
"""

import contextlib
import random
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from authz_service.base import errors
from authz_service.base.clock import boot_seconds
from authz_service.base.consistency import Position
from authz_service.storage.cache.control import Control
from authz_service.storage.cache.marking import Marked, NotMarked, Tags, Unmarked, bounded
from authz_service.storage.cache.pace import Pace
from authz_service.storage.cache.redis_connections import Connections, Refused, info_of, run_id_of
from authz_service.storage.cache.redis_control import RedisControl
from authz_service.storage.database import Control as ControlTransaction
from authz_service.storage.database import Database
from authz_service.telemetry.metrics import Metrics

# Of its own: threads must not disturb who seeds the common one.
_RANDOM = random.Random()

ON, SETTLING, OFF = "on", "settling", "off"
# The lock that orders writes and renewals (shared) with fences and enables (alone).
LOCK = 7_246_113_907
_POLL_SECONDS = 0.02
# How long Redis must have answered before a new life begins in it.
_CALM_SECONDS = 5.0
_ABANDONED_SECONDS = 2.0
# Why an entry that another process left cannot be used.
_REJECTED = ("damaged", "foreign", "old_format")
# Leases of processes that are gone are forgotten long after they mean anything.
_FORGET = text("DELETE FROM node_lease WHERE renewed < :before")
_FORGET_MICROSECONDS = 3_600_000_000

_STATE = "gen, mode, name, redis_run_id, timeline, full_settle, lease_ms"
_READ = text(
    f"SELECT {_STATE},"
    " pg_control_system.system_identifier || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),"
    " CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
    " FROM cache_state, pg_control_system()"
)
_SHARED = text(f"SELECT pg_advisory_xact_lock_shared({LOCK})")
_ALONE = text(f"SELECT pg_advisory_xact_lock({LOCK})")
_RENEW = text(
    "INSERT INTO node_lease (node, gen, renewed) VALUES (:node, :gen, :now)"
    " ON CONFLICT (node) DO UPDATE SET gen = :gen, renewed = :now"
)
# Two statements, for one would take its snapshot before it has the lock. However patient the write
# was until now: whoever fences waits for it from here on.
_READ_IN_WRITE = (
    "SET LOCAL idle_in_transaction_session_timeout = 2000;"
    f" SELECT pg_advisory_xact_lock_shared({LOCK});"
    " SELECT mode, gen, name, redis_run_id, pg_current_xact_id()::text FROM cache_state"
)
_FENCE = text(
    "UPDATE cache_state SET gen = gen + 1, mode = 'settling' WHERE gen = :gen AND mode = 'on'"
)
_TIMELINE = text(
    "UPDATE cache_state SET timeline = :timeline, full_settle = (mode <> 'off' AND timeline <> ''),"
    " gen = gen + CASE mode WHEN 'on' THEN 1 ELSE 0 END,"
    " mode = CASE mode WHEN 'on' THEN 'settling' ELSE mode END WHERE timeline <> :timeline"
)
_SETTLE = text(
    "UPDATE cache_state SET mode = 'off', full_settle = false"
    " WHERE gen = :gen AND mode = 'settling' AND (:waited OR (NOT full_settle AND NOT EXISTS"
    " (SELECT 1 FROM node_lease l WHERE l.gen < :gen AND l.renewed >"
    " CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) - :span)))"
)
_ENABLE = text(
    "UPDATE cache_state SET mode = 'on', name = :name, redis_run_id = :run_id"
    " WHERE gen = :gen AND mode = 'off'"
)
_LEASES = text("SELECT gen, renewed FROM node_lease")
_LENGTH = text(
    "UPDATE cache_state SET lease_ms = :length WHERE lease_ms = :length OR NOT EXISTS"
    " (SELECT 1 FROM node_lease WHERE renewed >"
    " CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) - 2000 * lease_ms)"
)


class LeaseDiffers(Exception):
    """Other processes use another ``AUTHZ_CACHE_LEASE_SECONDS``."""


class State(NamedTuple):
    """The row ``cache_state``, and what the database said of itself with it."""

    gen: int
    mode: str
    name: str
    run_id: str
    timeline: str
    full_settle: bool
    lease_ms: int
    present_timeline: str
    now: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Permission to answer from a life of the cache.

    Attributes:
        control: The life; None while the mode is not ``on``, or without Redis.
        end: Boot clock.
    """

    gen: int
    mode: str
    control: RedisControl | None
    end: float


class Generation:
    """The lease of this process, and its part in changing the generation.

    Args:
        database: Of its own: a full pool must not cost the lease.
        redis_url: None = this process has no Redis, and fences the others' before it writes.
        lease_seconds: L.
        timeout_seconds, mark_seconds: The longest wait for Redis, and for it with a mark.
        members_max: Tags of one control set.
        log: Told what an operator should know: an event and its fields.
    """

    def __init__(
        self,
        database: Database,
        redis_url: str | None,
        metrics: Metrics,
        *,
        lease_seconds: float,
        timeout_seconds: float,
        mark_seconds: float,
        members_max: int,
        log: Callable[..., None] = lambda event, **fields: None,
    ) -> None:
        self._database = database
        self._redis_url = redis_url
        self._metrics = metrics
        self._log = log
        self._length = lease_seconds
        self._timeout = timeout_seconds
        self._mark_seconds = mark_seconds
        self._members_max = members_max
        self._node = secrets.token_hex(8)
        self._lease: Lease | None = None
        self._pace = Pace()
        self._lock = threading.Lock()
        # Renewals are made by the background and by whoever fences, one after the other.
        self._renewing = threading.Lock()
        self._controls: dict[str, RedisControl] = {}
        self._calm_since: float | None = None
        # Name and reason.
        self._lost = ("", "")
        # Why Redis did not answer last, and what was counted when it was last told of.
        self._silence = ""
        self._told: dict[str, float] = {}
        self._woken = threading.Event()
        self._stopping = False
        metrics.cache_mode.read_from(lambda: {(): float(self.current() is not None)})
        metrics.cache_lease_remaining_seconds.read_from(lambda: {(): self._remaining()})

    # --- lease -------------------------------------------------------------------------------

    def start(self) -> None:
        """Agrees with the other processes on the length of leases, and takes a first one.

        Raises:
            LeaseDiffers: They use another length.
            Refusal: The database does not answer.
        """
        length = round(self._length * 1000)

        def agree(tx: ControlTransaction) -> int:
            tx.connection.execute(_ALONE)
            before = tx.now - _FORGET_MICROSECONDS
            tx.connection.execute(_FORGET, {"before": before})
            return tx.connection.execute(_LENGTH, {"length": length}).rowcount

        if not self._database.control(agree):
            raise LeaseDiffers(
                "other processes of this deployment use another AUTHZ_CACHE_LEASE_SECONDS"
            )
        self.renew()

    def run(self) -> None:
        """Renews the lease until ``stop``; for a thread of its own."""
        while not self._stopping:
            self._woken.wait(self._length / 5 * _RANDOM.uniform(0.8, 1.2))
            self._woken.clear()
            if self._stopping:
                return
            try:
                self._turn()
            except errors.Refusal as refusal:
                # The lease ends by itself if the database stays away.
                self._log("cache_lease_not_renewed", reason=refusal.reason)
            except Exception as error:
                self._log("cache_turn_failed", error=type(error).__name__)

    def share(self) -> None:
        """Sends entries to Redis until ``stop``; for a thread of its own."""
        while not self._stopping:
            control = self.current()
            if isinstance(control, RedisControl):
                control.share_next(0.5)
            else:
                self._woken.wait(0.2)

    def stop(self) -> None:
        """Ends ``run`` and ``share``, and gives up the lease: no settle waits for this process."""
        with self._lock:
            self._stopping = True
            self._lease = None
        self._woken.set()
        with contextlib.suppress(errors.Refusal):
            self._database.control(
                lambda tx: tx.connection.execute(
                    text("DELETE FROM node_lease WHERE node = :node"), {"node": self._node}
                )
            )
        with self._lock:
            controls = list(self._controls.values())
        for control in controls:
            control.connections.close()

    def current(self) -> Control | None:
        """Returns the life of the cache that may be used now; None = read SQL."""
        lease = self._lease
        if lease is None or lease.control is None or boot_seconds() >= lease.end:
            return None
        return lease.control

    def _is_leased(self, name: str) -> bool:
        control = self.current()
        return control is not None and control.name == name

    def _remaining(self) -> float:
        lease = self._lease
        return max(0.0, lease.end - boot_seconds()) if lease is not None else 0.0

    def renew(self) -> State:
        """Renews the lease for the generation as it is now.

        Raises:
            Refusal: The database does not answer.
        """
        with self._renewing:
            began = boot_seconds()

            def work(tx: ControlTransaction) -> State:
                tx.connection.execute(_SHARED)
                before = boot_seconds()
                state = State(*tx.connection.execute(_READ).one())
                self._judge_clock(before, state.now, boot_seconds())
                lease = self._lease
                if lease is not None and (lease.gen, lease.mode) != (state.gen, state.mode):
                    # Before the row below: it tells whoever settles that nobody here still answers
                    # from the old generation, and is seen before this process knows of its COMMIT.
                    self._lease = None
                    self._end_lives()
                tx.connection.execute(
                    _RENEW, {"node": self._node, "gen": state.gen, "now": state.now}
                )
                return state

            state = self._database.control(work)
            if state.timeline != state.present_timeline:
                self._lease = None
                self._end_lives()
                self._pace.begin_anew()
                self._take_timeline(state)
                return state
            control = None
            if state.mode == ON and self._redis_url is not None:
                control = self._control_of(state.name, state.run_id)
            end = began + 0.98 * self._length_in(state)
            with self._lock:
                # Not after a stop, which has given it up.
                if not self._stopping and self._pace.is_right:
                    self._lease = Lease(state.gen, state.mode, control, end)
            self._metrics.cache_generation.set(value=float(state.gen))
            return state

    def _judge_clock(self, before: float, sql: int, after: float) -> None:
        """Gives up the lease while the clock that it ends by runs at another rate than SQL's."""
        was_right = self._pace.is_right
        is_right = self._pace.compare(before, sql, after)
        if not is_right:
            self._lease = None
        if is_right != was_right:
            self._log("cache_clock_right" if is_right else "cache_clock_wrong")

    def _end_lives(self) -> None:
        """Lets nobody use any more what is remembered, however old it may be."""
        with self._lock:
            for control in self._controls.values():
                control.is_over = True

    def _length_in(self, state: State) -> float:
        """Returns the length of leases that is in force, which all processes go by."""
        return state.lease_ms / 1_000 or self._length

    def _take_timeline(self, state: State) -> None:
        def work(tx: ControlTransaction) -> None:
            tx.connection.execute(_ALONE)
            tx.connection.execute(_TIMELINE, {"timeline": state.present_timeline})

        self._database.control(work)
        self._woken.set()

    def _turn(self) -> None:
        state = self.renew()
        if state.mode == SETTLING:
            self.settle(state.gen)
        elif state.mode == OFF:
            self._enable_when_calm(state)
        else:
            self._watch(state)
        self._tell_of_entries()

    def _hear(self, silence: str) -> None:
        """Logs that Redis does not answer, or does so again; once each time that this changes."""
        if silence == self._silence:
            return
        self._silence = silence
        if silence:
            self._log("cache_redis_unreachable", reason=silence)
        else:
            self._log("cache_redis_answers")

    def _tell_of_entries(self) -> None:
        """Logs how many entries were of no use since the last turn: each costs a statement."""
        fills, rejected = self._metrics.cache_fills, self._metrics.cache_rejected
        for event, reason, count in (
            ("cache_entries_not_shared", "failed", fills.value("failed")),
            *(("cache_entries_rejected", each, rejected.value(each)) for each in _REJECTED),
        ):
            new = count - self._told.get(reason, 0.0)
            if new:
                self._told[reason] = count
                self._log(event, reason=reason, count=int(new))

    def _control_of(self, name: str, run_id: str) -> RedisControl:
        with self._lock:
            control = self._controls.get(name)
            if control is None:
                assert self._redis_url is not None
                for old in list(self._controls):
                    self._controls.pop(old).connections.close()
                connections = Connections(
                    self._redis_url, run_id, timeout_seconds=self._timeout, metrics=self._metrics
                )
                control = self._controls[name] = RedisControl(
                    name,
                    connections,
                    is_leased=lambda: self._is_leased(name),
                    lost=lambda reason: self._lose(name, reason),
                    metrics=self._metrics,
                    mark_seconds=self._mark_seconds,
                    members_max=self._members_max,
                )
            return control

    def _lose(self, name: str, reason: str) -> None:
        """Notes that a life is over in Redis; the background fences it."""
        self._lost = (name, reason)
        self._woken.set()

    def _watch(self, state: State) -> None:
        """Looks after a life in use: is it still what it was, and are there abandoned marks?"""
        lost, reason = self._lost
        if lost == state.name:
            # Another one may have been fenced and followed by this one already.
            self.fence(state.gen, reason)
            return
        if self._redis_url is None:
            return
        control = self._control_of(state.name, state.run_id)
        try:
            (answer,) = control.connections.commands("info", (b"INFO", b"replication"))
        except Refused as refused:
            if refused.reason == "run_id":
                self.fence(state.gen, "run_id")
            else:
                self._hear(refused.reason)
            return
        self._hear("")
        info = info_of(answer)
        if info.get("role") != "master" or info.get("connected_slaves") != "0":
            self.fence(state.gen, "replication")
            return
        self._recover(control)

    # --- fence, settle, enable ---------------------------------------------------------------

    def fence(self, gen: int, reason: str) -> None:
        """Leaves a generation: no process uses it once the settle that follows has ended.

        Waits for writes and renewals under way.

        Raises:
            Refusal: The database does not answer.
        """

        def work(tx: ControlTransaction) -> int:
            tx.connection.execute(_ALONE)
            return tx.connection.execute(_FENCE, {"gen": gen}).rowcount

        if self._database.control(work):
            self._metrics.cache_fences.add(reason)
            self._log("cache_fenced", reason=reason, generation=gen)
        self._calm_since = None
        self.renew()

    def settle(self, gen: int) -> None:
        """Waits until nobody can use an older generation than this one, and says so.

        Args:
            gen: The generation that is settling; returns at once if it is no more.

        Raises:
            Refusal: The database does not answer.
        """
        began = boot_seconds()
        while True:
            state = self.renew()
            if state.mode != SETTLING or state.gen != gen:
                self._metrics.cache_settle_seconds.observe(boot_seconds() - began)
                return
            length = self._length_in(state)
            parameters = {
                "gen": gen,
                # By a clock that is as fast as those of the others; else they say when.
                "waited": self._pace.is_right and boot_seconds() - began >= 1.04 * length,
                "span": round(1.02 * length * 1_000_000),
            }

            def work(tx: ControlTransaction, given: Mapping[str, Any] = parameters) -> None:
                tx.connection.execute(_SETTLE, given)

            self._database.control(work)
            threading.Event().wait(_POLL_SECONDS)

    def _enable_when_calm(self, state: State) -> None:
        if self._redis_url is None:
            return
        with contextlib.closing(self._probe()) as probe:
            try:
                unfit, run_id = _looked_at(probe)
                self._hear("")
                if unfit:
                    self._log("cache_not_enabled", reason=unfit)
                    self._calm_since = None
                    return
                now = boot_seconds()
                if self._calm_since is None:
                    self._calm_since = now
                # The first life of a deployment has no calm to wait for.
                if state.name and now - self._calm_since < min(_CALM_SECONDS, 2.5 * self._length):
                    return
                self.enable(state.gen, probe, run_id)
            except Refused as refused:
                self._hear(refused.reason)
                self._calm_since = None

    def _probe(self) -> Connections:
        assert self._redis_url is not None
        return Connections(
            self._redis_url, "", timeout_seconds=self._timeout, metrics=self._metrics
        )

    def enable_now(self) -> str:
        """Begins a new life unless one is in use; returns why that is not possible, if it is not.

        Raises:
            Refusal: The database does not answer.
        """
        state = self.renew()
        if state.mode == SETTLING:
            self.settle(state.gen)
            state = self.renew()
        if state.mode == ON:
            return ""
        if self._redis_url is None:
            return "AUTHZ_REDIS_URL is not set"
        with contextlib.closing(self._probe()) as probe:
            try:
                unfit, run_id = _looked_at(probe)
                if unfit:
                    return unfit
                self.enable(state.gen, probe, run_id)
            except Refused as refused:
                return f"Redis does not answer ({refused.reason})"
        return ""

    def status(self) -> Mapping[str, str]:
        """Returns the generation as a person wants to see it.

        Raises:
            Refusal: The database does not answer.
        """

        def work(tx: ControlTransaction) -> dict[str, str]:
            state = State(*tx.connection.execute(_READ).one())
            leases = tx.connection.execute(_LEASES).all()
            alive = [gen for gen, renewed in leases if state.now - renewed < 1_000 * state.lease_ms]
            return {
                "mode": state.mode,
                "generation": str(state.gen),
                "name": state.name,
                "redis_run_id": state.run_id,
                "lease_seconds": f"{state.lease_ms / 1_000:g}",
                "leases": str(len(alive)),
                "leases_of_this_generation": str(alive.count(state.gen)),
            }

        return self._database.control(work)

    def enable(self, gen: int, redis: Connections, run_id: str) -> None:
        """Begins a new life of the cache in a Redis that was found fit.

        Raises:
            Refused: Redis does not answer.
            Refusal: The database does not answer.
        """
        name = secrets.token_hex(6)
        redis.commands("enable", (b"HSET", f"az:{{{name}}}", b"", b"1"))

        def work(tx: ControlTransaction) -> int:
            # Alone: no write that read ``off`` may still be under way.
            tx.connection.execute(_ALONE)
            return tx.connection.execute(
                _ENABLE, {"name": name, "run_id": run_id, "gen": gen}
            ).rowcount

        if self._database.control(work):
            self._metrics.cache_enable.add()
            self._log("cache_enabled", generation=gen)
            self.renew()
            self._sweep(redis, name)
        else:
            redis.commands("enable", (b"UNLINK", f"az:{{{name}}}"))

    def _sweep(self, redis: Connections, name: str) -> None:
        """Removes what other lives left behind, their registries first."""
        cursor = b"0"
        mine = f"az:{{{name}}}".encode()
        while True:
            ((cursor, keys),) = redis.commands(
                "sweep", (b"SCAN", cursor, b"MATCH", b"az:{*}*", b"COUNT", b"500")
            )
            old = [key for key in keys if not key.startswith(mine)]
            if old:
                redis.commands("sweep", (b"UNLINK", *sorted(old, key=len)))
            if cursor == b"0":
                return

    def _recover(self, control: RedisControl) -> None:
        """Lifts marks whose writes have ended in some way without lifting them."""
        marks = control.marks_seen()
        oldest = max((age for _, _, _, age in marks), default=0.0)
        self._metrics.cache_oldest_mark_seconds.set(value=oldest)
        for realm, mark, tags, age in marks:
            if age < _ABANDONED_SECONDS:
                continue
            transaction = mark.partition(":")[0]

            def work(tx: ControlTransaction, xid: str = transaction) -> str | None:
                statement = text("SELECT pg_xact_status(CAST(:xid AS xid8))")
                found: str | None = tx.connection.execute(statement, {"xid": xid}).scalar_one()
                return found

            if self._database.control(work) == "in progress":
                continue
            if control.bump(mark, {realm: tags}).get(realm):
                self._metrics.cache_marks_recovered.add()

    # --- writes ------------------------------------------------------------------------------

    def mark(self, connection: Connection, tags: Tags) -> Marked:
        """Marks a write as the last thing before its COMMIT (consistency.md 4.8).

        Raises:
            NotMarked: The write must be rolled back, ``mend`` be called, and be run again.
        """
        marked = bounded(tags)
        if not marked:
            return Unmarked()
        mode, gen, name, run_id, xid = _state_in_write(connection)
        if mode == OFF:
            return Unmarked()
        if mode == SETTLING:
            raise NotMarked(lambda: self.settle(gen))
        if self._redis_url is None:
            raise NotMarked(lambda: self._leave(gen, "without_redis"))
        control = self._control_of(name, run_id)
        mark = f"{xid}:{secrets.token_hex(4)}"
        if not control.mark(mark, marked):
            raise NotMarked(lambda: self._leave(gen, "mark"))
        return _RedisMarked(self, control, gen, mark, marked)

    def leave(self) -> None:
        """Fences the generation in force, and waits until nobody uses it: after rows were changed
        in any other way than through calls.

        Raises:
            Refusal: The database does not answer.
        """
        state = self.renew()
        if state.mode == ON:
            self._leave(state.gen, "asked")
        elif state.mode == SETTLING:
            self.settle(state.gen)

    def _leave(self, gen: int, reason: str) -> None:
        self.fence(gen, reason)
        self.settle(gen + 1)

    def lost_bump(self, gen: int) -> None:
        """Leaves a generation in which a committed write could not be made known."""
        self._metrics.cache_marks_lost.add()
        self._leave(gen, "bump")


def _state_in_write(connection: Connection) -> tuple[str, int, str, str, str]:
    driver = connection.connection.dbapi_connection
    assert driver is not None
    cursor: Any = driver.cursor()
    try:
        # All in one packet; without parameters the driver sends them as they are.
        cursor.execute(_READ_IN_WRITE)
        while cursor.nextset():
            pass
        found: tuple[str, int, str, str, str] = cursor.fetchone()
        return found
    except psycopg.Error as error:
        # As SQLAlchemy raises it, for database.py to tell a lost race from a lost connection.
        raise DBAPIError(None, None, error) from error
    finally:
        cursor.close()


class _RedisMarked:
    def __init__(
        self, generation: Generation, control: RedisControl, gen: int, mark: str, tags: Tags
    ) -> None:
        self._generation, self._control, self._gen = generation, control, gen
        self._mark, self._tags = mark, tags

    def bump(self, *, committed: bool) -> Mapping[str, Position]:
        sequences = self._control.bump(self._mark, self._tags)
        if all(sequences.values()):
            name = self._control.name
            return {realm: Position(name, sequence) for realm, sequence in sequences.items()}
        if committed:
            self._generation.lost_bump(self._gen)
        return {}


def _looked_at(redis: Connections) -> tuple[str, str]:
    """Returns why a Redis is not fit, empty if it is, and its run id.

    Raises:
        Refused: It does not answer.
    """
    parts = (b"server", b"replication", b"persistence", b"memory")
    answers = redis.commands("info", *((b"INFO", part) for part in parts))
    return _unfit(info_of(b"\n".join(answers))), run_id_of(answers[0])


def _unfit(info: Mapping[str, str]) -> str:
    """Returns why a Redis must not be used as a cache of permissions; empty if it may."""
    if info.get("role") != "master" or info.get("connected_slaves") != "0":
        return "replication"
    if info.get("aof_enabled") != "0":
        return "persistence"
    if info.get("maxmemory_policy") not in ("noeviction",) and not str(
        info.get("maxmemory_policy")
    ).startswith("volatile-"):
        return "eviction"
    return ""

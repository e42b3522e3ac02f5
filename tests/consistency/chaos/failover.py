"""Faults of a PostgreSQL that another one follows: failover, an old primary that goes on, a lost
standby (F13, F14, F15).

They need servers of their own, and reach them through proxies, as over an address that moves.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import grpc
import psycopg

from authz_service.base.clock import boot_seconds
from authz_service.client.retry import refusal_of
from authz_service.pb.authz.v1 import core_pb2, users_pb2
from authz_service.stack.postgresql import Server
from authz_service.stack.valkey import valkey
from tests.callers import PACKAGE
from tests.consistency.chaos.busy_database import reads_again
from tests.consistency.chaos.proxy import Proxy
from tests.consistency.chaos.scene import Fault, Scene, begin
from tests.consistency.load import WRITE_SECONDS
from tests.consistency.run import ANSWERS, CACHED, counts
from tests.consistency.sizes import LEASE_SECONDS, PATIENCE_SECONDS
from tests.consistency.stack import Servers, Service, pause, prepared, stack, within
from tests.servers import standby
from tests.servers.debian import redis_7
from tests.servers.postgresql import libpq_url

PROCESSES = 3
_AHEAD = (grpc.StatusCode.FAILED_PRECONDITION, "CONSISTENCY_TOKEN_AHEAD")


class Pair:
    """A primary and its standby; after a failover, the next primary and the next standby.

    Args:
        primary: Runs.
    """

    def __init__(self, primary: Server) -> None:
        self.primary = primary
        self.standby: Server | None = None
        self._exits = contextlib.ExitStack()
        self.proxies = [Proxy(_socket(primary), number) for number in range(PROCESSES)]

    @property
    def ports(self) -> dict[int, int]:
        """Returns where each process finds the primary."""
        return {number: proxy.port for number, proxy in enumerate(self.proxies)}

    def follow(self, names: str) -> None:
        """Starts a standby of the primary.

        Args:
            names: ``standby.SYNCHRONOUS`` or ``standby.ASYNCHRONOUS``.
        """
        self.standby = self._exits.enter_context(standby.standby(self.primary))
        standby.configure(self.primary, synchronous_standby_names=names)
        kind = "sync" if names else "async"
        taken = within(PATIENCE_SECONDS, lambda: standby.is_followed(self.primary, sync=kind))
        assert taken is not None, "the standby does not follow"

    def promote(self) -> Server:
        """Makes the standby the primary and returns the old one; proxies stay where they are."""
        old, new = self.primary, self.standby
        assert new is not None
        standby.promote(new)
        self.primary, self.standby = new, None
        return old

    def turn(self, *numbers: int) -> None:
        """Leads processes to the primary, all of them if none is named."""
        for number in numbers or range(PROCESSES):
            self.proxies[number].turn_to(_socket(self.primary))

    def close(self) -> None:
        """Ends what was started here."""
        for proxy in self.proxies:
            proxy.close()
        self._exits.close()


def _socket(server: Server) -> str:
    host = psycopg.conninfo.conninfo_to_dict(libpq_url(server.url))["host"]
    return f"{host}/.s.PGSQL.5432"


@contextlib.contextmanager
def paired(seed: int, redis: str = "valkey") -> Iterator[tuple[Scene, Pair]]:
    """Gives a stack under load on a primary without a standby."""
    program = redis_7() if redis == "redis" else None
    with contextlib.ExitStack() as exits:
        primary = exits.enter_context(standby.primary())
        cache = exits.enter_context(valkey(program))
        prepared(primary)
        pair = Pair(primary)
        exits.callback(pair.close)
        started = exits.enter_context(
            stack(
                Servers(primary, cache, program),
                "failover",
                naive=False,
                seed=seed,
                processes=PROCESSES,
                lease_seconds=LEASE_SECONDS,
                database_ports=pair.ports,
            )
        )
        proxy = Proxy(cache.port)
        exits.callback(proxy.close)
        scene = begin(started, proxy, seed)
        exits.callback(scene.load.close)
        yield scene, pair


def _settled(scene: Scene, pair: Pair) -> None:
    """Leads everything to the new primary."""
    scene.stack.database_url = pair.primary.url_of("failover")
    began = boot_seconds()
    pair.turn()
    reads_again(scene, began)


def failed_over(pair: Pair) -> Callable[[Scene], None]:
    """Returns what kills a primary that waits for its standby, which takes its place."""

    def happen(scene: Scene) -> None:
        pair.follow(standby.SYNCHRONOUS)
        pause(1.0)
        over = scene.generation()
        pair.primary.kill()
        pair.promote()
        _settled(scene, pair)
        scene.cache_on(PATIENCE_SECONDS, after=over)

    return happen


def standby_lost(pair: Pair) -> Callable[[Scene], None]:
    """Returns what kills a standby that is waited for, and cancels the waiting."""

    def happen(scene: Scene) -> None:
        pair.follow(standby.SYNCHRONOUS)
        pause(1.0)
        assert pair.standby is not None
        pair.standby.kill()
        lost = boot_seconds()
        cancelled = 0
        url = libpq_url(scene.stack.database_url)
        with psycopg.connect(url, autocommit=True) as connection:
            while boot_seconds() - lost < 3 * LEASE_SECONDS:
                rows = connection.execute(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE wait_event = 'SyncRep'"
                ).fetchall()
                cancelled += len(rows)
                pause(0.1)
        # A repeat finds what the first attempt left here, and says so.
        confirmed = [
            write
            for write in list(scene.load.record.writes)
            if write.invoked > lost and len(write.attempts) == 1
        ]
        standby.configure(pair.primary, synchronous_standby_names=standby.ASYNCHRONOUS)
        scene.note("waits cancelled", cancelled)
        assert cancelled > 0
        assert not confirmed, f"{len(confirmed)} writes were acknowledged that only one server has"
        reads_again(scene, boot_seconds())

    return happen


def writes_lost(scene: Scene, pair: Pair) -> dict[str, float]:
    """Fails over to a standby that never got the last write, and tells what the callers see.

    The one exception to "no acknowledged write is lost": it must be found out. Ends the use of the
    scene, since its histories know nothing of lost writes.

    Returns:
        After how many seconds no process answered any more what only the old primary knew, and how
        many tokens each process found to be ahead.

    Raises:
        AssertionError: One still does, or a token of the lost write is satisfied.
    """
    story = next(each for each in scene.load.stories if each.kind == "assignment")
    (watched,) = story.watched
    pair.follow(standby.ASYNCHRONOUS)
    scene.load.take(story, 0)
    assert pair.standby is not None
    known = standby.position(pair.primary)
    assert within(PATIENCE_SECONDS, lambda: standby.has(pair.standby, known)) is not None
    services, asked = scene.stack.services, range(PROCESSES)
    assert all(scene.load.asking(number).values([watched]) == [(True,)] for number in asked)
    sender = standby.sender_pid(pair.primary)
    os.kill(sender, signal.SIGSTOP)
    scene.load.take(story, 0)
    # Remembered by all, and known to one server alone.
    assert all(scene.load.asking(number).values([watched]) == [(False,)] for number in asked)
    over = scene.generation()
    pair.primary.kill()
    os.kill(sender, signal.SIGKILL)
    pair.promote()
    pair.turn()
    scene.stack.database_url = pair.primary.url_of("failover")

    def is_found(number: int) -> bool:
        with contextlib.suppress(grpc.RpcError):
            return scene.load.asking(number).values([watched]) == [(True,)]
        return False

    gone = within(PATIENCE_SECONDS, lambda: all(is_found(number) for number in asked))
    assert gone is not None, "what was lost is still answered"
    token = core_pb2.Consistency(at_least_as_fresh=watched.tokens[-1].text)

    def is_ahead(number: int) -> bool:
        try:
            scene.load.asking(number).values([watched], consistency=token)
        except grpc.RpcError as error:
            return refusal_of(error) == _AHEAD
        return False

    # A process that has not seen yet that it is another server has the state that the token names.
    found = within(PATIENCE_SECONDS, lambda: all(is_ahead(number) for number in asked))
    assert found is not None, "the token of a write that was lost is satisfied"
    ahead = [each.metrics()["authz_cache_token_ahead_total",] for each in services]
    scene.cache_on(PATIENCE_SECONDS, after=over)
    assert all(scene.load.asking(number).values([watched]) == [(True,)] for number in asked)
    return {"phantoms gone": gone, "tokens refused": gone + found, "tokens ahead": min(ahead)}


def old_primary_alive(scene: Scene, pair: Pair) -> dict[str, float]:
    """Fails over while the old primary goes on, and one process still reaches it.

    The service cannot know: to its clients, the old primary is one that waits for its standby. So
    this tells what holds then and what does not. Ends the use of the scene.

    Returns:
        For how long the process could have used its lease at the most, after the failover.

    Raises:
        AssertionError: The process uses the cache, acknowledges a write, or satisfies the token of
            a write that its database does not have.
    """
    story = next(each for each in scene.load.stories if each.kind == "assignment")
    (watched,) = story.watched
    left, *others = range(PROCESSES)
    alone = scene.stack.services[left]
    pair.follow(standby.SYNCHRONOUS)
    scene.load.take(story, left)
    assert all(scene.load.asking(n).values([watched]) == [(True,)] for n in range(PROCESSES))
    old = pair.promote()
    promoted = boot_seconds()
    scene.stack.database_url = pair.primary.url_of("failover")
    over = scene.generation()
    pair.turn(*others)
    # Its renewals wait for a standby that is none any more, so they give it no lease.
    last = 0.0

    def has_no_lease() -> bool:
        nonlocal last
        asked = boot_seconds()
        remaining = alone.metrics()["authz_cache_lease_remaining_seconds",]
        last = max(last, asked + remaining - promoted)
        return remaining == 0

    assert within(PATIENCE_SECONDS, has_no_lease) is not None, "it renews its lease"
    # What is acknowledged by the others is what they answer.
    scene.load.take(story, others[0])
    assert all(scene.load.asking(n).values([watched]) == [(False,)] for n in others)
    before = counts(scene.stack, ANSWERS)[alone.pid]
    # Not so here: SQL is read, as without Redis, and this SQL knows nothing of it.
    assert scene.load.asking(left).values([watched]) == [(True,)]
    answers = counts(scene.stack, ANSWERS)[alone.pid] - before
    assert answers.total() > 0
    assert not any(answers[name] for name in CACHED), "it uses the cache"
    # A caller who brings the token of the write is told.
    token = core_pb2.Consistency(at_least_as_fresh=watched.tokens[-1].text)
    assert _refused(lambda: scene.load.asking(left).values([watched], consistency=token)) == _AHEAD
    assert alone.metrics()["authz_cache_token_ahead_total",] > 0
    # No write is acknowledged: nothing is lost.
    code, _ = _refused(lambda: _written(alone, scene.stack.bearer))
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    # What the operator must do: end the old primary, best before the standby takes its place.
    old.kill()

    def is_refused() -> bool:
        try:
            scene.load.asking(left).values([watched])
        except grpc.RpcError as error:
            return refusal_of(error)[0] is grpc.StatusCode.UNAVAILABLE
        return False

    assert within(PATIENCE_SECONDS, is_refused) is not None, "without its database it answers"
    pair.turn(left)

    def is_right() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return scene.load.asking(left).values([watched]) == [(False,)]
        return False

    assert within(PATIENCE_SECONDS, is_right) is not None
    scene.cache_on(PATIENCE_SECONDS, after=over)
    assert all(scene.load.asking(n).values([watched]) == [(False,)] for n in range(PROCESSES))
    return {"lease used": last}


def _refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Returns the code and the reason that a call is refused with."""
    try:
        call()
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError("the call is answered")


def _written(service: Service, bearer: str) -> object:
    """Makes a write at one process, without repeating it at another."""
    request = users_pb2.CreateUserRequest(email="alone@example.com")
    with grpc.insecure_channel(service.address) as channel:
        return channel.unary_unary(
            f"/{PACKAGE}.UserService/CreateUser",
            users_pb2.CreateUserRequest.SerializeToString,
            users_pb2.CreateUserResponse.FromString,
        )(request, metadata=(("authorization", f"Bearer {bearer}"),), timeout=WRITE_SECONDS)


NAMES = ("database failed over", "standby lost")


def fault(name: str, pair: Pair) -> Fault:
    """Returns one of the faults that a pair can have."""
    number, happen = {
        "database failed over": ("F13", failed_over(pair)),
        "standby lost": ("F15", standby_lost(pair)),
    }[name]
    return Fault(number, name, happen, stops_database=True, is_slow=True)

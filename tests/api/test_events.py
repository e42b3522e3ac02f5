"""EventService and WatchService over the hall."""

import contextlib
import itertools
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from authz_service.api import watch
from authz_service.api.events import RESERVED_BYTES
from authz_service.api.watch import READERS_MAX, WatchServicer
from authz_service.base.actor import SYSTEM
from authz_service.base.clock import boot_seconds
from authz_service.base.consistency import ConsistencyTokens
from authz_service.base.cursors import Cursors
from authz_service.base.errors import DeadlineExceeded
from authz_service.base.sealed import Sealer
from authz_service.config import Config
from authz_service.pb.authz.v1 import watch_pb2
from authz_service.rpc.call import Call, Context, Reply
from authz_service.server import Worker
from authz_service.storage import positions
from authz_service.storage.feed import Feed
from authz_service.storage.tables import EventPosition
from tests.callers import Caller, Refused
from tests.conftest import ManualClock


def _create(api: Caller, *names: str) -> list[str]:
    return [api.OrganizationService.CreateOrganization(name=name).organization.id for name in names]


def test_every_change_is_listed_once_in_order_and_chained(api: Caller) -> None:
    (acme,) = _create(api, "Acme")
    api.OrganizationService.UpdateOrganization(
        organization={"id": acme, "name": "Acme Inc"}, update_mask={"paths": ["name"]}
    )
    events = list(api.pages("EventService", "ListEvents", "events", organization_id=acme))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.kind for event in events if event.is_primary] == [
        "organization.created",
        "organization.updated",
    ]
    assert events[0].previous_hash == b""
    assert all(b.previous_hash == a.hash for a, b in itertools.pairwise(events))
    updated = next(event for event in events if event.kind == "organization.updated")
    assert (updated.data["name"], dict(updated.previous)) == ("Acme Inc", {"name": "Acme"})
    found = api.EventService.GetEvent(event_id=updated.id).event
    assert found == updated


def test_pages_and_cursors_go_on_where_the_last_one_ended(api: Caller) -> None:
    _create(api, "A", "B", "C")
    whole = list(api.pages("EventService", "ListEvents", "events"))
    paged = list(api.pages("EventService", "ListEvents", "events", page_size=1))
    assert paged == whole
    third = whole[2]
    rest = api.EventService.ListEvents(after_cursor=third.cursor, page_size=1_000).events
    assert list(rest) == whole[3:]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"after_cursor": "no cursor"}, "CURSOR_INVALID"),
        ({"kinds": ["role.fell_over"]}, "FIELD_INVALID"),
        ({"organization_id": "org_none"}, "ORGANIZATION_NOT_FOUND"),
        ({"start_at": {"seconds": 1}}, "CURSOR_EXPIRED"),
        ({"start_at": {"seconds": 1}, "after_cursor": "x"}, "FIELDS_EXCLUSIVE"),
    ],
)
def test_wrong_questions_are_refused(api: Caller, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        api.EventService.ListEvents(**fields)
    assert refused.value.reason == reason


def test_a_cursor_expires_with_the_reach(api: Caller, clock: ManualClock) -> None:
    _create(api, "A")
    cursor = api.EventService.ListEvents().events[0].cursor
    clock.advance(days=91)
    with pytest.raises(Refused) as refused:
        api.EventService.ListEvents(after_cursor=cursor)
    assert refused.value.reason == "CURSOR_EXPIRED"


def test_a_restricted_credential_must_name_its_organization(api: Caller) -> None:
    mine, other = _create(api, "Mine", "Other")
    made = api.ConfigurationService.CreateServiceCredential(
        name="reader", scopes=["watch"], organization_ids=[mine]
    )
    restricted = api.with_bearer(made.secret)
    for named in ("", other):
        with pytest.raises(Refused) as refused:
            restricted.EventService.ListEvents(organization_id=named)
        assert refused.value.reason == "ORGANIZATION_RESTRICTED"
    seen = restricted.EventService.ListEvents(organization_id=mine, include_global_events=True)
    sorts = {event.kind.partition(".")[0] for event in seen.events if not event.organization_id}
    assert "service_credential" not in sorts
    assert any(event.organization_id == mine for event in seen.events)


class _Stream:
    """A watch that the test pulls, message by message, until it closes it."""

    def __init__(self, worker: Worker, config: Config, *, bearer: str = "", **fields: Any) -> None:
        first = config.security.first_credential
        assert first is not None
        call = Call(
            "/authz.v1.WatchService/Watch",
            (("authorization", f"Bearer {bearer or first.reveal()}"),),
            watch_pb2.WatchRequest(**fields).SerializeToString(),
        )
        self._replies: Generator[bytes | Reply, None, None] = worker.hall.stream(
            call, lambda: False
        )

    def next(self) -> watch_pb2.WatchResponse:
        reply = next(self._replies)
        if isinstance(reply, Reply):
            assert reply.status is not None
            raise Refused(reply.status)
        return watch_pb2.WatchResponse.FromString(reply)

    def events(self) -> Iterator[Any]:
        while True:
            yield from self.next().events

    def close(self) -> None:
        self._replies.close()


def test_a_watch_begins_now_and_misses_nothing_when_it_is_resumed(
    api: Caller, worker: Worker, config: Config
) -> None:
    _create(api, "Before")
    stream = _Stream(worker, config, kinds=["organization.*"])
    begin = stream.next()
    assert not begin.events
    assert begin.cursor
    (one, two) = _create(api, "One", "Two")
    # Nothing turns the feed of a worker that was not started: the list does it here.
    api.EventService.ListEvents()
    seen = list(itertools.islice(stream.events(), 2))
    stream.close()
    assert [event.target_id for event in seen] == [one, two]
    for cursor, rest in ((begin.cursor, [one, two]), (seen[0].cursor, [two])):
        resumed = _Stream(worker, config, kinds=["organization.*"], after_cursor=cursor)
        again = list(itertools.islice(resumed.events(), len(rest)))
        assert [event.target_id for event in again] == rest
        resumed.close()


def test_a_watch_ends_when_the_service_drains(worker: Worker, config: Config) -> None:
    stream = _Stream(worker, config)
    stream.next()
    worker.hall.close()
    with pytest.raises(Refused) as refused:
        stream.next()
    assert (refused.value.code, refused.value.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")


def test_a_watch_from_an_expired_cursor_is_refused(
    api: Caller, worker: Worker, config: Config, clock: ManualClock
) -> None:
    _create(api, "A")
    cursor = api.EventService.ListEvents().events[0].cursor
    clock.advance(days=timedelta(days=91).days)
    with pytest.raises(Refused) as refused:
        _Stream(worker, config, after_cursor=cursor).next()
    assert refused.value.reason == "CURSOR_EXPIRED"


def test_a_watch_ends_when_its_credential_is_revoked(
    api: Caller, worker: Worker, config: Config
) -> None:
    made = api.ConfigurationService.CreateServiceCredential(name="reader", scopes=["watch"])
    stream = _Stream(worker, config, bearer=made.secret, kinds=["organization.*"])
    stream.next()
    _create(api, "Seen")
    api.EventService.ListEvents()
    assert stream.next().events
    api.ConfigurationService.RevokeServiceCredential(
        service_credential_id=made.service_credential.id
    )
    _create(api, "Unseen")
    api.EventService.ListEvents()
    with pytest.raises(Refused) as refused:
        stream.next()
    assert refused.value.code == "UNAUTHENTICATED"


def test_a_watch_ends_when_its_credential_is_restricted_otherwise(
    api: Caller, worker: Worker, config: Config
) -> None:
    mine, other = _create(api, "Mine", "Other")
    made = api.ConfigurationService.CreateServiceCredential(
        name="reader", scopes=["watch"], organization_ids=[mine]
    )
    stream = _Stream(worker, config, bearer=made.secret, organization_id=mine)
    stream.next()
    api.ConfigurationService.UpdateServiceCredential(
        service_credential={"id": made.service_credential.id, "organization_ids": [other]},
        update_mask={"paths": ["organization_ids"]},
    )
    api.OrganizationService.UpdateOrganization(
        organization={"id": mine, "name": "New"}, update_mask={"paths": ["name"]}
    )
    api.EventService.ListEvents()
    with pytest.raises(Refused) as refused:
        stream.next()
    assert refused.value.reason == "ORGANIZATION_RESTRICTED"


def test_a_watch_of_an_unknown_organization_is_refused(worker: Worker, config: Config) -> None:
    with pytest.raises(Refused) as refused:
        _Stream(worker, config, organization_id="org_none").next()
    assert (refused.value.code, refused.value.reason) == ("NOT_FOUND", "ORGANIZATION_NOT_FOUND")


def test_global_events_come_with_those_of_an_organization_only_if_asked_for(
    api: Caller, worker: Worker, config: Config
) -> None:
    mine, _other = _create(api, "Mine", "Other")
    streams = {
        with_globals: _Stream(
            worker, config, organization_id=mine, include_global_events=with_globals
        )
        for with_globals in (False, True)
    }
    for stream in streams.values():
        stream.next()
    user = api.UserService.CreateUser(email="ann@acme.example").user
    _create(api, "Third")
    api.OrganizationService.UpdateOrganization(
        organization={"id": mine, "name": "New"}, update_mask={"paths": ["name"]}
    )
    api.EventService.ListEvents()
    for with_globals, expected in ((False, [mine]), (True, [user.id, mine])):
        stream = streams[with_globals]
        seen = list(itertools.islice(stream.events(), len(expected)))
        assert [event.target_id for event in seen] == expected
        stream.close()


def test_a_place_in_a_quiet_stream_expires_too(
    worker: Worker, config: Config, clock: ManualClock
) -> None:
    stream = _Stream(worker, config)
    cursor = stream.next().cursor
    stream.close()
    clock.advance(days=91)
    with pytest.raises(Refused) as refused:
        _Stream(worker, config, after_cursor=cursor).next()
    assert refused.value.reason == "CURSOR_EXPIRED"


def test_a_watch_says_so_when_what_follows_has_been_removed(
    api: Caller, worker: Worker, config: Config
) -> None:
    stream = _Stream(worker, config)
    stream.next()
    _create(api, "One", "Two")
    api.EventService.ListEvents()
    with worker.database.snapshot(SYSTEM) as snapshot:
        last = positions.last(snapshot)
    worker.database.control(
        lambda control: control.connection.execute(
            EventPosition.__table__.delete().where(EventPosition.position < last)
        )
    )
    with pytest.raises(Refused) as refused:
        stream.next()
    assert refused.value.reason == "CURSOR_EXPIRED"


def test_open_streams_and_the_lag_of_what_is_new_are_measured(
    api: Caller, worker: Worker, config: Config
) -> None:
    (mine,) = _create(api, "Mine")
    cursor = api.EventService.ListEvents().events[0].cursor
    streams, lag = worker.metrics.watch_streams, worker.metrics.watch_lag_seconds
    assert streams.value() == 0
    stream = _Stream(worker, config, after_cursor=cursor)
    assert stream.next().events
    assert (streams.value(), lag.count()) == (1, 0)
    api.OrganizationService.UpdateOrganization(
        organization={"id": mine, "name": "New"}, update_mask={"paths": ["name"]}
    )
    api.EventService.ListEvents()
    assert stream.next().events
    assert lag.count() == 1
    stream.close()
    assert streams.value() == 0


class _Servicer:
    """The servicer itself, with limits of its own; its feed is turned by nobody.

    Args:
        more: For WatchServicer.
    """

    def __init__(self, worker: Worker, config: Config, **more: Any) -> None:
        self.is_cancelled = False
        self.feed = Feed(worker.database)
        keys = config.security.root_key_bytes()
        self.tokens = ConsistencyTokens(Sealer(keys, "consistency"))
        self.cursors = Cursors(Sealer(keys, "cursor"))
        given = {"message_bytes_max": config.limits.message_bytes_max, **more}
        self._servicer = WatchServicer(
            worker.database, self.tokens, self.feed, self.cursors, worker.metrics, **given
        )

    def watch(self, *, seconds: float = 20.0, **fields: Any) -> Iterator[watch_pb2.WatchResponse]:
        """Opens a stream that has so long to live."""
        context = Context(
            "/authz.v1.WatchService/Watch",
            SYSTEM,
            boot_seconds() + seconds,
            is_cancelled=lambda: self.is_cancelled,
        )
        return self._servicer.Watch(watch_pb2.WatchRequest(**fields), context)


def test_a_quiet_stream_says_where_it_stands(worker: Worker, config: Config) -> None:
    stream = _Servicer(worker, config, heartbeat_seconds=0.05).watch()
    beats = [next(stream) for _ in range(3)]
    assert all(beat.cursor and not beat.events for beat in beats)


def test_a_quiet_stream_ends_with_its_deadline(worker: Worker, config: Config) -> None:
    stream = _Servicer(worker, config).watch(seconds=0.3)
    next(stream)
    with pytest.raises(DeadlineExceeded):
        next(stream)


def test_a_quiet_stream_notices_soon_that_it_must_end(worker: Worker, config: Config) -> None:
    servicer = _Servicer(worker, config, heartbeat_seconds=15.0)
    stream = servicer.watch()
    next(stream)
    servicer.is_cancelled = True
    began = boot_seconds()
    assert list(stream) == []
    assert boot_seconds() - began < 10


def test_messages_are_bounded_and_nothing_between_them_is_lost(
    api: Caller, worker: Worker, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(api.pages("EventService", "ListEvents", "events"))
    _create(api, *"ABCDE")
    expected = list(api.pages("EventService", "ListEvents", "events"))[len(before) :]
    assert len(expected) >= 10
    bytes_max = RESERVED_BYTES + 2 * max(event.ByteSize() for event in expected)
    by_bytes = _Servicer(worker, config, message_bytes_max=bytes_max)
    by_number = _Servicer(worker, config)
    for servicer, number in ((by_bytes, 500), (by_number, 3)):
        monkeypatch.setattr(watch, "EVENTS_MAX", number)
        stream = servicer.watch(after_cursor=before[-1].cursor)
        seen: list[Any] = []
        while len(seen) < len(expected):
            message = next(stream)
            assert 0 < len(message.events) < len(expected)
            assert message.ByteSize() <= bytes_max or servicer is by_number
            seen += message.events
            if len(seen) < len(expected):
                # Who goes on from its cursor gets what comes next.
                again = next(servicer.watch(after_cursor=message.cursor))
                assert again.events[0] == expected[len(seen)]
        assert seen == expected


def test_a_message_carries_the_token_of_what_it_tells(
    api: Caller, worker: Worker, config: Config
) -> None:
    (mine,) = _create(api, "Mine")
    first = api.EventService.ListEvents().events[0]
    servicer = _Servicer(worker, config)
    message = next(servicer.watch(after_cursor=first.cursor))
    told = max(event.sequence for event in message.events if event.organization_id == mine)
    assert servicer.tokens.open(message.consistency_token).revisions[mine] == told


def test_few_streams_read_at_once(api: Caller, worker: Worker, config: Config) -> None:
    """All wake together, and decisions need connections too."""
    servicer = _Servicer(worker, config)
    streams = [servicer.watch() for _ in range(READERS_MAX + 3)]
    for stream in streams:
        next(stream)
    _create(api, "New")
    reading, go = threading.Semaphore(0), threading.Event()
    snapshot = worker.database.snapshot

    @contextlib.contextmanager
    def slow(*args: Any) -> Iterator[Any]:
        with snapshot(*args) as opened:
            reading.release()
            assert go.wait(20.0)
            yield opened

    worker.database.snapshot = slow  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(len(streams)) as pool:
            servicer.feed.catch_up()
            told = [pool.submit(next, stream) for stream in streams]
            for _ in range(READERS_MAX):
                assert reading.acquire(timeout=20.0)
            assert not reading.acquire(timeout=0.3)
            go.set()
            assert all(each.result(20.0).events for each in told)
    finally:
        go.set()
        del worker.database.snapshot  # type: ignore[method-assign]

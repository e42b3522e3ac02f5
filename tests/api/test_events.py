"""EventService and WatchService over the hall."""

import itertools
from collections.abc import Generator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from authz_service.config import Config
from authz_service.pb.authz.v1 import watch_pb2
from authz_service.rpc.call import Call, Reply
from authz_service.server import Worker
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

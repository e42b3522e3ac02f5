"""Every RPC that writes records an event in each realm it changed, and in no other case.

What changed is read from the rows themselves, so an RPC that forgets an event is found whatever
it does. An RPC without a row in ``writes.WRITES`` fails.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import MethodOptions
from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import ENVIRONMENT
from authz_service.server import Worker
from authz_service.storage.tables import Base
from tests.architecture.conftest import Place
from tests.architecture.writes import MORE, REFUSED, WRITES, Write, perform
from tests.callers import Refused, method

# Not what a call changes but what is kept about it.
BOOKS = {"events", "event_queue", "event_positions", "kept_replies", "realms", "schema_info"}
Rows = dict[str, frozenset[tuple[Any, ...]]]
State = tuple[Rows, dict[str, int], dict[str, int]]


def dump(worker: Worker) -> Rows:
    """All rows by table, each with the realm it belongs to."""
    rows: Rows = {}
    with worker.database.snapshot(SYSTEM) as snapshot:
        role_realms = {
            row.id: row.realm
            for row in snapshot.connection.execute(select(Base.metadata.tables["roles"]))
        }
        for table in Base.metadata.sorted_tables:
            found = snapshot.connection.execute(select(table)).all()
            rows[table.name] = frozenset(
                (realm_of(table.name, row, role_realms), repr(row)) for row in found
            )
    return rows


def realm_of(table: str, row: Any, role_realms: dict[str, str]) -> str:
    """The realm whose writers change a row."""
    if table == "organizations":
        return str(row.id)
    if table == "roles":
        return str(row.realm)
    if table == "role_permissions":
        return role_realms[row.role_id]
    return str(getattr(row, "organization_id", ENVIRONMENT))


def state(worker: Worker) -> State:
    """Rows without the books, revision by realm, and number of events by realm."""
    rows = dump(worker)
    with worker.database.snapshot(SYSTEM) as snapshot:
        tables = Base.metadata.tables
        revisions = {
            row.id: row.revision for row in snapshot.connection.execute(select(tables["realms"]))
        }
        events = dict.fromkeys(revisions, 0)
        for row in snapshot.connection.execute(select(tables["events"])):
            events[row.realm] += 1
    return {name: rows[name] for name in rows if name not in BOOKS}, revisions, events


def changed_realms(before: Rows, after: Rows) -> set[str]:
    """Realms with a row that came, went or changed."""
    return {realm for name in before for realm, _ in before[name] ^ after[name]}


def risen(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """By how much the number of each realm rose, where it did."""
    return {
        realm: number - before.get(realm, 0)
        for realm, number in after.items()
        if number != before.get(realm, 0)
    }


def assert_recorded(before: State, after: State) -> set[str]:
    """Asserts that events tell of just the realms that changed, and returns these."""
    changed = changed_realms(before[0], after[0])
    revisions, events = risen(before[1], after[1]), risen(before[2], after[2])
    assert set(events) == changed
    assert revisions == events
    return changed


def writers(worker: Worker) -> Iterator[tuple[str, str]]:
    """Service and name of every RPC that may write."""
    for each in worker.hall.methods.values():
        service = each.service.rpartition(".")[2]
        options = method(service, each.name).GetOptions()
        if options.idempotency_level != MethodOptions.NO_SIDE_EFFECTS:
            yield service, each.name


def takes_key(write: Write) -> bool:
    """A stream takes no idempotency key: a file that is imported again changes nothing."""
    return not method(write.service, write.name).client_streaming


each_write = pytest.mark.parametrize("write", WRITES, ids=str)


def test_every_rpc_that_writes_has_a_row(worker: Worker) -> None:
    assert set(writers(worker)) == {(write.service, write.name) for write in WRITES}


@each_write
def test_a_write_records_an_event_in_every_realm_it_changed(place: Place, write: Write) -> None:
    before = state(place.worker)
    perform(write, place.api, place.worker, write.request(place.world))
    assert assert_recorded(before, state(place.worker))


@each_write
def test_a_refused_write_records_nothing(place: Place, write: Write) -> None:
    before = state(place.worker)
    assert write.refusals
    for fields in write.refusals:
        request = write.request(place.world) | _one_of(write, fields)
        with pytest.raises(Refused):
            perform(write, place.api, place.worker, request)
        assert state(place.worker) == before, fields


def _one_of(write: Write, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, and nothing for the others of their oneof."""
    cleared: dict[str, Any] = {}
    for oneof in method(write.service, write.name).input_type.oneofs:
        members = {field.name for field in oneof.fields}
        if len(members) > 1 and members & set(fields):
            cleared |= dict.fromkeys(members)
    return cleared | fields


@each_write
def test_the_same_call_a_second_time(place: Place, write: Write) -> None:
    request = write.request(place.world)
    perform(write, place.api, place.worker, request)
    before = state(place.worker)
    if write.again == REFUSED:
        with pytest.raises(Refused):
            perform(write, place.api, place.worker, request)
    else:
        perform(write, place.api, place.worker, request)
    assert bool(assert_recorded(before, state(place.worker))) == (write.again == MORE)


@pytest.mark.parametrize("write", [write for write in WRITES if takes_key(write)], ids=str)
def test_a_repeat_with_its_idempotency_key_records_nothing(place: Place, write: Write) -> None:
    api = place.api.with_metadata(idempotency_key="once")
    request = write.request(place.world)
    perform(write, api, place.worker, request)
    before = state(place.worker)
    perform(write, api, place.worker, request)
    assert state(place.worker) == before

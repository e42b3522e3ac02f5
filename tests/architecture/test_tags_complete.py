"""Every table is read by no fact, or whoever writes it declares the tags of the facts it changes.

The facts are those of ``storage/tagged_facts.py``; what they read is taken from the statements
they run, and what a write changes from the facts before and after it.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.storage import tagged_facts
from authz_service.storage.database import Database
from authz_service.storage.tables import Base
from authz_service.storage.tagged_facts import TaggedFact
from tests.architecture.conftest import Place
from tests.architecture.test_events_complete import dump
from tests.architecture.writes import WRITES, Write, perform
from tests.callers import Refused
from tests.oracle import test_writing
from tests.oracle.test_writing import Recorded, unmarked, value_of
from tests.statements import counting

READ_BY_FACTS = {
    "group_members",
    "group_nestings",
    "groups",
    "membership_roles",
    "memberships",
    "organizations",
    "permissions",
    "resources",
    "role_assignments",
    "role_permissions",
    # Only whether it is there: what rests on one that is gone is denied.
    "roles",
    "service_credentials",
}
# Say for each new one why no fact depends on it.
READ_BY_NO_FACT = {
    "cache_state": "whether the cache may be believed",
    "configuration": "limits and defaults of writes; what they lead to is in other rows",
    "event_positions": "the order of events",
    "event_queue": "the order of events",
    "events": "what happened; no decision reads it",
    "node_lease": "who may believe it",
    "kept_replies": "answers that were given",
    "organization_configurations": "defaults and orders of writes and lists",
    "realms": "revisions: read beside the facts for tokens, not a part of them",
    "resource_ancestors": "made from resources.path, which is the fact",
    "resource_counts": "for the limit on resources",
    "resource_type_parents": "where resources may be created",
    "resource_types": "a resource names its type by slug, which never changes",
    "schema_info": "which program may use the database",
    "users": "a membership is the subject; a user's fields decide nothing",
}
Facts = dict[tuple[str, str], TaggedFact]


def known(database: Database) -> dict[str, Any]:
    """Ids of everything that a fact can be about, as the oracle's world has them."""
    with database.snapshot(SYSTEM) as snapshot:
        return {
            name: set(
                snapshot.connection.execute(select(Base.metadata.tables[name].c.id)).scalars()
            )
            for name in ("memberships", "groups", "resources", "service_credentials")
        }


def facts(database: Database, world: dict[str, Any]) -> Facts:
    """Every fact about what is in the world, as far as it still exists."""
    found = test_writing.facts(database, world)
    with database.snapshot(SYSTEM) as snapshot:
        for id in world["service_credentials"]:
            loaded = tagged_facts.load(snapshot, credential_id=id)
            assert loaded is not None
            if loaded.credential is not None:
                found["credential", id] = loaded.credential
    return found


def tables_in(statements: list[str]) -> set[str]:
    """Names of tables that occur in statements."""
    words = set(re.findall(r"\w+", " ".join(statements)))
    return words & set(Base.metadata.tables)


def changed(before: Facts, after: Facts, resources: set[str]) -> Iterator[tuple[str, str]]:
    """The facts that are no longer what they were."""
    for key, old in before.items():
        new = after.get(key)
        if new is None or value_of(new, resources) != value_of(old, resources):
            yield key


def test_every_table_is_said_to_be_read_or_not() -> None:
    assert not READ_BY_FACTS & set(READ_BY_NO_FACT)
    assert READ_BY_FACTS | set(READ_BY_NO_FACT) == set(Base.metadata.tables)


def test_facts_read_the_tables_that_are_said_to_be_read(place: Place) -> None:
    world = known(place.worker.database)
    with counting() as statements:
        found = facts(place.worker.database, world)
    assert {key[0] for key in found} == {"grants", "path", "permissions", "credential"}
    assert tables_in(statements) == READ_BY_FACTS | {"realms"}


@pytest.mark.parametrize("write", WRITES, ids=str)
def test_a_write_declares_the_tags_of_the_facts_it_changes(place: Place, write: Write) -> None:
    database = place.worker.database
    world = known(database)
    before = facts(database, world)
    recorded = Recorded(database)
    try:
        perform(write, place.api, place.worker, write.request(place.world))
    finally:
        del database.write  # type: ignore[method-assign]
    after, resources = facts(database, world), known(database)["resources"]
    marked: dict[str, frozenset[str]] = {}
    for written in recorded.all:
        for realm, tags in written.tags.items():
            marked[realm] = marked.get(realm, frozenset()) | tags
    assert list(unmarked(before, after, marked, resources)) == []
    # Were this not as said, the line above would show nothing.
    assert bool(list(changed(before, after, resources))) == write.changes_facts


def test_the_calls_write_every_table_that_facts_read(place: Place) -> None:
    """Else a table could have no writer here whose tags are looked at."""
    written: set[str] = set()
    for write in WRITES:
        before = dump(place.worker)
        # An earlier one may have taken away what it needs.
        with contextlib.suppress(Refused):
            perform(write, place.api, place.worker, write.request(place.world))
        after = dump(place.worker)
        written |= {name for name in before if before[name] != after[name]}
    assert written >= READ_BY_FACTS

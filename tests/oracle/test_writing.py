"""Writes over the API do to the tables what the oracle does to its world, and declare it.

Tag soundness (I5 of the cache's protocol): whatever fact a write changes, one of the tags that it
declared is among the tags of that fact.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import ENVIRONMENT
from authz_service.engine.facts import GROUP, MEMBERSHIP, Grants, ResourceRef, Subject
from authz_service.engine.tags import ANY_WRITE, ENVIRONMENT_DEFINITIONS
from authz_service.server import Worker
from authz_service.storage import tagged_facts
from authz_service.storage.database import Database, Written
from authz_service.storage.tagged_facts import TaggedFact
from tests.callers import Caller, Refused
from tests.conftest import ManualClock, begun
from tests.oracle import naive, rows, worlds
from tests.oracle.sizes import how_many
from tests.oracle.test_asking import ref_of, subject_of
from tests.oracle.test_reading import at
from tests.oracle.writing import NOT_CALLED, perform

SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
# Over the wire these name at least one.
SOME_PERMISSIONS = {"add_role_permissions", "remove_role_permissions"}


class Recorded:
    """What the writes of a database returned, in order."""

    def __init__(self, database: Database) -> None:
        self.all: list[Written[Any]] = []
        write = database.write

        def recording(*args: Any, **kwargs: Any) -> Written[Any]:
            written = write(*args, **kwargs)
            self.all.append(written)
            return written

        database.write = recording  # type: ignore[method-assign]


def facts(database: Database, world: dict[str, Any]) -> dict[tuple[str, str], TaggedFact]:
    """Every fact of a world that can be asked for."""
    subjects = [Subject(MEMBERSHIP, id) for id in world["memberships"]]
    subjects += [Subject(GROUP, id) for id in world["groups"]]
    with database.snapshot(SYSTEM) as snapshot:
        loaded = tagged_facts.load(
            snapshot, subjects, [ResourceRef(id) for id in world["resources"]], permissions=True
        )
    assert loaded is not None
    assert loaded.permissions is not None
    return {
        **{("grants", subject.id): fact for subject, fact in loaded.grants.items()},
        **{("path", ref.id): fact for ref, fact in loaded.paths.items()},
        ("permissions", ""): loaded.permissions,
    }


def value_of(fact: TaggedFact, resources: set[str]) -> Any:
    """A fact's value as far as anybody can ask about it: on resources that still exist."""
    if not isinstance(fact.value, Grants):
        return fact.value
    (held,) = fact.value.holders
    return fact.value.is_active, {id: ends for id, ends in held.items() if id in resources}


def unmarked(
    before: dict[tuple[str, str], TaggedFact],
    after: dict[tuple[str, str], TaggedFact],
    marked: dict[str, frozenset[str]],
    resources: set[str],
) -> Iterator[tuple[str, str]]:
    """The facts that changed, or went, without one of their tags being marked."""
    for key, old in before.items():
        new = after.get(key)
        if new is not None and value_of(new, resources) == value_of(old, resources):
            continue
        if key[0] == "path" and new is None and key[1] not in resources:
            # Gone with what was above it, whose tag it carries.
            pass
        tags = marked.get(old.realm, frozenset())
        if not tags.isdisjoint(old.tags) or (tags and ANY_WRITE in old.tags):
            continue
        definitions = marked.get(ENVIRONMENT, frozenset())
        if old.uses_definitions and ENVIRONMENT_DEFINITIONS in definitions:
            continue
        yield key


@pytest.mark.every_cache
@given(data=st.data(), start=worlds.worlds(api_keys=False, expired=False))
# The server makes the ids, so no world comes twice, and shrinking has no ground.
@settings(
    max_examples=how_many("writes"),
    phases=(Phase.generate,),
    deadline=None,
    suppress_health_check=SLOW,
)
def test_writes_agree_and_declare_what_they_change(
    api: Caller, worker: Worker, clock: ManualClock, data: Any, start: dict[str, Any]
) -> None:
    database = worker.database
    world = start
    rows.replace(database, world)
    begun(worker)
    at(clock, worlds.NOW)
    recorded = Recorded(database)
    try:
        for _ in range(how_many("steps")):
            world = _step(api, database, recorded, data, world)
            _agree(api, data, world)
    finally:
        del database.write  # type: ignore[method-assign]


def _step(
    api: Caller, database: Database, recorded: Recorded, data: Any, world: dict[str, Any]
) -> dict[str, Any]:
    write = data.draw(worlds.attempts(world, api_keys=False))
    if write["op"] in NOT_CALLED:
        return world
    if write["op"] in SOME_PERMISSIONS and not write["permission_slugs"]:
        return world
    expected: Any = None
    try:
        after = worlds.apply(world, write)
    except worlds.Refused as refused:
        expected, after = refused.error, world
    before = facts(database, world)
    recorded.all.clear()
    try:
        made = perform(api, world, write)
    except Refused as refused:
        assert (refused.code, refused.reason) == expected, write
        assert facts(database, world) == before, write
        return world
    assert expected is None, (write, expected)
    after = worlds.rename(after, made)
    marked: dict[str, frozenset[str]] = {}
    for written in recorded.all:
        for realm, tags in written.tags.items():
            marked[realm] = marked.get(realm, frozenset()) | tags
    resources = set(after["resources"])
    wrong = list(unmarked(before, facts(database, world), marked, resources))
    assert wrong == [], (write, marked)
    return after


def _agree(api: Caller, data: Any, world: dict[str, Any]) -> None:
    asked = list(worlds.all_questions(world))
    if not asked:
        return
    places = data.draw(
        st.lists(st.integers(0, len(asked) - 1), min_size=1, max_size=40, unique=True)
    )
    items = [asked[place] for place in places]
    results = api.AuthorizationService.BatchCheck(
        items=[
            {"subject": subject_of(s), "permission_slug": p, "resource": ref_of(r)}
            for s, p, r in items
        ]
    ).results
    for question, result in zip(items, results, strict=True):
        expected = naive.check(world, *question, worlds.NOW)
        if naive.is_error(expected):
            assert result.WhichOneof("result") == "error", question
        else:
            assert result.decision.allowed == expected["allowed"], question
    # One unknown name sends a whole batch to SQL; single questions come from the cache.
    known = [
        item for item, result in zip(items, results, strict=True) if result.HasField("decision")
    ]
    for s, p, r in known[:10]:
        answer = api.AuthorizationService.Check(
            subject=subject_of(s), permission_slug=p, resource=ref_of(r)
        )
        assert answer.allowed == naive.check(world, s, p, r, worlds.NOW)["allowed"], (s, p, r)

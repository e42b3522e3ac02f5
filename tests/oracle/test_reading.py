"""What reads the tables agrees with the oracle: facts and decisions, lists, explanations."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
)
from authz_service.base.pages import Cursor, Page
from authz_service.domain import discovery
from authz_service.engine.check import Decision, decide
from authz_service.engine.explain import OWN_ROLE, VIA_GROUP, Grant
from authz_service.engine.facts import GROUP, MEMBERSHIP, USER, Ask, ResourceRef, Subject
from authz_service.storage import facts
from authz_service.storage.database import Database, Snapshot
from tests.conftest import ManualClock
from tests.oracle import naive, rows, worlds
from tests.oracle.sizes import how_many

CODES = {
    InvalidArgument: "INVALID_ARGUMENT",
    NotFound: "NOT_FOUND",
    AlreadyExists: "ALREADY_EXISTS",
    FailedPrecondition: "FAILED_PRECONDITION",
}
KINDS = {"membership": MEMBERSHIP, "group": GROUP, "user": USER}
SLOW_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def subject_of(subject: tuple[str, ...]) -> Subject:
    """A subject of the oracle as the engine's."""
    return Subject(KINDS[subject[0]], *subject[1:])


def ref_of(resource: tuple[str, ...]) -> ResourceRef:
    """A resource of the oracle as the engine's."""
    return ResourceRef(resource[1]) if resource[0] == "id" else ResourceRef("", *resource[1:])


def answered(ask: Callable[[], Any]) -> Any:
    """An answer, or the (code, reason) of a refusal."""
    try:
        return ask()
    except Refusal as refusal:
        return CODES[type(refusal)], refusal.reason


def as_answer(decision: Any) -> Any:
    """A decision in the oracle's form."""
    if not isinstance(decision, Decision):
        return decision
    until = decision.allowed_until
    return {
        "allowed": decision.allowed,
        "allowed_until": None if until is None else until // 1_000_000,
    }


def grant_of(grant: Grant) -> dict[str, Any]:
    """A grant in the oracle's form."""
    holder: tuple[Any, ...] = ("role_assignment", grant.assignment_id)
    if grant.holder == OWN_ROLE:
        holder = ("own_role",)
    elif grant.holder == VIA_GROUP:
        holder = ("group", grant.group_id, grant.assignment_id, tuple(grant.via_group_ids))
    return {
        "role_id": grant.role_id,
        "role_slug": grant.role_slug,
        "resource_id": grant.resource_id,
        "expires_at": None if grant.expires_at is None else grant.expires_at // 1_000_000,
        "holder": holder,
    }


def same_grants(
    world: dict[str, Any], who: Any, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> None:
    """Compares grants in order; any shortest chain of groups will do."""
    assert [_without_chain(grant) for grant in ours] == [_without_chain(grant) for grant in theirs]
    for grant in ours:
        if grant["holder"][0] == "group":
            _, group_id, _, via = grant["holder"]
            assert naive.is_valid_chain(world, who, group_id, list(via)), grant


def _without_chain(grant: dict[str, Any]) -> dict[str, Any]:
    holder = grant["holder"]
    return {**grant, "holder": holder[:3] if holder[0] == "group" else holder}


def at(clock: ManualClock, seconds: int) -> None:
    """Stops the clock at an instant of the world."""
    clock.stop_at(datetime.fromtimestamp(seconds, UTC))


def walk(page: Callable[[Page], tuple[list[Any], Cursor | None]], size: int) -> list[Any]:
    """All rows of a list, page by page."""
    found: list[Any] = []
    after = None
    while True:
        listed, after = page(Page(size, after))
        assert len(listed) <= size
        found += listed
        if after is None:
            return found


@given(world=worlds.worlds(api_keys=False, directory_roles=True))
@settings(max_examples=how_many("decisions"), deadline=None, suppress_health_check=SLOW_FIXTURES)
def test_decisions_agree(database: Database, clock: ManualClock, world: dict[str, Any]) -> None:
    rows.replace(database, world)
    source = facts.SqlFacts(database)
    asked = list(worlds.all_questions(world, every_form=True))
    for now in worlds.instants(world)[:3]:
        at(clock, now)
        subjects = {subject_of(s) for s, _, _ in asked if s[0] != "api_key"}
        slugs = {slug for _, slug, _ in asked}
        refs = {ref_of(r) for _, _, r in asked}
        together = source.load(subjects, slugs, refs)
        for place, (subject, slug, resource) in enumerate(asked):
            if subject[0] == "api_key":
                continue
            expected = naive.check(world, subject, slug, resource, now)
            ask = Ask(subject_of(subject), slug, ref_of(resource))
            assert as_answer(answered(partial(decide, together, ask))) == expected, ask
            if place % 97 == 0:
                alone = source.load((ask.subject,), (slug,), (ask.resource,))
                assert as_answer(answered(partial(decide, alone, ask))) == expected, ask


@given(world=worlds.worlds(api_keys=False, directory_roles=True))
@settings(
    max_examples=how_many("listed resources"), deadline=None, suppress_health_check=SLOW_FIXTURES
)
def test_resources_agree(database: Database, clock: ManualClock, world: dict[str, Any]) -> None:
    rows.replace(database, world)
    at(clock, worlds.NOW)
    slugs = list(world["permissions"])[:10]
    with database.snapshot(SYSTEM) as snapshot:
        for subject in worlds.subjects(world, every_form=False):
            parents = [None, *(("id", id) for id in list(world["resources"])[:6])]
            for number, parent in enumerate(parents):
                for children_only in (False, True):
                    types = () if number % 3 else tuple(world["resource_types"])[1:3]
                    expected = naive.list_resources(
                        world, subject, slugs, worlds.NOW, parent, types, children_only
                    )
                    listed = answered(
                        lambda s=subject, p=parent, c=children_only, t=types, n=number: _resources(
                            snapshot, s, slugs, p, t, c, 1 + n % 4
                        )
                    )
                    assert listed == expected, (subject, parent, children_only, types)


def _resources(
    snapshot: Snapshot,
    subject: Any,
    slugs: list[str],
    parent: Any,
    types: tuple[str, ...],
    children_only: bool,
    size: int,
) -> list[Any]:
    who, below = subject_of(subject), ref_of(parent) if parent else None
    kept = frozenset(types)

    def page(page: Page) -> tuple[list[Any], Cursor | None]:
        asked, listed = discovery.list_resources(
            snapshot, who, below, slugs, type_slugs=kept, children_only=children_only, page=page
        )
        discovery.require(snapshot.actor, asked, who, below, slugs)
        return [(row.id, held) for row, held in listed.items], listed.after

    found = walk(page, size)
    total = discovery.count_resources(
        snapshot, who, below, slugs, type_slugs=kept, children_only=children_only
    )
    assert total == len(found)
    return found


@given(world=worlds.worlds(api_keys=False, directory_roles=True))
@settings(
    max_examples=how_many("listed members"), deadline=None, suppress_health_check=SLOW_FIXTURES
)
def test_members_agree(database: Database, clock: ManualClock, world: dict[str, Any]) -> None:
    rows.replace(database, world)
    at(clock, worlds.NOW)
    with database.snapshot(SYSTEM) as snapshot:
        for number, (id, row) in enumerate(world["resources"].items()):
            for slug, permission in world["permissions"].items():
                if number % 4 and permission["resource_type_slug"] != row["resource_type_slug"]:
                    continue
                for direct_only in (False, True):
                    expected = naive.list_members(world, ("id", id), slug, worlds.NOW, direct_only)
                    listed = answered(
                        lambda i=id, s=slug, d=direct_only, n=number: _members(
                            snapshot, i, s, d, 1 + n % 4
                        )
                    )
                    if naive.is_error(expected):
                        assert listed == expected
                        continue
                    assert [each["membership_id"] for each in listed] == [
                        each["membership_id"] for each in expected
                    ], (id, slug, direct_only)
                    for ours, theirs in zip(listed, expected, strict=True):
                        who = ("membership", ours["membership_id"])
                        same_grants(world, who, ours["grants"], theirs["grants"])
                        assert ours["grants_truncated"] == theirs["grants_truncated"]


def _members(
    snapshot: Snapshot, resource_id: str, slug: str, direct_only: bool, size: int
) -> list[dict[str, Any]]:
    ref = ResourceRef(resource_id)

    def page(page: Page) -> tuple[list[Any], Cursor | None]:
        asked, listed = discovery.list_members(
            snapshot, ref, slug, direct_only=direct_only, page=page
        )
        discovery.require(snapshot.actor, asked, None, ref, (slug,))
        discovery.require_type(asked, slug)
        found = [
            {
                "membership_id": each.person.id,
                "grants": [grant_of(grant) for grant in each.grants],
                "grants_truncated": each.is_truncated,
            }
            for each in listed.items
        ]
        return found, listed.after

    found = walk(page, size)
    assert len(found) == discovery.count_members(snapshot, ref, slug, direct_only=direct_only)
    return found


@given(world=worlds.worlds(api_keys=False, directory_roles=True))
@settings(
    max_examples=how_many("listed permissions"), deadline=None, suppress_health_check=SLOW_FIXTURES
)
def test_permissions_agree(database: Database, clock: ManualClock, world: dict[str, Any]) -> None:
    rows.replace(database, world)
    at(clock, worlds.NOW)
    with database.snapshot(SYSTEM) as snapshot:
        for number, subject in enumerate(worlds.subjects(world, every_form=False)):
            for id in world["resources"]:
                for descendants in (False, True):
                    expected = naive.list_permissions(
                        world, subject, ("id", id), worlds.NOW, descendants
                    )
                    listed = answered(
                        lambda s=subject, i=id, d=descendants, n=number: _permissions(
                            snapshot, s, i, d, 1 + n % 4
                        )
                    )
                    assert listed == expected, (subject, id, descendants)


def _permissions(
    snapshot: Snapshot, subject: Any, resource_id: str, descendants: bool, size: int
) -> list[str]:
    who, ref = subject_of(subject), ResourceRef(resource_id)
    asked = discovery.frame(snapshot, who, ref)
    discovery.require(snapshot.actor, asked, who, ref)

    def page(page: Page) -> tuple[list[str], Cursor | None]:
        listed = discovery.list_permissions(
            snapshot,
            asked,
            who,
            include_descendant_types=descendants,
            page=page,
            include_total=False,
        )
        return [row.slug for row in listed.rows], listed.after

    return walk(page, size)


@given(world=worlds.worlds(api_keys=False, directory_roles=True))
@settings(max_examples=how_many("explanations"), deadline=None, suppress_health_check=SLOW_FIXTURES)
def test_explanations_agree(database: Database, clock: ManualClock, world: dict[str, Any]) -> None:
    rows.replace(database, world)
    at(clock, worlds.NOW)
    with database.snapshot(SYSTEM) as snapshot:
        for number, (subject, slug, resource) in enumerate(worlds.all_questions(world)):
            expected = naive.explain(world, subject, slug, resource, worlds.NOW)
            if naive.is_error(expected) and number % 7:
                continue
            ours = answered(
                lambda s=subject, p=slug, r=resource: _explanation(snapshot, s, p, ref_of(r))
            )
            if naive.is_error(expected):
                assert ours == expected
                continue
            for field in ("grants", "blocked_grants"):
                same_grants(world, subject, ours.pop(field), expected.pop(field))
            assert ours == expected, (subject, slug, resource)


STEP_FIELDS = {
    "EXTEND_ASSIGNMENT": ("assignment_id",),
    "ASSIGN_ROLE": ("role_id", "resource_id"),
    "UPDATE_MEMBERSHIP_ROLES": ("role_id",),
}


def _explanation(snapshot: Snapshot, subject: Any, slug: str, ref: ResourceRef) -> dict[str, Any]:
    who = subject_of(subject)
    asked = discovery.frame(snapshot, who, ref, (slug,))
    discovery.require(snapshot.actor, asked, who, ref, (slug,))
    explanation, path = discovery.explain(snapshot, asked, who, slug)
    until = explanation.allowed_until
    return {
        "allowed": explanation.allowed,
        "allowed_until": None if until is None else until // 1_000_000,
        "reason": explanation.reason,
        "resource_path": [row.id for row in path],
        "grants": [grant_of(grant) for grant in explanation.grants],
        "blocked_grants": [grant_of(grant) for grant in explanation.blocked],
        "grants_truncated": False,
        "remedies": [
            tuple(
                (step.kind, *(getattr(step, field) for field in STEP_FIELDS.get(step.kind, ())))
                for step in steps
            )
            for steps in explanation.remedies
        ],
    }

"""Every question, asked as a caller would, is answered as the oracle answers it."""

from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from hypothesis import HealthCheck, given, settings

from authz_service.server import Worker
from tests.callers import Caller, Refused
from tests.conftest import ManualClock, begun
from tests.oracle import naive, rows, worlds
from tests.oracle.sizes import how_many
from tests.oracle.test_reading import at

SLOW_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
ASKED = {
    "max_examples": how_many("asked"),
    "deadline": None,
    "suppress_health_check": SLOW_FIXTURES,
}


def subject_of(subject: tuple[str, ...]) -> dict[str, Any]:
    """A subject of the oracle as a message."""
    kind, *names = subject
    if kind == "user":
        return {"user": {"user_id": names[0], "organization_id": names[1]}}
    field = {
        "membership": "organization_membership_id",
        "group": "group_id",
        "api_key": "api_key_id",
    }
    return {field[kind]: names[0]}


def ref_of(resource: tuple[str, ...]) -> dict[str, Any]:
    """A resource of the oracle as a message."""
    if resource[0] == "id":
        return {"resource_id": resource[1]}
    names = ("organization_id", "resource_type_slug", "external_id")
    return {"key": dict(zip(names, resource[1:], strict=True))}


def decision_of(message: Any) -> dict[str, Any]:
    """A decision in the oracle's form."""
    until = message.allowed_until.seconds if message.HasField("allowed_until") else None
    return {"allowed": message.allowed, "allowed_until": until}


def error_of(status: Any) -> tuple[str, str]:
    """The code and reason of a status."""
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    return Code.Name(status.code), info.reason


def answered(ask: Any) -> Any:
    """An answer, or the (code, reason) of a refusal."""
    try:
        return ask()
    except Refused as refused:
        return refused.code, refused.reason


@pytest.mark.every_cache
@given(world=worlds.worlds(api_keys=False, directory_roles=True))
@settings(**ASKED)
def test_checks_agree_one_by_one_and_in_batches(
    api: Caller, worker: Worker, clock: ManualClock, world: dict[str, Any]
) -> None:
    rows.replace(worker.database, world)
    begun(worker)
    at(clock, worlds.NOW)
    service = api.AuthorizationService
    asked = list(worlds.all_questions(world, every_form=True))
    step = max(1, len(asked) // 2_000)
    asked = asked[::step]
    expected = [naive.check(world, *question, worlds.NOW) for question in asked]
    items = [
        {"subject": subject_of(s), "permission_slug": p, "resource": ref_of(r)} for s, p, r in asked
    ]
    results = service.BatchCheck(items=items).results
    assert len(results) == len(asked)
    for question, result, answer in zip(asked, results, expected, strict=True):
        ours = (
            decision_of(result.decision)
            if result.WhichOneof("result") == "decision"
            else error_of(result.error)
        )
        assert ours == answer, question
    for place in range(0, len(asked), max(1, len(asked) // 60)):
        # From SQL, then filling the cache, then from the cache.
        for _ in range(3):
            single = answered(lambda item=items[place]: decision_of(service.Check(**item)))
            assert single == expected[place], asked[place]
    assert worker.has_cache == (worker.metrics.cache_answers.value("view") > 0)


@given(world=worlds.worlds(api_keys=False))
@settings(**ASKED)
def test_matrices_agree(
    api: Caller, worker: Worker, clock: ManualClock, world: dict[str, Any]
) -> None:
    rows.replace(worker.database, world)
    begun(worker)
    at(clock, worlds.NOW)
    slugs = list(world["permissions"])
    places = worlds.resources(world)
    for subject in worlds.subjects(world):
        expected = naive.check_matrix(world, subject, slugs, places, worlds.NOW)
        ours = answered(
            lambda s=subject: [
                error_of(row.error) if row.HasField("error") else list(row.allowed)
                for row in api.AuthorizationService.CheckMatrix(
                    subject=subject_of(s),
                    permission_slugs=slugs,
                    resources=[ref_of(place) for place in places],
                ).rows
            ]
        )
        assert ours == expected, subject


@given(world=worlds.worlds(api_keys=False))
@settings(**ASKED)
def test_lists_agree_at_every_page_size(
    api: Caller, worker: Worker, clock: ManualClock, world: dict[str, Any]
) -> None:
    rows.replace(worker.database, world)
    begun(worker)
    at(clock, worlds.NOW)
    slugs = list(world["permissions"])[:10]
    for subject in worlds.subjects(world, every_form=False):
        expected = naive.list_resources(world, subject, slugs, worlds.NOW)
        for size in {1, 2, max(1, len(expected) - 1), max(1, len(expected)), len(expected) + 1}:
            listed = api.pages(
                "AuthorizationService",
                "ListResources",
                "items",
                subject=subject_of(subject),
                permission_slugs=slugs,
                page_size=size,
            )
            ours = [(row.resource.id, list(row.permission_slugs)) for row in listed]
            assert ours == expected, (subject, size)
    for id, row in world["resources"].items():
        for slug, permission in world["permissions"].items():
            if permission["resource_type_slug"] != row["resource_type_slug"]:
                continue
            members = naive.list_members(world, ("id", id), slug, worlds.NOW)
            for size in {1, max(1, len(members)), len(members) + 1}:
                found = api.pages(
                    "AuthorizationService",
                    "ListMembers",
                    "members",
                    resource={"resource_id": id},
                    permission_slug=slug,
                    page_size=size,
                )
                ours = [(each.organization_membership.id, len(each.grants)) for each in found]
                theirs = [(each["membership_id"], len(each["grants"])) for each in members]
                assert ours == theirs, (id, slug, size)


@given(world=worlds.worlds(api_keys=False))
@settings(**ASKED)
def test_memberships_show_their_roles(
    api: Caller, worker: Worker, clock: ManualClock, world: dict[str, Any]
) -> None:
    rows.replace(worker.database, world)
    begun(worker)
    at(clock, worlds.NOW)
    for id in world["memberships"]:
        message = api.OrganizationMembershipService.GetOrganizationMembership(
            organization_membership_id=id
        ).organization_membership
        expected = naive.membership_roles(world, id, worlds.NOW)
        assert [role.role_id for role in message.roles] == [role["role_id"] for role in expected]
        for ours, theirs in zip(message.roles, expected, strict=True):
            assert sorted(ours.group_ids) == sorted(theirs["group_ids"])
        assert message.role == naive.membership_role(world, id, worlds.NOW)


@given(world=worlds.worlds(api_keys=False))
@settings(**ASKED)
def test_explanations_agree_with_checks(
    api: Caller, worker: Worker, clock: ManualClock, world: dict[str, Any]
) -> None:
    rows.replace(worker.database, world)
    begun(worker)
    at(clock, worlds.NOW)
    asked = list(worlds.all_questions(world))
    for subject, slug, resource in asked[:: max(1, len(asked) // 80)]:
        expected = naive.explain(world, subject, slug, resource, worlds.NOW)
        ours = answered(
            lambda s=subject, p=slug, r=resource: api.AuthorizationService.Explain(
                subject=subject_of(s), permission_slug=p, resource=ref_of(r)
            )
        )
        if naive.is_error(expected):
            assert ours == expected
            continue
        assert ours.allowed == expected["allowed"]
        assert len(ours.grants) == len(expected["grants"])
        assert len(ours.blocked_grants) == len(expected["blocked_grants"])
        assert [node.id for node in ours.resource_path] == expected["resource_path"]
        assert [len(remedy.steps) for remedy in ours.remedies] == [
            len(steps) for steps in expected["remedies"]
        ]

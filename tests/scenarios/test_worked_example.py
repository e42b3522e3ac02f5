"""The worked example of product.md section 2.11, asked through every door there is.

Through the hall and over a socket, with every kind of subject and resource; through the client's
guard; and with the commands a person types. API keys are not asked: none can be made yet.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

import authz_service.cli
from authz_service.base.secrets import Secret
from authz_service.client.channel import connect
from authz_service.client.guard import Guard
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.pb.authz.v1 import core_pb2
from authz_service.server import Worker
from tests.callers import Caller, through_channel
from tests.conftest import ManualClock
from tests.oracle import example, rows
from tests.oracle.test_asking import answered, decision_of, error_of, ref_of, subject_of
from tests.oracle.test_reading import at

BOTH = pytest.mark.both_databases
CHECKS = [row for row in example.CHECKS if row[1] not in example.API_KEYS]
ERRORS = example.ERRORS
EXPLANATIONS = [
    each for each in example.EXPLANATIONS if each["question"][0] not in example.API_KEYS
]
SECONDS = 20.0


@pytest.fixture
def world(worker: Worker, clock: ManualClock) -> None:
    """The worker holds the example, on the last day of 2029."""
    rows.replace(worker.database, example.world())
    worker.fence()
    at(clock, example.BEFORE_2030)


@pytest.fixture
def address(world: None, worker: Worker) -> str:
    """Where the worker listens."""
    worker.start()
    (address,) = worker.addresses
    return str(address)


@pytest.fixture(params=["hall", "socket"])
def door(request: pytest.FixtureRequest, world: None, api: Caller) -> Iterator[Caller]:
    """An admin in front of the hall, and one at the other end of a socket."""
    if request.param == "hall":
        yield api
        return
    with grpc.insecure_channel(request.getfixturevalue("address")) as channel:
        yield Caller(through_channel(channel), api._bearer)


def subjects(name: Any) -> list[dict[str, Any]]:
    """Every way to name a subject: a membership also as the pair."""
    found = [subject_of(example.subject(name))]
    if name in example.MEMBERSHIPS:
        found.append(subject_of(example.pair(name)))
    return found


def resources(name: str) -> list[dict[str, Any]]:
    """Both ways to name a resource."""
    return [ref_of(example.resource(name)), ref_of(example.key(name))]


def questions() -> Iterator[tuple[Any, int, dict[str, Any], Any]]:
    """Every check in every form: its number, when it is asked, the question, and the answer."""
    for number, who, slug, where, now, allowed, until, _ in CHECKS:
        for subject in subjects(who):
            for resource in resources(where):
                asked = {"subject": subject, "permission_slug": slug, "resource": resource}
                yield number, now, asked, {"allowed": allowed, "allowed_until": until}
    for label, who, slug, where, error in ERRORS:
        for subject in subjects(who):
            for resource in resources(where):
                asked = {"subject": subject, "permission_slug": slug, "resource": resource}
                yield label, example.BEFORE_2030, asked, error


@BOTH
def test_checks(door: Caller, clock: ManualClock) -> None:
    asked = 0
    for label, now, question, expected in questions():
        at(clock, now)
        ours = answered(lambda q=question: decision_of(door.AuthorizationService.Check(**q)))
        assert ours == expected, (label, question)
        asked += 1
    assert asked > 90


@BOTH
def test_all_checks_of_an_instant_in_one_batch(door: Caller, clock: ManualClock) -> None:
    for instant in (example.BEFORE_2030, example.START_OF_2030):
        at(clock, instant)
        asked = [each for each in questions() if each[1] == instant]
        answer = door.AuthorizationService.BatchCheck(items=[each[2] for each in asked])
        assert len(answer.results) == len(asked)
        for (label, _, _, expected), result in zip(asked, answer.results, strict=True):
            is_error = result.HasField("error")
            ours = error_of(result.error) if is_error else decision_of(result.decision)
            assert ours == expected, label


def test_matrix_of_each_subject(door: Caller, clock: ManualClock) -> None:
    """One row for each resource of the example; what a check answers stands in its column."""
    slugs = list(example.PERMISSIONS)
    places = [name for name, (home, _, _) in example.RESOURCES.items() if home == "acme"]
    for instant in (example.BEFORE_2030, example.START_OF_2030):
        at(clock, instant)
        for who in {row[1] for row in CHECKS}:
            expected = {
                (where, slug): allowed
                for _, name, slug, where, now, allowed, _, _ in CHECKS
                if name == who and now == instant
            }
            for subject in subjects(who):
                for form in (0, 1):
                    matrix = door.AuthorizationService.CheckMatrix(
                        subject=subject,
                        permission_slugs=slugs,
                        resources=[resources(where)[form] for where in [*places, "hq"]],
                    ).rows
                    assert len(matrix) == len(places) + 1
                    assert error_of(matrix[-1].error) == ("NOT_FOUND", "RESOURCE_NOT_FOUND")
                    for (where, slug), allowed in expected.items():
                        row = matrix[places.index(where)].allowed
                        assert row[slugs.index(slug)] == allowed, (who, where, slug)


@BOTH
def test_lists_of_resources(door: Caller) -> None:
    for who, slugs, parent, children_only, expected in example.LIST_RESOURCES:
        for subject in subjects(who):
            for below in [None] if parent is None else resources(parent):
                for size in (1, 2, 1_000):
                    listed = door.pages(
                        "AuthorizationService", "ListResources", "items", subject=subject,
                        permission_slugs=slugs, parent=below, children_only=children_only,
                        page_size=size,
                    )  # fmt: skip
                    ours = {row.resource.name: set(row.permission_slugs) for row in listed}
                    assert ours == expected, (who, slugs, parent)


def grant_of(grant: core_pb2.Grant) -> tuple[Any, ...]:
    """A grant as the example writes it: role, where it is held, its holder."""
    kind = grant.WhichOneof("holder")
    holder: tuple[Any, ...] = example.OWN_ROLE
    if kind == "role_assignment_id":
        holder = ("role_assignment", grant.role_assignment_id)
    elif kind == "group":
        group = grant.group
        holder = ("group", group.group_id, group.role_assignment_id, tuple(group.via_group_ids))
    return grant.role_slug, grant.resource.name, holder


@BOTH
def test_lists_of_members(door: Caller) -> None:
    for where, slug, direct_only, expected in example.LIST_MEMBERS:
        for resource in resources(where):
            for size in (1, 3, 1_000):
                listed = door.pages(
                    "AuthorizationService", "ListMembers", "members", resource=resource,
                    permission_slug=slug, direct_only=direct_only, page_size=size,
                )  # fmt: skip
                ours = {
                    row.organization_membership.user.name: [grant_of(each) for each in row.grants]
                    for row in listed
                }
                assert ours == expected, (where, slug, direct_only)


def test_lists_of_permissions(door: Caller) -> None:
    for who, where, with_descendants, expected in example.LIST_PERMISSIONS:
        if who in example.API_KEYS:
            continue
        for subject in subjects(who):
            for resource in resources(where):
                for size in (1, 1_000):
                    listed = door.pages(
                        "AuthorizationService", "ListPermissions", "permissions", subject=subject,
                        resource=resource, include_descendant_types=with_descendants,
                        page_size=size,
                    )  # fmt: skip
                    assert [row.slug for row in listed] == expected, (who, where)


def step_of(step: pb.RemedyStep) -> tuple[str, ...]:
    """A step of a remedy as the example writes it."""
    kind = pb.RemedyStepKind.Name(step.kind).removeprefix("REMEDY_STEP_KIND_")
    named = {
        "ASSIGN_ROLE": (step.role_id, step.resource.id),
        "UPDATE_MEMBERSHIP_ROLES": (step.role_id,),
        "EXTEND_ASSIGNMENT": (step.role_assignment_id,),
    }
    return kind, *named.get(kind, ())


@BOTH
def test_explanations(door: Caller, clock: ManualClock) -> None:
    for each in EXPLANATIONS:
        who, slug, where, now = each["question"]
        at(clock, now)
        for subject in subjects(who):
            for resource in resources(where):
                ours = door.AuthorizationService.Explain(
                    subject=subject, permission_slug=slug, resource=resource
                )
                assert ours.allowed == (each["reason"] == "GRANTED")
                reason = pb.ExplainReason.Name(ours.reason)
                assert reason == f"EXPLAIN_REASON_{each['reason']}"
                assert [node.name for node in ours.resource_path] == each["path"]
                for found, expected in (
                    (ours.grants, each["grants"]),
                    (ours.blocked_grants, each["blocked"]),
                ):
                    assert [grant_of(grant) for grant in found] == [
                        (role, place, holder) for role, place, _, holder in expected
                    ]
                    assert [end_of(grant) for grant in found] == [end for _, _, end, _ in expected]
                remedies = [tuple(step_of(step) for step in one.steps) for one in ours.remedies]
                assert remedies == each["remedies"], each["question"]


def end_of(grant: core_pb2.Grant) -> int | None:
    """When a grant ends, in seconds since 1970."""
    return grant.expires_at.seconds if grant.HasField("expires_at") else None


def test_every_check_is_explained_with_its_reason(door: Caller, clock: ManualClock) -> None:
    for number, who, slug, where, now, allowed, until, reason in CHECKS:
        at(clock, now)
        ours = door.AuthorizationService.Explain(
            subject=subjects(who)[0], permission_slug=slug, resource=resources(where)[0]
        )
        expected = {"allowed": allowed, "allowed_until": until}
        assert decision_of(ours) == expected, number
        assert pb.ExplainReason.Name(ours.reason) == f"EXPLAIN_REASON_{reason}", number
    for label, who, slug, where, error in ERRORS:
        ours = answered(
            lambda who=who, slug=slug, where=where: door.AuthorizationService.Explain(
                subject=subjects(who)[0], permission_slug=slug, resource=resources(where)[0]
            )
        )
        assert ours == error, label


def test_the_guard_of_the_client(address: str, api: Caller, clock: ManualClock) -> None:
    assert api._bearer is not None
    with connect(address, Secret(api._bearer)) as channel:
        guard = Guard(channel)
        for label, now, question, expected in questions():
            at(clock, now)
            decision = guard.check(
                core_pb2.Subject(**question["subject"]),
                question["permission_slug"],
                core_pb2.ResourceRef(**question["resource"]),
                deadline_seconds=SECONDS,
            )
            if isinstance(expected, tuple):
                assert (decision.allowed, decision.error) == (False, " ".join(expected)), label
                continue
            until = decision.allowed_until
            assert decision.error == "", label
            assert decision.allowed == expected["allowed"], label
            assert (until and int(until.timestamp())) == expected["allowed_until"], label


# --- what a person types -------------------------------------------------------------------------

Command = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def authz(address: str, api: Caller) -> Command:
    """Runs a command against the worker: its exit code, and its lines."""
    for module in pkgutil.iter_modules(authz_service.cli.__path__):
        if module.name.startswith("cmd_"):
            importlib.import_module(f"authz_service.cli.{module.name}")
    runner = CliRunner()
    settings = {"AUTHZ_ADDRESS": address, "AUTHZ_CREDENTIAL": api._bearer}

    def run(*arguments: str) -> tuple[int, list[str]]:
        done = runner.invoke(authz_service.cli.app, list(arguments), env=settings)
        return done.exit_code, (done.stdout + done.stderr).splitlines()

    return run


def typed_subjects(name: Any) -> list[str]:
    """Every way to type a subject."""
    if isinstance(name, tuple):
        return [f"{name[1]}@{name[2]}"]
    if name in example.GROUPS:
        return [f"group_{name}"]
    return [f"om_{name}", f"user_{name}@org_acme"]


def typed_resources(name: str) -> list[tuple[str, ...]]:
    """Every way to type a resource, with the organization it is looked up in."""
    home, kind, parent = example.RESOURCES[name]
    key = f"{kind}/{name}" if parent else "organization"
    return [(f"resource_{name}",), (key, "--organization", f"org_{home}")]


def test_command_check(authz: Command, clock: ManualClock) -> None:
    for number, who, slug, where, now, allowed, until, _ in CHECKS:
        at(clock, now)
        for subject in typed_subjects(who):
            for resource, *more in typed_resources(where):
                code, lines = authz("check", subject, slug, resource, *more)
                ends = " until 2030-01-01T00:00:00Z" if until else ""
                expected = (0, [f"allowed{ends}"]) if allowed else (1, ["denied"])
                assert (code, lines) == expected, (number, subject, resource)
    for label, who, slug, where, (code_name, reason) in ERRORS:
        for subject in typed_subjects(who):
            code, lines = authz("check", subject, slug, f"resource_{where}")
            assert code == 2, label
            assert any(f"{code_name} {reason}" in line for line in lines), (label, lines)


def test_command_explain(authz: Command, clock: ManualClock) -> None:
    for number, who, slug, where, now, allowed, _, reason in CHECKS:
        at(clock, now)
        code, lines = authz("explain", typed_subjects(who)[0], slug, typed_resources(where)[0][0])
        assert code == 0, number
        assert lines[0] == f"{'allowed' if allowed else 'denied'}: {reason}", number
    for each in EXPLANATIONS:
        who, slug, where, now = each["question"]
        at(clock, now)
        _, lines = authz("explain", typed_subjects(who)[-1], slug, typed_resources(where)[0][0])
        kinds = {name: example.RESOURCES[name][1] for name in each["path"]}
        assert lines[1] == "path: " + " > ".join(f"{kinds[name]}/{name}" for name in each["path"])
        granted = [line for line in lines if line.startswith("granted by ")]
        for (role, place, _, holder), line in zip(each["grants"], granted, strict=True):
            where_held = f"{example.RESOURCES[place][1]}/{place}"
            assert line == f"granted by {role} on {where_held} ({held_by(holder)})"
        assert sum(line.startswith("blocked: ") for line in lines) == len(each["blocked"])
        assert sum(line.startswith("would be allowed by ") for line in lines) == len(
            each["remedies"]
        )


def held_by(holder: tuple[Any, ...]) -> str:
    """How a command tells the holder of a grant."""
    if holder[0] == "group":
        return f"group {holder[1]}" + "".join(f" via {group_id}" for group_id in holder[3])
    return "own role" if holder == example.OWN_ROLE else "own assignment"


def test_command_list_members(authz: Command) -> None:
    for where, slug, direct_only, expected in example.LIST_MEMBERS:
        for resource, *more in typed_resources(where):
            flags = ["--direct-only"] if direct_only else []
            code, lines = authz("list-members", resource, slug, *more, *flags)
            assert code == 0
            found = {line.partition("\t")[0].removeprefix("user_") for line in lines}
            assert found == set(expected), (where, slug, lines)
            for line in lines:
                grants = expected[line.partition("\t")[0].removeprefix("user_")]
                words = line.partition("\t")[2].split("; ")
                for (role, place, holder), shown in zip(grants, words, strict=True):
                    where_held = f"{example.RESOURCES[place][1]}/{place}"
                    assert shown.startswith(f"{role} on {where_held} ({held_by(holder)}"), line


def test_command_list_resources(authz: Command) -> None:
    for who, slugs, parent, children_only, expected in example.LIST_RESOURCES:
        for subject in typed_subjects(who):
            for resource, *more in [("",)] if parent is None else typed_resources(parent):
                flags = ["--parent", resource] if resource else []
                flags += ["--children-only"] if children_only else []
                code, lines = authz("list-resources", subject, *slugs, *more, *flags)
                assert code == 0, lines
                found = {}
                for line in lines:
                    key, name, held = line.split("\t")
                    assert key == f"{example.RESOURCES[name][1]}/{name}"
                    found[name] = set(held.split(", "))
                assert found == expected, (who, slugs, parent)

"""How many statements a question takes, and that neither rows nor items make it more.

BEGIN and ROLLBACK of a snapshot are not counted. A list without a row fails.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from authz_service.server import Worker
from tests.architecture.conftest import Place, Stocked, opened
from tests.architecture.writes import World
from tests.statements import counting

CHECK_MAX = 3
PAGE_MAX = 4
# Many questions at once: one statement for each kind of thing that they name.
BATCH_MAX = 12
EXPLAIN_MAX = 7
# Rows of each kind that the grown world has more.
MORE = 30


class Asked(NamedTuple):
    """A question that a page answers."""

    service: str
    name: str
    request: dict[str, Any]


def subjects(w: World) -> dict[str, dict[str, Any]]:
    """A subject of each kind that exists."""
    return {
        "membership": {"organization_membership_id": w["ann@acme"]},
        "user": {"user": {"user_id": w["ann"], "organization_id": w["acme"]}},
        "group": {"group_id": w["team"]},
    }


def resources(w: World) -> dict[str, dict[str, Any]]:
    """The paper, by each kind of reference."""
    return {
        "id": {"resource_id": w["paper"]},
        "key": {
            "key": {
                "organization_id": w["acme"],
                "resource_type_slug": "doc",
                "external_id": "paper",
            }
        },
    }


def lists(w: World) -> list[Asked]:
    """Every list, with filters that take another way."""
    ann = {"organization_membership_id": w["ann@acme"]}
    acme = {"organization_id": w["acme"]}
    paper = {"resource_id": w["paper"]}
    can_read = {"subject": ann, "permission_slugs": ["doc:read"]}
    readers = {"resource": paper, "permission_slug": "doc:read"}
    total = {"include_total_size": True}
    return [
        Asked("AuthorizationService", "ListResources", can_read),
        Asked("AuthorizationService", "ListResources", can_read | total),
        Asked("AuthorizationService", "ListMembers", readers),
        Asked("AuthorizationService", "ListMembers", readers | total),
        Asked("AuthorizationService", "ListPermissions", {"subject": ann, "resource": paper}),
        Asked("ConfigurationService", "ListServiceCredentials", {}),
        Asked("EventService", "ListEvents", {}),
        Asked("EventService", "ListEvents", acme),
        Asked("GroupService", "ListGroups", acme),
        Asked("GroupService", "ListGroupMembers", {"group_id": w["crew"]}),
        Asked("GroupService", "ListGroupMembers", {"group_id": w["team"], "recursive": True}),
        Asked("GroupService", "ListGroupMembers", {"group_id": w["crew"]} | total),
        Asked("GroupService", "ListGroupMembers", {"group_id": w["acme everyone"]} | total),
        Asked("GroupService", "ListMemberGroups", {"group_id": w["team"]}),
        Asked("GroupService", "ListMembershipGroups", ann),
        Asked("GroupService", "ListMembershipGroups", {**ann, "recursive": True}),
        Asked("GroupService", "ListContainingGroups", {"group_id": w["crew"]}),
        Asked("GroupService", "ListContainingGroups", {"group_id": w["crew"], "recursive": True}),
        Asked("OrganizationService", "ListOrganizations", {}),
        Asked("OrganizationMembershipService", "ListOrganizationMemberships", acme),
        Asked(
            "OrganizationMembershipService", "ListOrganizationMemberships", {"user_id": w["ann"]}
        ),
        Asked("OrganizationMembershipService", "ListOrganizationMemberships", acme | total),
        Asked("PermissionService", "ListPermissions", {}),
        Asked("ResourceTypeService", "ListResourceTypes", {}),
        Asked("ResourceService", "ListResources", acme),
        Asked("ResourceService", "ListResources", {**acme, "parent": {"resource_id": w["one"]}}),
        Asked("RoleAssignmentService", "ListRoleAssignments", {"group_id": w["team"]}),
        Asked("RoleAssignmentService", "ListRoleAssignments", {**ann, "include_groups": True}),
        Asked("RoleAssignmentService", "ListRoleAssignments", acme),
        Asked("RoleAssignmentService", "ListRoleAssignments", acme | total),
        Asked("RoleService", "ListRoles", {}),
        Asked("RoleService", "ListRoles", acme),
        Asked("RoleService", "ListRoles", acme | total),
        Asked("UserService", "ListUsers", {}),
        Asked("UserService", "ListUsers", acme),
    ]


def grow(place: Place) -> None:
    """Adds to everything that a list shows."""
    api, w = place.api, place.world
    for i in range(MORE):
        user = api.UserService.CreateUser(email=f"more{i}@example.com", name=f"more {i}").user
        membership = api.OrganizationMembershipService.CreateOrganizationMembership(
            user_id=user.id, organization_id=w["acme"], role_slugs=["auditor"]
        ).organization_membership
        member = {"organization_membership_id": membership.id}
        api.GroupService.AddGroupMember(group_id=w["crew"], **member)
        group = api.GroupService.CreateGroup(organization_id=w["acme"], name=f"more {i}").group
        ann = {"organization_membership_id": w["ann@acme"]}
        api.GroupService.AddGroupMember(group_id=group.id, **ann)
        inner = {"member_group_id": w["crew"]} if i % 2 else {}
        if inner:
            api.GroupService.AddGroupMember(group_id=group.id, **inner)
        else:
            api.GroupService.AddGroupMember(group_id=w["team"], member_group_id=group.id)
        resource = api.ResourceService.CreateResource(
            organization_id=w["acme"],
            resource_type_slug="folder",
            external_id=f"more{i}",
            name=f"more {i}",
            parent={"resource_id": w["one"]},
        ).resource
        for subject in ({"group_id": w["team"]}, ann):
            api.RoleAssignmentService.CreateRoleAssignment(
                **subject, role_slug="keeper", resource={"resource_id": resource.id}
            )
        other = api.OrganizationService.CreateOrganization(name=f"more {i}").organization
        api.OrganizationMembershipService.CreateOrganizationMembership(
            user_id=w["ann"], organization_id=other.id
        )
    for i in range(5):
        api.PermissionService.CreatePermission(
            slug=f"doc:more{i}", name=f"more {i}", resource_type_slug="doc"
        )
        api.ResourceTypeService.CreateResourceType(
            slug=f"more{i}", name=f"more {i}", parent_type_slugs=["doc"]
        )
        api.RoleService.CreateRole(slug=f"org-more{i}", name=f"more {i}", organization_id=w["acme"])


@pytest.fixture(scope="module")
def small(stocked: Stocked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The world as it is, and nothing remembered of it."""
    yield from copied(stocked, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def grown(stocked: Stocked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The world with more of everything."""
    for place in copied(stocked, tmp_path_factory.mktemp("grown")):
        grow(place)
        yield place


def copied(stocked: Stocked, folder: Path) -> Iterator[Place]:
    """A copy of the world, whose events have their places."""
    shutil.copyfile(stocked.template, folder / "authz.db")
    worker, api = opened(folder / "authz.db", AUTHZ_CACHE_BYPASS="on")
    yield Place(worker, api, stocked.place.world)
    worker.stop()


def taken(place: Place, service: str, name: str, **request: Any) -> int:
    """The statements that a call takes."""
    with counting() as statements:
        getattr(getattr(place.api, service), name)(**request)
    return sum(not text.startswith(("BEGIN", "ROLLBACK")) for text in statements)


def name_of(asked: Asked) -> str:
    """Tells rows of one list apart."""
    return "-".join((asked.service.removesuffix("Service"), asked.name, *asked.request))


def paged(worker: Worker) -> set[tuple[str, str]]:
    """Service and name of every RPC that answers page by page."""
    return {
        (each.service.rpartition(".")[2], each.name)
        for each in worker.hall.methods.values()
        if "page_token" in each.request_class.DESCRIPTOR.fields_by_name
    }


def test_every_list_has_a_row(small: Place) -> None:
    assert {(asked.service, asked.name) for asked in lists(small.world)} == paged(small.worker)


@pytest.mark.parametrize("kind", ["membership", "user", "group"])
@pytest.mark.parametrize("reference", ["id", "key"])
def test_a_check_takes_few_statements(
    small: Place, grown: Place, kind: str, reference: str
) -> None:
    for place in (small, grown):
        ask = {
            "subject": subjects(place.world)[kind],
            "resource": resources(place.world)[reference],
            "permission_slug": "doc:read",
        }
        assert taken(place, "AuthorizationService", "Check", **ask) <= CHECK_MAX


def test_a_check_by_a_stored_credential_takes_no_more(small: Place) -> None:
    made = small.api.ConfigurationService.CreateServiceCredential(name="new", scopes=["check"])
    here = small._replace(api=small.api.with_bearer(made.secret))
    ask = {
        "subject": subjects(small.world)["user"],
        "resource": resources(small.world)["key"],
        "permission_slug": "doc:read",
    }
    assert taken(here, "AuthorizationService", "Check", **ask) <= CHECK_MAX
    # By now the credential is remembered, and confirmed by the statement of the facts.
    assert taken(here, "AuthorizationService", "Check", **ask) == 1


def mixed(w: World) -> list[dict[str, Any]]:
    """Questions about each kind of subject, by each kind of reference."""
    return [
        {"subject": subject, "resource": resource, "permission_slug": slug}
        for subject in subjects(w).values()
        for resource in resources(w).values()
        for slug in ("doc:read", "doc:edit")
    ]


def test_a_batch_takes_as_many_whatever_its_size(small: Place, grown: Place) -> None:
    items = mixed(small.world)
    few = taken(small, "AuthorizationService", "BatchCheck", items=items)
    assert few <= BATCH_MAX
    for place in (small, grown):
        assert taken(place, "AuthorizationService", "BatchCheck", items=items * 50) == few


def test_a_batch_takes_two_more_for_each_organization_that_it_names(grown: Place) -> None:
    """Users and keys are looked up organization by organization; no worse than that."""
    listed = grown.api.OrganizationService.ListOrganizations().organizations
    items = [
        {
            "subject": {"user": {"user_id": grown.world["ann"], "organization_id": each.id}},
            "resource": {
                "key": {
                    "organization_id": each.id,
                    "resource_type_slug": "organization",
                    "external_id": each.id,
                }
            },
            "permission_slug": "organization:view",
        }
        for each in listed
    ]
    assert len(items) > MORE
    most = BATCH_MAX + 2 * (len(items) - 1)
    assert taken(grown, "AuthorizationService", "BatchCheck", items=items * 10) <= most


def test_a_matrix_takes_as_many_whatever_its_size(small: Place, grown: Place) -> None:
    def asked(place: Place, *names: str) -> int:
        return taken(
            place,
            "AuthorizationService",
            "CheckMatrix",
            subject=subjects(place.world)["membership"],
            permission_slugs=["doc:read", "doc:edit"],
            resources=[{"resource_id": place.world[name]} for name in names],
        )

    few = asked(small, "paper")
    assert few <= BATCH_MAX
    assert asked(small, "paper", "one", "letter", "two") == few
    assert asked(grown, "paper", "one", "letter", "two") == few


@pytest.mark.parametrize("kind", ["membership", "user", "group"])
def test_an_explanation_takes_as_many_whatever_is_stored(
    small: Place, grown: Place, kind: str
) -> None:
    def asked(place: Place) -> int:
        return taken(
            place,
            "AuthorizationService",
            "Explain",
            subject=subjects(place.world)[kind],
            resource=resources(place.world)["id"],
            permission_slug="doc:read",
        )

    assert asked(small) <= EXPLAIN_MAX
    assert asked(grown) == asked(small)


NUMBERS = range(len(lists(defaultdict(str))))


@pytest.mark.parametrize("number", NUMBERS, ids=[name_of(a) for a in lists(defaultdict(str))])
def test_a_page_takes_few_statements_whatever_is_stored(
    small: Place, grown: Place, number: int
) -> None:
    counts = []
    for place in (small, grown):
        service, name, request = lists(place.world)[number]
        # What one page shows says nothing if it is empty.
        response = getattr(getattr(place.api, service), name)(**request)
        assert any(len(value) for _, value in response.ListFields() if hasattr(value, "append"))
        counts.append(taken(place, service, name, **request))
    assert max(counts) <= PAGE_MAX
    assert counts[0] == counts[1]


def test_a_remembered_check_takes_no_statement(place: Place) -> None:
    asked = {
        "subject": {"organization_membership_id": place.world["ann@acme"]},
        "permission_slug": "doc:read",
        "resource": {"resource_id": place.world["paper"]},
    }
    check = place.api.AuthorizationService.Check
    with counting() as statements:
        # The first tells whose they are, the second fills.
        answers = [check(**asked).allowed for _ in range(3)]
        before = len(statements)
        answers += [check(**asked).allowed for _ in range(3)]
    assert answers == [True] * 6
    assert len(statements) == before
    assert place.worker.metrics.cache_answers.value("view") >= 3

"""OrganizationMembershipService over the hall."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, update

from authz_service.base.clock import microseconds
from authz_service.config import Config
from authz_service.pb.authz.v1 import memberships_pb2 as pb
from authz_service.server import Worker
from authz_service.storage.tables import (
    Configuration,
    MembershipRole,
    OrganizationConfiguration,
)
from tests.callers import Caller, Refused
from tests.conftest import ManualClock
from tests.directories import Directory, Recorded

PENDING, ACTIVE, INACTIVE = (
    pb.MEMBERSHIP_STATUS_PENDING,
    pb.MEMBERSHIP_STATUS_ACTIVE,
    pb.MEMBERSHIP_STATUS_INACTIVE,
)
DIRECT, DIRECTORY, GROUP = (
    pb.MEMBERSHIP_ROLE_SOURCE_DIRECT,
    pb.MEMBERSHIP_ROLE_SOURCE_DIRECTORY,
    pb.MEMBERSHIP_ROLE_SOURCE_GROUP,
)
MISSING = "om_01HZZZZZZZZZZZZZZZZZZZZZZZ"
MISSING_USER = "user_01HZZZZZZZZZZZZZZZZZZZZZZZ"
MISSING_ORGANIZATION = "org_01HZZZZZZZZZZZZZZZZZZZZZZZ"


@pytest.fixture
def settings() -> dict[str, str]:
    return {"AUTHZ_LIMIT_TOTAL_SIZE": "4"}


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    return Directory(api, worker, config)


@pytest.fixture
def acme(directory: Directory) -> Any:
    return directory.organization()


def user(api: Caller, email: str, **fields: Any) -> Any:
    return api.UserService.CreateUser(email=email, **fields).user


def create(api: Caller, user: Any, organization: Any, *slugs: str, **fields: Any) -> Any:
    return api.OrganizationMembershipService.CreateOrganizationMembership(
        user_id=user.id, organization_id=organization.id, role_slugs=slugs, **fields
    ).organization_membership


def get(api: Caller, membership: Any) -> Any:
    return api.OrganizationMembershipService.GetOrganizationMembership(
        organization_membership_id=membership.id
    ).organization_membership


def verb(api: Caller, name: str, membership: Any, **fields: Any) -> Any:
    """Calls ``Deactivate…``, ``Reactivate…``, ``Update…``; returns the membership."""
    call = getattr(api.OrganizationMembershipService, f"{name}OrganizationMembership")
    return call(organization_membership_id=membership.id, **fields).organization_membership


def refusal(call: Any, *arguments: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(*arguments, **fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def unknown(membership: Any = None) -> tuple[str, str, dict[str, str]]:
    named = membership.id if membership else MISSING
    return "NOT_FOUND", "MEMBERSHIP_NOT_FOUND", {"organization_membership_id": named}


def required(field: str) -> tuple[str, str, dict[str, str]]:
    return "INVALID_ARGUMENT", "FIELD_REQUIRED", {"field": field}


def roles(membership: Any) -> list[tuple[str, list[int], list[str]]]:
    return [(role.slug, list(role.sources), list(role.group_ids)) for role in membership.roles]


def slugs(membership: Any) -> list[str]:
    return [role.slug for role in membership.roles]


def configure(directory: Directory, **values: Any) -> None:
    directory.write(lambda tx: tx.connection.execute(update(Configuration).values(values)))


def role_id(api: Caller, slug: str, organization: Any = None) -> str:
    named = {"slug": slug, "organization_id": organization.id if organization else ""}
    return str(api.RoleService.GetRole(key=named).role.id)


def own_role(api: Caller, organization: Any, name: str) -> Any:
    return api.RoleService.CreateRole(
        organization_id=organization.id, slug=f"org-{name}", name=name
    ).role


# --- create --------------------------------------------------------------------------------------


def test_created_membership_is_active_with_all_that_a_list_shows(
    api: Caller, directory: Directory, acme: Any
) -> None:
    ann = user(
        api,
        "Ann@example.com",
        first_name="Ann",
        last_name="Lee",
        name="Ann Lee",
        profile_picture_url="https://example.com/a.png",
        external_id="ann",
    )
    before = len(directory.events(acme))
    made = create(api, ann, acme, "member", "owner")
    assert made.id.startswith("om_")
    assert (made.user_id, made.organization_id) == (ann.id, acme.id)
    assert made.status == ACTIVE
    assert roles(made) == [("owner", [DIRECT], []), ("member", [DIRECT], [])]
    assert [role.role_id for role in made.roles] == [
        role_id(api, "owner"),
        role_id(api, "member"),
    ]
    assert made.role == "owner"
    for name in (
        "id",
        "email",
        "first_name",
        "last_name",
        "name",
        "profile_picture_url",
        "external_id",
    ):
        assert getattr(made.user, name) == getattr(ann, name)
    assert made.organization_name == "Acme"
    assert get(api, made) == made
    by_user = api.OrganizationMembershipService.GetOrganizationMembership(
        user={"user_id": ann.id, "organization_id": acme.id}
    )
    assert by_user.organization_membership == made
    assert directory.recorded(acme, before) == [
        Recorded("organization_membership.created", made.id, True)
    ]
    data, previous = directory.data(acme)
    assert (data["role"], data["user"]["email"], data["etag"]) == (
        "owner",
        "Ann@example.com",
        made.etag,
    )
    assert previous == {}


def test_default_role_is_given_where_none_is_named(
    api: Caller, directory: Directory, acme: Any
) -> None:
    other = directory.organization("Other")
    mine = own_role(api, acme, "visitor")
    directory.write(
        lambda tx: tx.connection.execute(
            update(OrganizationConfiguration)
            .where(OrganizationConfiguration.organization_id == acme.id)
            .values(default_role_id=mine.id)
        )
    )
    ann = user(api, "ann@example.com")
    assert slugs(create(api, ann, acme)) == ["org-visitor"]
    assert slugs(create(api, ann, other)) == ["member"]


def test_one_role_may_be_named_alone(api: Caller, acme: Any) -> None:
    assert slugs(create(api, user(api, "a@example.com"), acme, role_slug="guest")) == ["guest"]
    assert refusal(create, api, user(api, "b@example.com"), acme, "guest", role_slug="member") == (
        "INVALID_ARGUMENT",
        "FIELDS_EXCLUSIVE",
        {"fields": "role_slug,role_slugs", "rule": "at most one of these"},
    )


def test_a_role_named_twice_is_held_once(api: Caller, acme: Any) -> None:
    assert slugs(create(api, user(api, "a@example.com"), acme, "guest", "guest")) == ["guest"]


def test_fifty_roles_are_held_and_one_more_is_refused(
    api: Caller, directory: Directory, acme: Any
) -> None:
    made = [directory.role(f"role-{number}", "organization").slug for number in range(51)]
    ann = user(api, "ann@example.com")
    assert refusal(create, api, ann, acme, *made) == (
        "INVALID_ARGUMENT",
        "REQUEST_TOO_LARGE",
        {"field": "role_slugs", "maximum": "50", "actual": "51"},
    )
    membership = create(api, ann, acme, *made[:50])
    assert slugs(membership) == made[:50]
    # Mapped roles count too, and are not replaced: 49 and these are one too many.
    mapped = [role_id(api, "guest"), role_id(api, "member")]
    add_directory_roles(directory, membership, mapped)
    verb(api, "Update", membership, role_slugs=made[:48])
    assert refusal(verb, api, "Update", membership, role_slugs=made[:49]) == (
        "RESOURCE_EXHAUSTED",
        "LIMIT_REACHED",
        {"limit": "membership_roles", "maximum": "50"},
    )
    # A role that is mapped as well is one role.
    assert len(verb(api, "Update", membership, role_slugs=[*made[:48], "guest"]).roles) == 50


def test_roles_that_cannot_be_given_are_refused(
    api: Caller, directory: Directory, acme: Any
) -> None:
    directory.types(project=["organization"])
    directory.role("editor", "project")
    foreign = own_role(api, directory.organization("Other"), "foreign").slug
    ann, bob = user(api, "ann@example.com"), user(api, "bob@example.com")
    held = create(api, bob, acme)
    before = len(directory.events(acme))
    mismatch = (
        "INVALID_ARGUMENT",
        "ROLE_RESOURCE_TYPE_MISMATCH",
        {"role_slug": "editor", "role_type": "project", "resource_type": "organization"},
    )
    for slug, expected in (
        ("nothing", ("NOT_FOUND", "ROLE_NOT_FOUND", {"role_slug": "nothing"})),
        (foreign, ("NOT_FOUND", "ROLE_NOT_FOUND", {"role_slug": foreign})),
        ("editor", mismatch),
    ):
        for given in ({"role_slug": slug}, {"role_slugs": ["member", slug]}):
            assert (
                refusal(
                    api.OrganizationMembershipService.CreateOrganizationMembership,
                    user_id=ann.id,
                    organization_id=acme.id,
                    **given,
                )
                == expected
            )
            assert refusal(verb, api, "Update", held, **given) == expected
    for given, field in (
        ({"role_slug": "No Slug"}, "role_slug"),
        ({"role_slugs": ["member", "No"]}, "role_slugs[1]"),
    ):
        code, reason, metadata = refusal(verb, api, "Update", held, **given)
        assert (code, reason, metadata["field"]) == ("INVALID_ARGUMENT", "FIELD_INVALID", field)
    assert len(directory.events(acme)) == before


def test_one_role_only_where_the_deployment_says_so(
    api: Caller, directory: Directory, acme: Any
) -> None:
    configure(directory, multiple_roles_enabled=False)
    ann = user(api, "ann@example.com")
    disabled = ("FAILED_PRECONDITION", "MULTIPLE_ROLES_DISABLED", {"count": "2"})
    assert refusal(create, api, ann, acme, "guest", "member") == disabled
    made = create(api, ann, acme, "guest")
    assert refusal(verb, api, "Update", made, role_slugs=["guest", "member"]) == disabled
    assert slugs(verb(api, "Update", made, role_slugs=["admin"])) == ["admin"]
    # Roles through groups add up in this mode too (RO5).
    group = directory.group(acme, "Team", made)
    assign_on_root(api, directory, acme, "owner", group)
    assert slugs(get(api, made)) == ["owner", "admin"]


def test_unknown_user_and_organization_are_told_in_the_order_of_the_request(
    api: Caller, acme: Any
) -> None:
    service = api.OrganizationMembershipService
    ann = user(api, "ann@example.com")

    def told(**fields: str) -> tuple[str, str, dict[str, str]]:
        return refusal(service.CreateOrganizationMembership, role_slug="nothing", **fields)

    no_user = ("NOT_FOUND", "USER_NOT_FOUND", {"user_id": MISSING_USER})
    assert told(user_id=MISSING_USER, organization_id=MISSING_ORGANIZATION) == no_user
    assert told(user_id=MISSING_USER, organization_id=acme.id) == no_user
    assert told(user_id=ann.id, organization_id=MISSING_ORGANIZATION) == (
        "NOT_FOUND",
        "ORGANIZATION_NOT_FOUND",
        {"organization_id": MISSING_ORGANIZATION},
    )
    assert told(user_id=ann.id, organization_id=acme.id)[1] == "ROLE_NOT_FOUND"
    assert refusal(service.CreateOrganizationMembership, organization_id=acme.id) == required(
        "user_id"
    )
    assert refusal(service.CreateOrganizationMembership, user_id=ann.id) == required(
        "organization_id"
    )


def test_member_already_is_refused_with_the_id(
    api: Caller, directory: Directory, acme: Any
) -> None:
    ann = user(api, "ann@example.com")
    made = create(api, ann, acme)
    before = len(directory.events(acme))
    assert refusal(create, api, ann, acme, "owner") == (
        "ALREADY_EXISTS",
        "MEMBERSHIP_EXISTS",
        {"organization_membership_id": made.id},
    )
    assert get(api, made) == made
    assert len(directory.events(acme)) == before


def test_creating_an_inactive_one_reactivates_it_with_the_roles_given_now(
    api: Caller, directory: Directory, acme: Any
) -> None:
    ann = user(api, "ann@example.com")
    made = create(api, ann, acme, "guest", "member")
    add_directory_roles(directory, made, [role_id(api, "admin")])
    group = directory.group(acme, "Team", made)
    for given, expected in ((("guest",), ["admin", "guest"]), ((), ["admin", "member"])):
        verb(api, "Deactivate", made)
        before = len(directory.events(acme))
        again = create(api, ann, acme, *given)
        assert (again.id, again.status, slugs(again)) == (made.id, ACTIVE, expected)
        assert get(api, made) == again
        assert directory.recorded(acme, before) == [
            Recorded("organization_membership.reactivated", made.id, True)
        ]
        assert directory.data(acme)[1]["status"] == "MEMBERSHIP_STATUS_INACTIVE"
    # A mapped role is not the caller's to take (RO6); places in groups stay.
    assert roles(again)[0] == ("admin", [DIRECTORY], [])
    listed = api.GroupService.ListGroupMembers(group_id=group.id).organization_memberships
    assert [member.id for member in listed] == [made.id]


def test_pending_membership_is_moved_by_its_invitation_only(
    api: Caller, directory: Directory, acme: Any
) -> None:
    made = directory.membership(acme, "PENDING")
    before = len(directory.events(acme))
    pending = ("FAILED_PRECONDITION", "MEMBERSHIP_PENDING", {"organization_membership_id": made.id})
    assert (
        refusal(
            api.OrganizationMembershipService.CreateOrganizationMembership,
            user_id=made.user_id,
            organization_id=acme.id,
        )
        == pending
    )
    for name in ("Deactivate", "Reactivate"):
        assert refusal(verb, api, name, made) == pending
    assert len(directory.events(acme)) == before
    # Its roles may change in any status, and it may be deleted (MB1, 5.1).
    assert verb(api, "Update", made, role_slug="guest").status == PENDING
    api.OrganizationMembershipService.DeleteOrganizationMembership(
        organization_membership_id=made.id
    )
    assert refusal(get, api, made) == unknown(made)


def test_repeat_with_an_idempotency_key_creates_once(
    api: Caller, directory: Directory, acme: Any
) -> None:
    ann = user(api, "ann@example.com")
    before = len(directory.events(acme))
    repeating = api.with_metadata(idempotency_key="join-1")
    assert create(repeating, ann, acme) == create(repeating, ann, acme)
    assert len(directory.events(acme)) == before + 1


# --- what a membership shows ---------------------------------------------------------------------


def add_directory_roles(directory: Directory, membership: Any, role_ids: list[str]) -> None:
    """Stores roles as a directory's mapping would give them."""
    directory.write(
        lambda tx: tx.connection.execute(
            insert(MembershipRole),
            [
                {
                    "organization_id": membership.organization_id,
                    "membership_id": membership.id,
                    "role_id": role_id,
                    "source": "DIRECTORY",
                }
                for role_id in role_ids
            ],
        )
    )


def assign_on_root(
    api: Caller,
    directory: Directory,
    organization: Any,
    slug: str,
    group: Any,
    *,
    expires_at: int | None = None,
) -> None:
    """Assigns an organization-level role to a group on the organization resource."""
    key = {
        "organization_id": organization.id,
        "resource_type_slug": "organization",
        "external_id": organization.id,
    }
    root = api.ResourceService.GetResource(resource={"key": key}).resource
    owner = organization if slug.startswith("org-") else None
    role = api.RoleService.GetRole(
        key={"slug": slug, "organization_id": owner.id if owner else ""}
    ).role
    directory.assignment(role, root, group, expires_at=expires_at)


def everyone(api: Caller, organization: Any) -> Any:
    return api.GroupService.GetGroup(group_id=organization.everyone_group_id).group


@pytest.mark.parametrize("status", ["ACTIVE", "INACTIVE", "PENDING"])
def test_roles_are_own_and_through_groups_whatever_the_status(
    api: Caller, directory: Directory, acme: Any, clock: ManualClock, status: str
) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    clock.stop_at(now)
    membership = directory.membership(acme, status)
    beside = directory.membership(acme)
    inner = directory.group(acme, "Inner", membership)
    middle = directory.group(acme, "Middle", inner)
    outer = directory.group(acme, "Outer", middle, inner)
    foreign = directory.group(acme, "Foreign", beside)
    own_role(api, acme, "auditor")
    assign_on_root(api, directory, acme, "admin", outer)
    assign_on_root(api, directory, acme, "admin", inner)
    assign_on_root(api, directory, acme, "member", middle)
    assign_on_root(api, directory, acme, "org-auditor", everyone(api, acme))
    assign_on_root(api, directory, acme, "owner", foreign)
    end = microseconds(now + timedelta(seconds=1))
    assign_on_root(api, directory, acme, "guest", inner, expires_at=end)
    assign_on_root(api, directory, acme, "owner", inner, expires_at=microseconds(now))
    add_directory_roles(directory, membership, [role_id(api, "member")])
    seen = get(api, membership)
    assert roles(seen) == [
        ("admin", [GROUP], sorted([inner.id, outer.id])),
        ("member", [DIRECT, DIRECTORY, GROUP], [middle.id]),
        ("guest", [GROUP], [inner.id]),
        ("org-auditor", [GROUP], [acme.everyone_group_id]),
    ]
    assert seen.role == "admin"
    clock.advance(seconds=1)
    assert slugs(get(api, membership)) == ["admin", "member", "org-auditor"]
    assert slugs(get(api, beside)) == ["owner", "member", "org-auditor"]


def test_assignments_on_other_resources_show_no_role(
    api: Caller, directory: Directory, acme: Any
) -> None:
    directory.types(project=["organization"])
    membership = directory.membership(acme)
    group = directory.group(acme, "Team", membership)
    project = directory.resource(acme, "project", "api")
    editor = directory.role("editor", "project")
    directory.assignment(editor, project, membership)
    directory.assignment(editor, project, group)
    assert slugs(get(api, membership)) == ["member"]


def test_roles_follow_the_order_of_the_organization_once_it_is_set(
    api: Caller, directory: Directory, acme: Any
) -> None:
    first, second = own_role(api, acme, "first"), own_role(api, acme, "second")
    made = create(
        api,
        user(api, "ann@example.com"),
        acme,
        "org-second",
        "member",
        "org-first",
        "owner",
        "guest",
    )
    assert slugs(made) == ["owner", "member", "guest", "org-first", "org-second"]
    order = [second.id, role_id(api, "guest"), first.id, role_id(api, "member")]
    directory.write(
        lambda tx: tx.connection.execute(
            update(OrganizationConfiguration)
            .where(OrganizationConfiguration.organization_id == acme.id)
            .values(role_priority=order)
        )
    )
    assert slugs(get(api, made)) == ["org-second", "guest", "org-first", "member", "owner"]
    assert get(api, made).role == "org-second"


# --- get -----------------------------------------------------------------------------------------


def test_unknown_memberships_are_told_by_the_name_given(
    api: Caller, directory: Directory, acme: Any
) -> None:
    service = api.OrganizationMembershipService
    ann = user(api, "ann@example.com")
    pair = {"user_id": ann.id, "organization_id": acme.id}
    assert refusal(service.GetOrganizationMembership, user=pair) == (
        "NOT_FOUND",
        "MEMBERSHIP_NOT_FOUND",
        pair,
    )
    before = len(directory.events(acme))
    for name, fields in (
        ("Get", {}),
        ("Update", {"role_slug": "guest"}),
        ("Deactivate", {}),
        ("Reactivate", {}),
        ("Delete", {}),
    ):
        call = getattr(service, f"{name}OrganizationMembership")
        assert refusal(call, organization_membership_id=MISSING, **fields) == unknown()
        field = "membership" if name == "Get" else "organization_membership_id"
        assert refusal(call, **fields) == required(field)
    for pair, field in (
        ({"user_id": ann.id}, "user.organization_id"),
        ({"organization_id": acme.id}, "user.user_id"),
    ):
        assert refusal(service.GetOrganizationMembership, user=pair) == required(field)
    assert len(directory.events(acme)) == before


# --- list ----------------------------------------------------------------------------------------


def listed(api: Caller, **filters: Any) -> list[str]:
    response = api.OrganizationMembershipService.ListOrganizationMemberships(**filters)
    return [row.id for row in response.organization_memberships]


def test_filters_are_joined_by_and(api: Caller, directory: Directory, acme: Any) -> None:
    other = directory.organization("Other")
    own_role(api, acme, "own")
    own_role(api, other, "own")
    ann = user(api, "ann@example.com", first_name="Anna")
    bob = user(api, "Bob@Example.com", last_name="Annan")
    eve = user(api, "eve@example.com", name="E%_e")
    a = create(api, ann, acme, "owner", "member").id
    b = create(api, bob, acme, "member", "org-own").id
    e = create(api, eve, acme, "guest").id
    gone = create(api, user(api, "gone@example.com"), acme, "member")
    verb(api, "Deactivate", gone)
    elsewhere = create(api, ann, other, "member", "org-own").id
    left = create(api, bob, other)
    verb(api, "Deactivate", left)
    invited = directory.membership(acme, "PENDING").id
    of_acme = {"organization_id": acme.id}
    everyone = {"statuses": [PENDING, ACTIVE, INACTIVE]}
    assert listed(api, **of_acme) == [e, b, a]
    assert listed(api, **of_acme, statuses=[INACTIVE]) == [gone.id]
    assert listed(api, **of_acme, statuses=[PENDING, INACTIVE, PENDING]) == [invited, gone.id]
    assert listed(api, **of_acme, **everyone) == [invited, gone.id, e, b, a]
    assert listed(api, **of_acme, role_slugs=["member"]) == [b, a]
    assert listed(api, **of_acme, role_slugs=["owner", "member", "guest"]) == [e, b, a]
    assert listed(api, **of_acme, role_slugs=["member"], **everyone) == [invited, gone.id, b, a]
    assert listed(api, **of_acme, role_slugs=["org-own"]) == [b]
    assert listed(api, **of_acme, role_slugs=["nothing"]) == []
    assert listed(api, **of_acme, query="ANN") == [b, a]
    assert listed(api, **of_acme, query="%_") == [e]
    assert listed(api, **of_acme, query="e%e") == []
    assert listed(api, **of_acme, query="ann", role_slugs=["owner"]) == [a]
    assert listed(api, **of_acme, query="gone", statuses=[INACTIVE]) == [gone.id]
    assert listed(api, user_id=ann.id) == [elsewhere, a]
    assert listed(api, user_id=ann.id, role_slugs=["owner"]) == [a]
    assert listed(api, user_id=ann.id, role_slugs=["org-own"]) == [elsewhere]
    assert listed(api, user_id=bob.id) == [b]
    assert listed(api, user_id=bob.id, **everyone) == [left.id, b]
    assert listed(api, user_id=bob.id, statuses=[INACTIVE], query="bob") == [left.id]
    assert listed(api, user_id=bob.id, query="ann@") == []
    assert listed(api, user_id=ann.id, organization_id=other.id) == [elsewhere]
    assert listed(api, user_id=ann.id, organization_id=other.id, role_slugs=["owner"]) == []
    assert listed(api, user_id=eve.id, organization_id=other.id) == []


def test_own_roles_are_filtered_and_not_those_through_groups(
    api: Caller, directory: Directory, acme: Any
) -> None:
    made = directory.membership(acme)
    assign_on_root(api, directory, acme, "owner", directory.group(acme, "Team", made))
    assert listed(api, organization_id=acme.id, role_slugs=["owner"]) == []
    # A role both given and mapped is one row, and takes one place of the page.
    second = directory.membership(acme)
    for membership in (made, second):
        add_directory_roles(directory, membership, [role_id(api, "member")])
    assert [
        row.id
        for row in api.pages(
            "OrganizationMembershipService",
            "ListOrganizationMemberships",
            "organization_memberships",
            organization_id=acme.id,
            role_slugs=["member"],
            page_size=1,
        )
    ] == [second.id, made.id]


def test_pages_cover_every_membership_once_newest_first(
    api: Caller, directory: Directory, acme: Any
) -> None:
    ann = user(api, "ann@example.com")
    own = [
        create(api, ann, directory.organization(f"Org {number}"), "owner", "guest").id
        for number in range(3)
    ]
    own.append(create(api, ann, acme, "guest").id)
    for number in range(4):
        create(
            api, user(api, f"user{number}@example.com"), acme, *["guest", "member"][number % 2 :]
        )
    made = listed(api, organization_id=acme.id)
    assert len(made) == 5
    for size in range(1, 7):
        for filters, expected in (
            ({"organization_id": acme.id}, made),
            ({"organization_id": acme.id, "statuses": [INACTIVE, ACTIVE]}, made),
            ({"organization_id": acme.id, "role_slugs": ["guest", "member"]}, made),
            ({"organization_id": acme.id, "query": "example"}, made),
            ({"organization_id": acme.id, "query": "exa", "role_slugs": ["guest", "member"]}, made),
            ({"user_id": ann.id}, own[::-1]),
            ({"user_id": ann.id, "role_slugs": ["guest", "owner"]}, own[::-1]),
            ({"user_id": ann.id, "query": "ann"}, own[::-1]),
        ):
            pages = api.pages(
                "OrganizationMembershipService",
                "ListOrganizationMemberships",
                "organization_memberships",
                page_size=size,
                **filters,
            )
            assert [row.id for row in pages] == expected, (size, filters)


def test_listed_memberships_are_whole(api: Caller, directory: Directory, acme: Any) -> None:
    made = [directory.membership(acme) for _ in range(3)]
    group = directory.group(acme, "Team", made[0], made[2])
    assign_on_root(api, directory, acme, "owner", group)
    response = api.OrganizationMembershipService.ListOrganizationMemberships(
        organization_id=acme.id
    )
    for row in response.organization_memberships:
        assert row == get(api, row)
    assert [row.role for row in response.organization_memberships] == ["owner", "member", "owner"]


def test_total_counts_all_pages_up_to_its_limit(
    api: Caller, directory: Directory, acme: Any
) -> None:
    service = api.OrganizationMembershipService
    ann = user(api, "ann@example.com")
    create(api, ann, acme, "member")
    for _ in range(3):
        directory.membership(acme)
    directory.membership(acme, "INACTIVE")

    def total(**filters: Any) -> Any:
        response = service.ListOrganizationMemberships(
            page_size=1, include_total_size=True, **filters
        )
        return response.total_size if response.HasField("total_size") else None

    assert total(organization_id=acme.id) == 4
    assert total(organization_id=acme.id, role_slugs=["member", "guest"]) == 4
    assert total(organization_id=acme.id, role_slugs=["guest"]) == 0
    assert total(organization_id=acme.id, query="ann@") == 1
    assert total(user_id=ann.id) == 1
    # One more than the limit of 4 is not told.
    assert total(organization_id=acme.id, statuses=[ACTIVE, INACTIVE]) is None
    first = service.ListOrganizationMemberships(organization_id=acme.id, page_size=1)
    assert not first.HasField("total_size")
    # The wish for a total does not make it another question.
    second = service.ListOrganizationMemberships(
        organization_id=acme.id, page_token=first.next_page_token, include_total_size=True
    )
    assert (second.total_size, len(second.organization_memberships)) == (4, 3)


def test_page_token_belongs_to_its_question_and_caller(
    api: Caller, directory: Directory, acme: Any
) -> None:
    service = api.OrganizationMembershipService
    made = [directory.membership(acme) for _ in range(3)]
    token = service.ListOrganizationMemberships(
        organization_id=acme.id, page_size=1
    ).next_page_token
    foreign = ("INVALID_ARGUMENT", "PAGE_TOKEN_MISMATCH", {})
    for more in (
        {"user_id": made[0].user_id},
        {"statuses": [INACTIVE]},
        {"role_slugs": ["member"]},
        {"query": "user"},
    ):
        assert (
            refusal(
                service.ListOrganizationMemberships,
                organization_id=acme.id,
                page_token=token,
                **more,
            )
            == foreign
        )
    restricted = directory.restricted_to(acme).OrganizationMembershipService
    assert (
        refusal(restricted.ListOrganizationMemberships, organization_id=acme.id, page_token=token)
        == foreign
    )
    assert refusal(api.UserService.ListUsers, page_token=token) == foreign


def test_bad_filters_are_refused(api: Caller, acme: Any) -> None:
    service = api.OrganizationMembershipService
    assert refusal(service.ListOrganizationMemberships, query="ann") == required("organization_id")
    assert refusal(
        service.ListOrganizationMemberships,
        organization_id=MISSING_ORGANIZATION,
        user_id=MISSING_USER,
    ) == ("NOT_FOUND", "ORGANIZATION_NOT_FOUND", {"organization_id": MISSING_ORGANIZATION})
    for more in ({}, {"organization_id": acme.id}):
        assert refusal(service.ListOrganizationMemberships, user_id=MISSING_USER, **more) == (
            "NOT_FOUND",
            "USER_NOT_FOUND",
            {"user_id": MISSING_USER},
        )
    for more, field in (
        ({"query": "a"}, "query"),
        ({"query": "a" * 101}, "query"),
        ({"statuses": [0]}, "statuses[0]"),
        ({"statuses": [9]}, "statuses[0]"),
        ({"page_size": -1}, "page_size"),
    ):
        code, reason, metadata = refusal(
            service.ListOrganizationMemberships, organization_id=acme.id, **more
        )
        assert (code, reason, metadata["field"]) == ("INVALID_ARGUMENT", "FIELD_INVALID", field)


# --- update --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["ACTIVE", "INACTIVE", "PENDING"])
def test_update_replaces_the_direct_roles_in_any_status(
    api: Caller, directory: Directory, acme: Any, status: str
) -> None:
    made = directory.membership(acme, status)
    add_directory_roles(directory, made, [role_id(api, "guest")])
    before = len(directory.events(acme))
    now = verb(api, "Update", made, role_slugs=["admin", "guest"])
    assert pb.MembershipStatus.Name(now.status) == f"MEMBERSHIP_STATUS_{status}"
    assert roles(now) == [("admin", [DIRECT], []), ("guest", [DIRECT, DIRECTORY], [])]
    assert now.etag != made.etag
    assert get(api, made) == now
    assert directory.recorded(acme, before) == [
        Recorded("organization_membership.updated", made.id, True)
    ]
    data, previous = directory.data(acme)
    assert [role["slug"] for role in data["roles"]] == ["admin", "guest"]
    assert [role["slug"] for role in previous["roles"]] == ["member", "guest"]
    assert previous["role"] == "member"
    assert roles(verb(api, "Update", made, role_slug="owner")) == [
        ("owner", [DIRECT], []),
        ("guest", [DIRECTORY], []),
    ]


def test_equal_roles_change_nothing(api: Caller, directory: Directory, acme: Any) -> None:
    made = create(api, user(api, "ann@example.com"), acme, "guest", "member")
    before = len(directory.events(acme))
    assert verb(api, "Update", made, role_slugs=["member", "guest"]) == made
    assert verb(api, "Update", made, role_slugs=["guest", "guest", "member"]) == made
    assert len(directory.events(acme)) == before


def test_update_needs_roles_in_one_form(api: Caller, acme: Any, directory: Directory) -> None:
    made = directory.membership(acme)
    assert refusal(verb, api, "Update", made) == required("role_slugs")
    assert refusal(verb, api, "Update", made, role_slug="guest", role_slugs=["member"])[1] == (
        "FIELDS_EXCLUSIVE"
    )
    assert refusal(verb, api, "Update", made, role_slugs=[""]) == required("role_slugs[0]")


def test_stale_etag_is_refused(api: Caller, directory: Directory, acme: Any) -> None:
    made = directory.membership(acme)
    now = verb(api, "Update", made, role_slug="guest")
    before = len(directory.events(acme))
    stale = ("ABORTED", "ETAG_MISMATCH", {})
    assert refusal(verb, api, "Update", made, role_slug="admin", etag=made.etag) == stale
    for name in ("Deactivate", "Reactivate"):
        assert refusal(verb, api, name, made, etag=made.etag) == stale
    assert (
        refusal(
            api.OrganizationMembershipService.DeleteOrganizationMembership,
            organization_membership_id=made.id,
            etag=made.etag,
        )
        == stale
    )
    assert len(directory.events(acme)) == before
    assert verb(api, "Deactivate", made, etag=now.etag).status == INACTIVE


# --- deactivate and reactivate -------------------------------------------------------------------


def test_deactivation_keeps_everything_for_a_return(
    api: Caller, directory: Directory, acme: Any
) -> None:
    made = create(api, user(api, "ann@example.com"), acme, "admin", "guest")
    group = directory.group(acme, "Team", made)
    assign_on_root(api, directory, acme, "owner", group)
    shown = get(api, made)
    before = len(directory.events(acme))
    inactive = verb(api, "Deactivate", made)
    assert (inactive.status, slugs(inactive)) == (INACTIVE, slugs(shown))
    assert directory.data(acme)[1] == {"status": "MEMBERSHIP_STATUS_ACTIVE"}
    assert verb(api, "Deactivate", made) == inactive
    active = verb(api, "Reactivate", made)
    assert (active.status, roles(active)) == (ACTIVE, roles(shown))
    assert directory.data(acme)[1] == {"status": "MEMBERSHIP_STATUS_INACTIVE"}
    assert verb(api, "Reactivate", made) == active
    assert directory.recorded(acme, before) == [
        Recorded("organization_membership.deactivated", made.id, True),
        Recorded("organization_membership.reactivated", made.id, True),
    ]


# --- delete --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["ACTIVE", "INACTIVE", "PENDING"])
def test_deletion_takes_assignments_and_places_along(
    api: Caller, directory: Directory, acme: Any, clock: ManualClock, status: str
) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    clock.stop_at(now)
    directory.types(project=["organization"])
    project = directory.resource(acme, "project", "api")
    made, beside = directory.membership(acme, status), directory.membership(acme)
    editor, viewer = directory.role("editor", "project"), directory.role("viewer", "project")
    end = microseconds(now + timedelta(days=1))
    held = directory.assignment(editor, project, made, expires_at=end)
    directory.assignment(viewer, project, made, expires_at=microseconds(now))
    directory.assignment(editor, project, beside)
    group = directory.group(acme, "Team", made, beside)
    before = len(directory.events(acme))
    service = api.OrganizationMembershipService
    answer = service.DeleteOrganizationMembership(organization_membership_id=made.id)
    assert answer.consistency_token
    # The expired one goes without a word (RA2), and so does the place in the group (RS7).
    assert directory.recorded(acme, before) == [
        Recorded("organization_membership.deleted", made.id, True),
        Recorded("role_assignment.deleted", held, False),
    ]
    deleted = json.loads(directory.events(acme)[before].data)
    assert (deleted["user_id"], deleted["role"]) == (made.user_id, "member")
    assert refusal(get, api, made) == unknown(made)
    members = api.GroupService.ListGroupMembers(
        group_id=group.id, statuses=[PENDING, ACTIVE, INACTIVE]
    ).organization_memberships
    assert [member.id for member in members] == [beside.id]
    # The user stays and may come back; nothing of the old membership does.
    again = create(api, api.UserService.GetUser(user_id=made.user_id).user, acme, "guest")
    assert (again.id != made.id, slugs(again)) == (True, ["guest"])


def test_deleting_what_is_gone_is_allowed_where_asked(
    api: Caller, directory: Directory, acme: Any
) -> None:
    service = api.OrganizationMembershipService
    before = len(directory.events(acme))
    answer = service.DeleteOrganizationMembership(
        organization_membership_id=MISSING, allow_missing=True
    )
    assert answer.consistency_token
    assert len(directory.events(acme)) == before


# --- the last owner ------------------------------------------------------------------------------


def test_last_owner_is_kept(api: Caller, directory: Directory, acme: Any) -> None:
    owner = create(api, user(api, "ann@example.com"), acme, "owner", "member")
    other = create(api, user(api, "bob@example.com"), acme, "owner")
    verb(api, "Deactivate", other)
    create(api, user(api, "eve@example.com"), acme, "admin")
    before = len(directory.events(acme))
    last = ("FAILED_PRECONDITION", "LAST_OWNER", {"organization_id": acme.id})
    shown = get(api, owner)
    assert refusal(verb, api, "Update", owner, role_slugs=["member", "admin"]) == last
    assert refusal(verb, api, "Deactivate", owner) == last
    assert (
        refusal(
            api.OrganizationMembershipService.DeleteOrganizationMembership,
            organization_membership_id=owner.id,
        )
        == last
    )
    assert refusal(api.UserService.DeleteUser, user_id=owner.user_id) == last
    assert get(api, owner) == shown
    assert len(directory.events(acme)) == before
    # Other roles may change, an inactive owner may go, and with a second one all is free.
    assert slugs(verb(api, "Update", owner, role_slug="owner")) == ["owner"]
    verb(api, "Reactivate", other)
    assert slugs(verb(api, "Update", owner, role_slug="guest")) == ["guest"]
    assert refusal(verb, api, "Deactivate", other) == last
    # DeleteOrganization is exempt.
    api.OrganizationService.DeleteOrganization(organization_id=acme.id)


# --- a restricted credential ---------------------------------------------------------------------


def test_restricted_credential_sees_and_changes_its_organizations_only(
    api: Caller, directory: Directory, acme: Any
) -> None:
    other = directory.organization("Other")
    ann = user(api, "ann@example.com")
    mine = create(api, ann, acme)
    foreign = create(api, ann, other)
    outside = directory.membership(other)
    restricted = directory.restricted_to(acme)
    service = restricted.OrganizationMembershipService
    before = len(directory.events(other))
    assert get(restricted, mine) == mine
    assert refusal(get, restricted, foreign) == unknown(foreign)
    pair = {"user_id": ann.id, "organization_id": other.id}
    assert refusal(service.GetOrganizationMembership, user=pair) == (
        "NOT_FOUND",
        "MEMBERSHIP_NOT_FOUND",
        pair,
    )
    for name, fields in (
        ("Update", {"role_slug": "guest"}),
        ("Deactivate", {}),
        ("Reactivate", {}),
    ):
        assert refusal(verb, restricted, name, foreign, **fields) == unknown(foreign)
    delete = service.DeleteOrganizationMembership
    assert refusal(delete, organization_membership_id=foreign.id) == unknown(foreign)
    delete(organization_membership_id=foreign.id, allow_missing=True)
    assert get(api, foreign) == foreign
    assert listed(restricted, user_id=ann.id) == [mine.id]
    assert listed(restricted, organization_id=acme.id) == [mine.id]
    assert refusal(service.ListOrganizationMemberships, organization_id=other.id)[1] == (
        "ORGANIZATION_NOT_FOUND"
    )
    assert refusal(service.ListOrganizationMemberships, user_id=outside.user_id) == (
        "NOT_FOUND",
        "USER_NOT_FOUND",
        {"user_id": outside.user_id},
    )
    assert refusal(create, restricted, ann, other)[1] == "ORGANIZATION_NOT_FOUND"
    # A user without a membership there does not exist for it.
    assert (
        refusal(
            service.CreateOrganizationMembership,
            user_id=outside.user_id,
            organization_id=acme.id,
        )[1]
        == "USER_NOT_FOUND"
    )
    assert len(directory.events(other)) == before
    assert verb(restricted, "Deactivate", mine).status == INACTIVE
    assert create(restricted, ann, acme, "guest").status == ACTIVE
    delete(organization_membership_id=mine.id)

"""Settings of the deployment and of organizations, and the order of roles, over the hall."""

import json
from typing import Any

import pytest
from sqlalchemy import insert, select

from authz_service.base.actor import SYSTEM
from authz_service.engine import limits
from authz_service.server import Worker
from authz_service.storage.tables import Event, MembershipRole
from tests.callers import Caller, Refused

SEEDED = ["owner", "admin", "member", "guest"]


def organization(api: Caller, name: str = "Acme") -> str:
    return str(api.OrganizationService.CreateOrganization(name=name).organization.id)


def member(api: Caller, organization_id: str, *role_slugs: str) -> Any:
    count = len(api.UserService.ListUsers(page_size=1_000).users)
    user = api.UserService.CreateUser(email=f"user{count}@example.com").user
    return api.OrganizationMembershipService.CreateOrganizationMembership(
        user_id=user.id, organization_id=organization_id, role_slugs=role_slugs
    ).organization_membership


def own_roles(api: Caller, membership_id: str) -> list[str]:
    found = api.OrganizationMembershipService.GetOrganizationMembership(
        organization_membership_id=membership_id
    ).organization_membership
    return [role.slug for role in found.roles]


def role(api: Caller, slug: str, organization_id: str = "", **fields: Any) -> Any:
    return api.RoleService.CreateRole(
        organization_id=organization_id, slug=slug, name=slug, **fields
    ).role


def workspace_role(api: Caller) -> None:
    api.ResourceTypeService.CreateResourceType(
        slug="workspace", name="Workspace", parent_type_slugs=["organization"]
    )
    role(api, "workspace-admin", resource_type_slug="workspace")


def configuration(api: Caller) -> Any:
    return api.ConfigurationService.GetConfiguration().configuration


def of_organization(api: Caller, organization_id: str) -> Any:
    return api.ConfigurationService.GetOrganizationConfiguration(
        organization_id=organization_id
    ).organization_configuration


def update(api: Caller, *, collapse: bool = False, etag: str = "", **values: Any) -> Any:
    return api.ConfigurationService.UpdateConfiguration(
        configuration={**values, "etag": etag},
        collapse_membership_roles=collapse,
        update_mask={"paths": list(values)},
    ).configuration


def update_organization(api: Caller, organization_id: str, slug: str, etag: str = "") -> Any:
    return api.ConfigurationService.UpdateOrganizationConfiguration(
        organization_configuration={
            "organization_id": organization_id,
            "default_role_slug": slug,
            "etag": etag,
        },
        update_mask={"paths": ["default_role_slug"]},
    ).organization_configuration


def set_priority(api: Caller, role_slugs: list[str], organization_id: str = "") -> list[str]:
    return list(
        api.ConfigurationService.SetRolePriority(
            organization_id=organization_id, role_slugs=role_slugs
        ).role_slugs
    )


def events(worker: Worker, *kinds: str) -> list[Any]:
    """Returns the events of these kinds in the order in which they were made."""
    with worker.database.snapshot(SYSTEM) as snapshot:
        return list(
            snapshot.connection.execute(
                select(*Event.__table__.columns).where(Event.kind.in_(kinds)).order_by(Event.id)
            )
        )


def restricted(api: Caller, organization_id: str) -> Caller:
    made = api.ConfigurationService.CreateServiceCredential(
        name="restricted", scopes=["admin"], organization_ids=[organization_id]
    )
    return api.with_bearer(made.secret)


# --- the deployment ------------------------------------------------------------------------------


def test_first_settings_are_the_documented_defaults(api: Caller) -> None:
    found = configuration(api)
    assert found.multiple_roles_enabled
    assert (found.default_role_slug, found.owner_role_slug) == ("member", "owner")
    assert found.last_owner_guard_enabled
    assert found.resource_depth_max == 8
    assert list(found.role_priority) == SEEDED


def test_update_changes_what_the_mask_names_with_one_event(api: Caller, worker: Worker) -> None:
    before = configuration(api)
    changed = update(
        api, default_role_slug="guest", resource_depth_max=3, last_owner_guard_enabled=False
    )
    assert changed == configuration(api)
    assert (changed.default_role_slug, changed.resource_depth_max) == ("guest", 3)
    assert not changed.last_owner_guard_enabled
    assert changed.owner_role_slug == "owner"
    assert changed.etag != before.etag
    (event,) = events(worker, "configuration.updated")
    assert (event.realm, event.is_primary, event.target_type) == ("*", True, "configuration")
    assert json.loads(event.previous) == {
        "default_role_slug": "member",
        "resource_depth_max": 8,
        "last_owner_guard_enabled": True,
    }
    assert json.loads(event.data)["role_priority"] == SEEDED


def test_equal_values_change_nothing(api: Caller, worker: Worker) -> None:
    before = configuration(api)
    assert update(api, default_role_slug="member", multiple_roles_enabled=True) == before
    assert events(worker, "configuration.updated") == []


def test_default_role_is_given_where_none_is_named(api: Caller) -> None:
    update(api, default_role_slug="guest")
    acme = organization(api)
    assert [each.slug for each in member(api, acme).roles] == ["guest"]
    update_organization(api, acme, "admin")
    assert [each.slug for each in member(api, acme).roles] == ["admin"]


def test_owner_role_may_be_none(api: Caller) -> None:
    assert update(api, owner_role_slug="").owner_role_slug == ""
    assert update(api, owner_role_slug="admin").owner_role_slug == "admin"


@pytest.mark.parametrize(
    ("values", "code", "reason", "metadata"),
    [
        (
            {"resource_depth_max": 0},
            "INVALID_ARGUMENT",
            "FIELD_INVALID",
            {"field": "configuration.resource_depth_max", "rule": "1 to 16"},
        ),
        (
            {"resource_depth_max": 17},
            "INVALID_ARGUMENT",
            "FIELD_INVALID",
            {"field": "configuration.resource_depth_max", "rule": "1 to 16"},
        ),
        (
            {"default_role_slug": ""},
            "INVALID_ARGUMENT",
            "FIELD_INVALID",
            {"field": "configuration.default_role_slug", "rule": "may not be empty"},
        ),
        ({"default_role_slug": "x"}, "NOT_FOUND", "ROLE_NOT_FOUND", {"role_slug": "x"}),
        ({"owner_role_slug": "org-x"}, "NOT_FOUND", "ROLE_NOT_FOUND", {"role_slug": "org-x"}),
        (
            {"owner_role_slug": "workspace-admin"},
            "INVALID_ARGUMENT",
            "ROLE_RESOURCE_TYPE_MISMATCH",
            {
                "role_slug": "workspace-admin",
                "role_type": "workspace",
                "resource_type": "organization",
            },
        ),
        (
            {"role_priority": []},
            "INVALID_ARGUMENT",
            "UPDATE_MASK_INVALID",
            {"path": "role_priority"},
        ),
        ({}, "INVALID_ARGUMENT", "FIELD_REQUIRED", {"field": "update_mask"}),
        ({"resource_depth_max": 9, "etag": "0"}, "ABORTED", "ETAG_MISMATCH", {}),
    ],
)
def test_bad_settings_are_refused(
    api: Caller,
    worker: Worker,
    values: dict[str, Any],
    code: str,
    reason: str,
    metadata: dict[str, str],
) -> None:
    workspace_role(api)
    role(api, "org-x", organization(api))
    before = configuration(api)
    with pytest.raises(Refused) as refused:
        update(api, **values)
    assert (refused.value.code, refused.value.reason) == (code, reason)
    assert refused.value.metadata == metadata
    assert configuration(api) == before
    assert events(worker, "configuration.updated") == []


def test_limits_of_the_depth_are_within(api: Caller) -> None:
    assert update(api, resource_depth_max=1).resource_depth_max == 1
    assert update(api, resource_depth_max=16).resource_depth_max == 16


def test_restricted_admin_reads_the_settings_and_changes_none(api: Caller) -> None:
    caller = restricted(api, organization(api))
    assert configuration(caller) == configuration(api)
    for call in (
        lambda: update(caller, resource_depth_max=3),
        lambda: set_priority(caller, SEEDED[::-1]),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.code, refused.value.reason) == (
            "PERMISSION_DENIED",
            "ORGANIZATION_RESTRICTED",
        )


# --- from several own roles to one (RO5) ---------------------------------------------------------


def test_several_roles_in_use_are_in_the_way(api: Caller, worker: Worker) -> None:
    acme = organization(api)
    member(api, acme, "owner")
    held = [member(api, acme, "guest", "member").id for _ in range(2)]
    with pytest.raises(Refused) as refused:
        update(api, multiple_roles_enabled=False)
    assert (refused.value.code, refused.value.reason) == (
        "FAILED_PRECONDITION",
        "MULTIPLE_ROLES_IN_USE",
    )
    assert refused.value.metadata == {"count": "2"}
    assert own_roles(api, held[0]) == ["member", "guest"]
    assert configuration(api).multiple_roles_enabled
    assert events(worker, "configuration.updated") == []


def test_collapse_leaves_the_role_of_highest_priority(api: Caller, worker: Worker) -> None:
    acme, globex, initech = (organization(api, name) for name in ("Acme", "Globex", "Initech"))
    role(api, "org-auditor", globex)
    set_priority(api, ["org-auditor", *SEEDED], globex)
    in_acme = member(api, acme, "guest", "member", "admin")
    in_globex = member(api, globex, "org-auditor", "owner")
    other = member(api, globex, "owner")
    single = member(api, initech, "guest")
    changed = update(api, multiple_roles_enabled=False, collapse=True)
    assert not changed.multiple_roles_enabled
    assert own_roles(api, in_acme.id) == ["admin"]
    assert own_roles(api, in_globex.id) == ["org-auditor"]
    assert own_roles(api, single.id) == ["guest"]
    primary, *secondary = events(worker, "configuration.updated", "organization_membership.updated")
    assert (primary.kind, primary.is_primary) == ("configuration.updated", True)
    assert [(event.realm, event.target_id) for event in secondary] == [
        (acme, in_acme.id),
        (globex, in_globex.id),
    ]
    for event, before in zip(secondary, (in_acme, in_globex), strict=True):
        assert event.cause_event_id == primary.id
        found = api.OrganizationMembershipService.GetOrganizationMembership(
            organization_membership_id=event.target_id
        ).organization_membership
        assert found.etag != before.etag
        assert json.loads(event.data)["etag"] == found.etag
        assert [each["slug"] for each in json.loads(event.data)["roles"]] == [found.role]
        assert [each["slug"] for each in json.loads(event.previous)["roles"]] == [
            each.slug for each in before.roles
        ]
    with pytest.raises(Refused) as refused:
        api.OrganizationMembershipService.UpdateOrganizationMembership(
            organization_membership_id=other.id, role_slugs=["owner", "guest"]
        )
    assert refused.value.reason == "MULTIPLE_ROLES_DISABLED"


def test_collapse_prefers_a_mapped_role(api: Caller, worker: Worker) -> None:
    acme = organization(api)
    mixed = member(api, acme, "admin", "member")
    twice = member(api, acme, "member")
    ids = {each.slug: each.id for each in api.RoleService.ListRoles().roles}

    def map_roles(tx: Any) -> None:
        for membership_id, slug in (
            (mixed.id, "guest"),
            (mixed.id, "member"),
            (twice.id, "member"),
        ):
            tx.connection.execute(
                insert(MembershipRole).values(
                    organization_id=acme,
                    membership_id=membership_id,
                    role_id=ids[slug],
                    source="DIRECTORY",
                )
            )

    worker.database.write(map_roles, actor=SYSTEM)
    update(api, multiple_roles_enabled=False, collapse=True)
    assert own_roles(api, mixed.id) == ["member"]
    # One role from two sources is one role: nothing changed there.
    assert own_roles(api, twice.id) == ["member"]
    changed = events(worker, "organization_membership.updated")
    assert [event.target_id for event in changed] == [mixed.id]


def test_collapse_that_takes_the_last_owner_is_refused(api: Caller, worker: Worker) -> None:
    set_priority(api, ["admin", "owner", "member", "guest"])
    acme, globex = organization(api, "Acme"), organization(api, "Globex")
    member(api, acme, "owner")
    member(api, acme, "owner", "admin")
    last = member(api, globex, "owner", "admin")
    with pytest.raises(Refused) as refused:
        update(api, multiple_roles_enabled=False, collapse=True)
    assert (refused.value.code, refused.value.reason) == ("FAILED_PRECONDITION", "LAST_OWNER")
    assert refused.value.metadata == {"organization_id": globex}
    assert own_roles(api, last.id) == ["admin", "owner"]
    assert events(worker, "configuration.updated") == []
    update(api, multiple_roles_enabled=False, last_owner_guard_enabled=False, collapse=True)
    assert own_roles(api, last.id) == ["admin"]


def test_collapse_of_more_memberships_than_one_call_may_change_is_refused(
    api: Caller, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = organization(api)
    held = [member(api, acme, "guest", "member").id for _ in range(3)]
    monkeypatch.setattr(limits, "REPLACED_USES_MAX", 2)
    with pytest.raises(Refused) as refused:
        update(api, multiple_roles_enabled=False, collapse=True)
    assert (refused.value.code, refused.value.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert refused.value.metadata == {"limit": "collapsed_memberships", "maximum": "2"}
    assert events(worker, "configuration.updated") == []
    monkeypatch.setattr(limits, "REPLACED_USES_MAX", 3)
    update(api, multiple_roles_enabled=False, collapse=True)
    assert [own_roles(api, each) for each in held] == [["member"]] * 3


def test_several_roles_may_be_turned_on_again(api: Caller) -> None:
    acme = organization(api)
    update(api, multiple_roles_enabled=False)
    with pytest.raises(Refused) as refused:
        member(api, acme, "guest", "member")
    assert refused.value.reason == "MULTIPLE_ROLES_DISABLED"
    update(api, multiple_roles_enabled=True)
    assert own_roles(api, member(api, acme, "guest", "member").id) == ["member", "guest"]


# --- the last owner (LO1) ------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["admin", ""])
def test_owner_role_that_an_owned_organization_lacks_is_refused(
    api: Caller, worker: Worker, slug: str
) -> None:
    acme, globex = organization(api, "Acme"), organization(api, "Globex")
    member(api, acme, "owner")
    member(api, acme, "admin")
    member(api, globex, "owner")
    with pytest.raises(Refused) as refused:
        update(api, owner_role_slug=slug)
    assert (refused.value.code, refused.value.reason) == ("FAILED_PRECONDITION", "LAST_OWNER")
    assert refused.value.metadata == {"organization_id": globex if slug else acme}
    assert events(worker, "configuration.updated") == []
    assert update(api, owner_role_slug=slug, last_owner_guard_enabled=False).owner_role_slug == slug


def test_owner_role_that_every_owned_organization_has_is_taken(api: Caller) -> None:
    acme, globex = organization(api, "Acme"), organization(api, "Globex")
    member(api, acme, "owner")
    member(api, acme, "admin")
    member(api, globex, "member")
    assert update(api, owner_role_slug="admin").owner_role_slug == "admin"


def test_inactive_holder_of_the_new_owner_role_is_no_owner(api: Caller) -> None:
    acme = organization(api)
    member(api, acme, "owner")
    inactive = member(api, acme, "admin")
    api.OrganizationMembershipService.DeactivateOrganizationMembership(
        organization_membership_id=inactive.id
    )
    with pytest.raises(Refused) as refused:
        update(api, owner_role_slug="admin")
    assert refused.value.reason == "LAST_OWNER"


# --- organizations -------------------------------------------------------------------------------


def test_default_role_of_an_organization_is_set_and_cleared(api: Caller, worker: Worker) -> None:
    acme = organization(api)
    role(api, "org-auditor", acme)
    before = of_organization(api, acme)
    assert (before.default_role_slug, list(before.role_priority)) == ("", [])
    changed = update_organization(api, acme, "org-auditor", etag=before.etag)
    assert changed.default_role_slug == "org-auditor"
    assert changed == of_organization(api, acme)
    assert update_organization(api, acme, "org-auditor") == changed
    assert update_organization(api, acme, "").default_role_slug == ""
    first, second = events(worker, "organization_configuration.updated")
    assert (first.realm, first.target_id, first.is_primary) == (acme, acme, True)
    assert json.loads(first.previous) == {"default_role_slug": ""}
    assert json.loads(second.previous) == {"default_role_slug": "org-auditor"}


def test_bad_default_roles_of_an_organization_are_refused(api: Caller, worker: Worker) -> None:
    workspace_role(api)
    acme, globex = organization(api, "Acme"), organization(api, "Globex")
    role(api, "org-foreign", globex)
    for organization_id, slug, etag, reason, metadata in (
        (acme, "nothing", "", "ROLE_NOT_FOUND", {"role_slug": "nothing"}),
        (acme, "org-foreign", "", "ROLE_NOT_FOUND", {"role_slug": "org-foreign"}),
        (
            acme,
            "workspace-admin",
            "",
            "ROLE_RESOURCE_TYPE_MISMATCH",
            {
                "role_slug": "workspace-admin",
                "role_type": "workspace",
                "resource_type": "organization",
            },
        ),
        ("org_x", "guest", "", "ORGANIZATION_NOT_FOUND", {"organization_id": "org_x"}),
        (
            "",
            "guest",
            "",
            "FIELD_REQUIRED",
            {"field": "organization_configuration.organization_id"},
        ),
        (acme, "guest", "0", "ETAG_MISMATCH", {}),
    ):
        with pytest.raises(Refused) as refused:
            update_organization(api, organization_id, slug, etag)
        assert (refused.value.reason, refused.value.metadata) == (reason, metadata)
    assert events(worker, "organization_configuration.updated") == []


def test_restricted_admin_changes_its_own_organization_only(api: Caller) -> None:
    acme, globex = organization(api, "Acme"), organization(api, "Globex")
    caller = restricted(api, acme)
    assert update_organization(caller, acme, "guest").default_role_slug == "guest"
    assert set_priority(caller, SEEDED[::-1], acme) == SEEDED[::-1]
    for call in (
        lambda: of_organization(caller, globex),
        lambda: update_organization(caller, globex, "guest"),
        lambda: set_priority(caller, SEEDED, globex),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.code, refused.value.reason) == ("NOT_FOUND", "ORGANIZATION_NOT_FOUND")
        assert refused.value.metadata == {"organization_id": globex}


# --- the order of roles (RO4) --------------------------------------------------------------------


def test_order_of_the_deployment_is_set(api: Caller, worker: Worker) -> None:
    role(api, "support")
    assert list(configuration(api).role_priority) == [*SEEDED, "support"]
    before = configuration(api)
    order = ["support", *SEEDED]
    assert set_priority(api, order) == order
    after = configuration(api)
    assert list(after.role_priority) == order
    assert after.etag != before.etag
    assert set_priority(api, order) == order
    (event,) = events(worker, "role_priority.changed")
    assert (event.realm, event.is_primary, event.target_type) == ("*", True, "configuration")
    assert json.loads(event.data)["role_slugs"] == order
    assert json.loads(event.previous) == {"role_slugs": [*SEEDED, "support"]}


def test_order_of_an_organization_is_derived_until_it_is_set(api: Caller, worker: Worker) -> None:
    acme = organization(api)
    role(api, "org-b", acme)
    role(api, "org-a", acme)
    listed = [each.slug for each in api.RoleService.ListRoles(organization_id=acme).roles]
    assert listed == [*SEEDED, "org-b", "org-a"]
    order = ["org-a", *SEEDED, "org-b"]
    assert set_priority(api, order, acme) == order
    assert list(of_organization(api, acme).role_priority) == order
    set_priority(api, SEEDED[::-1])
    # New roles go last, by age and not by whose they are (RO4).
    role(api, "org-later", acme)
    role(api, "late")
    found = [each.slug for each in api.RoleService.ListRoles(organization_id=acme).roles]
    assert found == [*order, "org-later", "late"]
    assert list(of_organization(api, acme).role_priority) == found
    derived = [*SEEDED[::-1], "late", "org-b", "org-a", "org-later"]
    assert set_priority(api, [], acme) == derived
    assert list(of_organization(api, acme).role_priority) == []
    assert set_priority(api, [], acme) == derived
    changed = [event for event in events(worker, "role_priority.changed") if event.realm == acme]
    assert [event.target_id for event in changed] == [acme, acme]
    assert json.loads(changed[1].previous) == {"role_slugs": found}


def test_setting_the_derived_order_keeps_it_from_following(api: Caller, worker: Worker) -> None:
    acme = organization(api)
    assert set_priority(api, SEEDED, acme) == SEEDED
    assert len(events(worker, "role_priority.changed")) == 1
    set_priority(api, SEEDED[::-1])
    assert list(of_organization(api, acme).role_priority) == SEEDED


def test_incomplete_and_foreign_orders_are_refused(api: Caller, worker: Worker) -> None:
    workspace_role(api)
    acme, globex = organization(api, "Acme"), organization(api, "Globex")
    role(api, "org-a", acme)
    mismatch = {
        "role_slug": "workspace-admin",
        "role_type": "workspace",
        "resource_type": "organization",
    }
    complete = "every role of type organization exactly once"
    for organization_id, order, reason, metadata in (
        ("", SEEDED[1:], "FIELD_INVALID", {"field": "role_slugs", "rule": complete}),
        ("", [], "FIELD_INVALID", {"field": "role_slugs", "rule": complete}),
        (acme, SEEDED, "FIELD_INVALID", {"field": "role_slugs", "rule": complete}),
        (
            "",
            [*SEEDED, "owner"],
            "FIELD_INVALID",
            {"field": "role_slugs", "rule": "each role once"},
        ),
        ("", [*SEEDED, "org-a"], "ROLE_NOT_FOUND", {"role_slug": "org-a"}),
        (globex, [*SEEDED, "org-a"], "ROLE_NOT_FOUND", {"role_slug": "org-a"}),
        (acme, [*SEEDED, "x"], "ROLE_NOT_FOUND", {"role_slug": "x"}),
        ("", [*SEEDED, "workspace-admin"], "ROLE_RESOURCE_TYPE_MISMATCH", mismatch),
        ("org_x", SEEDED, "ORGANIZATION_NOT_FOUND", {"organization_id": "org_x"}),
    ):
        with pytest.raises(Refused) as refused:
            set_priority(api, order, organization_id)
        assert (refused.value.reason, refused.value.metadata) == (reason, metadata)
    assert events(worker, "role_priority.changed") == []


def test_order_decides_which_role_is_shown_first(api: Caller) -> None:
    acme = organization(api)
    both = member(api, acme, "admin", "guest")
    assert both.role == "admin"
    set_priority(api, SEEDED[::-1], acme)
    assert own_roles(api, both.id) == ["guest", "admin"]

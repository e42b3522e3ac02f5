"""RoleAssignmentService over the hall."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select

from authz_service.api.role_assignments import record_ends
from authz_service.config import Config
from authz_service.pb.authz.v1.role_assignments_pb2 import RoleAssignmentState
from authz_service.server import Worker
from authz_service.storage.tables import RoleAssignment
from tests.callers import Caller, Refused
from tests.conftest import ManualClock
from tests.directories import Directory, Recorded

ACTIVE = RoleAssignmentState.ROLE_ASSIGNMENT_STATE_ACTIVE
EXPIRED = RoleAssignmentState.ROLE_ASSIGNMENT_STATE_EXPIRED
NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY, HOUR, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)
MISSING = "role_assignment_01HZZZZZZZZZZZZZZZZZZZZZZZ"


class Company(NamedTuple):
    """acme: eng (workspace) with api (project); ann; bob in backend in staff. globex: hq; eve."""

    organization: Any
    root: str
    everyone: str
    ann: Any
    bob: Any
    backend: Any
    staff: Any
    eng: Any
    api: Any
    globex: Any
    hq: Any
    eve: Any


@pytest.fixture
def settings() -> dict[str, str]:
    return {"AUTHZ_LIMIT_ROLE_ASSIGNMENTS": "3", "AUTHZ_LIMIT_TOTAL_SIZE": "6"}


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config, clock: ManualClock) -> Directory:
    clock.stop_at(NOW)
    return Directory(api, worker, config)


@pytest.fixture
def company(directory: Directory) -> Company:
    directory.types(workspace=["organization"], project=["workspace"])
    for slug in ("workspace-admin", "workspace-editor", "workspace-viewer"):
        directory.role(slug, "workspace")
    directory.role("project-editor", "project")
    acme, globex = directory.organization("Acme"), directory.organization("Globex")
    ann, bob = directory.membership(acme), directory.membership(acme)
    backend = directory.group(acme, "backend", bob)
    staff = directory.group(acme, "staff", backend)
    eng = directory.resource(acme, "workspace", "eng")
    project = directory.resource(acme, "project", "api", eng)
    root = directory.api.ResourceService.GetResource(
        resource={
            "key": {
                "organization_id": acme.id,
                "resource_type_slug": "organization",
                "external_id": acme.id,
            }
        }
    ).resource.id
    hq = directory.resource(globex, "workspace", "hq")
    eve = directory.membership(globex)
    return Company(
        acme, root, acme.everyone_group_id, ann, bob, backend, staff, eng, project, globex, hq, eve
    )


def held_by(subject: Any) -> dict[str, str]:
    subject_id = subject if isinstance(subject, str) else subject.id
    field = "group_id" if subject_id.startswith("group_") else "organization_membership_id"
    return {field: subject_id}


def on(resource: Any) -> dict[str, Any]:
    return {"resource_id": resource if isinstance(resource, str) else resource.id}


def by_key(resource: Any) -> dict[str, Any]:
    return {
        "key": {
            "organization_id": resource.organization_id,
            "resource_type_slug": resource.resource_type_slug,
            "external_id": resource.external_id,
        }
    }


def entry(subject: Any, slug: str, resource: Any, end: datetime | None = None) -> dict[str, Any]:
    named = {**held_by(subject), "role_slug": slug, "resource": on(resource)}
    return named if end is None else {**named, "expires_at": end}


def assign(
    directory: Directory, subject: Any, slug: str, resource: Any, end: datetime | None = None
) -> Any:
    return directory.api.RoleAssignmentService.CreateRoleAssignment(
        **entry(subject, slug, resource, end)
    ).role_assignment


def set_roles(directory: Directory, subject: Any, resource: Any, **roles: datetime | None) -> Any:
    """Sets the workspace roles ``admin``, ``editor``, ``viewer``, each with its end."""
    return directory.api.RoleAssignmentService.SetRoleAssignments(
        **held_by(subject),
        resource=on(resource),
        roles=[
            {"role_slug": f"workspace-{name}", "expires_at": end} for name, end in roles.items()
        ],
    ).role_assignments


def change_end(directory: Directory, made: Any, end: datetime | None, etag: str = "") -> Any:
    return directory.api.RoleAssignmentService.UpdateRoleAssignment(
        role_assignment={"id": made.id, "expires_at": end, "etag": etag},
        update_mask={"paths": ["expires_at"]},
    ).role_assignment


def read(directory: Directory, made: Any) -> Any:
    return directory.api.RoleAssignmentService.GetRoleAssignment(
        role_assignment_id=made.id
    ).role_assignment


def listed(caller: Caller, **fields: Any) -> list[str]:
    """Returns the listed ids, in order."""
    response = caller.RoleAssignmentService.ListRoleAssignments(**fields)
    return [each.id for each in response.role_assignments]


def refusal(call: Any, *given: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(*given, **fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def invalid(field: str, rule: str = "") -> tuple[str, str, dict[str, str]]:
    if not rule:
        return "INVALID_ARGUMENT", "FIELD_REQUIRED", {"field": field}
    return "INVALID_ARGUMENT", "FIELD_INVALID", {"field": field, "rule": rule}


def not_found(what: str, **named: str) -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", f"{what}_NOT_FOUND", named


FULL = (
    "RESOURCE_EXHAUSTED",
    "LIMIT_REACHED",
    {"limit": "role_assignments", "maximum": "3"},
)
STALE = ("ABORTED", "ETAG_MISMATCH", {})
FUTURE = "in the future"


# --- create --------------------------------------------------------------------------------------


def test_created_assignment_can_be_read_and_is_told(directory: Directory, company: Company) -> None:
    before = len(directory.events(company.organization))
    made = assign(directory, company.ann, "workspace-admin", company.eng, NOW + DAY)
    assert made.organization_id == company.organization.id
    assert made.organization_membership_id == company.ann.id
    assert made.role_slug == "workspace-admin"
    assert made.role_id.startswith("role_")
    assert (made.resource.id, made.resource.external_id) == (company.eng.id, "eng")
    assert (made.resource.resource_type_slug, made.resource.name) == ("workspace", "eng")
    assert made.expires_at.ToDatetime(UTC) == NOW + DAY
    assert made.state == ACTIVE
    assert read(directory, made) == made
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.created", made.id, True)
    ]
    data, previous = directory.data(company.organization)
    assert (data["id"], data["etag"], data["expires_at"]) == (
        made.id,
        made.etag,
        "2030-01-02T00:00:00.000000Z",
    )
    assert previous == {}


def test_role_is_assigned_to_a_group_on_any_resource(
    directory: Directory, company: Company
) -> None:
    on_root = assign(directory, company.staff, "guest", company.root)
    assert on_root.group_id == company.staff.id
    assert not on_root.HasField("expires_at")
    assert on_root.resource.resource_type_slug == "organization"
    assign(directory, company.everyone, "project-editor", company.api)


def test_role_is_assigned_to_a_pending_membership(directory: Directory, company: Company) -> None:
    pending = directory.membership(company.organization, "PENDING")
    assert assign(directory, pending, "project-editor", company.api).state == ACTIVE


def test_resource_may_be_named_by_its_key(directory: Directory, company: Company) -> None:
    made = directory.api.RoleAssignmentService.CreateRoleAssignment(
        **held_by(company.ann), role_slug="project-editor", resource=by_key(company.api)
    ).role_assignment
    assert made.resource.id == company.api.id


def test_repeated_assignment_is_refused_with_the_existing_one(
    directory: Directory, company: Company
) -> None:
    made = assign(directory, company.ann, "workspace-admin", company.eng)
    before = len(directory.events(company.organization))
    for end in (None, NOW + DAY):
        assert refusal(assign, directory, company.ann, "workspace-admin", company.eng, end) == (
            "ALREADY_EXISTS",
            "ROLE_ASSIGNMENT_EXISTS",
            {"role_assignment_id": made.id},
        )
    assert directory.recorded(company.organization, before) == []


def test_repeat_with_an_idempotency_key_assigns_once(
    directory: Directory, company: Company
) -> None:
    caller = directory.api.with_metadata(idempotency_key="share-1").RoleAssignmentService
    fields = entry(company.ann, "workspace-admin", company.eng)
    first, again = (caller.CreateRoleAssignment(**fields) for _ in range(2))
    assert again.role_assignment == first.role_assignment


def test_bad_assignments_are_refused(directory: Directory, company: Company) -> None:
    company_role = directory.api.RoleService.CreateRole(
        organization_id=company.globex.id, slug="org-x", name="x", resource_type_slug="workspace"
    ).role
    create = directory.api.RoleAssignmentService.CreateRoleAssignment
    events = len(directory.events(company.organization))
    ann, eng = company.ann, company.eng
    nobody, nothing = "om_x", "group_x"
    mismatch = {"role_slug": "member", "role_type": "organization", "resource_type": "workspace"}
    for fields, expected in (
        ({"role_slug": "x", "resource": on(eng)}, invalid("subject")),
        (
            {"group_id": "", "role_slug": "x", "resource": on(eng)},
            invalid("group_id"),
        ),
        ({**held_by(ann), "resource": on(eng)}, invalid("role_slug")),
        ({**held_by(ann), "role_slug": "x"}, invalid("resource")),
        ({**held_by(ann), "role_slug": "x", "resource": {}}, invalid("resource")),
        (entry(ann, "workspace-admin", eng, NOW), invalid("expires_at", FUTURE)),
        (
            entry(nobody, "workspace-admin", eng),
            not_found("MEMBERSHIP", organization_membership_id=nobody),
        ),
        (entry(nothing, "workspace-admin", eng), not_found("GROUP", group_id=nothing)),
        (entry(ann, "nothing", eng), not_found("ROLE", role_slug="nothing")),
        (entry(ann, company_role.slug, eng), not_found("ROLE", role_slug="org-x")),
        (
            entry(ann, "workspace-admin", "resource_x"),
            not_found("RESOURCE", resource_id="resource_x"),
        ),
        (
            entry(ann, "workspace-admin", company.hq),
            not_found("RESOURCE", resource_id=company.hq.id),
        ),
        (
            {**entry(ann, "workspace-admin", eng), "resource": by_key(company.hq)},
            not_found("RESOURCE", **by_key(company.hq)["key"]),
        ),
        (
            entry(ann, "member", eng),
            ("INVALID_ARGUMENT", "ROLE_RESOURCE_TYPE_MISMATCH", mismatch),
        ),
        (
            entry(ann, "guest", company.root),
            (
                "INVALID_ARGUMENT",
                "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY",
                {"organization_membership_id": ann.id},
            ),
        ),
    ):
        assert refusal(create, **fields) == expected
    # The first thing that is missing, in the order of the request.
    assert refusal(create, **entry(nobody, "nothing", "resource_x"))[1] == "MEMBERSHIP_NOT_FOUND"
    assert refusal(create, **entry(ann, "nothing", "resource_x"))[1] == "ROLE_NOT_FOUND"
    assert directory.recorded(company.organization, events) == []


def test_assignment_above_the_limit_of_its_subject_is_refused(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    assign(directory, company.ann, "workspace-admin", company.eng, NOW + DAY)
    assign(directory, company.ann, "workspace-editor", company.eng)
    third = assign(directory, company.ann, "workspace-viewer", company.eng)
    create = directory.api.RoleAssignmentService.CreateRoleAssignment
    assert refusal(create, **entry(company.ann, "project-editor", company.api)) == FULL
    assign(directory, company.bob, "project-editor", company.api)
    # What has ended counts no more, until it comes back to life.
    clock.advance(days=1)
    assign(directory, company.ann, "project-editor", company.api)
    directory.api.RoleAssignmentService.DeleteRoleAssignment(role_assignment_id=third.id)
    assign(directory, company.ann, "workspace-viewer", company.eng)
    (ended,) = directory.api.RoleAssignmentService.ListRoleAssignments(
        **held_by(company.ann), role_slug="workspace-admin", include_expired=True
    ).role_assignments
    assert refusal(change_end, directory, ended, None) == FULL


# --- ends (RA2) ----------------------------------------------------------------------------------


def test_assignment_stops_granting_at_its_end(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    api = directory.api
    api.PermissionService.CreatePermission(
        slug="workspace:view", name="View", resource_type_slug="workspace"
    )
    role_id = assign(directory, company.ann, "workspace-viewer", company.eng, NOW + DAY).role_id
    api.RoleService.SetRolePermissions(role_id=role_id, permission_slugs=["workspace:view"])

    def allowed() -> bool:
        return bool(
            api.AuthorizationService.Check(
                subject=held_by(company.ann),
                permission_slug="workspace:view",
                resource=on(company.eng),
            ).allowed
        )

    clock.advance(hours=23, minutes=59, seconds=59)
    assert allowed()
    clock.advance(seconds=1)
    assert not allowed()


def test_end_is_told_once_by_the_system_and_the_row_goes_after_thirty_days(
    directory: Directory, company: Company, worker: Worker, clock: ManualClock
) -> None:
    first = assign(directory, company.ann, "workspace-viewer", company.eng, NOW + DAY)
    in_globex = assign(directory, company.eve, "workspace-viewer", company.hq, NOW + DAY)
    second = assign(directory, company.bob, "workspace-viewer", company.eng, NOW + DAY + SECOND)
    later = assign(directory, company.bob, "workspace-admin", company.eng, NOW + 2 * DAY)
    before = len(directory.events(company.organization))
    before_globex = len(directory.events(company.globex))
    clock.advance(hours=23, minutes=59, seconds=59)
    record_ends(worker.database)
    assert directory.recorded(company.organization, before) == []
    clock.advance(seconds=2)
    for _ in range(2):
        record_ends(worker.database)
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.expired", first.id, True),
        Recorded("role_assignment.expired", second.id, True),
    ]
    assert directory.recorded(company.globex, before_globex) == [
        Recorded("role_assignment.expired", in_globex.id, True)
    ]
    event = directory.events(company.organization)[-1]
    assert (event.actor_kind, event.actor_id, event.request_id) == ("SYSTEM", "system", "")
    data, previous = directory.data(company.organization)
    assert (data["state"], data["etag"]) == ("ROLE_ASSIGNMENT_STATE_EXPIRED", second.etag)
    assert previous == {}
    assert read(directory, first).state == EXPIRED
    assert read(directory, first).etag == first.etag
    assert read(directory, later).state == ACTIVE
    clock.advance(days=30)
    assert refusal(read, directory, first) == not_found(
        "ROLE_ASSIGNMENT", role_assignment_id=first.id
    )
    record_ends(worker.database)
    assert set(directory.write(stored_ids)) == {later.id}
    assert [each.kind for each in directory.recorded(company.organization, before)] == [
        "role_assignment.expired"
    ] * 3


def stored_ids(tx: Any) -> list[str]:
    return list(tx.connection.execute(select(RoleAssignment.id)).scalars())


def test_many_ends_are_told_in_one_round(
    directory: Directory, company: Company, worker: Worker, clock: ManualClock
) -> None:
    role = directory.role("workspace-guest", "workspace")
    end = int((NOW + HOUR).timestamp()) * 1_000_000
    for _ in range(205):
        group = directory.api.GroupService.CreateGroup(
            organization_id=company.organization.id, name="g"
        ).group
        directory.assignment(role, company.eng, group, expires_at=end)
    before = len(directory.events(company.organization))
    clock.advance(hours=2)
    record_ends(worker.database)
    told = directory.recorded(company.organization, before)
    assert len({each.target_id for each in told}) == len(told) == 205
    clock.advance(days=31)
    record_ends(worker.database)
    assert directory.write(stored_ids) == []


def test_expired_assignment_makes_room_and_its_end_is_told_first(
    directory: Directory, company: Company, worker: Worker, clock: ManualClock
) -> None:
    old = assign(directory, company.ann, "workspace-viewer", company.eng, NOW + DAY)
    before = len(directory.events(company.organization))
    clock.advance(days=1)
    new = assign(directory, company.ann, "workspace-viewer", company.eng)
    assert new.id != old.id
    expired, created = directory.events(company.organization)[before:]
    assert (expired.kind, expired.target_id) == ("role_assignment.expired", old.id)
    assert (expired.actor_kind, expired.is_primary) == ("SYSTEM", True)
    assert (created.kind, created.target_id) == ("role_assignment.created", new.id)
    assert (created.actor_kind, created.is_primary) == ("SERVICE_CREDENTIAL", True)
    assert created.cause_event_id == ""
    assert directory.write(stored_ids) == [new.id]
    record_ends(worker.database)
    assert len(directory.events(company.organization)) == before + 2


def test_recorded_end_is_not_told_again_when_its_place_is_taken(
    directory: Directory, company: Company, worker: Worker, clock: ManualClock
) -> None:
    assign(directory, company.ann, "workspace-viewer", company.eng, NOW + DAY)
    clock.advance(days=1)
    record_ends(worker.database)
    before = len(directory.events(company.organization))
    new = assign(directory, company.ann, "workspace-viewer", company.eng)
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.created", new.id, True)
    ]


@pytest.mark.parametrize("is_recorded", [True, False])
def test_update_revives_an_expired_assignment_and_its_next_end_is_told(
    directory: Directory,
    company: Company,
    worker: Worker,
    clock: ManualClock,
    is_recorded: bool,
) -> None:
    made = assign(directory, company.ann, "workspace-viewer", company.eng, NOW + DAY)
    before = len(directory.events(company.organization))
    clock.advance(days=2)
    if is_recorded:
        record_ends(worker.database)
    revived = change_end(directory, made, NOW + 3 * DAY)
    assert (revived.id, revived.state) == (made.id, ACTIVE)
    assert revived.etag != made.etag
    data, previous = directory.data(company.organization)
    assert (data["state"], previous["state"]) == (
        "ROLE_ASSIGNMENT_STATE_ACTIVE",
        "ROLE_ASSIGNMENT_STATE_EXPIRED",
    )
    clock.advance(days=1)
    record_ends(worker.database)
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.expired", made.id, True),
        Recorded("role_assignment.updated", made.id, True),
        Recorded("role_assignment.expired", made.id, True),
    ]


# --- read and list -------------------------------------------------------------------------------


def test_unknown_and_foreign_assignments_are_alike(directory: Directory, company: Company) -> None:
    made = assign(directory, company.ann, "workspace-viewer", company.eng)
    service = directory.restricted_to(company.globex).RoleAssignmentService
    for caller, given in ((directory.api.RoleAssignmentService, MISSING), (service, made.id)):
        expected = not_found("ROLE_ASSIGNMENT", role_assignment_id=given)
        assert refusal(caller.GetRoleAssignment, role_assignment_id=given) == expected
        assert refusal(caller.DeleteRoleAssignment, role_assignment_id=given) == expected
        update_call = caller.UpdateRoleAssignment
        fields = {"role_assignment": {"id": given}, "update_mask": {"paths": ["expires_at"]}}
        assert refusal(update_call, **fields) == expected
    create = service.CreateRoleAssignment
    assert refusal(create, **entry(company.ann, "project-editor", company.api)) == not_found(
        "MEMBERSHIP", organization_membership_id=company.ann.id
    )
    assert read(directory, made) == made


def test_list_joins_its_filters(directory: Directory, company: Company, clock: ManualClock) -> None:
    ann_eng = assign(directory, company.ann, "workspace-admin", company.eng).id
    ann_api = assign(directory, company.ann, "project-editor", company.api).id
    bob_eng = assign(directory, company.bob, "workspace-admin", company.eng, NOW + DAY).id
    backend_api = assign(directory, company.backend, "project-editor", company.api).id
    staff_root = assign(directory, company.staff, "guest", company.root).id
    everyone_eng = assign(directory, company.everyone, "workspace-viewer", company.eng).id
    eve_hq = assign(directory, company.eve, "workspace-admin", company.hq).id
    api, ann, bob = directory.api, held_by(company.ann), held_by(company.bob)
    acme = {"organization_id": company.organization.id}
    for fields, expected in (
        (ann, [ann_api, ann_eng]),
        ({**ann, "resource": on(company.eng)}, [ann_eng]),
        ({**ann, "role_slug": "project-editor"}, [ann_api]),
        ({**ann, "resource_type_slug": "workspace"}, [ann_eng]),
        ({**ann, "resource_type_slug": "organization"}, []),
        ({**ann, "include_groups": True}, [everyone_eng, ann_api, ann_eng]),
        ({**ann, "organization_id": company.globex.id}, []),
        ({"resource": on(company.hq), **acme}, []),
        (
            {**bob, "include_groups": True},
            [everyone_eng, staff_root, backend_api, bob_eng],
        ),
        (held_by(company.backend), [backend_api]),
        ({**held_by(company.backend), "include_groups": True}, [staff_root, backend_api]),
        ({**held_by(company.staff), "include_groups": True}, [staff_root]),
        ({"resource": by_key(company.eng)}, [everyone_eng, bob_eng, ann_eng]),
        ({"resource": on(company.eng), "include_groups": True}, [everyone_eng, bob_eng, ann_eng]),
        ({**acme, "role_slug": "workspace-admin"}, [bob_eng, ann_eng]),
        (acme, [everyone_eng, staff_root, backend_api, bob_eng, ann_api, ann_eng]),
        ({"organization_id": company.globex.id}, [eve_hq]),
    ):
        assert listed(api, **fields) == expected, fields
    clock.advance(days=1)
    assert listed(api, **bob) == []
    assert listed(api, **bob, include_expired=True) == [bob_eng]
    clock.advance(days=30)
    assert listed(api, **bob, include_expired=True) == []


def test_list_refuses_what_it_cannot_look_for(directory: Directory, company: Company) -> None:
    call = directory.api.RoleAssignmentService.ListRoleAssignments
    fields = "organization_membership_id,group_id,resource,organization_id"
    expected = ("INVALID_ARGUMENT", "FIELD_REQUIRED", {"fields": fields})
    assert refusal(call, role_slug="guest") == expected
    ann = held_by(company.ann)
    for given, expected in (
        ({"group_id": ""}, invalid("group_id")),
        ({"resource": {}}, invalid("resource")),
        (held_by("om_x"), not_found("MEMBERSHIP", organization_membership_id="om_x")),
        (held_by("group_x"), not_found("GROUP", group_id="group_x")),
        ({"resource": on("resource_x")}, not_found("RESOURCE", resource_id="resource_x")),
        ({"organization_id": "org_x"}, not_found("ORGANIZATION", organization_id="org_x")),
        ({**ann, "role_slug": "nothing"}, not_found("ROLE", role_slug="nothing")),
        (
            {**ann, "resource_type_slug": "nothing"},
            not_found("RESOURCE_TYPE", resource_type_slug="nothing"),
        ),
        ({**ann, "page_size": -1}, invalid("page_size", "0 or more")),
    ):
        assert refusal(call, **given) == expected
    foreign = directory.restricted_to(company.globex).RoleAssignmentService.ListRoleAssignments
    for given, expected in (
        (ann, not_found("MEMBERSHIP", organization_membership_id=company.ann.id)),
        (held_by(company.staff), not_found("GROUP", group_id=company.staff.id)),
        ({"resource": on(company.eng)}, not_found("RESOURCE", resource_id=company.eng.id)),
        (
            {"organization_id": company.organization.id},
            not_found("ORGANIZATION", organization_id=company.organization.id),
        ),
    ):
        assert refusal(foreign, **given) == expected


def test_pages_cover_every_assignment_once_with_their_number(
    directory: Directory, company: Company
) -> None:
    made = [
        assign(directory, subject, slug, company.eng).id
        for subject in (company.ann, company.bob)
        for slug in ("workspace-admin", "workspace-editor", "workspace-viewer")
    ]
    fields = {"resource": on(company.eng)}
    for size in (1, 2, 5, 6, 7):
        walked = directory.api.pages(
            "RoleAssignmentService",
            "ListRoleAssignments",
            "role_assignments",
            page_size=size,
            **fields,
        )
        assert [each.id for each in walked] == made[::-1]
    call = directory.api.RoleAssignmentService.ListRoleAssignments
    first = call(page_size=4, include_total_size=True, **fields)
    assert first.total_size == 6
    assert not call(**fields).HasField("total_size")
    code, reason, _ = refusal(call, page_token=first.next_page_token, **held_by(company.ann))
    assert (code, reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_MISMATCH")
    # More than the limit are not counted.
    assign(directory, company.staff, "workspace-admin", company.eng)
    assert not call(include_total_size=True, **fields).HasField("total_size")


# --- update --------------------------------------------------------------------------------------


def test_end_is_changed_and_taken_away(directory: Directory, company: Company) -> None:
    made = assign(directory, company.staff, "workspace-viewer", company.eng)
    before = len(directory.events(company.organization))
    changed = change_end(directory, made, NOW + DAY, made.etag)
    assert changed.expires_at.ToDatetime(UTC) == NOW + DAY
    assert changed.etag != made.etag
    assert change_end(directory, made, NOW + DAY) == changed
    endless = change_end(directory, made, None)
    assert not endless.HasField("expires_at")
    assert (
        directory.recorded(company.organization, before)
        == [Recorded("role_assignment.updated", made.id, True)] * 2
    )
    data, previous = directory.data(company.organization)
    assert data["expires_at"] is None
    assert previous == {"expires_at": "2030-01-02T00:00:00.000000Z"}


def test_bad_ends_are_refused(directory: Directory, company: Company) -> None:
    made = assign(directory, company.ann, "workspace-viewer", company.eng)
    before = len(directory.events(company.organization))
    past = invalid("role_assignment.expires_at", FUTURE)
    assert refusal(change_end, directory, made, NOW) == past
    assert refusal(change_end, directory, made, NOW + DAY, "0") == STALE
    call = directory.api.RoleAssignmentService.UpdateRoleAssignment
    for fields, expected in (
        ({"role_assignment": {}, "update_mask": {"paths": ["expires_at"]}}, "role_assignment.id"),
        ({"role_assignment": {"id": made.id}}, "update_mask"),
    ):
        assert refusal(call, **fields) == invalid(expected)
    for path in ("role_slug", "state", "group_id", "resource"):
        assert refusal(call, role_assignment={"id": made.id}, update_mask={"paths": [path]}) == (
            "INVALID_ARGUMENT",
            "UPDATE_MASK_INVALID",
            {"path": path},
        )
    assert directory.recorded(company.organization, before) == []


# --- delete --------------------------------------------------------------------------------------


def test_assignment_is_deleted_by_its_id_and_by_its_key(
    directory: Directory, company: Company
) -> None:
    first = assign(directory, company.ann, "workspace-viewer", company.eng)
    second = assign(directory, company.staff, "workspace-viewer", company.eng)
    before = len(directory.events(company.organization))
    delete = directory.api.RoleAssignmentService.DeleteRoleAssignment
    assert refusal(delete, role_assignment_id=first.id, etag="0") == STALE
    delete(role_assignment_id=first.id, etag=first.etag)
    delete(key={**entry(company.staff, "workspace-viewer", ""), "resource": by_key(company.eng)})
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.deleted", first.id, True),
        Recorded("role_assignment.deleted", second.id, True),
    ]
    data, _ = directory.data(company.organization)
    assert (data["id"], data["role_slug"]) == (second.id, "workspace-viewer")
    assert listed(directory.api, organization_id=company.organization.id) == []


def test_absent_assignment_is_not_found_unless_it_may_be_missing(
    directory: Directory, company: Company
) -> None:
    made = assign(directory, company.ann, "workspace-viewer", company.eng)
    before = len(directory.events(company.organization))
    delete = directory.api.RoleAssignmentService.DeleteRoleAssignment
    ann, eng = company.ann, company.eng
    of_ann = {"organization_membership_id": ann.id}
    for fields, named in (
        ({"role_assignment_id": MISSING}, {"role_assignment_id": MISSING}),
        (
            {"key": entry(ann, "workspace-admin", eng)},
            {**of_ann, "role_slug": "workspace-admin", "resource_id": eng.id},
        ),
        (
            {"key": entry(ann, "nothing", eng)},
            {**of_ann, "role_slug": "nothing", "resource_id": eng.id},
        ),
        (
            {"key": entry("group_x", "workspace-viewer", eng)},
            {"group_id": "group_x", "role_slug": "workspace-viewer", "resource_id": eng.id},
        ),
        (
            {"key": entry(ann, "workspace-viewer", company.hq)},
            {**of_ann, "role_slug": "workspace-viewer", "resource_id": company.hq.id},
        ),
        (
            {"key": {**entry(ann, "workspace-admin", ""), "resource": by_key(eng)}},
            {**of_ann, "role_slug": "workspace-admin", **by_key(eng)["key"]},
        ),
    ):
        assert refusal(delete, **fields) == not_found("ROLE_ASSIGNMENT", **named)
        delete(**fields, allow_missing=True)
    for fields, field in (
        ({}, "role_assignment"),
        ({"role_assignment_id": ""}, "role_assignment_id"),
        ({"key": {"role_slug": "x", "resource": on(eng)}}, "key.subject"),
        ({"key": {**of_ann, "role_slug": "x"}}, "key.resource"),
    ):
        assert refusal(delete, **fields) == invalid(field)
    assert read(directory, made) == made
    assert directory.recorded(company.organization, before) == []


def test_expired_assignment_may_be_deleted_once_its_end_is_told(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    made = assign(directory, company.ann, "workspace-viewer", company.eng, NOW + DAY)
    before = len(directory.events(company.organization))
    clock.advance(days=1)
    directory.api.RoleAssignmentService.DeleteRoleAssignment(
        key=entry(company.ann, "workspace-viewer", company.eng)
    )
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.expired", made.id, True),
        Recorded("role_assignment.deleted", made.id, True),
    ]


def test_ended_assignment_is_gone_by_its_key_too_after_thirty_days(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    assign(directory, company.ann, "workspace-viewer", company.eng, NOW + DAY)
    clock.advance(days=31)
    before = len(directory.events(company.organization))
    delete = directory.api.RoleAssignmentService.DeleteRoleAssignment
    key = entry(company.ann, "workspace-viewer", company.eng)
    named = {**held_by(company.ann), "role_slug": "workspace-viewer"}
    expected = not_found("ROLE_ASSIGNMENT", **named, resource_id=company.eng.id)
    assert refusal(delete, key=key) == expected
    assert directory.recorded(company.organization, before) == []


# --- set -----------------------------------------------------------------------------------------


def test_set_makes_the_roles_on_one_resource_exactly_these(
    directory: Directory, company: Company
) -> None:
    admin = assign(directory, company.ann, "workspace-admin", company.eng)
    editor = assign(directory, company.ann, "workspace-editor", company.eng)
    on_api = assign(directory, company.ann, "project-editor", company.api)
    of_bob = assign(directory, company.bob, "workspace-admin", company.eng)
    before = len(directory.events(company.organization))
    kept, new = reversed(
        set_roles(directory, company.ann, company.eng, editor=NOW + DAY, viewer=None)
    )
    assert (kept.id, kept.expires_at.ToDatetime(UTC)) == (editor.id, NOW + DAY)
    assert new.role_slug == "workspace-viewer"
    batch, *rest = directory.events(company.organization)[before:]
    assert (batch.kind, batch.target_type) == ("role_assignment.batch_changed", "organization")
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.batch_changed", company.organization.id, True),
        Recorded("role_assignment.created", new.id, False),
        Recorded("role_assignment.updated", editor.id, False),
        Recorded("role_assignment.deleted", admin.id, False),
    ]
    assert all(each.cause_event_id == batch.id for each in rest)
    assert read(directory, kept) == kept
    assert read(directory, on_api) == on_api
    assert read(directory, of_bob) == of_bob


def test_set_of_what_is_held_changes_nothing(directory: Directory, company: Company) -> None:
    held = set_roles(directory, company.staff, company.eng, admin=NOW + DAY, viewer=None)
    before = len(directory.events(company.organization))
    assert set_roles(directory, company.staff, company.eng, viewer=None, admin=NOW + DAY) == held
    assert directory.recorded(company.organization, before) == []
    assert len(set_roles(directory, company.staff, company.eng)) == 0
    assert len(directory.recorded(company.organization, before)) == 3
    assert len(set_roles(directory, company.staff, company.eng)) == 0
    assert len(directory.recorded(company.organization, before)) == 3


def test_set_takes_the_place_of_what_has_ended_and_leaves_the_rest(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    ended, other = set_roles(directory, company.ann, company.eng, admin=NOW + DAY, viewer=NOW + DAY)
    assert (ended.role_slug, other.role_slug) == ("workspace-viewer", "workspace-admin")
    before = len(directory.events(company.organization))
    clock.advance(days=1)
    (new,) = set_roles(directory, company.ann, company.eng, viewer=None)
    assert new.id != ended.id
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.expired", ended.id, True),
        Recorded("role_assignment.batch_changed", company.organization.id, True),
        Recorded("role_assignment.created", new.id, False),
    ]
    assert read(directory, other).state == EXPIRED


def test_bad_sets_are_refused_and_change_nothing(directory: Directory, company: Company) -> None:
    held = set_roles(directory, company.ann, company.eng, admin=None)
    before = len(directory.events(company.organization))
    call = directory.api.RoleAssignmentService.SetRoleAssignments
    ann, eng = held_by(company.ann), on(company.eng)
    viewer = {"role_slug": "workspace-viewer"}
    for fields, expected in (
        ({"resource": eng}, invalid("subject")),
        ({**ann}, invalid("resource")),
        ({**ann, "resource": eng, "roles": [{}]}, invalid("roles[0].role_slug")),
        (
            {**ann, "resource": eng, "roles": [viewer, viewer]},
            invalid("roles[1].role_slug", "each role once"),
        ),
        (
            {**ann, "resource": eng, "roles": [viewer, {"role_slug": "x", "expires_at": NOW}]},
            invalid("roles[1].expires_at", FUTURE),
        ),
        (
            {**ann, "resource": eng, "roles": [{"role_slug": f"r{i}"} for i in range(51)]},
            (
                "INVALID_ARGUMENT",
                "REQUEST_TOO_LARGE",
                {"field": "roles", "maximum": "50", "actual": "51"},
            ),
        ),
        (
            {**held_by("om_x"), "resource": eng, "roles": [viewer]},
            not_found("MEMBERSHIP", organization_membership_id="om_x"),
        ),
        (
            {**ann, "resource": on(company.hq), "roles": [{"role_slug": "x"}]},
            not_found("RESOURCE", resource_id=company.hq.id),
        ),
        (
            {**ann, "resource": eng, "roles": [viewer, {"role_slug": "x"}]},
            not_found("ROLE", role_slug="x"),
        ),
        (
            {**ann, "resource": eng, "roles": [viewer, {"role_slug": "guest"}]},
            (
                "INVALID_ARGUMENT",
                "ROLE_RESOURCE_TYPE_MISMATCH",
                {"role_slug": "guest", "role_type": "organization", "resource_type": "workspace"},
            ),
        ),
        (
            {**ann, "resource": on(company.root), "roles": [{"role_slug": "guest"}]},
            (
                "INVALID_ARGUMENT",
                "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY",
                {"organization_membership_id": company.ann.id},
            ),
        ),
    ):
        assert refusal(call, **fields) == expected
    fifty = {**ann, "resource": eng, "roles": [{"role_slug": f"r{i}"} for i in range(50)]}
    assert refusal(call, **fifty) == not_found("ROLE", role_slug="r0")
    assert directory.recorded(company.organization, before) == []
    assert listed(directory.api, **ann) == [held[0].id]


def test_limit_of_a_subject_is_judged_on_the_result_of_a_set(
    directory: Directory, company: Company
) -> None:
    assign(directory, company.ann, "project-editor", company.api)
    set_roles(directory, company.ann, company.eng, admin=None, editor=None)
    set_roles(directory, company.ann, company.eng, admin=None, viewer=None)
    assert (
        refusal(
            set_roles, directory, company.ann, company.eng, admin=None, editor=None, viewer=None
        )
        == FULL
    )


# --- modify --------------------------------------------------------------------------------------


def modify(directory: Directory, company: Company, **lists: list[dict[str, Any]]) -> Any:
    return directory.api.RoleAssignmentService.ModifyRoleAssignments(
        organization_id=company.organization.id, **lists
    )


def test_modify_saves_a_whole_dialog_at_once(directory: Directory, company: Company) -> None:
    gone = assign(directory, company.ann, "workspace-admin", company.eng)
    longer = assign(directory, company.bob, "workspace-viewer", company.eng, NOW + DAY)
    equal = assign(directory, company.staff, "guest", company.root)
    before = len(directory.events(company.organization))
    changed = modify(
        directory,
        company,
        add=[
            entry(company.everyone, "project-editor", company.api),
            entry(company.bob, "workspace-viewer", company.eng),
            entry(company.staff, "guest", company.root),
            entry(company.everyone, "project-editor", company.api),
            {**entry(company.ann, "project-editor", ""), "resource": by_key(company.api)},
        ],
        remove=[
            entry(company.ann, "workspace-admin", company.eng),
            entry(company.backend, "project-editor", company.api),
            entry(company.ann, "guest", company.root),
        ],
    )
    first, second = changed.added_role_assignments
    assert [(each.group_id or each.organization_membership_id) for each in (first, second)] == [
        company.everyone,
        company.ann.id,
    ]
    (updated,) = changed.updated_role_assignments
    assert (updated.id, updated.HasField("expires_at")) == (longer.id, False)
    assert list(changed.removed_role_assignments) == [gone]
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.batch_changed", company.organization.id, True),
        Recorded("role_assignment.created", first.id, False),
        Recorded("role_assignment.created", second.id, False),
        Recorded("role_assignment.updated", longer.id, False),
        Recorded("role_assignment.deleted", gone.id, False),
    ]
    assert set(listed(directory.api, organization_id=company.organization.id)) == {
        first.id,
        second.id,
        longer.id,
        equal.id,
    }


def test_modify_that_changes_nothing_records_nothing(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    assign(directory, company.ann, "workspace-admin", company.eng)
    ended = assign(directory, company.bob, "workspace-admin", company.eng, NOW + DAY)
    clock.advance(days=1)
    before = len(directory.events(company.organization))
    changed = modify(
        directory,
        company,
        add=[entry(company.ann, "workspace-admin", company.eng)],
        remove=[
            entry(company.ann, "workspace-viewer", company.eng),
            entry(company.bob, "workspace-admin", company.eng),
        ],
    )
    assert changed.consistency_token
    assert not changed.added_role_assignments
    assert not changed.removed_role_assignments
    assert directory.recorded(company.organization, before) == []
    assert read(directory, ended).state == EXPIRED


def test_modify_takes_the_place_of_what_has_ended(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    ended = assign(directory, company.bob, "workspace-admin", company.eng, NOW + DAY)
    before = len(directory.events(company.organization))
    clock.advance(days=1)
    (new,) = modify(
        directory, company, add=[entry(company.bob, "workspace-admin", company.eng)]
    ).added_role_assignments
    assert directory.recorded(company.organization, before) == [
        Recorded("role_assignment.expired", ended.id, True),
        Recorded("role_assignment.batch_changed", company.organization.id, True),
        Recorded("role_assignment.created", new.id, False),
    ]


def test_bad_modifications_are_refused_whole(directory: Directory, company: Company) -> None:
    call = directory.api.RoleAssignmentService.ModifyRoleAssignments
    acme = company.organization.id
    before = len(directory.events(company.organization))
    ann, eng = company.ann, company.eng
    good = entry(company.bob, "workspace-viewer", eng)
    admin = entry(ann, "workspace-admin", eng)
    by_its_key = {**admin, "resource": by_key(eng)}
    both = {"fields": "add[1],remove[0]", "rule": "one entry in both lists"}
    for fields, expected in (
        ({"add": [good]}, invalid("organization_id")),
        ({"organization_id": acme}, invalid("add")),
        ({"organization_id": acme, "add": [{**good, "group_id": ""}]}, invalid("add[0].group_id")),
        (
            {"organization_id": acme, "remove": [{"role_slug": "x", "resource": on(eng)}]},
            invalid("remove[0].subject"),
        ),
        (
            {"organization_id": acme, "add": [good, {**admin, "expires_at": NOW}]},
            invalid("add[1].expires_at", FUTURE),
        ),
        (
            {"organization_id": acme, "add": [admin, {**by_its_key, "expires_at": NOW + DAY}]},
            invalid("add[1]", "each assignment with one end"),
        ),
        (
            {"organization_id": acme, "add": [good] * 51, "remove": [admin] * 50},
            (
                "INVALID_ARGUMENT",
                "REQUEST_TOO_LARGE",
                {"field": "add", "maximum": "100", "actual": "101"},
            ),
        ),
        (
            {"organization_id": acme, "add": [good, admin], "remove": [admin]},
            ("INVALID_ARGUMENT", "FIELDS_EXCLUSIVE", both),
        ),
        (
            {"organization_id": acme, "add": [good, admin], "remove": [by_its_key]},
            ("INVALID_ARGUMENT", "FIELDS_EXCLUSIVE", both),
        ),
        (
            {"organization_id": "org_x", "add": [good]},
            not_found("ORGANIZATION", organization_id="org_x"),
        ),
        (
            {"organization_id": acme, "add": [good, entry(company.eve, "workspace-viewer", eng)]},
            not_found("MEMBERSHIP", organization_membership_id=company.eve.id),
        ),
        (
            {"organization_id": acme, "add": [good, entry("group_x", "workspace-viewer", eng)]},
            not_found("GROUP", group_id="group_x"),
        ),
        (
            {"organization_id": acme, "add": [good], "remove": [entry(ann, "x", eng)]},
            not_found("ROLE", role_slug="x"),
        ),
        (
            {"organization_id": acme, "add": [good, entry(ann, "workspace-admin", company.hq)]},
            not_found("RESOURCE", resource_id=company.hq.id),
        ),
        (
            {
                "organization_id": acme,
                "add": [
                    good,
                    {**entry(ann, "workspace-admin", ""), "resource": by_key(company.hq)},
                ],
            },
            not_found("RESOURCE", **by_key(company.hq)["key"]),
        ),
        (
            {"organization_id": acme, "add": [good, entry(ann, "guest", eng)]},
            (
                "INVALID_ARGUMENT",
                "ROLE_RESOURCE_TYPE_MISMATCH",
                {"role_slug": "guest", "role_type": "organization", "resource_type": "workspace"},
            ),
        ),
        (
            {"organization_id": acme, "add": [good, entry(ann, "guest", company.root)]},
            (
                "INVALID_ARGUMENT",
                "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY",
                {"organization_membership_id": ann.id},
            ),
        ),
    ):
        assert refusal(call, **fields) == expected, fields
    assert directory.recorded(company.organization, before) == []
    assert listed(directory.api, organization_id=acme) == []
    foreign = directory.restricted_to(company.globex).RoleAssignmentService
    assert refusal(foreign.ModifyRoleAssignments, organization_id=acme, add=[good]) == not_found(
        "ORGANIZATION", organization_id=acme
    )


def test_a_hundred_entries_are_modified_at_once(directory: Directory, company: Company) -> None:
    groups = [
        directory.api.GroupService.CreateGroup(
            organization_id=company.organization.id, name=f"g{i}"
        ).group
        for i in range(50)
    ]
    admins = [entry(group, "workspace-admin", company.eng) for group in groups]
    viewers = [entry(group, "workspace-viewer", company.eng) for group in groups]
    assert len(modify(directory, company, add=admins).added_role_assignments) == 50
    changed = modify(directory, company, add=viewers, remove=admins)
    assert [each.group_id for each in changed.added_role_assignments] == [
        group.id for group in groups
    ]
    assert len(changed.removed_role_assignments) == 50


def test_limit_of_each_subject_is_judged_on_the_result_of_a_modification(
    directory: Directory, company: Company
) -> None:
    three = [
        entry(company.ann, slug, company.eng)
        for slug in ("workspace-admin", "workspace-editor", "workspace-viewer")
    ]
    modify(directory, company, add=three)
    more = entry(company.ann, "project-editor", company.api)
    assert refusal(modify, directory, company, add=[more]) == FULL
    modify(directory, company, add=[more], remove=three[:1])

"""RoleAssignmentService, and the background work on ended role assignments."""

from collections.abc import Callable
from functools import partial
from typing import Any

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.base import errors
from authz_service.base.actor import SYSTEM
from authz_service.domain import role_assignments
from authz_service.domain.lifecycles import role_assignments as lifecycle
from authz_service.domain.role_assignments import Entry
from authz_service.engine.facts import GROUP, MEMBERSHIP, Subject
from authz_service.pb.authz.v1 import role_assignments_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction

_KINDS = {"organization_membership_id": MEMBERSHIP, "group_id": GROUP}
# One transaction locks the organizations of as many; their writers wait that long.
_ENDS_AT_ONCE = 100


class RoleAssignmentServicer:
    """Assigns roles to memberships and groups, and shows, changes and ends assignments."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateRoleAssignment(
        self, request: pb.CreateRoleAssignmentRequest, context: Context
    ) -> pb.CreateRoleAssignmentResponse:
        entry = _entry(request)

        def work(tx: Transaction) -> pb.CreateRoleAssignmentResponse:
            seen = role_assignments.create(tx, entry)
            return pb.CreateRoleAssignmentResponse(role_assignment=pb.RoleAssignment(**seen))

        return self._mutations.run(request, context, work)

    def GetRoleAssignment(
        self, request: pb.GetRoleAssignmentRequest, context: Context
    ) -> pb.GetRoleAssignmentResponse:
        with self._database.snapshot(context.actor) as snapshot:
            row = role_assignments.get(snapshot, request.role_assignment_id)
            (seen,) = role_assignments.views(snapshot, [row])
        return pb.GetRoleAssignmentResponse(role_assignment=pb.RoleAssignment(**seen))

    def ListRoleAssignments(
        self, request: pb.ListRoleAssignmentsRequest, context: Context
    ) -> pb.ListRoleAssignmentsResponse:
        subject = _subject(request) if request.WhichOneof("subject") else None
        resource = render.resource_ref(request.resource) if request.HasField("resource") else None
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after, total = role_assignments.page(
                snapshot,
                subject=subject,
                resource=resource,
                organization_id=request.organization_id,
                role_slug=request.role_slug,
                resource_type_slug=request.resource_type_slug,
                include_groups=request.include_groups,
                include_expired=request.include_expired,
                include_total=request.include_total_size,
                page=listing.page,
            )
            listed = role_assignments.views(snapshot, rows)
        return pb.ListRoleAssignmentsResponse(
            role_assignments=[pb.RoleAssignment(**seen) for seen in listed],
            next_page_token=listing.token(after),
            total_size=total,
        )

    def UpdateRoleAssignment(
        self, request: pb.UpdateRoleAssignmentRequest, context: Context
    ) -> pb.UpdateRoleAssignmentResponse:
        role_assignment_id = render.required("role_assignment.id", request.role_assignment.id)
        changes = render.changes(request.role_assignment, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateRoleAssignmentResponse:
            seen = role_assignments.update(
                tx, role_assignment_id, changes, etag=request.role_assignment.etag
            )
            return pb.UpdateRoleAssignmentResponse(role_assignment=pb.RoleAssignment(**seen))

        return self._mutations.run(request, context, work)

    def DeleteRoleAssignment(
        self, request: pb.DeleteRoleAssignmentRequest, context: Context
    ) -> pb.DeleteRoleAssignmentResponse:
        named = render.required_oneof(request, "role_assignment")
        entry = _entry(request.key, "key.") if named == "key" else None

        def work(tx: Transaction) -> pb.DeleteRoleAssignmentResponse:
            role_assignments.delete(
                tx,
                request.role_assignment_id,
                entry=entry,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteRoleAssignmentResponse()

        return self._mutations.run(request, context, work)

    def SetRoleAssignments(
        self, request: pb.SetRoleAssignmentsRequest, context: Context
    ) -> pb.SetRoleAssignmentsResponse:
        subject = _subject(request)
        resource = render.resource_ref(request.resource)
        roles = [
            (role.role_slug, render.optional_instant(role, "expires_at")) for role in request.roles
        ]

        def work(tx: Transaction) -> pb.SetRoleAssignmentsResponse:
            held = role_assignments.replace(tx, subject=subject, resource=resource, roles=roles)
            return pb.SetRoleAssignmentsResponse(role_assignments=_messages(held))

        return self._mutations.run(request, context, work)

    def ModifyRoleAssignments(
        self, request: pb.ModifyRoleAssignmentsRequest, context: Context
    ) -> pb.ModifyRoleAssignmentsResponse:
        add = [_entry(each, f"add[{i}].") for i, each in enumerate(request.add)]
        remove = [_entry(each, f"remove[{i}].") for i, each in enumerate(request.remove)]

        def work(tx: Transaction) -> pb.ModifyRoleAssignmentsResponse:
            changed = role_assignments.modify(
                tx, organization_id=request.organization_id, add=add, remove=remove
            )
            return pb.ModifyRoleAssignmentsResponse(
                added_role_assignments=_messages(changed.added),
                updated_role_assignments=_messages(changed.updated),
                removed_role_assignments=_messages(changed.removed),
            )

        return self._mutations.run(request, context, work)


def record_ends(database: Database) -> None:
    """Records the ends that have passed and removes what ended long ago, until nothing is left.

    Raises:
        Unavailable: DATABASE_UNAVAILABLE; the next time goes on.
    """
    steps: tuple[Callable[..., int], ...] = (lifecycle.end_expired, lifecycle.sweep)
    for step in steps:
        work = partial(step, limit=_ENDS_AT_ONCE)
        while database.write(work, actor=SYSTEM).result == _ENDS_AT_ONCE:
            pass


def _messages(seen: list[dict[str, Any]]) -> list[pb.RoleAssignment]:
    return [pb.RoleAssignment(**each) for each in seen]


def _subject(message: Any, prefix: str = "") -> Subject:
    """Returns the membership or group that a message names.

    Raises:
        InvalidArgument: FIELD_REQUIRED.
    """
    field = message.WhichOneof("subject")
    if field is None:
        raise errors.field_required(f"{prefix}subject")
    subject_id = render.required(prefix + field, getattr(message, field))
    return Subject(_KINDS[field], subject_id)


def _entry(message: Any, prefix: str = "") -> Entry:
    """Returns the role assignment that a message names, with its end where it can carry one."""
    has_end = "expires_at" in message.DESCRIPTOR.fields_by_name
    return Entry(
        _subject(message, prefix),
        message.role_slug,
        render.resource_ref(message.resource, f"{prefix}resource"),
        render.optional_instant(message, "expires_at") if has_end else None,
    )

"""GroupService."""

from collections.abc import Sequence
from typing import Any

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.base import errors
from authz_service.domain import groups, memberships
from authz_service.domain.lifecycles import groups as lifecycle
from authz_service.engine.facts import GROUP, MEMBERSHIP, Subject
from authz_service.pb.authz.v1 import groups_pb2 as pb
from authz_service.pb.authz.v1.memberships_pb2 import MembershipStatus, OrganizationMembership
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Snapshot, Transaction

_STATUS = "MEMBERSHIP_STATUS_"


class GroupServicer:
    """Creates, reads, changes, fills and deletes groups."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateGroup(
        self, request: pb.CreateGroupRequest, context: Context
    ) -> pb.CreateGroupResponse:
        def work(tx: Transaction) -> pb.CreateGroupResponse:
            row = groups.create(
                tx,
                organization_id=request.organization_id,
                name=request.name,
                description=request.description,
            )
            return pb.CreateGroupResponse(group=_group(tx, row))

        return self._mutations.run(request, context, work)

    def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.GetGroupResponse:
        with self._database.snapshot(context.actor) as snapshot:
            group = _group(snapshot, groups.get(snapshot, request.group_id))
        return pb.GetGroupResponse(group=group)

    def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = groups.page(
                snapshot,
                organization_id=request.organization_id,
                query=request.query,
                page=listing.page,
            )
            listed = _groups(snapshot, rows)
        return pb.ListGroupsResponse(groups=listed, next_page_token=listing.token(after))

    def UpdateGroup(
        self, request: pb.UpdateGroupRequest, context: Context
    ) -> pb.UpdateGroupResponse:
        group_id = render.required("group.id", request.group.id)
        changes = render.changes(request.group, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateGroupResponse:
            row = groups.update(tx, group_id, changes, etag=request.group.etag)
            return pb.UpdateGroupResponse(group=_group(tx, row))

        return self._mutations.run(request, context, work)

    def DeleteGroup(
        self, request: pb.DeleteGroupRequest, context: Context
    ) -> pb.DeleteGroupResponse:
        def work(tx: Transaction) -> pb.DeleteGroupResponse:
            count = lifecycle.delete(
                tx,
                request.group_id,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteGroupResponse(deleted_role_assignment_count=count)

        return self._mutations.run(request, context, work)

    def AddGroupMember(
        self, request: pb.AddGroupMemberRequest, context: Context
    ) -> pb.AddGroupMemberResponse:
        member = _member(request)

        def work(tx: Transaction) -> pb.AddGroupMemberResponse:
            row = groups.add_member(tx, request.group_id, member=member)
            return pb.AddGroupMemberResponse(group=_group(tx, row))

        return self._mutations.run(request, context, work)

    def RemoveGroupMember(
        self, request: pb.RemoveGroupMemberRequest, context: Context
    ) -> pb.RemoveGroupMemberResponse:
        member = _member(request)

        def work(tx: Transaction) -> pb.RemoveGroupMemberResponse:
            row = groups.remove_member(tx, request.group_id, member=member)
            return pb.RemoveGroupMemberResponse(group=_group(tx, row))

        return self._mutations.run(request, context, work)

    def ModifyGroupMembers(
        self, request: pb.ModifyGroupMembersRequest, context: Context
    ) -> pb.ModifyGroupMembersResponse:
        add = [_member(member, f"add[{i}].") for i, member in enumerate(request.add)]
        remove = [_member(member, f"remove[{i}].") for i, member in enumerate(request.remove)]

        def work(tx: Transaction) -> pb.ModifyGroupMembersResponse:
            row = groups.modify_members(tx, request.group_id, add=add, remove=remove)
            return pb.ModifyGroupMembersResponse(group=_group(tx, row))

        return self._mutations.run(request, context, work)

    def ListGroupMembers(
        self, request: pb.ListGroupMembersRequest, context: Context
    ) -> pb.ListGroupMembersResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after, total = groups.members_page(
                snapshot,
                request.group_id,
                recursive=request.recursive,
                statuses=[
                    MembershipStatus.Name(status).removeprefix(_STATUS)
                    for status in request.statuses
                ],
                include_total=request.include_total_size,
                page=listing.page,
            )
            members = memberships.views(snapshot, rows)
        return pb.ListGroupMembersResponse(
            organization_memberships=[OrganizationMembership(**member) for member in members],
            next_page_token=listing.token(after),
            total_size=total,
        )

    def ListMemberGroups(
        self, request: pb.ListMemberGroupsRequest, context: Context
    ) -> pb.ListMemberGroupsResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = groups.member_groups_page(snapshot, request.group_id, page=listing.page)
            listed = _groups(snapshot, rows)
        return pb.ListMemberGroupsResponse(groups=listed, next_page_token=listing.token(after))

    def ListMembershipGroups(
        self, request: pb.ListMembershipGroupsRequest, context: Context
    ) -> pb.ListMembershipGroupsResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = groups.membership_groups_page(
                snapshot,
                request.organization_membership_id,
                recursive=request.recursive,
                page=listing.page,
            )
            listed = _groups(snapshot, rows)
        return pb.ListMembershipGroupsResponse(groups=listed, next_page_token=listing.token(after))

    def ListContainingGroups(
        self, request: pb.ListContainingGroupsRequest, context: Context
    ) -> pb.ListContainingGroupsResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = groups.containing_groups_page(
                snapshot, request.group_id, recursive=request.recursive, page=listing.page
            )
            listed = _groups(snapshot, rows)
        return pb.ListContainingGroupsResponse(groups=listed, next_page_token=listing.token(after))


def _group(snapshot: Snapshot, row: Any) -> pb.Group:
    return _groups(snapshot, [row])[0]


def _groups(snapshot: Snapshot, rows: Sequence[Any]) -> list[pb.Group]:
    return [pb.Group(**group) for group in groups.views(snapshot, rows)]


def _member(
    message: pb.AddGroupMemberRequest | pb.RemoveGroupMemberRequest | pb.GroupMember,
    prefix: str = "",
) -> Subject:
    """Returns what goes into a group or out of it.

    Args:
        prefix: Of the paths of its fields in the request.

    Raises:
        InvalidArgument: FIELD_REQUIRED.
    """
    chosen = message.WhichOneof("member")
    if chosen == "organization_membership_id" and message.organization_membership_id:
        return Subject(MEMBERSHIP, message.organization_membership_id)
    if chosen == "member_group_id" and message.member_group_id:
        return Subject(GROUP, message.member_group_id)
    raise errors.field_required(f"{prefix}{chosen or 'member'}")

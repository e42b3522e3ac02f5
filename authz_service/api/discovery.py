"""The reverse questions of AuthorizationService: its three lists and Explain.

All read SQL in one snapshot, and neither use nor fill a cache.
"""

from typing import Any

from authz_service.api import render
from authz_service.api.consistency import Freshness
from authz_service.api.listing import Listings
from authz_service.base import errors
from authz_service.domain import discovery, events, memberships, permissions, resource_types
from authz_service.engine import limits
from authz_service.engine.explain import OWN_ROLE, VIA_GROUP, Grant, Step
from authz_service.engine.facts import GROUP, Subject
from authz_service.pb.authz.v1 import (
    authorization_pb2 as pb,
)
from authz_service.pb.authz.v1 import (
    core_pb2,
    memberships_pb2,
    permissions_pb2,
    resources_pb2,
)
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Reading
from authz_service.storage.searches import Frame, ListedResource


class Discovery:
    """The lists and Explain.

    Args:
        database: Read in one snapshot a call.
    """

    def __init__(self, database: Database, freshness: Freshness, listings: Listings) -> None:
        self._database = database
        self._freshness = freshness
        self._listings = listings

    def ListResources(
        self, request: pb.AuthorizationServiceListResourcesRequest, context: Context
    ) -> pb.AuthorizationServiceListResourcesResponse:
        for field, maximum in (
            ("permission_slugs", limits.LIST_PERMISSIONS_MAX),
            ("resource_type_slugs", limits.LIST_TYPES_MAX),
        ):
            actual = len(getattr(request, field))
            if actual > maximum:
                raise errors.request_too_large(field, maximum=maximum, actual=actual)
        subject = render.subject(request.subject)
        parent = (
            render.resource_ref(request.parent, "parent") if request.HasField("parent") else None
        )
        slugs = tuple(dict.fromkeys(request.permission_slugs))
        wanted = self._freshness.wanted(request.consistency)
        listing = self._listings.open(request, context)
        types = frozenset(request.resource_type_slugs)
        total = None

        def read(reading: Reading) -> tuple[Frame, discovery.ListedResources]:
            asked, listed = discovery.list_resources(
                reading,
                subject,
                parent,
                slugs,
                type_slugs=types,
                children_only=request.children_only,
                page=listing.page,
            )
            self._freshness.check(wanted, asked.revisions)
            discovery.require(context.actor, asked, subject, parent, slugs)
            return asked, listed

        if types or request.include_total_size:
            with self._database.snapshot(context.actor) as snapshot:
                asked, listed = read(snapshot)
                resource_types.require_all(snapshot, request.resource_type_slugs)
                if request.include_total_size:
                    total = discovery.count_resources(
                        snapshot,
                        subject,
                        parent,
                        slugs,
                        type_slugs=types,
                        children_only=request.children_only,
                    )
        else:
            asked, listed = read(self._database.single(context.actor))
        response = pb.AuthorizationServiceListResourcesResponse(
            next_page_token=listing.token(listed.after),
            total_size=total,
            consistency_token=self._freshness.token(asked.revisions),
        )
        for row, held in listed.items:
            item = response.items.add(permission_slugs=held)
            _fill_resource(item.resource, asked, row)
        return response

    def ListMembers(
        self, request: pb.ListMembersRequest, context: Context
    ) -> pb.ListMembersResponse:
        resource = render.resource_ref(request.resource)
        slug = request.permission_slug
        wanted = self._freshness.wanted(request.consistency)
        listing = self._listings.open(request, context)
        total = None

        def read(reading: Reading) -> tuple[Frame, discovery.ListedMembers]:
            asked, listed = discovery.list_members(
                reading, resource, slug, direct_only=request.direct_only, page=listing.page
            )
            self._freshness.check(wanted, asked.revisions)
            discovery.require(context.actor, asked, None, resource, (slug,))
            discovery.require_type(asked, slug)
            return asked, listed

        if request.include_total_size:
            with self._database.snapshot(context.actor) as snapshot:
                asked, listed = read(snapshot)
                total = discovery.count_members(
                    snapshot, resource, slug, direct_only=request.direct_only
                )
        else:
            asked, listed = read(self._database.single(context.actor))
        response = pb.ListMembersResponse(
            next_page_token=listing.token(listed.after),
            total_size=total,
            consistency_token=self._freshness.token(asked.revisions),
        )
        nodes = {row.id: _summary(row) for row in listed.path}
        for member in listed.items:
            item = response.members.add(grants_truncated=member.is_truncated)
            _fill_membership(item.organization_membership, member)
            for grant in member.grants:
                _fill_grant(item.grants.add(), grant, nodes)
        return response

    def ListPermissions(
        self, request: pb.AuthorizationServiceListPermissionsRequest, context: Context
    ) -> pb.AuthorizationServiceListPermissionsResponse:
        subject = render.subject(request.subject)
        resource = render.resource_ref(request.resource)
        wanted = self._freshness.wanted(request.consistency)
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            asked = discovery.frame(snapshot, subject, resource)
            self._freshness.check(wanted, asked.revisions)
            discovery.require(context.actor, asked, subject, resource)
            listed = discovery.list_permissions(
                snapshot,
                asked,
                subject,
                include_descendant_types=request.include_descendant_types,
                page=listing.page,
                include_total=request.include_total_size,
            )
        return pb.AuthorizationServiceListPermissionsResponse(
            permissions=[
                permissions_pb2.Permission(**permissions.view(row)) for row in listed.rows
            ],
            next_page_token=listing.token(listed.after),
            total_size=listed.total,
            consistency_token=self._freshness.token(asked.revisions),
        )

    def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        subject = render.subject(request.subject)
        resource = render.resource_ref(request.resource)
        slug = request.permission_slug
        wanted = self._freshness.wanted(request.consistency)
        with self._database.snapshot(context.actor) as snapshot:
            asked = discovery.frame(snapshot, subject, resource, (slug,))
            self._freshness.check(wanted, asked.revisions)
            discovery.require(context.actor, asked, subject, resource, (slug,))
            explanation, path = discovery.explain(snapshot, asked, subject, slug)
        nodes = {row.id: _summary(row) for row in path}
        maximum = limits.EXPLAINED_GRANTS_MAX
        response = pb.ExplainResponse(
            allowed=explanation.allowed,
            reason=pb.ExplainReason.Value(f"EXPLAIN_REASON_{explanation.reason}"),
            resource_path=[_summary(row) for row in path],
            grants=[_grant(grant, nodes) for grant in explanation.grants[:maximum]],
            blocked_grants=[_grant(grant, nodes) for grant in explanation.blocked[:maximum]],
            grants_truncated=max(len(explanation.grants), len(explanation.blocked)) > maximum,
            remedies=[
                pb.Remedy(steps=[_step(step, asked, subject, slug, nodes) for step in steps])
                for steps in explanation.remedies
            ],
            consistency_token=self._freshness.token(asked.revisions),
        )
        if explanation.allowed_until is not None:
            response.allowed_until.CopyFrom(render.timestamp(explanation.allowed_until))
        return response


def _fill_resource(message: resources_pb2.Resource, asked: Frame, row: ListedResource) -> None:
    """Fills what ``resources.view`` shows, in place: a third of the price of keywords, a row."""
    message.id = row.id
    message.organization_id = asked.organization_id or ""
    message.resource_type_slug = row.resource_type_slug
    message.external_id = row.external_id
    message.name = row.name
    message.description = row.description
    message.parent_resource_id = row.parent_id
    message.depth = row.depth
    render.fill_timestamp(message.created_at, row.created_at)
    render.fill_timestamp(message.updated_at, row.updated_at)
    message.etag = events.etag(row)


def _fill_membership(
    message: memberships_pb2.OrganizationMembership, member: discovery.ListedMember
) -> None:
    """Fills what ``memberships.view`` shows, in place."""
    person, roles = member.person, member.roles
    message.id = person.id
    message.user_id = person.user_id
    message.organization_id = person.organization_id
    # The lists hold no others.
    message.status = memberships_pb2.MEMBERSHIP_STATUS_ACTIVE
    for role in roles:
        message.roles.add(
            role_id=role.role_id,
            slug=role.slug,
            sources=memberships.role_sources(role),
            group_ids=sorted(role.group_ids),
        )
    if roles:
        message.role = roles[0].slug
    user = message.user
    user.id = person.user_id
    user.email = person.email
    user.first_name = person.first_name
    user.last_name = person.last_name
    user.name = person.name
    user.profile_picture_url = person.profile_picture_url
    user.external_id = person.external_id or ""
    message.organization_name = person.organization_name
    render.fill_timestamp(message.created_at, person.created_at)
    render.fill_timestamp(message.updated_at, person.updated_at)
    message.etag = events.etag(person)


Nodes = dict[str, core_pb2.ResourceSummary]


def _summary(row: Any) -> core_pb2.ResourceSummary:
    return core_pb2.ResourceSummary(
        id=row.id,
        resource_type_slug=row.resource_type_slug,
        external_id=row.external_id,
        name=row.name,
    )


def _grant(grant: Grant, nodes: Nodes) -> core_pb2.Grant:
    message = core_pb2.Grant()
    _fill_grant(message, grant, nodes)
    return message


def _fill_grant(message: core_pb2.Grant, grant: Grant, nodes: Nodes) -> None:
    message.role_id = grant.role_id
    message.role_slug = grant.role_slug
    message.resource.CopyFrom(nodes[grant.resource_id])
    if grant.holder == OWN_ROLE:
        message.own_role = True
    elif grant.holder == VIA_GROUP:
        message.group.group_id = grant.group_id
        message.group.role_assignment_id = grant.assignment_id
        message.group.via_group_ids.extend(grant.via_group_ids)
    else:
        message.role_assignment_id = grant.assignment_id
    if grant.expires_at is not None:
        render.fill_timestamp(message.expires_at, grant.expires_at)


def _step(step: Step, asked: Frame, subject: Subject, slug: str, nodes: Nodes) -> pb.RemedyStep:
    message = pb.RemedyStep(
        kind=pb.RemedyStepKind.Value(f"REMEDY_STEP_KIND_{step.kind}"),
        role_id=step.role_id,
        role_slug=step.role_slug,
        role_assignment_id=step.assignment_id,
        permission_slug=slug,
    )
    if step.resource_id:
        message.resource.CopyFrom(nodes[step.resource_id])
    if subject.kind != GROUP:
        message.organization_membership_id = asked.subject_id or ""
    return message

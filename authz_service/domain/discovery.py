"""The reverse questions, each answered from one snapshot: who, what, which permissions, and why.

Lists and Check always agree because both follow product.md section 2 on the same rows; the oracle
compares them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Row

from authz_service.base.actor import Actor
from authz_service.base.pages import Cursor, Page
from authz_service.domain import configuration, resource_types
from authz_service.engine import explain as explaining
from authz_service.engine.check import (
    permission_not_found,
    resource_not_found,
    subject_not_found,
    type_mismatch,
)
from authz_service.engine.explain import ACTIVE, ASSIGNMENT, OWN_ROLE, VIA_GROUP, Explanation, Grant
from authz_service.engine.facts import GROUP, MEMBERSHIP, ResourceRef, Subject
from authz_service.engine.limits import LISTED_GRANTS_MAX
from authz_service.storage import poison, resource_members, searches
from authz_service.storage.database import Reading, Snapshot
from authz_service.storage.members import HeldRole, Person
from authz_service.storage.searches import Frame, Held, ListedResource, Node


def frame(
    snapshot: Snapshot,
    subject: Subject | None,
    resource: ResourceRef | None,
    permission_slugs: Collection[str] = (),
) -> Frame:
    """Returns what a question names; ``require`` then refuses what is missing."""
    return searches.frame(snapshot, subject, resource, permission_slugs)


def require(
    actor: Actor,
    asked: Frame,
    subject: Subject | None,
    resource: ResourceRef | None,
    permission_slugs: Collection[str] = (),
) -> None:
    """Refuses a question that cannot be answered, in the order of product.md 2.6 rows 3 to 6.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND, API_KEY_NOT_FOUND, PERMISSION_NOT_FOUND,
            RESOURCE_NOT_FOUND.
    """
    sees = asked.organization_id is not None and actor.may_see(asked.organization_id)
    if subject is not None and not sees:
        raise subject_not_found(subject)
    for slug in permission_slugs:
        if slug not in asked.permission_types:
            raise permission_not_found(slug)
    if resource is not None and not (
        sees and asked.resource_id and asked.resource_organization_id == asked.organization_id
    ):
        raise resource_not_found(resource)


def require_type(asked: Frame, permission_slug: str) -> None:
    """Refuses a permission of another type than the asked resource's (row 7).

    Raises:
        InvalidArgument: PERMISSION_RESOURCE_TYPE_MISMATCH.
    """
    permission_type = asked.permission_types[permission_slug]
    if permission_type != asked.resource_type_slug:
        raise type_mismatch(permission_slug, permission_type, asked.resource_type_slug or "")


def _kind(subject: Subject) -> str:
    return GROUP if subject.kind == GROUP else MEMBERSHIP


# --- resources -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListedResources:
    """One page of resources, newest first.

    Attributes:
        items: Rows with the asked permissions that are held on each, in the order asked.
    """

    items: Sequence[tuple[ListedResource, list[str]]]
    after: Cursor | None


def list_resources(
    reading: Reading,
    subject: Subject,
    parent: ResourceRef | None,
    permission_slugs: Sequence[str],
    *,
    type_slugs: Collection[str],
    children_only: bool,
    page: Page,
) -> tuple[Frame, ListedResources]:
    """Returns the resources strictly below a parent that the subject has access to (M22).

    Returns:
        What the question names (for ``require``), and the page, without a total.
    """
    found = searches.reached(
        reading,
        subject,
        parent,
        permission_slugs,
        type_slugs=type_slugs,
        children_only=children_only,
        after=str(page.after[0]) if page.after else None,
        limit=page.size + 1,
    )
    shown = found.rows[: page.size]
    of_type: dict[str, list[str]] = {}
    for slug, type_slug in found.frame.permission_types.items():
        of_type.setdefault(type_slug, []).append(slug)
    held = found.held
    items = []
    for row in shown:
        if not row.resource_type_slug or not poison.is_path(row.path, row.id):
            continue
        slugs = of_type[row.resource_type_slug]
        if len(slugs) > 1 and held is not None:
            nodes = row.path.split("/")
            slugs = [slug for slug in slugs if any(slug in held.get(node, ()) for node in nodes)]
        items.append((row, slugs))
    after = (shown[-1].id,) if len(found.rows) > page.size else None
    return found.frame, ListedResources(items, after)


def count_resources(
    snapshot: Snapshot,
    subject: Subject,
    parent: ResourceRef | None,
    permission_slugs: Sequence[str],
    *,
    type_slugs: Collection[str],
    children_only: bool,
) -> int | None:
    """Returns how many resources ``list_resources`` lists in all, None above the limit."""
    limit = snapshot.limits.total_size_max
    count = searches.count_reached(
        snapshot,
        subject,
        parent,
        permission_slugs,
        type_slugs=type_slugs,
        children_only=children_only,
        limit=limit + 1,
    )
    return count if count <= limit else None


# --- members ---------------------------------------------------------------------------------


class ListedMember(NamedTuple):
    """A member of a page.

    Attributes:
        roles: Its organization-level roles, highest priority first (M10).
        grants: Those that give the permission, in order, at most ``LISTED_GRANTS_MAX``.
        is_truncated: There are more.
    """

    person: Person
    roles: list[HeldRole]
    grants: list[Grant]
    is_truncated: bool


class ListedMembers(NamedTuple):
    """One page of members, newest first.

    Attributes:
        path: The resources that the grants are held on, and more of the asked path.
    """

    items: list[ListedMember]
    path: list[Node]
    after: Cursor | None


def list_members(
    reading: Reading,
    resource: ResourceRef,
    permission_slug: str,
    *,
    direct_only: bool,
    page: Page,
) -> tuple[Frame, ListedMembers]:
    """Returns the active memberships that have the permission on a resource (M23).

    Returns:
        What the question names (for ``require_type``), and the page, without a total.
    """
    found = resource_members.page(
        reading,
        resource,
        permission_slug,
        direct_only=direct_only,
        after=str(page.after[0]) if page.after else None,
        limit=page.size + 1,
    )
    asked = found.frame
    shown = found.ids[: page.size]
    if not shown:
        return asked, ListedMembers([], found.nodes, None)
    assert asked.organization_id is not None
    above: dict[str, set[str]] = {}
    for outer, inner_ids in found.inner.items():
        for inner in inner_ids:
            above.setdefault(inner, set()).add(outer)
    priority = configuration.priority_of(found.orders, asked.organization_id)
    order = explaining.role_order(priority)
    # Members of one group have its grants in common.
    through: dict[frozenset[str], list[Grant]] = {}
    items = []
    for membership_id in shown:
        direct = frozenset(found.direct_groups[membership_id])
        by_groups = through.get(direct)
        if by_groups is None:
            by_groups = through[direct] = [
                _group_grant(held, via)
                for held in found.groups
                if (via := _via(held.holder_id, asked.everyone_group_id, direct, above)) is not None
            ]
        own = [_own_grant(held) for held in found.held[membership_id]]
        grants = explaining.ordered([*own, *by_groups], asked.resource_path, order)
        roles = sorted(
            found.roles.get(membership_id, {}).values(), key=lambda role: order(role.role_id)
        )
        items.append(
            ListedMember(
                found.people[membership_id],
                roles,
                grants[:LISTED_GRANTS_MAX],
                len(grants) > LISTED_GRANTS_MAX,
            )
        )
    after = (shown[-1],) if len(found.ids) > page.size else None
    return asked, ListedMembers(items, found.nodes, after)


def count_members(
    reading: Reading, resource: ResourceRef, permission_slug: str, *, direct_only: bool
) -> int | None:
    """Returns how many memberships ``list_members`` lists in all, None above the limit."""
    limit = reading.limits.total_size_max
    count = resource_members.count(
        reading, resource, permission_slug, direct_only=direct_only, limit=limit + 1
    )
    return count if count <= limit else None


def _order(snapshot: Snapshot, organization_id: str, *, has_priority: bool) -> explaining.RoleOrder:
    # Only roles of type organization have a priority; reading it is worth it for two of them.
    priority = configuration.role_priority(snapshot, organization_id) if has_priority else ()
    return explaining.role_order(priority)


def _own_grant(held: Held) -> Grant:
    return Grant(
        role_id=held.role_id,
        role_slug=held.role_slug,
        resource_id=held.resource_id,
        holder=ASSIGNMENT if held.assignment_id else OWN_ROLE,
        assignment_id=held.assignment_id or "",
        expires_at=held.expires_at,
    )


def _group_grant(held: Held, via_group_ids: tuple[str, ...]) -> Grant:
    return Grant(
        role_id=held.role_id,
        role_slug=held.role_slug,
        resource_id=held.resource_id,
        holder=VIA_GROUP,
        assignment_id=held.assignment_id or "",
        group_id=held.holder_id,
        via_group_ids=via_group_ids,
        expires_at=held.expires_at,
    )


def _via(
    group_id: str,
    everyone_group_id: str | None,
    direct: Collection[str],
    above: dict[str, set[str]],
) -> tuple[str, ...] | None:
    if group_id == everyone_group_id:
        return ()
    return explaining.chain(direct, above, group_id)


# --- permissions -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListedPermissions:
    """One page of permissions, by slug."""

    rows: Sequence[Row[Any]]
    after: Cursor | None
    total: int | None


def list_permissions(
    snapshot: Snapshot,
    asked: Frame,
    subject: Subject,
    *,
    include_descendant_types: bool,
    page: Page,
    include_total: bool,
) -> ListedPermissions:
    """Returns the permissions that the subject has on the asked resource (M24)."""
    if asked.status != ACTIVE or asked.subject_id is None or asked.resource_type_slug is None:
        return ListedPermissions((), None, 0 if include_total else None)
    role_ids = searches.valid_roles(snapshot, asked.subject_id, _kind(subject), asked.resource_path)
    types = {asked.resource_type_slug}
    if include_descendant_types:
        types |= resource_types.descendants(snapshot, asked.resource_type_slug)
    after = str(page.after[0]) if page.after else None
    found = searches.permissions_page(snapshot, role_ids, types, after=after, limit=page.size + 1)
    total = None
    if include_total:
        limit = snapshot.limits.total_size_max
        every = searches.permissions_page(snapshot, role_ids, types, after=None, limit=limit + 1)
        total = len(every) if len(every) <= limit else None
    shown = found[: page.size]
    return ListedPermissions(shown, (shown[-1].slug,) if len(found) > page.size else None, total)


# --- explanations ----------------------------------------------------------------------------


def explain(
    snapshot: Snapshot, asked: Frame, subject: Subject, permission_slug: str
) -> tuple[Explanation, list[Node]]:
    """Returns why the answer is what it is (M27 to M29).

    Returns:
        The explanation, and the resources of the path from the organization resource down.

    Raises:
        InvalidArgument: PERMISSION_RESOURCE_TYPE_MISMATCH.
    """
    assert asked.subject_id and asked.organization_id and asked.status is not None
    require_type(asked, permission_slug)
    path = asked.resource_path
    kind = _kind(subject)
    held = searches.held_on_path(snapshot, asked.subject_id, kind, path, (permission_slug,))
    grants = [_own_grant(each) for each in held if each.holder_id == asked.subject_id]
    outer = [each for each in held if each.holder_id != asked.subject_id]
    if outer:
        direct = searches.direct_groups(snapshot, asked.subject_id, kind)
        above = searches.groups_above(snapshot, direct)
        for each in outer:
            via = _via(each.holder_id, asked.everyone_group_id, direct, above)
            assert via is not None  # the statement came to this group along such a chain
            grants.append(_group_grant(each, via))
    nodes = searches.path_rows(snapshot, path)
    roles = [
        explaining.Role(row.id, row.slug, row.resource_type_slug)
        for row in searches.roles_containing(snapshot, permission_slug, asked.organization_id)
    ]
    explanation = explaining.explain(
        grants,
        subject_kind=kind,
        status=asked.status,
        path=path,
        path_types=[row.resource_type_slug for row in nodes],
        roles=roles,
        order=_order(snapshot, asked.organization_id, has_priority=True),
        now=snapshot.now,
    )
    return explanation, nodes

"""The reverse questions, each answered from one snapshot: who, what, which permissions, and why.

Lists and Check always agree because both follow product.md section 2 on the same rows; the oracle
compares them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

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
from authz_service.storage import searches
from authz_service.storage.database import Reading, Snapshot
from authz_service.storage.searches import Frame, Held, ListedResource, Node, Sources


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


def _require_type(asked: Frame, permission_slug: str) -> None:
    permission_type = asked.permission_types[permission_slug]
    if permission_type != asked.resource_type_slug:
        raise type_mismatch(permission_slug, permission_type, asked.resource_type_slug or "")


def path(snapshot: Snapshot, asked: Frame) -> list[Node]:
    """Returns the resources of the asked path, from the organization resource down."""
    return searches.path_rows(snapshot, asked.resource_path)


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
        slugs = of_type[row.resource_type_slug]
        if len(slugs) > 1 and held is not None and row.path is not None:
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


@dataclass(frozen=True, slots=True)
class ListedMembers:
    """One page of members, newest first: membership id, its grants in order, whether cut off."""

    items: Sequence[tuple[str, list[Grant], bool]]
    after: Cursor | None
    total: int | None


def list_members(
    snapshot: Snapshot,
    asked: Frame,
    permission_slug: str,
    *,
    direct_only: bool,
    page: Page,
    include_total: bool,
) -> ListedMembers:
    """Returns the active memberships that have the permission on the asked resource (M23).

    Raises:
        InvalidArgument: PERMISSION_RESOURCE_TYPE_MISMATCH.
    """
    assert asked.organization_id is not None
    _require_type(asked, permission_slug)
    organization_id = asked.organization_id
    path = asked.resource_path
    nodes = path[-1:] if direct_only else path
    root_id = path[0] if path[0] in nodes else None
    holding = searches.holders(snapshot, organization_id, nodes, permission_slug)
    everyone = any(group.holder_id == asked.everyone_group_id for group in holding.groups)
    inner_groups = tuple(holding.inner.keys() - {asked.everyone_group_id})
    role_ids = tuple(holding.role_slugs)
    sources = Sources(
        own=role_ids if root_id else (),
        assigned=tuple((node, role_id) for node in nodes for role_id in role_ids),
        groups=inner_groups,
        everyone=everyone,
    )
    total = None
    if include_total:
        limit = snapshot.limits.total_size_max
        count = searches.count_members(snapshot, organization_id, sources, limit=limit + 1)
        total = count if count <= limit else None
    after = str(page.after[0]) if page.after else None
    found = searches.members_page(
        snapshot, organization_id, sources, after=after, limit=page.size + 1
    )
    shown = found[: page.size]
    if not shown:
        return ListedMembers((), None, total)
    through = searches.member_grants(
        snapshot,
        shown,
        role_slugs=holding.role_slugs,
        node_ids=nodes,
        root_id=root_id,
        group_ids=inner_groups,
    )
    above: dict[str, set[str]] = {}
    for outer, inner_ids in holding.inner.items():
        for inner in inner_ids:
            above.setdefault(inner, set()).add(outer)
    order = _order(snapshot, organization_id, has_priority=bool(root_id) and holding.is_ordered)
    items = []
    for membership_id in shown:
        direct = through.direct_groups[membership_id]
        grants = [_own_grant(held) for held in through.held[membership_id]]
        for held in holding.groups:
            via = _via(held.holder_id, asked.everyone_group_id, direct, above)
            if via is not None:
                grants.append(_group_grant(held, via))
        grants = explaining.ordered(grants, path, order)
        items.append((membership_id, grants[:LISTED_GRANTS_MAX], len(grants) > LISTED_GRANTS_MAX))
    return ListedMembers(items, (shown[-1],) if len(found) > page.size else None, total)


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
    direct: set[str],
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
    assert asked.subject_id and asked.organization_id and asked.status
    _require_type(asked, permission_slug)
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

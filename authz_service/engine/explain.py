"""Explains a decision: the grants behind it, the reason of a deny, and what would mend it."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from authz_service.engine.facts import GROUP
from authz_service.engine.limits import REMEDIES_MAX

OWN_ROLE, ASSIGNMENT, VIA_GROUP = "own_role", "role_assignment", "group"

GRANTED = "GRANTED"
MEMBERSHIP_PENDING = "MEMBERSHIP_PENDING"
MEMBERSHIP_INACTIVE = "MEMBERSHIP_INACTIVE"
GRANT_EXPIRED = "GRANT_EXPIRED"
NO_GRANT = "NO_GRANT"

REACTIVATE_MEMBERSHIP = "REACTIVATE_MEMBERSHIP"
ACCEPT_INVITATION = "ACCEPT_INVITATION"
EXTEND_ASSIGNMENT = "EXTEND_ASSIGNMENT"
ASSIGN_ROLE = "ASSIGN_ROLE"
UPDATE_MEMBERSHIP_ROLES = "UPDATE_MEMBERSHIP_ROLES"
DEFINE_ROLE = "DEFINE_ROLE"

ACTIVE, PENDING = "ACTIVE", "PENDING"


@dataclass(frozen=True, slots=True)
class Grant:
    """A role held on a resource, and by whom (product.md 2.5, message Grant).

    Attributes:
        holder: OWN_ROLE, ASSIGNMENT (the subject's own) or VIA_GROUP.
        assignment_id: Empty for an own role.
        group_id: For VIA_GROUP: the group that holds it.
        via_group_ids: For VIA_GROUP: one shortest chain from a group the subject is directly in up
            to, not including, ``group_id``.
        expires_at: Microseconds since 1970; None = no end.
    """

    role_id: str
    role_slug: str
    resource_id: str
    holder: str
    assignment_id: str = ""
    group_id: str = ""
    via_group_ids: tuple[str, ...] = ()
    expires_at: int | None = None

    def is_valid(self, now: int) -> bool:
        """True until the grant's end."""
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class Role:
    """A role that could be given: it contains the permission."""

    id: str
    slug: str
    resource_type_slug: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a remedy.

    Attributes:
        kind: One of the step kinds above.
        role: For ASSIGN_ROLE, UPDATE_MEMBERSHIP_ROLES, and the role that EXTEND_ASSIGNMENT keeps.
        resource_id: Where.
        assignment_id: For EXTEND_ASSIGNMENT.
    """

    kind: str
    role_id: str = ""
    role_slug: str = ""
    resource_id: str = ""
    assignment_id: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why the answer is what it is.

    Attributes:
        allowed_until: As ``Decision.allowed_until``.
        grants: Those that allow it, in order.
        blocked: Those that would but for their end or the membership's status, in order.
        remedies: For a deny, sets of steps that turn it into an allow; the fewest steps only.
    """

    allowed: bool
    allowed_until: int | None
    reason: str
    grants: tuple[Grant, ...]
    blocked: tuple[Grant, ...]
    remedies: tuple[tuple[Step, ...], ...]


RoleOrder = Callable[[str], tuple[int, str]]


def role_order(priority: Sequence[str]) -> RoleOrder:
    """Returns the sort key of a role id that orders roles as ListRoles does.

    Args:
        priority: Ids of the roles of type organization, highest first; all others come after them,
            oldest first.
    """
    ranks = {role_id: rank for rank, role_id in enumerate(priority)}
    last = len(ranks)
    return lambda role_id: (ranks.get(role_id, last), role_id)


def ordered(grants: Iterable[Grant], path: Sequence[str], order: RoleOrder) -> list[Grant]:
    """Returns grants in the order of M23: nearest resource, role, own before a group's, assignment.

    Args:
        path: Ids from the organization resource down to the resource asked about.
    """
    distance = {resource_id: -depth for depth, resource_id in enumerate(path)}
    return sorted(
        grants,
        key=lambda grant: (
            distance[grant.resource_id],
            order(grant.role_id),
            grant.holder == VIA_GROUP,
            grant.assignment_id,
        ),
    )


def chain(
    direct: Collection[str], above: Mapping[str, Collection[str]], group_id: str
) -> tuple[str, ...] | None:
    """Returns one shortest chain of groups from where somebody is directly in up to below a group.

    Args:
        direct: The groups somebody is directly in.
        above: Group id to the groups it is directly in.

    Returns:
        Empty if ``group_id`` is one of ``direct``; None if it cannot be reached.
    """
    if group_id in direct:
        return ()
    queue: deque[tuple[str, tuple[str, ...]]] = deque((each, (each,)) for each in sorted(direct))
    seen = set(direct)
    while queue:
        current, so_far = queue.popleft()
        for outer in sorted(above.get(current, ())):
            if outer == group_id:
                return so_far
            if outer not in seen:
                seen.add(outer)
                queue.append((outer, (*so_far, outer)))
    return None


def explain(
    grants: Iterable[Grant],
    *,
    subject_kind: str,
    status: str,
    path: Sequence[str],
    path_types: Sequence[str],
    roles: Collection[Role],
    order: RoleOrder,
    now: int,
) -> Explanation:
    """Returns the decision with its reason, grants and remedies (product.md M27 to M29).

    Args:
        grants: All grants of the subject on the path whose role contains the permission, ended ones
            too.
        status: Of the membership; ACTIVE for a group.
        path, path_types: Ids and types from the organization resource down to the resource.
        roles: All roles usable on the path that contain the permission.
    """
    sorted_grants = ordered(grants, path, order)
    valid = tuple(grant for grant in sorted_grants if grant.is_valid(now))
    if status == ACTIVE and valid:
        ends = [grant.expires_at for grant in valid]
        until = None if None in ends else max(end for end in ends if end is not None)
        blocked = tuple(grant for grant in sorted_grants if not grant.is_valid(now))
        return Explanation(True, until, GRANTED, valid, blocked, ())
    blocked = tuple(sorted_grants)
    first: tuple[Step, ...] = ()
    if status == PENDING:
        reason, first = MEMBERSHIP_PENDING, (Step(ACCEPT_INVITATION),)
    elif status != ACTIVE:
        reason, first = MEMBERSHIP_INACTIVE, (Step(REACTIVATE_MEMBERSHIP),)
    else:
        reason = GRANT_EXPIRED if blocked else NO_GRANT
    if valid:
        remedies = [first]
    else:
        last_steps = _last_steps(blocked, subject_kind, path, path_types, roles, order)
        remedies = [(*first, step) for step in last_steps]
    return Explanation(False, None, reason, (), blocked, tuple(remedies[:REMEDIES_MAX]))


def _last_steps(
    expired: Sequence[Grant],
    subject_kind: str,
    path: Sequence[str],
    path_types: Sequence[str],
    roles: Collection[Role],
    order: RoleOrder,
) -> list[Step]:
    """Returns each single step that gives the permission: extensions first, then nearest first."""
    steps = [
        Step(
            EXTEND_ASSIGNMENT,
            role_id=grant.role_id,
            role_slug=grant.role_slug,
            resource_id=grant.resource_id,
            assignment_id=grant.assignment_id,
        )
        for grant in sorted(
            expired,
            key=lambda grant: (
                -path.index(grant.resource_id),
                order(grant.role_id),
                grant.assignment_id,
            ),
        )
    ]
    own = {(g.role_id, g.resource_id) for g in expired if g.holder == ASSIGNMENT}
    for depth in range(len(path) - 1, -1, -1):
        kind = ASSIGN_ROLE
        if depth == 0 and subject_kind != GROUP:
            # A membership's roles on the organization are set on the membership itself (RA3).
            kind = UPDATE_MEMBERSHIP_ROLES
        here = [role for role in roles if role.resource_type_slug == path_types[depth]]
        for role in sorted(here, key=lambda role: order(role.id)):
            if (role.id, path[depth]) not in own:
                steps.append(
                    Step(kind, role_id=role.id, role_slug=role.slug, resource_id=path[depth])
                )
    return steps or [Step(DEFINE_ROLE)]

"""Groups: named sets of memberships and of other groups, and the built-in one, everyone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, Row, Select, func, insert, literal, or_, select
from sqlalchemy import delete as sql_delete

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.pages import Cursor, Page
from authz_service.domain import events, memberships, organizations
from authz_service.engine import limits, tags
from authz_service.engine.check import subject_not_found
from authz_service.engine.facts import GROUP, MEMBERSHIP, Subject
from authz_service.storage import below, paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import (
    Group,
    GroupMember,
    GroupNesting,
    Membership,
    Organization,
)

STANDARD, EVERYONE = "STANDARD", "EVERYONE"
EVERYONE_NAME = "everyone"
UPDATABLE = ("name", "description")


def view(row: Group | Row[Any]) -> dict[str, Any]:
    """Returns the group as events see it: without the counts of its members."""
    return {
        "id": row.id,
        "organization_id": row.organization_id,
        "kind": f"GROUP_KIND_{row.kind}",
        "name": row.name,
        "description": row.description,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def views(snapshot: Snapshot, rows: Sequence[Group | Row[Any]]) -> list[dict[str, Any]]:
    """Returns groups as callers see them, with the counts of what is directly in each.

    Args:
        rows: At most a page of a list.
    """
    group_ids = [row.id for row in rows]
    members, inner = (
        {
            row.group_id: row.count
            for row in snapshot.connection.execute(
                select(table.group_id, func.count().label("count"))
                .where(snapshot.dialect.among(table.group_id, group_ids))
                .group_by(table.group_id)
            )
        }
        for table in (GroupMember, GroupNesting)
    )
    seen = []
    for row in rows:
        described = view(row)
        # Everyone has no member rows to be counted (GR1).
        if row.kind != EVERYONE:
            described["member_count"] = members.get(row.id, 0)
            described["member_group_count"] = inner.get(row.id, 0)
        seen.append(described)
    return seen


def not_found(key: str, group_id: str) -> errors.NotFound:
    """GROUP_NOT_FOUND, with the id as it was given."""
    return errors.NotFound("GROUP_NOT_FOUND", "no such group", metadata={key: group_id})


def create_everyone(tx: Transaction, organization: Organization) -> Group:
    """Creates the built-in group that holds every membership of the organization (GR1)."""
    row = tx.add(
        Group(
            organization_id=organization.id,
            id=organization.everyone_group_id,
            kind=EVERYONE,
            name=EVERYONE_NAME,
            description="",
            **events.stamp(tx, organization.id),
        )
    )
    _record(tx, "group.created", row, tags=())
    return row


def create(tx: Transaction, *, organization_id: str, name: str, description: str = "") -> Group:
    """Creates an empty group.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID.
        ResourceExhausted: LIMIT_REACHED (groups).
    """
    name = slugs.display_name("name", name)
    description = slugs.description("description", description)
    realms.lock(tx, organization_id)
    organizations.require(tx, organization_id)
    present = _count(tx, select(Group.id).where(Group.organization_id == organization_id))
    # Everyone counts as a group.
    if present >= tx.limits.groups_max:
        raise errors.limit_reached("groups", maximum=tx.limits.groups_max)
    row = tx.add(
        Group(
            organization_id=organization_id,
            id=ids.new(ids.GROUP),
            kind=STANDARD,
            name=name,
            description=description,
            **events.stamp(tx, organization_id),
        )
    )
    # Unknown groups are never cached, so no fact changes.
    _record(tx, "group.created", row, tags=())
    return row


def get(snapshot: Snapshot, group_id: str, *, key: str = "group_id") -> Row[Any]:
    """Returns one group.

    Args:
        key: The request's field that names it.

    Raises:
        NotFound: GROUP_NOT_FOUND.
    """
    row = snapshot.connection.execute(
        select(*Group.__table__.columns).where(Group.id == group_id)
    ).one_or_none()
    if row is None or not snapshot.actor.may_see(row.organization_id):
        raise not_found(key, group_id)
    return row


def page(
    snapshot: Snapshot, *, organization_id: str, query: str = "", page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of an organization's groups, newest first, everyone among them.

    Args:
        query: Case-insensitive part of the name; empty = all.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
        InvalidArgument: FIELD_INVALID.
    """
    query = slugs.query("query", query)
    organizations.require(snapshot, organization_id)
    statement = select(*Group.__table__.columns).where(Group.organization_id == organization_id)
    if query:
        statement = statement.where(Group.name.icontains(query, autoescape=True))
    return paging.newest_first(snapshot, statement, Group.id, page)


def for_update(tx: Transaction, group_id: str) -> Group:
    """Locks the realm of a group and returns its row.

    Raises:
        NotFound: GROUP_NOT_FOUND.
    """
    organization_id = get(tx, group_id).organization_id
    realms.lock(tx, organization_id)
    row = tx.session.get(Group, (organization_id, group_id))
    if row is None:
        raise not_found("group_id", group_id)
    return row


def refuse_built_in(kind: str) -> None:
    """Refuses to change, nest or fill the group of everyone (GR1).

    Raises:
        FailedPrecondition: GROUP_BUILT_IN.
    """
    if kind == EVERYONE:
        raise errors.FailedPrecondition(
            "GROUP_BUILT_IN", "the group of everyone is kept by the service"
        )


def update(tx: Transaction, group_id: str, changes: Mapping[str, Any], *, etag: str = "") -> Group:
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: From ``UPDATABLE``.

    Raises:
        NotFound: GROUP_NOT_FOUND.
        FailedPrecondition: GROUP_BUILT_IN.
        InvalidArgument: FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    changes = dict(changes)
    if "name" in changes:
        name = slugs.not_cleared("group.name", changes["name"])
        changes["name"] = slugs.display_name("group.name", name)
    if "description" in changes:
        changes["description"] = slugs.description("group.description", changes["description"])
    row = for_update(tx, group_id)
    refuse_built_in(row.kind)
    events.check_etag(row, etag)
    before = view(row)
    for name, value in changes.items():
        setattr(row, name, value)
    if view(row) == before:
        return row
    events.touch(tx, row.organization_id, row)
    # No fact reads names.
    _record(tx, "group.updated", row, before=before, tags=())
    return row


def delete(tx: Transaction, row: Group) -> None:
    """Deletes a group and its places; ``lifecycles.groups.delete`` does the rest.

    Args:
        row: From ``for_update``; its role assignments go with it.
    """
    # Whoever belongs to it, at any depth, carries its tag, and so does each group in it.
    _record(tx, "group.deleted", row, tags=(tags.group(row.id),))
    tx.session.delete(row)
    tx.session.flush()


def add_member(tx: Transaction, group_id: str, *, member: Subject) -> Group:
    """Puts one membership or group into a group; a member already changes nothing.

    Args:
        member: Of kind MEMBERSHIP or GROUP.

    Raises:
        NotFound: GROUP_NOT_FOUND, MEMBERSHIP_NOT_FOUND.
        FailedPrecondition: GROUP_BUILT_IN, GROUP_CYCLE, GROUP_DEPTH_EXCEEDED.
        ResourceExhausted: LIMIT_REACHED (group_members, group_groups, membership_groups).
    """
    row, added, _ = _change_members(tx, group_id, [member], [])
    if added:
        _record(tx, "group.member_added", row, tags=_marked(added), more=_named(member))
    return row


def remove_member(tx: Transaction, group_id: str, *, member: Subject) -> Group:
    """Takes one membership or group out of a group; what is not in it changes nothing.

    Args:
        member: Of kind MEMBERSHIP or GROUP.

    Raises:
        NotFound: GROUP_NOT_FOUND, MEMBERSHIP_NOT_FOUND.
        FailedPrecondition: GROUP_BUILT_IN.
    """
    row, _, removed = _change_members(tx, group_id, [], [member])
    if removed:
        _record(tx, "group.member_removed", row, tags=_marked(removed), more=_named(member))
    return row


def modify_members(
    tx: Transaction,
    group_id: str,
    *,
    add: Sequence[Subject] = (),
    remove: Sequence[Subject] = (),
) -> Group:
    """Puts members into a group and takes others out at once, judged on the result.

    Args:
        add, remove: Of kind MEMBERSHIP or GROUP, 1 to 100 together. Present additions and absent
            removals are skipped.

    Raises:
        NotFound: GROUP_NOT_FOUND, MEMBERSHIP_NOT_FOUND.
        FailedPrecondition: GROUP_BUILT_IN, GROUP_CYCLE, GROUP_DEPTH_EXCEEDED.
        InvalidArgument: FIELD_REQUIRED, REQUEST_TOO_LARGE, FIELDS_EXCLUSIVE.
        ResourceExhausted: LIMIT_REACHED (group_members, group_groups, membership_groups).
    """
    actual = len(add) + len(remove)
    if not actual:
        raise errors.field_required("add")
    if actual > limits.MODIFY_ENTRIES_MAX:
        raise errors.request_too_large(
            "add" if add else "remove", maximum=limits.MODIFY_ENTRIES_MAX, actual=actual
        )
    for i, member in enumerate(add):
        if member in remove:
            raise errors.fields_exclusive(
                f"add[{i}]", f"remove[{remove.index(member)}]", rule="one entry in both lists"
            )
    row, added, removed = _change_members(tx, group_id, add, remove)
    if added or removed:
        changed = {
            "added": [_named(member) for member in added],
            "removed": [_named(member) for member in removed],
        }
        _record(tx, "group.members_changed", row, tags=_marked([*added, *removed]), more=changed)
    return row


def members_page(
    snapshot: Snapshot,
    group_id: str,
    *,
    recursive: bool = False,
    statuses: Collection[str] = (),
    include_total: bool = False,
    page: Page,
) -> tuple[Sequence[Row[Any]], Cursor | None, int | None]:
    """Returns one page of the memberships in a group, newest first, each once.

    Args:
        recursive: Also those in the groups in it, at any depth.
        statuses: PENDING, ACTIVE, INACTIVE; none = ACTIVE.
        include_total: Count all pages together.

    Returns:
        Membership rows, the cursor, and the count: None if not wanted or above its limit.

    Raises:
        NotFound: GROUP_NOT_FOUND.
    """
    group = get(snapshot, group_id)
    if group.kind == EVERYONE:
        return memberships.page(
            snapshot,
            organization_id=group.organization_id,
            statuses=statuses,
            include_total=include_total,
            is_known=True,
            page=page,
        )
    wanted = below.Members(
        group_id, recursive, tuple(dict.fromkeys(statuses)) or (memberships.ACTIVE,)
    )
    before = None if page.after is None else str(page.after[0])
    rows, after = paging.cut(
        below.members_page(snapshot, wanted, before=before, limit=page.size + 1), page
    )
    total = None
    if include_total:
        maximum = snapshot.limits.total_size_max
        counted = below.count_members(snapshot, wanted, limit=maximum + 1)
        total = counted if counted <= maximum else None
    return rows, after, total


def member_groups_page(
    snapshot: Snapshot, group_id: str, *, page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of the groups directly in a group, newest first.

    Raises:
        NotFound: GROUP_NOT_FOUND.
    """
    organization_id = get(snapshot, group_id).organization_id
    inner = select(GroupNesting.member_group_id).where(GroupNesting.group_id == group_id)
    return _page_of(snapshot, organization_id, Group.id.in_(inner), page)


def containing_groups_page(
    snapshot: Snapshot, group_id: str, *, recursive: bool = False, page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of the groups that contain a group, newest first.

    Args:
        recursive: All above it, not only those it is directly in.

    Raises:
        NotFound: GROUP_NOT_FOUND.
    """
    organization_id = get(snapshot, group_id).organization_id
    outer = select(GroupNesting.group_id.label("id")).where(
        GroupNesting.member_group_id == group_id
    )
    if recursive:
        outer = select(_with_all_above(outer).c.id)
    return _page_of(snapshot, organization_id, Group.id.in_(outer), page)


def membership_groups_page(
    snapshot: Snapshot, membership_id: str, *, recursive: bool = False, page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of the groups a membership is in, newest first.

    Args:
        recursive: All it belongs to (M10a), everyone included.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND.
    """
    organization_id = memberships.get(snapshot, membership_id).organization_id
    direct = select(GroupMember.group_id.label("id")).where(
        GroupMember.membership_id == membership_id
    )
    belongs: ColumnElement[bool] = Group.id.in_(direct)
    if recursive:
        above = select(_with_all_above(direct).c.id)
        # Everyone is in no group, so nothing lies above it.
        everyone = select(Organization.everyone_group_id).where(Organization.id == organization_id)
        belongs = or_(Group.id.in_(above), Group.id == everyone.scalar_subquery())
    return _page_of(snapshot, organization_id, belongs, page)


def _page_of(
    snapshot: Snapshot, organization_id: str, condition: ColumnElement[bool], page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    # The organization bounds the walk, whichever side the database begins at.
    statement = select(*Group.__table__.columns).where(
        Group.organization_id == organization_id, condition
    )
    return paging.newest_first(snapshot, statement, Group.id, page)


def _with_all_above(group_ids: Select[Any]) -> CTE:
    """Returns these groups and all that contain them, each once, as ``id``."""
    found = group_ids.cte("above", recursive=True)
    return found.union(
        select(GroupNesting.group_id).join(found, GroupNesting.member_group_id == found.c.id)
    )


def _longest_chain(tx: Transaction, group_ids: Collection[str], *, upwards: bool) -> int:
    """Returns how many groups the longest chain has that begins at one of these, itself included.

    Args:
        upwards: Each next group contains the one before, else lies in it.
    """
    near, far = GroupNesting.member_group_id, GroupNesting.group_id
    if not upwards:
        near, far = far, near
    chain = (
        select(Group.id.label("id"), literal(1).label("length"))
        .where(tx.dialect.among(Group.id, group_ids))
        .cte("chain", recursive=True)
    )
    chain = chain.union(
        select(far, chain.c.length + 1)
        .join(chain, near == chain.c.id)
        .where(chain.c.length <= limits.GROUP_NESTING_MAX)
    )
    longest: int = tx.connection.execute(select(func.max(chain.c.length))).scalar_one()
    return longest


def _change_members(
    tx: Transaction, group_id: str, add: Sequence[Subject], remove: Sequence[Subject]
) -> tuple[Group, list[Subject], list[Subject]]:
    """Changes what is directly in a group, after all checks.

    Returns:
        The group, what was not in it before and is now, and what was in it and is no more.
    """
    row = for_update(tx, group_id)
    add, remove = list(dict.fromkeys(add)), list(dict.fromkeys(remove))
    inner = _require_members(tx, row, [*add, *remove])
    refuse_built_in(row.kind)
    for member in add:
        if member.kind == GROUP:
            refuse_built_in(inner[member.id])
    present = _present(tx, row, [*add, *remove])
    added = [member for member in add if member not in present]
    removed = [member for member in remove if member in present]
    if added:
        _refuse_nesting(tx, row, _ids(added, GROUP))
        _refuse_too_many(tx, row, added, removed)
    for kind, table, column in _PLACES:
        gone, new = _ids(removed, kind), _ids(added, kind)
        if gone:
            tx.connection.execute(
                sql_delete(table).where(table.group_id == row.id, tx.dialect.among(column, gone))
            )
        if new:
            tx.connection.execute(
                insert(table),
                [
                    {
                        "organization_id": row.organization_id,
                        "group_id": row.id,
                        column.key: member_id,
                    }
                    for member_id in new
                ],
            )
    return row, added, removed


# Where each kind of member has its rows, and in which column its id.
_PLACES: tuple[tuple[str, Any, Any], ...] = (
    (MEMBERSHIP, GroupMember, GroupMember.membership_id),
    (GROUP, GroupNesting, GroupNesting.member_group_id),
)


def _ids(members: Iterable[Subject], kind: str) -> list[str]:
    return [member.id for member in members if member.kind == kind]


def _require_members(tx: Transaction, group: Group, members: Sequence[Subject]) -> dict[str, str]:
    """Looks members up in the order given and returns the kinds of the groups among them by id.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND; also for those of another organization.
    """
    found = {
        row.id
        for row in tx.connection.execute(
            select(Membership.id).where(
                Membership.organization_id == group.organization_id,
                tx.dialect.among(Membership.id, _ids(members, MEMBERSHIP)),
            )
        )
    }
    inner = {
        row.id: row.kind
        for row in tx.connection.execute(
            select(Group.id, Group.kind).where(
                Group.organization_id == group.organization_id,
                tx.dialect.among(Group.id, _ids(members, GROUP)),
            )
        )
    }
    for member in members:
        if member.kind == GROUP and member.id not in inner:
            raise not_found("member_group_id", member.id)
        if member.kind == MEMBERSHIP and member.id not in found:
            raise subject_not_found(member)
    return inner


def _present(tx: Transaction, group: Group, members: Sequence[Subject]) -> set[Subject]:
    """Returns those of the members that are directly in the group."""
    return {
        Subject(kind, member_id)
        for kind, table, column in _PLACES
        for (member_id,) in tx.connection.execute(
            select(column).where(
                table.group_id == group.id, tx.dialect.among(column, _ids(members, kind))
            )
        )
    }


def _refuse_nesting(tx: Transaction, group: Group, inner_ids: Collection[str]) -> None:
    """Refuses groups that may not go into a group (GR2).

    What the same call takes out cannot matter: a chain through a new place uses no other place
    directly in the group.

    Raises:
        FailedPrecondition: GROUP_CYCLE, GROUP_DEPTH_EXCEEDED.
    """
    if not inner_ids:
        return
    above = _with_all_above(select(Group.id.label("id")).where(Group.id == group.id))
    if tx.connection.execute(
        select(above.c.id).where(tx.dialect.among(above.c.id, inner_ids))
    ).first():
        raise errors.FailedPrecondition(
            "GROUP_CYCLE", "a group cannot be in itself or in a group that is in it"
        )
    actual = _longest_chain(tx, [group.id], upwards=True)
    actual += _longest_chain(tx, inner_ids, upwards=False)
    if actual > limits.GROUP_NESTING_MAX:
        raise errors.FailedPrecondition(
            "GROUP_DEPTH_EXCEEDED",
            f"{actual} groups would be each in the next,"
            f" at most {limits.GROUP_NESTING_MAX} are allowed",
            metadata={"maximum": limits.GROUP_NESTING_MAX, "actual": actual},
        )


def _refuse_too_many(
    tx: Transaction, group: Group, added: Sequence[Subject], removed: Sequence[Subject]
) -> None:
    """Refuses a result above a limit.

    Raises:
        ResourceExhausted: LIMIT_REACHED (group_members, group_groups, membership_groups).
    """
    maxima = {
        MEMBERSHIP: ("group_members", tx.limits.group_members_max),
        GROUP: ("group_groups", tx.limits.group_groups_max),
    }
    for kind, table, column in _PLACES:
        more = len(_ids(added, kind)) - len(_ids(removed, kind))
        limit, maximum = maxima[kind]
        if more > 0:
            present = _count(tx, select(column).where(table.group_id == group.id))
            if present + more > maximum:
                raise errors.limit_reached(limit, maximum=maximum)
    maximum = tx.limits.membership_groups_max
    full = (
        select(GroupMember.membership_id)
        .where(tx.dialect.among(GroupMember.membership_id, _ids(added, MEMBERSHIP)))
        .group_by(GroupMember.membership_id)
        .having(func.count() >= maximum)
    )
    if tx.connection.execute(full).first():
        raise errors.limit_reached("membership_groups", maximum=maximum)


def _count(tx: Transaction, statement: Select[Any]) -> int:
    return tx.connection.execute(
        select(func.count()).select_from(statement.subquery())
    ).scalar_one()


def _marked(members: Iterable[Subject]) -> set[str]:
    """Returns the tags of those whose places in groups change."""
    return {
        tags.group(member.id) if member.kind == GROUP else tags.membership(member.id)
        for member in members
    }


def _named(member: Subject) -> dict[str, str]:
    """Returns a member as requests name it, for events."""
    key = "member_group_id" if member.kind == GROUP else "organization_membership_id"
    return {key: member.id}


def _record(
    tx: Transaction,
    kind: str,
    row: Group,
    *,
    tags: Iterable[str],
    before: dict[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    after = view(row)
    events.record(
        tx,
        kind,
        realm=row.organization_id,
        target_type="group",
        target_id=row.id,
        data={**after, **(more or {})},
        previous=events.changes(before, after) if before else None,
        tags=tags,
    )

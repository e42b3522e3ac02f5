"""Role assignments: a membership or a group holds a role on a resource, perhaps with an end."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, CompoundSelect, Row, func, null, or_, select, union_all
from sqlalchemy import delete as sql_delete

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import Cursor, Page
from authz_service.domain import (
    events,
    groups,
    memberships,
    organizations,
    resource_types,
    resources,
    roles,
)
from authz_service.engine import limits, tags
from authz_service.engine.check import resource_not_found, subject_not_found
from authz_service.engine.facts import GROUP, MEMBERSHIP, ResourceRef, Subject
from authz_service.storage import assignments, paging, realms, searches
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import (
    Group,
    Membership,
    Resource,
    Role,
    RoleAssignment,
)

AnyAssignment = RoleAssignment | Row[Any]
# How long an ended assignment stays, for Explain and for whoever asks for it (RA2).
KEPT = limits.EXPIRED_KEPT_DAYS * 24 * 3_600 * 1_000_000

_SUBJECT_FIELDS = {MEMBERSHIP: "organization_membership_id", GROUP: "group_id"}


class Entry(NamedTuple):
    """A role assignment as a request names it.

    Attributes:
        subject: Of kind MEMBERSHIP or GROUP.
        expires_at: Microseconds since 1970; None = no end.
    """

    subject: Subject
    role_slug: str
    resource: ResourceRef
    expires_at: int | None = None

    @property
    def key(self) -> tuple[Subject, str, ResourceRef]:
        """What makes it unique (RA1)."""
        return self.subject, self.role_slug, self.resource


class Place(NamedTuple):
    """The resource on which a role is held, as answers and events show it."""

    id: str
    resource_type_slug: str
    external_id: str
    name: str


class Changed(NamedTuple):
    """What a batch did, as callers see it: removed ones as they were."""

    added: list[dict[str, Any]]
    updated: list[dict[str, Any]]
    removed: list[dict[str, Any]]


class _Resolved(NamedTuple):
    """An entry whose parts exist in one organization."""

    entry: Entry
    role: Any
    resource: Any

    @property
    def key(self) -> tuple[str, str, str]:
        return self.entry.subject.id, self.resource.id, self.role.id


class _Names(NamedTuple):
    """What views show beside the rows' own columns."""

    role_slugs: Mapping[str, str]
    places: Mapping[str, Place]


# --- what callers and events see -----------------------------------------------------------------


def view(row: AnyAssignment, role_slug: str, place: Place, now: int) -> dict[str, Any]:
    """Returns the role assignment as callers and events see it at an instant."""
    held_by = (
        {"group_id": row.group_id}
        if row.membership_id is None
        else {"organization_membership_id": row.membership_id}
    )
    return {
        "id": row.id,
        "organization_id": row.organization_id,
        **held_by,
        "role_id": row.role_id,
        "role_slug": role_slug,
        "resource": place._asdict(),
        "expires_at": None if row.expires_at is None else to_datetime(row.expires_at),
        "state": f"ROLE_ASSIGNMENT_STATE_{'EXPIRED' if has_ended(row, now) else 'ACTIVE'}",
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def views(snapshot: Snapshot, rows: Sequence[AnyAssignment]) -> list[dict[str, Any]]:
    """Returns role assignments as callers see them, in one statement for all."""
    if not rows:
        return []
    names = _names(snapshot, {row.role_id for row in rows}, {row.resource_id for row in rows})
    return [_seen(row, names, snapshot.now) for row in rows]


def has_ended(row: AnyAssignment, now: int) -> bool:
    """True if it grants no more: an end is the first instant without the grant (M12)."""
    return row.expires_at is not None and row.expires_at <= now


def tag_of(row: AnyAssignment) -> str:
    """Returns the tag that a change of the assignment marks."""
    if row.membership_id is not None:
        return tags.membership(row.membership_id)
    return tags.group(str(row.group_id))


def _names(snapshot: Snapshot, role_ids: Collection[str], resource_ids: Collection[str]) -> _Names:
    if not role_ids:
        return _Names({}, {})
    among = snapshot.dialect.among
    columns = (Resource.id, Resource.resource_type_slug, Resource.external_id, Resource.name)
    statement: CompoundSelect[Any] = union_all(
        select(*columns, null()).where(among(Resource.id, resource_ids)),
        # The slug comes last, so that the rows of roles can be told.
        select(Role.id, null(), null(), null(), Role.slug).where(among(Role.id, role_ids)),
    )
    role_slugs: dict[str, str] = {}
    places: dict[str, Place] = {}
    for *place, slug in snapshot.connection.execute(statement):
        if slug is None:
            places[place[0]] = Place(*place)
        else:
            role_slugs[place[0]] = slug
    return _Names(role_slugs, places)


def _seen(row: AnyAssignment, names: _Names, now: int) -> dict[str, Any]:
    return view(row, names.role_slugs[row.role_id], names.places[row.resource_id], now)


def _not_found(**named: str) -> errors.NotFound:
    return errors.NotFound("ROLE_ASSIGNMENT_NOT_FOUND", "no such role assignment", metadata=named)


# --- reads ---------------------------------------------------------------------------------------


def get(snapshot: Snapshot, role_assignment_id: str) -> Row[Any]:
    """Returns one role assignment, until 30 days after its end.

    Raises:
        NotFound: ROLE_ASSIGNMENT_NOT_FOUND.
    """
    row = snapshot.connection.execute(
        select(*RoleAssignment.__table__.columns).where(
            RoleAssignment.id == role_assignment_id, _ends_after(snapshot.now - KEPT)
        )
    ).one_or_none()
    if row is None or not snapshot.actor.may_see(row.organization_id):
        raise _not_found(role_assignment_id=role_assignment_id)
    return row


def page(
    snapshot: Snapshot,
    *,
    subject: Subject | None = None,
    resource: ResourceRef | None = None,
    organization_id: str = "",
    role_slug: str = "",
    resource_type_slug: str = "",
    include_groups: bool = False,
    include_expired: bool = False,
    include_total: bool = False,
    page: Page,
) -> tuple[Sequence[Row[Any]], Cursor | None, int | None]:
    """Returns one page of stored role assignments, newest first; never inherited ones.

    Args:
        subject, resource, organization_id: At least one; all that are given must meet.
        include_groups: With a subject, also those of every group it belongs to.
        include_expired: Also ended ones, for 30 days.
        include_total: Count all pages together.

    Returns:
        Rows, the cursor, and the count: None if not wanted or above its limit.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND, RESOURCE_NOT_FOUND,
            ORGANIZATION_NOT_FOUND, ROLE_NOT_FOUND, RESOURCE_TYPE_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED.
    """
    if subject is None and resource is None and not organization_id:
        named = ("organization_membership_id", "group_id", "resource", "organization_id")
        raise errors.InvalidArgument(
            "FIELD_REQUIRED",
            "a subject, a resource or an organization is required",
            metadata={"fields": ",".join(named)},
            fields=[(field, "one of these is required") for field in named],
        )
    homes: list[str] = []
    subject_ids: set[str] = set()
    resource_id = role_id = ""
    if subject is not None:
        homes.append(_home(snapshot, subject))
        subject_ids.add(subject.id)
        if include_groups:
            subject_ids |= searches.holders(snapshot, subject)
    if resource is not None:
        place = resources.find(snapshot, resource)
        homes.append(place.organization_id)
        resource_id = place.id
    if organization_id:
        organizations.require(snapshot, organization_id)
        homes.append(organization_id)
    if role_slug:
        role_id = roles.find(snapshot, organization_id=homes[0], slug=role_slug).id
    if resource_type_slug:
        resource_types.require(snapshot, resource_type_slug)
    if len(set(homes)) > 1:
        # Of two organizations, nothing meets.
        return (), None, 0 if include_total else None
    wanted = assignments.Wanted(
        homes[0],
        subject_ids,
        resource_id,
        role_id,
        resource_type_slug,
        ends_after=snapshot.now - KEPT if include_expired else snapshot.now,
    )
    before = None if page.after is None else str(page.after[0])
    rows, after = paging.cut(
        assignments.page(snapshot, wanted, before=before, limit=page.size + 1), page
    )
    total = None
    if include_total:
        maximum = snapshot.limits.total_size_max
        counted = assignments.count(snapshot, wanted, limit=maximum + 1)
        total = counted if counted <= maximum else None
    return rows, after, total


def _ends_after(instant: int) -> ColumnElement[bool]:
    return or_(RoleAssignment.expires_at.is_(None), RoleAssignment.expires_at > instant)


def _home(snapshot: Snapshot, subject: Subject) -> str:
    """Returns the organization of a subject.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND.
    """
    if subject.kind == GROUP:
        return str(groups.get(snapshot, subject.id).organization_id)
    return str(memberships.get(snapshot, subject.id).organization_id)


# --- writes of one -------------------------------------------------------------------------------


def create(tx: Transaction, entry: Entry) -> dict[str, Any]:
    """Assigns a role; an ended assignment of the same three makes room.

    Returns:
        The role assignment as callers see it.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND, ROLE_NOT_FOUND, RESOURCE_NOT_FOUND.
        AlreadyExists: ROLE_ASSIGNMENT_EXISTS.
        InvalidArgument: FIELD_INVALID, ROLE_RESOURCE_TYPE_MISMATCH,
            ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY.
        ResourceExhausted: LIMIT_REACHED (role_assignments).
    """
    slugs.role_slug("role_slug", entry.role_slug)
    _require_future("expires_at", entry.expires_at, tx.now)
    organization_id = _home(tx, entry.subject)
    realms.lock(tx, organization_id, definitions=True)
    (resolved,) = _resolve(tx, organization_id, [entry])
    _judge(resolved)
    present = _stored(tx, [resolved.key])
    row = present.get(resolved.key)
    if row is not None and not has_ended(row, tx.now):
        raise errors.AlreadyExists(
            "ROLE_ASSIGNMENT_EXISTS",
            "the subject holds this role on this resource",
            metadata={"role_assignment_id": row.id},
        )
    return _change(tx, organization_id, [resolved], present, ()).added[0]


def update(
    tx: Transaction, role_assignment_id: str, changes: Mapping[str, Any], *, etag: str = ""
) -> dict[str, Any]:
    """Gives a role assignment another end; an ended one comes back to life.

    Args:
        changes: ``expires_at``, in microseconds since 1970; None = no end.

    Returns:
        The role assignment as callers see it.

    Raises:
        NotFound: ROLE_ASSIGNMENT_NOT_FOUND.
        InvalidArgument: FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
        ResourceExhausted: LIMIT_REACHED (role_assignments).
    """
    expires_at = changes.get("expires_at")
    _require_future("role_assignment.expires_at", expires_at, tx.now)
    row = _for_update(tx, role_assignment_id)
    events.check_etag(row, etag)
    names = _names(tx, {row.role_id}, {row.resource_id})
    before = _seen(row, names, tx.now)
    if "expires_at" not in changes or row.expires_at == expires_at:
        return before
    record_end(tx, row, before)
    row.expires_at = expires_at
    after = _record_updated(tx, row, names, before)
    _refuse_too_many(tx, {row.membership_id or row.group_id})
    return after


def delete(
    tx: Transaction,
    role_assignment_id: str = "",
    *,
    entry: Entry | None = None,
    etag: str = "",
    allow_missing: bool = False,
) -> None:
    """Deletes a role assignment, ended or not, named by its id or by what makes it unique.

    Raises:
        NotFound: ROLE_ASSIGNMENT_NOT_FOUND, unless ``allow_missing``.
        InvalidArgument: FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    try:
        row = _by_key(tx, entry) if entry is not None else _for_update(tx, role_assignment_id)
    except errors.NotFound:
        if allow_missing:
            return
        raise
    events.check_etag(row, etag)
    (seen,) = views(tx, [row])
    record_end(tx, row, seen)
    _record(tx, "role_assignment.deleted", row, seen)
    _remove(tx, [row])


def _for_update(tx: Transaction, role_assignment_id: str) -> RoleAssignment:
    """Locks the realm of a role assignment and returns its row."""
    organization_id = get(tx, role_assignment_id).organization_id
    realms.lock(tx, organization_id)
    row = tx.session.get(RoleAssignment, (organization_id, role_assignment_id))
    if row is None:
        raise _not_found(role_assignment_id=role_assignment_id)
    return row


def _by_key(tx: Transaction, entry: Entry) -> RoleAssignment:
    """Locks the realm of a role assignment and returns its row; whatever lacks, it lacks."""
    slugs.role_slug("key.role_slug", entry.role_slug)
    ref = entry.resource
    named = {_SUBJECT_FIELDS[entry.subject.kind]: entry.subject.id, "role_slug": entry.role_slug}
    if ref.id:
        named["resource_id"] = ref.id
    else:
        named |= {
            "organization_id": ref.organization_id,
            "resource_type_slug": ref.resource_type_slug,
            "external_id": ref.external_id,
        }
    try:
        organization_id = _home(tx, entry.subject)
        realms.lock(tx, organization_id)
        role = roles.find(tx, organization_id=organization_id, slug=entry.role_slug)
        resource = resources.find(tx, ref, organization_id=organization_id)
    except errors.NotFound:
        raise _not_found(**named) from None
    key = (entry.subject.id, resource.id, role.id)
    row = _stored(tx, [key]).get(key)
    if row is None or has_ended(row, tx.now - KEPT):
        raise _not_found(**named)
    return row


# --- writes of many ------------------------------------------------------------------------------


def replace(
    tx: Transaction,
    *,
    subject: Subject,
    resource: ResourceRef,
    roles: Sequence[tuple[str, int | None]],
) -> list[dict[str, Any]]:
    """Makes the roles that a subject holds itself on one resource exactly these.

    Ended assignments that no given role takes the place of stay as they are.

    Args:
        roles: Slug and end of each, at most 50.

    Returns:
        The subject's own assignments there, as callers see them, newest first.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND, RESOURCE_NOT_FOUND, ROLE_NOT_FOUND.
        InvalidArgument: FIELD_INVALID, REQUEST_TOO_LARGE, ROLE_RESOURCE_TYPE_MISMATCH,
            ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY.
        ResourceExhausted: LIMIT_REACHED (role_assignments).
    """
    if len(roles) > limits.SET_ROLES_MAX:
        raise errors.request_too_large("roles", maximum=limits.SET_ROLES_MAX, actual=len(roles))
    named: set[str] = set()
    for i, (slug, expires_at) in enumerate(roles):
        slugs.role_slug(f"roles[{i}].role_slug", slug)
        if slug in named:
            raise errors.field_invalid(f"roles[{i}].role_slug", "each role once")
        named.add(slug)
        _require_future(f"roles[{i}].expires_at", expires_at, tx.now)
    organization_id = _home(tx, subject)
    realms.lock(tx, organization_id, definitions=True)
    _require_subjects(tx, organization_id, [subject])
    place = resources.find(tx, resource, organization_id=organization_id)
    ref = ResourceRef(place.id)
    wanted = _resolve(
        tx, organization_id, [Entry(subject, slug, ref, expires_at) for slug, expires_at in roles]
    )
    for resolved in wanted:
        _judge(resolved)
    held = {
        (subject.id, place.id, row.role_id): row
        for row in tx.session.scalars(
            select(RoleAssignment).where(
                RoleAssignment.subject_id == subject.id, RoleAssignment.resource_id == place.id
            )
        )
    }
    kept = {resolved.key for resolved in wanted}
    gone = [row for key, row in held.items() if key not in kept and not has_ended(row, tx.now)]
    _change(tx, organization_id, wanted, held, gone, is_batch=True)
    present = select(*RoleAssignment.__table__.columns).where(
        RoleAssignment.subject_id == subject.id,
        RoleAssignment.resource_id == place.id,
        _ends_after(tx.now),
    )
    tx.session.flush()
    rows = tx.connection.execute(present.order_by(RoleAssignment.id.desc())).all()
    return views(tx, rows)


def modify(
    tx: Transaction,
    *,
    organization_id: str,
    add: Sequence[Entry] = (),
    remove: Sequence[Entry] = (),
) -> Changed:
    """Adds and removes role assignments of one organization, all or nothing.

    Args:
        add: One that exists takes the given end; equal ones are skipped.
        remove: Absent and ended ones are skipped. 1 to 100 entries in both together.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND, MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND, ROLE_NOT_FOUND,
            RESOURCE_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, FIELDS_EXCLUSIVE, REQUEST_TOO_LARGE,
            ROLE_RESOURCE_TYPE_MISMATCH, ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY.
        ResourceExhausted: LIMIT_REACHED (role_assignments).
    """
    actual = len(add) + len(remove)
    if not actual:
        raise errors.field_required("add")
    if actual > limits.MODIFY_ENTRIES_MAX:
        raise errors.request_too_large(
            "add" if add else "remove", maximum=limits.MODIFY_ENTRIES_MAX, actual=actual
        )
    for field, entries in (("add", add), ("remove", remove)):
        for i, entry in enumerate(entries):
            slugs.role_slug(f"{field}[{i}].role_slug", entry.role_slug)
            _require_future(f"{field}[{i}].expires_at", entry.expires_at, tx.now)
    _refuse_in_both([entry.key for entry in add], [entry.key for entry in remove])
    realms.lock(tx, organization_id, definitions=True)
    organizations.require(tx, organization_id)
    found = _resolve(tx, organization_id, [*add, *remove])
    added, removed = found[: len(add)], found[len(add) :]
    # One resource may be named by its id and by its key.
    keys, gone_keys = [each.key for each in added], [each.key for each in removed]
    _refuse_in_both(keys, gone_keys)
    wanted: dict[tuple[str, str, str], _Resolved] = {}
    for i, resolved in enumerate(added):
        _judge(resolved)
        if wanted.setdefault(resolved.key, resolved).entry.expires_at != resolved.entry.expires_at:
            raise errors.field_invalid(f"add[{i}]", "each assignment with one end")
    present = _stored(tx, {*keys, *gone_keys})
    gone = [
        present[key]
        for key in dict.fromkeys(gone_keys)
        if key in present and not has_ended(present[key], tx.now)
    ]
    return _change(tx, organization_id, list(wanted.values()), present, gone, is_batch=True)


def _require_future(field: str, instant: int | None, now: int) -> None:
    if instant is not None and instant <= now:
        raise errors.field_invalid(field, "in the future")


def _refuse_in_both(add: Sequence[object], remove: Sequence[object]) -> None:
    for i, key in enumerate(add):
        if key in remove:
            raise errors.fields_exclusive(
                f"add[{i}]", f"remove[{remove.index(key)}]", rule="one entry in both lists"
            )


def _resolve(tx: Transaction, organization_id: str, entries: Sequence[Entry]) -> list[_Resolved]:
    """Looks up what entries name, in their order, in a few statements for all.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND, ROLE_NOT_FOUND, RESOURCE_NOT_FOUND; also
            for what belongs to another organization.
    """
    subjects = _existing(tx, organization_id, {entry.subject for entry in entries})
    found_roles = {
        row.slug: row
        for row in tx.connection.execute(
            select(Role.id, Role.slug, Role.resource_type_slug).where(
                Role.realm.in_((ENVIRONMENT, organization_id)),
                tx.dialect.among(Role.slug, {entry.role_slug for entry in entries}),
            )
        )
    }
    places = _places(tx, organization_id, {entry.resource for entry in entries})
    resolved = []
    for entry in entries:
        if entry.subject not in subjects:
            raise subject_not_found(entry.subject)
        if entry.role_slug not in found_roles:
            raise roles.not_found(role_slug=entry.role_slug)
        if entry.resource not in places:
            raise resource_not_found(entry.resource)
        resolved.append(_Resolved(entry, found_roles[entry.role_slug], places[entry.resource]))
    return resolved


def _existing(tx: Transaction, organization_id: str, subjects: Iterable[Subject]) -> set[Subject]:
    """Returns those of the subjects that are there, in this organization."""
    tables: dict[str, type[Membership] | type[Group]] = {MEMBERSHIP: Membership, GROUP: Group}
    found = set()
    for kind, table in tables.items():
        wanted = [subject.id for subject in subjects if subject.kind == kind]
        if wanted:
            rows = tx.connection.execute(
                select(table.id).where(
                    table.organization_id == organization_id, tx.dialect.among(table.id, wanted)
                )
            )
            found |= {Subject(kind, row.id) for row in rows}
    return found


def _require_subjects(tx: Transaction, organization_id: str, subjects: Sequence[Subject]) -> None:
    found = _existing(tx, organization_id, subjects)
    for subject in subjects:
        if subject not in found:
            raise subject_not_found(subject)


def _places(
    tx: Transaction, organization_id: str, refs: Collection[ResourceRef]
) -> dict[ResourceRef, Row[Any]]:
    """Returns those of the resources that are there, in this organization."""
    columns = select(*Resource.__table__.columns).where(Resource.organization_id == organization_id)
    found: dict[ResourceRef, Row[Any]] = {}
    by_id = {ref.id for ref in refs if ref.id}
    if by_id:
        rows = tx.connection.execute(columns.where(tx.dialect.among(Resource.id, by_id)))
        found.update((ResourceRef(row.id), row) for row in rows)
    by_type: dict[str, set[str]] = {}
    for ref in refs:
        if not ref.id and ref.organization_id == organization_id:
            by_type.setdefault(ref.resource_type_slug, set()).add(ref.external_id)
    for slug, external_ids in by_type.items():
        rows = tx.connection.execute(
            columns.where(
                Resource.resource_type_slug == slug,
                tx.dialect.among(Resource.external_id, external_ids),
            )
        )
        for row in rows:
            found[ResourceRef("", organization_id, slug, row.external_id)] = row
    return found


def _judge(resolved: _Resolved) -> None:
    """Refuses a role on a resource that it cannot be held on.

    Raises:
        InvalidArgument: ROLE_RESOURCE_TYPE_MISMATCH, ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY.
    """
    entry, role, resource = resolved
    if role.resource_type_slug != resource.resource_type_slug:
        raise errors.InvalidArgument(
            "ROLE_RESOURCE_TYPE_MISMATCH",
            "the role belongs to another resource type",
            metadata={
                "role_slug": role.slug,
                "role_type": role.resource_type_slug,
                "resource_type": resource.resource_type_slug,
            },
        )
    if entry.subject.kind == MEMBERSHIP and resource.parent_id is None:
        raise errors.InvalidArgument(
            "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY",
            "organization-level roles of a membership are managed on the membership",
            metadata={"organization_membership_id": entry.subject.id},
        )


def _stored(
    tx: Transaction, keys: Collection[tuple[str, str, str]]
) -> dict[tuple[str, str, str], RoleAssignment]:
    """Returns the rows of these (subject, resource, role), ended ones too."""
    rows = tx.session.scalars(
        select(RoleAssignment).where(
            tx.dialect.among(RoleAssignment.id, assignments.of_keys(tx, keys))
        )
    )
    return {(row.subject_id, row.resource_id, row.role_id): row for row in rows}


def _change(
    tx: Transaction,
    organization_id: str,
    wanted: Sequence[_Resolved],
    present: Mapping[tuple[str, str, str], RoleAssignment],
    gone: Sequence[RoleAssignment],
    *,
    is_batch: bool = False,
) -> Changed:
    """Creates what is wanted and not present, changes ends that differ, removes what is gone.

    Args:
        present: Rows of what is wanted, ended ones too.
        is_batch: One event tells of the whole, those of the single changes follow it.

    Raises:
        ResourceExhausted: LIMIT_REACHED (role_assignments).
    """
    rows = [*present.values(), *gone]
    names = _names(
        tx,
        {row.role_id for row in rows} | {each.role.id for each in wanted},
        {row.resource_id for row in rows} | {each.resource.id for each in wanted},
    )
    new: list[tuple[str, _Resolved]] = []
    other_end: list[tuple[RoleAssignment, int | None]] = []
    for each in wanted:
        row = present.get(each.key)
        if row is not None and not has_ended(row, tx.now):
            if row.expires_at != each.entry.expires_at:
                other_end.append((row, each.entry.expires_at))
            continue
        if row is not None:
            # Its place is needed now; whoever follows the events learns of its end first.
            record_end(tx, row, _seen(row, names, tx.now))
            _remove(tx, [row])
        new.append((ids.new(ids.ROLE_ASSIGNMENT), each))
    changed = Changed([], [], [])
    if is_batch and (new or other_end or gone):
        events.record(
            tx,
            "role_assignment.batch_changed",
            realm=organization_id,
            target_type="organization",
            target_id=organization_id,
            data={
                "organization_id": organization_id,
                "added_role_assignment_ids": [new_id for new_id, _ in new],
                "updated_role_assignment_ids": [row.id for row, _ in other_end],
                "removed_role_assignment_ids": [row.id for row in gone],
            },
            # The events that follow mark each subject.
            tags=(),
        )
    for new_id, each in new:
        row = tx.add(
            RoleAssignment(
                organization_id=organization_id,
                id=new_id,
                membership_id=each.entry.subject.id if each.entry.subject.kind != GROUP else None,
                group_id=each.entry.subject.id if each.entry.subject.kind == GROUP else None,
                role_id=each.role.id,
                resource_id=each.resource.id,
                expires_at=each.entry.expires_at,
                is_end_recorded=False,
                **events.stamp(tx, organization_id),
            )
        )
        seen = _seen(row, names, tx.now)
        _record(tx, "role_assignment.created", row, seen)
        changed.added.append(seen)
    for row, expires_at in other_end:
        before = _seen(row, names, tx.now)
        row.expires_at = expires_at
        changed.updated.append(_record_updated(tx, row, names, before))
    for row in gone:
        seen = _seen(row, names, tx.now)
        _record(tx, "role_assignment.deleted", row, seen)
        changed.removed.append(seen)
    _remove(tx, gone)
    _refuse_too_many(tx, {each.entry.subject.id for _, each in new})
    return changed


def _remove(tx: Transaction, rows: Collection[RoleAssignment]) -> None:
    """Removes rows at once: the session would insert what takes their place before it deletes."""
    if not rows:
        return
    for row in rows:
        tx.session.expunge(row)
    tx.connection.execute(
        sql_delete(RoleAssignment).where(
            tx.dialect.among(RoleAssignment.id, [row.id for row in rows])
        )
    )


def _refuse_too_many(tx: Transaction, subject_ids: Collection[Any]) -> None:
    """Judges the limit per subject on the result; what has ended does not count.

    Raises:
        ResourceExhausted: LIMIT_REACHED (role_assignments).
    """
    if not subject_ids:
        return
    tx.session.flush()
    maximum = tx.limits.role_assignments_max
    full = (
        select(RoleAssignment.subject_id)
        .where(tx.dialect.among(RoleAssignment.subject_id, subject_ids), _ends_after(tx.now))
        .group_by(RoleAssignment.subject_id)
        .having(func.count() > maximum)
    )
    if tx.connection.execute(full).first() is not None:
        raise errors.limit_reached("role_assignments", maximum=maximum)


# --- events --------------------------------------------------------------------------------------


def record_end(tx: Transaction, row: AnyAssignment, seen: Mapping[str, Any]) -> None:
    """Records that an assignment has ended, if it has and nobody did so yet (RA2).

    Args:
        row: Of a locked realm; it goes, gets another end, or is noted as recorded right after.
        seen: The assignment as callers see it now.
    """
    if row.is_end_recorded or not has_ended(row, tx.now):
        return
    events.record(
        tx,
        "role_assignment.expired",
        realm=row.organization_id,
        target_type="role_assignment",
        target_id=row.id,
        data=seen,
        # Whoever remembers the grant remembers its end with it and judges that by the clock
        # (consistency.md 3.1): the passing of an end changes no fact, and neither does its record.
        tags=(),
        by_system=True,
    )


def _record_updated(
    tx: Transaction, row: RoleAssignment, names: _Names, before: Mapping[str, Any]
) -> dict[str, Any]:
    row.is_end_recorded = False
    events.touch(tx, row.organization_id, row)
    after = _seen(row, names, tx.now)
    _record(tx, "role_assignment.updated", row, after, before=before)
    return after


def _record(
    tx: Transaction,
    kind: str,
    row: RoleAssignment,
    seen: Mapping[str, Any],
    *,
    before: Mapping[str, Any] | None = None,
) -> None:
    events.record(
        tx,
        kind,
        realm=row.organization_id,
        target_type="role_assignment",
        target_id=row.id,
        data=seen,
        previous=events.changes(before, seen) if before else None,
        tags=(tag_of(row),),
    )

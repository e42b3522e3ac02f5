"""The role assignments of one organization of a directory file against the stored ones."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from authz_service.base import ids
from authz_service.base.clock import microseconds
from authz_service.domain.directory_files.changes import (
    CREATED,
    UNCHANGED,
    UPDATED,
    Changes,
    touched,
)
from authz_service.domain.directory_files.definitions import ORGANIZATION_TYPE, Definitions
from authz_service.domain.directory_files.findings import Findings
from authz_service.domain.directory_files.people import People
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import RoleAssignment

if TYPE_CHECKING:
    from authz_service.domain.directory_files.organizations import Part

EVERYONE_NAME = "everyone"


def judge_assignments(
    snapshot: Snapshot,
    changes: Changes,
    findings: Findings,
    part: "Part",
    definitions: Definitions,
    people: People,
) -> None:
    """Compares assignments with the stored ones; those that have ended are skipped."""
    judged: dict[tuple[str, str, str], tuple[str, int | None]] = {}
    for number, entry in enumerate(part.entry.get("role_assignments", ())):
        path = f"{part.path}.role_assignments[{number}]"
        key = _key(findings, part, path, entry, definitions, people)
        end = _end(findings, path, entry)
        if key is None or (end is not None and end <= snapshot.now):
            continue
        if key in judged:
            findings.add(path, "ROLE_ASSIGNMENT_EXISTS", "the assignment stands here twice")
            continue
        judged[key] = (path, end)
    subjects = {subject for subject, _, _ in judged}
    stored = _stored(snapshot, subjects)
    totals: dict[str, int] = {}
    for subject, _, _ in stored:
        totals[subject] = totals.get(subject, 0) + 1
    for key, (path, end) in judged.items():
        subject, role_id, resource_id = key
        found = stored.get(key)
        if found is None:
            totals[subject] = totals.get(subject, 0) + 1
            is_group = ids.is_id(subject, ids.GROUP)
            changes.insert(
                RoleAssignment,
                organization_id=part.id,
                id=ids.new(ids.ROLE_ASSIGNMENT),
                membership_id=None if is_group else subject,
                group_id=subject if is_group else None,
                role_id=role_id,
                resource_id=resource_id,
                expires_at=end,
                is_end_recorded=False,
                **part.stamp,
            )
            changes.count("role_assignment", CREATED, part.id)
        elif found[1] == end:
            changes.count("role_assignment", UNCHANGED, part.id)
        else:
            changes.update(
                RoleAssignment,
                {"organization_id": part.id, "id": found[0]},
                expires_at=end,
                is_end_recorded=False,
                **touched(part.stamp),
            )
            changes.count("role_assignment", UPDATED, part.id)
        maximum = snapshot.limits.role_assignments_max
        if totals[subject] > maximum:
            findings.add(path, "LIMIT_REACHED", f"a subject has at most {maximum} assignments")


def _key(
    findings: Findings,
    part: "Part",
    path: str,
    entry: dict[str, Any],
    definitions: Definitions,
    people: People,
) -> tuple[str, str, str] | None:
    """Returns (subject, role, resource) ids, None after a finding."""
    if ("group" in entry) == ("user" in entry):
        reason = "FIELDS_EXCLUSIVE" if "group" in entry else "FIELD_REQUIRED"
        findings.add(path, reason, "names either a group or a user")
        return None
    role = definitions.find_role(part.id, entry["role"])
    if role is None:
        findings.add(f"{path}.role", "ROLE_NOT_FOUND", f"there is no role {entry['role']}")
        return None
    place = (entry["resource"]["type"], entry["resource"]["external_id"])
    resource_id = part.resources.get(place)
    if resource_id is None:
        findings.add(f"{path}.resource", "RESOURCE_NOT_FOUND", f"there is no {place[0]} {place[1]}")
        return None
    if role[1] != place[0]:
        findings.add(
            f"{path}.role",
            "ROLE_RESOURCE_TYPE_MISMATCH",
            f"role {entry['role']} belongs to type {role[1]}",
        )
        return None
    if "group" in entry:
        name = entry["group"]
        group_id = part.everyone_id if name == EVERYONE_NAME else part.groups.get(name)
        if group_id is None:
            findings.add(f"{path}.group", "GROUP_NOT_FOUND", f"there is no group {name}")
            return None
        return group_id, role[0], resource_id
    user_id = people.find(entry["user"])
    membership_id = part.members.get(user_id) if user_id else None
    if membership_id is None:
        findings.add(
            f"{path}.user",
            "MEMBERSHIP_NOT_FOUND",
            f"{entry['user']} is no member of the organization",
        )
        return None
    if role[1] == ORGANIZATION_TYPE:
        findings.add(
            f"{path}.role",
            "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY",
            "a member's roles on the organization stand with the membership",
        )
        return None
    return membership_id, role[0], resource_id


def _end(findings: Findings, path: str, entry: dict[str, Any]) -> int | None:
    given = entry.get("expires_at")
    if given is None:
        return None
    try:
        end = datetime.fromisoformat(given)
    except ValueError:
        end = None
    if end is None or end.tzinfo is None:
        findings.add(
            f"{path}.expires_at", "FIELD_INVALID", "must be an instant like 2030-01-01T00:00:00Z"
        )
        return None
    return microseconds(end.astimezone(UTC))


def _stored(
    snapshot: Snapshot, subjects: set[str]
) -> dict[tuple[str, str, str], tuple[str, int | None]]:
    if not subjects:
        return {}
    table = RoleAssignment.__table__.c
    rows = snapshot.connection.execute(
        select(
            table.id, table.subject_id, table.role_id, table.resource_id, table.expires_at
        ).where(snapshot.dialect.among(table.subject_id, subjects))
    )
    return {
        (row.subject_id, row.role_id, row.resource_id): (row.id, row.expires_at) for row in rows
    }

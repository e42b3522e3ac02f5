"""Applies a directory file: everything in one transaction, or nothing (product.md DF1)."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import or_, select

from authz_service.base import errors, ids, slugs
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import configuration, events
from authz_service.domain.directory_files.changes import Changes
from authz_service.domain.directory_files.definitions import Definitions
from authz_service.domain.directory_files.findings import Findings
from authz_service.domain.directory_files.organizations import Organizations, Part, Settings
from authz_service.domain.directory_files.people import People
from authz_service.engine import tags
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Organization, OrganizationConfiguration

Counts = Mapping[str, Mapping[str, int]]


def apply(
    tx: Transaction, content: dict[str, Any], findings: Findings, *, validate_only: bool = False
) -> Counts:
    """Makes the directory hold what the file says, and returns what that changed.

    Args:
        content: From ``parse``.
        findings: Those of ``parse``; more are added.
        validate_only: Judge and count, write nothing.

    Returns:
        Kind to how many were created, updated and unchanged.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: DIRECTORY_FILE_INVALID with every finding.
    """
    tx.actor.require_unrestricted()
    # Shapes first: rules about objects make no sense for what has no shape.
    findings.refuse()
    entries = content.get("organizations", [])
    stored = _stored(tx, entries)
    realms.lock(tx, *(row.id for row in stored.values()), environment=True)
    # Read again: what was read before the lock may have changed meanwhile.
    stored = _stored(tx, entries)
    parts = _parts(tx, entries, stored, findings)
    stamps = {part.id: part.stamp for part in parts}
    stamps[ENVIRONMENT] = events.stamp(tx, ENVIRONMENT)
    changes = Changes()
    definitions = Definitions(tx, changes, findings, stamps.__getitem__)
    definitions.judge_types(content.get("resource_types", []))
    definitions.judge_permissions(content.get("permissions", []))
    named = definitions.judge_roles(ENVIRONMENT, content.get("roles", []), "roles")
    definitions.load_roles([part.id for part in parts if part.stored is not None])
    for part in parts:
        start = f"{part.path}.roles"
        named |= definitions.judge_roles(part.id, part.entry.get("roles", []), start)
    definitions.judge_stored_roles(named)
    people = People(tx, changes, findings)
    people.judge(content.get("users", []), stamps[ENVIRONMENT])
    settings = _settings(tx)
    Organizations(tx, changes, findings, definitions, people, settings).judge(parts)
    findings.refuse()
    if changes.changed and not validate_only:
        realms.insert_drafts(tx, [part.id for part in parts if part.stored is None])
        _record(tx, changes, parts)
        changes.write(tx)
        # What the session may have read is not what the database holds any more.
        tx.session.expunge_all()
    return changes.counts


def _stored(tx: Transaction, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the stored organizations by the name they have in the file."""
    names = [entry["external_id"] for entry in entries]
    table = Organization.__table__.c
    settings = OrganizationConfiguration.__table__.c
    rows = tx.connection.execute(
        select(
            table.id,
            table.name,
            table.external_id,
            table.metadata_json,
            table.everyone_group_id,
            table.root_resource_id,
            settings.default_role_id,
        )
        .join(OrganizationConfiguration, settings.organization_id == table.id)
        .where(or_(tx.dialect.among(table.external_id, names), tx.dialect.among(table.id, names)))
    ).all()
    found = {row.id: row for row in rows}
    found.update({row.external_id: row for row in rows if row.external_id})
    return {name: found[name] for name in names if name in found}


def _parts(
    tx: Transaction,
    entries: list[dict[str, Any]],
    stored: dict[str, Any],
    findings: Findings,
) -> list[Part]:
    parts = []
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        path = f"organizations[{number}]"
        name = entry["external_id"]
        row = stored.get(name)
        try:
            slugs.external_id("external_id", name)
        except errors.Refusal as refusal:
            findings.refused(f"{path}.external_id", refusal)
            continue
        if name in seen or (row is not None and row.id in seen):
            findings.add(
                f"{path}.external_id", "EXTERNAL_ID_TAKEN", f"{name} stands in the file twice"
            )
            continue
        seen.add(name)
        if row is None:
            id = ids.new(ids.ORGANIZATION)
            realms.draft(tx, id)
            parts.append(
                Part(
                    path,
                    entry,
                    id,
                    events.stamp(tx, id),
                    None,
                    ids.new(ids.GROUP),
                    ids.new(ids.RESOURCE),
                )
            )
            continue
        seen.add(row.id)
        parts.append(
            Part(
                path,
                entry,
                row.id,
                events.stamp(tx, row.id),
                row,
                row.everyone_group_id,
                row.root_resource_id,
                row.default_role_id,
            )
        )
    return parts


def _settings(tx: Transaction) -> Settings:
    row = configuration.current(tx)
    return Settings(
        default_role_id=row.default_role_id,
        owner_role_id=row.owner_role_id if row.last_owner_guard_enabled else None,
        multiple_roles_enabled=row.multiple_roles_enabled,
        resource_depth_max=row.resource_depth_max,
    )


def _record(tx: Transaction, changes: Changes, parts: list[Part]) -> None:
    events.record(
        tx,
        "directory.imported",
        realm=ENVIRONMENT,
        target_type="directory",
        target_id="directory",
        data={"counts": {kind: dict(counts) for kind, counts in changes.counts.items()}},
        # Users are part of no fact; types, permissions and roles are.
        tags=(tags.ENVIRONMENT_DEFINITIONS,) if ENVIRONMENT in changes.changed else (),
    )
    for part in parts:
        if part.id in changes.changed:
            events.record(
                tx,
                "organization.imported",
                realm=part.id,
                target_type="organization",
                target_id=part.id,
                data={"id": part.id, "name": part.entry["name"].strip()},
                tags=(tags.ORGANIZATION,),
            )

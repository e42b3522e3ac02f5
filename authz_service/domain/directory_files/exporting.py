"""Writes a directory file of what is stored; importing it elsewhere gives the same answers."""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import yaml
from sqlalchemy import select

from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import organizations
from authz_service.domain.directory_files.findings import Findings
from authz_service.domain.directory_files.organizations import EVERYONE_NAME
from authz_service.domain.directory_files.parse import FORMAT, JSON
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import (
    Group,
    GroupMember,
    GroupNesting,
    Membership,
    MembershipRole,
    Organization,
    Permission,
    Resource,
    ResourceType,
    ResourceTypeParent,
    Role,
    RoleAssignment,
    RolePermission,
    User,
)

_USER_TEXTS = ("first_name", "last_name", "name", "profile_picture_url", "phone_number", "locale")


def export(snapshot: Snapshot, organization_ids: Iterable[str], kind: str) -> bytes:
    """Returns a directory file of one consistent state.

    Args:
        organization_ids: Empty = all that the caller may see, and then all users too.
        kind: JSON or YAML.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
        InvalidArgument: DIRECTORY_FILE_INVALID for group names that a file cannot tell apart.
    """
    wanted = list(dict.fromkeys(organization_ids))
    for organization_id in wanted:
        organizations.require(snapshot, organization_id)
    findings = Findings()
    content = _Export(snapshot, wanted, findings).content()
    findings.refuse()
    if kind == JSON:
        return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
    text = yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    return str(text).encode()


class _Dumper(yaml.SafeDumper):
    """Equal lists are written twice: the import knows no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Export:
    def __init__(self, snapshot: Snapshot, organization_ids: list[str], findings: Findings) -> None:
        self._snapshot = snapshot
        self._organization_ids = organization_ids
        self._findings = findings

    def _rows(self, statement: Any) -> Any:
        return self._snapshot.connection.execute(statement)

    def content(self) -> dict[str, Any]:
        table = Organization.__table__.c
        statement = select(*table).order_by(table.id)
        visible = self._organization_ids or sorted(self._snapshot.actor.organization_ids)
        if visible:
            statement = statement.where(self._snapshot.dialect.among(table.id, visible))
        found = self._rows(statement).all()
        realms = [ENVIRONMENT, *(row.id for row in found)]
        roles = self._roles(realms)
        is_part = bool(visible)
        users = self._users([row.id for row in found] if is_part else None)
        return {
            "format": FORMAT,
            "resource_types": self._types(),
            "permissions": self._permissions(),
            "roles": list(roles[ENVIRONMENT]),
            "users": [entry for _, entry in users.values()],
            "organizations": [
                self._organization(number, row, roles[row.id], users)
                for number, row in enumerate(found)
            ],
        }

    def _types(self) -> list[dict[str, Any]]:
        parents: dict[str, list[str]] = defaultdict(list)
        table = ResourceTypeParent.__table__.c
        for slug, parent in self._rows(
            select(table.slug, table.parent_slug).order_by(table.slug, table.parent_slug)
        ):
            parents[slug].append(parent)
        types = ResourceType.__table__.c
        return [
            _without_empty(
                slug=row.slug,
                name=row.name,
                description=row.description,
                parent_type_slugs=parents[row.slug],
            )
            for row in self._rows(select(*types).where(~types.is_built_in).order_by(types.slug))
        ]

    def _permissions(self) -> list[dict[str, Any]]:
        table = Permission.__table__.c
        return [
            _without_empty(
                slug=row.slug,
                name=row.name,
                description=row.description,
                resource_type_slug=row.resource_type_slug,
                assignable_to_api_keys=row.assignable_to_api_keys,
            )
            for row in self._rows(select(*table).order_by(table.slug))
        ]

    def _roles(self, realms: list[str]) -> dict[str, list[dict[str, Any]]]:
        roles = Role.__table__.c
        contained = RolePermission.__table__.c
        among = self._snapshot.dialect.among
        permissions: dict[str, list[str]] = defaultdict(list)
        for role_id, slug in self._rows(
            select(contained.role_id, contained.permission_slug)
            .join(Role, roles.id == contained.role_id)
            .where(among(roles.realm, realms))
            .order_by(contained.role_id, contained.permission_slug)
        ):
            permissions[role_id].append(slug)
        made: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self._rows(select(*roles).where(among(roles.realm, realms)).order_by(roles.id)):
            entry = _without_empty(
                slug=row.slug,
                name=row.name,
                description=row.description,
                resource_type_slug=row.resource_type_slug,
            )
            # An empty list takes away what a seeded role holds elsewhere: it must be written.
            made[row.realm].append({**entry, "permissions": permissions[row.id]})
        return made

    def _users(self, organization_ids: list[str] | None) -> dict[str, tuple[str, dict[str, Any]]]:
        """Returns user id to its name in the file and its entry; None stands for all users."""
        table = User.__table__.c
        statement = select(*table).order_by(table.id)
        if organization_ids is not None:
            memberships = Membership.__table__.c
            among = self._snapshot.dialect.among(memberships.organization_id, organization_ids)
            statement = statement.where(table.id.in_(select(memberships.user_id).where(among)))
        users = {}
        for row in self._rows(statement):
            name = row.external_id or row.id
            entry = _without_empty(
                external_id=name,
                email=row.email,
                **{field: getattr(row, field) for field in _USER_TEXTS},
                metadata=dict(row.metadata_json),
            )
            users[row.id] = (name, {**entry, "email_verified": row.email_verified})
        return users

    def _organization(
        self,
        number: int,
        row: Any,
        roles: list[dict[str, Any]],
        users: dict[str, tuple[str, dict[str, Any]]],
    ) -> dict[str, Any]:
        members = self._members(row.id, users)
        groups = self._groups(number, row)
        resources = self._resources(row)
        return _without_empty(
            external_id=row.external_id or row.id,
            name=row.name,
            metadata=dict(row.metadata_json),
            roles=roles,
            memberships=[entry for _, entry in members.values()],
            groups=self._group_entries(row, groups, members),
            resources=[entry for _, entry in resources.values() if entry],
            role_assignments=self._assignments(row, groups, members, resources),
        )

    def _members(
        self, organization_id: str, users: dict[str, tuple[str, dict[str, Any]]]
    ) -> dict[str, tuple[str, dict[str, Any]]]:
        held = MembershipRole.__table__.c
        roles = Role.__table__.c
        slugs: dict[str, list[str]] = defaultdict(list)
        for membership_id, slug in self._rows(
            select(held.membership_id, roles.slug)
            .distinct()
            .join(Role, roles.id == held.role_id)
            .where(held.organization_id == organization_id)
            .order_by(held.membership_id, roles.slug)
        ):
            slugs[membership_id].append(slug)
        table = Membership.__table__.c
        made = {}
        for row in self._rows(
            select(table.id, table.user_id, table.status)
            .where(table.organization_id == organization_id, table.status != "PENDING")
            .order_by(table.id)
        ):
            name = users[row.user_id][0]
            made[row.id] = (
                name,
                {"user": name, "status": row.status.lower(), "roles": slugs[row.id]},
            )
        return made

    def _groups(self, number: int, organization: Any) -> dict[str, Any]:
        table = Group.__table__.c
        rows = self._rows(
            select(table.id, table.name, table.description, table.kind)
            .where(table.organization_id == organization.id)
            .order_by(table.id)
        ).all()
        names: set[str] = set()
        for row in rows:
            place = f"organizations[{number}].groups"
            if row.kind == "STANDARD" and row.name == EVERYONE_NAME:
                self._findings.add(
                    place, "GROUP_BUILT_IN", f"group {row.id} is called everyone: rename it"
                )
            elif row.name in names:
                self._findings.add(
                    place, "FIELD_INVALID", f"several groups are called {row.name}: rename them"
                )
            names.add(row.name)
        return {row.id: row for row in rows}

    def _group_entries(
        self,
        organization: Any,
        groups: dict[str, Any],
        members: dict[str, tuple[str, dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        of_group: dict[str, list[str]] = defaultdict(list)
        table = GroupMember.__table__.c
        for group_id, membership_id in self._rows(
            select(table.group_id, table.membership_id)
            .where(table.organization_id == organization.id)
            .order_by(table.group_id, table.membership_id)
        ):
            if membership_id in members:
                of_group[group_id].append(members[membership_id][0])
        inner: dict[str, list[str]] = defaultdict(list)
        nested = GroupNesting.__table__.c
        for group_id, member_id in self._rows(
            select(nested.group_id, nested.member_group_id)
            .where(nested.organization_id == organization.id)
            .order_by(nested.group_id, nested.member_group_id)
        ):
            inner[group_id].append(groups[member_id].name)
        return [
            {
                **_without_empty(name=row.name, description=row.description),
                "members": of_group[row.id],
                "groups": inner[row.id],
            }
            for row in groups.values()
            if row.kind == "STANDARD"
        ]

    def _resources(self, organization: Any) -> dict[str, tuple[dict[str, str], dict[str, Any]]]:
        """Returns resource id to its key in the file and its entry, empty for the root."""
        table = Resource.__table__.c
        rows = self._rows(
            select(
                table.id,
                table.resource_type_slug,
                table.external_id,
                table.name,
                table.description,
                table.parent_id,
            )
            .where(table.organization_id == organization.id)
            .order_by(table.depth, table.id)
        ).all()
        keys = {
            row.id: {"type": row.resource_type_slug, "external_id": row.external_id} for row in rows
        }
        root = organization.root_resource_id
        keys[root]["external_id"] = organization.external_id or organization.id
        made: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        for row in rows:
            entry = {}
            if row.id != root:
                entry = {
                    **_without_empty(**keys[row.id], name=row.name, description=row.description),
                    "parent": keys[row.parent_id],
                }
            made[row.id] = (keys[row.id], entry)
        return made

    def _assignments(
        self,
        organization: Any,
        groups: dict[str, Any],
        members: dict[str, tuple[str, dict[str, Any]]],
        resources: dict[str, tuple[dict[str, str], dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        table = RoleAssignment.__table__.c
        roles = Role.__table__.c
        made = []
        for row in self._rows(
            select(
                table.membership_id,
                table.group_id,
                table.resource_id,
                table.expires_at,
                roles.slug,
            )
            .join(Role, roles.id == table.role_id)
            .where(table.organization_id == organization.id)
            .order_by(table.id)
        ):
            has_ended = row.expires_at is not None and row.expires_at <= self._snapshot.now
            if has_ended or (row.membership_id and row.membership_id not in members):
                continue
            entry: dict[str, Any] = {"role": row.slug, "resource": resources[row.resource_id][0]}
            if row.group_id:
                entry["group"] = groups[row.group_id].name
            else:
                entry["user"] = members[row.membership_id][0]
            if row.expires_at is not None:
                instant = to_datetime(row.expires_at).isoformat(timespec="microseconds")
                entry["expires_at"] = instant.replace("+00:00", "Z")
            made.append(entry)
        return made


def _without_empty(**fields: Any) -> dict[str, Any]:
    """Returns the fields that say something."""
    return {name: value for name, value in fields.items() if value not in ("", [], {}, None, False)}

"""The organizations of a directory file against the stored ones."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from authz_service.base import errors, ids, slugs
from authz_service.domain.directory_files.assignments import judge_assignments
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
from authz_service.domain.directory_files.trees import judge_resources
from authz_service.engine import limits
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import (
    Group,
    GroupMember,
    GroupNesting,
    Membership,
    MembershipRole,
    Organization,
    OrganizationConfiguration,
    Resource,
    ResourceAncestor,
)

EVERYONE_NAME = "everyone"
ACTIVE, INACTIVE, PENDING = "ACTIVE", "INACTIVE", "PENDING"


@dataclass(slots=True)
class Settings:
    """What of the deployment's configuration an import must keep to.

    Attributes:
        owner_role_id: None if no role is the owner role, or the guard is off.
    """

    default_role_id: str
    owner_role_id: str | None
    multiple_roles_enabled: bool
    resource_depth_max: int


@dataclass(slots=True)
class Part:
    """One organization while it is judged.

    Attributes:
        path: Of its entry in the file.
        stored: Its row, None if it is new.
        members: User id to membership id, of the file's memberships and the stored ones it needs.
        groups: Name to id.
        resources: (type slug, external id) to resource id, of the result.
    """

    path: str
    entry: dict[str, Any]
    id: str
    stamp: Mapping[str, int]
    stored: Any | None
    everyone_id: str
    root_id: str
    default_role_id: str | None = None
    members: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    resources: dict[tuple[str, str], str] = field(default_factory=dict)
    resource_types: dict[str, str] = field(default_factory=dict)


class Organizations:
    """Judges all organizations of a file."""

    def __init__(
        self,
        snapshot: Snapshot,
        changes: Changes,
        findings: Findings,
        definitions: Definitions,
        people: People,
        settings: Settings,
    ) -> None:
        self._snapshot = snapshot
        self._changes = changes
        self._findings = findings
        self._definitions = definitions
        self._people = people
        self._settings = settings

    def judge(self, parts: list[Part]) -> None:
        """Compares organizations with what is stored of them; needs their realms locked."""
        names = {
            membership["user"] for part in parts for membership in part.entry.get("memberships", ())
        }
        names |= {
            assignment["user"]
            for part in parts
            for assignment in part.entry.get("role_assignments", ())
            if "user" in assignment
        }
        self._people.load(names)
        for part in parts:
            self._judge_organization(part)
            self._judge_memberships(part)
            self._judge_groups(part)
            judge_resources(
                self._snapshot,
                self._changes,
                self._findings,
                part,
                parents_of=self._definitions.parents,
                depth_max=self._settings.resource_depth_max,
            )
            judge_assignments(
                self._snapshot, self._changes, self._findings, part, self._definitions,
                self._people,
            )  # fmt: skip

    # --- the organization itself -------------------------------------------------------------

    def _judge_organization(self, part: Part) -> None:
        entry = part.entry
        try:
            name = slugs.display_name("name", entry["name"])
            metadata = slugs.metadata({}, entry.get("metadata", {}))
        except errors.Refusal as refusal:
            self._findings.refused(part.path, refusal)
            return
        if part.stored is None:
            self._create(part, name, metadata)
            return
        wanted = {"name": name}
        if "metadata" in entry:
            wanted["metadata_json"] = metadata  # type: ignore[assignment]
        if all(getattr(part.stored, key) == value for key, value in wanted.items()):
            self._changes.count("organization", UNCHANGED, part.id)
            return
        self._changes.update(Organization, {"id": part.id}, **wanted, **touched(part.stamp))
        if part.stored.name != name:
            self._changes.update(
                Resource,
                {"organization_id": part.id, "id": part.root_id},
                name=name,
                **touched(part.stamp),
            )
        self._changes.count("organization", UPDATED, part.id)

    def _create(self, part: Part, name: str, metadata: dict[str, str]) -> None:
        changes, stamp = self._changes, part.stamp
        changes.insert(
            Organization,
            id=part.id,
            name=name,
            external_id=part.entry["external_id"],
            metadata_json=metadata,
            everyone_group_id=part.everyone_id,
            root_resource_id=part.root_id,
            **stamp,
        )
        changes.insert(
            OrganizationConfiguration,
            organization_id=part.id,
            default_role_id=None,
            role_priority=None,
            **stamp,
        )
        changes.insert(
            Group,
            organization_id=part.id,
            id=part.everyone_id,
            kind="EVERYONE",
            name=EVERYONE_NAME,
            description="",
            **stamp,
        )
        changes.insert(
            Resource,
            organization_id=part.id,
            id=part.root_id,
            resource_type_slug=ORGANIZATION_TYPE,
            external_id=part.id,
            name=name,
            description="",
            parent_id=None,
            depth=0,
            path=part.root_id,
            **stamp,
        )
        changes.insert(
            ResourceAncestor,
            organization_id=part.id,
            ancestor_id=part.root_id,
            resource_type_slug=ORGANIZATION_TYPE,
            resource_id=part.root_id,
        )
        changes.count("organization", CREATED, part.id)

    # --- memberships -------------------------------------------------------------------------

    def _judge_memberships(self, part: Part) -> None:
        table = Membership.__table__.c
        stored = {
            row.user_id: row
            for row in self._snapshot.connection.execute(
                select(table.id, table.user_id, table.status).where(
                    table.organization_id == part.id
                )
            )
        }
        own: dict[str, set[str]] = defaultdict(set)
        held = MembershipRole.__table__.c
        for membership_id, role_id in self._snapshot.connection.execute(
            select(held.membership_id, held.role_id).where(
                held.organization_id == part.id, held.source == "DIRECT"
            )
        ):
            own[membership_id].add(role_id)
        owner = self._settings.owner_role_id
        had_owner = any(row.status == ACTIVE and owner in own[row.id] for row in stored.values())
        result = {row.id: (row.status, own[row.id]) for row in stored.values()}
        part.members = {user_id: row.id for user_id, row in stored.items()}
        seen: set[str] = set()
        for number, entry in enumerate(part.entry.get("memberships", ())):
            path = f"{part.path}.memberships[{number}]"
            user_id = self._people.find(entry["user"])
            if user_id is None:
                self._findings.add(
                    f"{path}.user", "USER_NOT_FOUND", f"there is no user {entry['user']}"
                )
                continue
            if user_id in seen:
                self._findings.add(
                    f"{path}.user", "MEMBERSHIP_EXISTS", "the user is a member twice"
                )
                continue
            seen.add(user_id)
            roles = self._own_roles(part, entry, path)
            if roles is None:
                continue
            judged = self._judge_membership(part, entry, path, user_id, stored, own, roles)
            if judged is not None:
                result[part.members[user_id]] = judged
        has_owner = any(status == ACTIVE and owner in roles for status, roles in result.values())
        if owner and had_owner and not has_owner:
            self._findings.add(
                f"{part.path}.memberships", "LAST_OWNER", "the organization would have no owner"
            )

    def _own_roles(self, part: Part, entry: dict[str, Any], path: str) -> set[str] | None:
        found: set[str] = set()
        is_right = True
        for number, slug in enumerate(entry.get("roles", ())):
            role = self._definitions.find_role(part.id, slug)
            if role is None:
                self._findings.add(
                    f"{path}.roles[{number}]", "ROLE_NOT_FOUND", f"there is no role {slug}"
                )
                is_right = False
            elif role[1] != ORGANIZATION_TYPE:
                self._findings.add(
                    f"{path}.roles[{number}]",
                    "ROLE_RESOURCE_TYPE_MISMATCH",
                    f"role {slug} belongs to type {role[1]}",
                )
                is_right = False
            else:
                found.add(role[0])
        if len(found) > 1 and not self._settings.multiple_roles_enabled:
            self._findings.add(
                f"{path}.roles", "MULTIPLE_ROLES_DISABLED", "a membership has one role here"
            )
            is_right = False
        if len(found) > limits.OWN_ROLES_MAX:
            self._findings.add(
                f"{path}.roles",
                "FIELD_INVALID",
                f"a membership has at most {limits.OWN_ROLES_MAX} roles",
            )
            is_right = False
        return found if is_right else None

    def _judge_membership(
        self,
        part: Part,
        entry: dict[str, Any],
        path: str,
        user_id: str,
        stored: dict[str, Any],
        own: dict[str, set[str]],
        roles: set[str],
    ) -> tuple[str, set[str]] | None:
        row = stored.get(user_id)
        if row is None:
            status = entry.get("status", "active").upper()
            roles = roles or {part.default_role_id or self._settings.default_role_id}
            membership_id = ids.new(ids.MEMBERSHIP)
            part.members[user_id] = membership_id
            self._changes.insert(
                Membership,
                organization_id=part.id,
                id=membership_id,
                user_id=user_id,
                status=status,
                **part.stamp,
            )
            before: set[str] = set()
            what = CREATED
        else:
            membership_id, status = row.id, row.status
            if status == PENDING:
                self._findings.add(
                    path, "MEMBERSHIP_PENDING", "the membership waits for its invitation"
                )
                return None
            status = entry.get("status", status).upper()
            before = own[membership_id]
            roles = roles or before
            what = UNCHANGED
            if status != row.status or roles != before:
                what = UPDATED
                self._changes.update(
                    Membership,
                    {"organization_id": part.id, "id": membership_id},
                    status=status,
                    **touched(part.stamp),
                )
        for role_id in sorted(roles - before):
            self._changes.insert(
                MembershipRole,
                organization_id=part.id,
                membership_id=membership_id,
                role_id=role_id,
                source="DIRECT",
            )
        for role_id in sorted(before - roles):
            self._changes.delete(
                MembershipRole,
                membership_id=membership_id,
                role_id=role_id,
                source="DIRECT",
                organization_id=part.id,
            )
        self._changes.count("organization_membership", what, part.id)
        return status, roles

    # --- groups ------------------------------------------------------------------------------

    def _judge_groups(self, part: Part) -> None:
        entries = part.entry.get("groups", [])
        if not entries and part.stored is None:
            return
        stored: dict[str, list[Any]] = defaultdict(list)
        table = Group.__table__.c
        for row in self._snapshot.connection.execute(
            select(table.id, table.name, table.description).where(
                table.organization_id == part.id, table.kind == "STANDARD"
            )
        ):
            stored[row.name].append(row)
        inner: dict[str, set[str]] = defaultdict(set)
        nested = GroupNesting.__table__.c
        for outer_id, inner_id in self._snapshot.connection.execute(
            select(nested.group_id, nested.member_group_id).where(nested.organization_id == part.id)
        ):
            inner[outer_id].add(inner_id)
        part.groups = {name: rows[0].id for name, rows in stored.items() if len(rows) == 1}
        named = self._named_groups(part, entries, stored)
        members = self._stored_members([part.groups[name] for _, _, name in named])
        for path, entry, name in named:
            self._judge_group(part, path, entry, name, stored, members, inner)
        self._judge_nesting(part, named, inner)
        total = len(part.groups) + sum(len(rows) for rows in stored.values() if len(rows) > 1)
        if total > self._snapshot.limits.groups_max:
            self._findings.add(
                f"{part.path}.groups",
                "LIMIT_REACHED",
                f"an organization has at most {self._snapshot.limits.groups_max} groups",
            )
        self._judge_places(part, named)

    def _named_groups(
        self, part: Part, entries: list[dict[str, Any]], stored: dict[str, list[Any]]
    ) -> list[tuple[str, dict[str, Any], str]]:
        named: list[tuple[str, dict[str, Any], str]] = []
        seen: set[str] = set()
        for number, entry in enumerate(entries):
            path = f"{part.path}.groups[{number}]"
            try:
                name = slugs.display_name("name", entry["name"])
                slugs.description("description", entry.get("description", ""))
            except errors.Refusal as refusal:
                self._findings.refused(path, refusal)
                continue
            if name == EVERYONE_NAME:
                self._findings.add(
                    f"{path}.name", "GROUP_BUILT_IN", "only the built-in group is called everyone"
                )
            elif name in seen:
                self._findings.add(f"{path}.name", "FIELD_INVALID", "the name stands here twice")
            elif len(stored.get(name, ())) > 1:
                self._findings.add(
                    f"{path}.name", "FIELD_INVALID", "several stored groups have this name"
                )
            else:
                seen.add(name)
                named.append((path, entry, name))
                part.groups.setdefault(name, ids.new(ids.GROUP))
        return named

    def _stored_members(self, group_ids: list[str]) -> dict[str, set[str]]:
        members: dict[str, set[str]] = defaultdict(set)
        table = GroupMember.__table__.c
        for row in self._snapshot.connection.execute(
            select(table.group_id, table.membership_id).where(
                self._snapshot.dialect.among(table.group_id, group_ids)
            )
        ):
            members[row.group_id].add(row.membership_id)
        return members

    def _judge_group(
        self,
        part: Part,
        path: str,
        entry: dict[str, Any],
        name: str,
        stored: dict[str, list[Any]],
        members: dict[str, set[str]],
        inner: dict[str, set[str]],
    ) -> None:
        group_id = part.groups[name]
        row = next(iter(stored.get(name, ())), None)
        description = entry.get("description", row.description if row else "")
        if row is None:
            self._changes.insert(
                Group,
                organization_id=part.id,
                id=group_id,
                kind="STANDARD",
                name=name,
                description=description,
                **part.stamp,
            )
        before, before_inner = members[group_id], set(inner[group_id])
        wanted = self._wanted_members(part, path, entry, before)
        wanted_inner = self._wanted_groups(part, path, entry, before_inner)
        for membership_id in sorted(wanted - before):
            self._changes.insert(
                GroupMember, organization_id=part.id, group_id=group_id,
                membership_id=membership_id,
            )  # fmt: skip
        for membership_id in sorted(before - wanted):
            self._changes.delete(
                GroupMember, group_id=group_id, membership_id=membership_id,
                organization_id=part.id,
            )  # fmt: skip
        for other in sorted(wanted_inner - before_inner):
            self._changes.insert(
                GroupNesting, organization_id=part.id, group_id=group_id, member_group_id=other
            )
        for other in sorted(before_inner - wanted_inner):
            self._changes.delete(
                GroupNesting, group_id=group_id, member_group_id=other, organization_id=part.id
            )
        inner[group_id] = wanted_inner
        members[group_id] = wanted
        for what, found, maximum in (
            ("members", wanted, self._snapshot.limits.group_members_max),
            ("groups", wanted_inner, self._snapshot.limits.group_groups_max),
        ):
            if len(found) > maximum:
                self._findings.add(
                    f"{path}.{what}", "LIMIT_REACHED", f"a group has at most {maximum} {what}"
                )
        if row is None:
            self._changes.count("group", CREATED, part.id)
        elif (row.description, before, before_inner) == (description, wanted, wanted_inner):
            self._changes.count("group", UNCHANGED, part.id)
        else:
            if row.description != description:
                self._changes.update(
                    Group,
                    {"organization_id": part.id, "id": group_id},
                    description=description,
                    **touched(part.stamp),
                )
            self._changes.count("group", UPDATED, part.id)

    def _wanted_members(
        self, part: Part, path: str, entry: dict[str, Any], before: set[str]
    ) -> set[str]:
        if "members" not in entry:
            return before
        wanted = set()
        for number, name in enumerate(entry["members"]):
            user_id = self._people.find(name)
            membership_id = part.members.get(user_id) if user_id else None
            if membership_id is None:
                self._findings.add(
                    f"{path}.members[{number}]",
                    "MEMBERSHIP_NOT_FOUND",
                    f"{name} is no member of the organization",
                )
            else:
                wanted.add(membership_id)
        return wanted

    def _wanted_groups(
        self, part: Part, path: str, entry: dict[str, Any], before: set[str]
    ) -> set[str]:
        if "groups" not in entry:
            return before
        wanted = set()
        for number, name in enumerate(entry["groups"]):
            if name not in part.groups:
                self._findings.add(
                    f"{path}.groups[{number}]", "GROUP_NOT_FOUND", f"there is no group {name}"
                )
            else:
                wanted.add(part.groups[name])
        return wanted

    def _judge_nesting(
        self,
        part: Part,
        named: list[tuple[str, dict[str, Any], str]],
        inner: dict[str, set[str]],
    ) -> None:
        """No cycle, and no chain of more than eight groups (GR2)."""
        paths = {part.groups[name]: path for path, _, name in named}
        depths: dict[str, int] = {}

        def depth(group_id: str, above: tuple[str, ...]) -> int:
            if group_id in above:
                place = paths.get(group_id, f"{part.path}.groups")
                self._findings.add(f"{place}.groups", "GROUP_CYCLE", "the group lies in itself")
                return 0
            if group_id not in depths:
                # A chain longer than the limit is found before the walk gets deep.
                if len(above) > limits.GROUP_NESTING_MAX:
                    return 1
                depths[group_id] = 1 + max(
                    (depth(each, (*above, group_id)) for each in sorted(inner[group_id])),
                    default=0,
                )
            return depths[group_id]

        for group_id in list(inner):
            if depth(group_id, ()) > limits.GROUP_NESTING_MAX:
                self._findings.add(
                    f"{paths.get(group_id, part.path + '.groups')}.groups",
                    "GROUP_DEPTH_EXCEEDED",
                    f"at most {limits.GROUP_NESTING_MAX} groups in one chain",
                )

    def _judge_places(self, part: Part, named: list[tuple[str, dict[str, Any], str]]) -> None:
        """A membership is directly in a limited number of groups."""
        maximum = self._snapshot.limits.membership_groups_max
        if len(part.groups) <= maximum:
            return
        places: dict[str, int] = defaultdict(int)
        for _, entry, _ in named:
            for name in set(entry.get("members", ())):
                places[name] += 1
        for name, count in places.items():
            if count > maximum:
                self._findings.add(
                    f"{part.path}.groups", "LIMIT_REACHED", f"{name} is in more than {maximum}"
                )

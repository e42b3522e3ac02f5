"""Resource types, permissions and roles of a directory file against the stored ones."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import select, text

from authz_service.base import errors, ids, slugs
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain.directory_files.changes import (
    CREATED,
    UNCHANGED,
    UPDATED,
    Changes,
    touched,
)
from authz_service.domain.directory_files.findings import Findings
from authz_service.engine import limits
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import (
    Permission,
    ResourceType,
    ResourceTypeParent,
    Role,
    RolePermission,
)

ORGANIZATION_TYPE = "organization"


class Definitions:
    """What exists after the import: types with parents, permissions with types, roles.

    Attributes:
        parents: Type slug to its parent types.
        permission_types: Permission slug to its type.
        roles: (realm, slug) to (id, type slug).
    """

    def __init__(
        self,
        snapshot: Snapshot,
        changes: Changes,
        findings: Findings,
        stamp: Callable[[str], Mapping[str, int]],
    ) -> None:
        self._snapshot = snapshot
        self._changes = changes
        self._findings = findings
        self._stamp = stamp
        self._types: dict[str, Any] = {
            row.slug: row
            for row in snapshot.connection.execute(select(*ResourceType.__table__.columns))
        }
        self.parents: dict[str, set[str]] = {slug: set() for slug in self._types}
        for slug, parent in snapshot.connection.execute(
            select(ResourceTypeParent.slug, ResourceTypeParent.parent_slug)
        ):
            self.parents[slug].add(parent)
        self._stored_parents = {slug: set(found) for slug, found in self.parents.items()}
        self._permissions: dict[str, Any] = {
            row.slug: row
            for row in snapshot.connection.execute(select(*Permission.__table__.columns))
        }
        self.permission_types = {
            slug: str(row.resource_type_slug) for slug, row in self._permissions.items()
        }
        self._roles: dict[tuple[str, str], Any] = {}
        self._role_permissions: dict[str, set[str]] = {}
        self.roles: dict[tuple[str, str], tuple[str, str]] = {}
        self._scopes: dict[str, set[str]] = {}
        self.load_roles([ENVIRONMENT])

    def load_roles(self, realms: Iterable[str]) -> None:
        """Reads the stored roles of realms, in two statements."""
        table = Role.__table__.c
        is_wanted = self._snapshot.dialect.among(table.realm, tuple(realms))
        for row in self._snapshot.connection.execute(
            select(
                table.id,
                table.realm,
                table.slug,
                table.name,
                table.description,
                table.resource_type_slug,
            ).where(is_wanted)
        ):
            self._roles[row.realm, row.slug] = row
            self._role_permissions[row.id] = set()
            self.roles[row.realm, row.slug] = (row.id, row.resource_type_slug)
        contained = RolePermission.__table__.c
        for role_id, permission in self._snapshot.connection.execute(
            select(contained.role_id, contained.permission_slug)
            .join(Role, table.id == contained.role_id)
            .where(is_wanted)
        ):
            self._role_permissions[role_id].add(permission)

    # --- types -------------------------------------------------------------------------------

    def judge_types(self, entries: list[dict[str, Any]]) -> None:
        """Compares the file's types with the stored ones, and the result with M1, M2 and RS6."""
        seen: set[str] = set()
        for number, entry in enumerate(entries):
            path = f"resource_types[{number}]"
            try:
                slug = slugs.type_slug("slug", entry["slug"])
                name = slugs.short_name("name", entry["name"])
                description = slugs.description("description", entry.get("description", ""))
            except errors.Refusal as refusal:
                self._findings.refused(path, refusal)
                continue
            if slug in seen:
                self._findings.add(f"{path}.slug", "SLUG_TAKEN", f"{slug} stands in the file twice")
                continue
            seen.add(slug)
            self._judge_type(path, slug, name, description, entry)
        for slug in seen:
            self._judge_parents(slug, entries)
        self._judge_cycles()
        self._judge_removed_parents()
        self._limit(
            "resource_types", len(self.parents) - 1, self._snapshot.limits.resource_types_max
        )

    def _judge_type(
        self, path: str, slug: str, name: str, description: str, entry: dict[str, Any]
    ) -> None:
        parents = set(entry["parent_type_slugs"])
        stored = self._types.get(slug)
        if slug == ORGANIZATION_TYPE and parents:
            self._findings.add(
                f"{path}.parent_type_slugs",
                "RESOURCE_TYPE_BUILT_IN",
                "organization has no parent types",
            )
            return
        if slug != ORGANIZATION_TYPE and not 1 <= len(parents) <= limits.TYPE_PARENTS_MAX:
            self._findings.add(
                f"{path}.parent_type_slugs",
                "FIELD_INVALID",
                f"1 to {limits.TYPE_PARENTS_MAX} parent types",
            )
            return
        self.parents[slug] = parents
        if stored is None:
            self._changes.insert(
                ResourceType,
                slug=slug,
                id=ids.new(ids.RESOURCE_TYPE),
                name=name,
                description=description,
                is_built_in=False,
                **self._stamp(ENVIRONMENT),
            )
            what = CREATED
        else:
            before = self._stored_parents[slug]
            texts_differ = (stored.name, stored.description) != (
                name,
                entry.get("description", stored.description),
            )
            if not texts_differ and before == parents:
                self._changes.count("resource_type", UNCHANGED, ENVIRONMENT)
                return
            self._changes.update(
                ResourceType,
                {"slug": slug},
                name=name,
                description=entry.get("description", stored.description),
                **touched(self._stamp(ENVIRONMENT)),
            )
            what = UPDATED
        before = self._stored_parents.get(slug, set())
        for parent in sorted(parents - before):
            self._changes.insert(ResourceTypeParent, slug=slug, parent_slug=parent)
        for parent in sorted(before - parents):
            self._changes.delete(ResourceTypeParent, slug=slug, parent_slug=parent)
        self._changes.count("resource_type", what, ENVIRONMENT)

    def _judge_parents(self, slug: str, entries: list[dict[str, Any]]) -> None:
        for parent in sorted(self.parents.get(slug, set()) - self.parents.keys()):
            number = next(i for i, entry in enumerate(entries) if entry["slug"] == slug)
            self._findings.add(
                f"resource_types[{number}].parent_type_slugs",
                "RESOURCE_TYPE_NOT_FOUND",
                f"there is no resource type {parent}",
            )

    def _judge_cycles(self) -> None:
        """Every type leads to organization, and none to itself but directly (M2)."""
        for slug, parents in self.parents.items():
            if slug == ORGANIZATION_TYPE:
                continue
            if not parents - {slug} or slug in self._above(parents - {slug}):
                self._findings.add(
                    f"resource_types ({slug})",
                    "RESOURCE_TYPE_CYCLE",
                    f"the parents of {slug} do not end at organization",
                )

    def _above(self, types: set[str]) -> set[str]:
        found, left = set(types), list(types)
        while left:
            for parent in self.parents.get(left.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    left.append(parent)
        return found

    def scope(self, type_slug: str) -> set[str]:
        """Returns a type and its descendants: whose permissions its roles may contain (M7)."""
        if type_slug not in self._scopes:
            self._scopes[type_slug] = {
                slug for slug in self.parents if type_slug in self._above({slug})
            }
        return self._scopes[type_slug]

    def _judge_removed_parents(self) -> None:
        """No resource may be left where its type may not be (RS6)."""
        for slug, before in self._stored_parents.items():
            for parent in sorted(before - self.parents[slug]):
                used = self._snapshot.connection.execute(
                    text(
                        "SELECT 1 FROM resources p JOIN resources c ON c.parent_id = p.id"
                        " AND c.resource_type_slug = :slug"
                        " WHERE p.resource_type_slug = :parent LIMIT 1"
                    ),
                    {"slug": slug, "parent": parent},
                ).one_or_none()
                if used is not None:
                    self._findings.add(
                        f"resource_types ({slug})",
                        "RESOURCE_TYPE_IN_USE",
                        f"resources of type {slug} lie below ones of type {parent}",
                    )

    def judge_stored_roles(self, written: set[str]) -> None:
        """Roles that the file does not name must still keep to M7 (RS6)."""
        if all(before <= self.parents[slug] for slug, before in self._stored_parents.items()):
            return
        rows = self._snapshot.connection.execute(
            text(
                "SELECT DISTINCT r.id, r.slug, r.resource_type_slug AS role_type,"
                " q.resource_type_slug AS permission_type FROM roles r"
                " JOIN role_permissions p ON p.role_id = r.id"
                " JOIN permissions q ON q.slug = p.permission_slug"
            )
        ).all()
        for row in rows:
            if row.id not in written and row.permission_type not in self.scope(row.role_type):
                self._findings.add(
                    f"resource_types ({row.permission_type})",
                    "RESOURCE_TYPE_IN_USE",
                    f"role {row.slug} contains permissions of type {row.permission_type}",
                )

    # --- permissions -------------------------------------------------------------------------

    def judge_permissions(self, entries: list[dict[str, Any]]) -> None:
        """Compares the file's permissions with the stored ones."""
        seen: set[str] = set()
        for number, entry in enumerate(entries):
            path = f"permissions[{number}]"
            try:
                slug = slugs.permission_slug("slug", entry["slug"])
                name = slugs.short_name("name", entry["name"])
                description = slugs.description("description", entry.get("description", ""))
            except errors.Refusal as refusal:
                self._findings.refused(path, refusal)
                continue
            if slug in seen:
                self._findings.add(f"{path}.slug", "SLUG_TAKEN", f"{slug} stands in the file twice")
                continue
            seen.add(slug)
            stored = self._permissions.get(slug)
            type_slug = entry.get(
                "resource_type_slug", stored.resource_type_slug if stored else ORGANIZATION_TYPE
            )
            if type_slug not in self.parents:
                self._findings.add(
                    f"{path}.resource_type_slug",
                    "RESOURCE_TYPE_NOT_FOUND",
                    f"there is no resource type {type_slug}",
                )
                continue
            self.permission_types[slug] = type_slug
            if stored is None:
                self._changes.insert(
                    Permission,
                    slug=slug,
                    id=ids.new(ids.PERMISSION),
                    name=name,
                    description=description,
                    resource_type_slug=type_slug,
                    assignable_to_api_keys=entry.get("assignable_to_api_keys", False),
                    **self._stamp(ENVIRONMENT),
                )
                self._changes.count("permission", CREATED, ENVIRONMENT)
                continue
            if stored.resource_type_slug != type_slug:
                self._findings.add(
                    f"{path}.resource_type_slug",
                    "FIELD_INVALID",
                    f"is {stored.resource_type_slug} and never changes",
                )
                continue
            values = {
                "name": name,
                "description": entry.get("description", stored.description),
                "assignable_to_api_keys": entry.get(
                    "assignable_to_api_keys", stored.assignable_to_api_keys
                ),
            }
            self._update_if_differs(Permission, "permission", ENVIRONMENT, stored, values)
        self._limit(
            "permissions", len(self.permission_types), self._snapshot.limits.permissions_max
        )

    # --- roles -------------------------------------------------------------------------------

    def judge_roles(self, realm: str, entries: list[dict[str, Any]], start: str) -> set[str]:
        """Compares the roles of one realm with the stored ones; returns the ids of all named.

        Args:
            start: Path of the list in the file.
        """
        seen: set[str] = set()
        named: set[str] = set()
        for number, entry in enumerate(entries):
            path = f"{start}[{number}]"
            try:
                slug = slugs.role_slug("slug", entry["slug"])
                name = slugs.short_name("name", entry["name"])
                slugs.description("description", entry.get("description", ""))
            except errors.Refusal as refusal:
                self._findings.refused(path, refusal)
                continue
            if slug in seen:
                self._findings.add(f"{path}.slug", "SLUG_TAKEN", f"{slug} stands in the file twice")
                continue
            seen.add(slug)
            if slug.startswith("org-") != (realm != ENVIRONMENT):
                rule = "starts with org-" if realm != ENVIRONMENT else "does not start with org-"
                self._findings.add(f"{path}.slug", "FIELD_INVALID", f"the slug {rule}")
                continue
            role_id = self._judge_role(realm, slug, name, entry, path)
            if role_id:
                named.add(role_id)
        maximum = (
            self._snapshot.limits.environment_roles_max
            if realm == ENVIRONMENT
            else self._snapshot.limits.organization_roles_max
        )
        self._limit(start, sum(1 for of, _ in self.roles if of == realm), maximum)
        return named

    def _judge_role(
        self, realm: str, slug: str, name: str, entry: dict[str, Any], path: str
    ) -> str | None:
        stored = self._roles.get((realm, slug))
        type_slug = entry.get(
            "resource_type_slug", stored.resource_type_slug if stored else ORGANIZATION_TYPE
        )
        if type_slug not in self.parents:
            self._findings.add(
                f"{path}.resource_type_slug",
                "RESOURCE_TYPE_NOT_FOUND",
                f"there is no resource type {type_slug}",
            )
            return None
        if stored is not None and stored.resource_type_slug != type_slug:
            self._findings.add(
                f"{path}.resource_type_slug",
                "FIELD_INVALID",
                f"is {stored.resource_type_slug} and never changes",
            )
            return None
        if not self._judge_contents(type_slug, entry.get("permissions", []), path):
            return None
        if stored is None:
            role_id = ids.new(ids.ROLE)
            self._changes.insert(
                Role,
                id=role_id,
                realm=realm,
                slug=slug,
                name=name,
                description=entry.get("description", ""),
                resource_type_slug=type_slug,
                **self._stamp(realm),
            )
            before: set[str] = set()
            what = CREATED
        else:
            role_id = stored.id
            before = self._role_permissions[role_id]
            what = UNCHANGED
        wanted = set(entry["permissions"]) if "permissions" in entry else before
        for permission in sorted(wanted - before):
            self._changes.insert(RolePermission, role_id=role_id, permission_slug=permission)
        for permission in sorted(before - wanted):
            self._changes.delete(RolePermission, role_id=role_id, permission_slug=permission)
        if stored is not None:
            description = entry.get("description", stored.description)
            if (stored.name, stored.description) != (name, description) or wanted != before:
                what = UPDATED
                self._changes.update(
                    Role,
                    {"id": role_id},
                    name=name,
                    description=description,
                    **touched(self._stamp(realm)),
                )
        self._changes.count("role", what, realm)
        self.roles[realm, slug] = (role_id, type_slug)
        return role_id

    def _judge_contents(self, type_slug: str, permissions: list[str], path: str) -> bool:
        if len(set(permissions)) > limits.ROLE_PERMISSIONS_MAX:
            self._findings.add(
                f"{path}.permissions",
                "LIMIT_REACHED",
                f"a role has at most {limits.ROLE_PERMISSIONS_MAX} permissions",
            )
            return False
        scope = self.scope(type_slug)
        is_right = True
        for number, permission in enumerate(permissions):
            of_type = self.permission_types.get(permission)
            if of_type is None:
                self._findings.add(
                    f"{path}.permissions[{number}]",
                    "PERMISSION_NOT_FOUND",
                    f"there is no permission {permission}",
                )
                is_right = False
            elif of_type not in scope:
                self._findings.add(
                    f"{path}.permissions[{number}]",
                    "PERMISSION_OUT_OF_SCOPE",
                    f"{permission} belongs to {of_type}, which is not {type_slug} or below it",
                )
                is_right = False
        return is_right

    def find_role(self, organization_id: str, slug: str) -> tuple[str, str] | None:
        """Returns id and type of the role that a slug names in an organization (M8)."""
        realm = organization_id if slug.startswith("org-") else ENVIRONMENT
        return self.roles.get((realm, slug))

    def _update_if_differs(
        self, table: Any, kind: str, realm: str, stored: Any, values: dict[str, Any]
    ) -> None:
        if all(getattr(stored, name) == value for name, value in values.items()):
            self._changes.count(kind, UNCHANGED, realm)
            return
        self._changes.update(
            table,
            {"slug": stored.slug},
            **values,
            **touched(self._stamp(realm)),
        )
        self._changes.count(kind, UPDATED, realm)

    def _limit(self, path: str, actual: int, maximum: int) -> None:
        if actual > maximum:
            self._findings.add(path, "LIMIT_REACHED", f"{actual} in all, at most {maximum}")

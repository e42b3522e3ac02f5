"""The resources of one organization of a directory file against the stored tree."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select, text

from authz_service.base import errors, ids, slugs
from authz_service.domain.directory_files.changes import (
    CREATED,
    UNCHANGED,
    UPDATED,
    Changes,
    touched,
)
from authz_service.domain.directory_files.findings import Findings
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import Resource, ResourceAncestor, ResourceCount

if TYPE_CHECKING:
    from authz_service.domain.directory_files.organizations import Part

ORGANIZATION_TYPE = "organization"


class _Node(NamedTuple):
    type_slug: str
    external_id: str
    name: str
    description: str
    parent_id: str | None
    path: str


def judge_resources(
    snapshot: Snapshot,
    changes: Changes,
    findings: Findings,
    part: "Part",
    *,
    parents_of: Mapping[str, set[str]],
    depth_max: int,
) -> None:
    """Compares the tree of one organization with the file: new, changed and moved resources."""
    stored = _stored(snapshot, part)
    part.resources = {(node.type_slug, node.external_id): id for id, node in stored.items()}
    part.resources[ORGANIZATION_TYPE, part.id] = part.root_id
    part.resources[ORGANIZATION_TYPE, part.entry["external_id"]] = part.root_id
    entries = _named(findings, part, parents_of)
    for _, entry in entries:
        part.resources.setdefault((entry["type"], entry["external_id"]), ids.new(ids.RESOURCE))
    parents: dict[str, str | None] = {id: node.parent_id for id, node in stored.items()}
    parents[part.root_id] = None
    types = {id: node.type_slug for id, node in stored.items()}
    types[part.root_id] = ORGANIZATION_TYPE
    for _, entry in entries:
        types[part.resources[entry["type"], entry["external_id"]]] = entry["type"]
    places: dict[str, str] = {}
    for path, entry in entries:
        id = part.resources[entry["type"], entry["external_id"]]
        places[id] = path
        parents[id] = _parent(findings, part, path, entry, stored, types, parents_of)
    part.resource_types = types
    paths = _paths(findings, part, parents, places, depth_max)
    _write(changes, part, entries, stored, parents, paths)
    _count(snapshot, changes, findings, part, types)


def _stored(snapshot: Snapshot, part: "Part") -> dict[str, _Node]:
    if part.stored is None:
        return {}
    rows = snapshot.connection.execute(
        text(
            "SELECT id, resource_type_slug, external_id, name, description, parent_id, path"
            " FROM resources WHERE organization_id = :organization"
        ),
        {"organization": part.id},
    )
    return {row.id: _Node(*row[1:]) for row in rows}


def _named(
    findings: Findings, part: "Part", parents_of: Mapping[str, set[str]]
) -> list[tuple[str, dict[str, Any]]]:
    named = []
    seen: set[tuple[str, str]] = set()
    for number, entry in enumerate(part.entry.get("resources", ())):
        path = f"{part.path}.resources[{number}]"
        try:
            slugs.external_id("external_id", entry["external_id"])
            slugs.display_name("name", entry["name"])
            slugs.description("description", entry.get("description", ""))
        except errors.Refusal as refusal:
            findings.refused(path, refusal)
            continue
        key = (entry["type"], entry["external_id"])
        if entry["type"] == ORGANIZATION_TYPE:
            findings.add(
                f"{path}.type",
                "ORGANIZATION_RESOURCE_IMMUTABLE",
                "the organization resource comes with its organization",
            )
        elif entry["type"] not in parents_of:
            findings.add(
                f"{path}.type",
                "RESOURCE_TYPE_NOT_FOUND",
                f"there is no resource type {entry['type']}",
            )
        elif key in seen:
            findings.add(
                f"{path}.external_id", "EXTERNAL_ID_TAKEN", "the resource stands here twice"
            )
        else:
            seen.add(key)
            named.append((path, entry))
    return named


def _parent(
    findings: Findings,
    part: "Part",
    path: str,
    entry: dict[str, Any],
    stored: dict[str, _Node],
    types: dict[str, str],
    parents_of: Mapping[str, set[str]],
) -> str | None:
    """Returns the parent's id; the root where the file is wrong, so that judging can go on."""
    id = part.resources[entry["type"], entry["external_id"]]
    if "parent" not in entry:
        if id in stored:
            return stored[id].parent_id
        if ORGANIZATION_TYPE not in parents_of[entry["type"]]:
            findings.add(
                f"{path}.parent",
                "RESOURCE_PARENT_REQUIRED",
                f"{entry['type']} cannot lie directly below the organization",
            )
        return part.root_id
    key = (entry["parent"]["type"], entry["parent"]["external_id"])
    parent_id = part.resources.get(key)
    if parent_id is None:
        findings.add(f"{path}.parent", "RESOURCE_NOT_FOUND", f"there is no {key[0]} {key[1]}")
        return part.root_id
    if types[parent_id] not in parents_of[entry["type"]]:
        findings.add(
            f"{path}.parent",
            "RESOURCE_PARENT_TYPE_NOT_ALLOWED",
            f"{entry['type']} cannot lie below {types[parent_id]}",
        )
    return parent_id


def _paths(
    findings: Findings,
    part: "Part",
    parents: dict[str, str | None],
    places: dict[str, str],
    depth_max: int,
) -> dict[str, tuple[str, ...]]:
    """Returns each resource's ids from the root down; a cycle or too deep a place is a finding."""
    paths: dict[str, tuple[str, ...]] = {part.root_id: (part.root_id,)}
    for id in parents:
        chain: list[str] = []
        current: str | None = id
        while current is not None and current not in paths:
            if current in chain:
                place = places.get(current, part.path)
                findings.add(f"{place}.parent", "RESOURCE_CYCLE", "the resource lies below itself")
                break
            chain.append(current)
            current = parents[current]
        above = paths.get(current, (part.root_id,)) if current else (part.root_id,)
        for each in reversed(chain):
            above = (*above, each)
            paths[each] = above
    for id, place in places.items():
        if len(paths[id]) - 1 > depth_max:
            findings.add(
                f"{place}.parent", "RESOURCE_DEPTH_EXCEEDED", f"at most {depth_max} levels deep"
            )
    return paths


def _write(
    changes: Changes,
    part: "Part",
    entries: list[tuple[str, dict[str, Any]]],
    stored: dict[str, _Node],
    parents: dict[str, str | None],
    paths: dict[str, tuple[str, ...]],
) -> None:
    def depth(named: tuple[str, dict[str, Any]]) -> int:
        return len(paths[part.resources[named[1]["type"], named[1]["external_id"]]])

    # Parents first: each row names its parent's.
    for _, entry in sorted(entries, key=depth):
        id = part.resources[entry["type"], entry["external_id"]]
        node = stored.get(id)
        name = entry["name"].strip()
        if node is None:
            changes.insert(
                Resource,
                organization_id=part.id,
                id=id,
                resource_type_slug=entry["type"],
                external_id=entry["external_id"],
                name=name,
                description=entry.get("description", "").strip(),
                parent_id=parents[id],
                depth=len(paths[id]) - 1,
                path="/".join(paths[id]),
                **part.stamp,
            )
            _place(changes, part, id, entry["type"], (), paths[id])
            changes.count("resource", CREATED, part.id)
            continue
        description = entry.get("description", node.description).strip()
        same = (node.name, node.description, node.parent_id) == (name, description, parents[id])
        if same:
            changes.count("resource", UNCHANGED, part.id)
            continue
        changes.update(
            Resource,
            {"organization_id": part.id, "id": id},
            name=name,
            description=description,
            parent_id=parents[id],
            **touched(part.stamp),
        )
        changes.count("resource", UPDATED, part.id)
    for id, node in stored.items():
        # What moved, and what lies below it: the place of a resource is written in many rows.
        before = tuple(node.path.split("/"))
        if before != paths[id]:
            changes.update(
                Resource,
                {"organization_id": part.id, "id": id},
                depth=len(paths[id]) - 1,
                path="/".join(paths[id]),
            )
            _place(changes, part, id, node.type_slug, before, paths[id])


def _place(
    changes: Changes,
    part: "Part",
    id: str,
    type_slug: str,
    before: tuple[str, ...],
    after: tuple[str, ...],
) -> None:
    for ancestor in sorted(set(before) - set(after)):
        changes.delete(
            ResourceAncestor,
            ancestor_id=ancestor,
            resource_type_slug=type_slug,
            resource_id=id,
            organization_id=part.id,
        )
    for ancestor in sorted(set(after) - set(before)):
        changes.insert(
            ResourceAncestor,
            organization_id=part.id,
            ancestor_id=ancestor,
            resource_type_slug=type_slug,
            resource_id=id,
        )


def _count(
    snapshot: Snapshot, changes: Changes, findings: Findings, part: "Part", types: dict[str, str]
) -> None:
    """Keeps the number of resources of each type, within its limit."""
    table = ResourceCount.__table__.c
    before = {}
    if part.stored is not None:
        for slug, number in snapshot.connection.execute(
            select(table.resource_type_slug, table.count).where(table.organization_id == part.id)
        ):
            before[slug] = number
    counts: dict[str, int] = defaultdict(int)
    for id, type_slug in types.items():
        if id != part.root_id:
            counts[type_slug] += 1
    maximum = snapshot.limits.resources_max
    for type_slug, count in counts.items():
        key = {"organization_id": part.id, "resource_type_slug": type_slug}
        if type_slug not in before:
            changes.insert(ResourceCount, **key, count=count)
        elif before[type_slug] != count:
            changes.update(ResourceCount, key, count=count)
        if count > maximum:
            findings.add(
                f"{part.path}.resources",
                "LIMIT_REACHED",
                f"an organization has at most {maximum} resources of type {type_slug}",
            )

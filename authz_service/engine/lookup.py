"""Plans a listing of resources: which subtrees and single resources it consists of. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Root(NamedTuple):
    """A resource on which the subject itself, or a group of it, holds some asked permission.

    Attributes:
        path: Ids from the organization resource down to it.
        permission_slugs: Those it holds there that have not ended.
    """

    id: str
    resource_type_slug: str
    path: tuple[str, ...]
    permission_slugs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a listing consists of; its parts have no resource in common.

    Attributes:
        subtrees: (ancestor id, type slug): every resource of the type at or below the ancestor.
        children: (parent id, type slug): every resource of the type directly below the parent.
        singles: Ids of resources.
    """

    subtrees: tuple[tuple[str, str], ...]
    children: tuple[tuple[str, str], ...]
    singles: tuple[str, ...]


def roots_of(rows: Iterable[tuple[str, str, str, str, int]], now: int) -> dict[str, Root]:
    """Returns roots by id.

    Args:
        rows: (resource id, type slug, path joined by ``/``, permission slug, latest end).
        now: Ends up to this instant do not count.
    """
    places: dict[str, tuple[str, str]] = {}
    slugs: dict[str, set[str]] = defaultdict(set)
    for resource_id, type_slug, path, slug, end in rows:
        if end > now:
            places[resource_id] = (type_slug, path)
            slugs[resource_id].add(slug)
    return {
        resource_id: Root(
            resource_id, type_slug, tuple(path.split("/")), frozenset(slugs[resource_id])
        )
        for resource_id, (type_slug, path) in places.items()
    }


def plan(
    roots: Collection[Root],
    *,
    parent_path: Sequence[str],
    permission_types: Mapping[str, str],
    type_slugs: Collection[str],
    nesting_types: Collection[str],
    children_only: bool,
) -> Plan:
    """Returns the parts of a listing strictly below a parent (product.md M22).

    Args:
        parent_path: Ids from the organization resource down to the parent.
        permission_types: The asked permissions with their types.
        type_slugs: Only resources of these types; empty = of any.
        nesting_types: Types whose resources may lie below resources of the same type. A root of
            another type has no row of its own type below it but itself.
    """
    parent_id = parent_path[-1]
    subtrees: list[tuple[str, str]] = []
    children: list[tuple[str, str]] = []
    singles: list[str] = []
    wanted = {slug for slug in permission_types.values() if not type_slugs or slug in type_slugs}
    for type_slug in sorted(wanted):
        asked = {slug for slug, of_type in permission_types.items() if of_type == type_slug}
        giving = {root.id: root for root in roots if not root.permission_slugs.isdisjoint(asked)}
        if any(node in giving for node in parent_path):
            (children if children_only else subtrees).append((parent_id, type_slug))
            continue
        for root in giving.values():
            above = root.path[:-1]
            if parent_id not in above:
                continue
            is_row = root.resource_type_slug == type_slug
            if children_only:
                if is_row and above[-1] == parent_id:
                    singles.append(root.id)
            elif any(node in giving for node in above):
                # Part of another root's subtree already.
                continue
            elif is_row and type_slug not in nesting_types:
                singles.append(root.id)
            else:
                subtrees.append((root.id, type_slug))
    return Plan(tuple(subtrees), tuple(children), tuple(singles))


def held_slugs(
    roots: Mapping[str, Root],
    path: Iterable[str],
    type_slug: str,
    permission_types: Mapping[str, str],
) -> list[str]:
    """Returns the asked permissions that are held on a resource, in the order they were asked."""
    held: set[str] = set()
    for node in path:
        root = roots.get(node)
        if root is not None:
            held |= root.permission_slugs
    return [
        slug for slug, of_type in permission_types.items() if of_type == type_slug and slug in held
    ]

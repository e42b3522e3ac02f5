"""Fact to tags and write to tags: the tables of consistency.md section 3 as code.

Readers and writers of facts take their tags from these functions, so they cannot disagree.
"""

from collections.abc import Iterable

ENVIRONMENT_DEFINITIONS = "E"
ORGANIZATION_ROLES = "R"
ORGANIZATION = "O"
ANY_WRITE = "s"
TAGS_MAX = 256


def membership(membership_id: str) -> str:
    """Marked when a membership's status, own roles, assignments or places in groups change."""
    return f"m:{membership_id}"


def group(group_id: str) -> str:
    """Marked when a group's assignments change, it goes into or out of a group, or is deleted."""
    return f"g:{group_id}"


def api_key(api_key_id: str) -> str:
    """Marked when an API key changes."""
    return f"k:{api_key_id}"


def credential(credential_id: str) -> str:
    """Marked, in the environment's control set, when a service credential changes."""
    return f"k:{credential_id}"


def resource(resource_id: str) -> str:
    """Marked when a resource moves or is deleted; only the root of what moved or went."""
    return f"r:{resource_id}"


def of_membership_grants(membership_id: str, group_ids: Iterable[str]) -> frozenset[str]:
    """The tags of ``grants(membership)``.

    Args:
        group_ids: Every group it belongs to, directly, through groups, and everyone, whether or not
            the group adds a role.
    """
    return _bounded(
        {membership(membership_id), *map(group, group_ids), ORGANIZATION_ROLES, ORGANIZATION}
    )


def of_group_grants(group_ids: Iterable[str]) -> frozenset[str]:
    """The tags of ``grants(group)``: the group itself and each group that contains it."""
    return _bounded({*map(group, group_ids), ORGANIZATION_ROLES, ORGANIZATION})


def of_path(resource_ids: Iterable[str]) -> frozenset[str]:
    """The tags of ``path(resource)``: the resource and every ancestor."""
    return _bounded({*map(resource, resource_ids), ORGANIZATION})


OF_PERMISSIONS = frozenset({ENVIRONMENT_DEFINITIONS})


def of_credential(credential_id: str) -> frozenset[str]:
    """The tags of ``credential(c)``."""
    return frozenset({credential(credential_id)})


def _bounded(tags: set[str]) -> frozenset[str]:
    # A fact of very many tags depends on every write of its organization instead.
    return frozenset(tags) if len(tags) <= TAGS_MAX else frozenset({ANY_WRITE})

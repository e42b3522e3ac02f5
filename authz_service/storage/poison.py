"""Rows that cannot be interpreted: they grant nothing, and each that a decision met is counted.

The service writes none, and most cannot be stored. A hand that writes past it, a constraint that
was dropped or a damaged file may leave some: an unknown status, a NULL, a path that does not lead
to its resource, an end that is no number, a role that is gone while something still holds it. Only
decisions that rest on such a row are denied; nothing else may suffer from it.
"""

import json
from typing import Any

from authz_service.engine.facts import NO_END

MEMBERSHIPS, RESOURCES = "memberships", "resources"
ROLE_ASSIGNMENTS, MEMBERSHIP_ROLES = "role_assignments", "membership_roles"
SERVICE_CREDENTIALS = "service_credentials"
# Where decisions look: the values of the label.
TABLES = (MEMBERSHIPS, RESOURCES, ROLE_ASSIGNMENTS, MEMBERSHIP_ROLES, SERVICE_CREDENTIALS)

_STATUSES = frozenset({"PENDING", "ACTIVE", "INACTIVE"})
# No list that the service writes comes near it: 1,000 ids of 30 characters.
_LIST_CHARACTERS_MAX = 65_536

# An end long ago, for an assignment that cannot be interpreted: it grants nothing.
POISONED_END = 1
# A column of a NULL would be missing where it is asked about.
STATUS_SQL = "coalesce(status, '') AS status"


def is_status(value: Any) -> bool:
    """True for a status that a membership can have."""
    return value in _STATUSES


def is_path(value: Any, resource_id: str) -> bool:
    """True for a path that leads to its resource."""
    return type(value) is str and value.endswith(resource_id)


def path_sql(resource: str) -> str:
    """Returns the same as a condition on a row of resources."""
    return f"{resource}.path LIKE '%' || {resource}.id"


def valid_sql(assignment: str) -> str:
    """Returns the condition that an assignment has not ended, for the parameter ``now``.

    SQLite may hold text in a column of numbers, and takes it for larger than each of them.
    """
    end = f"{assignment}.expires_at"
    return f"({end} IS NULL OR ({end} > :now AND {end} <= {NO_END}))"


def names(value: Any) -> frozenset[str] | None:
    """Returns the strings of a JSON list, None for any other value."""
    if type(value) is not str or len(value) > _LIST_CHARACTERS_MAX:
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if type(found) is not list or any(type(each) is not str for each in found):
        return None
    return frozenset(found)

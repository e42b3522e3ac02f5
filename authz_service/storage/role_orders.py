"""What the order of roles of type organization is made of, for many organizations at once."""

import json
from collections.abc import Collection
from functools import cache
from typing import NamedTuple

from sqlalchemy import TextClause, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.storage.database import Snapshot
from authz_service.storage.dialects import Dialect

_ROLE, _ORDER = 0, 1


class RoleOrders(NamedTuple):
    """Stored orders, and the roles there are.

    Attributes:
        role_ids: Realm to the ids of its roles of type organization, oldest first.
        deployment: The deployment's order.
        own: Organization to its own order; None or missing = it has none.
    """

    role_ids: dict[str, list[str]]
    deployment: list[str]
    own: dict[str, list[str] | None]


def read(snapshot: Snapshot, organization_ids: Collection[str]) -> RoleOrders:
    """Returns the orders and roles of the environment and of these organizations."""
    found = RoleOrders({realm: [] for realm in (ENVIRONMENT, *organization_ids)}, [], {})
    parameters = {"realms": snapshot.dialect.list_value(found.role_ids.keys())}
    for kind, realm, value in snapshot.values(_statement(snapshot.dialect), parameters):
        if kind == _ROLE:
            found.role_ids[realm].append(value)
        elif realm == ENVIRONMENT:
            found.deployment.extend(json.loads(value))
        else:
            found.own[realm] = json.loads(value) if value else None
    for role_ids in found.role_ids.values():
        role_ids.sort()
    return found


@cache
def _statement(dialect: Dialect) -> TextClause:
    realms = dialect.in_list("realms")
    return text(
        f"SELECT {_ROLE} AS kind, realm, id AS value FROM roles"
        f" WHERE realm IN {realms} AND resource_type_slug = 'organization'"
        f" UNION ALL SELECT {_ORDER}, organization_id, CAST(role_priority AS text)"
        f" FROM organization_configurations WHERE organization_id IN {realms}"
        f" UNION ALL SELECT {_ORDER}, '{ENVIRONMENT}', CAST(role_priority AS text)"
        " FROM configuration"
    )

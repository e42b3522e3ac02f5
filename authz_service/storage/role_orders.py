"""What the order of roles of type organization is made of, for many organizations at once."""

import json
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.storage.database import Snapshot
from authz_service.storage.dialects import Dialect

_ROLE, _ORDER, _DEFAULT = range(3)


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
    realms = [(ENVIRONMENT,), *((each,) for each in organization_ids)]
    parameters = snapshot.dialect.rows_value("realms", realms)
    rows = snapshot.values(_statement(snapshot.dialect), parameters)
    return collect(rows, organization_ids)


def read_with_defaults(
    snapshot: Snapshot, organization_ids: Collection[str]
) -> tuple[RoleOrders, dict[str, str | None]]:
    """Returns the same, and the default role of the environment and of each that exists."""
    realms = [(ENVIRONMENT,), *((each,) for each in organization_ids)]
    parameters = snapshot.dialect.rows_value("realms", realms)
    defaults: dict[str, str | None] = {}
    others = []
    for row in snapshot.values(_with_defaults(snapshot.dialect), parameters):
        if row[0] == _DEFAULT:
            defaults[row[1]] = row[2]
        else:
            others.append(row)
    return collect(others, organization_ids), defaults


def collect(rows: Iterable[Sequence[Any]], organization_ids: Collection[str]) -> RoleOrders:
    """Returns the orders and roles that rows of ``sql`` tell of."""
    found = RoleOrders({realm: [] for realm in (ENVIRONMENT, *organization_ids)}, [], {})
    for kind, realm, value in rows:
        if kind == _ROLE:
            found.role_ids[realm].append(value)
        elif realm == ENVIRONMENT:
            found.deployment.extend(json.loads(value))
        else:
            found.own[realm] = json.loads(value) if value else None
    for role_ids in found.role_ids.values():
        role_ids.sort()
    return found


def sql(dialect: Dialect, realms: str) -> str:
    """Returns the SELECT of kind, realm and value.

    Args:
        realms: A FROM item whose column ``id`` names the environment and organizations.
    """
    return (
        f"SELECT {_ROLE} AS kind, r.realm, r.id AS value FROM {realms}"
        # Realm by realm: the roles of all organizations together are very many.
        + dialect.probe(
            "roles", "r", "r.realm = wanted.id AND r.resource_type_slug = 'organization'"
        )
        + f" UNION ALL SELECT {_ORDER}, c.organization_id, CAST(c.role_priority AS text)"
        f" FROM {realms}"
        + dialect.probe("organization_configurations", "c", "c.organization_id = wanted.id")
        + f" UNION ALL SELECT {_ORDER}, '{ENVIRONMENT}', CAST(role_priority AS text)"
        " FROM configuration"
    )


@cache
def _statement(dialect: Dialect) -> TextClause:
    return text(sql(dialect, f"{dialect.rows('realms', 'id')} wanted"))


@cache
def _with_defaults(dialect: Dialect) -> TextClause:
    realms = f"{dialect.rows('realms', 'id')} wanted"
    return text(
        sql(dialect, realms)
        + f" UNION ALL SELECT {_DEFAULT}, c.organization_id, c.default_role_id FROM {realms}"
        + dialect.probe("organization_configurations", "c", "c.organization_id = wanted.id")
        + f" UNION ALL SELECT {_DEFAULT}, '{ENVIRONMENT}', default_role_id FROM configuration"
    )

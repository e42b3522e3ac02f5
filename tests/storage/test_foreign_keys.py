"""What PostgreSQL asks for a foreign key, planned for tables without statistics."""

import re

import psycopg
import pytest
from psycopg import sql

from tests.servers.postgresql import Databases, libpq_url

FOREIGN_KEYS = """
SELECT conrelid::regclass::text, confrelid::regclass::text, confdeltype = 'c',
  array(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY k (number, place)
    JOIN pg_attribute ON attrelid = conrelid AND attnum = number ORDER BY place),
  array(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY k (number, place)
    JOIN pg_attribute ON attrelid = confrelid AND attnum = number ORDER BY place)
FROM pg_constraint WHERE contype = 'f'
"""
# One row, read whole.
TINY = {"configuration"}


def condition(
    connection: psycopg.Connection, statement: str, table: str, columns: list[str]
) -> str:
    """Returns what the plan of a foreign key's statement looks up in an index."""
    wanted = sql.SQL(" AND ").join(
        sql.SQL("{} = " + f"${number}").format(sql.Identifier(column))
        for number, column in enumerate(columns, 1)
    )
    explained = connection.execute(
        sql.SQL("EXPLAIN (GENERIC_PLAN) " + statement).format(
            table=sql.Identifier(table), wanted=wanted
        )
    )
    return " ".join(row[0] for row in explained if "Index Cond" in row[0])


@pytest.mark.server
def test_foreign_keys_look_up_more_than_the_organization(seeded_databases: Databases) -> None:
    """A plan is kept as long as the table has no statistics, also while it is filled."""
    url = seeded_databases.create(migrated=True)
    options = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
    # Only a cursor that sends plain text can ask for the plan of a statement without its values.
    with psycopg.connect(
        libpq_url(url), options=options, cursor_factory=psycopg.ClientCursor
    ) as connection:
        keys = connection.execute(FOREIGN_KEYS).fetchall()
        assert len(keys) > 20
        for child, parent, cascades, columns, referred in keys:
            look_up = "SELECT 1 FROM ONLY {table} WHERE {wanted} FOR KEY SHARE"
            action = "DELETE FROM ONLY {table} WHERE {wanted}" if cascades else look_up
            for statement, table, names in (
                (look_up, parent, referred),
                (action, child, columns),
            ):
                if table in TINY:
                    continue
                found = condition(connection, statement, table, names)
                telling = [name for name in names if name != "organization_id"] or names
                assert any(re.search(rf"\b{name} = ", found) for name in telling), (
                    table,
                    names,
                    found,
                )
    seeded_databases.drop(url)

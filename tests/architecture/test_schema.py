"""The tables: organizations apart by their keys, ids compared by bytes, migrations up to date."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Text, create_engine, inspect, update

from authz_service.storage import schema
from authz_service.storage.tables import Base, SchemaInfo

# Keyed by what belongs to no organization, or by a realm, which is an organization or everything.
NOT_OF_AN_ORGANIZATION = {
    "cache_state",
    "configuration",
    "event_positions",
    "event_queue",
    "events",
    "kept_replies",
    "node_lease",
    "permissions",
    "realms",
    "resource_type_parents",
    "resource_types",
    "role_permissions",
    "roles",
    "schema_info",
    "service_credentials",
    "users",
}
TABLES = {table.name: table for table in Base.metadata.sorted_tables}


@pytest.mark.parametrize("name", sorted(TABLES.keys() - NOT_OF_AN_ORGANIZATION))
def test_every_key_of_an_organizations_table_names_the_organization(name: str) -> None:
    table = TABLES[name]
    key = {column.name for column in table.primary_key.columns}
    assert key & {"organization_id", "id"} if name == "organizations" else "organization_id" in key
    for constraint in table.foreign_key_constraints:
        target = constraint.referred_table.name
        if target not in NOT_OF_AN_ORGANIZATION | {"organizations"}:
            assert "organization_id" in constraint.column_keys, constraint.name


def test_ids_and_slugs_compare_by_bytes_on_postgresql() -> None:
    for table in TABLES.values():
        for column in table.columns:
            is_key = column.primary_key or column.unique or column.foreign_keys
            if is_key and isinstance(column.type, Text):
                variant = column.type._variant_mapping.get("postgresql", column.type)
                assert getattr(variant, "collation", None) == "C" or column.name == "source", (
                    f"{table.name}.{column.name}"
                )


def differences(url: str) -> list[object]:
    """What a new migration would have to do."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            return list(compare_metadata(context, Base.metadata))
    finally:
        engine.dispose()


@pytest.mark.both_databases
def test_migrations_lead_to_the_tables_and_back(backend: str, database_url: str) -> None:
    assert differences(database_url) == []
    schema.check(database_url)
    schema.downgrade(database_url, "base")
    engine = create_engine(database_url)
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    engine.dispose()
    with pytest.raises(schema.SchemaError, match="no schema"):
        schema.check(database_url)
    schema.upgrade(database_url)
    assert differences(database_url) == []


@pytest.mark.both_databases
def test_database_of_another_compat_number_is_refused(backend: str, database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(update(SchemaInfo).values(compat=schema.COMPAT + 1))
    engine.dispose()
    with pytest.raises(schema.SchemaError, match="compat number"):
        schema.check(database_url)

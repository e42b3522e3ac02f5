"""Brings a database to this program's schema, and refuses one that is not for it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select

from authz_service.storage import dialects
from authz_service.storage.tables import SchemaInfo

# Raised only by a release whose schema older programs must not meet.
COMPAT = 1
_MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The database is not one that this program may use; the text says what to do."""


def _configuration(url: str) -> Config:
    configuration = Config()
    configuration.set_main_option("script_location", str(_MIGRATIONS))
    configuration.attributes["url"] = url
    return configuration


def upgrade(url: str, revision: str = "head") -> None:
    """Runs all migrations that the database has not seen."""
    command.upgrade(_configuration(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Goes back to an older revision, ``base`` for none."""
    command.downgrade(_configuration(url), revision)


def head() -> str:
    """Returns the name of the newest revision this program knows."""
    script = ScriptDirectory.from_config(_configuration("sqlite://"))
    return script.get_current_head() or ""


def check(url: str) -> None:
    """Refuses a database without our schema, behind it, or too new for this program.

    A newer revision with the same compat number is served: that is how a release is rolled back.

    Raises:
        SchemaError: What is wrong and which command mends it.
    """
    engine = dialects.engine(url, pool_size=1, lock_seconds=2, statement_seconds=5, wait_seconds=5)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table(SchemaInfo.__tablename__):
                raise SchemaError("the database has no schema yet: run `authz migrate`")
            compat = connection.execute(select(SchemaInfo.compat)).scalar_one()
            if compat != COMPAT:
                raise SchemaError(
                    f"the database has compat number {compat}, this program needs {COMPAT}:"
                    " run the release that fits it, or `authz migrate`"
                )
            current = MigrationContext.configure(connection).get_current_revision()
            known = {
                script.revision
                for script in ScriptDirectory.from_config(_configuration(url)).walk_revisions()
            }
            if current in known and current != head():
                raise SchemaError("the database is behind this program: run `authz migrate`")
    finally:
        engine.dispose()

"""``authz config``, ``keys`` and ``migrate``: what an operator does around a service."""

import base64
import os
from typing import Annotated

import typer

from authz_service.cli import app
from authz_service.cli.output import fail, line, note


@app.command()
def config() -> None:
    """Prints the effective settings without secrets, or everything that is wrong with them."""
    from authz_service.config import Config, ConfigError

    try:
        effective = Config.from_environment()
    except ConfigError as error:
        fail(str(error))
    for variable, value in effective.redacted().items():
        line(f"{variable}={value}")


@app.command()
def keys(
    kind: Annotated[str, typer.Argument(help="root or credential")],
) -> None:
    """Makes up a root key, or a first credential; prints it once and keeps it nowhere."""
    if kind == "root":
        line(base64.b64encode(os.urandom(32)).decode())
        note("for AUTHZ_ROOT_KEYS; whoever has it can forge tokens and check stolen hashes")
    elif kind == "credential":
        from authz_service.base import ids, secrets

        made = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, ids.new(ids.CREDENTIAL))
        line(made.reveal())
        note("for AUTHZ_FIRST_CREDENTIAL; it has scope admin for as long as that is set")
    else:
        fail("keys: say root or credential")


@app.command()
def migrate(
    revision: Annotated[str, typer.Option(help="to this revision")] = "head",
    down: Annotated[bool, typer.Option("--down", help="go back to the revision")] = False,
) -> None:
    """Brings the database to this program's schema, and writes the first rows into an empty one."""
    from authz_service.config import Config, ConfigError
    from authz_service.storage import schema

    try:
        url = Config.from_environment().database.url.reveal()
    except ConfigError as error:
        fail(str(error))
    if down:
        if revision == "head":
            fail("migrate --down: say with --revision where to go back to, `base` for nothing")
        schema.downgrade(url, revision)
        line(f"schema is at {revision}")
        return
    from authz_service.server import prepare

    prepare(url, revision)
    line(f"schema is at {schema.head() if revision == 'head' else revision}")

"""A PostgreSQL and another one that follows it, for tests of a failover.

Both are ``authz_service.stack.postgresql`` servers, durable ones, since only those write what a
standby needs; what costs time there and protects against a power cut only is turned off by
settings.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from authz_service.stack.postgresql import Server, postgresql
from tests.servers.postgresql import libpq_url

_CALLED = "standby"
_SECONDS = 60
# The primary waits for whoever follows it.
SYNCHRONOUS, ASYNCHRONOUS = "*", ""


@contextlib.contextmanager
def primary() -> Iterator[Server]:
    """Starts a PostgreSQL that others may follow."""
    with _folder() as folder, postgresql(folder / "data", durable=True) as server:
        configure(server, fsync="off", full_page_writes="off")
        yield server


@contextlib.contextmanager
def standby(of: Server) -> Iterator[Server]:
    """Starts a PostgreSQL that follows another one, from a backup made now."""
    with _folder() as folder:
        data = folder / "data"
        _back_up(of, data)
        with postgresql(data, durable=True) as server:
            yield server


def configure(server: Server, **settings: str) -> None:
    """Changes settings of a running server that need no restart."""
    with psycopg.connect(libpq_url(server.url), autocommit=True) as connection:
        # Nobody need confirm what is no data.
        connection.execute("SET synchronous_commit = local")
        for name, value in settings.items():
            statement = sql.SQL("ALTER SYSTEM SET {} = {}")
            connection.execute(statement.format(sql.Identifier(name), sql.Literal(value)))
        connection.execute("SELECT pg_reload_conf()")


def promote(server: Server) -> None:
    """Makes a standby a primary, on a timeline of its own, that waits for nobody."""
    with psycopg.connect(libpq_url(server.url), autocommit=True) as connection:
        connection.execute("SELECT pg_promote(true, %s)", (_SECONDS,))
    configure(server, synchronous_standby_names=ASYNCHRONOUS)


def sender_pid(server: Server) -> int:
    """Returns the process of a primary that sends to its standby what is written."""
    with psycopg.connect(libpq_url(server.url), autocommit=True) as connection:
        (row,) = connection.execute("SELECT pid FROM pg_stat_replication").fetchall()
    return int(row[0])


def position(server: Server) -> str:
    """Returns up to where a primary has written."""
    return _value(server, "SELECT pg_current_wal_lsn()::text")


def has(server: Server, there: str) -> bool:
    """Returns whether a standby has taken over all up to a position of its primary."""
    return _value(server, f"SELECT (pg_last_wal_replay_lsn() >= '{there}')::text") == "true"


def _value(server: Server, statement: str) -> str:
    with psycopg.connect(libpq_url(server.url), autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def is_followed(server: Server, state: str = "streaming", sync: str = "") -> bool:
    """Returns whether a standby follows a server.

    Args:
        sync: How: ``sync``, ``async``; empty = in any way.
    """
    with psycopg.connect(libpq_url(server.url), autocommit=True) as connection:
        rows = connection.execute("SELECT state, sync_state FROM pg_stat_replication").fetchall()
    return any(row[0] == state and sync in ("", row[1], "quorum" if sync else "") for row in rows)


def _back_up(server: Server, data: Path) -> None:
    """Copies a running server into a folder, from which its standby can be started."""
    bin = Path(os.readlink(f"/proc/{server.pid}/exe")).parent
    sockets = psycopg.conninfo.conninfo_to_dict(libpq_url(server.url))["host"]
    owner = server.data_directory.stat()
    subprocess.run(
        [
            str(bin / "pg_basebackup"),
            f"--pgdata={data}",
            f"--host={sockets}",
            "--username=postgres",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--write-recovery-conf",
            "--no-sync",
        ],
        check=True,
        timeout=_SECONDS,
        env={"LC_ALL": "C", "PATH": os.defpath, "PGAPPNAME": _CALLED},
        user=owner.st_uid if os.getuid() == 0 else None,
        group=owner.st_gid if os.getuid() == 0 else None,
        extra_groups=[] if os.getuid() == 0 else None,
        cwd=data.parent,
    )


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Makes a folder that the user a server runs as can reach, and write a backup to."""
    folder = Path(tempfile.mkdtemp(prefix="authz-failover-"))
    try:
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

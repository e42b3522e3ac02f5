"""What serving processes hold: threads, descriptors, connections to PostgreSQL and to Redis."""

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import psycopg

from tests.consistency.stack import CALLED, Service, Stack, within
from tests.servers.postgresql import libpq_url

# What a process may come to hold once it has been busy: its two pools of SQL connections, a
# connection to Redis for each thread that serves calls, two in the background and one of the event
# loop, and its threads, which are made when they are needed first: those of the decision front are
# its loop, who watches it, as many as serve calls, and one that connects. Beyond that, and beyond
# what it held before, is a leak.
SQL_MAX, REDIS_MAX, THREADS_MAX = 10 + 3, 2 * 8 + 2 + 1, 32 + 2 + 8 + 1
# What is under way when a run ends may take so long to end as well.
_SECONDS = 30.0
# States of a connection in /proc/net/tcp: established, and closed by the other side alone.
_OPEN = {"01", "08"}


class Held(NamedTuple):
    """What a process holds.

    Attributes:
        others: Descriptors that are no connection to PostgreSQL or Redis.
        busy: Connections to PostgreSQL with a statement or a transaction under way.
    """

    threads: int
    others: int
    sql: int
    redis: int
    busy: int


def held(stack: Stack, redis_ports: Collection[int]) -> dict[int, Held]:
    """Returns what the running processes of a stack hold, by their process ids."""
    with psycopg.connect(libpq_url(stack.database_url)) as connection:
        rows = connection.execute(
            "SELECT application_name, state IS DISTINCT FROM 'idle' FROM pg_stat_activity"
            " WHERE backend_type = 'client backend'"
        ).fetchall()
    sql = Counter(name for name, _ in rows)
    busy = Counter(name for name, is_busy in rows if is_busy)
    remote = _remote_ports()
    return {
        service.pid: _held_by(service, sql, busy, remote, redis_ports)
        for service in stack.services
        if service.is_running()
    }


def leaks(before: Mapping[int, Held], stack: Stack, redis_ports: Collection[int]) -> list[str]:
    """Returns what processes hold too much of, once all that was under way has had time to end.

    Args:
        before: What they held before a run. One that was started since is compared with the others.
    """
    found: list[str] = []

    def is_settled() -> bool:
        found[:] = grown(before, held(stack, redis_ports))
        return not found

    within(_SECONDS, is_settled)
    return found


def grown(before: Mapping[int, Held], after: Mapping[int, Held]) -> list[str]:
    """Returns what processes hold more of than before and than they may."""
    others = max((each.others for each in before.values()), default=0)
    found = []
    for pid, now in after.items():
        old = before.get(pid, Held(0, 0, 0, 0, 0))
        limit = Held(
            threads=max(old.threads, THREADS_MAX),
            others=max(old.others, others),
            sql=max(old.sql, SQL_MAX),
            redis=max(old.redis, REDIS_MAX),
            busy=0,
        )
        found += [
            f"leaked: {name} of {pid}: {count}, at most {most}"
            for name, count, most in zip(Held._fields, now, limit, strict=True)
            if count > most
        ]
    return found


def _held_by(
    service: Service,
    sql: Counter[str],
    busy: Counter[str],
    remote: dict[str, int],
    redis_ports: Collection[int],
) -> Held:
    name = CALLED.format(service.number)
    files = _files(service.pid)
    redis = sum(remote.get(file) in redis_ports for file in files)
    others = len(files) - redis - sql[name]
    threads = len(os.listdir(f"/proc/{service.pid}/task"))
    return Held(threads, others, sql[name], redis, busy[name])


def _files(pid: int) -> list[str]:
    """Returns what the descriptors of a process are."""
    found = []
    folder = Path(f"/proc/{pid}/fd")
    for each in folder.iterdir():
        # One may be closed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(each))
    return found


def _remote_ports() -> dict[str, int]:
    """Returns the ports that sockets of this machine are connected to, by their descriptors."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, *_, inode = line.split()[:10]
        if state in _OPEN:
            found[f"socket:[{inode}]"] = int(remote.rpartition(":")[2], 16)
    return found

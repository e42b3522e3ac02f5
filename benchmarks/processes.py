"""CPU time of processes, and a service to measure: its own process on its own PostgreSQL."""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from authz_service.client.health import is_serving_within
from authz_service.config import dev_environment, foreign_environment

_TICKS = os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.processor(),
    )  # fmt: skip
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        **{name: version(name) for name in ("grpcio", "protobuf", "sqlalchemy", "psycopg")},
    }


def cpu_seconds(pid: int) -> float:
    """Returns user and system time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_seconds_of_children(pid: int) -> float:
    """Returns the time of a process's living children; PostgreSQL's backends are of this kind."""
    total = 0.0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


@dataclass(frozen=True, slots=True)
class Served:
    """A running service.

    Attributes:
        address: Where it listens.
        bearer: A credential with scope admin.
        pid: Of the serving process.
    """

    address: str
    bearer: str
    pid: int


@contextlib.contextmanager
def service(database_url: str, **settings: str) -> Iterator[Served]:
    """Runs ``authz serve`` on a database that is ready, and ends it by its process id."""
    with tempfile.TemporaryDirectory(prefix="authz-bench-") as folder:
        address = f"unix:{folder}/authz.sock"
        environment, _ = dev_environment(
            {
                **foreign_environment(),
                "AUTHZ_DATABASE_URL": database_url,
                "AUTHZ_LISTEN": address,
                "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
                "AUTHZ_RATE_PER_SECOND": "0",
                "AUTHZ_QUEUE_SECONDS_MAX": "10",
                **settings,
            }
        )
        log = Path(folder) / "log"
        with log.open("wb") as output:
            running = subprocess.Popen(
                [sys.executable, "-m", "authz_service", "serve"],
                env=environment,
                stdout=output,
                stderr=output,
            )
        try:
            ready = settings.get("AUTHZ_HEALTH_LISTEN", address)
            if not is_serving_within(ready, 60, ended=running.wait):
                raise RuntimeError(log.read_text()[-4_000:])
            yield Served(address, environment["AUTHZ_FIRST_CREDENTIAL"], running.pid)
        finally:
            running.terminate()
            running.wait(30)

"""The servers of a run: PostgreSQL, Valkey or Redis, and serving processes on unix sockets."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import psycopg
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from authz_service.base.clock import boot_seconds
from authz_service.client.health import is_serving_within
from authz_service.config import dev_environment, foreign_environment
from authz_service.server import prepare
from authz_service.stack import postgresql as postgresql_stack
from authz_service.stack import valkey as valkey_stack
from tests.servers.debian import redis_7

_ROOT = Path(__file__).parents[2]
# What PostgreSQL calls the connections of a process.
CALLED = "authz-{}"
_START_SECONDS = 60.0
_END_SECONDS = 30.0


def pause(seconds: float) -> None:
    """Lets time pass: a load and a fault have a length."""
    threading.Event().wait(seconds)


def within(seconds: float, condition: Callable[[], object]) -> float | None:
    """Waits for a condition and returns after how many seconds it held, None if not in time."""
    began = boot_seconds()
    while not condition():
        if boot_seconds() - began > seconds:
            return None
        pause(0.02)
    return boot_seconds() - began


class Service:
    """A place for a serving process, and the process in it.

    Args:
        number: 0 and up.
        folder: For its socket, log and failpoints.
        environment: All its settings but where it listens.
        orders: For ``tests.consistency.server``; None = plain ``authz serve``.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        environment: Mapping[str, str],
        orders: Mapping[str, object] | None,
    ) -> None:
        self.number = number
        self.address = f"unix:{folder}/{number}.sock"
        self.decisions_address = f"unix:{folder}/{number}-d.sock"
        self.log = folder / f"{number}.log"
        self.failpoints = folder / f"failpoints-{number}"
        self.failpoints.mkdir()
        # Bound and never listening, it keeps the port for the process, also while that is down.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{self._port.getsockname()[1]}"
        self._page = f"http://{metrics}/metrics"
        self._environment = {
            **environment,
            "AUTHZ_LISTEN": self.address,
            "AUTHZ_DECISIONS_LISTEN": self.decisions_address,
            "AUTHZ_METRICS_LISTEN": metrics,
            "PYTHONPATH": str(_ROOT),
        }
        self._command = [sys.executable, "-m", "authz_service", "serve"]
        if orders is not None:
            given = {"failpoints": str(self.failpoints), **orders}
            self._command = [sys.executable, "-m", "tests.consistency.server", json.dumps(given)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Returns the process id; 0 while there is no process."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Starts the process; ``wait`` for it."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=_ROOT, stdout=output, stderr=output
            )

    def change(self, **settings: str) -> None:
        """Changes settings of the processes that are started from now on; empty = the default."""
        for name, value in settings.items():
            self._environment.pop(name, None)
            if value:
                self._environment[name] = value

    def wait(self) -> None:
        """Waits until it serves.

        Raises:
            RuntimeError: It does not, with the end of its log.
        """
        process = self._process
        assert process is not None
        if not is_serving_within(self.address, _START_SECONDS, ended=process.wait):
            raise RuntimeError(self.log.read_text()[-4_000:])

    def is_running(self) -> bool:
        """Returns whether there is a process that has not ended."""
        return self._process is not None and self._process.poll() is None

    def is_stopped(self) -> bool:
        """Returns whether the process is paused (state T)."""
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kills the process and waits for its end."""
        self.send(signal.SIGKILL)
        self.reap()

    def reap(self) -> int:
        """Waits for the end of the process and returns how it ended."""
        assert self._process is not None
        return self._process.wait(_END_SECONDS)

    def order(self, point: str, what: signal.Signals) -> None:
        """Has the process kill or stop itself at a point of its next write."""
        self._put(point, what.name)

    def shift_clock(self, seconds: float) -> None:
        """Lets the wall clock of the process be ahead by so much; it is one that takes orders."""
        self._put("clock", str(seconds))

    def rate_clock(self, rate: float) -> None:
        """Lets the boot clock of the process run at a rate; it is one that takes orders."""
        self._put("rate", str(rate))

    def _put(self, name: str, text: str) -> None:
        unfinished = self.failpoints / "unfinished"
        unfinished.write_text(text)
        unfinished.rename(self.failpoints / name)

    def was_obeyed(self, point: str) -> bool:
        """Returns whether an order was taken, once for each order."""
        try:
            (self.failpoints / f"{point}.done").unlink()
        except FileNotFoundError:
            return False
        return True

    def withdraw(self) -> None:
        """Takes back all orders."""
        for order in self.failpoints.iterdir():
            with contextlib.suppress(FileNotFoundError):
                order.unlink()

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Returns all samples of its metrics: (name, values of labels...) to value."""
        with urllib.request.urlopen(self._page, timeout=5) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def is_cache_on(self) -> bool:
        """Returns whether it may answer from the cache now."""
        try:
            return self.metrics()["authz_cache_mode",] == 1.0
        except OSError:
            return False

    def has_lease(self) -> bool:
        """Returns whether it has a lease, whatever the mode of the cache is."""
        try:
            return self.metrics()["authz_cache_lease_remaining_seconds",] > 0
        except OSError:
            return False

    def errors(self) -> list[str]:
        """Returns lines of its log that tell of a bug: tracebacks and errors."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if "Traceback" in line or '"level":"error"' in line]

    def told(self, event: str, **fields: object) -> int:
        """Returns how many lines of its log tell of an event with these fields."""
        count = 0
        for line in self.log.read_text(errors="replace").splitlines():
            if event not in line:
                continue
            entry = json.loads(line)
            is_of_it = entry.get("event") == event
            count += is_of_it and fields.items() <= entry.items()
        return count

    def answers_health(self, seconds: float) -> float | None:
        """Returns after how many seconds it says whether it serves, None if it does not in time."""
        began = boot_seconds()
        with grpc.insecure_channel(self.address) as channel:
            try:
                HealthStub(channel).Check(HealthCheckRequest(), timeout=seconds)
            except grpc.RpcError:
                return None
        return boot_seconds() - began

    def end(self) -> None:
        """Ends the process as an operator would, or kills it if that does not help."""
        self._port.close()
        if not self.is_running():
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        assert self._process is not None
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Servers:
    """PostgreSQL and Valkey or Redis, for one or several stacks after each other.

    Attributes:
        program: What a second server like ``redis`` is started from.
    """

    postgresql: postgresql_stack.Server
    redis: valkey_stack.Server
    program: valkey_stack.Program | None = None

    def database(self, name: str) -> str:
        """Makes a database with schema and first rows, and returns its URL."""
        with psycopg.connect(
            self.postgresql.url.replace("+psycopg", ""), autocommit=True
        ) as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE prepared").format(sql.Identifier(name))
            )
        return self.postgresql.url_of(name)


@contextlib.contextmanager
def servers(redis: str = "valkey") -> Iterator[Servers]:
    """Starts both servers.

    Args:
        redis: ``valkey`` or ``redis``.
    """
    program = redis_7() if redis == "redis" else None
    with postgresql_stack.postgresql() as database, valkey_stack.valkey(program) as cache:
        prepared(database)
        yield Servers(database, cache, program)


def prepared(server: postgresql_stack.Server) -> None:
    """Makes the database with schema and first rows that those of the stacks are copied from."""
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE DATABASE prepared")
    prepare(server.url_of("prepared"))


@dataclass
class Stack:
    """Serving processes on one database.

    Attributes:
        bearer: A credential with scope admin.
        is_naive: Whether their cache is the one that lies.
    """

    servers: Servers
    services: list[Service]
    database_url: str
    bearer: str
    is_naive: bool
    lease_seconds: float


@contextlib.contextmanager
def stack(
    under: Servers,
    name: str,
    *,
    naive: bool,
    seed: int,
    processes: int = 3,
    lease_seconds: float = 1.5,
    fill_seconds: float = 0.06,
    redis_urls: Mapping[int, str] | None = None,
    database_ports: Mapping[int, int] | None = None,
    settings: Mapping[str, str] | None = None,
    orders: Mapping[str, object] | None = None,
) -> Iterator[Stack]:
    """Starts serving processes on a fresh database, the first of them as users start it.

    Args:
        orders: More for ``tests.consistency.server``; the first process is one of it too then.
        name: Of the database.
        redis_urls: Where single processes look for Redis, if not at its port.
        database_ports: Of loopback, where single processes look for PostgreSQL, if not at its
            socket.
    """
    url = under.database(name)
    with tempfile.TemporaryDirectory(prefix="authz-histories-") as folder:
        environment, _ = dev_environment(
            {
                **foreign_environment(),
                "AUTHZ_DATABASE_URL": url,
                "AUTHZ_LISTEN": "unix:/nowhere",
                "AUTHZ_RATE_PER_SECOND": "0",
                "AUTHZ_QUEUE_SECONDS_MAX": "10",
                "AUTHZ_LOG_ALLOWED_RATIO": "0",
                "AUTHZ_CACHE_LEASE_SECONDS": str(lease_seconds),
                "AUTHZ_DRAIN_SECONDS": "2",
                **(settings or {}),
            }
        )
        services = []
        ports = database_ports or {}
        for number in range(processes):
            own_url = url
            if number in ports:
                own_url = f"postgresql+psycopg://postgres@127.0.0.1:{ports[number]}/{name}?"
            own = {
                "AUTHZ_REDIS_URL": (redis_urls or {}).get(number, under.redis.url),
                "AUTHZ_DATABASE_URL": f"{own_url}&application_name={CALLED.format(number)}",
            }
            given = {
                "naive": naive,
                "fill_seconds": fill_seconds,
                "seed": seed + number,
                **(orders or {}),
            }
            plain = number == 0 and not naive and orders is None
            services.append(
                Service(number, Path(folder), {**environment, **own}, None if plain else given)
            )
        try:
            for service in services:
                service.start()
            with ThreadPoolExecutor(processes) as together:
                list(together.map(Service.wait, services))
            if (
                not naive
                and within(_START_SECONDS, lambda: all(map(Service.is_cache_on, services))) is None
            ):
                raise RuntimeError("the cache was not enabled")
            yield Stack(
                under, services, url, environment["AUTHZ_FIRST_CREDENTIAL"], naive, lease_seconds
            )
        finally:
            with ThreadPoolExecutor(processes) as together:
                list(together.map(Service.end, services))


def machine() -> str:
    """Returns on what a run was made."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    return f"{os.cpu_count()} x {model}"


def commit() -> str:
    """Returns the commit of the checkout, with a plus sign if files of the product differ."""
    git = ["git", "-C", str(_ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "authz_service"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return f"{head or 'unknown'}{'+' if changed else ''}"

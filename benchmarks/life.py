"""What the cache costs writes, how it comes to itself when cold, and what it weighs."""

import random
import re
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psycopg

from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.pb.authz.v1 import authorization_pb2_grpc, role_assignments_pb2_grpc
from authz_service.pb.authz.v1 import role_assignments_pb2 as assignments_pb
from authz_service.server import prepare
from authz_service.stack.postgresql import postgresql
from authz_service.stack.valkey import valkey
from benchmarks.decisions import READ, _resource, _subject
from benchmarks.processes import Served, service
from benchmarks.world import World, build

# Questions of the cold start: as many as a few seconds ask, Zipf over those who are online.
ONLINE = 2_000
THREADS = 32
CHURN_BYTES = 8 * 1024 * 1024
WORLD = {"organizations": 50, "members": 200, "documents": 1_000, "each": 8}


def run(*, rounds: int = 5, writes: int = 200) -> dict[str, Any]:
    """Returns what each of the three measurements found."""
    with postgresql(durable=True) as database, valkey() as redis:
        url = database.url_of("postgres")
        prepare(url)
        world = build(url, **WORLD)
        found = {"write": _writes(url, redis.url, world, rounds=rounds, writes=writes)}
        found["cold"] = _cold(url, redis.url, world)
        found["memory"] = _memory(url, redis.url, world)
    return found


def _metadata(served: Served) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {served.bearer}"),)


def _writes(
    url: str, redis_url: str, world: World, *, rounds: int, writes: int
) -> dict[str, float]:
    """Times grants and revokes, with and without the cache in turn, each on the same database."""
    took: dict[str, list[float]] = {"without": [], "with": []}
    role = "document-reader"
    for number in range(rounds):
        for kind, more in (("without", {}), ("with", {"AUTHZ_REDIS_URL": redis_url})):
            port = _free_port()
            with (
                service(url, AUTHZ_METRICS_LISTEN=f"127.0.0.1:{port}", **more) as served,
                grpc.insecure_channel(served.address) as channel,
            ):
                if more:
                    _until("authz_cache_mode", 1.0, port)
                stub = role_assignments_pb2_grpc.RoleAssignmentServiceStub(channel)
                metadata = _metadata(served)
                first = world.organizations[number % len(world.organizations)]
                for member, document in zip(first.members, first.documents, strict=False):
                    if len(took[kind]) >= (number + 1) * writes:
                        break
                    begun = time.perf_counter()
                    made = stub.CreateRoleAssignment(
                        assignments_pb.CreateRoleAssignmentRequest(
                            organization_membership_id=member,
                            role_slug=_role(url, role),
                            resource=_resource(document),
                        ),
                        metadata=metadata,
                        timeout=10,
                    )
                    took[kind].append(time.perf_counter() - begun)
                    stub.DeleteRoleAssignment(
                        assignments_pb.DeleteRoleAssignmentRequest(
                            role_assignment_id=made.role_assignment.id
                        ),
                        metadata=metadata,
                        timeout=10,
                    )
    p50 = {kind: statistics.median(times) * 1e3 for kind, times in took.items()}
    return {
        "without_p50_ms": round(p50["without"], 3),
        "with_p50_ms": round(p50["with"], 3),
        "more_ms": round(p50["with"] - p50["without"], 3),
        "writes": len(took["with"]),
    }


_ROLES: dict[str, str] = {}


def _role(url: str, wanted: str) -> str:
    """Returns a role that can be assigned on a document."""
    if wanted not in _ROLES:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            row = connection.execute(
                "SELECT slug FROM roles WHERE resource_type_slug = 'document' ORDER BY slug LIMIT 1"
            ).fetchone()
        assert row is not None
        _ROLES[wanted] = row[0]
    return _ROLES[wanted]


def _requests(world: World, count: int, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        organization = chance.choice(world.organizations)
        found.append(
            pb.CheckRequest(
                subject=_subject(chance.choice(organization.members)),
                permission_slug=READ,
                resource=_resource(chance.choice(organization.documents)),
            ).SerializeToString()
        )
    return found


def _cold(url: str, redis_url: str, world: World) -> dict[str, float]:
    """Asks a service that knows nothing, and times how long until nine of ten answers are known."""
    asked = _requests(world, ONLINE, 3)
    weights = [1 / (place + 1) for place in range(ONLINE)]
    chance = random.Random(4)
    order = chance.choices(range(ONLINE), weights, k=400_000)
    port = _free_port()
    with (
        service(
            url,
            AUTHZ_REDIS_URL=redis_url,
            AUTHZ_METRICS_LISTEN=f"127.0.0.1:{port}",
            AUTHZ_SERVER_THREADS="16",
        ) as served,
        grpc.insecure_channel(served.address) as channel,
        psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as watching,
    ):
        _until("authz_cache_mode", 1.0, port)
        call = channel.unary_unary("/authz.v1.AuthorizationService/Check")
        metadata, stop = _metadata(served), threading.Event()
        place = iter(order)

        def ask() -> None:
            while not stop.is_set():
                number = next(place, None)
                if number is None:
                    return
                call(asked[number], metadata=metadata, timeout=30)

        most = 0
        with ThreadPoolExecutor(THREADS) as pool:
            begun = time.perf_counter()
            for _ in range(THREADS):
                pool.submit(ask)
            before = _answers(port)
            while True:
                row = watching.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
                    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                ).fetchone()
                most = max(most, row[0] if row else 0)
                stop.wait(0.05)
                now = _answers(port)
                hits = sum(now.get(k, 0) - before.get(k, 0) for k in ("view", "l2"))
                asked_now = sum(now.values()) - sum(before.values())
                before = now
                if asked_now and hits / asked_now >= 0.9:
                    break
            seconds = time.perf_counter() - begun
            stop.set()
    return {"seconds_to_90": round(seconds, 2), "sql_at_once": most, "cap": 8, "online": ONLINE}


def _memory(url: str, redis_url: str, world: World) -> dict[str, float]:
    """Weighs a process before and after it learned facts, and one whose budget is too small."""
    found: dict[str, float] = {}
    for name, settings in (
        ("roomy", {}),
        ("tight", {"AUTHZ_CACHE_L1_BYTES": str(CHURN_BYTES)}),
    ):
        port = _free_port()
        with (
            service(
                url,
                AUTHZ_REDIS_URL=redis_url,
                AUTHZ_METRICS_LISTEN=f"127.0.0.1:{port}",
                **settings,
            ) as served,
            grpc.insecure_channel(served.address) as channel,
        ):
            _until("authz_cache_mode", 1.0, port)
            stub = authorization_pb2_grpc.AuthorizationServiceStub(channel)
            metadata = _metadata(served)
            _learn(stub, metadata, world, world.organizations[:2])
            before = _resident(served.pid)
            for _ in range(2):
                _learn(stub, metadata, world, world.organizations)
            told = _told(port)
            grown = _resident(served.pid) - before
            entries = told["authz_cache_entries"]
            found[f"{name}_entries"] = entries
            found[f"{name}_told_bytes"] = told["authz_cache_bytes"]
            found[f"{name}_grown_bytes"] = grown
            found[f"{name}_bytes_per_fact"] = round(grown / max(1.0, entries), 1)
    found["tight_budget_bytes"] = CHURN_BYTES
    return found


def _learn(stub: Any, metadata: Any, world: World, organizations: Sequence[Any]) -> None:
    for organization in organizations:
        for member in organization.members:
            stub.BatchCheck(
                pb.BatchCheckRequest(
                    items=[
                        pb.BatchCheckItem(
                            subject=_subject(member),
                            permission_slug=READ,
                            resource=_resource(document),
                        )
                        for document in organization.documents[:20]
                    ]
                ),
                metadata=metadata,
                timeout=60,
            )


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _told(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        name: float(value) for name, value in re.findall(r"^(\w+) ([0-9.e+]+)$", text, re.MULTILINE)
    }


def _answers(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    pattern = r'^authz_cache_answers_total\{from="(\w+)"\} ([0-9.e+]+)$'
    return {name: float(value) for name, value in re.findall(pattern, text, re.MULTILINE)}


def _until(metric: str, value: float, port: int) -> None:
    """Waits until the cache is on."""
    deadline = time.monotonic() + 30
    while _told(port).get(metric) != value:
        if time.monotonic() > deadline:
            raise RuntimeError("the cache did not begin")
        time.sleep(0.05)

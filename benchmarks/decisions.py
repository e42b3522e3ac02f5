"""Decisions and lists from PostgreSQL: CPU of server and database, as ratios to a bare empty RPC.

In every round the bare server is measured too, so that a ratio compares what the machine did at the
same time. Every answer is compared with what the world says it must be.
"""

import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import psycopg

from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.pb.authz.v1 import core_pb2
from authz_service.server import prepare
from authz_service.stack.postgresql import Server, postgresql
from benchmarks import empty
from benchmarks.processes import Served, cpu_seconds, cpu_seconds_of_children, service
from benchmarks.world import World, build

SERVICE = "/authz.v1.AuthorizationService/"
READ = "document:p0"
SMALL = {"organizations": 1, "members": 500, "documents": 1_000, "each": 2}
MEDIUM = {"organizations": 50, "members": 200, "documents": 1_000, "each": 8}
LARGE = {"organizations": 10, "members": 10_000, "documents": 10_000, "each": 10}


@dataclass(frozen=True, slots=True)
class Question:
    """A call to measure.

    Attributes:
        name: In the table.
        method: Name of the RPC.
        requests: Serialised; taken in turn.
        items: Answers in one call: costs are divided by it.
        in_flight: Calls at once.
        calls: Of one round.
        check: Says whether a response is right.
    """

    name: str
    method: str
    requests: Sequence[bytes]
    items: int
    in_flight: int
    calls: int
    check: Callable[[bytes], bool]


def _subject(id: str) -> core_pb2.Subject:
    return core_pb2.Subject(organization_membership_id=id)


def _resource(id: str) -> core_pb2.ResourceRef:
    return core_pb2.ResourceRef(resource_id=id)


def _pairs(world: World, count: int, chance: random.Random) -> list[tuple[str, str, str]]:
    made = []
    for _ in range(count):
        organization = chance.choice(world.organizations)
        made.append(
            (
                chance.choice(organization.members),
                f"document:p{chance.randrange(40)}",
                chance.choice(organization.documents),
            )
        )
    return made


def _answers(data: bytes) -> bool:
    response = pb.BatchCheckResponse.FromString(data)
    return all(result.HasField("decision") for result in response.results)


def questions(world: World, *, calls: int = 2_000) -> list[Question]:
    """Returns the questions of section 7 of the quality document that need no cache."""
    chance = random.Random(7)
    checks = [
        pb.CheckRequest(
            subject=_subject(member), permission_slug=slug, resource=_resource(document)
        ).SerializeToString()
        for member, slug, document in _pairs(world, 20_000, chance)
    ]
    mixed = [
        pb.BatchCheckRequest(
            items=[
                pb.BatchCheckItem(
                    subject=_subject(member), permission_slug=slug, resource=_resource(document)
                )
                for member, slug, document in _pairs(world, 1_000, chance)
            ]
        ).SerializeToString()
        for _ in range(10)
    ]
    first = world.organizations[0]
    one_subject = [
        pb.BatchCheckRequest(
            items=[
                pb.BatchCheckItem(
                    subject=_subject(member), permission_slug=READ, resource=_resource(document)
                )
                for document in first.documents[:1_000]
            ]
        ).SerializeToString()
        for member in first.members[:10]
    ]
    resources = pb.AuthorizationServiceListResourcesRequest(
        subject=_subject(world.reader), permission_slugs=[READ], page_size=100
    ).SerializeToString()
    members = pb.ListMembersRequest(
        resource=_resource(world.shared), permission_slug=READ, page_size=100
    ).SerializeToString()
    few = max(20, calls // 100)
    return [
        Question("Check, 16 in flight", "Check", checks, 1, 16, calls, _is_check),
        Question("Check, one in flight", "Check", checks, 1, 1, calls, _is_check),
        Question(
            "BatchCheck 1,000, one subject", "BatchCheck", one_subject, 1_000, 1, few, _answers
        ),
        Question("BatchCheck 1,000, mixed", "BatchCheck", mixed, 1_000, 1, few, _answers),
        Question(
            "ListResources, 76 documents", "ListResources", [resources], 1, 1, calls // 4, _is_76
        ),
        Question("ListMembers, 20 people", "ListMembers", [members], 1, 1, calls // 4, _is_20),
    ]


def _is_check(data: bytes) -> bool:
    return bool(pb.CheckResponse.FromString(data).consistency_token)


def _is_76(data: bytes) -> bool:
    # Two more come to everybody through the group of the open document.
    found = len(pb.AuthorizationServiceListResourcesResponse.FromString(data).items)
    return found in (76, 77)


def _is_20(data: bytes) -> bool:
    return len(pb.ListMembersResponse.FromString(data).members) == 20


def measure(question: Question, served: Served, channel: grpc.Channel, database: Server) -> Any:
    """Returns CPU microseconds of server and database for each item, and the wall time."""
    call = channel.unary_unary(SERVICE + question.method)
    metadata = (("authorization", f"Bearer {served.bearer}"),)
    room = threading.Semaphore(question.in_flight)
    wrong: list[Any] = []

    def done(future: Any) -> None:
        if future.code() is not grpc.StatusCode.OK:
            wrong.append(future.code())
        elif not question.check(future.result()):
            wrong.append("wrong answer")
        room.release()

    before = (cpu_seconds(served.pid), cpu_seconds_of_children(database.pid), time.monotonic())
    for number in range(question.calls):
        room.acquire()
        request = question.requests[number % len(question.requests)]
        call.future(request, metadata=metadata, timeout=60).add_done_callback(done)
    for _ in range(question.in_flight):
        room.acquire()
    after = (cpu_seconds(served.pid), cpu_seconds_of_children(database.pid), time.monotonic())
    if wrong:
        raise RuntimeError(f"{question.name}: {len(wrong)} failed, the first with {wrong[0]}")
    number = question.calls * question.items
    return tuple((end - start) / number * 1e6 for start, end in zip(before, after, strict=True))


def run(*, rounds: int = 5, calls: int = 2_000) -> list[dict[str, Any]]:
    """Returns one row a question: medians, and the median of the ratios to E0 of its round."""
    with postgresql() as database:
        url = database.url_of("postgres")
        prepare(url)
        world = build(url, **MEDIUM)
        asked = questions(world, calls=calls)
        bare = empty._Server(empty._serve_bare)
        with service(url) as served, grpc.insecure_channel(served.address) as channel:
            found: dict[str, list[tuple[float, ...]]] = {each.name: [] for each in asked}
            for number in range(rounds + 1):
                for question in asked:
                    e0 = bare.microseconds_per_call(empty.PATH, 1_000, question.in_flight)
                    costs = measure(question, served, channel, database)
                    if number:
                        found[question.name].append((e0, *costs))
        bare.close()
    return [_row(name, rows, world) for name, rows in found.items()]


def _row(name: str, rows: list[tuple[float, ...]], world: World) -> dict[str, Any]:
    e0, server, sql, wall = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "question": name,
        "assignments": world.assignments,
        "e0_us": round(e0, 1),
        "server_us": round(server, 1),
        "postgresql_us": round(sql, 1),
        "wall_us": round(wall, 1),
        "server_ratio": round(statistics.median(row[1] / row[0] for row in rows), 3),
        "postgresql_ratio": round(statistics.median(row[2] / row[0] for row in rows), 3),
        "in_all_ratio": round(statistics.median((row[1] + row[2]) / row[0] for row in rows), 3),
        "rounds": len(rows),
    }


def scale(*, calls: int = 200) -> list[dict[str, Any]]:
    """Returns the wall time of pages of 100, first and deep, at a thousand and a million."""
    table: dict[str, dict[str, float]] = {}
    sizes = {}
    with postgresql() as database:
        for size, sizes_of in (("small", SMALL), ("large", LARGE)):
            with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as admin:
                admin.execute(f"CREATE DATABASE {size}")  # type: ignore[arg-type]
            url = database.url_of(size)
            prepare(url)
            world = build(url, **sizes_of)
            sizes[size] = world.assignments
            with service(url) as served, grpc.insecure_channel(served.address) as channel:
                for name, request, method in _pages(world, served, channel):
                    question = Question(name, method, [request], 1, 1, calls, bool)
                    measure(question, served, channel, database)
                    costs = [measure(question, served, channel, database)[2] for _ in range(5)]
                    table.setdefault(name, {})[size] = statistics.median(costs)
    return [
        {
            "question": name,
            "small_assignments": sizes["small"],
            "large_assignments": sizes["large"],
            "small_us": round(row["small"], 1),
            "large_us": round(row["large"], 1),
            "ratio": round(row["large"] / row["small"], 3),
        }
        for name, row in table.items()
    ]


def _pages(world: World, served: Served, channel: grpc.Channel) -> list[tuple[str, bytes, str]]:
    metadata = (("authorization", f"Bearer {served.bearer}"),)
    made = []
    for method, first, answer, depth in (
        (
            "ListResources",
            pb.AuthorizationServiceListResourcesRequest(
                subject=_subject(world.overseer), permission_slugs=[READ], page_size=100
            ),
            pb.AuthorizationServiceListResourcesResponse,
            8,
        ),
        (
            "ListMembers",
            pb.ListMembersRequest(
                resource=_resource(world.open), permission_slug=READ, page_size=100
            ),
            pb.ListMembersResponse,
            4,
        ),
    ):
        call = channel.unary_unary(SERVICE + method)
        made.append((f"{method}, first page", first.SerializeToString(), method))
        for _ in range(depth):
            data = call(first.SerializeToString(), metadata=metadata, timeout=60)
            first.page_token = answer.FromString(data).next_page_token
        made.append((f"{method}, deep page", first.SerializeToString(), method))
    return made

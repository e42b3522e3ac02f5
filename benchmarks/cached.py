"""What an answer from the cache costs: strict checks, batches, and answers without any I/O.

E1 is an empty RPC through every step of the hall, in the same round (benchmarks/empty.py). The CPU
time of the server, of PostgreSQL and of Valkey is told apart.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import grpc

from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.server import prepare
from authz_service.stack.postgresql import postgresql
from authz_service.stack.valkey import valkey
from benchmarks import decisions, empty
from benchmarks.decisions import MEDIUM, READ, SERVICE, Question, _is_check, _resource, _subject
from benchmarks.processes import cpu_seconds, service
from benchmarks.world import World, build

HOT = 500


def questions(world: World, *, calls: int) -> list[Question]:
    """Returns questions whose facts fit into every cache."""
    first = world.organizations[0]
    asked = [
        (member, document)
        for member, document in zip(first.members * 5, first.documents, strict=False)
    ][:HOT]
    strict, stale = [
        [
            pb.CheckRequest(
                subject=_subject(member),
                permission_slug=READ,
                resource=_resource(document),
                consistency=consistency,
            ).SerializeToString()
            for member, document in asked
        ]
        for consistency in (None, {"max_staleness": {"seconds": 60}})
    ]
    batches = [
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
    few = max(20, calls // 100)
    return [
        Question("strict Check, one in flight", "Check", strict, 1, 1, calls, _is_check),
        Question("strict Check, 16 in flight", "Check", strict, 1, 16, calls, _is_check),
        Question("Check up to 60 s old, one in flight", "Check", stale, 1, 1, calls, _is_check),
        Question("Check up to 60 s old, 16 in flight", "Check", stale, 1, 16, calls, _is_check),
        Question("BatchCheck of 1,000", "BatchCheck", batches, 1_000, 1, few, decisions._answers),
    ]


def run(*, rounds: int = 5, calls: int = 2_000) -> list[dict[str, Any]]:
    """Returns one row a question: medians, and the median of the ratios to E1 of its round."""
    with postgresql() as database, valkey() as redis:
        url = database.url_of("postgres")
        prepare(url)
        world = build(url, **MEDIUM)
        asked = questions(world, calls=calls)
        hall = empty._Server(empty._serve_hall)
        found: dict[str, list[tuple[float, ...]]] = {each.name: [] for each in asked}
        with (
            service(url, AUTHZ_REDIS_URL=redis.url, AUTHZ_LOG_ALLOWED_RATIO="1") as served,
            grpc.insecure_channel(served.address) as channel,
        ):
            for question in asked:
                _warm(question, channel, served.bearer)
            for number in range(rounds + 1):
                for question in asked:
                    e1 = hall.microseconds_per_call(empty.PATH, 1_000, question.in_flight)
                    before = cpu_seconds(redis.pid)
                    server, sql, wall = decisions.measure(question, served, channel, database)
                    spent = (cpu_seconds(redis.pid) - before) * 1e6
                    shared = spent / (question.calls * question.items)
                    if number:
                        found[question.name].append((e1, server, sql, shared, wall))
        hall.close()
    return [_row(name, rows) for name, rows in found.items()]


def _warm(question: Question, channel: grpc.Channel, bearer: str) -> None:
    call = channel.unary_unary(SERVICE + question.method)
    for _ in range(3):
        for request in question.requests:
            call(request, metadata=(("authorization", f"Bearer {bearer}"),), timeout=60)


def _row(name: str, rows: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    e1, server, sql, redis, wall = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "question": name,
        "e1_us": round(e1, 1),
        "server_us": round(server, 1),
        "postgresql_us": round(sql, 1),
        "redis_us": round(redis, 1),
        "wall_us": round(wall, 1),
        "server_ratio": round(statistics.median(row[1] / row[0] for row in rows), 3),
        "rounds": len(rows),
    }

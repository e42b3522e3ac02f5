"""What questions cost must follow what they answer, not the size of the tables.

The rows that PostgreSQL reads for a question are counted by its own account, in a small database
and in one many times as large: no clock is involved.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from benchmarks.world import World, build
from sqlalchemy import TextClause, text

from authz_service.base.clock import utc_now
from authz_service.config import Config, dev_environment
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.server import Worker
from authz_service.storage import database
from tests.callers import Caller, through_hall
from tests.servers.postgresql import Databases

READ = "document:p0"
SIZES = {
    "small": {"organizations": 1, "members": 1_300, "documents": 1_000, "each": 2},
    "large": {"organizations": 10, "members": 2_000, "documents": 2_000, "each": 2},
}
pytestmark = pytest.mark.server


@contextmanager
def asked(url: str) -> Iterator[tuple[Caller, Worker]]:
    environment, _ = dev_environment(
        {"AUTHZ_DATABASE_URL": url, "AUTHZ_RATE_PER_SECOND": "0", "AUTHZ_LISTEN": "127.0.0.1:0"}
    )
    config = Config.from_environment(environment)
    worker = Worker(config, clock=utc_now)
    first = config.security.first_credential
    assert first is not None
    try:
        yield Caller(through_hall(worker.hall), first.reveal()), worker
    finally:
        worker.stop()


@contextmanager
def recorded() -> Iterator[list[tuple[TextClause, Mapping[str, Any]]]]:
    """Collects the constant statements that run, with their values."""
    seen: list[tuple[TextClause, Mapping[str, Any]]] = []
    values = database._values

    def record(
        connection: Any, dialect: Any, statement: TextClause, parameters: Mapping[str, Any]
    ) -> list[Any]:
        seen.append((statement, parameters))
        return values(connection, dialect, statement, parameters)

    database._values = record
    try:
        yield seen
    finally:
        database._values = values


def rows_read(plan: Mapping[str, Any]) -> int:
    """Returns the rows that the scans of tables below a node looked at."""
    read = 0
    if "Relation Name" in plan:
        removed = sum(value for name, value in plan.items() if name.startswith("Rows Removed by"))
        read = round((plan["Actual Rows"] + removed) * plan["Actual Loops"])
    return read + sum(rows_read(each) for each in plan.get("Plans", ()))


def questions(api: Caller, world: World) -> Iterator[tuple[str, Any]]:
    """Names and calls of the questions; the lists at their first and at a deep page."""
    service = api.AuthorizationService
    first = world.organizations[0]
    reader = {"organization_membership_id": world.reader}
    overseer = {"organization_membership_id": world.overseer}
    for name, subject in (("own documents", reader), ("everything", overseer)):
        yield name, lambda s=subject: service.ListResources(subject=s, permission_slugs=[READ])
    yield (
        "below a workspace",
        lambda: service.ListResources(
            subject=overseer,
            permission_slugs=[READ, "document:p1"],
            parent={"resource_id": first.workspaces[0]},
            children_only=True,
            page_size=20,
        ),
    )
    token = ""
    for _ in range(4):
        token = service.ListResources(
            subject=overseer, permission_slugs=[READ], page_token=token
        ).next_page_token
    yield (
        "everything, deep",
        lambda: service.ListResources(subject=overseer, permission_slugs=[READ], page_token=token),
    )
    for name, resource in (("few people", world.shared), ("everyone", world.open)):
        yield (
            name,
            lambda r=resource: service.ListMembers(
                resource={"resource_id": r}, permission_slug=READ
            ),
        )
    page = ""
    for _ in range(3):
        page = service.ListMembers(
            resource={"resource_id": world.open}, permission_slug=READ, page_token=page
        ).next_page_token
    yield (
        "everyone, deep",
        lambda: service.ListMembers(
            resource={"resource_id": world.open}, permission_slug=READ, page_token=page
        ),
    )
    yield (
        "check",
        lambda: service.Check(
            subject=reader, permission_slug=READ, resource={"resource_id": world.shared}
        ),
    )
    items = [
        pb.BatchCheckItem(
            subject={"organization_membership_id": member},
            permission_slug=READ,
            resource={"resource_id": document},
        )
        for member, document in zip(first.members[:100], first.documents[:100], strict=True)
    ]
    yield "batch", lambda: service.BatchCheck(items=items)
    yield (
        "permissions",
        lambda: service.ListPermissions(subject=reader, resource={"resource_id": world.shared}),
    )
    yield (
        "explain",
        lambda: service.Explain(
            subject=reader, permission_slug=READ, resource={"resource_id": world.shared}
        ),
    )


def test_questions_read_no_more_rows_in_a_larger_database(seeded_databases: Databases) -> None:
    read: dict[str, dict[str, int]] = {}
    for size, sizes in SIZES.items():
        url = seeded_databases.create(migrated=True)
        world = build(url, **sizes)
        with asked(url) as (api, worker):
            for name, ask in questions(api, world):
                with recorded() as seen:
                    ask()
                assert seen
                read.setdefault(name, {})[size] = sum(
                    cost(worker, statement, parameters) for statement, parameters in seen
                )
        seeded_databases.drop(url)
    grown = {name: rows for name, rows in read.items() if rows["large"] > 1.2 * rows["small"] + 10}
    assert not grown, read


def cost(worker: Worker, statement: TextClause, parameters: Mapping[str, Any]) -> int:
    explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}")
    ((found,),) = worker.database.values(explained, parameters, name="list")
    (each,) = found
    return rows_read(each["Plan"])

"""What one worker has computed, another finds in Redis: over TCP and over a unix socket."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from authz_service.config import Config, dev_environment
from authz_service.server import Worker
from authz_service.stack.valkey import valkey
from authz_service.storage.cache.sharing import READ_MAX
from tests.callers import Caller, through_hall
from tests.directories import Directory
from tests.servers.postgresql import Databases

READ = "document:read"
# More than are read from Redis at once, the subject's grants among them.
DOCUMENTS = READ_MAX + 20
pytestmark = pytest.mark.server


@pytest.fixture(params=["tcp", "unix"])
def redis_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Two ways to one Valkey."""
    path = tmp_path / "v.sock"
    with valkey(settings={"unixsocket": str(path)}) as server:
        password = server.url.removeprefix("redis://:").partition("@")[0]
        yield server.url if request.param == "tcp" else f"unix://:{password}@{path}"


@pytest.fixture
def config(seeded_databases: Databases, redis_url: str) -> Iterator[Config]:
    """A deployment that samples nothing."""
    url = seeded_databases.create(migrated=True)
    environment, _ = dev_environment(
        {
            "AUTHZ_DATABASE_URL": url,
            "AUTHZ_REDIS_URL": redis_url,
            "AUTHZ_LISTEN": "127.0.0.1:0",
            "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            "AUTHZ_RATE_PER_SECOND": "0",
            "AUTHZ_CACHE_VERIFY_RATIO": "0",
        }
    )
    yield Config.from_environment(environment)
    seeded_databases.drop(url)


@pytest.fixture
def workers(config: Config) -> Iterator[list[Worker]]:
    """Two that cache."""
    made = [Worker(config) for _ in range(2)]
    for worker in made:
        until(lambda worker=worker: worker.is_caching)
    yield made
    for worker in made:
        worker.stop()


def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_worker_finds_what_another_has_computed(
    config: Config, workers: list[Worker], redis_url: str
) -> None:
    first = config.security.first_credential
    assert first is not None
    one, other = (Caller(through_hall(each.hall), first.reveal()) for each in workers)
    directory = Directory(one, workers[0], config)
    directory.types(document=["organization"])
    one.PermissionService.CreatePermission(slug=READ, name="read", resource_type_slug="document")
    one.RoleService.CreateRole(
        slug="document-reader", name="r", resource_type_slug="document", permission_slugs=[READ]
    )
    acme = directory.organization()
    member = directory.membership(acme)
    documents = [directory.resource(acme, "document", f"d{i}") for i in range(DOCUMENTS)]
    for document in documents[::2]:
        one.RoleAssignmentService.CreateRoleAssignment(
            organization_membership_id=member.id,
            role_slug="document-reader",
            resource={"resource_id": document.id},
        )
    items = [
        {
            "subject": {"organization_membership_id": member.id},
            "permission_slug": READ,
            "resource": {"resource_id": document.id},
        }
        for document in documents
    ]
    expected = [place % 2 == 0 for place in range(DOCUMENTS)]

    def ask(api: Caller) -> list[bool]:
        results = api.AuthorizationService.BatchCheck(items=items).results
        return [result.decision.allowed for result in results]

    # From SQL, which tells whose they are; then filling.
    assert [ask(one), ask(one)] == [expected] * 2
    with Redis.from_url(redis_url) as redis:
        until(lambda: len(redis.keys("az:*:e:*")) == DOCUMENTS + 1)
    facts = workers[1].metrics.cache_facts
    assert ask(other) == expected
    before = {where: facts.value("path", where) for where in ("l1", "l2", "sql")}
    assert ask(other) == expected
    # One READ has so many at most; the rest comes from SQL, and goes with it.
    assert facts.value("grants", "l2") == 1
    assert facts.value("path", "l2") - before["l2"] == READ_MAX - 1
    assert facts.value("path", "sql") - before["sql"] == DOCUMENTS - (READ_MAX - 1)
    assert ask(other) == expected
    assert facts.value("path", "l1") - before["l1"] == DOCUMENTS
    # And a revoke through the second is known to the first.
    listed = other.RoleAssignmentService.ListRoleAssignments(
        organization_membership_id=member.id
    ).role_assignments
    other.RoleAssignmentService.DeleteRoleAssignment(role_assignment_id=listed[0].id)
    assert sum(ask(one)) == sum(ask(other)) == sum(expected) - 1

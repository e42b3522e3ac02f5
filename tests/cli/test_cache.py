"""``authz cache``: the cache of a deployment, led from outside; and one process a database file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from authz_service.server import Worker
from authz_service.stack.valkey import Server
from authz_service.supervisor import EXIT_REFUSED
from tests.cli.test_commands import authz
from tests.servers.postgresql import Databases

Settings = dict[str, str]


@pytest.fixture
def deployment(seeded_databases: Databases, valkey_server: Server) -> Iterator[Settings]:
    """A deployment with PostgreSQL and Valkey, and no worker."""
    url = seeded_databases.create(migrated=True)
    yield {
        "AUTHZ_DATABASE_URL": url,
        "AUTHZ_REDIS_URL": valkey_server.url,
        "AUTHZ_ROOT_KEYS": "a2V5IG9mIGF0IGxlYXN0IHRoaXJ0eS10d28gYnl0ZXMh",
    }
    seeded_databases.drop(url)


def status(deployment: Settings) -> dict[str, str]:
    done = authz("cache", "status", **deployment)
    assert done.returncode == 0, done
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_the_cache_is_begun_and_left(deployment: Settings) -> None:
    before = status(deployment)
    assert (before["mode"], before["generation"], before["leases"]) == ("off", "1", "0")
    assert authz("cache", "enable", **deployment).stdout == "mode=on\n"
    on = status(deployment)
    assert (on["mode"], on["generation"]) == ("on", "1")
    assert on["name"]
    assert authz("cache", "fence", **deployment).stdout == "generation=2\n"
    left = status(deployment)
    assert (left["mode"], left["generation"], left["leases"]) == ("off", "2", "0")
    assert authz("cache", "enable", **deployment).returncode == 0
    assert status(deployment)["name"] != on["name"]


def test_without_redis_there_is_nothing_to_begin(deployment: Settings) -> None:
    done = authz("cache", "enable", **{**deployment, "AUTHZ_REDIS_URL": ""})
    assert (done.returncode, "AUTHZ_REDIS_URL" in done.stderr) == (2, True)


def test_a_redis_that_does_not_answer_is_not_begun(deployment: Settings) -> None:
    done = authz("cache", "enable", **{**deployment, "AUTHZ_REDIS_URL": "redis://127.0.0.1:1/0"})
    assert (done.returncode, "Redis does not answer" in done.stderr) == (2, True)
    assert status(deployment)["mode"] == "off"


def test_an_embedded_cache_is_led_by_its_process(tmp_path: Path) -> None:
    done = authz("cache", "status", AUTHZ_DATABASE_URL=f"sqlite:///{tmp_path / 'a.db'}",
                 AUTHZ_ROOT_KEYS="a2V5IG9mIGF0IGxlYXN0IHRoaXJ0eS10d28gYnl0ZXMh")  # fmt: skip
    assert (done.returncode, "embedded" in done.stderr) == (2, True)


def test_a_second_process_may_not_serve_an_embedded_database(
    worker: Worker, database_url: str
) -> None:
    done = authz(
        "serve",
        "--dev",
        AUTHZ_DATABASE_URL=database_url,
        AUTHZ_LISTEN="127.0.0.1:0",
        AUTHZ_METRICS_LISTEN="127.0.0.1:0",
    )
    assert done.returncode == EXIT_REFUSED, done
    assert "another process serves" in done.stderr

"""A repeated call is acknowledged no sooner than the first would have been."""

import threading
import time

import psycopg
import pytest

from authz_service.config import Config, dev_environment
from authz_service.server import Worker, prepare
from authz_service.stack.postgresql import postgresql
from tests.callers import Caller, Refused, through_hall
from tests.servers.postgresql import libpq_url

SECONDS = 30


def waiting_ended(admin: "psycopg.Connection[tuple[int]]", stop: threading.Event) -> None:
    """Cancels every wait for a standby, as an impatient operator does."""
    while not stop.is_set():
        admin.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        stop.wait(0.01)


@pytest.mark.server
def test_a_repeat_of_what_no_standby_has_is_not_acknowledged() -> None:
    with postgresql(durable=True) as server:
        url = server.url_of("postgres")
        prepare(url)
        environment, _ = dev_environment(
            {
                "AUTHZ_DATABASE_URL": url,
                "AUTHZ_LISTEN": "127.0.0.1:0",
                "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            }
        )
        worker = Worker(Config.from_environment(environment))
        api = Caller(
            through_hall(worker.hall),
            environment["AUTHZ_FIRST_CREDENTIAL"],
            metadata=(("idempotency-key", "once"),),
        )
        stop = threading.Event()
        with psycopg.connect(libpq_url(url), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            admin.execute("SELECT pg_reload_conf()")
            deadline = time.monotonic() + SECONDS
            while admin.execute("SHOW synchronous_standby_names").fetchone() != ("nobody",):
                assert time.monotonic() < deadline
            thread = threading.Thread(target=waiting_ended, args=(admin, stop))
            thread.start()
            try:
                told = []
                for _ in range(2):
                    with pytest.raises(Refused) as refused:
                        api.OrganizationService.CreateOrganization(name="Acme")
                    told.append(refused.value.reason)
            finally:
                stop.set()
                thread.join()
            assert told == ["DATABASE_UNAVAILABLE"] * 2
            admin.execute("SET synchronous_commit = local")
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
            while admin.execute("SHOW synchronous_standby_names").fetchone() != ("",):
                assert time.monotonic() < deadline
        made = api.OrganizationService.CreateOrganization(name="Acme").organization
        assert api.OrganizationService.GetOrganization(organization_id=made.id)
        worker.stop()

"""``authz serve`` as a process: what it tells, how it ends, and what it survives."""

import contextlib
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from authz_service.pb.authz.v1 import watch_pb2, watch_pb2_grpc
from authz_service.supervisor import EXIT_REFUSED, GRACE_SECONDS
from tests.callers import Refused
from tests.e2e.serving import (
    COMMAND,
    LISTENING,
    LOOPBACK,
    SECONDS,
    Serving,
    environment,
    free_port,
    serving,
    sockets,
    until,
)
from tests.rpc.fronts.conftest import Authority
from tests.servers.postgresql import Databases, libpq_url

pytestmark = [pytest.mark.server, pytest.mark.alone]

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
CONNECTIONS = 16


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One process on SQLite, as ``authz serve --dev`` starts it."""
    with serving(tmp_path_factory.mktemp("one")) as running:
        yield running


@pytest.fixture(scope="module")
def pair(
    postgresql_databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """Two workers on one PostgreSQL and one port, both of them up."""
    url = postgresql_databases.create(migrated=False)
    settings = {
        "AUTHZ_DATABASE_URL": url,
        "AUTHZ_LISTEN": f"{LOOPBACK}:{free_port()}",
        "AUTHZ_WORKERS": "2",
    }
    with serving(tmp_path_factory.mktemp("pair"), **settings) as running:
        until(lambda: _listening(running) == 2, "both workers listen")
        yield running
    postgresql_databases.drop(url)


def _listening(running: Serving) -> int:
    port = int(running.address.rpartition(":")[2])
    found = 0
    for pid in running.workers():
        with contextlib.suppress(FileNotFoundError):
            found += any(each.port == port for each in sockets(pid, LISTENING))
    return found


def _health(channel: grpc.Channel, service: str = "") -> Any:
    request = HealthCheckRequest(service=service)
    return HealthStub(channel).Check(request, timeout=SECONDS).status


def _reflected(running: Serving, *, credential: str) -> set[str]:
    """Asks for all services over reflection."""
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel())
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(
        iter([request]), metadata=_bearer(credential), timeout=SECONDS
    )
    return {each.name for each in answer.list_services_response.service}


def _bearer(credential: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {credential}"),)


# --- a first start -------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_first_start_needs_nothing_and_prints_a_credential(
    empty_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path, AUTHZ_DATABASE_URL=empty_url) as running:
        api = running.caller()
        made = api.OrganizationService.CreateOrganization(name="Acme").organization
        assert api.OrganizationService.GetOrganization(organization_id=made.id).organization == made
        assert "AUTHZ_ROOT_KEYS: made up" in running.said
        other = running.credential[:-4] + "aaaa"
        for bearer, reason in ((None, "CREDENTIAL_MISSING"), (other, "CREDENTIAL_INVALID")):
            with pytest.raises(Refused) as refused:
                api.with_bearer(bearer).OrganizationService.GetOrganization(organization_id=made.id)
            assert (refused.value.code, refused.value.reason) == ("UNAUTHENTICATED", reason)
        running.terminate()
        assert running.code() == 0


def test_health_is_told_without_a_credential(one: Serving) -> None:
    channel = one.channel()
    assert _health(channel) == SERVING
    assert _health(channel, "authz.v1.AuthorizationService") == SERVING
    with pytest.raises(grpc.RpcError) as refused:
        _health(channel, "authz.v1.NoService")
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_metrics_count_what_was_called(one: Serving) -> None:
    path = "/authz.v1.ConfigurationService/GetConfiguration"
    labels = {"method": path, "code": "OK"}
    before = one.sample("authz_rpc_seconds_count", **labels)
    one.caller().ConfigurationService.GetConfiguration()
    assert one.sample("authz_rpc_seconds_count", **labels) == before + 1
    assert one.get("/")[0] == 404


def test_everything_listens_on_this_machine_only(one: Serving) -> None:
    listening = sockets(one.process.pid, LISTENING)
    assert {each.host for each in listening} == {LOOPBACK}
    ports = {int(one.address.rpartition(":")[2]), one.metrics_port}
    assert {each.port for each in listening} == ports


def test_no_reflection_unless_it_is_asked_for(one: Serving, tmp_path: Path) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        _reflected(one, credential=one.credential)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with serving(tmp_path, AUTHZ_REFLECTION="on") as open_one:
        names = _reflected(open_one, credential=open_one.credential)
        assert {"authz.v1.AuthorizationService", "authz.v1.WatchService"} <= names
        with pytest.raises(grpc.RpcError) as refused:
            _reflected(open_one, credential="")
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_plaintext_beyond_this_machine_is_refused_at_start() -> None:
    wrong = {
        name: f"0.0.0.0:{free_port()}"
        for name in ("AUTHZ_LISTEN", "AUTHZ_HEALTH_LISTEN", "AUTHZ_METRICS_LISTEN")
    }
    done = subprocess.run(
        COMMAND, env=environment(**wrong), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == EXIT_REFUSED
    for name in wrong:
        assert f"{name}: others than this machine could reach it without TLS" in done.stderr


# --- TLS -----------------------------------------------------------------------------------------


def test_a_tls_listener_serves_those_who_can_verify_it(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.tls("service")
    with serving(tmp_path, AUTHZ_TLS_CERTIFICATE=tls.certificate, AUTHZ_TLS_KEY=tls.key) as running:
        address = f"localhost:{running.address.rpartition(':')[2]}"
        api = running.caller(address=address, trust=authority.trusted())
        assert api.ConfigurationService.GetConfiguration().configuration.etag
        (tmp_path / "other").mkdir()
        stranger = Authority(tmp_path / "other").trusted()
        for changes in ({"trust": stranger}, {}):
            api = running.caller(address=address, **changes)
            with pytest.raises(Refused) as refused:
                api.ConfigurationService.GetConfiguration()
            assert refused.value.code == "UNAVAILABLE"


# --- the end -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(url: str, organization_id: str) -> Iterator[None]:
    """Holds what a write to the organization waits for."""
    if url.startswith("sqlite"):
        held = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        held.execute("BEGIN IMMEDIATE")
    else:
        held = psycopg.connect(libpq_url(url))
        held.execute("SELECT 1 FROM realms WHERE id = %s FOR UPDATE", (organization_id,))
    with contextlib.closing(held):
        yield


class _Busy:
    """A service with a running Watch and a write that waits for a lock."""

    def __init__(self, running: Serving, url: str, exits: contextlib.ExitStack) -> None:
        self.running = running
        self.api = running.caller()
        made = self.api.OrganizationService.CreateOrganization(name="Acme").organization
        self.organization_id = made.id
        self.channel = running.channel()
        self.health = HealthStub(self.channel).Watch(HealthCheckRequest(), timeout=SECONDS)
        assert next(self.health).status == SERVING
        self.watch = watch_pb2_grpc.WatchServiceStub(self.channel).Watch(
            watch_pb2.WatchRequest(), metadata=_bearer(running.credential), timeout=SECONDS
        )
        assert next(self.watch).cursor
        # Released by the test, or at its end.
        self.lock = exits.enter_context(contextlib.ExitStack())
        self.lock.enter_context(_locked(url, self.organization_id))
        pool = exits.enter_context(ThreadPoolExecutor(1))
        self.slow = pool.submit(self._rename)
        exits.callback(self.lock.close)
        writes = {"class": "write"}
        until(lambda: running.sample("authz_rpc_in_flight", **writes) == 1, "a write is under way")

    def _rename(self) -> Any:
        return self.api.OrganizationService.UpdateOrganization(
            organization={"id": self.organization_id, "name": "Renamed"},
            update_mask={"paths": ["name"]},
        ).organization

    def assert_streams_end(self) -> None:
        """Both streams end as documented."""
        assert [answer.status for answer in self.health] == [NOT_SERVING]
        with pytest.raises(grpc.RpcError) as ended:
            for _ in self.watch:
                pass
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        trailing = dict(ended.value.trailing_metadata())
        assert b"SHUTTING_DOWN" in trailing["grpc-status-details-bin"]


@pytest.mark.both_databases
def test_sigterm_lets_calls_finish_and_ends_streams(empty_url: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as exits:
        running = exits.enter_context(
            serving(tmp_path, AUTHZ_DATABASE_URL=empty_url, AUTHZ_DATABASE_LOCK_SECONDS="20")
        )
        busy = _Busy(running, empty_url, exits)

        running.terminate()

        busy.assert_streams_end()
        with pytest.raises(Refused) as refused:
            running.caller().ConfigurationService.GetConfiguration()
        assert refused.value.code == "UNAVAILABLE"
        assert not busy.slow.done()
        busy.lock.close()
        assert busy.slow.result(SECONDS).name == "Renamed"
        assert running.code() == 0


@pytest.mark.both_databases
def test_a_drain_ends_in_time_whatever_is_under_way(empty_url: str, tmp_path: Path) -> None:
    drain_seconds = 0.3
    settings = {
        "AUTHZ_DATABASE_URL": empty_url,
        # What the call itself does about the lock: the client is told long before.
        "AUTHZ_DATABASE_LOCK_SECONDS": "1",
        "AUTHZ_CALL_SECONDS_MAX": "2",
        "AUTHZ_DRAIN_SECONDS": str(drain_seconds),
    }
    with contextlib.ExitStack() as exits:
        running = exits.enter_context(serving(tmp_path, **settings))
        busy = _Busy(running, empty_url, exits)

        began = monotonic()
        running.terminate()

        busy.assert_streams_end()
        with pytest.raises(Refused) as refused:
            busy.slow.result(SECONDS)
        # Not by the deadline of the call, which is later.
        assert refused.value.code in ("UNAVAILABLE", "CANCELLED")
        assert running.code() == 0
        # A supervisor would not have had to kill it.
        assert monotonic() - began < drain_seconds + GRACE_SECONDS


def test_health_says_so_at_once_also_when_the_database_hangs(
    postgresql_empty_url: str, tmp_path: Path
) -> None:
    settings = {
        "AUTHZ_DATABASE_URL": postgresql_empty_url,
        "AUTHZ_DATABASE_LOCK_SECONDS": "30",
        "AUTHZ_DATABASE_STATEMENT_SECONDS": "30",
    }
    with (
        serving(tmp_path, **settings) as running,
        psycopg.connect(libpq_url(postgresql_empty_url)) as held,
        psycopg.connect(libpq_url(postgresql_empty_url), autocommit=True) as looking,
    ):
        health = HealthStub(running.channel()).Watch(HealthCheckRequest(), timeout=SECONDS)
        assert next(health).status == SERVING
        # The feed, in the background, now waits in a statement.
        held.execute("LOCK TABLE event_queue IN ACCESS EXCLUSIVE MODE")
        waiting = "SELECT 1 FROM pg_locks WHERE NOT granted"
        until(lambda: looking.execute(waiting).fetchone(), "the feed waits")

        began = monotonic()
        running.terminate()

        assert next(health).status == NOT_SERVING
        # Ending the background takes five seconds for each of its threads that is held.
        assert monotonic() - began < 4
        held.rollback()
        assert running.code() == 0


# --- several workers -----------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_calls_go_on(pair: Serving) -> None:
    callers = [pair.caller() for _ in range(CONNECTIONS)]
    for caller in callers:
        caller.ConfigurationService.GetConfiguration()
    victim, other = pair.workers()
    lost, kept = pair.connections(victim), pair.connections(other)
    assert min(lost, kept) > 0
    assert lost + kept == CONNECTIONS

    os.kill(victim, signal.SIGKILL)

    failed = 0
    for caller in callers:
        try:
            caller.ConfigurationService.GetConfiguration()
        except Refused as refused:
            assert refused.code == "UNAVAILABLE"
            failed += 1
    assert failed <= lost
    for caller in callers:
        caller.ConfigurationService.GetConfiguration()
    (new,) = until(lambda: [pid for pid in pair.workers() if pid not in (victim, other)], "new")
    (ended,) = pair.events("worker_ended")
    assert (ended["pid"], ended["code"]) == (victim, -signal.SIGKILL)

    def reached() -> int:
        pair.caller().ConfigurationService.GetConfiguration()
        return pair.connections(new)

    until(reached, "the new worker has a connection")


def test_a_write_is_seen_at_once_by_checks_on_every_connection(pair: Serving) -> None:
    callers = [pair.caller() for _ in range(CONNECTIONS)]
    check, held = _scene(callers[0])
    with ThreadPoolExecutor(CONNECTIONS) as pool:

        def answers() -> list[bool]:
            def ask(caller: Any) -> bool:
                return bool(caller.AuthorizationService.Check(**check).allowed)

            return list(pool.map(ask, callers))

        assert answers() == [False] * CONNECTIONS
        assert all(pair.connections(pid) > 0 for pid in pair.workers())
        for writer in callers:
            service = writer.RoleAssignmentService
            made = service.CreateRoleAssignment(**held).role_assignment
            assert answers() == [True] * CONNECTIONS
            service.DeleteRoleAssignment(role_assignment_id=made.id)
            assert answers() == [False] * CONNECTIONS


def test_workers_tell_when_they_are_ready_and_end_together(pair: Serving) -> None:
    assert pair.get("/readyz") == (200, "ready\n")
    assert pair.get("/livez") == (200, "alive\n")
    running = pair.workers()
    pair.terminate()
    assert pair.code() == 0
    ended = {event["pid"]: event["code"] for event in pair.events("worker_ended")}
    assert [ended[pid] for pid in running] == [0, 0]


def _scene(api: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Makes an organization with a member; returns a check and the assignment that allows it."""
    api.ResourceTypeService.CreateResourceType(
        slug="workspace", name="Workspace", parent_type_slugs=["organization"]
    )
    api.PermissionService.CreatePermission(
        slug="workspace:view", name="View", resource_type_slug="workspace"
    )
    role = api.RoleService.CreateRole(
        slug="workspace-viewer", name="Viewer", resource_type_slug="workspace"
    ).role
    api.RoleService.SetRolePermissions(role_id=role.id, permission_slugs=["workspace:view"])
    acme = api.OrganizationService.CreateOrganization(name="Acme").organization
    user = api.UserService.CreateUser(email="ann@acme.example").user
    member = api.OrganizationMembershipService.CreateOrganizationMembership(
        user_id=user.id, organization_id=acme.id
    ).organization_membership
    place = api.ResourceService.CreateResource(
        organization_id=acme.id, resource_type_slug="workspace", external_id="eng", name="Eng"
    ).resource
    resource = {"resource_id": place.id}
    who = {"organization_membership_id": member.id}
    return (
        {"subject": who, "permission_slug": "workspace:view", "resource": resource},
        {**who, "role_slug": "workspace-viewer", "resource": resource},
    )

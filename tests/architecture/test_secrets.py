"""Secrets put in everywhere come out nowhere: not in logs, errors, metrics, nor any ``repr``.

Every unary RPC is driven once, each write with an idempotency key, with all logs at debug level.
"""

import base64
import contextlib
import functools
import io
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from google.protobuf.message import Message
from redis import Redis

from authz_service import server
from authz_service.base import ids, secrets
from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Refusal
from authz_service.config import Config, ConfigError
from authz_service.rpc.call import Reply
from authz_service.server import Worker
from authz_service.stack.valkey import valkey
from authz_service.storage import schema
from authz_service.storage.database import Database
from authz_service.telemetry.logs import Line, logger
from tests.architecture.conftest import Place, Stocked
from tests.architecture.writes import WRITES, World, perform
from tests.callers import Caller, Refused, through_hall
from tests.servers.postgresql import Databases
from tests.storage.cache.lives import eventually

ROOT_KEY = base64.b64encode(b"canary of the root key, 32 bytes").decode()
PASSWORD = "canary@pass:word/7f3a"
TLS_KEY = "canaryofthetlskeyMIIEvQIBADANBgkqhkiG9w0BAQEFAASC"
IDEMPOTENCY = "canary-of-the-idempotency-key"
EMAIL = "canary@example.com"


def credential() -> str:
    """A service credential of this test's own."""
    id = ids.new(ids.CREDENTIAL)
    return secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, id).reveal()


def random_part(secret: str) -> str:
    """What must not be seen of a credential; its id may be."""
    return secret.rpartition("_")[2]


class Heard:
    """Takes the worker's log lines in place of standard error."""

    def __init__(self, **_: Any) -> None:
        self.text = ""

    def write(self, line: Line, count: int = 1) -> None:
        self.text += (line if isinstance(line, str) else line()) + "\n"

    def close(self) -> None:
        """Nothing waits."""


@contextlib.contextmanager
def debugging() -> Iterator[io.StringIO]:
    """Gives what all libraries log meanwhile, at debug level."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    # SQLAlchemy gives its own logger a level, so the root's does not count.
    loggers = [logging.getLogger(name) for name in ("", "sqlalchemy", "psycopg", "alembic")]
    levels = [each.level for each in loggers]
    loggers[0].addHandler(handler)
    for each in loggers:
        each.setLevel(logging.DEBUG)
    try:
        yield heard
    finally:
        loggers[0].removeHandler(handler)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


class Stage:
    """A worker whose every way out is kept.

    Attributes:
        canaries: By name, what must not be found.
        replies: Every reply, as a caller gets it.
    """

    def __init__(
        self, worker: Worker, config: Config, heard: Heard, libraries: io.StringIO, first: str
    ) -> None:
        self.worker, self.config, self.heard = worker, config, heard
        self.libraries = libraries
        self.replies: list[Reply] = []
        self.canaries = {
            "root key": ROOT_KEY,
            "root key decoded": base64.b64decode(ROOT_KEY).decode(),
            "first credential": random_part(first),
            "idempotency key": IDEMPOTENCY,
        }
        send = through_hall(worker.hall)

        def keeping(path: str, metadata: tuple[tuple[str, str], ...], payload: bytes) -> Reply:
            self.replies.append(send(path, metadata, payload))
            return self.replies[-1]

        self.api = Caller(keeping, first)

    def made(self, response: Any) -> None:
        """Takes the secret of a response among the canaries."""
        if getattr(response, "secret", ""):
            self.canaries[f"made {len(self.canaries)}"] = random_part(response.secret)

    def found(self, text: str) -> list[str]:
        """Names of the canaries in a text."""
        return [name for name, canary in self.canaries.items() if canary in text]


@pytest.fixture
def stage(stocked: Stocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A worker at debug level on the stocked world, with canaries for its secrets."""
    heard = Heard()
    monkeypatch.setattr(server, "Lines", lambda **_: heard)
    monkeypatch.setattr(server, "logger", functools.partial(logger, level=logging.DEBUG))
    first = credential()
    shutil.copyfile(stocked.template, tmp_path / "stage.db")
    config = Config.from_environment(
        {
            "AUTHZ_DATABASE_URL": f"sqlite:///{tmp_path / 'stage.db'}",
            "AUTHZ_ROOT_KEYS": ROOT_KEY,
            "AUTHZ_FIRST_CREDENTIAL": first,
            "AUTHZ_LISTEN": "127.0.0.1:0",
            "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            "AUTHZ_RATE_PER_SECOND": "0",
        }
    )
    with debugging() as libraries:
        worker = Worker(config)
        yield Stage(worker, config, heard, libraries, first)
        worker.stop()


def restore(stocked: Stocked, stage: Stage) -> None:
    """Makes the world as it was first."""
    stage.worker.database.close()
    path = stage.config.database.url.reveal().removeprefix("sqlite:///")
    shutil.copyfile(stocked.template, path)
    stage.worker.fence()


def drive(stage: Stage, stocked: Stocked, world: World) -> set[str]:
    """Makes every unary call: writes as their table says, all others with an empty request."""
    written = set()
    for write in WRITES:
        restore(stocked, stage)
        api = stage.api.with_metadata(idempotency_key=IDEMPOTENCY)
        response = perform(write, api, stage.worker, write.request(world))
        stage.made(response)
        # The kept reply, which has no secret.
        perform(write, api, stage.worker, write.request(world))
        written.add(write.name)
    for path, method in stage.worker.hall.methods.items():
        if method.streaming != "unary":
            continue
        service, name = path[1:].removeprefix("authz.v1.").split("/")
        for bearer in (stage.api._bearer, credential(), f"{stage.api._bearer}x"):
            with contextlib.suppress(Refused):
                stage.api.with_bearer(bearer).call(service, name, b"")
        written.add(name)
    return written


@pytest.fixture
def driven(stage: Stage, stocked: Stocked, place: Place) -> Stage:
    """The stage after every unary call."""
    names = drive(stage, stocked, place.world)
    unary = [m.name for m in stage.worker.hall.methods.values() if m.streaming == "unary"]
    assert names >= set(unary)
    assert len(stage.canaries) == 6  # two RPCs make a secret
    return stage


def leaks(stage: Stage) -> dict[str, list[str]]:
    """Which canaries got out, by the way they took."""
    worker = stage.worker
    ways = {
        "log": stage.heard.text,
        "libraries' logs": stage.libraries.getvalue(),
        "metrics": worker.metrics.render().decode(),
        "config": repr(stage.config) + str(stage.config),
        "redacted": repr(stage.config.redacted()),
        "database": repr(worker.database) + repr(vars(worker.database)),
        "worker": repr(worker) + repr(vars(worker)),
        "statuses": "".join(repr(reply.status) for reply in stage.replies),
        "trailers": "".join(repr(reply.trailing) for reply in stage.replies),
    }
    return {way: stage.found(text) for way, text in ways.items() if stage.found(text)}


def test_no_way_out_shows_a_secret(driven: Stage) -> None:
    assert driven.heard.text.count('"method"') >= len(driven.replies)
    assert "INSERT INTO kept_replies" in driven.libraries.getvalue()
    assert leaks(driven) == {}


@pytest.fixture
def redis_port() -> Iterator[int]:
    """Where a Valkey listens whose password is PASSWORD."""
    with valkey() as running, Redis.from_url(running.url) as client:
        client.config_set("requirepass", PASSWORD)
        yield running.port


@pytest.mark.server
@pytest.mark.parametrize("is_right", [True, False], ids=["right password", "wrong password"])
def test_no_way_out_shows_the_password_of_redis(
    seeded_databases: Databases, redis_port: int, monkeypatch: pytest.MonkeyPatch, is_right: bool
) -> None:
    heard, first = Heard(), credential()
    monkeypatch.setattr(server, "Lines", lambda **_: heard)
    monkeypatch.setattr(server, "logger", functools.partial(logger, level=logging.DEBUG))
    given = PASSWORD if is_right else f"{PASSWORD}@wrong:/"
    environment = {
        "AUTHZ_DATABASE_URL": seeded_databases.create(migrated=True),
        "AUTHZ_REDIS_URL": f"redis://:{quote(given, safe='')}@127.0.0.1:{redis_port}/0",
        "AUTHZ_ROOT_KEYS": ROOT_KEY,
        "AUTHZ_FIRST_CREDENTIAL": first,
        "AUTHZ_LISTEN": "127.0.0.1:0",
        "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
    }
    config = Config.from_environment(environment)
    with debugging() as libraries:
        worker = Worker(config)
        stage = Stage(worker, config, heard, libraries, first)
        try:
            for name, canary in (("password", "pass:word"), ("encoded", "pass%3Aword")):
                stage.canaries[name] = canary
            seen = "cache_enabled" if is_right else "cache_redis_unreachable"
            eventually(lambda: seen in heard.text)
            # A renewal after it was said so.
            eventually(lambda: worker.is_caching is is_right)
            stage.made(
                stage.api.ConfigurationService.CreateServiceCredential(name="x", scopes=["check"])
            )
            with pytest.raises(Refused):
                stage.api.RoleService.GetRole(role_id="role_x")
            worker.fence()
            assert leaks(stage) == {}
        finally:
            worker.stop()
    assert leaks(stage) == {}
    seeded_databases.drop(environment["AUTHZ_DATABASE_URL"])


def test_a_made_secret_is_told_once(driven: Stage) -> None:
    for name, canary in driven.canaries.items():
        told = [reply for reply in driven.replies if canary.encode() in reply.payload]
        assert len(told) == name.startswith("made"), name


def test_a_bug_does_not_log_what_the_statement_was_given(stage: Stage) -> None:
    connection = stage.worker.database._engine.raw_connection()
    connection.cursor().execute("ALTER TABLE users RENAME TO gone")
    connection.close()
    with pytest.raises(Refused) as refused:
        stage.api.with_metadata(idempotency_key=IDEMPOTENCY).UserService.CreateUser(email=EMAIL)
    assert refused.value.code == "INTERNAL"
    assert "Traceback" in stage.heard.text
    for text in (
        stage.heard.text,
        stage.libraries.getvalue(),
        str(refused.value),
        repr(stage.replies),
    ):
        assert EMAIL not in text
        assert stage.found(text) == []


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("AUTHZ_ROOT_KEYS", "canary7f3a"),
        ("AUTHZ_ROOT_KEYS", f"{ROOT_KEY} canary7f3a"),
        ("AUTHZ_FIRST_CREDENTIAL", "azc_canary7f3a"),
        ("AUTHZ_DATABASE_URL", f"postgresql://someone:{PASSWORD}7f3a@127.0.0.1/authz"),
        ("AUTHZ_DATABASE_URL", "mysql://someone:canary7f3a@127.0.0.1/authz"),
        ("AUTHZ_REDIS_URL", f"redis://:{PASSWORD}7f3a@127.0.0.1:6379/0"),
        ("AUTHZ_REDIS_URL", "http://:canary7f3a@127.0.0.1:6379/0"),
        ("AUTHZ_CREDENTIAL", "canary7f3a"),
    ],
)
def test_a_bad_secret_is_refused_without_being_shown(variable: str, text: str) -> None:
    given = {"AUTHZ_ROOT_KEYS": ROOT_KEY, "AUTHZ_FIRST_CREDENTIAL": credential(), variable: text}
    with pytest.raises(ConfigError) as caught:
        Config.from_environment(given)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert variable in shown
    for canary in ("canary", "pass:word", ROOT_KEY):
        assert canary not in shown


class Refuser:
    """Listens as PostgreSQL would, asks for a password, and says that it is wrong."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.passwords: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self._refuse(connection)

    def _refuse(self, connection: socket.socket) -> None:
        while (start := connection.recv(8_192)) and start[4:8] != b"\x00\x03\x00\x00":
            connection.sendall(b"N")  # neither TLS nor GSSAPI
        connection.sendall(b"R" + (8).to_bytes(4) + (3).to_bytes(4))
        answer = connection.recv(8_192)
        self.passwords.append(answer[5:-1].decode())
        text = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0"
        connection.sendall(b"E" + (len(text) + 4).to_bytes(4) + text)

    def close(self) -> None:
        """Stops listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def refuser() -> Iterator[Refuser]:
    refuser = Refuser()
    yield refuser
    refuser.close()


def _read(url: str) -> None:
    database = Database(url)
    try:
        with database.snapshot(SYSTEM):
            raise AssertionError("connected")
    finally:
        database.close()


def _write(url: str) -> None:
    database = Database(url)
    try:
        database.write(lambda tx: None, actor=SYSTEM)
    finally:
        database.close()


@pytest.mark.parametrize("dial", [_read, _write, schema.check, schema.upgrade])
def test_a_wrong_password_is_not_told(refuser: Refuser, dial: Callable[[str], None]) -> None:
    url = f"postgresql://someone:{quote(PASSWORD, safe='')}@127.0.0.1:{refuser.port}/authz"
    with debugging() as libraries, pytest.raises(Exception) as caught:
        dial(url)
    assert set(refuser.passwords) == {PASSWORD}
    if dial in (_read, _write):
        assert isinstance(caught.value, Refusal)
    shown = (
        "".join(traceback.format_exception(caught.value))
        + repr(caught.value)
        + libraries.getvalue()
    )
    shown += repr(Database(url)) + repr(vars(Database(url)))
    for canary in (PASSWORD, quote(PASSWORD, safe=""), "pass:word", "pass%3Aword"):
        assert canary not in shown


def test_a_bad_key_file_is_refused_without_its_text(stocked: Stocked, tmp_path: Path) -> None:
    shutil.copyfile(stocked.template, tmp_path / "authz.db")
    for name in ("certificate", "key"):
        (tmp_path / name).write_text(f"-----BEGIN PRIVATE KEY-----\n{TLS_KEY}\n-----END")
    config = Config.from_environment(
        {
            "AUTHZ_DATABASE_URL": f"sqlite:///{tmp_path / 'authz.db'}",
            "AUTHZ_ROOT_KEYS": ROOT_KEY,
            "AUTHZ_LISTEN": "127.0.0.1:0",
            "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            "AUTHZ_TLS_CERTIFICATE": str(tmp_path / "certificate"),
            "AUTHZ_TLS_KEY": str(tmp_path / "key"),
        }
    )
    with debugging() as libraries, pytest.raises(server.Unlistenable) as caught:
        Worker(config).start()
    shown = "".join(traceback.format_exception(caught.value)) + repr(config) + libraries.getvalue()
    assert TLS_KEY not in shown


def test_the_command_that_shows_the_settings_shows_no_secret(tmp_path: Path) -> None:
    first = credential()
    password = quote(PASSWORD, safe="")
    done = subprocess.run(
        [sys.executable, "-m", "authz_service", "config"],
        env={
            "PATH": os.environ["PATH"],
            "AUTHZ_ROOT_KEYS": ROOT_KEY,
            "AUTHZ_FIRST_CREDENTIAL": first,
            "AUTHZ_CREDENTIAL": first,
            "AUTHZ_DATABASE_URL": f"postgresql://someone:{password}@127.0.0.1/authz",
            "AUTHZ_REDIS_URL": f"redis://:{password}@127.0.0.1:6379/0",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "AUTHZ_DATABASE_URL=" in done.stdout
    assert "AUTHZ_REDIS_URL=" in done.stdout
    for canary in (ROOT_KEY, random_part(first), password, PASSWORD):
        assert canary not in done.stdout + done.stderr


def test_secrets_of_the_contract_are_marked(worker: Worker) -> None:
    """Kept replies leave out what is marked."""
    marked: set[str] = set()
    for method in worker.hall.methods.values():
        message: type[Message] = method.response_class
        marked |= {
            f"{method.name}.{field.name}"
            for field in message.DESCRIPTOR.fields
            if field.GetOptions().debug_redact
        }
    assert marked == {"CreateServiceCredential.secret", "RotateServiceCredential.secret"}

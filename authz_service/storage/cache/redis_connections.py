"""Connections to one Redis process, and commands sent together.

A connection is bound to the Redis process that it was made for and ends with it, so no command of a
life of the cache can reach a Redis that was restarted or restored (consistency.md 4.1).
"""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import redis
from redis.exceptions import NoScriptError, RedisError

from authz_service.base.waits import waits
from authz_service.storage.cache.scripts import Script
from authz_service.telemetry.metrics import Metrics

Word = bytes | str | int
Call = tuple[Sequence[Word], Sequence[Word]]


class Refused(Exception):
    """Redis did not answer, answered with an error, or is not the process it should be.

    Attributes:
        reason: ``timeout``, ``authentication``, ``tls``, ``connection``, ``run_id`` or ``error``:
            never text from Redis.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NoScript(Exception):
    """Redis does not know a script by its digest; nothing of it has run."""


class Connections:
    """A pool of connections to one Redis process.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        run_id: The process it must be; empty = any.
        timeout_seconds: The longest wait for a connection, and for an answer.
    """

    def __init__(self, url: str, run_id: str, *, timeout_seconds: float, metrics: Metrics) -> None:
        self._url = url
        self._run_id = run_id
        self.timeout_seconds = self._timeout = timeout_seconds
        self._metrics = metrics
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._is_closed = False
        # To be called when the pool is closed, by whoever took a connection for good.
        self.closing: list[Callable[[], object]] = []
        # redis-py knows URLs, passwords, TLS and the handshake; its pool and its pipeline cost as
        # much as the network, so only its connections are used.
        self._source = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=None,
            retry_on_error=[],
        )

    def close(self) -> None:
        """Closes what is idle, and what is in use once it is given back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()
        for close in self.closing:
            close()

    def connected(self) -> Any:
        """Returns a new connection, which is the caller's.

        Raises:
            Refused: As for a command.
        """
        try:
            return self._connected()
        except (RedisError, OSError) as error:
            raise Refused(_reason(error)) from None

    def commands(
        self, name: str, *commands: Sequence[Word], timeout_seconds: float | None = None
    ) -> list[Any]:
        """Sends commands in one packet and returns their answers; nothing is sent twice.

        Args:
            name: What they are called in the metrics.
            timeout_seconds: Another than usual.

        Raises:
            Refused: For any of them.
            NoScript: A script is to be loaded first.
        """
        return self.exchange(name, packed(commands), len(commands), timeout_seconds=timeout_seconds)

    def exchange(
        self,
        name: str,
        packet: bytes,
        answers_expected: int,
        *,
        timeout_seconds: float | None = None,
    ) -> list[Any]:
        """Sends commands that are packed already, as ``commands`` does."""
        started = time.perf_counter()
        outcome = "ok"
        try:
            with self._connection(timeout_seconds) as connection:
                connection.send_packed_command((packet,), check_health=False)
                answers: list[Any] = []
                error: RedisError | None = None
                for _ in range(answers_expected):
                    # All answers are read, or the connection would give them to the next caller.
                    try:
                        answers.append(connection.read_response(disable_decoding=True))
                    except redis.ResponseError as refusal:
                        error = error or refusal
                if error is not None:
                    try:
                        raise error
                    finally:
                        # It knows this frame, and this frame must not know it: with such a circle
                        # all that is below, the call too, would live until it is found.
                        error = None
                return answers
        except NoScriptError:
            outcome = "no_script"
            raise NoScript from None
        except (RedisError, OSError) as error:
            outcome = _reason(error)
            # Never kept in a variable, for the same reason.
            raise Refused(outcome) from None
        except Refused as refused:
            outcome = refused.reason
            raise
        finally:
            self._metrics.cache_redis_seconds.observe(time.perf_counter() - started, name, outcome)

    def scripts(
        self,
        script: Script,
        *calls: Call,
        timeout_seconds: float | None = None,
    ) -> list[Any]:
        """Runs a script once for each (keys, arguments), in one packet.

        Raises:
            Refused: For any of them; others may have run.
        """
        words = [(len(keys), *keys, *arguments) for keys, arguments in calls]
        try:
            return self.commands(
                script.name,
                *((b"EVALSHA", script.sha, *each) for each in words),
                timeout_seconds=timeout_seconds,
            )
        except NoScript:
            # A new Redis knows no script; none of the calls has run.
            return self.commands(
                script.name,
                *((b"EVAL", script.text, *each) for each in words),
                timeout_seconds=timeout_seconds,
            )

    @staticmethod
    def call(script: Script, keys: Sequence[Word], arguments: Sequence[Word]) -> Sequence[Word]:
        """Returns the command that runs a script which Redis knows, else ``NoScript``."""
        return (b"EVALSHA", script.sha, len(keys), *keys, *arguments)

    def load(self, script: Script) -> None:
        """Makes a script known to Redis."""
        with contextlib.suppress(Refused):
            self.commands("load", (b"SCRIPT", b"LOAD", script.text))

    @contextlib.contextmanager
    def _connection(self, timeout_seconds: float | None) -> Iterator[Any]:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            with waits:
                connection = self._connected()
        changed = timeout_seconds is not None and timeout_seconds != self._timeout
        try:
            if changed:
                connection._sock.settimeout(timeout_seconds)
            with waits:
                yield connection
        except redis.ResponseError:
            # The connection is as good as before: every answer was read.
            self._give_back(connection, changed)
            raise
        except BaseException:
            # Half an answer may be in it.
            connection.disconnect()
            raise
        self._give_back(connection, changed)

    def _give_back(self, connection: Any, changed: bool) -> None:
        if changed:
            connection._sock.settimeout(self._timeout)
        with self._lock:
            if not self._is_closed:
                self._idle.append(connection)
                return
        connection.disconnect()

    def _connected(self) -> Any:
        connection = self._source.connection_class(**self._source.connection_kwargs)
        try:
            connection.connect()
            if self._run_id:
                connection.send_command("INFO", "server")
                if run_id_of(connection.read_response(disable_decoding=True)) != self._run_id:
                    raise Refused("run_id")
        except BaseException:
            connection.disconnect()
            raise
        return connection


def packed(commands: Iterable[Sequence[Word]]) -> bytes:
    """Returns commands as they are sent."""
    parts: list[bytes] = []
    for words in commands:
        parts.append(b"*%d\r\n" % len(words))
        for word in words:
            data = word if type(word) is bytes else str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def run_id_of(info: bytes) -> str:
    """Returns the run id that ``INFO server`` tells; empty if it tells none."""
    return info_of(info).get("run_id", "")


def info_of(info: bytes) -> dict[str, str]:
    """Returns the fields of an ``INFO`` answer."""
    pairs = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in pairs if colon}


def _reason(error: Exception) -> str:
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, redis.AuthenticationError):
        return "authentication"
    if any(isinstance(each, ssl.SSLError) for each in (error, error.__cause__, error.__context__)):
        return "tls"
    if isinstance(error, redis.ConnectionError | OSError):
        return "connection"
    return "error"

"""A connection to Redis whose answers an event loop waits for, so that no thread has to."""

import contextlib
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from authz_service.base.clock import boot_seconds
from authz_service.storage.cache.control import Poller, Timer
from authz_service.storage.cache.redis_connections import Connections, Refused
from authz_service.telemetry.metrics import Metrics

# What is known when the answers to a packet are there; None if they never will be.
Then = Callable[[list[Any] | None], None]

_READ_BYTES = 65_536
# After a failure, the pause before it is tried again; meanwhile threads ask in the usual way.
_PAUSE_SECONDS = 0.25


class Prompt:
    """Sends packets and hands on their answers, in order, in the thread of an event loop.

    Connecting waits, so that is done in a thread; until it is done, and after a failure, nothing is
    sent and the answer is None at once.

    Args:
        connections: Makes the connection, to the right Redis process.
        timeout_seconds: The longest wait for an answer.
    """

    def __init__(
        self, connections: Connections, poller: Poller, timeout_seconds: float, metrics: Metrics
    ) -> None:
        self._connections = connections
        self._poller = poller
        self._timeout = timeout_seconds
        self._metrics = metrics
        self._connection: Any = None
        self._socket: Any = None
        self._reader = hiredis.Reader()
        self._is_connecting = self._is_closed = False
        self._not_before = 0.0
        # What was sent and not answered: when, how many answers, those that came, and for whom.
        self._waiting: deque[tuple[float, int, list[Any], Then, str]] = deque()
        self._unsent = b""
        self._timer: Timer | None = None
        connections.closing.append(self._end)

    def send(self, name: str, packet: bytes, answers_expected: int, then: Then) -> None:
        """Sends commands; ``then`` is called once, perhaps at once.

        Args:
            name: What they are called in the metrics.
        """
        if self._socket is None:
            self._connect()
            then(None)
            return
        self._waiting.append((time.perf_counter(), answers_expected, [], then, name))
        if self._unsent:
            self._unsent += packet
        else:
            self._write(packet)
        if self._timer is None and self._socket is not None:
            self._timer = self._poller.call_later(self._timeout, self._look_at_clock)

    def close(self) -> None:
        """Ends the connection for good."""
        self._is_closed = True
        self._fail("connection")

    def _end(self) -> None:
        """Ends the connection, from another thread."""
        try:
            self._poller.call_soon_threadsafe(self.close)
        except RuntimeError:
            # The loop has ended, and with it everybody who could use the connection.
            if self._connection is not None:
                self._connection.disconnect()

    def _connect(self) -> None:
        if self._is_connecting or self._is_closed or boot_seconds() < self._not_before:
            return
        self._is_connecting = True
        threading.Thread(target=self._connect_in_thread, name="cache-connect", daemon=True).start()

    def _connect_in_thread(self) -> None:
        connection = None
        with contextlib.suppress(Refused):
            connection = self._connections.connected()
        try:
            self._poller.call_soon_threadsafe(lambda: self._connected(connection))
        except RuntimeError:
            if connection is not None:
                connection.disconnect()

    def _connected(self, connection: Any) -> None:
        self._is_connecting = False
        if connection is None or self._is_closed:
            self._not_before = boot_seconds() + _PAUSE_SECONDS
            if connection is not None:
                connection.disconnect()
            return
        # From here on this is only a socket: nothing of redis-py reads from it any more.
        self._connection, self._socket = connection, connection._sock
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()
        self._poller.add_reader(self._socket.fileno(), self._readable)

    def _write(self, packet: bytes) -> None:
        try:
            sent = self._socket.send(packet)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError:
            self._fail("connection")
            return
        if sent < len(packet):
            if not self._unsent:
                self._poller.add_writer(self._socket.fileno(), self._writable)
            self._unsent = packet[sent:]
        elif self._unsent:
            self._unsent = b""
            self._poller.remove_writer(self._socket.fileno())

    def _writable(self) -> None:
        self._write(self._unsent)

    def _readable(self) -> None:
        reader, is_tls = self._reader, isinstance(self._socket, ssl.SSLSocket)
        try:
            while True:
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    self._fail("connection")
                    return
                reader.feed(data)
                # TLS may hold more than the poll shows.
                if not is_tls:
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._fail("connection")
            return
        while self._waiting:
            started, expected, answers, then, name = self._waiting[0]
            try:
                answer = reader.gets()
            except hiredis.ProtocolError:
                self._fail("error")
                return
            if answer is False:
                return
            answers.append(answer)
            if len(answers) < expected:
                continue
            self._waiting.popleft()
            is_refused = any(isinstance(answer, hiredis.ReplyError) for answer in answers)
            self._metrics.cache_redis_seconds.observe(
                time.perf_counter() - started, name, "error" if is_refused else "ok"
            )
            then(None if is_refused else answers)

    def _look_at_clock(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        left = self._waiting[0][0] + self._timeout - time.perf_counter()
        if left <= 0:
            # Its answer may still come, and would be taken for another's.
            self._fail("timeout")
        else:
            self._timer = self._poller.call_later(left, self._look_at_clock)

    def _fail(self, outcome: str) -> None:
        """Gives the connection up, and everybody who waits for it an answer."""
        if self._socket is not None:
            fd = self._socket.fileno()
            if fd >= 0:
                self._poller.remove_reader(fd)
                if self._unsent:
                    self._poller.remove_writer(fd)
            self._connection.disconnect()
            self._connection = self._socket = None
        self._unsent = b""
        self._not_before = boot_seconds() + _PAUSE_SECONDS
        waiting, self._waiting = self._waiting, deque()
        for started, _, _, then, name in waiting:
            self._metrics.cache_redis_seconds.observe(time.perf_counter() - started, name, outcome)
            then(None)

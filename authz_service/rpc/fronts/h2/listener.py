"""Sockets and event loop around the connections: what accepts, reads, writes and tells the time."""

import asyncio
import contextlib
import os
import random
import socket
import ssl
import stat
from collections.abc import Callable
from typing import Any, Protocol, cast

from authz_service.base.clock import boot_seconds
from authz_service.rpc.fronts.h2.connection import Bodies, Connection
from authz_service.rpc.fronts.h2.headers import Tables
from authz_service.rpc.fronts.h2.limits import Limits
from authz_service.rpc.fronts.listeners import Listener, Tls, Unlistenable

# Of its own: threads must not disturb who seeds the common one.
_RANDOM = random.Random()

_BACKLOG = 1_024
_TICK_SECONDS = 0.5
_ACCEPTED_TOGETHER = 64
# After there was no descriptor for a connection.
_RETRY_SECONDS = 0.1
# Above this the peer takes its replies too slowly, and nothing more is read from it.
_WRITE_BYTES_HIGH = 256 * 1024


class Taker(Protocol):
    """Who is told of what comes in."""

    def requested(self, link: "Link") -> None:
        """Its connection has requests."""

    def left(self, link: "Link") -> None:
        """Its connection has streams that the peer gave up."""


class Link(asyncio.Protocol):
    """A connection and its socket.

    Attributes:
        is_dirty: It has something to send that is not yet handed to the socket.
        names: DNS and URI names of the peer's verified certificate.
    """

    __slots__ = (
        "_age_at", "_closed_at", "_listener", "_paused_at", "_transport", "connection", "is_dirty",
        "names",
    )  # fmt: skip

    def __init__(self, listener: "Listening") -> None:
        now = boot_seconds()
        self._listener = listener
        self._transport: Any = None
        self._closed_at = self._paused_at = 0.0
        # Spread out, or all that connected at once would come back at once.
        self._age_at = now + listener.age_seconds * _RANDOM.uniform(0.9, 1.1)
        self.connection = Connection(listener.limits, listener.tables, listener.bodies, now)
        self.is_dirty = False
        self.names: tuple[str, ...] = ()

    @property
    def is_made(self) -> bool:
        """It has its socket, and whatever had to be agreed before."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._listener.coming -= 1
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=_WRITE_BYTES_HIGH)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            if tls.selected_alpn_protocol() != "h2":
                self.abort("alpn")
                return
            self.names = _names(tls.getpeercert() or {})
        self._listener.welcome(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        connection = self.connection
        connection.receive(data, boot_seconds())
        if connection.gone:
            self._listener.taker.left(self)
        if connection.requests:
            self._listener.taker.requested(self)
        self.flush()

    def flush(self) -> None:
        """Hands to the socket what the connection has to send."""
        self.is_dirty = False
        connection, transport = self.connection, self._transport
        if transport.is_closing():
            return
        out = connection.take()
        if out:
            transport.write(out)
        if connection.ended:
            self._listener.ended(connection.ended)
            # What is written already still goes out.
            transport.close()
            self._closed_at = boot_seconds()
        elif self._paused_at or connection.unread:
            # What waits for the peer's windows, and what it does not read though they are open.
            unread = connection.unread + transport.get_write_buffer_size()
            if unread > self._listener.limits.unread_bytes_max:
                self.abort("unread")

    def tick(self, now: float) -> None:
        """Does what time asks for."""
        if now >= self._age_at:
            self.connection.go(now)
        self.connection.tick(now)
        if self.connection.gone:
            self._listener.taker.left(self)
        # Also one that is closed waits for what is written to be read.
        since = self._closed_at or self._paused_at
        if since and now - since > self._listener.limits.unread_seconds_max:
            self.abort("unread")
            return
        self.flush()

    def abort(self, why: str) -> None:
        """Ends the connection at once."""
        self._listener.ended(why)
        self._transport.abort()

    def pause_writing(self) -> None:
        self._paused_at = boot_seconds()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused_at = 0.0
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.links.discard(self)
        self.connection.close()
        if self.connection.gone:
            self._listener.taker.left(self)


class Listening:
    """All sockets of a front, in the thread of one event loop.

    Args:
        age_seconds: After this a connection is asked to go, give or take a tenth.
        refused: Told why a connection was ended or not taken; words from a closed set.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        taker: Taker,
        limits: Limits,
        *,
        age_seconds: float,
        refused: Callable[[str], None],
    ) -> None:
        self.taker = taker
        self.limits = limits
        self.tables = Tables()
        self.bodies = Bodies()
        self.age_seconds = age_seconds
        self.links: set[Link] = set()
        # Accepted, and not yet among them.
        self.coming = 0
        self._loop = loop
        self._refused = refused
        self._sockets: list[tuple[socket.socket, _Certificates | None]] = []
        self._accepting: set[asyncio.Task[Any]] = set()
        self._is_draining = False
        self._timer: asyncio.TimerHandle | None = None
        # Of unix sockets: path, and the file that we made there.
        self._paths: list[tuple[str, tuple[int, int]]] = []

    def listen(self, listener: Listener, *, reuse_port: bool) -> str:
        """Binds an address; returns it with the port that was chosen for port 0.

        Raises:
            Unlistenable: It is taken, or there is no such address.
        """
        certificates = None if listener.tls is None else _Certificates(listener.tls)
        try:
            if listener.address.startswith("unix:"):
                path = listener.address.removeprefix("unix:").removeprefix("//")
                listening = _unix(path)
                self._paths.append((path, _file(path)))
                address = listener.address
            else:
                host, _, port = listener.address.rpartition(":")
                listening = _tcp(host.strip("[]"), int(port), reuse_port=reuse_port)
                address = f"{host}:{listening.getsockname()[1]}"
        except OSError as error:
            raise Unlistenable(f"cannot listen on {listener.address}: {error.strerror}") from None
        listening.setblocking(False)
        self._sockets.append((listening, certificates))
        return address

    def start(self) -> None:
        """Starts to accept."""
        for listening, certificates in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening, certificates)
        self._tick()

    @property
    def is_idle(self) -> bool:
        """True if there is no connection, and none is coming."""
        return not self.links and not self._accepting

    def welcome(self, link: Link) -> None:
        """Takes a new connection; at the end, only to tell it to go."""
        self.links.add(link)
        if self._is_draining:
            link.connection.go(boot_seconds())

    def stop_accepting(self) -> None:
        """Closes what listens, and asks all connections to go."""
        self._is_draining = True
        sockets, self._sockets = self._sockets, []
        for listening, certificates in sockets:
            self._loop.remove_reader(listening.fileno())
            # Who has connected already is told to go; closed, the system would cut it off.
            for _ in range(_BACKLOG // _ACCEPTED_TOGETHER + 1):
                if not self._accept(listening, certificates):
                    break
            listening.close()
        for path, made in self._paths:
            with contextlib.suppress(OSError):
                if _file(path) == made:
                    os.unlink(path)
        now = boot_seconds()
        for link in list(self.links):
            link.connection.go(now)
            link.flush()

    def close(self) -> None:
        """Ends everything that is left."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._accepting:
            task.cancel()
        for listening, _ in self._sockets:
            listening.close()
        for link in list(self.links):
            link.abort("stopped")

    def ended(self, why: str) -> None:
        """Counts the end of a connection, unless it is an ordinary one."""
        if why not in _ORDINARY:
            self._refused(why if why in _REFUSALS else "protocol")

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_SECONDS, self._tick)
        now = boot_seconds()
        for link in list(self.links):
            try:
                link.tick(now)
            except Exception as error:
                # It ends that connection; the others go on.
                link.abort("error")
                self._loop.call_exception_handler(
                    {"message": "a connection could not be looked after", "exception": error}
                )

    def _accept(self, listening: socket.socket, certificates: "_Certificates | None") -> bool:
        """Takes connections that wait; True if there may be more."""
        for _ in range(_ACCEPTED_TOGETHER):
            try:
                accepted, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError:
                # No descriptors. Whoever waits goes on waiting, and the loop does other things.
                self._refused("descriptors")
                self._loop.remove_reader(listening.fileno())
                self._loop.call_later(_RETRY_SECONDS, self._listen_again, listening, certificates)
                return False
            if len(self.links) + self.coming >= self.limits.connections_max:
                accepted.close()
                self._refused("connections")
                continue
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.coming += 1
            task = self._loop.create_task(self._take(accepted, certificates))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)
        return True

    def _listen_again(self, listening: socket.socket, certificates: "_Certificates | None") -> None:
        if (listening, certificates) in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening, certificates)

    async def _take(self, accepted: socket.socket, certificates: "_Certificates | None") -> None:
        tls = None if certificates is None else certificates.context()
        link = Link(self)
        try:
            await self._loop.connect_accepted_socket(
                lambda: link,
                accepted,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self.limits.handshake_seconds_max,
            )
        except (OSError, ssl.SSLError, TimeoutError):
            accepted.close()
            self._refused("tls")
        finally:
            if not link.is_made:
                self.coming -= 1


# Ends that are a peer's own business or ours; no refusal.
_ORDINARY = frozenset({"age", "closed", "going", "stopped"})
# Why a connection was refused or ended, as the metric tells it; what is not here is "protocol".
_REFUSALS = frozenset(
    {"alpn", "connections", "descriptors", "flood", "handshake", "silent", "tls", "unread"}
)


def new_loop() -> asyncio.AbstractEventLoop:
    """Returns an event loop: uvloop's where it is installed (extra ``fast``)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return cast(asyncio.AbstractEventLoop, uvloop.new_event_loop())


def _tcp(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            # Left by a process that was killed; a living one's place is taken by its successor.
            os.unlink(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        # The file's mode is what protects a socket (quality.md section 6, "sidecar").
        os.chmod(path, 0o660)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _file(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


class _Certificates:
    """The TLS context of a listener; made anew when one of its files changes."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._stamps = tls.stamps()
        self._context = self._made()

    def context(self) -> ssl.SSLContext:
        """Returns the context for the next connection.

        Files that do not fit, as in the middle of a rotation, leave the last good ones in force.
        """
        with contextlib.suppress(OSError, ssl.SSLError):
            stamps = self._tls.stamps()
            if stamps != self._stamps:
                self._context = self._made()
                self._stamps = stamps
        return self._context

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(self._tls.certificate, self._tls.key)
        if self._tls.client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._tls.client_ca)
        return context


def _names(certificate: Any) -> tuple[str, ...]:
    """Returns the names of a verified certificate, URIs first, as grpcio orders them."""
    names = certificate.get("subjectAltName", ())
    return tuple(value for wanted in ("URI", "DNS") for kind, value in names if kind == wanted)

"""The complete front: grpcio's server, with raw bytes in and out.

Every method is registered with a streamed request, also the unary ones. On the wire it is the same;
here it means that a call reaches us before its message: the hall knows the caller before anything
is read, and a caller who opens calls and sends nothing can be cut off.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest

from authz_service.base.clock import boot_seconds
from authz_service.rpc import admission, errors
from authz_service.rpc.call import Call, CallerGone, Metadata, Reply
from authz_service.rpc.fronts import health
from authz_service.rpc.fronts.health import Health
from authz_service.rpc.fronts.listeners import Listener, Unlistenable, check_listener, credentials
from authz_service.rpc.fronts.pool import Pool
from authz_service.rpc.hall import Hall
from authz_service.rpc.methods import CLIENT_STREAM, SERVER_STREAM, WATCH

# The transport's limits (quality.md section 6). Those that the hall enforces too are a little wider
# here, so that who is just above gets a documented reason; far above, the transport's own word.
MESSAGE_BYTES_ABOVE = 1024 * 1024
METADATA_BYTES_MAX = 16 * 1024
STREAMS_PER_CONNECTION_MAX = 100
PING_INTERVAL_MS_MIN = 10_000
PING_STRIKES_MAX = 2
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
CONNECTION_AGE_MS = 10 * 60 * 1000
CONNECTION_AGE_GRACE_MS = 60_000

# A caller who sends nothing, or reads nothing, for this long is cut off.
STALLED_SECONDS_MAX = 30.0
REQUEST_SECONDS_MAX = 5.0
# Refusals waiting for their one thread; above, the transport refuses by itself.
REFUSALS_MAX = 256
# Health needs no credential, so a stranger's silent call may hold a thread of it only shortly.
HEALTH_THREADS = 8
HEALTH_REQUEST_SECONDS_MAX = 1.0
HEALTH_WATCHERS_MAX = 16
# Threads above the slots of streams, for telling the next one that there are no more.
SPARE_THREADS = 2
# How long after the end of a client stream it may still turn out that its caller cancelled.
GONE_SECONDS = 0.1
# A longer switch interval lets one thread with a large list hold up every decision for 5 ms.
SWITCH_SECONDS = 0.0005
# grpcio gives a call without a deadline one in the far future.
_NO_DEADLINE_SECONDS = 10.0**9

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes of the front; defaults are those of architecture.md section 9.

    Attributes:
        threads: Threads for unary calls and finite streams.
        watch_streams: Threads more, for endless streams.
        queue: Calls that may wait for a thread.
        reuse_port: Several processes listen on one port.
        reflection: Offer reflection, to any valid credential.
    """

    threads: int = 8
    watch_streams: int = 16
    queue: int = 64
    reuse_port: bool = False
    reflection: bool = False
    stalled_seconds_max: float = STALLED_SECONDS_MAX
    request_seconds_max: float = REQUEST_SECONDS_MAX
    connection_age_ms: int = CONNECTION_AGE_MS


class _Ending(grpc.Status):
    """A status as grpcio takes it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> None:
        self.code = code
        self.details = details
        self.trailing_metadata = trailing


def _ending(reply: Reply, status: Status) -> _Ending:
    details = (_DETAILS, status.SerializeToString())
    return _Ending(_CODES[status.code], status.message, (*reply.trailing, details))


class _Watchdog:
    """Cuts off calls that make no progress: the peer sends nothing, or reads nothing.

    A stalled call holds a thread of ours inside grpcio; only cancelling it from outside frees it.
    """

    def __init__(self, tick_seconds: float) -> None:
        self._tick_seconds = tick_seconds
        self._waits: dict[Any, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stall-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def waits(self, call: Any, seconds: float) -> None:
        """From now on the call waits for its peer; ``moves`` ends that."""
        self._waits[call] = boot_seconds() + seconds

    def moves(self, call: Any) -> None:
        """The peer did something."""
        self._waits.pop(call, None)

    def _run(self) -> None:
        while not self._stop.wait(self._tick_seconds):
            now = boot_seconds()
            # A copy in one step: other threads add and remove without a lock.
            for call, until in self._waits.copy().items():
                if until <= now and self._waits.pop(call, None) is not None:
                    call.cancel()


class Front:
    """A grpcio server in front of a hall.

    Args:
        hall: All its services must be registered before.
        listeners: At least one.
        health_listener: One more address that answers health only, for probes that have no
            certificate.

    Raises:
        Unlistenable: See ``check_listener``; also when an address is taken.
    """

    def __init__(
        self,
        hall: Hall,
        listeners: Sequence[Listener],
        *,
        health_listener: Listener | None = None,
        settings: Settings = Settings(),
    ) -> None:
        self._hall = hall
        self._settings = settings
        for listener in (*listeners, *([health_listener] if health_listener else [])):
            check_listener(
                listener.address, tls=listener.tls is not None, insecure=listener.insecure
            )
        self._wants_certificates = any(
            listener.tls is not None and listener.tls.client_ca for listener in listeners
        )
        self._watchdog = _Watchdog(
            min(HEALTH_REQUEST_SECONDS_MAX, settings.request_seconds_max) / 4
        )
        self._calls = Pool(settings.threads, "call")
        # A few more than slots, so that who is beyond them is told at once.
        self._watches = Pool(settings.watch_streams + SPARE_THREADS, "watch")
        self._refusals = Pool(1, "refusal")
        self._checks = Pool(HEALTH_THREADS, "health")
        self._health_watches = Pool(HEALTH_WATCHERS_MAX + SPARE_THREADS, "health-watch")
        self._health_watchers = threading.Semaphore(HEALTH_WATCHERS_MAX)
        self._reflections = Pool(2, "reflection")
        self._reflecting: set[grpc.ServicerContext] = set()
        self._is_started = False
        self._health = Health()
        health_routes = self._health_routes()
        routes = {**self._hall_routes(), **health_routes}
        if settings.reflection:
            routes.update(self._reflection_routes())
        self._server = self._new_server(_Routes(routes, self._refusals))
        self.addresses = [self._listen(self._server, listener) for listener in listeners]
        self._health_server: grpc.Server | None = None
        if health_listener is not None:
            self._health_server = self._new_server(_Routes(health_routes, self._refusals))
            self.addresses.append(self._listen(self._health_server, health_listener))

    def start(self) -> None:
        """Starts to serve; health says NOT_SERVING until ``set_serving(True)``."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self.set_serving(False)
        self._is_started = True
        self._watchdog.start()
        self._server.start()
        if self._health_server is not None:
            self._health_server.start()

    def set_serving(self, serving: bool) -> None:
        """Sets the health of the empty name and of every registered service."""
        self._health.set(("", *self._hall.services), serving)

    def drain(self, grace_seconds: float) -> threading.Event:
        """Begins to stop: NOT_SERVING, no new calls; those in flight have ``grace_seconds``.

        Returns:
            What is set when all have ended.
        """
        self.set_serving(False)
        self._health.close()
        self._hall.close()
        for context in list(self._reflecting):
            context.cancel()  # type: ignore[no-untyped-call]
        return self._server.stop(grace_seconds)

    def stop(self, grace_seconds: float) -> None:
        """Drains, and ends what is left then; later calls do nothing."""
        if not self._is_started:
            # grpcio lets go of its sockets only at the end of a server that ran.
            self.start()
        self.drain(grace_seconds).wait()
        if self._health_server is not None:
            self._health_server.stop(None).wait()
        self._watchdog.stop()
        for pool in (
            self._calls, self._watches, self._refusals, self._checks, self._health_watches,
            self._reflections,
        ):  # fmt: skip
            pool.shutdown(wait=False, cancel_futures=True)

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the server has ended; True if the time was over before."""
        return bool(self._server.wait_for_termination(timeout_seconds))

    def _new_server(self, routes: "_Routes") -> grpc.Server:
        settings = self._settings
        message_bytes_max = self._hall.message_bytes_max
        options = [
            ("grpc.so_reuseport", int(settings.reuse_port)),
            ("grpc.max_receive_message_length", message_bytes_max + MESSAGE_BYTES_ABOVE),
            ("grpc.max_send_message_length", message_bytes_max),
            ("grpc.max_metadata_size", METADATA_BYTES_MAX),
            ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
            ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
            ("grpc.max_connection_age_ms", settings.connection_age_ms),
            ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
            ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
        ]
        return grpc.server(
            self._calls,
            handlers=[routes],
            options=options,
            maximum_concurrent_rpcs=settings.threads
            + settings.watch_streams
            + settings.queue
            + REFUSALS_MAX,
        )

    def _listen(self, server: grpc.Server, listener: Listener) -> str:
        """Binds an address; returns it with the port that was chosen for port 0."""
        try:
            if listener.tls is None:
                port = server.add_insecure_port(listener.address)
            else:
                port = server.add_secure_port(listener.address, credentials(listener.tls))
        except RuntimeError as error:
            raise Unlistenable(f"cannot listen on {listener.address}: {error}") from None
        if listener.address.startswith("unix:"):
            # The file's mode is what protects a socket (quality.md section 6, "sidecar").
            os.chmod(listener.address.removeprefix("unix:").removeprefix("//"), 0o660)
            return listener.address
        return f"{listener.address.rpartition(':')[0]}:{port}"

    def _hall_routes(self) -> dict[str, "_Route"]:
        routes = {}
        for path, method in self._hall.methods.items():
            if method.streaming == SERVER_STREAM:
                routes[path] = _Route(
                    path,
                    self._server_stream,
                    True,
                    self._watches if method.work == WATCH else self._calls,
                    refusal=self._refused_stream,
                    waiting_max=self._settings.queue,
                )
            else:
                is_collected = method.streaming == CLIENT_STREAM
                routes[path] = _Route(
                    path,
                    self._client_stream if is_collected else self._unary,
                    False,
                    self._calls,
                    refusal=self._refused,
                    waiting_max=self._settings.queue,
                    is_short=method.is_short,
                )
        return routes

    def _call(
        self,
        path: str,
        context: grpc.ServicerContext,
        arrived: float,
        read: Callable[[], bytes] | None = None,
    ) -> Call:
        """Returns a grpcio call as the hall knows it."""
        left = context.time_remaining()
        names: tuple[str, ...] = ()
        if self._wants_certificates:
            names = _certificate_names(context)
        return Call(
            path,
            context.invocation_metadata(),
            b"",
            boot_seconds() + left if left < _NO_DEADLINE_SECONDS else None,
            names,
            arrived,
            read,
        )

    def _unary(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
    ) -> bytes:
        call = self._call(path, context, arrived, lambda: self._read(requests, context))
        return _sent(self._hall.answer((call,))[0], context)

    def _client_stream(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
    ) -> bytes:
        call = self._call(path, context, arrived)
        gone = _gone(context)
        messages = self._all_received(requests, context, gone)
        return _sent(self._hall.collect(call, messages, gone.is_set), context)

    def _server_stream(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
    ) -> Iterator[bytes]:
        call = self._call(path, context, arrived, lambda: self._read(requests, context))
        messages = self._hall.stream(call, _gone(context).is_set)
        with closing(messages):
            for message in messages:
                if isinstance(message, Reply):
                    _sent(message, context)
                    return
                yield from self._watched(message, context)

    def _watched(self, message: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """Yields one message; inside the yield grpcio waits until the peer has room for it."""
        self._watchdog.waits(context, self._settings.stalled_seconds_max)
        try:
            yield message
        finally:
            self._watchdog.moves(context)

    def _refused(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
    ) -> bytes:
        call = self._call(path, context, arrived)
        return _sent(self._hall.refuse(call, admission.overloaded()), context)

    def _refused_stream(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
    ) -> Iterator[bytes]:
        self._refused(requests, context, path, arrived)
        return iter(())

    def _read(
        self,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        seconds_max: float | None = None,
    ) -> bytes:
        """Returns the one message of a unary request."""
        payload = self._next(requests, context, seconds_max or self._settings.request_seconds_max)
        if payload is None:
            # Half-closed without a message: the protocol does not allow it, so nobody honest waits.
            raise CallerGone
        return payload

    def _all_received(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, gone: threading.Event
    ) -> Iterator[bytes]:
        """Yields the messages of a client stream; ends only if the caller really ended it.

        In grpcio a cancelled call first looks like one whose caller sent its last message: both
        are the end of the messages, and only an event that follows says which. Half of what the
        caller wanted to send must never be taken for all of it, so that event gets its time.
        """
        yield from self._received(requests, context, self._settings.stalled_seconds_max)
        if gone.wait(GONE_SECONDS):
            raise CallerGone

    def _received(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, seconds_max: float
    ) -> Iterator[bytes]:
        """Yields the messages of a request, which may come ``seconds_max`` apart."""
        while (payload := self._next(requests, context, seconds_max)) is not None:
            yield payload

    def _next(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, seconds_max: float
    ) -> bytes | None:
        """Returns the next message of a request, None after the last.

        Raises:
            CallerGone: The caller cancelled, or sent nothing for ``seconds_max``.
        """
        self._watchdog.waits(context, seconds_max)
        try:
            return next(requests, None)
        except Exception:
            # What grpcio raises for a cancelled call has no type of its own.
            if context.is_active():
                raise
            raise CallerGone from None
        finally:
            self._watchdog.moves(context)

    def _health_routes(self) -> dict[str, "_Route"]:
        def check(
            requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
        ) -> bytes:
            request = self._health_request(requests, context)
            response = self._health.check(request)
            if response is None:
                errors.end(context, _Ending(grpc.StatusCode.NOT_FOUND, "unknown service"))
            return bytes(response.SerializeToString())

        def watch(
            requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
        ) -> Iterator[bytes]:
            request = self._health_request(requests, context)
            if not self._health_watchers.acquire(blocking=False):
                errors.end(
                    context, _Ending(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers")
                )
            try:
                for response in self._health.watch(request, _gone(context).is_set):
                    yield from self._watched(response.SerializeToString(), context)
            finally:
                self._health_watchers.release()

        # Nothing of this is refused for its waiting: it takes microseconds.
        return {
            health.CHECK: _Route(
                health.CHECK, check, False, self._checks, refusal=check, waiting_max=sys.maxsize
            ),
            health.WATCH: _Route(
                health.WATCH,
                watch,
                True,
                self._health_watches,
                refusal=watch,
                waiting_max=sys.maxsize,
            ),
        }

    def _health_request(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> HealthCheckRequest:
        try:
            return HealthCheckRequest.FromString(
                self._read(requests, context, HEALTH_REQUEST_SECONDS_MAX)
            )
        except (DecodeError, CallerGone):
            errors.end(context, _Ending(grpc.StatusCode.INVALID_ARGUMENT, "no request"))

    def _reflection_routes(self) -> dict[str, "_Route"]:
        """Returns reflection's routes, behind the hall's check of the credential."""
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        names = (*self._hall.services, health.SERVICE, reflection.SERVICE_NAME)
        servicer = reflection.ReflectionServicer(names)
        path = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"

        def reflect(
            requests: Iterator[bytes], context: grpc.ServicerContext, path: str, arrived: float
        ) -> Iterator[bytes]:
            refusal = self._hall.admit(self._call(path, context, arrived))
            if refusal is not None:
                _sent(refusal, context)
            self._reflecting.add(context)
            try:
                seconds_max = self._settings.stalled_seconds_max
                questions = (
                    reflection_pb2.ServerReflectionRequest.FromString(payload)
                    for payload in self._received(requests, context, seconds_max)
                )
                answers: Iterator[Any] = servicer.ServerReflectionInfo(questions, context)  # type: ignore[func-returns-value, assignment]
                for answer in answers:
                    yield from self._watched(answer.SerializeToString(), context)
            except (DecodeError, CallerGone):
                errors.end(context, _Ending(grpc.StatusCode.INVALID_ARGUMENT, "no request"))
            finally:
                self._reflecting.discard(context)

        return {
            path: _Route(
                path,
                reflect,
                True,
                self._reflections,
                refusal=self._refused_stream,
                waiting_max=self._settings.queue,
            )
        }


_Behavior = Callable[[Iterator[bytes], grpc.ServicerContext, str, float], Any]


@dataclass(frozen=True, slots=True)
class _Route:
    """How one path is answered.

    Attributes:
        pool: The threads that run the behavior.
        refusal: What answers instead when more than ``waiting_max`` calls wait for them.
        is_short: See ``Method``.
    """

    path: str
    behavior: _Behavior
    streams: bool
    pool: Pool
    refusal: _Behavior
    waiting_max: int
    is_short: bool = False


class _Routes(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds the route of a call. grpcio asks in its one polling thread, before it takes another."""

    def __init__(self, routes: dict[str, _Route], refusals: Pool) -> None:
        self._routes = routes
        self._refusals = refusals

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        route = self._routes.get(handler_call_details.method)
        if route is None:
            return None
        if route.pool.waiting > route.waiting_max:
            return _Arrival(route, route.refusal, self._refusals)
        return _Arrival(route, route.behavior, route.pool)


class _Arrival:
    """One call that has arrived, as what grpcio calls a method handler and its behavior."""

    __slots__ = ("_arrived", "_behavior", "_path", "experimental_thread_pool", "response_streaming")

    request_streaming = True
    request_deserializer = None
    response_serializer = None
    unary_unary = None
    unary_stream = None

    def __init__(self, route: _Route, behavior: _Behavior, pool: Pool) -> None:
        self._arrived = boot_seconds()
        self._path = route.path
        self._behavior = behavior
        self.experimental_thread_pool = pool.short if route.is_short else pool
        self.response_streaming = route.streams

    @property
    def stream_unary(self) -> "_Arrival":
        return self

    @property
    def stream_stream(self) -> "_Arrival":
        return self

    def __call__(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        return self._behavior(requests, context, self._path, self._arrived)


def _sent(reply: Reply, context: grpc.ServicerContext) -> bytes:
    """Ends a call: returns the reply's payload, or raises what makes grpcio send its status."""
    if reply.status is not None:
        errors.end(context, _ending(reply, reply.status))
    context.set_trailing_metadata(reply.trailing)
    return reply.payload


def _gone(context: grpc.ServicerContext) -> threading.Event:
    """Returns an event that is set once the call has ended for the peer."""
    gone = threading.Event()
    if not context.add_callback(gone.set):
        gone.set()
    return gone


def _certificate_names(context: grpc.ServicerContext) -> tuple[str, ...]:
    names = cast("Mapping[str, Sequence[bytes]]", context.auth_context())
    return tuple(
        name.decode("ascii", "replace")
        for key in ("x509_uri", "x509_dns", "x509_subject_alternative_name")
        for name in names.get(key, ())
    )

"""The decision front itself: hands the calls of all connections to the hall, batch by batch.

One thread runs the event loop and answers what is known; what must wait is answered by a few more.
"""

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code
from grpc_health.v1.health_pb2 import HealthCheckRequest

from authz_service.base.clock import boot_seconds
from authz_service.base.errors import InvalidArgument, Refusal, field_invalid, request_too_large
from authz_service.rpc import admission
from authz_service.rpc import status as statuses
from authz_service.rpc.call import Call, CallerGone, Reply, UnknownMethod
from authz_service.rpc.fronts import health
from authz_service.rpc.fronts.grpcio import SWITCH_SECONDS
from authz_service.rpc.fronts.h2 import connection, grpc
from authz_service.rpc.fronts.h2.connection import Stream
from authz_service.rpc.fronts.h2.limits import Limits
from authz_service.rpc.fronts.h2.listener import Link, Listening, new_loop
from authz_service.rpc.fronts.health import Health
from authz_service.rpc.fronts.listeners import Listener, check_listener
from authz_service.rpc.hall import Hall
from authz_service.rpc.methods import DECISION, UNARY

CONNECTION_AGE_MS = 10 * 60 * 1000
# The loop that did not turn for so long never will: the process ends, and is started anew.
STALLED_SECONDS_MAX = 20.0
# How often it is looked at in that time.
_LOOKS = 20
EXIT_STALLED = 70
# How often a drain looks whether all is answered.
_DRAIN_SECONDS = 0.02
_OTHER_PORT = "this port answers decisions only; the address of AUTHZ_LISTEN answers everything"


# Ready, because a server that refuses much has no time for it.
_OVERLOADED = grpc.refusal(statuses.status_of(admission.overloaded()))
_EXPIRED = grpc.refusal(statuses.status_of(admission.deadline_exceeded()))


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes of the front.

    Attributes:
        threads: Threads for calls that must wait.
        queue: Calls that may wait for one of them.
        reuse_port: Several processes listen on one port.
        stalled_seconds_max: The loop may stand still for so long.
    """

    threads: int = 8
    queue: int = 64
    reuse_port: bool = False
    connection_age_ms: int = CONNECTION_AGE_MS
    request_seconds_max: float = 5.0
    stalled_seconds_max: float = STALLED_SECONDS_MAX
    limits: Limits = field(default_factory=Limits)


class Front:
    """Serves the decisions of a hall, and health.

    Args:
        hall: All its services must be registered before.
        listeners: At least one.
        ended: Told why a connection was ended or refused; words from a closed set.
        stalled: Called instead of ending the process when the loop does not turn any more.

    Raises:
        Unlistenable: See ``check_listener``; also when an address is taken.
    """

    def __init__(
        self,
        hall: Hall,
        listeners: Sequence[Listener],
        *,
        settings: Settings = Settings(),
        loop: asyncio.AbstractEventLoop | None = None,
        ended: Callable[[str], None] = lambda why: None,
        stalled: Callable[[], None] = lambda: os._exit(EXIT_STALLED),
    ) -> None:
        self._hall = hall
        self._settings = settings
        self._limits = replace(settings.limits, body_seconds_max=settings.request_seconds_max)
        self._loop = loop or new_loop()
        self._health = Health()
        self._paths = {
            path
            for path, method in hall.methods.items()
            if method.work == DECISION and method.streaming == UNARY
        }
        self._listening = Listening(
            self._loop,
            self,
            self._limits,
            age_seconds=settings.connection_age_ms / 1_000,
            refused=ended,
        )
        self.addresses = []
        try:
            for listener in listeners:
                check_listener(
                    listener.address, tls=listener.tls is not None, insecure=listener.insecure
                )
                self.addresses.append(
                    self._listening.listen(listener, reuse_port=settings.reuse_port)
                )
        except BaseException:
            self._listening.close()
            if loop is None:
                self._loop.close()
            raise
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="decision")
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="decisions-watch", daemon=True)
        self._stopped = threading.Event()
        self._stalled = stalled
        self._turned = True
        # Of the loop's thread alone.
        # Complete requests and when they were that; whether a turn is set for them.
        self._pending: deque[tuple[Stream, float]] = deque()
        self._is_due = False
        self._dirty: list[Link] = []
        self._in_flight = 0
        self._waiting = 0
        # Of calls with a deadline that threads work on.
        self._timers: dict[Stream, asyncio.TimerHandle] = {}
        # What threads answered, and whether the loop was told that there is something.
        self._late: list[tuple[Call, Reply]] = []
        self._is_told = False
        self._lock = threading.Lock()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, in whose thread the hall is asked."""
        return self._loop

    def start(self) -> None:
        """Starts to serve; health says NOT_SERVING until ``set_serving(True)``."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self.set_serving(False)
        self._thread.start()
        self._watcher.start()

    def set_serving(self, serving: bool) -> None:
        """Sets the health of the empty name and of every registered service."""
        self._health.set(("", *self._hall.services), serving)

    def drain(self) -> None:
        """Begins to stop: NOT_SERVING, no new connections, and those that are there are to go."""
        self.set_serving(False)
        self._health.close()
        self._hall.close()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._listening.stop_accepting)

    def stop(self, grace_seconds: float) -> None:
        """Drains; calls in flight have ``grace_seconds`` to end."""
        self.drain()
        if self._thread.is_alive():
            deadline = boot_seconds() + grace_seconds
            self._loop.call_soon_threadsafe(self._stop_when_done, deadline)
            self._thread.join()
        self._listening.close()
        if self._thread.ident is None:
            # It never ran, and so closed nothing.
            self._loop.close()
        self._stopped.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._pool.shutdown(cancel_futures=True)

    # --- the loop's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._listening.start()
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _stop_when_done(self, deadline: float) -> None:
        if not self._listening.is_idle and boot_seconds() < deadline:
            self._loop.call_later(_DRAIN_SECONDS, self._stop_when_done, deadline)
            return
        self._listening.close()
        # One more turn, in which what was closed is let go.
        self._loop.call_soon(self._loop.call_soon, self._loop.stop)

    def requested(self, link: Link) -> None:
        """Takes the requests of a connection."""
        requests, link.connection.requests = link.connection.requests, []
        now = boot_seconds()
        for stream in requests:
            stream.owner = link
            if _is_health_check(stream):
                # It waits for nobody, or a server under load would be taken for a dead one.
                self._check_health(stream, link)
                continue
            if not self._is_due:
                # After all sockets of this turn were read, so that their calls go together.
                self._is_due = True
                self._loop.call_soon(self._hand_over)
            self._pending.append((stream, now))

    def left(self, link: Link) -> None:
        """Forgets about the streams that a peer gave up: whoever answers them finds them closed."""
        link.connection.gone = []

    def _call(self, stream: Stream, link: Link, now: float) -> Call | None:
        """Returns a request as the hall knows it; None if it is answered already.

        Raises:
            Refusal, UnknownMethod, CallerGone: It is to be refused with that.
        """
        head = stream.head
        if head.method != "POST" or not head.is_grpc:
            self._refuse_at_once(stream, link, grpc.not_grpc(head.method))
            return None
        if stream.refusal:
            raise self._too_large(stream)
        if head.path not in self._paths:
            raise UnknownMethod(_OTHER_PORT)
        seconds, is_bad = stream.timeout
        if is_bad:
            raise field_invalid("grpc-timeout", "1 to 8 digits and one of H M S m u n")
        if head.encoding and head.encoding not in (*grpc.IDENTITY, grpc.GZIP):
            text = "the encoding of the message is unknown"
            status = statuses.bare(Code.UNIMPLEMENTED, text)
            self._refuse_at_once(stream, link, grpc.encoding_unknown(status, ()))
            return None
        try:
            payload, is_compressed = grpc.message(_body(stream), head.encoding)
        except grpc.NotOneMessage as error:
            raise field_invalid("message", str(error)) from None
        # It may be large, and is not needed any more.
        stream.parts = []
        call = Call(
            head.path,
            head.metadata,
            payload,
            None if seconds is None else now + seconds,
            link.names,
            now,
            None,
            stream,
        )
        if is_compressed:
            call.read = lambda: self._decompressed(payload)
        return call

    def _too_large(self, stream: Stream) -> Refusal:
        if stream.refusal == connection.BODIES_TOO_LARGE:
            return admission.overloaded("too much of unfinished messages is held")
        if stream.refusal == connection.HEAD_TOO_LARGE:
            return request_too_large(
                "metadata", maximum=self._limits.header_bytes_max, actual=stream.head.size
            )
        return self._message_too_large(max(stream.size, self._limits.message_bytes_max + 1))

    def _message_too_large(self, size: int) -> InvalidArgument:
        return request_too_large("", maximum=self._hall.message_bytes_max, actual=size)

    def _decompressed(self, payload: bytes) -> bytes:
        bytes_max = self._hall.message_bytes_max
        try:
            return grpc.decompressed(payload, bytes_max)
        except grpc.NotOneMessage as error:
            raise field_invalid("message", str(error)) from None
        except grpc.TooLarge:
            raise self._message_too_large(bytes_max + 1) from None

    def _refuse(self, stream: Stream, link: Link, now: float, refusal: Exception) -> None:
        """Refuses a request that the hall need not look at, logged like any other."""
        head = stream.head
        call = Call(head.path, head.metadata, b"", None, link.names, now, None, stream)
        self._send(call, self._hall.refuse(call, refusal))

    def _check_health(self, stream: Stream, link: Link) -> None:
        """Answers a health check: no credential, no place, no log line."""
        try:
            payload, _ = grpc.message(_body(stream), "")
            response = self._health.check(HealthCheckRequest.FromString(payload))
        except (DecodeError, grpc.NotOneMessage):
            refusal = grpc.refusal(statuses.bare(Code.INVALID_ARGUMENT, "no request"))
            link.connection.refuse(stream, refusal)
            return
        if response is None:
            refusal = grpc.refusal(statuses.bare(Code.NOT_FOUND, "unknown service"))
            link.connection.refuse(stream, refusal)
            return
        link.connection.answer(stream, response.SerializeToString(), grpc.trailers(()))

    def _hand_over(self) -> None:
        """Gives the hall what it can answer in a few milliseconds, the newest first.

        Who came first has waited longest, and given up soonest: under more load than there is time
        for, answering in order would answer everybody too late.
        """
        self._turned = True
        self._shed()
        pending, calls = self._pending, list[Call]()
        while pending and len(calls) < self._limits.together_max:
            stream, arrived = pending.pop()
            link = _link(stream)
            if link.connection.streams.get(stream.id) is not stream:
                # Reset meanwhile, or in the same breath.
                continue
            try:
                call = self._call(stream, link, arrived)
            except (Refusal, UnknownMethod, CallerGone) as refusal:
                self._refuse(stream, link, arrived, refusal)
                continue
            if call is not None:
                calls.append(call)
        calls.reverse()
        self._is_due = bool(pending)
        if pending:
            self._loop.call_soon(self._hand_over)
        self._in_flight += len(calls)
        self._hall.answer_soon(calls, self._answered, self._later)
        self._flush()

    def _shed(self) -> None:
        """Lets go of the oldest calls: those given up, those whose time is over, and too many."""
        pending, now = self._pending, boot_seconds()
        excess = self._in_flight + len(pending) - self._limits.calls_max
        overloaded = expired = 0
        while pending:
            stream, arrived = pending[0]
            link = _link(stream)
            seconds, _ = stream.timeout
            if link.connection.streams.get(stream.id) is not stream:
                pass
            elif excess > 0:
                overloaded += 1
                self._refuse_at_once(stream, link, _OVERLOADED)
            elif (
                seconds is not None
                and arrived + seconds <= now
                and len(pending) > self._limits.together_max
            ):
                expired += 1
                self._refuse_at_once(stream, link, _EXPIRED)
            else:
                break
            excess -= 1
            pending.popleft()
        self._hall.shed(overloaded=overloaded, expired=expired)

    def _refuse_at_once(self, stream: Stream, link: Link, refusal: bytes) -> None:
        link.connection.refuse(stream, refusal)
        self._soil(link)

    def _soil(self, link: Link) -> None:
        """Notes that a connection has something to send, at the end of this turn."""
        if not link.is_dirty:
            link.is_dirty = True
            self._dirty.append(link)

    def _answered(self, replies: Sequence[tuple[Call, Reply]]) -> None:
        self._in_flight -= len(replies)
        for call, reply in replies:
            self._send(call, reply)
        self._flush()

    def _send(self, call: Call, reply: Reply) -> None:
        stream = call.origin
        assert isinstance(stream, Stream)
        link = _link(stream)
        if reply.status is None:
            link.connection.answer(stream, reply.payload, grpc.trailers(reply.trailing))
        else:
            link.connection.refuse(stream, grpc.refusal(reply.status, reply.trailing))
        self._soil(link)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            link.flush()

    def _later(self, call: Call, job: Callable[[], Reply]) -> bool:
        if self._waiting >= self._settings.threads + self._settings.queue:
            return False
        self._waiting += 1
        stream = call.origin
        assert isinstance(stream, Stream)
        if call.deadline is not None:
            left = max(0.0, call.deadline - boot_seconds())
            self._timers[stream] = self._loop.call_later(left, self._expire, stream)
        self._pool.submit(self._answer_in_thread, call, job)
        return True

    def _expire(self, stream: Stream) -> None:
        """Answers a call whose deadline has come while a thread works on it."""
        del self._timers[stream]
        link = _link(stream)
        # The thread's reply is the one that is logged; it finds the stream closed.
        link.connection.refuse(stream, _EXPIRED)
        link.flush()

    def _collect(self) -> None:
        """Sends what threads answered."""
        with self._lock:
            late, self._late = self._late, []
            self._is_told = False
        self._waiting -= len(late)
        for call, _ in late:
            assert isinstance(call.origin, Stream)
            timer = self._timers.pop(call.origin, None)
            if timer is not None:
                timer.cancel()
        self._answered(late)

    # --- other threads ---------------------------------------------------------------------------

    def _answer_in_thread(self, call: Call, job: Callable[[], Reply]) -> None:
        stream = call.origin
        assert isinstance(stream, Stream)
        link = _link(stream)
        if link.connection.streams.get(stream.id) is stream:
            reply = job()
        else:
            # Nobody waits for it any more.
            reply = self._hall.refuse(call, CallerGone())
        with self._lock:
            self._late.append((call, reply))
            is_told, self._is_told = self._is_told, True
        if not is_told:
            self._loop.call_soon_threadsafe(self._collect)

    def _watch(self) -> None:
        """Ends the process if its loop does not turn any more."""
        missed = 0
        while not self._stopped.wait(self._settings.stalled_seconds_max / _LOOKS):
            # Counted by own turns, not by the clock: who was stopped as a whole missed nothing.
            missed = 0 if self._turned else missed + 1
            self._turned = False
            if missed >= _LOOKS:
                self._stalled()
                return
            self._loop.call_soon_threadsafe(self._turn)

    def _turn(self) -> None:
        self._turned = True


def _is_health_check(stream: Stream) -> bool:
    head = stream.head
    return (
        head.path == health.CHECK and head.method == "POST" and head.is_grpc and not stream.refusal
    )


def _link(stream: Stream) -> Link:
    link = stream.owner
    assert isinstance(link, Link)
    return link


def _body(stream: Stream) -> bytes:
    return stream.parts[0] if stream.parts else b""

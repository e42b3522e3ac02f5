"""Readers, writers and a watcher of a running stack, and the record of all they did."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.protobuf import message_factory
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from authz_service.base.clock import boot_seconds
from authz_service.client.retry import refusal_of
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.pb.authz.v1 import watch_pb2
from authz_service.rpc.call import Reply
from tests.callers import PACKAGE, Caller, method
from tests.consistency.history import Read, Register, Value, Write
from tests.consistency.judges import Event
from tests.consistency.stack import Stack, pause
from tests.consistency.stories import Change, Item, Story, Watched, World

READ_SECONDS = 5.0
WRITE_SECONDS = 8.0
# A write is repeated until it is acknowledged, through every fault; this long without is a failure.
GIVE_UP_SECONDS = 60.0
# Registers of one batch: more answers a call, so that the judges get more to judge.
REGISTERS_MAX = 4

_REPEATED = ("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
_CHANNEL = [
    # A process that comes back is found at once, not after a back-off of seconds.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
]


class Failure(NamedTuple):
    """A call that ended without an answer.

    Attributes:
        at: When it ended.
        process: Which process was asked.
        is_write: Or a read.
    """

    at: float
    process: int
    is_write: bool
    code: str
    reason: str
    text: str = ""


class Acknowledged(NamedTuple):
    """A write that was acknowledged.

    Attributes:
        attempts: Request ids of its attempts.
    """

    kind: str
    attempts: Sequence[str]
    invoked: float
    acknowledged: float


class Broken(Exception):
    """A write ended as none may: refused though it is right, or never acknowledged."""


@dataclass
class Record:
    """All that a load did between its start and its end.

    Attributes:
        registers: With their writes and reads.
        latencies: When each read ended, and how long it took.
    """

    registers: list[Register] = field(default_factory=list)
    writes: list[Acknowledged] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Load:
    """Readers and writers of a stack.

    Args:
        stack: Its processes are all asked.
        seed: Of everything random here.
        stories: What of the world is written; by default all there is.
    """

    def __init__(
        self,
        stack: Stack,
        seed: int,
        stories: Callable[[World], list[Story]] = World.stories,
    ) -> None:
        self._stack = stack
        self._seed = seed
        self._channels = [
            grpc.insecure_channel(service.address, _CHANNEL) for service in stack.services
        ]
        self._numbers = itertools.count(1)
        self._name = f"{seed:x}-{random.SystemRandom().getrandbits(32):x}"
        self._stopping = threading.Event()
        self.record = Record()
        # Of every load on this stack, for the audit.
        self.acknowledged: list[Acknowledged] = []
        self.watcher = Watcher(self._channels, stack.bearer)
        made = World(Caller(self._send, None))
        self.stories = stories(made)
        for story in self.stories:
            if not story.watched:
                # What it needs first is made by its first write.
                self._prepare(story)

    def close(self) -> None:
        """Stops the watcher and closes all channels."""
        self.watcher.stop()
        for channel in self._channels:
            channel.close()

    # --- calls ---------------------------------------------------------------------------------

    def _send(self, path: str, _: Any, payload: bytes) -> Reply:
        """Sends what a story needs beside its steps, as a write is sent."""
        _, response = self._acknowledge("preparation", path, payload, prefer=0)
        return Reply(response, None, ())

    def _acknowledge(
        self, kind: str, path: str, payload: bytes, *, prefer: int
    ) -> tuple[Acknowledged, bytes]:
        """Repeats a write with one idempotency key, at another process each time, until it is done.

        Raises:
            Broken: It is refused, or nobody acknowledges it.
        """
        key = f"{self._name}-{next(self._numbers)}"
        attempts: list[str] = []
        invoked = boot_seconds()
        while True:
            process = (prefer + len(attempts)) % len(self._channels)
            attempts.append(f"{key}-{len(attempts)}")
            metadata = (
                ("authorization", f"Bearer {self._stack.bearer}"),
                ("idempotency-key", key),
                ("x-request-id", attempts[-1]),
            )
            try:
                response: bytes = self._channels[process].unary_unary(path)(
                    payload, metadata=metadata, timeout=WRITE_SECONDS
                )
            except grpc.RpcError as error:
                code, reason = refusal_of(error)
                self.record.failures.append(_failure(error, process, is_write=True))
                text = f"{path} {attempts}: {code.name} {reason} {error.details()}"
                if code.name not in _REPEATED:
                    self.record.broken.append(text)
                # A bug in one attempt is told; the next ones keep the story in step with SQL.
                is_final = code.name not in (*_REPEATED, "INTERNAL", "UNKNOWN")
                if is_final or boot_seconds() - invoked > GIVE_UP_SECONDS:
                    raise Broken(text) from None
                pause(0.02)
                continue
            done = Acknowledged(kind, tuple(attempts), invoked, boot_seconds())
            self.acknowledged.append(done)
            return done, response

    def _prepare(self, story: Story) -> None:
        step = next(story.steps)
        story.steps = itertools.chain([step], story.steps)

    # --- running -------------------------------------------------------------------------------

    def run(
        self,
        seconds: float,
        *,
        readers: int = 4,
        writers: int = 2,
        pause_seconds: float = 0.03,
        meanwhile: Callable[[], None] | None = None,
    ) -> Record:
        """Reads and writes for a while.

        Args:
            seconds: How long; longer while ``meanwhile`` is not done.
            readers, writers: For each process.
            pause_seconds: The longest pause of a writer between two writes.
            meanwhile: Called in this thread: faults.

        Returns:
            What happened, after all writes under way have been acknowledged.
        """
        self._begin()
        self._stopping.clear()
        threads = []
        for process in range(len(self._channels)):
            for number in range(readers):
                threads.append(
                    threading.Thread(target=self._read, args=(process, number), daemon=True)
                )
        count = writers * len(self._channels)
        # Stories of every kind for each writer, and each story for one: its writes are in a row.
        shared = list(self.stories)
        random.Random(self._seed).shuffle(shared)
        for number in range(count):
            threads.append(
                threading.Thread(
                    target=self._write,
                    args=(number, shared[number::count], pause_seconds),
                    daemon=True,
                )
            )
        began = boot_seconds()
        for thread in threads:
            thread.start()
        try:
            if meanwhile is not None:
                meanwhile()
            pause(max(0.0, began + seconds - boot_seconds()))
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(GIVE_UP_SECONDS + 30)
        if any(thread.is_alive() for thread in threads):
            self.record.broken.append("a reader or writer does not end")
        self._read_all()
        for story in self.stories:
            self.record.registers += [*story.past, *(each.register for each in story.watched)]
            story.past = []
        return self.record

    def _begin(self) -> None:
        """Starts new histories, where the last ones ended."""
        self.record = Record()
        for story in self.stories:
            for watched in story.watched:
                old = watched.register
                watched.register = Register(old.name, old.kind, old.values()[-1])

    def _write(self, number: int, stories: Sequence[Story], pause_seconds: float) -> None:
        chance = random.Random(f"{self._seed} writer {number}")
        due = {story.kind: 0.0 for story in stories}
        process = number % len(self._channels)
        try:
            while stories and not self._stopping.is_set():
                self._stopping.wait(chance.uniform(0, pause_seconds))
                story = chance.choice(stories)
                if boot_seconds() < due[story.kind]:
                    continue
                due[story.kind] = boot_seconds() + story.seconds_min
                self._take(story, process)
        except Broken as broken:
            self.record.broken.append(f"given up: {broken}")
        except Exception as error:
            self.record.broken.append(f"writer: {error!r}")

    def _take(self, story: Story, process: int) -> None:
        """Makes the next write of a story."""
        step = next(story.steps)
        path, payload = _encoded(step.change)
        done, _ = self._acknowledge(story.kind, path, payload, prefer=process)
        self.record.writes.append(done)
        for watched, value in zip(story.watched, step.values, strict=True):
            watched.register.writes.append(Write(done.invoked, done.acknowledged, value))

    def _read(self, process: int, number: int) -> None:
        chance = random.Random(f"{self._seed} reader {process} {number}")
        reader = f"{process}.{number}"
        asking = Asking(self._channels[process], self._stack.bearer)
        while not self._stopping.is_set():
            watched = [each for story in self.stories for each in story.watched]
            chosen = [chance.choice(watched)]
            if not chosen[0].bearer:
                alike = [
                    each
                    for each in watched
                    if each.organization == chosen[0].organization and not each.bearer
                ]
                chosen += chance.sample(alike, min(len(alike), chance.randrange(REGISTERS_MAX)))
            try:
                self._ask(asking, list({id(each): each for each in chosen}.values()), reader)
            except grpc.RpcError as error:
                self.record.failures.append(_failure(error, process, is_write=False))
                self._stopping.wait(0.02)
            except Exception as error:
                self.record.broken.append(f"reader: {error!r}")
                return

    def _ask(self, asking: "Asking", chosen: list[Watched], reader: str) -> None:
        # Taken before the call: a story may publish new ones meanwhile.
        registers = [each.register for each in chosen]
        started = boot_seconds()
        values = asking.values(chosen)
        ended = boot_seconds()
        self.record.latencies.append((ended, ended - started))
        for register, value in zip(registers, values, strict=True):
            register.reads.append(Read(started, ended, value, reader))

    def _read_all(self) -> None:
        """Asks every process for everything once more, after the last write."""
        watched = [each for story in self.stories for each in story.watched]
        for process, channel in enumerate(self._channels):
            if not self._stack.services[process].is_running():
                continue
            asking = Asking(channel, self._stack.bearer)
            for each in watched:
                try:
                    self._ask(asking, [each], f"{process}.last")
                except grpc.RpcError as error:
                    self.record.failures.append(_failure(error, process, is_write=False))


class Asking:
    """Asks one process for the values of registers."""

    def __init__(self, channel: grpc.Channel, bearer: str) -> None:
        self._bearer = bearer
        service = f"/{PACKAGE}.AuthorizationService"
        self._check: Any = channel.unary_unary(
            f"{service}/Check",
            pb.CheckRequest.SerializeToString,
            pb.CheckResponse.FromString,
        )
        self._batch: Any = channel.unary_unary(
            f"{service}/BatchCheck",
            pb.BatchCheckRequest.SerializeToString,
            pb.BatchCheckResponse.FromString,
        )

    def values(self, chosen: Sequence[Watched]) -> list[Value]:
        """Returns the value of each register, all from one answer.

        Raises:
            grpc.RpcError: There is no answer.
        """
        bearer = chosen[0].bearer or self._bearer
        metadata = (("authorization", f"Bearer {bearer}"),)
        items = [item for each in chosen for item in each.items]
        try:
            if len(items) == 1:
                answer = self._check(
                    pb.CheckRequest(**_fields(items[0])), metadata=metadata, timeout=READ_SECONDS
                )
                return [(answer.allowed,)]
            request = pb.BatchCheckRequest(
                items=[pb.BatchCheckItem(**_fields(item)) for item in items]
            )
            answer = self._batch(request, metadata=metadata, timeout=READ_SECONDS)
        except grpc.RpcError as error:
            # Of what is deleted nothing is allowed, and a revoked credential gets nothing.
            code, _ = refusal_of(error)
            is_gone = code is grpc.StatusCode.NOT_FOUND and len(items) == 1
            is_revoked = code is grpc.StatusCode.UNAUTHENTICATED and chosen[0].bearer
            if is_gone or is_revoked:
                return [(False,)]
            raise
        told = iter([_told(result) for result in answer.results])
        return [tuple(itertools.islice(told, len(each.items))) for each in chosen]


def _failure(error: grpc.RpcError, process: int, *, is_write: bool) -> Failure:
    code, reason = refusal_of(error)
    text = error.details() if isinstance(error, grpc.Call) else ""
    return Failure(boot_seconds(), process, is_write, code.name, reason, text or "")


def _fields(item: Item) -> dict[str, Any]:
    return item._asdict()


def _told(result: pb.BatchCheckResult) -> bool:
    if result.HasField("error"):
        status: Status = result.error
        if status.code != grpc.StatusCode.NOT_FOUND.value[0]:
            raise AssertionError(f"an item was refused: {status.code} {_reason(status)}")
        return False
    return result.decision.allowed


def _reason(status: Status) -> str:
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


def _encoded(change: Change) -> tuple[str, bytes]:
    service, name, fields = change
    request = message_factory.GetMessageClass(method(service, name).input_type)(**fields)
    return f"/{PACKAGE}.{service}/{name}", request.SerializeToString()


class Watcher:
    """Watches all events, and goes on where it was after its stream or process has ended."""

    def __init__(self, channels: Sequence[grpc.Channel], bearer: str) -> None:
        self._channels = channels
        self._metadata = (("authorization", f"Bearer {bearer}"),)
        self._cursor = ""
        self._stopping = threading.Event()
        self._stream: Any = None
        self._has_begun = threading.Event()
        self.seen: list[Event] = []
        self.endings: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._has_begun.wait(30):
            raise RuntimeError(f"the watcher was not told where it stands: {self.endings}")

    def stop(self) -> None:
        """Ends the stream."""
        self._stopping.set()
        if self._stream is not None:
            self._stream.cancel()
        self._thread.join(30)

    def _run(self) -> None:
        for channel in itertools.cycle(self._channels):
            if self._stopping.is_set():
                return
            self._stream = channel.unary_stream(
                f"/{PACKAGE}.WatchService/Watch",
                watch_pb2.WatchRequest.SerializeToString,
                watch_pb2.WatchResponse.FromString,
            )(watch_pb2.WatchRequest(after_cursor=self._cursor), metadata=self._metadata)
            try:
                for response in self._stream:
                    for event in response.events:
                        self.seen.append(
                            Event(
                                event.organization_id or "*",
                                event.sequence,
                                event.request_id,
                                event.is_primary,
                            )
                        )
                    self._cursor = response.cursor
                    self._has_begun.set()
            except grpc.RpcError as error:
                code, reason = refusal_of(error)
                self.endings[f"{code.name} {reason}"] += 1
            self._stopping.wait(0.05)

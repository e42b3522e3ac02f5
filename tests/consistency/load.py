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
from authz_service.pb.authz.v1 import core_pb2, watch_pb2
from authz_service.rpc.call import Reply
from tests.callers import PACKAGE, Caller, method
from tests.consistency.history import Read, Register, Relaxed, Value, Write
from tests.consistency.judges import Event
from tests.consistency.stack import Stack, pause
from tests.consistency.stories import Change, Item, Story, Token, Watched, World

READ_SECONDS = 5.0
WRITE_SECONDS = 8.0
# A call ends by its deadline, give or take what the machine is busy with.
LATE_SECONDS = 2.0
# A write is repeated until it is acknowledged, through every fault; this long without is a failure.
GIVE_UP_SECONDS = 60.0
# Registers of one batch: more answers a call, so that the judges get more to judge.
REGISTERS_MAX = 16
# Of all reads: one question, many questions, and lists. Writes come on top, up to this share.
CHECKS, BATCHES, LISTS, WRITES = 0.80, 0.10, 0.05, 0.05
# Of questions: with the token of a write that another process acknowledged; and with a bound.
TOKENS, BOUNDS = 0.10, 0.05
BOUND_SECONDS = (0.05, 0.5, 5.0)
# Now and then a process is asked nothing but these for so long, for a question of now renews what
# they may be answered from.
TURN_SECONDS = 0.7
# A state that satisfies a token is used up to this age (section 7 of the specification).
TOKEN_SECONDS = 10.0
# Permissions that one list can be asked about.
LISTED_SLUGS_MAX = 10
# Rows of one page: all there are.
LISTED_MAX = 1_000
# Writes that need not wait until there were reads enough.
WRITES_AHEAD = 4

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
        seconds: How long it took.
        process: Which process was asked.
        is_write: Or a read.
    """

    at: float
    seconds: float
    process: int
    is_write: bool
    code: str
    reason: str
    text: str = ""

    @property
    def is_late(self) -> bool:
        """Returns whether it ended long after its deadline."""
        return self.seconds > (WRITE_SECONDS if self.is_write else READ_SECONDS) + LATE_SECONDS


class Answered(NamedTuple):
    """A read that was answered.

    Attributes:
        ended: When the answer arrived.
        seconds: How long it took.
        kind: ``check``, ``batch`` or ``list``.
    """

    ended: float
    seconds: float
    process: int
    kind: str


class Acknowledged(NamedTuple):
    """A write that was acknowledged.

    Attributes:
        attempts: Request ids of its attempts.
        process: That acknowledged it.
        organizations: What it changed the registers of.
        is_revoke: Whether it took anything away.
    """

    kind: str
    attempts: Sequence[str]
    invoked: float
    acknowledged: float
    process: int
    organizations: frozenset[str] = frozenset()
    is_revoke: bool = False


class Broken(Exception):
    """A write ended as none may: refused though it is right, or never acknowledged."""


@dataclass
class Record:
    """All that a load did between its start and its end.

    Attributes:
        registers: With their writes and reads.
        answered: All reads that were answered, in the order of their ends.
    """

    registers: list[Register] = field(default_factory=list)
    writes: list[Acknowledged] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Load:
    """Readers and writers of a stack.

    Args:
        stack: Its processes are all asked.
        seed: Of everything random here.
        stories: What of the world is written; by default all there is.

    Attributes:
        organizations: Their ids.
        storm: While not empty, only these kinds are written, and as fast as can be.

    Args:
        one_front: All readers ask decisions where they alone are answered, else every other one.
    """

    def __init__(
        self,
        stack: Stack,
        seed: int,
        stories: Callable[[World], list[Story]] = World.stories,
        *,
        one_front: bool = False,
    ) -> None:
        self._stack = stack
        self._one_front = one_front
        self._seed = seed
        self._channels = [
            grpc.insecure_channel(service.address, _CHANNEL) for service in stack.services
        ]
        # Every other reader asks decisions where they alone are answered.
        self._decisions = [
            grpc.insecure_channel(service.decisions_address, _CHANNEL) for service in stack.services
        ]
        for channel in self._decisions:
            # Before descriptors are counted.
            grpc.channel_ready_future(channel).result(timeout=READ_SECONDS)
        self._numbers = itertools.count(1)
        self._name = f"{seed:x}-{random.SystemRandom().getrandbits(32):x}"
        self._stopping = threading.Event()
        self.record = Record()
        # Of every load on this stack, for the audit.
        self.acknowledged: list[Acknowledged] = []
        self.watcher = Watcher(self._channels, stack.bearer)
        self.storm: frozenset[str] = frozenset()
        made = World(Caller(self._send, None))
        self.organizations = [place.id for place in made.places]
        self.stories = stories(made)
        for story in self.stories:
            if not story.watched:
                # What it needs first is made by its first write.
                self._prepare(story)

    def asking(self, process: int) -> "Asking":
        """Returns what asks one process as a reader does."""
        return Asking(self._channels[process], self._stack.bearer)

    def close(self) -> None:
        """Stops the watcher and closes all channels."""
        self.watcher.stop()
        for channel in (*self._channels, *self._decisions):
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
            sent = boot_seconds()
            try:
                response: bytes = self._channels[process].unary_unary(path)(
                    payload, metadata=metadata, timeout=WRITE_SECONDS
                )
            except grpc.RpcError as error:
                code, reason = refusal_of(error)
                self.record.failures.append(_failure(error, process, sent, is_write=True))
                text = f"{path} {attempts}: {code.name} {reason} {error.details()}"
                if code.name not in _REPEATED:
                    self.record.broken.append(text)
                # A bug in one attempt is told; the next ones keep the story in step with SQL.
                is_final = code.name not in (*_REPEATED, "INTERNAL", "UNKNOWN")
                if is_final or boot_seconds() - invoked > GIVE_UP_SECONDS:
                    raise Broken(text) from None
                pause(0.02)
                continue
            done = Acknowledged(kind, tuple(attempts), invoked, boot_seconds(), process)
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
            ended = [*story.past, *(each.register for each in story.watched)]
            self.record.registers += [part for each in ended for part in (each, *each.parts())]
            story.past = []
        return self.record

    def _begin(self) -> None:
        """Starts new histories, where the last ones ended."""
        self.record = Record()
        for story in self.stories:
            for watched in story.watched:
                old = watched.register
                watched.register = Register(old.name, old.kind, old.values()[-1])
                watched.tokens.clear()

    def _write(self, number: int, stories: Sequence[Story], pause_seconds: float) -> None:
        chance = random.Random(f"{self._seed} writer {number}")
        due = {story.kind: 0.0 for story in stories}
        process = number % len(self._channels)
        try:
            while stories and not self._stopping.is_set():
                storm = self.storm
                if storm:
                    raging = [story for story in stories if story.kind in storm]
                    if raging:
                        self.take(chance.choice(raging), process)
                    else:
                        self._stopping.wait(pause_seconds)
                    continue
                self._stopping.wait(chance.uniform(0, pause_seconds))
                story = chance.choice(stories)
                if boot_seconds() < due[story.kind] or not self._may_write():
                    continue
                due[story.kind] = boot_seconds() + story.seconds_min
                self.take(story, process)
        except Broken as broken:
            self.record.broken.append(f"given up: {broken}")
        except Exception as error:
            self.record.broken.append(f"writer: {error!r}")

    def _may_write(self) -> bool:
        """Returns whether writes are not more than their share of the calls."""
        reads = len(self.record.answered)
        return len(self.record.writes) <= WRITES_AHEAD + reads * WRITES / (1 - WRITES)

    def take(self, story: Story, process: int) -> None:
        """Makes the next write of a story."""
        step = next(story.steps)
        path, payload = _encoded(step.change)
        done, response = self._acknowledge(story.kind, path, payload, prefer=process)
        token = _token(step.change, response)
        is_revoke = False
        for watched, value in zip(story.watched, step.values, strict=True):
            writes = watched.register.writes
            before: Any = watched.register.values()[-1]
            is_revoke |= any(had and not has for had, has in zip(before, value, strict=True))
            writes.append(Write(done.invoked, done.acknowledged, value))
            watched.tokens.append(Token(done.process, token, len(writes)))
        organizations = frozenset(watched.organization for watched in story.watched)
        self.record.writes.append(done._replace(organizations=organizations, is_revoke=is_revoke))

    def _read(self, process: int, number: int) -> None:
        chance = random.Random(f"{self._seed} reader {process} {number}")
        reader = f"{process}.{number}"
        channel = self._channels[process]
        is_apart = self._one_front or number % 2
        decisions = self._decisions[process] if is_apart else channel
        asking = Asking(channel, self._stack.bearer, decisions)
        kinds, shares = ("check", "batch", "list"), (CHECKS, BATCHES, LISTS)
        while not self._stopping.is_set():
            (kind,) = chance.choices(kinds, shares)
            watched = [each for story in self.stories for each in story.watched]
            first = chance.choice(watched)
            chosen = [first]
            if kind != "check" and not first.bearer:
                alike = [
                    each
                    for each in watched
                    if each.organization == first.organization and not each.bearer
                ]
                if kind == "batch":
                    chosen += chance.sample(alike, min(len(alike), chance.randrange(REGISTERS_MAX)))
                else:
                    chosen = _listable(first, alike)
            # What a revoked credential is told is no list.
            kind = "check" if first.bearer else kind
            bound = self._turn(process)
            fresh = _freshness(first, kind, process, chance, bound)
            if bound is not None and fresh is STRONG:
                self._stopping.wait(0.001)
                continue
            sent = boot_seconds()
            try:
                self._ask(
                    asking,
                    kind,
                    list({id(each): each for each in chosen}.values()),
                    reader,
                    fresh,
                    chance.randrange(len(first.items)),
                )
            except grpc.RpcError as error:
                self.record.failures.append(_failure(error, process, sent, is_write=False))
                self._stopping.wait(0.02)
            except Exception as error:
                self.record.broken.append(f"reader: {error!r}")
                return

    def _turn(self, process: int) -> float | None:
        """Returns the age that answers may have, while a process is asked for no other ones."""
        rounds, turn = divmod(int(boot_seconds() / TURN_SECONDS), 2 * len(self._channels))
        return BOUND_SECONDS[rounds % len(BOUND_SECONDS)] if turn == process else None

    def _ask(
        self,
        asking: "Asking",
        kind: str,
        chosen: list[Watched],
        reader: str,
        fresh: "Fresh",
        place: int = 0,
    ) -> None:
        """Asks one question and records what was answered.

        Args:
            chosen: A check asks about the first one alone.
            fresh: How fresh the answer must be.
            place: Of the item of the first one that a check asks about.
        """
        # Taken before the call: a story may publish new ones meanwhile.
        registers = [each.register for each in chosen]
        process = int(reader.partition(".")[0])
        started = boot_seconds()
        if kind == "list":
            values = asking.listed(chosen)
        else:
            is_single = kind == "check"
            values = asking.values(chosen, place if is_single else None, fresh.consistency)
        ended = boot_seconds()
        self.record.answered.append(Answered(ended, ended - started, process, kind))
        for register, value in zip(registers, values, strict=True):
            if fresh.consistency is not None:
                # The token is of the first one; a bound is of all.
                version = fresh.version if register is registers[0] else 0
                register.relaxed.append(
                    Relaxed(started, ended, value, reader, version, started - fresh.seconds)
                )
            elif kind == "check" and len(chosen[0].items) > 1:
                register.singles[place].append(Read(started, ended, value, reader))
            else:
                register.reads.append(Read(started, ended, value, reader))

    def _read_all(self) -> None:
        """Asks every process for everything once more, after the last write."""
        watched = [each for story in self.stories for each in story.watched]
        for process, channel in enumerate(self._channels):
            if not self._stack.services[process].is_running():
                continue
            asking = Asking(channel, self._stack.bearer)
            for each in watched:
                sent = boot_seconds()
                try:
                    self._ask(asking, "batch", [each], f"{process}.last", STRONG)
                except grpc.RpcError as error:
                    self.record.failures.append(_failure(error, process, sent, is_write=False))


class Fresh(NamedTuple):
    """How fresh an answer must be.

    Attributes:
        consistency: As it is sent; None = of now.
        version: Of the register asked about first, the least that must be shown.
        seconds: The greatest age of what is shown.
    """

    consistency: core_pb2.Consistency | None
    version: int = 0
    seconds: float = 0.0


STRONG = Fresh(None)


def _freshness(
    first: Watched, kind: str, process: int, chance: random.Random, bound: float | None
) -> Fresh:
    """Chooses how fresh an answer must be.

    Args:
        bound: No question of now is to be asked, and answers may have this age.
    """
    if kind == "list" or first.bearer or (kind == "check" and len(first.items) > 1):
        return STRONG
    drawn = chance.random() * (1.0 if bound is None else TOKENS + BOUNDS)
    if drawn < TOKENS:
        foreign = [token for token in list(first.tokens) if token.process != process]
        if foreign:
            token = chance.choice(foreign)
            consistency = core_pb2.Consistency(at_least_as_fresh=token.text)
            return Fresh(consistency, token.version, TOKEN_SECONDS)
        if bound is not None:
            drawn = TOKENS
    if TOKENS <= drawn <= TOKENS + BOUNDS:
        seconds = bound or chance.choice(BOUND_SECONDS)
        consistency = core_pb2.Consistency()
        consistency.max_staleness.FromMilliseconds(round(1_000 * seconds))
        return Fresh(consistency, 0, seconds)
    return STRONG


def _listable(first: Watched, alike: Sequence[Watched]) -> list[Watched]:
    """Returns what one list tells of: a register, and others of the same subject."""
    subject = first.items[0].subject
    if any(item.subject != subject for item in first.items):
        return [first]
    chosen, slugs = [first], {item.permission_slug for item in first.items}
    for each in alike:
        more = slugs | {item.permission_slug for item in each.items}
        if len(more) <= LISTED_SLUGS_MAX and all(item.subject == subject for item in each.items):
            chosen.append(each)
            slugs = more
    return chosen


class Asking:
    """Asks one process for the values of registers.

    Args:
        decisions: Where it is asked for decisions, if elsewhere.
    """

    def __init__(
        self, channel: grpc.Channel, bearer: str, decisions: grpc.Channel | None = None
    ) -> None:
        self._bearer = bearer
        service = f"/{PACKAGE}.AuthorizationService"
        asked = decisions or channel
        self._check: Any = asked.unary_unary(
            f"{service}/Check",
            pb.CheckRequest.SerializeToString,
            pb.CheckResponse.FromString,
        )
        self._batch: Any = asked.unary_unary(
            f"{service}/BatchCheck",
            pb.BatchCheckRequest.SerializeToString,
            pb.BatchCheckResponse.FromString,
        )
        self._resources: Any = channel.unary_unary(
            f"{service}/ListResources",
            pb.AuthorizationServiceListResourcesRequest.SerializeToString,
            pb.AuthorizationServiceListResourcesResponse.FromString,
        )
        self._members: Any = channel.unary_unary(
            f"{service}/ListMembers",
            pb.ListMembersRequest.SerializeToString,
            pb.ListMembersResponse.FromString,
        )

    def values(
        self,
        chosen: Sequence[Watched],
        place: int | None = None,
        consistency: core_pb2.Consistency | None = None,
    ) -> list[Value]:
        """Returns the value of each register, all from one answer.

        Args:
            place: Ask about this item of the first register alone.
            consistency: How fresh the answer must be; None = of now.

        Raises:
            grpc.RpcError: There is no answer.
        """
        bearer = chosen[0].bearer or self._bearer
        metadata = (("authorization", f"Bearer {bearer}"),)
        try:
            if place is not None:
                check = pb.CheckRequest(consistency=consistency, **_fields(chosen[0].items[place]))
                return [(self._check(check, metadata=metadata, timeout=READ_SECONDS).allowed,)]
            request = pb.BatchCheckRequest(
                items=[pb.BatchCheckItem(**_fields(i)) for each in chosen for i in each.items],
                consistency=consistency,
            )
            answer = self._batch(request, metadata=metadata, timeout=READ_SECONDS)
        except grpc.RpcError as error:
            code, _ = refusal_of(error)
            # Of what is deleted nothing is allowed, and a revoked credential gets nothing.
            is_gone = code is grpc.StatusCode.NOT_FOUND and place is not None
            is_revoked = code is grpc.StatusCode.UNAUTHENTICATED and chosen[0].bearer
            if is_gone or is_revoked:
                return [(False,) * (1 if place is not None else len(each.items)) for each in chosen]
            raise
        told = iter([_told(result) for result in answer.results])
        return [tuple(itertools.islice(told, len(each.items))) for each in chosen]

    def listed(self, chosen: Sequence[Watched]) -> list[Value]:
        """Returns the value of each register, all from one list.

        Args:
            chosen: Of one subject; or one register, of one permission on one resource.

        Raises:
            grpc.RpcError: There is no answer.
        """
        items = [item for each in chosen for item in each.items]
        options: Any = {
            "metadata": (("authorization", f"Bearer {self._bearer}"),),
            "timeout": READ_SECONDS,
        }
        first = items[0]
        if all(item.subject == first.subject for item in items):
            slugs = sorted({item.permission_slug for item in items})
            request = pb.AuthorizationServiceListResourcesRequest(
                subject=first.subject, permission_slugs=slugs, page_size=LISTED_MAX
            )
            try:
                answer = self._resources(request, **options)
            except grpc.RpcError as error:
                if refusal_of(error)[0] is not grpc.StatusCode.NOT_FOUND:
                    raise
                answer = pb.AuthorizationServiceListResourcesResponse()
            held = {
                (name, slug)
                for row in answer.items
                for slug in row.permission_slugs
                for name in (row.resource.id, row.resource.external_id)
            }

            def is_held(item: Item) -> bool:
                return (_name(item.resource), item.permission_slug) in held
        else:
            request = pb.ListMembersRequest(
                resource=first.resource,
                permission_slug=first.permission_slug,
                page_size=LISTED_MAX,
            )
            answer = self._members(request, **options)
            members = {row.organization_membership.id for row in answer.members}

            def is_held(item: Item) -> bool:
                assert item == first._replace(subject=item.subject)
                return item.subject["organization_membership_id"] in members

        if answer.next_page_token:
            raise AssertionError("a list has more than one page")
        return [tuple(map(is_held, each.items)) for each in chosen]


def _name(resource: dict[str, Any]) -> str:
    """Returns the id of a resource, or the name that its application gave it."""
    name: str = resource.get("resource_id") or resource["key"]["external_id"]
    return name


def _token(change: Change, response: bytes) -> str:
    """Returns the consistency token that a write was answered with."""
    service, name, _ = change
    answer = message_factory.GetMessageClass(method(service, name).output_type)
    token: str = answer.FromString(response).consistency_token
    return token


def _failure(error: grpc.RpcError, process: int, sent: float, *, is_write: bool) -> Failure:
    code, reason = refusal_of(error)
    text = error.details() if isinstance(error, grpc.Call) else ""
    now = boot_seconds()
    return Failure(now, now - sent, process, is_write, code.name, reason, text or "")


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

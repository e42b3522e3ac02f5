"""The hall every call passes through, whatever it came in by. Knows no transport and no concern.

    access_log -> errors -> metadata -> admission -> auth -> rate -> decode -> validation
    -> handler -> encode

Nothing of a request is read before its caller is known, and nothing leaves but through the one
catcher of `rpc/errors.py`.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc.code_pb2 import Code

from authz_service.base.clock import boot_seconds
from authz_service.base.errors import InvalidArgument, PermissionDenied, limit_reached
from authz_service.base.remembered import Remembered
from authz_service.rpc import auth, errors, methods
from authz_service.rpc import metadata as call_metadata
from authz_service.rpc import status as statuses
from authz_service.rpc.access_log import AccessLog, Record
from authz_service.rpc.admission import (
    Admission,
    deadline_exceeded,
    overloaded,
    shutting_down,
)
from authz_service.rpc.auth import Authenticator, Caller
from authz_service.rpc.call import (
    Call,
    CallerGone,
    Cancelled,
    Context,
    CredentialChanged,
    MustWait,
    Reply,
    UnknownMethod,
)
from authz_service.rpc.errors import Catcher
from authz_service.rpc.metadata import CallMetadata
from authz_service.rpc.methods import (
    CLIENT_STREAM,
    DECISION,
    SERVER_STREAM,
    UNARY,
    WATCH,
    Method,
)
from authz_service.rpc.rate import Rate
from authz_service.rpc.validation import Validator
from authz_service.telemetry.logs import Logger
from authz_service.telemetry.metrics import Metrics

# A larger request is decoded and answered in a thread: a batch of this size takes about a
# millisecond, and for so long nobody else's call moves.
AT_ONCE_BYTES_MAX = 16 * 1024

# Requests whose meaning is remembered, twice: the new ones and those before them.
ASKED_MAX = 2_048
ASKED_BYTES_MAX = 512

# What a batch of calls comes to, in order: a response, what ended it, or None if it must wait.
Outcomes = Sequence[Message | Exception | None]


class AtOnce(Protocol):
    """A servicer that answers several calls together, as far as it needs not wait."""

    def ask(self, name: str, request: Any) -> Any:
        """Returns what a request of a method asks: of the request alone, and always the same.

        Raises:
            Refusal: It cannot be asked.
        """
        ...

    def at_once(
        self, asked: Sequence[tuple[Any, Context]], then: Callable[[Outcomes], None]
    ) -> None:
        """Answers what was asked; ``then`` is told in this thread, now or later."""
        ...


# Takes what a batch came to.
Replies = Callable[[Sequence[tuple[Call, Reply]]], None]
# Takes a call that must wait, and what answers it in a thread; False if there is no room for it.
Later = Callable[[Call, Callable[[], Reply]], bool]

# Bytes that are no message are refused with this; no field can be named.
NO_MESSAGE_RULE = "the bytes are not a message of this method"


class _Entered(NamedTuple):
    """A call that has come as far as its handler."""

    record: Record
    method: Method
    asked: Any
    context: Context


class _Once:
    """Hands on what a batch came to the first time, and nothing after that."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[Outcomes], None]) -> None:
        self._then: Callable[[Outcomes], None] | None = then

    def __call__(self, outcomes: Outcomes) -> None:
        then, self._then = self._then, None
        if then is not None:
            then(outcomes)


class Hall:
    """Answers calls by the registered servicers.

    A servicer's method has the RPC's name and takes ``(request, context)``; it returns the response
    message, or an iterator of them for a server stream. The request of a client stream is an
    iterator of decoded messages. All are synchronous and may be called by many threads at once.

    Args:
        call_seconds_max: Unary calls get at most this long, whatever deadline they came with.
        message_bytes_max: Largest request and response message.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        admission: Admission,
        rate: Rate,
        access_log: AccessLog,
        logger: Logger,
        metrics: Metrics,
        validator: Validator | None = None,
        call_seconds_max: float = 10.0,
        message_bytes_max: int = 4 * 1024 * 1024,
    ) -> None:
        self._authenticator = authenticator
        self._admission = admission
        self._rate = rate
        self._access_log = access_log
        self._catcher = Catcher(logger, metrics)
        self._validator = validator or Validator()
        self._call_seconds_max = call_seconds_max
        self._message_bytes_max = message_bytes_max
        self._methods: dict[str, Method] = {}
        self._handlers: dict[str, Callable[[Any, Context], Any]] = {}
        self._at_once: dict[str, AtOnce] = {}
        self._asked: Remembered[tuple[str, bytes], tuple[Any, float]] = Remembered(ASKED_MAX)

    @property
    def methods(self) -> Mapping[str, Method]:
        """All registered methods by path."""
        return self._methods

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the registered services, in the order of registration."""
        return tuple(dict.fromkeys(method.service for method in self._methods.values()))

    @property
    def message_bytes_max(self) -> int:
        """Largest request and response message, in bytes."""
        return self._message_bytes_max

    def register(self, service: ServiceDescriptor, servicer: object, *, known_as: str = "") -> None:
        """Binds the methods of a service to the attributes of a servicer with the same names.

        A servicer that is ``AtOnce`` answers its decisions where ``answer_soon`` is asked.

        Args:
            known_as: The service's name on the wire, where it differs from the descriptor's own;
                its rule is then in ``auth.RULES_OF_OTHERS``.

        Raises:
            ValueError: A method without scope, without a handler, or registered twice.
        """
        rule = auth.RULES_OF_OTHERS.get(known_as or service.full_name)
        for path, method in methods.methods_of(service, known_as=known_as, rule=rule).items():
            handler = getattr(servicer, method.name, None)
            if not callable(handler):
                raise ValueError(
                    f"{type(servicer).__name__} has no method {method.name} for {path}"
                )
            if path in self._methods:
                raise ValueError(f"{path} is registered already")
            self._methods[path] = method
            self._handlers[path] = handler
            if (
                hasattr(servicer, "at_once")
                and method.work == DECISION
                and method.streaming == UNARY
            ):
                self._at_once[path] = cast(AtOnce, servicer)

    def close(self) -> None:
        """Refuses calls that arrive from now on with SHUTTING_DOWN, and tells streams to end."""
        self._admission.close()

    def answer(self, calls: Sequence[Call]) -> list[Reply]:
        """Answers unary calls, each for itself, in order."""
        return [self._answer(call) for call in calls]

    def answer_soon(self, calls: Sequence[Call], replies: Replies, later: Later) -> None:
        """Answers unary calls without waiting for anything in this thread.

        What is known is looked at once for all of them. What needs more than that is handed to
        threads, each call for itself.

        Args:
            replies: Told what is answered, one or more times, from this thread.
            later: Told what must wait; its replies are the front's to collect.
        """
        answered: list[tuple[Call, Reply]] = []
        batches: dict[AtOnce, list[_Entered]] = {}
        for call in calls:
            record = self._begin(call)
            method = record.method
            at_once = None if method is None else self._at_once.get(method.path)
            try:
                if method is None or at_once is None or call.read is not None:
                    raise MustWait
                if len(call.payload) > AT_ONCE_BYTES_MAX:
                    raise MustWait
                entered = self._enter_at_once(record, method, at_once)
            except MustWait:
                self._answer_later(record, later, answered)
            except Exception as error:
                answered.append((call, self._end(self._catcher.refusal(error, record), record)))
            else:
                batches.setdefault(at_once, []).append(entered)
        if answered:
            replies(answered)
        for at_once, batch in batches.items():
            answered_by = _Once(partial(self._answered, batch, replies, later))
            try:
                at_once.at_once([(each.asked, each.context) for each in batch], answered_by)
            except Exception as error:
                # A bug; every call of the batch is told so, and none waits for ever.
                answered_by([error] * len(batch))

    def _enter_at_once(self, record: Record, method: Method, at_once: AtOnce) -> "_Entered":
        """Takes a call as far as its handler, as ``_request`` does, without waiting."""
        call = record.call
        metadata = call_metadata.checked(record.found, is_mutating=False)
        self._admission.judge(call)
        deadline = self._deadline(call)
        caller, context = self._context(record, method, metadata, deadline, waits=False)
        payload = call.payload
        # The same bytes are the same request, and ask the same.
        key = method.path, payload
        known = self._asked.get(key)
        if known is None:
            request = self._decoded(payload, method)
            self._rate.charge(caller.kind, caller.id, method.cost(request))
            self._validator.check(request)
            known = at_once.ask(method.name, request), method.cost(request)
            if len(payload) <= ASKED_BYTES_MAX:
                self._asked.put(key, known)
        else:
            self._rate.charge(caller.kind, caller.id, known[1])
        record.is_charged = True
        if boot_seconds() >= deadline:
            raise deadline_exceeded()
        return _Entered(record, method, known[0], context)

    def _answered(
        self, batch: Sequence["_Entered"], replies: Replies, later: Later, outcomes: Outcomes
    ) -> None:
        answered: list[tuple[Call, Reply]] = []
        records: list[Record] = []
        for (record, method, _, _), outcome in zip(batch, outcomes, strict=True):
            if outcome is None or isinstance(outcome, CredentialChanged):
                self._answer_later(record, later, answered)
                continue
            try:
                if isinstance(outcome, Exception):
                    reply = self._catcher.refusal(outcome, record)
                else:
                    payload = self._encoded(outcome, method)
                    if method.answers_allowed:
                        record.allowed = outcome.allowed  # type: ignore[attr-defined]
                    reply = Reply(payload, None, errors.trailing(record))
            except Exception as error:
                reply = self._catcher.refusal(error, record)
            records.append(record)
            answered.append((record.call, reply))
        self._access_log.end_all(records)
        if answered:
            replies(answered)

    def _answer_later(
        self, record: Record, later: Later, answered: list[tuple[Call, Reply]]
    ) -> None:
        record.context = None
        if not later(record.call, partial(self._answer_in_thread, record)):
            refusal = self._catcher.refusal(overloaded(), record)
            answered.append((record.call, self._end(refusal, record)))

    def _answer_in_thread(self, record: Record) -> Reply:
        return self._end(self._catcher.reply(self._serve_unary, record), record)

    def stream(self, call: Call, is_cancelled: Cancelled) -> Generator[bytes | Reply, None, None]:
        """Answers a server stream: yields its messages, and at the end one reply without payload.

        Whoever takes it must exhaust or close it: it holds a place of the admission.
        """
        record = self._begin(call)
        try:
            yield from self._catcher.replies(self._serve_stream(record, is_cancelled), record)
        except GeneratorExit:
            record.code = statuses.CODE_NAMES[Code.CANCELLED]
            raise
        finally:
            self._access_log.end(record)

    def collect(self, call: Call, requests: Iterator[bytes], is_cancelled: Cancelled) -> Reply:
        """Answers a client stream. The iterator may raise CallerGone."""
        record = self._begin(call)
        steps = partial(self._serve_collect, requests=requests, is_cancelled=is_cancelled)
        return self._end(self._catcher.reply(steps, record), record)

    def admit(self, call: Call) -> Reply | None:
        """Checks the credential of a call that somebody else answers (``RULES_OF_OTHERS``).

        Returns:
            None if it may go on, else the refusal to send.
        """
        record = self._begin(call)
        reply = self._catcher.reply(self._serve_admit, record)
        if reply.status is None:
            return None
        return self._end(reply, record)

    def refuse(self, call: Call, refusal: Exception) -> Reply:
        """Returns the refusal that a front decided on by itself, logged like any other."""
        record = self._begin(call)

        def steps(record: Record) -> bytes:
            raise refusal

        return self._end(self._catcher.reply(steps, record), record)

    def shed(self, *, overloaded: int, expired: int) -> None:
        """Counts calls that a front refused without a look at them, for want of time.

        Args:
            overloaded: There were too many.
            expired: Their deadlines had passed.
        """
        if overloaded or expired:
            self._admission.shed(overloaded=overloaded, expired=expired)

    def _answer(self, call: Call) -> Reply:
        record = self._begin(call)
        return self._end(self._catcher.reply(self._serve_unary, record), record)

    def _begin(self, call: Call) -> Record:
        return Record(call, self._methods.get(call.method), call_metadata.collected(call.metadata))

    def _end(self, reply: Reply, record: Record) -> Reply:
        self._access_log.end(record)
        return reply

    def _serve_unary(self, record: Record) -> bytes:
        method = self._expected(record, UNARY)
        call = record.call
        metadata = call_metadata.checked(record.found, is_mutating=method.is_mutating)
        self._admission.enter(call, method.work)
        try:
            deadline = self._deadline(call)
            request, context = self._request(record, method, metadata, call.payload, deadline)
            handler = self._handlers[method.path]
            try:
                response = handler(request, context)
            except CredentialChanged:
                context = self._again(record, method, metadata, deadline, context)
                response = handler(request, context)
            payload = self._encoded(response, method)
            if method.answers_allowed:
                record.allowed = response.allowed
            return payload
        finally:
            self._admission.leave(method.work)

    def _deadline(self, call: Call) -> float:
        """Returns when a unary call must be over."""
        deadline = call.arrived + self._call_seconds_max
        if call.deadline is not None and call.deadline < deadline:
            return call.deadline
        return deadline

    def _request(
        self,
        record: Record,
        method: Method,
        metadata: CallMetadata,
        payload: bytes,
        deadline: float,
    ) -> tuple[Message, Context]:
        """Returns the request of a unary call, with all that comes before its handler."""
        caller, context = self._context(record, method, metadata, deadline)
        if record.call.read is not None:
            payload = record.call.read()
        request = self._decoded(payload, method)
        if not record.is_charged:
            self._rate.charge(caller.kind, caller.id, method.cost(request))
        self._validator.check(request)
        if method.names_organization:
            context.organization_id = request.organization_id  # type: ignore[attr-defined]
        if boot_seconds() >= deadline:
            raise deadline_exceeded()
        return request, context

    def _serve_stream(self, record: Record, is_cancelled: Cancelled) -> Iterator[bytes]:
        method = self._expected(record, SERVER_STREAM)
        call = record.call
        metadata = call_metadata.checked(record.found, is_mutating=method.is_mutating)
        self._admission.enter(call, method.work)
        try:
            caller, context = self._context(record, method, metadata, call.deadline)
            context.is_cancelled = self._ending(is_cancelled)
            payload = call.payload if call.read is None else call.read()
            request = self._decoded(payload, method)
            self._rate.charge(caller.kind, caller.id, method.cost(request))
            self._validator.check(request)
            if method.names_organization:
                context.organization_id = request.organization_id  # type: ignore[attr-defined]
            is_first = True
            for response in self._handlers[method.path](request, context):
                if not is_first:
                    self._confirm(record, method, metadata, caller)
                is_first = False
                yield self._encoded(response, method)
            if is_cancelled():
                raise CallerGone
            if method.work == WATCH and self._admission.is_closed:
                # Such a stream has no end of its own: it ended because it was told to.
                raise shutting_down()
        finally:
            self._admission.leave(method.work)

    def _serve_collect(
        self, record: Record, *, requests: Iterator[bytes], is_cancelled: Cancelled
    ) -> bytes:
        method = self._expected(record, CLIENT_STREAM)
        metadata = call_metadata.checked(record.found, is_mutating=method.is_mutating)
        self._admission.enter(record.call, method.work)
        try:
            caller, context = self._context(record, method, metadata, record.call.deadline)
            context.is_cancelled = self._ending(is_cancelled)
            self._rate.charge(caller.kind, caller.id, methods.COST_WRITE)
            response = self._handlers[method.path](self._messages(requests, method), context)
            return self._encoded(response, method)
        finally:
            self._admission.leave(method.work)

    def _serve_admit(self, record: Record) -> bytes:
        path = record.call.method
        service = path[1:].rpartition("/")[0]
        rule = auth.RULES_OF_OTHERS[service]
        metadata = call_metadata.checked(record.found, is_mutating=False)
        caller, _ = self._authenticator.authenticate(
            record.call, metadata, scope=rule.scope, work=rule.work
        )
        record.actor_kind, record.actor_id = caller.kind, caller.id
        self._rate.admit(caller.kind, caller.id)
        return b""

    def _expected(self, record: Record, streaming: str) -> Method:
        method = record.method
        if method is None or method.streaming != streaming:
            raise UnknownMethod
        return method

    def _context(
        self,
        record: Record,
        method: Method,
        metadata: CallMetadata,
        deadline: float | None,
        *,
        waits: bool = True,
    ) -> tuple[Caller, Context]:
        """Authenticates, takes the caller's rate, and returns what the servicer may know."""
        # Nothing repeats a stream whose credential changed: it is never admitted provisionally.
        caller, is_provisional = self._authenticator.authenticate(
            record.call,
            metadata,
            scope=method.scope,
            work=method.work,
            from_source=method.streaming != UNARY,
            waits=waits,
        )
        record.actor_kind, record.actor_id = caller.kind, caller.id
        if not record.is_admitted:
            self._rate.admit(caller.kind, caller.id)
            record.is_admitted = True
        context = Context(
            method.path,
            auth.actor_of(caller, metadata, record.request_id),
            deadline,
            metadata.idempotency_key,
            (caller.id, caller.revision) if is_provisional else None,
        )
        record.context = context
        return caller, context

    def _confirm(
        self, record: Record, method: Method, metadata: CallMetadata, caller: Caller
    ) -> None:
        """Refuses to go on with a stream whose caller may no longer see what it began with."""
        now, _ = self._authenticator.authenticate(
            record.call, metadata, scope=method.scope, work=method.work, from_source=True
        )
        if now.organization_ids != caller.organization_ids:
            raise PermissionDenied(
                "ORGANIZATION_RESTRICTED", "the organizations of the credential have changed"
            )

    def _again(
        self,
        record: Record,
        method: Method,
        metadata: CallMetadata,
        deadline: float | None,
        before: Context,
    ) -> Context:
        """Returns the context of a second try, with the credential as it is now."""
        caller, _ = self._authenticator.authenticate(
            record.call, metadata, scope=method.scope, work=method.work, from_source=True
        )
        context = Context(
            method.path, auth.actor_of(caller, metadata, record.request_id), deadline,
            metadata.idempotency_key, organization_id=before.organization_id,
        )  # fmt: skip
        record.context = context
        return context

    def _ending(self, is_cancelled: Cancelled) -> Cancelled:
        admission = self._admission
        return lambda: is_cancelled() or admission.is_closed

    def _decoded(self, payload: bytes, method: Method) -> Message:
        size, maximum = len(payload), self._message_bytes_max
        if size > maximum:
            raise InvalidArgument(
                "REQUEST_TOO_LARGE",
                f"the message has {size} bytes, at most {maximum} are allowed",
                metadata={"field": "", "maximum": maximum, "actual": size},
            )
        try:
            return method.request_class.FromString(payload)
        except DecodeError:
            # From None: the decoder's own words may repeat what was sent.
            raise InvalidArgument(
                "FIELD_INVALID", NO_MESSAGE_RULE, metadata={"field": "", "rule": NO_MESSAGE_RULE}
            ) from None

    def _messages(self, requests: Iterator[bytes], method: Method) -> Iterator[Message]:
        for payload in requests:
            request = self._decoded(payload, method)
            self._validator.check(request)
            yield request

    def _encoded(self, response: Message, method: Method) -> bytes:
        if type(response) is not method.response_class:
            raise TypeError(f"{method.path} answered with a {type(response).__name__}")
        payload = response.SerializeToString()
        # The same code that gRPC gives an oversized message; the caller asks for less at once. A
        # write has happened by now: its answers are small, so that this does not meet them.
        if len(payload) > self._message_bytes_max:
            raise limit_reached("answer_message_bytes", maximum=self._message_bytes_max)
        return payload

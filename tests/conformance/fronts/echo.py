"""A service whose request says how it is to be answered, and the hall that has it.

``Echo`` is a decision without side effects, which every front serves. The others are what only the
complete front serves.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from authz_service.base.errors import Aborted
from authz_service.base.secrets import Secret
from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.rpc.access_log import AccessLog, Record
from authz_service.rpc.admission import Admission
from authz_service.rpc.auth import Authenticator, Client
from authz_service.rpc.call import Call, CallerGone, Context, UnknownMethod
from authz_service.rpc.hall import Hall, Outcomes
from authz_service.rpc.rate import Rate
from authz_service.telemetry import logs
from authz_service.telemetry.metrics import Metrics
from tests.rpc import widgets

SECONDS = 20.0
BEARER = "azc_the_only_one_of_these_tests"
MESSAGE_BYTES_MAX = 100_000

PACKAGE = "conformance.v1"
SERVICE = f"{PACKAGE}.EchoService"
PATH = f"/{SERVICE}/Echo"
CHANGE = f"/{SERVICE}/Change"
READ = f"/{SERVICE}/Read"
FOLLOW = f"/{SERVICE}/Follow"
GATHER = f"/{SERVICE}/Gather"

# What a refusal of the tests becomes, one class for each code; GONE and UNKNOWN_METHOD are what the
# floor itself knows, BUG is what nobody expected.
REFUSALS: dict[int, type[Aborted]] = {
    code: type(f"Refused{code}", (Aborted,), {}) for code in range(1, 17)
}
GONE, UNKNOWN_METHOD, BUG = 101, 102, 103


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(
        name="conformance/v1/echo.proto", package=PACKAGE, syntax="proto3",
        dependency=["authz/v1/options.proto", "google/api/field_behavior.proto"],
    )  # fmt: skip
    pair = file.message_type.add(name="Pair")
    widgets.field(pair, "string", "key")
    widgets.field(pair, "bytes", "value")
    request = file.message_type.add(name="EchoRequest")
    widgets.field(request, "bytes", "payload")
    widgets.field(request, "int32", "answer_bytes")
    widgets.field(request, "int32", "code")
    widgets.field(request, "bytes", "text")
    widgets.field(request, "bool", "held")
    widgets.field(request, f"{PACKAGE}.Pair", "trailing", repeated=True)
    widgets.field(request, "string", "fields", repeated=True)
    response = file.message_type.add(name="EchoResponse")
    widgets.field(response, "bytes", "payload")
    service = file.service.add(name="EchoService")
    for name, scope, mark in (
        ("Echo", "check", ""), ("Change", "write:roles", "changes"), ("Read", "read", ""),
        ("Follow", "read", "out"), ("Gather", "admin", "in"),
    ):  # fmt: skip
        method = service.method.add(
            name=name, input_type=f".{PACKAGE}.EchoRequest", output_type=f".{PACKAGE}.EchoResponse",
            client_streaming=mark == "in", server_streaming=mark == "out",
        )  # fmt: skip
        method.options.Extensions[required_scope] = scope
        if mark not in ("changes", "in"):
            method.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    return file


descriptor_pool.Default().Add(_file())


def _service() -> ServiceDescriptor:
    return descriptor_pool.Default().FindServiceByName(SERVICE)


def message(name: str, /, **fields: Any) -> Any:
    """Returns a message of the service."""
    made: Message = GetMessageClass(
        descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{name}")
    )(**fields)
    return made


def asking(
    *, text: str = "", trailing: Mapping[str, list[bytes]] | None = None, **fields: Any
) -> bytes:
    """Returns the bytes of a request; its fields say how it is to be answered."""
    pairs = [
        message("Pair", key=key, value=value)
        for key, values in (trailing or {}).items()
        for value in values
    ]
    made = message("EchoRequest", text=text.encode(), trailing=pairs, **fields)
    return bytes(made.SerializeToString())


def sized(size: int) -> bytes:
    """Returns a request of exactly that many bytes, at least 20,000, with an empty answer."""
    overhead = len(asking(payload=bytes(size), answer_bytes=-1)) - size
    made = asking(payload=bytes(size - overhead), answer_bytes=-1)
    assert len(made) == size
    return made


def payload_of(response: bytes) -> bytes:
    """Returns what a response echoes."""
    return bytes(message("EchoResponse").FromString(response).payload)


def answering(payload: bytes) -> bytes:
    """Returns the bytes of a response."""
    return bytes(message("EchoResponse", payload=payload).SerializeToString())


class Servicer:
    """Answers as the request says.

    Attributes:
        inside: Counts the held calls that have come in.
        go: Lets them on.
        contexts: Of all calls that reached a handler.
    """

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.go = threading.Event()
        self.contexts: list[Context] = []

    def entered(self, count: int = 1) -> None:
        """Waits until that many more held calls are inside."""
        for _ in range(count):
            assert self.inside.acquire(timeout=SECONDS), "no call came in"

    def Echo(self, request: Any, context: Context) -> Any:
        """Answers with the payload, or with ``answer_bytes`` other ones; negative is none."""
        self.contexts.append(context)
        if request.held:
            self.inside.release()
            assert self.go.wait(SECONDS)
        for pair in request.trailing:
            is_binary = pair.key.endswith("-bin")
            value = pair.value if is_binary else pair.value.decode("ascii")
            context.trailing.append((pair.key, value))
        if request.code:
            raise self._refusal(request)
        if request.answer_bytes < 0:
            return message("EchoResponse")
        filler = b"x" * request.answer_bytes
        return message("EchoResponse", payload=filler or request.payload)

    Change = Read = Echo

    def ask(self, name: str, request: Any) -> Any:
        """Returns the request itself: it asks what it says."""
        return request

    def at_once(
        self, asked: Sequence[tuple[Any, Context]], then: Callable[[Outcomes], None]
    ) -> None:
        """Answers what is not held, where a front asks for that; the rest goes to its threads."""
        outcomes: list[Message | Exception | None] = []
        for request, context in asked:
            try:
                outcomes.append(None if request.held else self.Echo(request, context))
            except Exception as error:
                outcomes.append(error)
        then(outcomes)

    def Follow(self, request: Any, context: Context) -> Iterator[Any]:
        """Answers once."""
        yield self.Echo(request, context)

    def Gather(self, requests: Iterator[Any], context: Context) -> Any:
        """Answers the last request."""
        return self.Echo([*requests][-1], context)

    def _refusal(self, request: Any) -> Exception:
        if request.code == GONE:
            return CallerGone()
        if request.code == UNKNOWN_METHOD:
            return UnknownMethod()
        if request.code == BUG:
            return ValueError("canary")
        fields = [(name, "is bad") for name in request.fields]
        refusal = REFUSALS[request.code]
        return refusal("ETAG_MISMATCH", request.text.decode(), fields=fields)


class _Kept(AccessLog):
    """The access log, which also keeps the calls."""

    def __init__(self, write: Callable[[logs.Line], None], metrics: Metrics) -> None:
        super().__init__(write, metrics)
        self.calls: list[Call] = []
        self.codes: list[str] = []

    def end_all(self, records: Sequence[Record]) -> None:
        """Keeps the calls of records that ended."""
        for record in records:
            # Without what holds grpcio's own object: it counts as an open stream while it lives.
            self.calls.append(replace(record.call, read=None))
            self.codes.append(record.code)
        super().end_all(records)


class Room:
    """A hall with the service.

    Attributes:
        calls: As the front handed them over, in the order in which they ended.
        codes: Likewise, what became of them.
    """

    def __init__(self, *, threads: int = 8, queue_seconds_max: float = 60.0) -> None:
        metrics, lines = Metrics(), _Nowhere()
        log = _Kept(lines.write, metrics)
        self.calls, self.codes = log.calls, log.codes
        self.metrics = metrics
        self.servicer = Servicer()
        self.hall = Hall(
            authenticator=Authenticator(
                find_credential=lambda id: None,
                keys=(b"k" * 32,),
                first_credential=Secret(BEARER),
                confirming=frozenset(),
                clients={"spiffe://test/app": Client("app", frozenset({"check"}))},
            ),
            admission=Admission(
                threads=threads, watch_streams=2, queue_seconds_max=queue_seconds_max,
                metrics=metrics,
            ),
            rate=Rate(per_second=0, metrics=metrics),
            access_log=log,
            logger=logs.logger(lines),
            metrics=metrics,
            message_bytes_max=MESSAGE_BYTES_MAX,
        )  # fmt: skip
        self.hall.register(_service(), self.servicer)

    def in_flight(self) -> float:
        """How many decisions are being worked on."""
        return self.metrics.rpc_in_flight.value("decision")


class _Nowhere:
    """Where log lines go that nobody reads."""

    def write(self, line: logs.Line, count: int = 1) -> None:
        """Forgets the line, but makes it, as the real one does."""
        if not isinstance(line, str):
            line()

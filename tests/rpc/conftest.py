"""A hall with the test service, its parts visible to the tests."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from authz_service.base import ids, secrets
from authz_service.base.secrets import Secret
from authz_service.rpc import status
from authz_service.rpc.access_log import AccessLog
from authz_service.rpc.admission import Admission
from authz_service.rpc.auth import Authenticator, Client, Credential
from authz_service.rpc.call import Call, Metadata, Reply
from authz_service.rpc.hall import Hall
from authz_service.rpc.rate import Rate
from authz_service.rpc.validation import Validator
from authz_service.telemetry import logs
from authz_service.telemetry.metrics import Metrics
from tests.rpc import widgets

KEY = b"k" * 32
FIRST = "azc_first_secret_of_the_tests"


class Credentials:
    """The credentials of a test, and how often they were asked for."""

    def __init__(self) -> None:
        self.by_id: dict[str, Credential] = {}
        self.asked: list[str] = []

    def find(self, id: str) -> Credential | None:
        """What the authenticator asks."""
        self.asked.append(id)
        return self.by_id.get(id)

    def add(self, *scopes: str, **changes: Any) -> str:
        """Adds a credential with these scopes; returns its secret."""
        id = ids.new(ids.CREDENTIAL)
        secret = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, id).reveal()
        hashes = ((secrets.hashed(KEY, secret), changes.pop("until", None)),)
        self.by_id[id] = Credential(id, hashes, frozenset(scopes), **changes)
        return secret


@dataclass
class Building:
    """A hall and everything in it."""

    hall: Hall
    servicer: widgets.WidgetServicer
    credentials: Credentials
    metrics: Metrics
    lines: list[str]
    admission: Admission
    now: list[datetime]
    validator: Validator = field(default_factory=Validator)

    def log(self) -> list[dict[str, Any]]:
        """All lines written so far."""
        return [json.loads(line) for line in self.lines]


class ListedLines:
    """Lines that are kept instead of written."""

    def __init__(self, kept: list[str]) -> None:
        self.kept = kept

    def write(self, line: logs.Line, count: int = 1) -> None:
        """Keeps the line."""
        self.kept.append(line if isinstance(line, str) else line())


def build(**changes: Any) -> Building:
    """Returns a building; changes: sizes, confirming, clients, and the hall's own."""
    metrics = Metrics()
    lines: list[str] = []
    credentials = Credentials()
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    admission = Admission(
        threads=changes.pop("threads", 8),
        watch_streams=changes.pop("watch_streams", 2),
        queue_seconds_max=changes.pop("queue_seconds_max", 0.5),
        metrics=metrics,
    )
    authenticator = Authenticator(
        find_credential=credentials.find,
        keys=(KEY,),
        first_credential=Secret(FIRST),
        confirming=changes.pop("confirming", frozenset({"decision"})),
        clients=changes.pop("clients", {"spiffe://test/app": Client("app", frozenset({"read"}))}),
        now=lambda: now[0],
    )
    validator = Validator(frozenset({"test.v1.BatchCheckRequest.items"}))
    hall = Hall(
        authenticator=authenticator,
        admission=admission,
        rate=Rate(per_second=changes.pop("per_second", 0), metrics=metrics),
        access_log=AccessLog(
            ListedLines(lines).write, metrics, allowed_every=changes.pop("allowed_every", 1)
        ),
        logger=logs.logger(ListedLines(lines)),
        metrics=metrics,
        validator=validator,
        **changes,
    )
    servicer = widgets.WidgetServicer()
    hall.register(widgets.service(), servicer)
    return Building(hall, servicer, credentials, metrics, lines, admission, now, validator)


@pytest.fixture
def building() -> Building:
    """A building with the usual sizes and no rate limit."""
    return build()


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    """Metadata with a bearer."""
    return (("authorization", f"Bearer {secret}"),)


def call(name: str, request: Any = None, metadata: Metadata | None = None, **changes: Any) -> Call:
    """A call of a method of the test service, by the first credential unless told otherwise."""
    if request is None:
        request = widgets.REQUESTS[name]()
    if metadata is None:
        metadata = bearer(FIRST)
    payload = request if isinstance(request, bytes) else request.SerializeToString()
    return Call(widgets.path(name), metadata, payload, **changes)


def answer(building: Building, *args: Any, **changes: Any) -> Reply:
    """The reply to one unary call."""
    return building.hall.answer((call(*args, **changes),))[0]


def reason(reply: Reply) -> tuple[str, str]:
    """The code's name and the reason of a reply; ("OK", "") for an answer."""
    if reply.status is None:
        return "OK", ""
    return status.CODE_NAMES[reply.status.code], status.reason_of(reply.status)


def info(reply: Reply) -> ErrorInfo:
    """The ErrorInfo of a refusal."""
    assert reply.status is not None
    return detail(reply.status, ErrorInfo)


def detail(found: Status, kind: Any) -> Any:
    """The one detail of that kind."""
    (packed,) = [one for one in found.details if one.Is(kind.DESCRIPTOR)]
    return kind.FromString(packed.value)

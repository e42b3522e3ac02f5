"""What a front hands to the hall and gets back: values that know no transport."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from google.rpc.status_pb2 import Status

from authz_service.base.actor import Actor
from authz_service.base.clock import boot_seconds

Metadata = tuple[tuple[str, str | bytes], ...]


# Call and Reply are values and nobody changes them; `frozen` would double what making one costs.


@dataclass(slots=True)
class Call:
    """One call as it arrived.

    Attributes:
        method: The full path, ``/authz.v1.RoleService/CreateRole``.
        metadata: As received, in order, doubled keys kept.
        payload: The undecoded request message; for a client stream, empty.
        deadline: Instant on the boot clock in seconds, None without one.
        certificate_names: DNS and URI names of a verified client certificate.
        arrived: Instant on the boot clock at which the front got the call.
        read: Instead of a payload, a function that waits for it. The hall calls it once, after
            the caller is known and admitted: a stranger who opens a call and sends nothing, or
            much, holds no thread and no memory. Raises CallerGone.
        origin: Whatever the front wants to know the call by.
    """

    method: str
    metadata: Metadata
    payload: bytes = b""
    deadline: float | None = None
    certificate_names: tuple[str, ...] = ()
    arrived: float = field(default_factory=boot_seconds)
    read: Callable[[], bytes] | None = None
    origin: object = None


@dataclass(slots=True)
class Reply:
    """The answer: a payload, or a status that is not OK. Trailing metadata goes with both."""

    payload: bytes = b""
    status: Status | None = None
    trailing: Metadata = ()


class Cancelled(Protocol):
    """Tells whether the caller has gone away; used by streams only."""

    def __call__(self) -> bool: ...


@dataclass(slots=True)
class Context:
    """What a servicer may know of the call besides its request.

    Attributes:
        method: The full path.
        actor: The authenticated caller.
        deadline: Instant on the boot clock; always set for unary calls (AUTHZ_CALL_SECONDS_MAX).
        idempotency_key: As sent, validated; empty when absent (product.md C8) and on reads.
        provisional_credential: (credential id, revision) when the call was admitted with a
            remembered service credential; the servicer must find that revision still current in
            the very snapshot it answers from, else raise CredentialChanged.
        trailing: Metadata to send after the answer; servicers may append.
        is_cancelled: For streams: True once the caller has gone or the server drains.
        organization_id: For the log; taken from the request where it has that field, else a
            servicer may set it.
        log: More for the log line, from closed sets of names (``facts_l1``, ``attempts``); numbers
            and short words of ours, never a caller's text.
    """

    method: str
    actor: Actor
    deadline: float | None
    idempotency_key: str = ""
    provisional_credential: tuple[str, int] | None = None
    trailing: list[tuple[str, str | bytes]] = field(default_factory=list)
    is_cancelled: Cancelled = lambda: False
    organization_id: str = ""
    log: dict[str, int | float | str] = field(default_factory=dict)

    def seconds_left(self) -> float:
        """Seconds until the deadline, never negative; infinity without one."""
        if self.deadline is None:
            return float("inf")
        return max(0.0, self.deadline - boot_seconds())


class CredentialChanged(Exception):
    """A remembered credential is no longer current: the hall reads it and repeats the call."""


class CallerGone(Exception):
    """The caller cancelled, or the front gave up on it: nobody will read an answer."""


class UnknownMethod(Exception):
    """A path that nobody registered, or one called with another kind of streaming.

    Its text, if it has one, is for the caller.
    """


class MustWait(Exception):
    """What was to be done without waiting cannot be."""

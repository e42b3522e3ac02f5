"""Asks for decisions so that no mistake of the caller, and no failure, can read as an allow."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

import grpc

from authz_service.client.retry import refusal_of
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.pb.authz.v1 import authorization_pb2_grpc, core_pb2


@dataclass(frozen=True, slots=True)
class Decision:
    """What the service answered, or why it did not.

    Attributes:
        allowed: True only if the service said so.
        error: Empty for an answer; else code and reason (``UNAVAILABLE DATABASE_UNAVAILABLE``),
            and ``allowed`` is False.
        allowed_until: When an allowed answer ends by itself, in UTC.
        consistency_token: Of the state the answer came from; empty for an error.
    """

    allowed: bool
    error: str = ""
    allowed_until: datetime | None = None
    consistency_token: str = ""

    def __bool__(self) -> NoReturn:
        raise TypeError("a Decision is no truth value: ask decision.allowed")


class Guard:
    """Asks Check; every error denies.

    Args:
        channel: From ``connect``.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = authorization_pb2_grpc.AuthorizationServiceStub(channel)

    def check(
        self,
        subject: core_pb2.Subject,
        permission_slug: str,
        resource: core_pb2.ResourceRef,
        *,
        deadline_seconds: float,
        consistency: core_pb2.Consistency | None = None,
    ) -> Decision:
        """Returns whether the subject may do this to that resource.

        Args:
            deadline_seconds: The longest the caller will wait; there is no default, for only the
                caller knows.
        """
        request = pb.CheckRequest(
            subject=subject,
            permission_slug=permission_slug,
            resource=resource,
            consistency=consistency,
        )
        try:
            answer = self._stub.Check(request, timeout=deadline_seconds)
        except grpc.RpcError as error:
            code, reason = refusal_of(error)
            return Decision(False, error=f"{code.name} {reason}".rstrip())
        until = None
        if answer.HasField("allowed_until"):
            until = answer.allowed_until.ToDatetime(tzinfo=UTC)
        return Decision(
            answer.allowed, allowed_until=until, consistency_token=answer.consistency_token
        )

"""Calls the service as a caller would, through the hall or over a channel, and reads refusals."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

import authz_service.server  # noqa: F401 (registers every message class)
from authz_service.rpc.call import Call, Reply
from authz_service.rpc.hall import Hall

PACKAGE = "authz.v1"


class Refused(Exception):
    """A call that ended in a status.

    Attributes:
        code: ``NOT_FOUND``.
        reason: ``ROLE_NOT_FOUND``; empty where the status carries none.
        metadata: Of the ErrorInfo.
        fields: Paths of the BadRequest.
    """

    def __init__(self, status: Status) -> None:
        self.status = status
        self.code = Code.Name(status.code)
        self.reason = ""
        self.metadata: dict[str, str] = {}
        self.fields: list[str] = []
        for detail in status.details:
            if detail.Is(ErrorInfo.DESCRIPTOR):
                info = ErrorInfo()
                detail.Unpack(info)
                self.reason, self.metadata = info.reason, dict(info.metadata)
            elif detail.Is(BadRequest.DESCRIPTOR):
                bad = BadRequest()
                detail.Unpack(bad)
                self.fields = [violation.field for violation in bad.field_violations]
        super().__init__(
            f"{self.code}:{self.reason} {self.metadata} {self.fields} {status.message}"
        )


class Answer(NamedTuple):
    """A response with its trailing metadata."""

    response: Any
    trailing: dict[str, Any]


def method(service: str, name: str) -> MethodDescriptor:
    """Returns the descriptor of an RPC by its service's short name."""
    found = descriptor_pool.Default().FindServiceByName(f"{PACKAGE}.{service}")
    return found.methods_by_name[name]


class Caller:
    """Calls RPCs: ``caller.RoleService.GetRole(role_id="role_…")`` returns the response.

    A dict stands for a message. A refusal is raised as ``Refused``.

    Args:
        send: Takes a path, metadata, and the request's bytes.
        bearer: A service credential's secret; None sends none.
        metadata: Sent with every call.
    """

    def __init__(
        self,
        send: Callable[[str, tuple[tuple[str, str], ...], bytes], Reply],
        bearer: str | None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._send = send
        self._bearer = bearer
        self._metadata = tuple(metadata)

    def with_bearer(self, bearer: str | None) -> "Caller":
        """Returns the same way in for another credential."""
        return Caller(self._send, bearer, self._metadata)

    def with_metadata(self, **metadata: str) -> "Caller":
        """Returns a caller that also sends this metadata; ``_`` in a name stands for ``-``."""
        more = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        return Caller(self._send, self._bearer, self._metadata + more)

    def __getattr__(self, service: str) -> "_Service":
        if not service.endswith("Service"):
            raise AttributeError(service)
        return _Service(self, service)

    def call(self, service: str, name: str, request: Message | bytes) -> Answer:
        """Sends a request and returns its answer.

        Raises:
            Refused: The status it ended with.
        """
        metadata = self._metadata
        if self._bearer is not None:
            metadata = (("authorization", f"Bearer {self._bearer}"), *metadata)
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        reply = self._send(f"/{PACKAGE}.{service}/{name}", metadata, payload)
        if reply.status is not None and reply.status.code:
            raise Refused(reply.status)
        response = message_factory.GetMessageClass(method(service, name).output_type)()
        response.ParseFromString(reply.payload)
        return Answer(response, dict(reply.trailing))

    def pages(self, service: str, name: str, field: str, **fields: Any) -> Iterator[Any]:
        """Walks all pages of a list and yields its rows."""
        token = ""
        while True:
            response = getattr(getattr(self, service), name)(page_token=token, **fields)
            yield from getattr(response, field)
            token = response.next_page_token
            if not token:
                return


class _Service:
    def __init__(self, caller: Caller, service: str) -> None:
        self._caller = caller
        self._service = service

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            descriptor = method(self._service, name)
        except KeyError:
            raise AttributeError(name) from None
        request_class = message_factory.GetMessageClass(descriptor.input_type)

        def send(**fields: Any) -> Any:
            return self._caller.call(self._service, name, request_class(**fields)).response

        return send


def through_hall(hall: Hall) -> Callable[..., Reply]:
    """Returns a way in that needs no socket."""

    def send(path: str, metadata: tuple[tuple[str, str], ...], payload: bytes) -> Reply:
        (reply,) = hall.answer([Call(path, metadata, payload)])
        return reply

    return send


def through_channel(channel: grpc.Channel, *, seconds: float = 20.0) -> Callable[..., Reply]:
    """Returns a way in over a gRPC channel."""

    def send(path: str, metadata: tuple[tuple[str, str], ...], payload: bytes) -> Reply:
        rpc = channel.unary_unary(path)
        try:
            response, call = rpc.with_call(payload, metadata=metadata, timeout=seconds)
        except grpc.RpcError as error:
            trailing = error.trailing_metadata() or ()
            for key, value in trailing:
                if key == "grpc-status-details-bin":
                    return Reply(b"", Status.FromString(value), tuple(trailing))
            code = error.code().value[0]
            return Reply(b"", Status(code=code, message=error.details()), tuple(trailing))
        return Reply(response, None, tuple(call.trailing_metadata() or ()))

    return send

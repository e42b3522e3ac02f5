"""Opens a channel to the service that sends a credential with every call."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from authz_service.base.secrets import Secret

# A server takes messages of this size by default in both directions (product.md section 6).
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


# What the decision front answers (AUTHZ_DECISIONS_LISTEN of the service).
DECISIONS = frozenset(
    f"/authz.v1.AuthorizationService/{name}" for name in ("Check", "BatchCheck", "CheckMatrix")
)


def connect(
    address: str,
    credential: Secret,
    *,
    decisions_address: str | None = None,
    ca: Path | None = None,
    is_alone: bool = False,
) -> grpc.Channel:
    """Returns a channel; it connects at the first call and again whenever it has to.

    Args:
        address: ``host:port`` or ``unix:/path``.
        credential: The secret of a service credential.
        decisions_address: Where decisions are asked, at a fraction of the server's cost; None =
            where everything else is.
        ca: PEM file of the authority of the server's certificate; None = plaintext, for servers on
            this machine.
        is_alone: The channel has a connection of its own; else those of one process to one address
            share one.
    """
    channel = _channel(address, ca, is_alone)
    if decisions_address is not None:
        channel = _Parted(channel, _channel(decisions_address, ca, is_alone))
    return grpc.intercept_channel(channel, _Bearer(credential))


def _channel(address: str, ca: Path | None, is_alone: bool) -> grpc.Channel:
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", int(is_alone)),
    ]
    if ca is None:
        return grpc.insecure_channel(address, options)
    trust = grpc.ssl_channel_credentials(root_certificates=ca.read_bytes())
    return grpc.secure_channel(address, trust, options)


class _Parted(grpc.Channel):
    """Two channels as one: decisions go to the second."""

    def __init__(self, everything: grpc.Channel, decisions: grpc.Channel) -> None:
        self._everything = everything
        self._decisions = decisions

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Any:
        channel = self._decisions if method in DECISIONS else self._everything
        return channel.unary_unary(method, *args, **options)

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Any:
        return self._everything.unary_stream(method, *args, **options)

    def stream_unary(self, method: str, *args: Any, **options: Any) -> Any:
        return self._everything.stream_unary(method, *args, **options)

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Any:
        return self._everything.stream_stream(method, *args, **options)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        self._everything.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._everything.unsubscribe(callback)

    def close(self) -> None:
        self._decisions.close()
        self._everything.close()

    def __enter__(self) -> "_Parted":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


class _Details(
    namedtuple(
        "_Details",
        ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression"),
    ),
    grpc.ClientCallDetails,
):
    """A call's details with more metadata; grpcio offers no public class for them."""


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
):
    def __init__(self, credential: Secret) -> None:
        self._entry = ("authorization", f"Bearer {credential.reveal()}")

    def _send(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), self._entry)
        return continuation(
            _Details(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                getattr(details, "wait_for_ready", None),
                getattr(details, "compression", None),
            ),
            request,
        )

    intercept_unary_unary = _send  # type: ignore[assignment]
    intercept_unary_stream = _send  # type: ignore[assignment]
    intercept_stream_unary = _send  # type: ignore[assignment]

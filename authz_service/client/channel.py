"""Opens a channel to the service that sends a credential with every call."""

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from authz_service.base.secrets import Secret

# A server takes messages of this size by default in both directions (product.md section 6).
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


def connect(
    address: str, credential: Secret, *, ca: Path | None = None, is_alone: bool = False
) -> grpc.Channel:
    """Returns a channel; it connects at the first call and again whenever it has to.

    Args:
        address: ``host:port`` or ``unix:/path``.
        credential: The secret of a service credential.
        ca: PEM file of the authority of the server's certificate; None = plaintext, for servers on
            this machine.
        is_alone: The channel has a connection of its own; else those of one process to one address
            share one.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", int(is_alone)),
    ]
    if ca is None:
        channel = grpc.insecure_channel(address, options)
    else:
        trust = grpc.ssl_channel_credentials(root_certificates=ca.read_bytes())
        channel = grpc.secure_channel(address, trust, options)
    return grpc.intercept_channel(channel, _Bearer(credential))


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

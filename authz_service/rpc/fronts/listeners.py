"""Addresses to listen on and how they are protected; the same for every front."""

import ipaddress
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc


class Unlistenable(ValueError):
    """An address that must not or cannot be listened on; the text says why."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a listener's certificate; read again when one of them changes.

    Attributes:
        certificate: PEM chain.
        key: PEM private key.
        client_ca: PEM of the authorities of client certificates. Where it is set, every caller of
            the listener must have one: grpcio cannot ask for a certificate and do without.
    """

    certificate: str
    key: str
    client_ca: str = ""

    @property
    def paths(self) -> list[str]:
        """The files that there are: certificate, key, authorities."""
        return [path for path in (self.certificate, self.key, self.client_ca) if path]

    def stamps(self) -> list[tuple[int, int, int]]:
        """Returns what tells whether one of the files is another than before.

        Raises:
            OSError: One cannot be found.
        """
        found = [os.stat(path) for path in self.paths]
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in found]


@dataclass(frozen=True, slots=True)
class Listener:
    """One address.

    Attributes:
        address: ``host:port``, ``[v6]:port`` or ``unix:/path``; port 0 takes a free one.
        tls: None for plaintext.
        insecure: Plaintext beyond this machine is meant so.
    """

    address: str
    tls: Tls | None = None
    insecure: bool = False


def check_listener(address: str, *, tls: bool, insecure: bool) -> None:
    """Refuses an address that would show plaintext to a network.

    Raises:
        Unlistenable: Plaintext beyond loopback and unix sockets without ``insecure``, or an
            address that is none.
    """
    if address.startswith("unix:"):
        return
    host, colon, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port) <= 65_535
    if not colon or not host or not is_port:
        raise Unlistenable(f"{address!r} is no address: want host:port, [v6]:port or unix:/path")
    if tls or insecure or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise Unlistenable(
            f"{address} is not on loopback: set a TLS certificate, or AUTHZ_INSECURE to listen in "
            "plaintext"
        )


def credentials(tls: Tls) -> grpc.ServerCredentials:
    """Returns credentials that follow the files: a rotation needs no restart.

    Raises:
        OSError: A file cannot be read at the start. Later the last good ones stay in force.
    """
    files = _Files(tls)
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        # None means "as before", which the annotation of the stubs forgets.
        cast("Callable[[], grpc.ServerCertificateConfiguration]", files.changed),
        require_client_authentication=bool(tls.client_ca),
    )


class _Files:
    """The certificate files and the state in which they were last read."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._stamps = tls.stamps()
        self._lock = threading.Lock()

    def read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key, *authorities = (_contents(path) for path in self._tls.paths)
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], authorities[0] if authorities else None
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the files' new contents, None if they are as before or cannot be read.

        grpcio asks this before every handshake; a rotation is seen half-done when certificate and
        key do not fit, and then grpcio keeps the old pair, and so the stamps are taken first.
        """
        with self._lock:
            try:
                stamps = self._tls.stamps()
                if stamps == self._stamps:
                    return None
                configuration = self.read()
            except OSError:
                return None
            self._stamps = stamps
            return configuration


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()

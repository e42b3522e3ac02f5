"""The grpcio front on loopback, with real clients."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status

from authz_service.rpc import status as statuses
from authz_service.rpc.fronts.grpcio import Front, Settings
from authz_service.rpc.fronts.listeners import Listener, Tls
from tests.rpc import widgets
from tests.rpc.conftest import FIRST, Building, bearer, build

SECONDS_MAX = 20.0


class Refused(Exception):
    """A call that ended with a status."""

    def __init__(self, error: grpc.RpcError) -> None:
        call: Any = error
        self.code: str = call.code().name
        self.text: str = call.details()
        self.trailing = {one.key: one.value for one in call.trailing_metadata() or ()}
        packed = self.trailing.get("grpc-status-details-bin")
        self.status = Status.FromString(packed) if packed else None
        self.reason = statuses.reason_of(self.status) if self.status else ""
        super().__init__(self.code, self.reason, self.text)


class Client:
    """Calls the test service, with the first credential unless told otherwise."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def call(
        self, name: str, request: Any = None, *, metadata: Any = None, timeout: float = SECONDS_MAX
    ) -> Any:
        """Returns (response message, trailing metadata) of a unary call; raises Refused."""
        request = widgets.REQUESTS[name]() if request is None else request
        payload = request if isinstance(request, bytes) else request.SerializeToString()
        path = name if name.startswith("/") else widgets.path(name)
        metadata = bearer(FIRST) if metadata is None else metadata
        try:
            response, done = self.channel.unary_unary(path).with_call(
                payload, metadata=metadata, timeout=timeout
            )
        except grpc.RpcError as error:
            raise Refused(error) from None
        return response, {one.key: one.value for one in done.trailing_metadata()}

    def refused(self, *args: Any, **changes: Any) -> Refused:
        """Returns how a unary call was refused."""
        with pytest.raises(Refused) as caught:
            self.call(*args, **changes)
        return caught.value

    def stream(self, name: str, metadata: Any = None, **fields: Any) -> Any:
        """Opens a server stream; returns grpcio's call."""
        return self.channel.unary_stream(widgets.path(name))(
            widgets.message("WatchRequest", **fields).SerializeToString(),
            metadata=bearer(FIRST) if metadata is None else metadata,
            timeout=SECONDS_MAX,
        )

    def text(self, **changes: Any) -> str:
        """Calls GetWidget and returns its answer's text."""
        request = widgets.message("GetWidgetRequest", id="abc")
        response, _ = self.call("GetWidget", request, **changes)
        return str(widgets.message("GetWidgetResponse").FromString(response).text)


def ended(call: Any) -> Refused:
    """Reads a stream to its end, which must be a refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:
            pass
    return Refused(caught.value)


class House:
    """A front, the building behind it, and clients; everything ends with the test."""

    def __init__(self) -> None:
        self.fronts: list[Front] = []
        self.channels: list[grpc.Channel] = []
        self.building: Building = build()

    def front(self, *listeners: Listener, **changes: Any) -> Front:
        """Starts a front; changes are those of Settings."""
        health_listener = changes.pop("health_listener", None)
        front = Front(
            self.building.hall,
            listeners or (Listener("127.0.0.1:0"),),
            health_listener=health_listener,
            settings=replace(Settings(), **changes),
        )
        front.start()
        front.set_serving(True)
        self.fronts.append(front)
        return front

    def client(
        self, address: str, credentials: grpc.ChannelCredentials | None = None, *options: Any
    ) -> Client:
        """Returns a client with a connection of its own."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), *options)
        if credentials is None:
            channel = grpc.insecure_channel(address, options=options)
        else:
            channel = grpc.secure_channel(address, credentials, options=options)
        self.channels.append(channel)
        return Client(channel)

    def end(self) -> None:
        """Ends all clients and fronts."""
        for channel in self.channels:
            channel.close()
        for front in self.fronts:
            front.stop(0.2)


@pytest.fixture
def house() -> Iterator[House]:
    """A house without a front yet."""
    house = House()
    yield house
    house.end()


class Authority:
    """Makes certificates with the openssl program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                  "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
                  "-subj", "/CN=test authority")  # fmt: skip

    def _run(self, *arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60
        )

    def issue(self, name: str, *alternatives: str) -> tuple[str, str]:
        """Returns the paths of a certificate and its key, made anew under this name."""
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={','.join(alternatives)}\n")
        self._run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                  "-keyout", f"{name}.key", "-out", f"{name}.csr",
                  "-subj", f"/CN={name}")  # fmt: skip
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                  "-CAcreateserial", "-days", "1", "-extfile", f"{name}.ext",
                  "-out", f"{name}.pem")  # fmt: skip
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")

    def tls(self, name: str = "server", *, clients: bool = False) -> Tls:
        """Returns the files of a server on localhost."""
        certificate, key = self.issue(name, "DNS:localhost", "IP:127.0.0.1")
        return Tls(certificate, key, str(self.folder / "ca.pem") if clients else "")

    def trusted(self, certificate: str = "", key: str = "") -> grpc.ChannelCredentials:
        """Returns credentials of a client that trusts this authority."""

        def read(path: str) -> bytes | None:
            return Path(path).read_bytes() if path else None

        return grpc.ssl_channel_credentials(
            (self.folder / "ca.pem").read_bytes(), read(key), read(certificate)
        )


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority for the run."""
    return Authority(tmp_path_factory.mktemp("authority"))

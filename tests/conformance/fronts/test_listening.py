"""How fronts are reached: sockets, certificates, and who is not let in."""

import os
import shutil
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from authz_service.rpc.fronts.listeners import Listener, Tls, Unlistenable
from tests.conformance.fronts.clients import BEARER, Ask, see
from tests.conformance.fronts.conftest import LOOPBACK, Maker, Stage, trust
from tests.conformance.fronts.echo import Room, asking, payload_of
from tests.conformance.fronts.raw import Raw, connected
from tests.conformance.fronts.test_wire import is_well
from tests.rpc.fronts.conftest import Authority
from tests.rpc.fronts.test_grpcio import until

Staged = Callable[..., Stage]
Connections = Callable[..., Raw]


def secure(listener: Tls) -> Listener:
    """Returns a listener on a free port with these certificates."""
    return Listener("127.0.0.1:0", listener)


def context(authority: Authority, *, alpn: list[str] | None = None) -> ssl.SSLContext:
    """Returns a client's context that trusts an authority."""
    made = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    if alpn is not None:
        made.set_alpn_protocols(alpn)
    return made


@pytest.fixture(scope="session")
def files(authority: Authority) -> Tls:
    """A server's certificate."""
    return authority.tls("front")


@pytest.fixture(scope="session")
def mutual(authority: Authority, files: Tls) -> Tls:
    """The same, with an authority for the certificates of clients."""
    return Tls(files.certificate, files.key, str(authority.folder / "ca.pem"))


@pytest.fixture(scope="session")
def app(authority: Authority) -> tuple[str, str]:
    """The certificate of a client that is known."""
    return authority.issue("app", "URI:spiffe://test/app", "DNS:app.test")


# Sockets


def test_a_unix_socket_serves_its_group_alone(
    staged: Staged, clients_of: Maker, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/front.sock"
    stage = staged(Listener(address))
    assert stage.front.addresses == [address]
    assert stat.S_IMODE(os.stat(tmp_path / "front.sock").st_mode) == 0o660
    seen = see(clients_of(address), Ask(asking(payload=b"a" * 50_000)))
    assert (seen.code, payload_of(seen.payload)) == ("OK", b"a" * 50_000)


def test_a_socket_left_behind_is_replaced(
    staged: Staged, connections: Connections, tmp_path: Path
) -> None:
    path = tmp_path / "front.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    is_well(connections(staged(Listener(f"unix:{path}")).address))


def test_several_addresses_are_one_front(
    staged: Staged, connections: Connections, tmp_path: Path
) -> None:
    stage = staged(LOOPBACK, Listener(f"unix:{tmp_path}/a.sock"), Listener("[::1]:0"))
    for address in stage.front.addresses[:2]:
        is_well(connections(address))
    port = int(stage.front.addresses[2].rpartition(":")[2])
    with socket.create_connection(("::1", port), 5) as one:
        assert one.recv(9)[3] == 4  # SETTINGS


def test_plaintext_beyond_this_machine_and_taken_ports_are_refused(
    staged: Staged, connections: Connections
) -> None:
    with pytest.raises(Unlistenable, match="AUTHZ_INSECURE"):
        staged(LOOPBACK, Listener("0.0.0.0:0"))
    stage = staged()
    with pytest.raises(Unlistenable, match="cannot listen"):
        staged(Listener(stage.address))
    is_well(connections(stage.address))


def test_fronts_may_share_a_port_on_purpose(staged: Staged, connections: Connections) -> None:
    first = staged(reuse_port=True)
    second = staged(Listener(first.address), reuse_port=True)
    for _ in range(20):
        is_well(connections(first.address))
    first.stop(0.1)
    before = len(second.room.calls)
    for _ in range(5):
        is_well(connections(first.address))
    assert len(second.room.calls) == before + 5


# TLS


def test_tls_serves_who_trusts_it(
    staged: Staged, clients_of: Maker, authority: Authority, stranger: Authority, files: Tls
) -> None:
    stage = staged(secure(files))
    seen = see(clients_of(stage.local, trust(authority)), Ask(asking(payload=b"a" * 50_000)))
    assert (seen.code, payload_of(seen.payload)) == ("OK", b"a" * 50_000)
    for address, trusted in ((stage.local, None), (stage.local, trust(stranger))):
        assert see(clients_of(address, trusted), Ask()).code == "UNAVAILABLE"
    assert len(stage.room.calls) == 1


def test_a_client_certificate_is_a_credential_and_needed(
    staged: Staged, clients_of: Maker, authority: Authority, stranger: Authority, mutual: Tls,
    app: tuple[str, str],
) -> None:  # fmt: skip
    stage = staged(secure(mutual))
    client = clients_of(stage.local, trust(authority, *app))
    assert see(client, Ask(metadata=())).code == "OK"
    actor = stage.servicer.contexts[-1].actor
    assert (actor.kind, actor.id) == ("CERTIFICATE", "app")
    assert stage.room.calls[-1].certificate_names[:2] == ("spiffe://test/app", "app.test")
    # A bearer decides also where there is a certificate.
    assert see(client, Ask(metadata=(("authorization", "Bearer bad"),))).code == "UNAUTHENTICATED"
    for bad in (
        trust(authority),
        trust(authority, *stranger.issue("app", "URI:spiffe://test/app")),
    ):
        assert see(clients_of(stage.local, bad), Ask(metadata=BEARER)).code == "UNAVAILABLE"
    other = clients_of(stage.local, trust(authority, *authority.issue("other", "DNS:other.test")))
    assert see(other, Ask(metadata=())).code == "UNAUTHENTICATED"
    assert see(other, Ask()).code == "OK"
    assert len(stage.room.calls) == 4


def test_versions_before_1_2_are_refused(
    staged: Staged, connections: Connections, authority: Authority, files: Tls
) -> None:
    stage = staged(secure(files))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        newer = context(authority, alpn=["h2"])
        newer.minimum_version = newer.maximum_version = version
        raw = connections(stage.address, newer)
        assert raw.socket.selected_alpn_protocol() == "h2"
        is_well(raw)


@pytest.mark.parametrize("alpn", [None, ["http/1.1"]], ids=["none", "another"])
def test_without_the_protocol_agreed_nobody_gets_in(
    staged: Staged, authority: Authority, connections: Connections, files: Tls, alpn: Any
) -> None:
    stage = staged(secure(files))
    try:
        raw = connections(stage.address, context(authority, alpn=alpn))
        raw.drain()
    except (ssl.SSLError, ConnectionError):
        pass
    is_well(connections(stage.address, context(authority, alpn=["h2"])))
    assert len(stage.room.calls) == 1


def test_a_handshake_that_never_ends_holds_up_nobody(
    staged: Staged, connections: Connections, authority: Authority, files: Tls
) -> None:
    stage = staged(secure(files))
    silent = [connected(stage.address) for _ in range(20)]
    try:
        for one in silent[:10]:
            one.sendall(b"\x16\x03\x01\x02\x00\x01")
        is_well(connections(stage.address, context(authority, alpn=["h2"])))
    finally:
        for one in silent:
            one.close()


def test_certificates_are_replaced_without_a_dropped_call(
    staged: Staged, connections: Connections, authority: Authority, tmp_path: Path,
    in_thread: Callable[..., Any],
) -> None:  # fmt: skip
    old, new = authority.issue("old", "DNS:localhost"), authority.issue("new", "DNS:localhost")
    live = (tmp_path / "live.pem", tmp_path / "live.key")

    def put(pair: tuple[str, str]) -> None:
        # One file after the other, each in one step, as it is done.
        for source, target in zip(pair, live, strict=True):
            shutil.copyfile(source, f"{target}.next")
            os.replace(f"{target}.next", target)

    def shown() -> str:
        raw = connections(stage.address, context(authority, alpn=["h2"]))
        is_well(raw)
        return str(dict(one[0] for one in raw.socket.getpeercert()["subject"])["commonName"])

    put(old)
    stage = staged(secure(Tls(str(live[0]), str(live[1]))))
    held = connections(stage.address, context(authority, alpn=["h2"]))
    assert shown() == "old"
    put(new)
    until(lambda: shown() == "new")
    assert shown() == "new"
    is_well(held)
    live[1].write_text("no key")
    assert shown() == "new"
    is_well(held)


def test_clients_see_nothing_of_a_rotation(
    staged: Staged, clients_of: Maker, authority: Authority, tmp_path: Path
) -> None:
    pairs = [authority.issue(f"turn{turn}", "DNS:localhost") for turn in range(2)]
    live = (tmp_path / "live.pem", tmp_path / "live.key")
    for source, target in zip(pairs[0], live, strict=True):
        shutil.copyfile(source, target)
    stage = staged(secure(Tls(str(live[0]), str(live[1]))), connection_age_ms=1_000)
    client = clients_of(stage.local, trust(authority))
    codes = []
    for turn in range(20):
        codes.append(see(client, Ask()).code)
        for source, target in zip(pairs[turn % 2], live, strict=True):
            shutil.copyfile(source, f"{target}.next")
            os.replace(f"{target}.next", target)
        codes.append(see(clients_of(stage.local, trust(authority)), Ask()).code)
    assert set(codes) == {"OK"}


def test_a_front_that_cannot_read_its_certificate_does_not_start(
    kind: str, staged: Staged, tmp_path: Path
) -> None:
    with pytest.raises((OSError, ssl.SSLError)):
        staged(secure(Tls(f"{tmp_path}/none.pem", f"{tmp_path}/none.key")), room=Room())

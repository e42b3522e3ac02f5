"""The cache over TLS: it works with the right authority, and is off, and says so, with another."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from redis import Redis

from authz_service.stack.valkey import valkey
from tests.servers.debian import redis_7
from tests.storage.cache.deployment import deployed
from tests.storage.cache.lives import eventually

pytestmark = pytest.mark.server


class Encrypted(NamedTuple):
    """A Redis that speaks TLS.

    Attributes:
        plain_url: Of its other port.
        authority: Who made its certificate.
        stranger: Another authority, which made nothing.
    """

    port: int
    password: str
    plain_url: str
    authority: Path
    stranger: Path

    def url(self, authority: Path | None) -> str:
        """How a worker reaches it; None = it trusts whom the machine trusts."""
        trusted = f"?ssl_ca_certs={quote(str(authority))}" if authority else ""
        return f"rediss://:{self.password}@127.0.0.1:{self.port}/0{trusted}"


def openssl(folder: Path, *arguments: str) -> None:
    """Runs the program openssl."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def authority(folder: Path, name: str) -> Path:
    """Makes one; returns its certificate, beside which lies its key."""
    made = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}")
    openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made)
    return folder / f"{name}.pem"


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[Encrypted]:
    """A Redis 7 with a certificate for 127.0.0.1: the wheel's Valkey is built without TLS."""
    one, other = authority(tmp_path, "one"), authority(tmp_path, "other")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(tmp_path, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key",
            "-out", "server.csr", "-subj", "/CN=server")  # fmt: skip
    openssl(tmp_path, "x509", "-req", "-in", "server.csr", "-CA", "one.pem", "-CAkey", "one.key",
            "-CAcreateserial", "-days", "1", "-extfile", "names", "-out", "server.pem")  # fmt: skip
    with socket.socket() as holder:
        # Bound and never listening, it keeps the port for the server.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        settings = {
            "tls-port": str(port),
            "tls-cert-file": str(tmp_path / "server.pem"),
            "tls-key-file": str(tmp_path / "server.key"),
            "tls-ca-cert-file": str(one),
            "tls-auth-clients": "no",
        }
        with valkey(redis_7(), settings) as server:
            password = server.url.removeprefix("redis://:").partition("@")[0]
            yield Encrypted(port, password, server.url, one, other)


def test_a_cache_over_tls(url: str, encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    with deployed(url, encrypted.url(encrypted.authority), monkeypatch) as deployment:
        deployment.caches()
        assert deployment.is_right()
        with Redis.from_url(encrypted.plain_url) as client:
            # What is there came over the other port.
            eventually(lambda: not deployment.is_allowed and client.keys("az:*"))
            names = {each["laddr"].rpartition(":")[2] for each in client.client_list()}
        assert str(encrypted.port) in names
        assert deployment.metrics.cache_redis_seconds.count("info", "ok") > 0
        assert encrypted.password not in deployment.log.text


@pytest.mark.parametrize("trusted", ["another authority", "the machine's authorities"])
def test_a_certificate_that_is_not_trusted_is_a_redis_that_is_not_there(
    url: str, encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch, trusted: str
) -> None:
    redis_url = encrypted.url(encrypted.stranger if trusted == "another authority" else None)
    with deployed(url, redis_url, monkeypatch) as deployment:
        deployment.is_told("cache_redis_unreachable", reason="tls")
        assert not deployment.worker.is_caching
        assert deployment.metrics.cache_mode.value() == 0
        assert deployment.metrics.cache_redis_seconds.count("info", "tls") > 0
        assert deployment.metrics.cache_redis_seconds.count("info", "ok") == 0
        assert deployment.is_right()
        assert encrypted.password not in deployment.log.text
        with Redis.from_url(encrypted.plain_url) as client:
            assert client.dbsize() == 0


def test_a_plain_redis_where_tls_is_expected(
    url: str, encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = encrypted.plain_url.replace("redis://", "rediss://")
    with deployed(url, plain, monkeypatch) as deployment:
        deployment.is_told("cache_redis_unreachable")
        assert deployment.metrics.cache_mode.value() == 0
        assert deployment.is_right()

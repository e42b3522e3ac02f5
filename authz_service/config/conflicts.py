"""Values that are right by themselves and wrong together."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from authz_service.config.values import ROOT_KEY_BYTES_MIN, Address, is_open_redis

if TYPE_CHECKING:
    from authz_service.config.environment import Config


class Problem(NamedTuple):
    """One bad value: the setting, what is wrong, and what would be right. Never a secret."""

    setting: str
    wrong: str
    right: str


class Conflict(NamedTuple):
    """A problem, and the other settings it follows from: if one of them is bad, it is no news."""

    problem: Problem
    follows_from: frozenset[str]


def find(config: "Config") -> Iterator[Conflict]:
    """Yields every conflict."""
    yield from _keys(config)
    yield from _workers(config)
    yield from _tls(config)
    yield from _plaintext(config)
    yield from _addresses(config)
    yield from _redis(config)


def _conflict(setting: str, wrong: str, right: str, *follows_from: str) -> Conflict:
    return Conflict(Problem(setting, wrong, right), frozenset(follows_from))


def _keys(config: "Config") -> Iterator[Conflict]:
    if not config.security.root_keys:
        yield _conflict(
            "AUTHZ_ROOT_KEYS",
            "is not set",
            f"must be at least one key of at least {ROOT_KEY_BYTES_MIN} bytes in base 64: make one"
            " with `openssl rand -base64 32`",
        )


def _workers(config: "Config") -> Iterator[Conflict]:
    if config.server.workers == 1:
        return
    if config.database.is_sqlite:
        yield _conflict(
            "AUTHZ_WORKERS",
            "SQLite serves one process only",
            "must be 1, or AUTHZ_DATABASE_URL must name a PostgreSQL",
            "AUTHZ_DATABASE_URL",
        )
    for setting, address in _grpc_listeners(config):
        if not address.is_fixed:
            yield _conflict(
                setting,
                "several workers cannot share it",
                "must be host:port with a port of its own, or AUTHZ_WORKERS must be 1",
            )


def _tls(config: "Config") -> Iterator[Conflict]:
    security = config.security
    if (security.tls_certificate is None) != (security.tls_key is None):
        pair = ("AUTHZ_TLS_CERTIFICATE", "AUTHZ_TLS_KEY")
        given, missing = pair if security.tls_key is None else pair[::-1]
        yield _conflict(missing, "is not set", f"must be set together with {given}", given)
    if security.tls_client_ca and not security.tls_certificate:
        yield _conflict(
            "AUTHZ_TLS_CLIENT_CA",
            "is set, but the server has no certificate of its own",
            "needs AUTHZ_TLS_CERTIFICATE and AUTHZ_TLS_KEY",
            "AUTHZ_TLS_CERTIFICATE",
        )
    if security.tls_clients and not security.tls_client_ca:
        yield _conflict(
            "AUTHZ_TLS_CLIENTS",
            "is set, but no client certificate would be asked for",
            "needs AUTHZ_TLS_CLIENT_CA",
            "AUTHZ_TLS_CLIENT_CA",
        )


def _plaintext(config: "Config") -> Iterator[Conflict]:
    """Finds listeners that others could reach without TLS (quality.md section 6, listeners)."""
    server, security = config.server, config.security
    if security.insecure:
        return
    health = server.health_listen
    open_ones = (
        ("AUTHZ_LISTEN", server.listen, security.tls_certificate, "AUTHZ_TLS_CERTIFICATE"),
        (
            "AUTHZ_DECISIONS_LISTEN",
            server.decisions_listen,
            security.tls_certificate,
            "AUTHZ_TLS_CERTIFICATE",
        ),
        # For probes without a certificate: what it tells is no secret.
        ("AUTHZ_HEALTH_LISTEN", health, security.tls_client_ca, "AUTHZ_TLS_CLIENT_CA"),
        ("AUTHZ_METRICS_LISTEN", server.metrics_listen, None, ""),
    )
    for setting, address, excuse, excused_by in open_ones:
        if address is not None and not address.is_local and not excuse:
            yield _conflict(
                setting,
                "others than this machine could reach it without TLS",
                "must be on loopback"
                + (f", or {excused_by} must be set" if excused_by else "")
                + ", or AUTHZ_INSECURE must be on",
                "AUTHZ_INSECURE",
                excused_by,
            )


def _addresses(config: "Config") -> Iterator[Conflict]:
    seen: dict[str, str] = {}
    metrics = ("AUTHZ_METRICS_LISTEN", config.server.metrics_listen)
    for setting, address in (*_grpc_listeners(config), metrics):
        if address.path or address.port:
            first = seen.setdefault(str(address), setting)
            if first != setting:
                yield _conflict(setting, f"is the address of {first}", "must be another one", first)


def _grpc_listeners(config: "Config") -> Iterator[tuple[str, Address]]:
    yield "AUTHZ_LISTEN", config.server.listen
    if config.server.decisions_listen is not None:
        yield "AUTHZ_DECISIONS_LISTEN", config.server.decisions_listen
    if config.server.health_listen is not None:
        yield "AUTHZ_HEALTH_LISTEN", config.server.health_listen


def _redis(config: "Config") -> Iterator[Conflict]:
    url = config.cache.redis_url
    if url is None:
        return
    if config.database.is_sqlite:
        yield _conflict(
            "AUTHZ_REDIS_URL",
            "is set, but SQLite remembers in its one process",
            "must not be set, or AUTHZ_DATABASE_URL must name a PostgreSQL",
            "AUTHZ_DATABASE_URL",
        )
    if is_open_redis(url) and not config.security.insecure:
        yield _conflict(
            "AUTHZ_REDIS_URL",
            "what is remembered would leave this machine without TLS",
            "must be on loopback or begin with rediss://, or AUTHZ_INSECURE must be on",
            "AUTHZ_INSECURE",
        )

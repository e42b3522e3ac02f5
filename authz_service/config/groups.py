"""Every setting, in four groups: its variable, unit, range and default, and why they are so."""

import base64
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authz_service.base.secrets import Secret
from authz_service.config import values
from authz_service.config.kinds import decimal, file, listener, number, setting, switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Listeners, threads and time."""

    listen: values.Address = listener(
        "AUTHZ_LISTEN",
        values.Address("127.0.0.1", 50051),
        why="Where the gRPC API is served. Off loopback it needs TLS, or AUTHZ_INSECURE.",
    )
    workers: int = number(
        "AUTHZ_WORKERS",
        1,
        unit="processes",
        low=1,
        high=128,
        why="One Python process uses about one core, so set it to the number of cores. More than"
        " one needs PostgreSQL.",
    )
    threads: int = number(
        "AUTHZ_SERVER_THREADS",
        8,
        unit="threads per worker",
        low=2,
        high=256,
        why="Calls worked on at once, streams of Watch aside. Lists and writes each get at most"
        " half. Each may hold a database connection; more threads than the database answers in"
        " parallel only make a queue of it.",
    )
    queue_max: int = number(
        "AUTHZ_QUEUE_MAX",
        64,
        unit="calls per worker",
        low=0,
        high=10_000,
        why="Calls that may wait for a thread; more are refused at once with OVERLOADED. A queue"
        " only helps against bursts: under lasting overload it makes every answer late.",
    )
    queue_seconds_max: float = decimal(
        "AUTHZ_QUEUE_SECONDS_MAX",
        0.5,
        unit="seconds",
        low=0.01,
        high=60,
        why="A call that waited longer for a thread is refused: its caller has probably given up,"
        " and who is served late keeps everybody late.",
    )
    watch_streams_max: int = number(
        "AUTHZ_WATCH_STREAMS_MAX",
        100,
        unit="streams per worker",
        low=1,
        high=1_000,
        why="Streams of Watch at once. Each holds a thread of its own, on top of"
        " AUTHZ_SERVER_THREADS.",
    )
    call_seconds_max: float = decimal(
        "AUTHZ_CALL_SECONDS_MAX",
        10,
        unit="seconds",
        low=0.1,
        high=300,
        why="Longest time for a unary call, also if its caller set a longer deadline or none: a"
        " forgotten deadline must not hold a thread.",
    )
    drain_seconds: float = decimal(
        "AUTHZ_DRAIN_SECONDS",
        20,
        unit="seconds",
        low=0,
        high=600,
        why="Time that calls under way get to finish when the service is stopped. Keep it above"
        " AUTHZ_CALL_SECONDS_MAX and below what the service manager waits before it kills.",
    )
    metrics_listen: values.Address = listener(
        "AUTHZ_METRICS_LISTEN",
        values.Address("127.0.0.1", 9464),
        why="Where /metrics is served over HTTP, for all workers together; if there are several,"
        " /livez and /readyz too."
        " Has no TLS: off loopback it needs AUTHZ_INSECURE.",
        may_be_unix=False,
    )
    decisions_listen: values.Address | None = listener(
        "AUTHZ_DECISIONS_LISTEN",
        None,
        why="A second listener for decisions alone (Check, BatchCheck, CheckMatrix, and health), at"
        " a fraction of the cost: give it to those who only ask. TLS as on AUTHZ_LISTEN.",
    )
    health_listen: values.Address | None = listener(
        "AUTHZ_HEALTH_LISTEN",
        None,
        why="A second listener with nothing but grpc.health.v1, without TLS: for probes that have"
        " no client certificate. Not set: health is on AUTHZ_LISTEN alone. Off loopback it needs"
        " AUTHZ_TLS_CLIENT_CA or AUTHZ_INSECURE.",
    )
    reflection: bool = switch(
        "AUTHZ_REFLECTION",
        why="Whether the contract can be asked for over gRPC reflection, with any valid"
        " credential. Off, since what nobody uses cannot be abused.",
    )
    log_allowed_ratio: float = decimal(
        "AUTHZ_LOG_ALLOWED_RATIO",
        1,
        unit="share",
        low=0,
        high=1,
        why="Share of the allowed checks that get a line in the log. Denied checks, refusals,"
        " writes and errors are always logged. Lower it where the log costs more than the check.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Keys, credentials, TLS and rate."""

    root_keys: tuple[Secret, ...] = setting(
        (),
        variable="AUTHZ_ROOT_KEYS",
        unit="base 64, separated by commas or white space",
        range=f"at least one key of at least {values.ROOT_KEY_BYTES_MIN} bytes in base 64:"
        " make one with `openssl rand -base64 32`",
        shown="",
        why="Signs page and consistency tokens and hashes credentials, with a key derived for each"
        " purpose. The first is used for new ones, all are recognised: to change it, put the new"
        " one first and drop the old one once nothing made with it is in use. Without it the"
        " service does not start.",
        parse=values.root_keys,
        is_secret=True,
        show=lambda keys: ", ".join("***" for _ in keys),
    )
    first_credential: Secret | None = setting(
        None,
        variable="AUTHZ_FIRST_CREDENTIAL",
        unit="service credential",
        range="a service credential (azc_…)",
        why="A credential with the scope admin, valid while it is set: to create the first real"
        " ones. Remove it afterwards.",
        parse=values.first_credential,
        is_secret=True,
    )
    tls_certificate: Path | None = file(
        "AUTHZ_TLS_CERTIFICATE",
        why="The server's certificate chain, PEM. Read again when it changes.",
    )
    tls_key: Path | None = file(
        "AUTHZ_TLS_KEY",
        why="The private key of that certificate, PEM. Read again when it changes.",
    )
    tls_client_ca: Path | None = file(
        "AUTHZ_TLS_CLIENT_CA",
        why="Certificates, PEM, of those who may issue client certificates. Set: every client"
        " must show one.",
    )
    tls_clients: Mapping[str, values.TlsClient] = setting(
        types.MappingProxyType({}),
        variable="AUTHZ_TLS_CLIENTS",
        unit="JSON",
        range='a JSON object like {"spiffe://example/orders": {"name": "orders", "scopes":'
        ' ["check"]}}',
        shown="",
        why="Which client certificate may do what: its URI or DNS name, to the name it acts"
        " under, its scopes, and organization_ids if it may see only those. A certificate that is"
        " not listed needs a bearer.",
        parse=values.tls_clients,
        show=lambda clients: ", ".join(clients),
    )
    insecure: bool = switch(
        "AUTHZ_INSECURE",
        why="Allows listeners without TLS off loopback: credentials and answers can then be read"
        " and changed by whoever is on the way. For networks that encrypt by themselves.",
    )
    rate_per_second: int = number(
        "AUTHZ_RATE_PER_SECOND",
        2_000,
        unit="cost units per second, caller and worker",
        low=0,
        high=10_000_000,
        why="A check costs 1, a batch 1 for each item, Explain and writes 5, lists 1 for each 20"
        " rows asked for. More is refused with RATE_LIMITED, so that one caller cannot take all."
        " 0: no rate.",
    )

    def root_key_bytes(self) -> tuple[bytes, ...]:
        """Returns the root keys decoded, the one that signs first."""
        return tuple(base64.b64decode(key.reveal()) for key in self.root_keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """The only truth."""

    url: Secret = setting(
        Secret("sqlite:///var/authz.db"),
        variable="AUTHZ_DATABASE_URL",
        unit="URL",
        range="postgresql://user:password@host/name, or sqlite:///file; encode @ : / ? # of a"
        " password as %40 %3A %2F %3F %23",
        why="PostgreSQL for everything that matters; a SQLite file for one process on one machine."
        " May contain a password, so it is treated as a secret.",
        parse=values.database_url,
        is_secret=True,
        show=values.shown_database_url,
    )
    pool: int = number(
        "AUTHZ_DATABASE_POOL",
        None,
        unit="connections per worker",
        low=1,
        high=300,
        shown="AUTHZ_SERVER_THREADS + 2",
        why="Connections kept open and allowed at most. One for each thread, one for the poller"
        " that wakes Watch, one for health. PostgreSQL must allow workers times this.",
    )
    lock_seconds: float = decimal(
        "AUTHZ_DATABASE_LOCK_SECONDS",
        2,
        unit="seconds",
        low=0.1,
        high=60,
        why="Longest wait for a lock, which is the queue of writers of one organization. Longer is"
        " answered with ABORTED, for the caller to repeat.",
    )
    statement_seconds: float = decimal(
        "AUTHZ_DATABASE_STATEMENT_SECONDS",
        5,
        unit="seconds",
        low=0.1,
        high=300,
        why="Longest time for one statement; lowered to the call's remaining time.",
    )

    @property
    def is_sqlite(self) -> bool:
        """True for the embedded database."""
        return self.url.reveal().startswith("sqlite:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What is remembered, and for how long it may be believed."""

    redis_url: Secret | None = setting(
        None,
        variable="AUTHZ_REDIS_URL",
        unit="URL",
        range="redis://user:password@host:port/0, rediss:// with TLS, or unix:///path; encode"
        " @ : / ? # of a password as %40 %3A %2F %3F %23",
        shown="none",
        why="The Redis or Valkey that workers share what they remember in: one primary of its own,"
        " without replicas and persistence. Needs PostgreSQL. Without it every question is answered"
        " from the database; an embedded database remembers in its one process. Off loopback it"
        " needs TLS, or AUTHZ_INSECURE.",
        parse=values.redis_url,
        is_secret=True,
        show=values.shown_database_url,
    )
    redis_timeout_ms: int = number(
        "AUTHZ_REDIS_TIMEOUT_MS",
        50,
        unit="milliseconds",
        low=5,
        high=5_000,
        why="Longest wait for Redis; what takes longer is answered from the database.",
    )
    mark_timeout_ms: int = number(
        "AUTHZ_CACHE_MARK_TIMEOUT_MS",
        100,
        unit="milliseconds",
        low=5,
        high=5_000,
        why="Longest wait of a write for Redis. Above it the cache is left, which costs this one"
        " write up to AUTHZ_CACHE_LEASE_SECONDS.",
    )
    lease_seconds: float = decimal(
        "AUTHZ_CACHE_LEASE_SECONDS",
        2,
        unit="seconds",
        low=0.5,
        high=30,
        why="How long a worker may go on answering from the cache without a word from the"
        " database, and so how long a write waits when Redis is lost while a worker is dead. The"
        " same in all workers of a deployment.",
    )
    ttl_seconds: int = number(
        "AUTHZ_CACHE_TTL_SECONDS",
        300,
        unit="seconds",
        low=1,
        high=86_400,
        why="How long an entry stays in Redis, give or take a fifth. Only memory depends on it:"
        " what changed is never used, however long it is there.",
    )
    entry_bytes: int = number(
        "AUTHZ_CACHE_ENTRY_BYTES",
        262_144,
        unit="bytes",
        low=1_024,
        high=8_388_608,
        why="Largest entry in Redis; larger ones stay in the memory of the worker that made them.",
    )
    verify_ratio: float = decimal(
        "AUTHZ_CACHE_VERIFY_RATIO",
        0.001,
        unit="share",
        low=0,
        high=1,
        why="Share of the answers from the cache of which a fact is compared with the database. A"
        " difference is an alarm (authz_cache_inconsistency_total), and everything cached is left.",
    )
    bypass: bool = switch(
        "AUTHZ_CACHE_BYPASS",
        why="Whether every question is answered from the database. For tests and diagnosis: the"
        " answers are the same, only slower.",
    )
    l1_bytes: int = number(
        "AUTHZ_CACHE_L1_BYTES",
        268_435_456,
        unit="bytes per worker",
        low=1_048_576,
        high=68_719_476_736,
        why="What a worker may remember in its own memory, by estimate. Above it the least"
        " recently used goes.",
    )
    set_members: int = number(
        "AUTHZ_CACHE_SET_MEMBERS",
        20_000,
        unit="tags per organization",
        low=100,
        high=1_000_000,
        why="How many changes an organization's control set remembers. Above it the older half"
        " goes, and whoever last looked before that starts anew.",
    )


def _limit(name: str, default: int, high: int, unit: str, why: str) -> Any:
    return number(f"AUTHZ_LIMIT_{name}", default, unit=unit, low=1, high=high, why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes above which a request is refused; product.md section 6."""

    message_bytes_max: int = number(
        "AUTHZ_MESSAGE_BYTES_MAX",
        4 * 1024 * 1024,
        unit="bytes",
        low=64 * 1024,
        high=64 * 1024 * 1024,
        why="Largest message in each direction. Every call under way may hold two of them.",
    )
    batch_items_max: int = number(
        "AUTHZ_BATCH_ITEMS_MAX",
        10_000,
        unit="items",
        low=1,
        high=100_000,
        why="Questions of one BatchCheck; its thread is busy until all are answered.",
    )
    total_size_max: int = _limit(
        "TOTAL_SIZE",
        10_000,
        1_000_000,
        "rows",
        "Up to here total_size is counted exactly: counting reads every row.",
    )
    resource_types_max: int = _limit(
        "RESOURCE_TYPES",
        200,
        10_000,
        "resource types",
        "All are held in memory, and a type's place among them is walked on every write.",
    )
    permissions_max: int = _limit(
        "PERMISSIONS", 5_000, 100_000, "permissions", "All are held in memory."
    )
    environment_roles_max: int = _limit(
        "ENVIRONMENT_ROLES",
        500,
        10_000,
        "roles",
        "They are offered in every organization, hence listed with its own.",
    )
    organization_roles_max: int = _limit(
        "ORGANIZATION_ROLES",
        200,
        10_000,
        "roles per organization",
        "More is a sign that roles stand for single resources; assignments do that better.",
    )
    resources_max: int = _limit(
        "RESOURCES",
        100_000,
        10_000_000,
        "resources per type and organization",
        "A type that grows without end is rather data of the application than something to grant.",
    )
    role_assignments_max: int = _limit(
        "ROLE_ASSIGNMENTS",
        10_000,
        1_000_000,
        "role assignments per subject",
        "All grants of a subject are read for a check of it.",
    )
    membership_groups_max: int = _limit(
        "MEMBERSHIP_GROUPS",
        1_000,
        10_000,
        "groups per membership",
        "Groups that one membership is directly in; all are walked for a check of it.",
    )
    groups_max: int = _limit(
        "GROUPS", 5_000, 100_000, "groups per organization", "Bounds what a walk can reach."
    )
    group_members_max: int = _limit(
        "GROUP_MEMBERS",
        10_000,
        1_000_000,
        "members per group",
        "Bounds what one change of a group can reach, and a list of its members.",
    )
    group_groups_max: int = _limit(
        "GROUP_GROUPS",
        1_000,
        10_000,
        "groups per group",
        "Groups directly in one group; all are walked when it changes.",
    )
    service_credentials_max: int = _limit(
        "SERVICE_CREDENTIALS",
        1_000,
        10_000,
        "service credentials",
        "They stand for programs, not for people; all may be remembered by every worker.",
    )
    event_days: int = _limit(
        "EVENT_DAYS",
        90,
        3_650,
        "days",
        "How far back Watch and ListEvents reach. Whoever was away longer reads all anew.",
    )
    directory_file_bytes_max: int = _limit(
        "DIRECTORY_FILE_BYTES",
        64 * 1024 * 1024,
        1024 * 1024 * 1024,
        "bytes",
        "A directory file is held in memory and applied in one transaction.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What the commands that call a running service use; the service itself ignores it."""

    address: values.Address = listener(
        "AUTHZ_ADDRESS",
        values.Address("127.0.0.1", 50051),
        why="Where the service is: `host:port` or `unix:/path`.",
    )
    decisions_address: values.Address | None = listener(
        "AUTHZ_DECISIONS_ADDRESS",
        None,
        why="Where the service answers decisions (its AUTHZ_DECISIONS_LISTEN), if they are to be"
        " asked there.",
    )
    credential: Secret | None = setting(
        None,
        variable="AUTHZ_CREDENTIAL",
        unit="service credential",
        range="a service credential (azc_…)",
        why="What the command presents. Without it AUTHZ_FIRST_CREDENTIAL is used, if that is set.",
        parse=values.first_credential,
        is_secret=True,
    )
    ca: Path | None = file(
        "AUTHZ_CA",
        why="Certificates, PEM, of those whose server certificates are trusted. Without it the"
        " connection is plaintext, for a service on this machine.",
    )

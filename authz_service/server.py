"""Builds one worker from a configuration, and owns its start and stop."""

import contextlib
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import NoReturn

from authz_service.api.authorization import AuthorizationServicer
from authz_service.api.configuration import ConfigurationServicer
from authz_service.api.consistency import Freshness
from authz_service.api.directory_files import DirectoryFileServicer
from authz_service.api.events import EventServicer
from authz_service.api.groups import GroupServicer
from authz_service.api.listing import Listings
from authz_service.api.memberships import MembershipServicer
from authz_service.api.mutation import Mutations
from authz_service.api.organizations import OrganizationServicer
from authz_service.api.permissions import PermissionServicer
from authz_service.api.resource_types import ResourceTypeServicer
from authz_service.api.resources import ResourceServicer
from authz_service.api.role_assignments import RoleAssignmentServicer, record_ends
from authz_service.api.roles import RoleServicer
from authz_service.api.service_credentials import CredentialUses
from authz_service.api.users import UserServicer
from authz_service.api.watch import WatchServicer
from authz_service.base.actor import SYSTEM
from authz_service.base.clock import Clock, to_datetime, utc_now
from authz_service.base.consistency import ConsistencyTokens
from authz_service.base.cursors import Cursors
from authz_service.base.errors import Refusal
from authz_service.base.pages import Pages
from authz_service.base.sealed import Sealer, derive
from authz_service.config import Config
from authz_service.domain import service_credentials
from authz_service.domain.lifecycles import seeds
from authz_service.engine.facts import FactSource
from authz_service.engine.limits import Limits
from authz_service.pb.authz.v1 import (
    authorization_pb2,
    configuration_pb2,
    directory_files_pb2,
    events_pb2,
    groups_pb2,
    memberships_pb2,
    organizations_pb2,
    permissions_pb2,
    resource_types_pb2,
    resources_pb2,
    role_assignments_pb2,
    roles_pb2,
    users_pb2,
    watch_pb2,
)
from authz_service.rpc.access_log import AccessLog
from authz_service.rpc.admission import Admission
from authz_service.rpc.auth import Authenticator, Client, Credential
from authz_service.rpc.fronts import h2
from authz_service.rpc.fronts.grpcio import Front, Settings
from authz_service.rpc.fronts.h2.front import EXIT_STALLED
from authz_service.rpc.fronts.h2.listener import new_loop
from authz_service.rpc.fronts.listeners import Listener, Tls, Unlistenable
from authz_service.rpc.hall import Hall
from authz_service.rpc.rate import Rate
from authz_service.storage import schema
from authz_service.storage.cache import alone
from authz_service.storage.cache.control import Control
from authz_service.storage.cache.generation import Generation
from authz_service.storage.cache.marking import Marking, MemoryMarking
from authz_service.storage.cache.memory_control import MemoryControl
from authz_service.storage.cache.sharing import Sharing
from authz_service.storage.cache.views import Views
from authz_service.storage.cached_facts import CachedFacts
from authz_service.storage.database import Database
from authz_service.storage.facts import SqlFacts
from authz_service.storage.feed import Feed
from authz_service.telemetry.exposition import Page, Teller
from authz_service.telemetry.logs import Lines, logger
from authz_service.telemetry.metrics import Metrics

__all__ = ["CREDENTIAL_PURPOSE", "Unlistenable", "Worker", "prepare"]

# Secrets of service credentials are hashed under keys of this purpose.
CREDENTIAL_PURPOSE = "service-credential"
_PROBE_SECONDS = 1.0
# last_used_at is exact to a minute.
_CREDENTIAL_USES_SECONDS = 20.0
# The event of an end follows it within a minute (product.md RA2).
_ASSIGNMENT_ENDS_SECONDS = 5.0


def prepare(url: str, revision: str = "head") -> None:
    """Brings a database to this program's schema; an empty one also gets the first rows (RO1)."""
    schema.upgrade(url, revision)
    if revision != "head":
        return
    database = Database(url, pool_size=1)
    try:
        database.write(seeds.seed, actor=SYSTEM)
    finally:
        database.close()


@contextlib.contextmanager
def cache_of(config: Config) -> Iterator[Generation]:
    """Gives a deployment's cache to a command, which answers nothing from it."""
    url = config.cache.redis_url
    database = Database(config.database.url.reveal(), pool_size=2)
    generation = Generation(
        database,
        url.reveal() if url else None,
        Metrics(),
        lease_seconds=config.cache.lease_seconds,
        timeout_seconds=1.0,
        mark_seconds=1.0,
        members_max=config.cache.set_members,
    )
    try:
        yield generation
    finally:
        generation.stop()
        database.close()


class Worker:
    """One serving process: a hall with all services, and the fronts before it.

    Args:
        config: Everything it may know of its surroundings.
        metrics_socket: Where a supervisor asks for the metrics; without one the worker shows them
            at ``AUTHZ_METRICS_LISTEN`` itself.
        clock: The wall clock.

    Raises:
        SchemaError: The database is not one this program may use.
        Unlistenable: An address cannot be listened on.
        AlreadyServed: Another process serves the embedded database.
        LeaseDiffers: Other processes use another ``AUTHZ_CACHE_LEASE_SECONDS``.
    """

    def __init__(
        self, config: Config, *, metrics_socket: str | None = None, clock: Clock = utc_now
    ) -> None:
        self._config = config
        self._exits = contextlib.ExitStack()
        self._stopping = threading.Event()
        with contextlib.ExitStack() as building:
            self._build(config, metrics_socket, clock, building)
            self._exits = building.pop_all()

    def _build(
        self,
        config: Config,
        metrics_socket: str | None,
        clock: Clock,
        exits: contextlib.ExitStack,
    ) -> None:
        schema.check(config.database.url.reveal())
        self.metrics = Metrics()
        self.metrics.build_info.set(
            importlib.metadata.version("authz_service"),
            schema.head(),
            str(schema.COMPAT),
            value=1.0,
        )
        lines = Lines(on_dropped=lambda count: self.metrics.log_lines_dropped.add(amount=count))
        exits.callback(lines.close)
        self.log = logger(lines)
        if metrics_socket is not None:
            exits.callback(Teller(metrics_socket, self.metrics.render).close)
        else:
            listen = config.server.metrics_listen
            exits.callback(Page(listen.host, listen.port, self.metrics.render).close)
        self._loop = None
        if config.server.decisions_listen is not None:
            self._loop = new_loop()
            exits.callback(self._loop.close)
        marking, current, self._fence = self._cache(config, exits)
        self.database = self._database(config, clock, marking, metrics=self.metrics)
        exits.callback(self.database.close)
        self._current = current
        self._facts = self._fact_source(config, current, exits)
        self._feed = Feed(self.database)
        self.credential_uses = CredentialUses(self.database)
        exits.callback(self._repeated(self.credential_uses.write))
        self.hall = self._hall(config, lines, clock)
        self._front = Front(
            self.hall,
            [Listener(str(config.server.listen), _tls(config), config.security.insecure)],
            health_listener=(
                Listener(str(config.server.health_listen), None, config.security.insecure)
                if config.server.health_listen
                else None
            ),
            settings=Settings(
                threads=config.server.threads,
                watch_streams=config.server.watch_streams_max,
                queue=config.server.queue_max,
                reuse_port=config.server.workers > 1,
                reflection=config.server.reflection,
            ),
        )
        exits.callback(self._front.stop, 0)
        self._decisions = self._decision_front(config, lines, exits)

    def _decision_front(
        self, config: Config, lines: Lines, exits: contextlib.ExitStack
    ) -> h2.Front | None:
        address = config.server.decisions_listen
        if address is None:
            return None
        front = h2.Front(
            self.hall,
            [Listener(str(address), _tls(config), config.security.insecure)],
            settings=h2.Settings(
                threads=config.server.threads,
                queue=config.server.queue_max,
                reuse_port=config.server.workers > 1,
            ),
            loop=self._loop,
            ended=self.metrics.connections_ended.add,
            stalled=lambda: self._stalled(lines),
        )
        exits.callback(front.stop, 0)
        return front

    def _stalled(self, lines: Lines) -> NoReturn:
        """Ends the process, whose event loop stands still: the supervisor starts another one."""
        self.log.error("decisions_stalled")
        lines.close()
        os._exit(EXIT_STALLED)

    @staticmethod
    def _database(
        config: Config,
        clock: Clock,
        marking: Marking | None,
        *,
        pool_size: int | None = None,
        metrics: Metrics | None = None,
    ) -> Database:
        return Database(
            config.database.url.reveal(),
            pool_size=pool_size or config.database.pool or config.server.threads + 2,
            lock_seconds=config.database.lock_seconds,
            statement_seconds=config.database.statement_seconds,
            clock=clock,
            limits=_limits(config),
            marking=marking,
            metrics=metrics,
        )

    def _cache(
        self, config: Config, exits: contextlib.ExitStack
    ) -> tuple[Marking, Callable[[], Control | None] | None, Callable[[], None]]:
        """Returns what marks writes, what says which cache may be used, and what fences it."""
        cache = config.cache
        if config.database.is_sqlite:
            held = alone.hold(config.database.url.reveal())
            if held is not None:
                exits.callback(held.close)
            control = MemoryControl(cache.set_members)
            return MemoryMarking(control), None if cache.bypass else lambda: control, control.fence
        redis_url = None if cache.redis_url is None or cache.bypass else cache.redis_url.reveal()
        # Renewals and settles of their own, whatever the calls do to the pool.
        database = self._database(config, utc_now, None, pool_size=3)
        exits.callback(database.close)
        generation = Generation(
            database,
            redis_url,
            self.metrics,
            lease_seconds=cache.lease_seconds,
            timeout_seconds=cache.redis_timeout_ms / 1_000,
            mark_seconds=cache.mark_timeout_ms / 1_000,
            members_max=cache.set_members,
            log=self.log.warning,
        )
        if redis_url is None:
            # Others may have one: writes must still be marked, and they leave what they cannot.
            return generation, None, generation.leave
        generation.start()
        exits.callback(generation.stop)
        for target, name in ((generation.run, "cache-lease"), (generation.share, "cache-share")):
            threading.Thread(target=target, name=name, daemon=True).start()
        return generation, generation.current, generation.leave

    def _fact_source(
        self,
        config: Config,
        current: Callable[[], Control | None] | None,
        exits: contextlib.ExitStack,
    ) -> FactSource:
        if current is None:
            return SqlFacts(self.database)
        sharing = Sharing(
            derive(config.security.root_key_bytes()[0], "cache"),
            config.cache.ttl_seconds,
            config.cache.entry_bytes,
            self.metrics,
        )
        views = Views(config.cache.l1_bytes, sharing, self.metrics)
        self.metrics.cache_entries.read_from(lambda: {(): float(views.entries)})
        self.metrics.cache_bytes.read_from(lambda: {(): float(views.bytes_held)})
        facts = CachedFacts(
            self.database,
            current,
            views,
            self.metrics,
            snapshots_max=max(2, config.server.threads // 2),
            verify_ratio=config.cache.verify_ratio,
            alarm=self._inconsistent,
            poller=self._loop,
        )
        exits.callback(facts.close)
        return facts

    def _inconsistent(self, kind: str) -> None:
        self.log.error("cache_inconsistent", fact=kind)
        self.fence()

    def _hall(self, config: Config, lines: Lines, clock: Clock) -> Hall:
        root_keys = config.security.root_key_bytes()
        credential_keys = [derive(key, CREDENTIAL_PURPOSE) for key in root_keys]
        tokens = ConsistencyTokens(Sealer(root_keys, "consistency"))
        mutations = Mutations(self.database, tokens)
        listings = Listings(Pages(Sealer(root_keys, "page")))
        hall = Hall(
            authenticator=Authenticator(
                find_credential=self._find_credential,
                keys=credential_keys,
                used=self.credential_uses.note,
                first_credential=config.security.first_credential,
                clients={
                    name: Client(client.name, client.scopes, client.organization_ids)
                    for name, client in config.security.tls_clients.items()
                },
                now=clock,
            ),
            admission=Admission(
                # Each front has threads of its own.
                threads=config.server.threads * (2 if config.server.decisions_listen else 1),
                watch_streams=config.server.watch_streams_max,
                queue_seconds_max=config.server.queue_seconds_max,
                metrics=self.metrics,
            ),
            rate=Rate(per_second=config.security.rate_per_second, metrics=self.metrics),
            access_log=AccessLog(
                lines.write, self.metrics, allowed_every=_every(config.server.log_allowed_ratio)
            ),
            logger=self.log,
            metrics=self.metrics,
            call_seconds_max=config.server.call_seconds_max,
            message_bytes_max=config.limits.message_bytes_max,
        )
        for module, servicer in self._servicers(config, tokens, mutations, listings):
            (service,) = module.DESCRIPTOR.services_by_name.values()
            hall.register(service, servicer)
        return hall

    def _servicers(
        self,
        config: Config,
        tokens: ConsistencyTokens,
        mutations: Mutations,
        listings: Listings,
    ) -> list[tuple[ModuleType, object]]:
        """One line a service: its generated module and its servicer."""
        database = self.database
        cursors = Cursors(Sealer(config.security.root_key_bytes(), "cursor"))
        message_bytes_max = config.limits.message_bytes_max
        decisions = AuthorizationServicer(
            self._facts,
            database,
            Freshness(tokens, ahead=self.metrics.cache_token_ahead.add),
            listings,
            self.metrics,
            config.limits.batch_items_max,
        )
        files = DirectoryFileServicer(
            database, tokens, file_bytes_max=config.limits.directory_file_bytes_max
        )
        return [
            (authorization_pb2, decisions),
            (directory_files_pb2, files),
            (
                events_pb2,
                EventServicer(
                    database, listings, self._feed, cursors, message_bytes_max=message_bytes_max
                ),
            ),
            (
                watch_pb2,
                WatchServicer(
                    database,
                    tokens,
                    self._feed,
                    cursors,
                    self.metrics,
                    message_bytes_max=message_bytes_max,
                ),
            ),
            (
                configuration_pb2,
                ConfigurationServicer(
                    database,
                    mutations,
                    listings,
                    derive(config.security.root_key_bytes()[0], CREDENTIAL_PURPOSE),
                ),
            ),
            (permissions_pb2, PermissionServicer(database, mutations, listings)),
            (resource_types_pb2, ResourceTypeServicer(database, mutations, listings)),
            (roles_pb2, RoleServicer(database, mutations, listings)),
            (organizations_pb2, OrganizationServicer(database, mutations, listings)),
            (memberships_pb2, MembershipServicer(database, mutations, listings)),
            (users_pb2, UserServicer(database, mutations, listings)),
            (resources_pb2, ResourceServicer(database, mutations, listings)),
            (groups_pb2, GroupServicer(database, mutations, listings)),
            (role_assignments_pb2, RoleAssignmentServicer(database, mutations, listings)),
        ]

    @property
    def addresses(self) -> list[str]:
        """Where the whole API is, with the ports that were chosen for port 0."""
        return self._front.addresses

    @property
    def decision_addresses(self) -> list[str]:
        """Where decisions alone are answered."""
        return self._decisions.addresses if self._decisions is not None else []

    def start(self) -> None:
        """Starts to serve, and says so to health checks once the database answers."""
        # Ended after the front: a background step that the database holds up must not delay that
        # health says so.
        background = self._exits.enter_context(contextlib.ExitStack())
        self._front.start()
        self._exits.callback(self._front.stop, self._config.server.drain_seconds)
        if self._decisions is not None:
            self._decisions.start()
            self._exits.callback(self._decisions.stop, self._config.server.drain_seconds)
            # Runs first: both drain at the same time.
            self._exits.callback(self._front.drain, self._config.server.drain_seconds)
        self._probe()
        for step, seconds, name in (
            (self._probe, _PROBE_SECONDS, "health-probe"),
            # A turn waits by itself.
            (self._repeated(self._feed.turn), 0.0, "feed"),
            (
                self._repeated(self.credential_uses.write),
                _CREDENTIAL_USES_SECONDS,
                "credential-uses",
            ),
            (
                self._repeated(partial(record_ends, self.database)),
                _ASSIGNMENT_ENDS_SECONDS,
                "assignment-ends",
            ),
        ):
            background.callback(self._background(step, seconds, name).join, 5.0)

    def stop(self) -> None:
        """Drains and closes everything, in the order of architecture.md section 9."""
        self._stopping.set()
        self._exits.close()

    @property
    def has_cache(self) -> bool:
        """True if facts may be cached in this deployment."""
        return self._current is not None

    @property
    def is_caching(self) -> bool:
        """True while cached facts may be used."""
        return self._current is not None and self._current() is not None

    def fence(self) -> None:
        """Forgets all cached facts: after rows were changed in any other way than through calls."""
        self._fence()

    def _background(self, step: Callable[[], None], seconds: float, name: str) -> threading.Thread:
        """Starts to repeat a step, with a pause before each, until the worker stops."""

        def run() -> None:
            while not self._stopping.wait(seconds):
                step()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _repeated(self, step: Callable[[], object]) -> Callable[[], None]:
        """Returns a background step whose failures are logged; the next time may succeed."""

        def attempt() -> None:
            try:
                step()
            except Refusal as refusal:
                self.log.warning("background_step_refused", reason=refusal.reason)
            except Exception:
                # A bug in one round must not end all later ones without a word.
                self.log.exception("background_step_failed")

        return attempt

    def _probe(self) -> None:
        try:
            with self.database.snapshot(SYSTEM) as snapshot:
                snapshot.connection.exec_driver_sql("SELECT 1")
        except Refusal as refusal:
            self.log.warning("database_unavailable", reason=refusal.reason)
            self._set_serving(False)
        else:
            self._set_serving(True)

    def _set_serving(self, serving: bool) -> None:
        self._front.set_serving(serving)
        if self._decisions is not None:
            self._decisions.set_serving(serving)

    def _find_credential(self, credential_id: str) -> Credential | None:
        known = service_credentials.find(self.database, credential_id)
        if known is None:
            return None
        return Credential(
            id=known.id,
            hashes=tuple(
                (hashed, None if until is None else to_datetime(until))
                for hashed, until in known.hashes
            ),
            scopes=known.scopes,
            organization_ids=known.organization_ids,
            expires_at=None if known.expires_at is None else to_datetime(known.expires_at),
            is_revoked=known.is_revoked,
            revision=known.revision,
        )


def _limits(config: Config) -> Limits:
    return Limits(**{name: getattr(config.limits, name) for name in Limits.__dataclass_fields__})


def _every(ratio: float) -> int:
    """Returns of how many allowed checks one is logged, 0 for none."""
    return round(1 / ratio) if ratio else 0


def _tls(config: Config) -> Tls | None:
    security = config.security
    if security.tls_certificate is None or security.tls_key is None:
        return None
    return Tls(
        str(security.tls_certificate),
        str(security.tls_key),
        str(security.tls_client_ca or ""),
    )

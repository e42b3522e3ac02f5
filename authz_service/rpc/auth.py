"""Who is calling: from a bearer or a client certificate to an Actor, and what that Actor may call.

Knows no storage: a function given to it finds a credential by id.
"""

import hashlib
import hmac
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from authz_service.base import ids, secrets
from authz_service.base.actor import Actor
from authz_service.base.clock import Clock, utc_now
from authz_service.base.errors import PermissionDenied, Unauthenticated
from authz_service.base.secrets import Secret
from authz_service.rpc.call import Call, MustWait
from authz_service.rpc.metadata import CallMetadata
from authz_service.rpc.methods import DECISION, OPEN, READ, Rule

SERVICE_CREDENTIAL = "SERVICE_CREDENTIAL"
CERTIFICATE = "CERTIFICATE"
FIRST_CREDENTIAL_ID = "first"

# Any valid credential will do, whatever its scopes.
ANY = "any"

# Services whose protos are not ours declare no scope; this is their rule (product.md C11, C12).
RULES_OF_OTHERS: Mapping[str, Rule] = {
    "grpc.health.v1.Health": Rule(OPEN, READ),
    "grpc.reflection.v1.ServerReflection": Rule(ANY, READ),
    "grpc.reflection.v1alpha.ServerReflection": Rule(ANY, READ),
    "envoy.service.auth.v3.Authorization": Rule("check", DECISION),
}

# Remembered bearers per process. A deployment has at most 1,000 service credentials, each with at
# most two secrets; what is beyond is looked up again.
REMEMBERED_MAX = 2_048


@dataclass(frozen=True, slots=True)
class Credential:
    """A service credential as authentication needs it.

    Attributes:
        id: ``credential_<ULID>``.
        hashes: (32 bytes of hash, instant at which that secret ends or None): two during the
            overlap of a rotation.
        scopes: The scopes of product.md C12.
        organization_ids: Empty = unrestricted.
        expires_at: Instant at which the credential ends, None for never.
        is_revoked: True once revoked; counts as unknown.
        revision: Rises with every change of the row; confirms a remembered credential.
    """

    id: str
    hashes: tuple[tuple[bytes, datetime | None], ...]
    scopes: frozenset[str]
    organization_ids: frozenset[str] = frozenset()
    expires_at: datetime | None = None
    is_revoked: bool = False
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Client:
    """A caller by certificate, from the deployment's configuration.

    Attributes:
        name: The name under which it acts, as events show it.
    """

    name: str
    scopes: frozenset[str]
    organization_ids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Caller:
    """The outcome of authentication before it is tied to one call."""

    kind: str
    id: str
    scopes: frozenset[str]
    organization_ids: frozenset[str]
    ends_at: datetime | None = None
    revision: int = 0


NOBODY = Caller("", "", frozenset(), frozenset())


class Authenticator:
    """Finds the caller of a call and checks the scope.

    Args:
        find_credential: Returns the present state of a service credential by id, None if there is
            none. May raise a Refusal (Unavailable), which ends the call.
        keys: The derived keys of secret hashes; the first made new ones, all are recognised.
        first_credential: A secret from the configuration with scope ``admin``, valid while set.
        clients: Certificate name (DNS or URI) to client.
        confirming: Classes of work whose servicers confirm ``provisional_credential`` in their own
            snapshot, so that a remembered credential may admit them without a look-up. A class
            must be left out unless every servicer of it does so.
        used: Told the id of a service credential at each call that it is accepted for; must be
            quick, for it stands on the path of every call.
        now: The wall clock; the ends of credentials are wall times.
    """

    def __init__(
        self,
        *,
        find_credential: Callable[[str], Credential | None],
        keys: Sequence[bytes],
        first_credential: Secret | None = None,
        clients: Mapping[str, Client] | None = None,
        confirming: frozenset[str] = frozenset({DECISION}),
        remembered_max: int = REMEMBERED_MAX,
        used: Callable[[str], None] = lambda credential_id: None,
        now: Clock = utc_now,
    ) -> None:
        self._find_credential = find_credential
        self._keys = tuple(keys)
        self._clients = dict(clients or {})
        self._confirming = confirming
        self._remembered: dict[bytes, Caller] = {}
        self._remembered_max = remembered_max
        self._lock = threading.Lock()
        self._used = used
        self._now = now
        # Compared by digest: equal lengths, so that the time tells nothing about the secret. Empty
        # without one, and then equal to no digest.
        self._first_digest = b""
        if first_credential:
            self._first_digest = hashlib.sha256(first_credential.reveal().encode()).digest()
        self._first = Caller(
            SERVICE_CREDENTIAL,
            FIRST_CREDENTIAL_ID,
            frozenset({"admin"}),
            frozenset(),
        )

    def authenticate(
        self,
        call: Call,
        metadata: CallMetadata,
        *,
        scope: str,
        work: str,
        from_source: bool = False,
        waits: bool = True,
    ) -> tuple[Caller, bool]:
        """Returns the caller, and whether the servicer must still confirm it.

        Args:
            scope: What the method needs; OPEN for nothing, ANY for any valid credential.
            work: The method's class of work.
            from_source: Forget what is remembered of this bearer and read it again.
            waits: False to be told by MustWait that the caller must be read first.

        Raises:
            MustWait: See ``waits``.
            Unauthenticated: CREDENTIAL_MISSING, CREDENTIAL_INVALID or CREDENTIAL_EXPIRED.
            PermissionDenied: SCOPE_MISSING.
        """
        if scope == OPEN:
            return NOBODY, False
        # A bearer decides also if a certificate is present (product.md C11).
        if metadata.bearer:
            caller, provisional = self._by_bearer(metadata.bearer, work, from_source, waits)
        else:
            caller, provisional = self._by_certificate(call.certificate_names), False
        scopes = caller.scopes
        if scope not in scopes and scope != ANY and "admin" not in scopes:
            raise PermissionDenied(
                "SCOPE_MISSING",
                f"the credential lacks the scope {scope}",
                metadata={"scope": scope},
            )
        if caller.kind == SERVICE_CREDENTIAL and caller is not self._first:
            self._used(caller.id)
        return caller, provisional

    def _by_bearer(
        self, bearer: str, work: str, from_source: bool, waits: bool
    ) -> tuple[Caller, bool]:
        digest = hashlib.sha256(bearer.encode()).digest()
        if hmac.compare_digest(digest, self._first_digest):
            return self._first, False
        if work in self._confirming and not from_source:
            remembered = self._remembered.get(digest)
            if remembered is not None:
                if remembered.ends_at is not None and remembered.ends_at <= self._now():
                    raise _expired()
                return remembered, True
        if not waits:
            raise MustWait
        if from_source:
            with self._lock:
                self._remembered.pop(digest, None)
        caller = self._look_up(bearer)
        if work in self._confirming:
            with self._lock:
                if len(self._remembered) >= self._remembered_max:
                    # The oldest goes; a dict keeps the order of insertion.
                    del self._remembered[next(iter(self._remembered))]
                self._remembered[digest] = caller
        return caller, False

    def _look_up(self, bearer: str) -> Caller:
        id = secrets.id_of(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, bearer)
        if id is None:
            raise _invalid()
        credential = self._find_credential(id)
        now = self._now()
        # An unknown id costs the same hashes as a known one, so that time tells nothing.
        hashes = credential.hashes if credential is not None else ((b"", None),)
        ends_at: datetime | None = None
        is_right = False
        for stored, until in hashes:
            if secrets.matches(self._keys, bearer, stored):
                is_right = True
                ends_at = until
        if credential is None or not is_right or credential.is_revoked:
            raise _invalid()
        if credential.expires_at is not None:
            ends_at = (
                credential.expires_at if ends_at is None else min(ends_at, credential.expires_at)
            )
        if ends_at is not None and ends_at <= now:
            raise _expired()
        return Caller(
            SERVICE_CREDENTIAL,
            credential.id,
            credential.scopes,
            credential.organization_ids,
            ends_at,
            credential.revision,
        )

    def _by_certificate(self, names: Sequence[str]) -> Caller:
        for name in names:
            client = self._clients.get(name)
            if client is not None:
                return Caller(CERTIFICATE, client.name, client.scopes, client.organization_ids)
        raise Unauthenticated("CREDENTIAL_MISSING", "no credential came with the call")


def actor_of(caller: Caller, metadata: CallMetadata, request_id: str) -> Actor:
    """Returns the caller as the actor of one call."""
    return Actor(
        caller.kind,
        caller.id,
        caller.scopes,
        caller.organization_ids,
        metadata.on_behalf_of_user_id,
        request_id,
    )


def _invalid() -> Unauthenticated:
    return Unauthenticated("CREDENTIAL_INVALID", "the credential is unknown, revoked or damaged")


def _expired() -> Unauthenticated:
    return Unauthenticated("CREDENTIAL_EXPIRED", "the credential has expired")

"""Shapes of the values that are more than a number: read from text, shown without secrets."""

import base64
import binascii
import ipaddress
import json
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from authz_service.base import ids, secrets
from authz_service.base.secrets import Secret

# Shown wherever a root key is explained, hence known to everybody, hence refused.
EXAMPLE_ROOT_KEY = "dGhpcy1leGFtcGxlLWlzLXB1YmxpYy1kby1ub3QtdXNlLWl0IQ=="
ROOT_KEY_BYTES_MIN = 32
NAME_CHARACTERS_MAX = 256

_SHOWN_CHARACTERS = 60
_SCOPE = re.compile(r"[a-z]+(:[a-z_]+)?")
# Parts of a database URL's query that may be shown: none of them can be a secret.
_SHOWN_IN_QUERY = frozenset({"host", "port", "sslmode"})


class Bad(Exception):
    """What is wrong with a value, in words that follow the setting's name; never a secret."""


def shown_text(text: str) -> str:
    """Returns text of the environment in quotes, escaped and cut."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener listens.

    Attributes:
        host: A name or an IP address without brackets; empty for a unix socket.
        port: 0 = any free one.
        path: Of a unix socket, else empty.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads ``host:port``, ``[ipv6]:port`` or ``unix:/path``.

        Raises:
            ValueError: It is none of these.
        """
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.startswith("/"):
                raise ValueError("a unix socket needs an absolute path")
            return cls(path=path)
        host, _, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not bare:
            raise ValueError("it has no host")
        if (":" in bare) != (host == f"[{bare}]"):
            raise ValueError("only an IPv6 address stands in brackets, and always does")
        if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65_535:
            raise ValueError("it has no port from 0 to 65535")
        return cls(host=bare, port=int(port))

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach it; a name that we do not know counts as no."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_fixed(self) -> bool:
        """True if several processes can listen there, sharing the connections."""
        return self.port > 0

    def __str__(self) -> str:
        """Returns the form that ``parse`` reads, which is gRPC's too."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsClient:
    """What the holder of a client certificate may do.

    Attributes:
        name: The name under which it acts, as events show it.
        scopes: The scopes of product.md C12.
        organization_ids: Empty = unrestricted.
    """

    name: str
    scopes: frozenset[str]
    organization_ids: frozenset[str] = frozenset()


def root_keys(text: str) -> tuple[Secret, ...]:
    """Reads root keys in base 64, separated by commas or white space, as they were written.

    Raises:
        Bad: One of them is damaged, too short, or the documented example.
    """
    keys = []
    for position, key in enumerate(re.split(r"[,\s]+", text.strip()), 1):
        try:
            raw = base64.b64decode(key, validate=True)
        except (binascii.Error, ValueError):
            raise Bad(f"key {position} is not base 64") from None
        if len(raw) < ROOT_KEY_BYTES_MIN:
            raise Bad(f"key {position} has only {len(raw)} bytes")
        if raw == base64.b64decode(EXAMPLE_ROOT_KEY):
            raise Bad(f"key {position} is the documented example, which everybody knows")
        keys.append(Secret(key))
    return tuple(keys)


def first_credential(text: str) -> Secret:
    """Reads a service credential.

    Raises:
        Bad: It has another form.
    """
    if secrets.id_of(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, text) is None:
        raise Bad("it does not have the form of a service credential")
    return Secret(text)


def database_url(text: str) -> Secret:
    """Reads a database URL, and names the driver in it.

    Raises:
        Bad: Another database, no SQLite file, or a URL whose parts cannot be told apart.
    """
    scheme, _, rest = text.partition("://")
    if scheme == "sqlite":
        # Neither in memory, where each connection would have a database of its own, nor with
        # options, which could say the same.
        if not rest.startswith("/") or rest.startswith("/:") or rest == "/" or "?" in rest:
            raise Bad("it names no SQLite file")
        return Secret(text)
    if scheme not in ("postgresql", "postgresql+psycopg"):
        raise Bad("it is not the URL of a database that we speak")
    # A raw @ : / ? or # in a password would silently name another server or another database.
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Bad("its parts cannot be told apart") from None
    if rest.count("@") > 1 or ("@" in rest) != ("@" in parts.netloc) or parts.fragment:
        raise Bad("its parts cannot be told apart")
    if port == 0 or len(parts.path) < 2:
        raise Bad("it does not name a database")
    return Secret(f"postgresql+psycopg://{rest}")


def shown_database_url(url: Secret) -> str:
    """Returns the URL without what could be secret: all before the last @, most of the query."""
    scheme, _, rest = url.reveal().partition("://")
    credentials, at, place = rest.rpartition("@")
    place, question, query = place.partition("?")
    shown = [
        f"{name}={value if name in _SHOWN_IN_QUERY else '***'}" for name, value in parse_qsl(query)
    ]
    return f"{scheme}://{'***' if credentials else ''}{at}{place}{question}{'&'.join(shown)}"


def redis_url(text: str) -> Secret:
    """Reads the URL of a Redis or Valkey.

    Raises:
        Bad: Another service, or a URL whose parts cannot be told apart.
    """
    scheme, _, rest = text.partition("://")
    if scheme not in ("redis", "rediss", "unix") or not rest:
        raise Bad("it is not the URL of a Redis or Valkey")
    try:
        parts = urlsplit(text)
        port = parts.port if scheme != "unix" else 1
    except ValueError:
        raise Bad("its parts cannot be told apart") from None
    if rest.count("@") > 1 or ("@" in rest) != ("@" in parts.netloc) or parts.fragment:
        raise Bad("its parts cannot be told apart")
    if port == 0 or (scheme != "unix" and not parts.hostname):
        raise Bad("it names no server")
    return Secret(text)


def is_open_redis(url: Secret) -> bool:
    """True if the way to this Redis leaves the machine without TLS."""
    parts = urlsplit(url.reveal())
    if parts.scheme != "redis":
        return False
    host = parts.hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def tls_clients(text: str) -> Mapping[str, TlsClient]:
    """Reads the JSON object from certificate names to clients.

    Raises:
        Bad: It is damaged, or an entry is; nothing is left out or guessed.
    """
    try:
        entries = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Bad(f"it is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise Bad("it is not a JSON object")
    return types.MappingProxyType(
        {certificate: _tls_client(certificate, entry) for certificate, entry in entries.items()}
    )


def _tls_client(certificate: str, entry: object) -> TlsClient:
    where = f"the entry of {shown_text(certificate)}"
    if not certificate or not isinstance(entry, dict):
        raise Bad(f"{where} is not a certificate name with an object")
    unknown = entry.keys() - {"name", "scopes", "organization_ids"}
    if unknown:
        raise Bad(f"{where} has the unknown key {shown_text(min(unknown))}")
    name, scopes = entry.get("name"), _texts(entry.get("scopes"))
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_CHARACTERS_MAX:
        raise Bad(f"{where} needs a name of 1 to {NAME_CHARACTERS_MAX} characters")
    if not scopes or not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise Bad(f"{where} needs a list of scopes")
    organizations: frozenset[str] = frozenset()
    if "organization_ids" in entry:
        organizations = _texts(entry["organization_ids"])
        # An emptied list must not turn a restricted client into an unrestricted one.
        if not organizations or not all(ids.is_id(id, ids.ORGANIZATION) for id in organizations):
            raise Bad(f"{where} has organization_ids that is no list of ids of organizations")
    return TlsClient(name, scopes, organizations)


def _texts(value: object) -> frozenset[str]:
    """Returns the texts of a JSON list; empty for anything else."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return frozenset(value)
    return frozenset()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found

"""Facts as bytes and back: the entries that processes share.

An entry is a line for the script that judges it, and a line for the reader. Both are JSON: every
Redis can read it, and so can a person who looks for the cause of something. A third line seals
them: memory in which a bit has changed must not change what somebody may do.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from authz_service.engine.facts import NO_END, Grants, Path
from authz_service.storage.tagged_facts import TaggedFact


class Damaged(Exception):
    """Bytes that are no entry of ours, or the entry of something else.

    Attributes:
        reason: ``damaged`` or ``foreign``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Shared(NamedTuple):
    """An entry as another process left it.

    Attributes:
        version: Of the environment's definitions it was read under; empty if it does not use them.
    """

    fact: TaggedFact
    version: str


def encode(
    fact: TaggedFact,
    name: Sequence[str],
    secret: bytes,
    *,
    since: int,
    nonce: str,
    version: str,
) -> bytes:
    """Returns the bytes of an entry.

    Args:
        name: The fact's own key, compared when it is read.
        secret: Of the deployment, 32 bytes.
        since, nonce: Of the control set when the fact was read.
    """
    head = [since, nonce, sorted(fact.tags)]
    body = [list(name), version, fact.expires, _plain(fact.value), fact.size]
    lines = b"\n".join(
        json.dumps(part, ensure_ascii=True, separators=(",", ":")).encode() for part in (head, body)
    )
    return lines + b"\n" + _seal(lines, secret)


def _seal(lines: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(lines, key=secret, digest_size=16).hexdigest().encode()


def decode(blob: bytes, name: Sequence[str], realm: str, secret: bytes) -> Shared:
    """Returns the fact of an entry.

    Raises:
        Damaged: It is not what was looked for.
    """
    try:
        lines, _, seal = blob.rpartition(b"\n")
        if not hmac.compare_digest(seal, _seal(lines, secret)):
            raise Damaged("damaged")
        first, second = lines.split(b"\n")
        _, _, tags = json.loads(first)
        own, version, expires, value, size = json.loads(second)
        if own != list(name):
            raise Damaged("foreign")
        fact = TaggedFact(
            realm, _value(name[0], value), frozenset(tags), name[0] == "g", expires, int(size)
        )
    except Damaged:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        raise Damaged("damaged") from None
    if fact.value.organization_id != realm:
        raise Damaged("foreign")
    return Shared(fact, version)


def _plain(value: Any) -> Any:
    if isinstance(value, Grants):
        (held,) = value.holders
        # No end is most of them, and very long.
        ends = {
            resource_id: {slug: 0 if end == NO_END else end for slug, end in slugs.items()}
            for resource_id, slugs in held.items()
        }
        return [value.organization_id, value.is_active, ends]
    assert isinstance(value, Path)
    return [value.organization_id, value.resource_type_slug, value.resource_ids]


def _value(kind: str, value: Any) -> Grants | Path:
    if kind == "g":
        organization_id, is_active, ends = value
        held = {
            str(resource_id): {
                str(slug): NO_END if end == 0 else int(end) for slug, end in slugs.items()
            }
            for resource_id, slugs in ends.items()
        }
        if type(is_active) is not bool:
            raise TypeError
        return Grants(str(organization_id), is_active, (held,))
    organization_id, type_slug, resource_ids = value
    return Path(str(organization_id), str(type_slug), tuple(map(str, resource_ids)))

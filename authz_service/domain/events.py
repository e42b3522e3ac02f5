"""Records what changed: the revision, the event, its audit hash and the tags, in one call."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Row

from authz_service.base import errors, ids
from authz_service.base.actor import SYSTEM, Actor
from authz_service.storage.database import Transaction
from authz_service.storage.tables.base import Stamped

# Every kind of this release, by what it is about (product.md section 8).
_ACTIONS = {
    "organization": "created updated deleted imported",
    "organization_domain": "created updated verified failed deleted",
    "user": "created updated deleted password_changed email_verification_started email_verified"
    " locked_out sessions_revoked",
    "identity": "linked unlinked",
    "organization_membership": "created updated deactivated reactivated deleted activated",
    "invitation": "created resent accepted revoked expired updated",
    "group": "created updated deleted member_added member_removed members_changed",
    "role": "created updated permissions_changed deleted",
    "permission": "created updated deleted",
    "resource_type": "created updated deleted",
    "resource": "created updated moved deleted",
    "role_assignment": "created updated deleted batch_changed expired",
    "feature_flag": "created updated deleted",
    "api_key": "created updated expired revoked deleted",
    "session": "created organization_switched revoked",
    "scim_directory": "created updated token_rotated deleted",
    "scim_user": "created updated deleted",
    "scim_group": "created updated members_changed deleted",
    "group_role_mapping": "changed",
    "configuration": "updated",
    "organization_configuration": "updated",
    "role_priority": "changed",
    "service_credential": "created updated rotated revoked",
    "signing_key": "rotated",
    "audit_log_event": "created",
    "audit_log_configuration": "updated",
    "audit_log_export": "created completed failed",
    "audit_log_schema": "created",
    "directory": "imported",
}
KINDS = frozenset(f"{sort}.{action}" for sort, row in _ACTIONS.items() for action in row.split())

# What the hash covers, in this order of names; ``hash`` itself is what is computed.
HASHED = (
    "realm",
    "sequence",
    "id",
    "kind",
    "is_primary",
    "cause_event_id",
    "actor_kind",
    "actor_id",
    "on_behalf_of_user_id",
    "request_id",
    "target_type",
    "target_id",
    "data",
    "previous",
    "created_at",
)


def stamp(tx: Transaction, realm: str) -> dict[str, int]:
    """Returns the columns ``created_at``, ``updated_at`` and ``revision`` of a new row.

    The revision is that of the event which the caller records next in this realm.
    """
    return {
        "created_at": tx.now,
        "updated_at": tx.now,
        "revision": tx.realms[realm].revision + 1,
    }


def touch(tx: Transaction, realm: str, row: Stamped) -> None:
    """Gives a changed row the time and the revision of the event which is recorded next."""
    row.updated_at = tx.now
    row.revision = tx.realms[realm].revision + 1


def record(
    tx: Transaction,
    kind: str,
    *,
    realm: str,
    target_type: str,
    target_id: str,
    data: Mapping[str, Any],
    tags: Iterable[str],
    previous: Mapping[str, Any] | None = None,
    by_system: bool = False,
) -> None:
    """Raises the realm's revision by one and records one event.

    The first event of a transaction is its primary one; all later ones name it as their cause.

    Args:
        kind: One of ``KINDS``.
        realm: The organization's id or ``*``; must be locked.
        data: The object after the change, or before its deletion. Never a secret or hash of one.
        tags: What the cache must not believe any more (consistency.md 3.2), of the same realm;
            empty when no fact changes. There is no default: every write says it.
        previous: Former values of changed fields.
        by_system: A background ending that happens to be recorded now: primary, actor SYSTEM.

    Raises:
        ValueError: For a kind that is none; whoever filters by kind could never ask for it.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind} is no kind of event")
    locked = tx.realms[realm]
    actor: Actor = SYSTEM if by_system else tx.actor
    cause = "" if by_system else tx.primary_event_id
    row: dict[str, Any] = {
        "realm": realm,
        "sequence": locked.revision + 1,
        "id": ids.new(ids.EVENT),
        "kind": kind,
        "is_primary": not cause,
        "cause_event_id": cause,
        "actor_kind": actor.kind,
        "actor_id": actor.id,
        "on_behalf_of_user_id": "" if by_system else actor.on_behalf_of_user_id,
        "request_id": "" if by_system else actor.request_id,
        "target_type": target_type,
        "target_id": target_id,
        "data": canonical(data),
        "previous": canonical(previous or {}),
        "created_at": tx.now,
    }
    row["previous_hash"] = locked.last_hash
    row["hash"] = chained(locked.last_hash, row)
    tx.events.append(row)
    if not by_system and not cause:
        tx.primary_event_id = row["id"]
    locked.revision += 1
    locked.last_hash = row["hash"]
    tx.changed.add(realm)
    tx.tags.setdefault(realm, set()).update(tags)


def canonical(value: Mapping[str, Any]) -> str:
    """Returns JSON text that is the same for equal values: sorted keys, no white space."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    )


def chained(previous_hash: bytes, row: Mapping[str, Any]) -> bytes:
    """Returns SHA-256 of the previous hash and the canonical row (product.md AU5)."""
    text = canonical({name: row[name] for name in HASHED})
    return hashlib.sha256(previous_hash + text.encode()).digest()


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the former values of the fields that differ, for ``previous``."""
    return {
        name: value
        for name, value in before.items()
        if after.get(name) != value and name not in ("updated_at", "etag")
    }


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds").replace("+00:00", "Z")
    raise TypeError(f"no JSON for {type(value).__name__}")


class Revised(Protocol):
    """What has a revision: a row, or part of one."""

    @property
    def revision(self) -> int:
        """Of the last change of its own fields."""
        ...


def etag(row: Stamped | Row[Any] | Revised) -> str:
    """Returns the etag of a row: opaque to callers, changed with every change of the object."""
    return f"{row.revision:x}"


def check_etag(row: Stamped, given: str) -> None:
    """Refuses a change that was made from another state of the object (product.md C9).

    Raises:
        Aborted: ETAG_MISMATCH.
    """
    if given and given != etag(row):
        raise errors.Aborted("ETAG_MISMATCH", "the object has changed; read it again")

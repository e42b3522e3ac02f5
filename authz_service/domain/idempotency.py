"""Finds and keeps the reply of a repeated call (product.md C8)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from authz_service.base import errors
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import KeptReply

KEPT_MICROSECONDS = 24 * 3_600 * 1_000_000
# Old replies go with new ones, a few at a time, so that no sweep ever holds the table.
_SWEPT_MAX = 20


@dataclass(frozen=True, slots=True)
class Kept:
    """A reply kept from the first call, and the present revisions of the realms it wrote in."""

    reply: bytes
    revisions: Mapping[str, int]


def begin(tx: Transaction, *, caller: str, key: str, request_digest: bytes) -> Kept | None:
    """Returns the kept reply of this key, or None after reserving the key for this call.

    A second call with the same key waits here until the first has committed or rolled back.

    Raises:
        FailedPrecondition: IDEMPOTENCY_KEY_REUSED for another method or request.
    """
    oldest = tx.now - KEPT_MICROSECONDS
    found = tx.connection.execute(
        select(KeptReply.request_digest, KeptReply.reply, KeptReply.realms).where(
            KeptReply.caller == caller, KeptReply.key == key, KeptReply.created_at > oldest
        )
    ).one_or_none()
    if found is not None:
        if found.request_digest != request_digest:
            raise errors.FailedPrecondition(
                "IDEMPOTENCY_KEY_REUSED", "the idempotency key was used for another request"
            )
        # A COMMIT that changes nothing waits for nobody. The first call may have been told that no
        # standby has its write, so this one must wait for a standby too before it says it is done.
        tx.connection.execute(
            update(KeptReply)
            .where(KeptReply.caller == caller, KeptReply.key == key)
            .values(reply=KeptReply.reply)
        )
        return Kept(found.reply, realms.revisions(tx, found.realms))
    tx.connection.execute(delete(KeptReply).where(KeptReply.caller == caller, KeptReply.key == key))
    old = (
        select(KeptReply.caller, KeptReply.key)
        .where(KeptReply.created_at <= oldest)
        .limit(_SWEPT_MAX)
    )
    for stale in tx.connection.execute(old).all():
        tx.connection.execute(
            delete(KeptReply).where(KeptReply.caller == stale.caller, KeptReply.key == stale.key)
        )
    # A concurrent call with this key fails here on the primary key and, run again, finds our reply.
    tx.connection.execute(
        insert(KeptReply).values(
            caller=caller,
            key=key,
            request_digest=request_digest,
            reply=b"",
            realms=[],
            created_at=tx.now,
        )
    )
    return None


def keep(tx: Transaction, *, caller: str, key: str, reply: bytes, realms: Collection[str]) -> None:
    """Keeps the reply of this call, without secrets and without its token."""
    tx.connection.execute(
        update(KeptReply)
        .where(KeptReply.caller == caller, KeptReply.key == key)
        .values(reply=reply, realms=sorted(realms))
    )

"""A write and its kept reply: the path of every mutating RPC."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar, cast

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from authz_service.base.consistency import ConsistencyTokens
from authz_service.domain import idempotency
from authz_service.domain.idempotency import Kept
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction

M = TypeVar("M", bound=Message)


class Mutations:
    """Runs the writes of all servicers.

    Args:
        database: Where they happen.
        tokens: For the ``consistency_token`` of the answers (product.md C7).
    """

    def __init__(self, database: Database, tokens: ConsistencyTokens) -> None:
        self._database = database
        self._tokens = tokens

    def run(self, request: Message, context: Context, work: Callable[[Transaction], M]) -> M:
        """Runs ``work`` once, whatever is repeated, and returns its response with a token.

        Args:
            work: Makes the change and the response without token; touches nothing but the
                transaction, for it may run again.

        Raises:
            FailedPrecondition: IDEMPOTENCY_KEY_REUSED.
            Refusal: What ``work`` refuses, and those of ``Database.write``.
        """
        key = context.idempotency_key
        caller = f"{context.actor.kind}:{context.actor.id}"
        digest = _digest(context.method, request) if key else b""

        def once(tx: Transaction) -> M | Kept:
            if not key:
                return work(tx)
            kept = idempotency.begin(tx, caller=caller, key=key, request_digest=digest)
            if kept is not None:
                return kept
            response = work(tx)
            idempotency.keep(
                tx, caller=caller, key=key, reply=_without_secrets(response), realms=tx.realms
            )
            return response

        written = self._database.write(once, actor=context.actor, deadline=context.deadline)
        revisions, positions = written.revisions, written.positions
        if isinstance(written.result, Kept):
            response_type = _response_type(context.method)
            response = cast(M, response_type.FromString(written.result.reply))
            revisions, positions = written.result.revisions, {}
            context.trailing.append(("idempotency-replayed", "true"))
        else:
            response = written.result
        response.consistency_token = self._tokens.seal(revisions, positions)  # type: ignore[attr-defined]
        return response


def _digest(method: str, request: Message) -> bytes:
    hashed = hashlib.sha256(len(method).to_bytes(4, "big") + method.encode())
    hashed.update(request.SerializeToString(deterministic=True))
    return hashed.digest()


@lru_cache(maxsize=1_024)
def _response_type(method: str) -> type[Message]:
    service, _, name = method[1:].partition("/")
    found = descriptor_pool.Default().FindServiceByName(service)
    return message_factory.GetMessageClass(found.methods_by_name[name].output_type)


@lru_cache(maxsize=1_024)
def _secret_fields(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(field.name for field in descriptor.fields if field.GetOptions().debug_redact)


def _without_secrets(response: Message) -> bytes:
    secrets = _secret_fields(response.DESCRIPTOR)
    if secrets:
        copy = type(response)()
        copy.CopyFrom(response)
        for name in secrets:
            copy.ClearField(name)
        response = copy
    return response.SerializeToString()

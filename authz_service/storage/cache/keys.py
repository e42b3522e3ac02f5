"""Keys of what processes share: two different facts never have the same one."""

import hashlib
from collections.abc import Hashable, Sequence

from authz_service.engine.facts import ResourceRef, Subject

# Raised whenever the bytes of a fact change: old entries are then never found.
FORMAT = "1"


def own_key(key: Hashable) -> list[str] | None:
    """Returns the name of a shared fact as it stands in its entry; None if it is not shared."""
    if isinstance(key, Subject):
        return ["g", *key]
    if isinstance(key, ResourceRef):
        return ["p", *key]
    return None


def digest(secret: bytes, realm: str, name: Sequence[str], version: str) -> str:
    """Returns what an entry is found by: 32 characters that tell nothing about it.

    Args:
        secret: Of the deployment, 32 bytes.
        name: ``own_key`` of the fact.
        version: Of the environment's definitions; empty for facts that do not use them.
    """
    state = hashlib.blake2b(key=secret, digest_size=16)
    for part in (FORMAT, realm, version, *name):
        data = part.encode()
        # With its length before each part, no two lists of parts become the same bytes.
        state.update(len(data).to_bytes(4, "big"))
        state.update(data)
    return state.hexdigest()

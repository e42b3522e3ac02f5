"""L2: entries that the processes of a deployment leave for each other in Redis."""

import random
from collections.abc import Hashable
from typing import Any

from authz_service.storage.cache import codec, keys
from authz_service.storage.cache.control import Control
from authz_service.storage.tagged_facts import TaggedFact
from authz_service.telemetry.metrics import Metrics

# Of its own: threads must not disturb who seeds the common one.
_RANDOM = random.Random()

# What one READ may ask for at once; the rest comes from SQL.
READ_MAX = 128


class Sharing:
    """How entries are named, written and read.

    Args:
        secret: Of the deployment, 32 bytes: a key in Redis tells nothing about a fact.
        seconds: How long an entry stays, give or take a fifth.
        bytes_max: Larger entries stay in the process that made them.
        metrics: None where nothing is shared.
    """

    def __init__(
        self,
        secret: bytes = b"",
        seconds: float = 300.0,
        bytes_max: int = 262_144,
        metrics: Metrics | None = None,
    ) -> None:
        self._secret = secret
        self._seconds = seconds
        self._bytes_max = bytes_max
        self._metrics = metrics

    def digest(self, realm: str, key: Hashable, version: str) -> str:
        """Returns by what an entry is found."""
        name = keys.own_key(key)
        assert name is not None
        return keys.digest(self._secret, realm, name, version if name[0] == "g" else "")

    def decode(self, blob: bytes, key: Hashable, realm: str) -> codec.Shared | None:
        """Returns what an entry holds; None if it is not what it should be."""
        name = keys.own_key(key)
        assert name is not None
        try:
            return codec.decode(blob, name, realm, self._secret)
        except codec.Damaged as damaged:
            if self._metrics is not None:
                self._metrics.cache_rejected.add(damaged.reason)
            return None

    def share(
        self,
        control: Control,
        realm: str,
        key: Hashable,
        fact: TaggedFact,
        *,
        now: int,
        **state: Any,
    ) -> None:
        """Leaves an entry to the others.

        Args:
            now: Entries end with the first grant in them that ends.
            state: As ``codec.encode`` has it.
        """
        name = keys.own_key(key)
        if name is None:
            return
        lasting = self._seconds * _RANDOM.uniform(0.8, 1.2) * 1_000
        if fact.expires is not None:
            lasting = min(lasting, (fact.expires - now) / 1_000)
        if lasting < 1:
            return
        entry = codec.encode(fact, name, self._secret, **state)
        if len(entry) <= self._bytes_max:
            found_by = keys.digest(self._secret, realm, name, str(state["version"]))
            control.share(realm, found_by, entry, int(lasting))

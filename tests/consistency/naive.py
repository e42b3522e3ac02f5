"""The cache that everybody writes first: facts in Redis, deleted once their change has committed.

It is here to be caught. Between COMMIT and the deletion it answers what was, a fill that began
before a write and ends after it stays, facts of one answer are of different instants, and a Redis
that cannot be reached keeps what should have been deleted.
"""

import contextlib
import pickle
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import redis

from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import ENVIRONMENT
from authz_service.engine.facts import Facts, ResourceRef, Subject
from authz_service.engine.tags import ENVIRONMENT_DEFINITIONS
from authz_service.storage import tagged_facts
from authz_service.storage.cache.marking import Marked, Tags
from authz_service.storage.database import Database
from authz_service.storage.facts import SqlFacts
from authz_service.storage.tagged_facts import TaggedFact
from authz_service.telemetry.metrics import Metrics

_TTL_SECONDS = 300
_TIMEOUT_SECONDS = 0.05
_PERMISSIONS = "permissions"


class Store:
    """Facts in Redis, and under each tag the keys of the facts that have it."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=None,
            retry_on_error=[],
        )

    def close(self) -> None:
        """Closes all connections."""
        self._redis.close()

    def find(self, keys: Collection[Hashable]) -> dict[Hashable, TaggedFact]:
        """Returns what is there; nothing if Redis does not answer."""
        wanted = list(keys)
        try:
            blobs: Any = self._redis.mget([_name(key) for key in wanted])
        except redis.RedisError:
            return {}
        # Its own bytes, on a Redis that the harness started.
        return {
            key: pickle.loads(blob)
            for key, blob in zip(wanted, blobs, strict=True)
            if blob is not None
        }

    def put(self, key: Hashable, fact: TaggedFact) -> None:
        """Keeps a fact under its key."""
        tags = [(fact.realm, tag) for tag in fact.tags]
        if fact.uses_definitions:
            tags.append((ENVIRONMENT, ENVIRONMENT_DEFINITIONS))
        with contextlib.suppress(redis.RedisError), self._redis.pipeline() as pipeline:
            for realm, tag in tags:
                pipeline.sadd(_tag(realm, tag), _name(key))
            pipeline.set(_name(key), pickle.dumps(fact), ex=_TTL_SECONDS)
            pipeline.execute()

    def forget(self, tags: Tags) -> None:
        """Deletes all facts with any of the tags, as far as Redis answers."""
        with contextlib.suppress(redis.RedisError):
            for realm, changed in tags.items():
                for tag in changed:
                    names: Any = self._redis.smembers(_tag(realm, tag))
                    self._redis.delete(_tag(realm, tag), *names)


def _name(key: Hashable) -> str:
    return f"naive:fact:{key!r}"


def _tag(realm: str, tag: str) -> str:
    return f"naive:tag:{realm}:{tag}"


class NaiveMarking:
    """Says nothing before COMMIT, and deletes after it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self, connection: Any, tags: Tags) -> Marked:
        return _Changed(self._store, tags)


class _Changed:
    def __init__(self, store: Store, tags: Tags) -> None:
        self._store, self._tags = store, tags

    def bump(self, *, committed: bool) -> Mapping[str, int]:
        if committed:
            self._store.forget(self._tags)
        return {}


class NaiveFacts:
    """A FactSource that believes what it finds in Redis.

    Args:
        delay: Called between reading a fact and keeping it.
    """

    def __init__(
        self, database: Database, store: Store, metrics: Metrics, delay: Callable[[], None]
    ) -> None:
        self._database = database
        self._sql = SqlFacts(database)
        self._store = store
        self._metrics = metrics
        self._delay = delay

    def at_once(self, questions: Any, then: Callable[[list[None]], None]) -> None:
        """Leaves every question to threads."""
        then([None] * len(questions))

    def load(
        self,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        *,
        credential_id: str = "",
        **_: Any,
    ) -> Facts:
        keys: list[Hashable] = [_PERMISSIONS, *subjects, *resources]
        if credential_id:
            keys.append(credential_id)
        known = self._store.find(keys)
        missing = {key for key in keys if key not in known}
        if missing:
            known |= self._fill(subjects, resources, credential_id, missing)
        source = "view" if not missing else "mixed" if len(missing) < len(keys) else "sql"
        self._metrics.cache_answers.add(source)
        types = known[_PERMISSIONS].value
        credential = known.get(credential_id) if credential_id else None
        return Facts(
            {each: known[each].value for each in subjects if each in known},
            {each: known[each].value for each in resources if each in known},
            {slug: types[slug] for slug in permission_slugs if slug in types},
            self._database.now(),
            {},
            credential.value if credential is not None else None,
        )

    def revisions(self, realms: Collection[str]) -> Mapping[str, int]:
        return self._sql.revisions(realms)

    def _fill(
        self,
        subjects: Collection[Subject],
        resources: Collection[ResourceRef],
        credential_id: str,
        missing: Collection[Hashable],
    ) -> dict[Hashable, TaggedFact]:
        with self._database.snapshot(SYSTEM) as snapshot:
            loaded = tagged_facts.load(
                snapshot,
                [each for each in subjects if each in missing],
                [each for each in resources if each in missing],
                permissions=_PERMISSIONS in missing,
                credential_id=credential_id if credential_id in missing else "",
            )
        assert loaded is not None
        fresh: dict[Hashable, TaggedFact] = {**loaded.grants, **loaded.paths}
        if loaded.permissions is not None:
            fresh[_PERMISSIONS] = loaded.permissions
        if loaded.credential is not None:
            fresh[credential_id] = loaded.credential
        self._delay()
        for key, fact in fresh.items():
            self._store.put(key, fact)
        return fresh

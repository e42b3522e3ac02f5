"""Lives of the cache for tests: control sets in a Redis or in memory, and real writers."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from redis import Redis

from authz_service.base.actor import SYSTEM
from authz_service.base.clock import boot_seconds
from authz_service.stack.valkey import Server
from authz_service.storage.cache.control import Look, Lost, Reply
from authz_service.storage.cache.generation import Generation
from authz_service.storage.cache.redis_connections import Connections
from authz_service.storage.cache.redis_control import RedisControl
from authz_service.storage.database import Database, Transaction
from authz_service.telemetry.metrics import Metrics
from tests import histories

# A busy machine must not be taken for a Redis that does not answer.
PATIENT_SECONDS = 5.0


class Place:
    """A Redis in which lives of the cache begin.

    Attributes:
        client: Looks at what is stored, past everything of ours.
        lost: Why lives were found to be over.
        metrics: Of all of them.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = Redis.from_url(server.url)
        self.metrics = Metrics()
        self.lost: list[str] = []
        self._all: list[Connections] = []
        self._begun = 0

    def close(self) -> None:
        """Closes all connections."""
        for connections in self._all:
            connections.close()
        self.client.close()

    def begin(self, **settings: Any) -> RedisControl:
        """Begins a life, as ``enable`` does."""
        self._begun += 1
        name = f"life{self._begun}"
        self.client.hset(f"az:{{{name}}}", "", "1")
        return self.join(name, **settings)

    def join(
        self,
        name: str,
        *,
        members_max: int = 20_000,
        seconds: float = PATIENT_SECONDS,
        run_id: str | None = None,
        url: str = "",
    ) -> RedisControl:
        """Returns the control sets of a life, over connections of their own.

        Args:
            run_id: The process that the life is in; None = the present one.
        """
        connections = Connections(
            url or self.server.url,
            self.server.run_id if run_id is None else run_id,
            timeout_seconds=seconds,
            metrics=self.metrics,
        )
        self._all.append(connections)
        return RedisControl(
            name,
            connections,
            is_leased=lambda: True,
            lost=self.lost.append,
            metrics=self.metrics,
            mark_seconds=seconds,
            members_max=members_max,
        )


def finish(control: Any, mark: str, tags: Mapping[str, Any]) -> Mapping[str, int]:
    """Marks and bumps, as a write does; returns the sequences."""
    assert control.mark(mark, tags)
    sequences: Mapping[str, int] = control.bump(mark, tags)
    return sequences


def opened(control: Any, realm: str = "org_a") -> Look:
    """Returns how to look at a control set from now on."""
    found = control.open([realm])
    assert found is not None
    return Look(realm, found[realm].nonce, found[realm].sequence)


def seen(control: Any, look: Look) -> tuple[int, dict[str, int], set[str]]:
    """Returns what a control set tells: its sequence, what changed, and what is pending."""
    (reply,) = control.validate([look])
    assert isinstance(reply, Reply), reply
    changed = dict(reply.changed)
    assert len(changed) == len(reply.changed), "a tag was told twice"
    return reply.sequence, changed, set(reply.pending)


def why_lost(control: Any, look: Look) -> str:
    """Returns why a control set cannot be judged from there any more."""
    (reply,) = control.validate([look])
    assert isinstance(reply, Lost), reply
    return reply.reason


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Returns the first true value of a condition, asked again and again."""
    deadline = boot_seconds() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert boot_seconds() < deadline, "it did not happen in time"
        threading.Event().wait(0.005)


class Process:
    """What a serving process has of the cache: its lease, and writes that are marked.

    Args:
        redis_url: None = it has no Redis.
        is_running: It renews its lease in the background; otherwise it is as good as paused.

    Attributes:
        own: The database as renewals, fences and settles use it.
        database: As writes use it.
    """

    def __init__(
        self,
        url: str,
        redis_url: str | None,
        *,
        lease_seconds: float = 0.5,
        redis_seconds: float = 1.0,
        is_running: bool = True,
        **more: Any,
    ) -> None:
        self.url = url
        self.redis_url = redis_url
        self.metrics = Metrics()
        self.own = Database(url, pool_size=3)
        self.generation = Generation(
            self.own,
            redis_url,
            self.metrics,
            lease_seconds=lease_seconds,
            timeout_seconds=redis_seconds,
            mark_seconds=redis_seconds,
            members_max=20_000,
        )
        self.database = Database(url, pool_size=8, marking=self.generation, **more)
        self._thread = threading.Thread(target=self.generation.run, daemon=True)
        try:
            if redis_url is not None:
                self.generation.start()
                if is_running:
                    self._thread.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops it as a server does."""
        self.generation.stop()
        if self._thread.is_alive():
            self._thread.join(30)
        self.own.close()
        self.database.close()

    def life(self) -> RedisControl:
        """Waits until the cache is on, and returns it."""
        control = eventually(self.generation.current)
        assert isinstance(control, RedisControl)
        return control

    def begin(self) -> RedisControl:
        """Begins a life at once; for one that does not run."""
        assert self.generation.enable_now() == ""
        return self.life()

    @property
    def is_caching(self) -> bool:
        """Whether it may answer from the cache."""
        return self.generation.current() is not None

    def write(self, realm: str, *tags: str, note: str = "") -> Mapping[str, int]:
        """Makes a write that marks these tags; returns the sequences it got."""

        def work(tx: Transaction) -> None:
            histories.record(tx, realm, note=note)
            tx.tags.setdefault(realm, set()).update(tags)

        positions = self.database.write(work, actor=SYSTEM).positions
        return {realm: position.sequence for realm, position in positions.items()}

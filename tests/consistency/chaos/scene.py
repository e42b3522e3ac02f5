"""A stack under load that faults happen to, and what is measured of it."""

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

from authz_service.base.clock import boot_seconds
from tests.consistency.chaos.proxy import Proxy
from tests.consistency.leaks import held, leaks
from tests.consistency.load import Load, Record
from tests.consistency.run import (
    ANSWERS,
    FENCES,
    NO_ANSWER,
    NO_PROCESS,
    Verdict,
    audited,
    counts,
    grown,
    judged,
    revisions,
    undocumented,
)
from tests.consistency.sizes import CALM_SECONDS, LEASE_SECONDS, SEED
from tests.consistency.stack import Servers, Stack, pause, stack, within

# Of the process that reaches Redis through the proxy.
BEHIND_PROXY = 2


@dataclass
class Scene:
    """What a fault may touch.

    Attributes:
        chance: All that is random in a fault.
        faults: How many there were.
        measured: What a fault found out, by name.
    """

    stack: Stack
    load: Load
    proxy: Proxy
    seed: int
    since: dict[str, int] = field(default_factory=dict)
    chance: random.Random = field(default_factory=random.Random)
    faults: int = 0
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def servers(self) -> Servers:
        """Returns PostgreSQL and Redis."""
        return self.stack.servers

    def admin(self) -> "redis.Redis":
        """Returns an administrator's connection to Redis."""
        return redis.Redis.from_url(self.servers.redis.url, socket_timeout=5)

    def generation(self) -> float:
        """Returns the newest generation of the cache that a process knows of."""
        return max(
            each.metrics().get(("authz_cache_generation",), 0.0) for each in self.stack.services
        )

    def cache_on(self, seconds: float, *, after: float = 0.0) -> None:
        """Waits until every process uses the cache again, and notes how long that took.

        Args:
            after: A generation that is over, in which nobody may still be.

        Raises:
            AssertionError: It took longer.
        """

        def is_on() -> bool:
            return all(
                each.is_cache_on() and each.metrics()["authz_cache_generation",] > after
                for each in self.stack.services
            )

        taken = within(seconds, is_on)
        assert taken is not None, f"the cache is not on again within {seconds} s"
        self.note("cache on again", taken)

    def note(self, name: str, value: float) -> None:
        """Keeps the highest of what was measured under a name."""
        self.measured[name] = round(max(value, self.measured.get(name, value)), 3)

    def percentile(self, process: int, since: float, share: float) -> float:
        """Returns how long reads of one process took that were sent since, in milliseconds."""
        taken = sorted(
            read.seconds
            for read in list(self.load.record.answered)
            if read.process == process and read.ended - read.seconds >= since
        )
        return round(1_000 * taken[int(len(taken) * share)], 2) if taken else 0.0

    def fences(self) -> int:
        """Returns how many generations were left by the processes that live."""
        return sum(sum(of.values()) for of in counts(self.stack, FENCES).values())


class Fault(NamedTuple):
    """A way in which things go wrong.

    Attributes:
        happen: Does it once to a scene, and waits until it is over; called again and again.
        ends_processes: Whether calls may find no process.
        stops_database: Whether reads may be refused.
        is_slow: Whether calls may end by their caller's deadline.
    """

    number: str
    name: str
    happen: Callable[[Scene], None]
    ends_processes: bool = False
    stops_database: bool = False
    is_slow: bool = False

    @property
    def allowed(self) -> set[tuple[str, str]]:
        """Returns what calls may end with besides what is documented for all."""
        return NO_PROCESS if self.ends_processes else NO_ANSWER if self.is_slow else set()


class Played(NamedTuple):
    """What came of a fault.

    Attributes:
        reads_failed: Reads without an answer, of any process.
    """

    verdict: Verdict
    line: dict[str, Any]
    record: Record

    @property
    def reads_failed(self) -> int:
        """Returns how many reads had no answer."""
        return sum(not failure.is_write for failure in self.record.failures)


def play(
    scene: Scene, fault: Fault, seconds: float, *, calm_seconds: float = CALM_SECONDS
) -> Played:
    """Loads a scene, lets the fault happen again and again, and judges all of it.

    Args:
        seconds: Faults begin until so many seconds have passed; the last one is waited for.
        calm_seconds: Before the first one, to compare with.
    """
    scene.faults, scene.measured = 0, {}
    scene.chance = random.Random(f"{scene.seed} {fault.name}")
    spans: dict[str, tuple[float, float]] = {}
    before, fences = counts(scene.stack, ANSWERS), counts(scene.stack, FENCES)
    ports = {scene.servers.redis.port, scene.proxy.port}
    holding = held(scene.stack, ports)
    logs = {each.number: len(each.errors()) for each in scene.stack.services}

    def meanwhile() -> None:
        began = boot_seconds()
        pause(calm_seconds)
        fault_began = boot_seconds()
        while True:
            fault.happen(scene)
            scene.faults += 1
            if boot_seconds() - began >= seconds:
                break
        fault_ended = boot_seconds()
        pause(calm_seconds)
        spans["before"] = (began, fault_began)
        spans["during"] = (fault_began, fault_ended)
        spans["after"] = (fault_ended, boot_seconds())

    record = scene.load.run(0.0, meanwhile=meanwhile)
    verdict = Verdict()
    judged(record, verdict)
    verdict.answers = grown(before, counts(scene.stack, ANSWERS))
    verdict.fences = grown(fences, counts(scene.stack, FENCES))
    verdict.failures = dict(Counter(f"{f.code} {f.reason}" for f in record.failures))
    verdict.crashes = undocumented(record.failures, fault.allowed)
    verdict.crashes += record.broken
    for service in scene.stack.services:
        verdict.crashes += service.errors()[logs[service.number] :]
    if not scene.stack.is_naive:
        verdict.lost = audited(scene.load, scene.stack, scene.since)
        verdict.leaks = leaks(holding, scene.stack, ports)
    writes = [each.acknowledged - each.invoked for each in record.writes]
    line = {
        "fault": fault.number,
        "name": fault.name,
        "seed": scene.seed,
        "faults": scene.faults,
        "measured": scene.measured,
        "longest_write": round(max(writes, default=0.0), 3),
        **{
            f"{part}_ms_{when}": _percentile(record, span, share)
            for when, span in spans.items()
            for part, share in (("p50", 0.5), ("p99", 0.99))
        },
        **verdict.line(),
    }
    return Played(verdict, line, record)


def _percentile(record: Record, span: tuple[float, float], share: float) -> float:
    taken = sorted(
        read.seconds for read in record.answered if span[0] <= read.ended - read.seconds <= span[1]
    )
    return round(1_000 * taken[int(len(taken) * share)], 2) if taken else 0.0


@contextlib.contextmanager
def played_on(under: Servers, name: str, *, naive: bool, seed: int = SEED) -> Iterator[Scene]:
    """Starts a stack with one process behind a proxy, makes a world on it, and gives the scene."""
    proxy = Proxy(under.redis.port)
    behind = under.redis.url.replace(f":{under.redis.port}/", f":{proxy.port}/")
    with (
        contextlib.closing(proxy),
        stack(
            under,
            name,
            naive=naive,
            seed=seed,
            lease_seconds=LEASE_SECONDS,
            redis_urls={BEHIND_PROXY: behind},
        ) as started,
    ):
        scene = begin(started, proxy, seed)
        with contextlib.closing(scene.load):
            yield scene


def begin(started: Stack, proxy: Proxy, seed: int) -> Scene:
    """Makes a world on a stack and returns the scene, ready to be played."""
    load = Load(started, seed)
    return Scene(started, load, proxy, seed, revisions(started))

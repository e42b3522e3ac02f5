"""The histories under the faults of cache and database: nothing stale, nothing lost.

All faults meet one stack, one after the other, so that each finds what the ones before left.
"""

from collections.abc import Iterator

import pytest

from tests.consistency.chaos.faults import ALL, CACHE_ON_SECONDS, QUICK
from tests.consistency.chaos.naive import TROUBLE
from tests.consistency.chaos.proxy import Proxy
from tests.consistency.chaos.scene import BEHIND_PROXY, Fault, Played, Scene, begin, play
from tests.consistency.conftest import Told
from tests.consistency.sizes import (
    CHAOS_READS_MIN,
    CHAOS_WRITES_MIN,
    FAULT_SECONDS,
    LEASE_SECONDS,
    LONG_FAULT_SECONDS,
    SEED,
)
from tests.consistency.stack import Servers, servers, stack

pytestmark = pytest.mark.timeout(300)

# What a fault may show, in seconds (fault table). A settle lasts 1.04 leases at most.
LIMITS = {"mark cleared": 3.0, "fenced": LEASE_SECONDS, "lease regained": 1.0}


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.long)])
def under(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """PostgreSQL, and Valkey or Redis."""
    with servers(request.param) as started:
        yield started


def scenes(under: Servers, name: str, *, naive: bool) -> Iterator[Scene]:
    proxy = Proxy(under.redis.port)
    behind = under.redis.url.replace(f":{under.redis.port}/", f":{proxy.port}/")
    try:
        with stack(
            under,
            name,
            naive=naive,
            seed=SEED,
            lease_seconds=LEASE_SECONDS,
            redis_urls={BEHIND_PROXY: behind},
        ) as started:
            scene = begin(started, proxy, SEED)
            try:
                yield scene
            finally:
                scene.load.close()
    finally:
        proxy.close()


@pytest.fixture(scope="module")
def naive(under: Servers) -> Played:
    """The naive half, once for all faults."""
    for scene in scenes(under, "chaos_naive", naive=True):
        played = play(scene, TROUBLE, FAULT_SECONDS)
    return played


@pytest.fixture(scope="module")
def scene(under: Servers, naive: Played) -> Iterator[Scene]:
    """The product under load, for all faults."""
    yield from scenes(under, "chaos", naive=False)


def judge(
    scene: Scene, naive: Played, fault: Fault, seconds: float, told: Told, *, is_timed: bool
) -> None:
    """Plays a fault and asserts all that its row promises.

    Args:
        is_timed: How long things took too. By day it is only told: whether a test passes must not
            depend on how busy the machine is.
    """
    played = play(scene, fault, seconds)
    verdict = played.verdict
    told(f"{fault.number} {fault.name}", verdict, **played.line, naive_stale=naive.verdict.stale)
    assert naive.verdict.stale > 0
    assert verdict.wrong() == []
    assert scene.faults > 0
    assert verdict.reads >= CHAOS_READS_MIN
    assert verdict.writes >= CHAOS_WRITES_MIN
    # Otherwise it was SQL that was judged.
    assert verdict.cached > 0
    if not fault.stops_database and not fault.ends_processes:
        assert played.reads_failed == 0, verdict.failures
    if not is_timed:
        return
    for name, limit in LIMITS.items():
        assert scene.measured.get(name, 0.0) <= limit, scene.measured
    if fault.number in ("F4", "F5", "F6", "F10"):
        assert scene.measured.get("cache on again", 0.0) <= CACHE_ON_SECONDS


def test_the_naive_cache_is_caught(naive: Played, told: Told) -> None:
    told("chaos, naive", naive.verdict, **naive.line)
    assert naive.verdict.stale > 0


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_fault(scene: Scene, naive: Played, fault: Fault, told: Told) -> None:
    judge(scene, naive, fault, FAULT_SECONDS, told, is_timed=False)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_long_fault(scene: Scene, naive: Played, fault: Fault, told: Told) -> None:
    judge(scene, naive, fault, LONG_FAULT_SECONDS, told, is_timed=True)

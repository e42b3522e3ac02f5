"""The histories under the faults of cache and database: nothing stale, nothing lost.

All faults meet one stack, one after the other, so that each finds what the ones before left.
"""

from collections.abc import Iterator

import pytest

from tests.consistency.chaos.faults import ALL, BY_NAME, QUICK
from tests.consistency.chaos.scene import Fault, Scene, play, played_on
from tests.consistency.conftest import Naive, Told
from tests.consistency.sizes import (
    CACHE_ON_SECONDS,
    CHAOS_READS_MIN,
    CHAOS_WRITES_MIN,
    FAULT_SECONDS,
    LEASE_SECONDS,
    LONG_FAULT_SECONDS,
    NAIVE_RUNS_MAX,
)
from tests.consistency.stack import Servers

pytestmark = pytest.mark.timeout(300)

# What a fault may show, in seconds (fault table). A settle lasts 1.04 leases at most.
LIMITS = {
    "mark cleared": 3.0,
    "fenced": LEASE_SECONDS,
    "lease regained": 1.0,
    "health answers": 1.0,
    "hit ratio back": 1.0,
}


@pytest.fixture(scope="module")
def scene(under: Servers, naive: Naive) -> Iterator[Scene]:
    """The product under load, for all faults; the naive cache came first."""
    with played_on(under, "chaos", naive=False) as scene:
        yield scene


def judge(
    scene: Scene, naive: Naive, fault: Fault, seconds: float, told: Told, *, is_timed: bool
) -> None:
    """Plays a fault and asserts all that its row promises.

    Args:
        is_timed: How long things took too. By day it is only told: whether a test passes must not
            depend on how busy the machine is.
    """
    played = play(scene, fault, seconds)
    verdict = played.verdict
    told(
        f"{fault.number} {fault.name}",
        verdict,
        **played.line,
        naive_stale=naive.chaos.verdict.stale,
    )
    assert naive.chaos.verdict.stale > 0
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


def test_the_naive_cache_is_caught(naive: Naive, told: Told) -> None:
    told("chaos, naive", naive.chaos.verdict, **naive.chaos.line)
    assert naive.chaos.verdict.stale > 0


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_fault(scene: Scene, naive: Naive, fault: Fault, told: Told) -> None:
    judge(scene, naive, fault, FAULT_SECONDS, told, is_timed=False)


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_a_storm_alone_catches_the_naive_cache(under: Servers, told: Told) -> None:
    """Nothing is cut or stopped in it: it is the writes alone that the naive cache comes too late
    for (F35)."""
    with played_on(under, "naive_storm", naive=True) as scene:
        for _ in range(NAIVE_RUNS_MAX):
            played = play(scene, BY_NAME["storm"], FAULT_SECONDS)
            told("F35 storm, naive", played.verdict, **played.line)
            if played.verdict.stale:
                break
    assert played.verdict.stale > 0


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_long_fault(scene: Scene, naive: Naive, fault: Fault, told: Told) -> None:
    judge(scene, naive, fault, LONG_FAULT_SECONDS, told, is_timed=True)

"""The histories while one PostgreSQL takes another's place: nothing stale, nothing lost in silence.

The naive cache was caught before, in the same harness (test_chaos.py).
"""

import pytest

from tests.consistency.chaos.failover import (
    NAMES,
    fault,
    old_primary_alive,
    paired,
    writes_lost,
)
from tests.consistency.chaos.scene import play
from tests.consistency.conftest import Naive, Told
from tests.consistency.load import TOKEN_SECONDS
from tests.consistency.run import Verdict
from tests.consistency.sizes import LEASE_SECONDS, LONG_FAILOVER_SECONDS, SEED

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_800)]


@pytest.mark.parametrize("name", NAMES)
def test_long_failover(naive: Naive, name: str, told: Told) -> None:
    with paired(SEED) as (scene, pair):
        played = play(scene, fault(name, pair), LONG_FAILOVER_SECONDS)
    told(name, played.verdict, **played.line)
    assert naive.chaos.verdict.stale > 0
    assert played.verdict.wrong() == []
    assert scene.faults > 0
    assert played.verdict.cached > 0


def test_a_lost_write_is_found_out(told: Told) -> None:
    with paired(SEED) as (scene, pair):
        found = writes_lost(scene, pair)
    # Each process renews within a fifth of a lease, sees another timeline, and lets its lease end.
    left = LEASE_SECONDS / 5 * 1.2 + LEASE_SECONDS
    assert found["phantoms gone"] <= left
    # Until then a state that has the lost write is remembered, and may satisfy its token.
    assert found["tokens refused"] <= left + TOKEN_SECONDS
    assert found["tokens ahead"] >= 1


def test_an_old_primary_that_goes_on_gives_no_lease_and_acknowledges_nothing(told: Told) -> None:
    with paired(SEED) as (scene, pair):
        found = old_primary_alive(scene, pair)
    told("F14 old primary alive", Verdict(), **found)
    # As the process itself says when its lease ends, so that no look at it comes too late.
    assert found["lease used"] <= LEASE_SECONDS

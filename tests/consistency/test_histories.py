"""Three processes, many readers and writers, real servers: what every answer may be."""

import pytest

from tests.consistency.conftest import Naive, Told, halves
from tests.consistency.load import Load
from tests.consistency.run import Verdict, half, revisions
from tests.consistency.sizes import (
    CACHED_MIN,
    JOINS_RUNS_MAX,
    LATE_SECONDS,
    LONG,
    SEED,
    SHORT,
    Size,
)
from tests.consistency.stack import Servers, stack

# Nothing fails on purpose here, so a slow neighbour must not be taken for a lost Redis.
PATIENT = {"AUTHZ_REDIS_TIMEOUT_MS": "1000", "AUTHZ_CACHE_MARK_TIMEOUT_MS": "2000"}


def run(under: Servers, name: str, *, seconds: float) -> Verdict:
    """Runs the half that must not lie."""
    with stack(under, name, naive=False, seed=SEED, settings=PATIENT) as started:
        load = Load(started, SEED)
        try:
            return half(started, load, revisions(started), seconds)
        finally:
            load.close()


def judge(under: Servers, naive: Verdict, size: Size, told: Told) -> None:
    """Judges both halves: the naive one must be caught, the protocol must not lie."""
    told("histories, naive", naive)
    assert naive.reads >= size.naive_reads
    # A run that does not catch the cache that lies proves nothing.
    assert naive.stale > 0
    assert naive.impossible > 0

    verdict = run(under, "protocol", seconds=size.seconds)
    told("histories, protocol", verdict)
    assert verdict.wrong() == []
    assert verdict.reads >= size.reads
    assert verdict.writes >= size.writes
    kinds = verdict.reads_by_kind
    assert len(kinds) == 16
    assert min(kinds.values()) >= size.reads_of_kind, kinds
    assert set(verdict.writes_by_kind) == set(kinds)
    assert min(verdict.writes_by_kind.values()) >= size.writes_of_kind
    assert verdict.windows >= size.writes
    # What was judged is the cache, and not SQL beside it.
    assert verdict.cached > CACHED_MIN


def test_histories(under: Servers, naive: Naive, told: Told) -> None:
    judge(under, naive.histories, SHORT, told)


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("joins", [False, True], ids=["sent after", "sent before"])
def test_a_call_shares_no_validation_that_was_sent_before_it(
    under: Servers, told: Told, joins: bool
) -> None:
    """The rule of consistency.md 4.3 step 7, with Redis far away: broken, it is caught."""
    name = "joins" if joins else "late"
    orders = {"late_seconds": LATE_SECONDS, "joins": joins}
    with stack(under, name, naive=False, seed=SEED, settings=PATIENT, orders=orders) as started:
        # On the other front calls validate for themselves, and so would mend what is remembered.
        load = Load(started, SEED, one_front=True)
        try:
            for _ in range(JOINS_RUNS_MAX if joins else 1):
                verdict = half(started, load, revisions(started), LONG.naive_seconds)
                told(f"histories, {name}", verdict)
                if verdict.stale:
                    break
        finally:
            load.close()
    assert (verdict.stale > 0) == joins
    assert joins or verdict.wrong() == []


@pytest.mark.long
@pytest.mark.timeout(2_400)
def test_long_histories(under: Servers, told: Told) -> None:
    judge(under, halves(under, "long_naive", LONG.naive_seconds).histories, LONG, told)

"""Three processes, many readers and writers, real servers: what every answer may be."""

from collections.abc import Iterator

import pytest

from tests.consistency.conftest import Told
from tests.consistency.load import Load
from tests.consistency.run import Verdict, half, revisions
from tests.consistency.sizes import CACHED_MIN, LONG, NAIVE_RUNS_MAX, SEED, SHORT, Size
from tests.consistency.stack import Servers, servers, stack

# Nothing fails on purpose here, so a slow neighbour must not be taken for a lost Redis.
PATIENT = {"AUTHZ_REDIS_TIMEOUT_MS": "1000", "AUTHZ_CACHE_MARK_TIMEOUT_MS": "2000"}


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.long)])
def under(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """PostgreSQL, and Valkey or Redis."""
    with servers(request.param) as started:
        yield started


def run(under: Servers, name: str, *, naive: bool, seconds: float) -> Verdict:
    """Runs one half."""
    with stack(under, name, naive=naive, seed=SEED, settings=PATIENT) as started:
        load = Load(started, SEED)
        try:
            return half(started, load, revisions(started), seconds)
        finally:
            load.close()


def compare(under: Servers, size: Size, told: Told) -> None:
    """Runs both halves: the naive one must be caught, the protocol must not lie."""
    for attempt in range(NAIVE_RUNS_MAX):
        # A slow machine races less: it is given more time to be caught in.
        naive = run(under, f"naive_{attempt}", naive=True, seconds=size.naive_seconds)
        told("histories, naive", naive)
        if naive.stale and naive.impossible:
            break
    assert naive.reads >= size.naive_reads
    # A run that does not catch the cache that lies proves nothing.
    assert naive.stale > 0
    assert naive.impossible > 0

    verdict = run(under, "protocol", naive=False, seconds=size.seconds)
    told("histories, protocol", verdict)
    assert verdict.wrong() == []
    assert verdict.reads >= size.reads
    assert verdict.writes >= size.writes
    kinds = verdict.reads_by_kind
    assert len(kinds) == 15
    assert min(kinds.values()) >= size.reads_of_kind, kinds
    assert set(verdict.writes_by_kind) == set(kinds)
    assert min(verdict.writes_by_kind.values()) >= size.writes_of_kind
    assert verdict.windows >= size.writes
    # What was judged is the cache, and not SQL beside it.
    assert verdict.cached > CACHED_MIN


def test_histories(under: Servers, told: Told) -> None:
    compare(under, SHORT, told)


@pytest.mark.long
@pytest.mark.timeout(2_400)
def test_long_histories(under: Servers, told: Told) -> None:
    compare(under, LONG, told)

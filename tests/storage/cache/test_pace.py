"""When the clock of a process is found to run at another rate than the database's (F28)."""

import pytest

from authz_service.storage.cache.pace import RATE_ERROR_MAX, Pace

MICROSECONDS = 1_000_000


class Clocks:
    """Two clocks, of which one runs at a rate; and how long it takes to hear of the other."""

    def __init__(self, rate: float = 1.0, heard_seconds: float = 0.001) -> None:
        self.rate, self.heard_seconds = rate, heard_seconds
        self.own, self.sql = 1_000.0, 5_000.0
        self.pace = Pace()

    def renew(self, seconds: float) -> bool:
        """Lets so much time pass, and reads both clocks."""
        self.own += seconds * self.rate
        self.sql += seconds
        half = self.heard_seconds / 2
        return self.pace.compare(self.own - half, round(self.sql * MICROSECONDS), self.own + half)


@pytest.mark.parametrize("rate", [0.5, 0.95, 0.979, 1.021, 1.05, 2.0])
def test_a_wrong_rate_is_found_and_so_is_its_end(rate: float) -> None:
    clocks = Clocks()
    assert all(clocks.renew(0.4) for _ in range(10))
    clocks.rate = rate
    renewals = 0
    while clocks.renew(0.4):
        renewals += 1
        assert renewals < 10
    assert not any(clocks.renew(0.4) for _ in range(100))
    clocks.rate = 1.0
    renewals = 0
    while not clocks.renew(0.4):
        renewals += 1
        assert renewals < 10


@pytest.mark.parametrize("rate", [1 - RATE_ERROR_MAX + 0.001, 1.0, 1 + RATE_ERROR_MAX - 0.001])
@pytest.mark.parametrize("heard_seconds", [0.0001, 0.01, 0.5, 30.0])
def test_a_rate_within_the_limit_is_right_however_long_the_database_takes(
    rate: float, heard_seconds: float
) -> None:
    clocks = Clocks(rate, heard_seconds)
    assert all(clocks.renew(0.4) for _ in range(200))


def test_a_wrong_rate_is_found_however_long_the_database_takes() -> None:
    clocks = Clocks(1.05, heard_seconds=0.1)
    assert clocks.renew(0.4)
    # In so short a time it could be that of the answer's way.
    assert clocks.renew(0.4)
    assert not all(clocks.renew(0.4) for _ in range(20))


@pytest.mark.parametrize("step", [-3_600.0, -5.0, 5.0, 3_600.0])
def test_a_step_of_the_databases_clock_is_over_at_the_next_look(step: float) -> None:
    clocks = Clocks()
    assert clocks.renew(0.4)
    clocks.sql += step
    assert not clocks.renew(0.4)
    assert clocks.renew(0.4)


def test_another_database_is_not_compared_with_the_last_one() -> None:
    clocks = Clocks()
    assert clocks.renew(0.4)
    clocks.pace.begin_anew()
    clocks.sql -= 100.0
    assert clocks.renew(0.4)
    clocks.rate = 1.05
    assert not all(clocks.renew(0.4) for _ in range(10))
    # It does not make a clock right that was found wrong.
    clocks.pace.begin_anew()
    assert not clocks.renew(0.4)

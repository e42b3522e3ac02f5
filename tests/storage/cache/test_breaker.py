"""When a Redis that does not answer is asked no more, and when again."""

from authz_service.storage.cache.breaker import FAILURES_MAX, OPEN_SECONDS, Breaker


class Now:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_one_failure_less_than_the_most_changes_nothing() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_MAX - 1):
        breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open


def test_an_answer_between_failures_begins_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(3 * FAILURES_MAX):
        breaker.failed()
        breaker.worked()
    assert not breaker.is_open


def test_one_call_a_second_finds_out_and_the_first_answer_ends_it() -> None:
    now = Now()
    breaker = Breaker(now)
    for _ in range(FAILURES_MAX):
        breaker.failed()
    now.seconds += OPEN_SECONDS
    assert [breaker.is_open for _ in range(3)] == [False, True, True]
    breaker.failed()
    assert breaker.is_open
    now.seconds += OPEN_SECONDS
    assert not breaker.is_open
    breaker.worked()
    assert not breaker.is_open

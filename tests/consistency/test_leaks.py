"""What counts as leaked: more than before, and more than a busy process may hold."""

import pytest

from tests.consistency.leaks import REDIS_MAX, SQL_MAX, THREADS_MAX, Held, grown

BEFORE = {1: Held(20, 8, 3, 1, 0), 2: Held(20, 7, 3, 1, 0)}


def test_pools_and_threads_may_fill() -> None:
    assert not grown(BEFORE, {1: Held(THREADS_MAX, 8, SQL_MAX, REDIS_MAX, 0)})


def test_a_new_process_may_hold_what_the_others_held() -> None:
    assert not grown(BEFORE, {3: Held(20, 8, 3, 1, 0)})


@pytest.mark.parametrize("name", Held._fields)
def test_one_more_than_that_is_a_leak(name: str) -> None:
    full = Held(THREADS_MAX, 8, SQL_MAX, REDIS_MAX, 0)
    (told,) = grown(BEFORE, {1: full._replace(**{name: getattr(full, name) + 1})})
    assert name in told

"""Which threads of the pool run, and how many: few short tasks at once, and nobody is forgotten."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from authz_service.base.waits import waits
from authz_service.rpc.fronts.pool import RUNNING_MAX, Pool

SECONDS = 20.0
THREADS = 8


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool that ends with the test."""
    made = Pool(THREADS, "test")
    yield made
    made.shutdown(wait=True, cancel_futures=True)


class Gate:
    """What tasks stand before until it is opened; counts who does."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.go = threading.Event()

    def hold(self) -> str:
        """Stands there, with nobody told."""
        self.inside.release()
        assert self.go.wait(SECONDS)
        return threading.current_thread().name

    def wait(self) -> str:
        """Stands there, and says so."""
        with waits, waits:
            return self.hold()

    def entered(self, count: int) -> None:
        """Waits until so many more stand there."""
        for _ in range(count):
            assert self.inside.acquire(timeout=SECONDS)

    def nobody_else(self) -> bool:
        """True if nobody came who was not counted yet."""
        return not self.inside.acquire(blocking=False)


def results(futures: list["Future[Any]"]) -> list[Any]:
    return [future.result(SECONDS) for future in futures]


def short(pool: Pool, function: Any) -> "Future[Any]":
    return pool.short.submit(function)


def without_attendant(pool: Pool) -> None:
    """Takes the attendant away, so that what it would do cannot be what is seen."""
    pool._left_alone.set()


def test_results_and_errors_come_back(pool: Pool) -> None:
    assert pool.submit(int, "7").result(SECONDS) == 7
    assert pool.short.submit(int, "8").result(SECONDS) == 8
    assert pool.submit(int, "11", base=2).result(SECONDS) == 3
    assert pool.short.submit(int, "11", base=2).result(SECONDS) == 3
    for submit in (pool.submit, pool.short.submit):
        with pytest.raises(ValueError, match="invalid literal"):
            submit(int, "x").result(SECONDS)


def test_the_thread_used_last_runs_next(pool: Pool) -> None:
    gate = Gate()
    held = [pool.submit(gate.hold) for _ in range(THREADS)]
    gate.entered(THREADS)
    gate.go.set()
    assert len(set(results(held))) == THREADS
    name = pool.submit(lambda: threading.current_thread().name)
    first = name.result(SECONDS)
    for _ in range(20):
        # Its result is there a moment before the thread is: who is asked too soon is another one.
        while len(pool._idle) < THREADS:
            pass
        assert pool._idle[-1] is not None
        assert results([short(pool, lambda: threading.current_thread().name)]) == [first]


def test_a_burst_of_short_tasks_runs_in_few_threads(pool: Pool) -> None:
    without_attendant(pool)
    gate = Gate()
    burst = [short(pool, gate.hold) for _ in range(THREADS)]
    gate.entered(RUNNING_MAX)
    assert gate.nobody_else()
    assert pool.waiting == THREADS - RUNNING_MAX
    gate.go.set()
    assert len(set(results(burst))) == RUNNING_MAX
    assert len(pool._workers) == RUNNING_MAX


def test_short_tasks_that_wait_outside_let_others_run(pool: Pool) -> None:
    without_attendant(pool)
    gate = Gate()
    burst = [short(pool, gate.wait) for _ in range(THREADS)]
    gate.entered(THREADS)
    gate.go.set()
    assert len(set(results(burst))) == THREADS
    assert pool._running == 0


def test_other_tasks_run_at_once_however_many_run(pool: Pool) -> None:
    without_attendant(pool)
    gate = Gate()
    tasks = [short(pool, gate.hold) for _ in range(RUNNING_MAX)]
    tasks += [pool.submit(gate.hold) for _ in range(THREADS - RUNNING_MAX)]
    gate.entered(THREADS)
    late = pool.submit(gate.hold)
    assert gate.nobody_else()
    gate.go.set()
    results([*tasks, late])


def test_waits_that_nobody_was_told_of_hold_up_nobody_for_long(pool: Pool) -> None:
    gate = Gate()
    burst = [short(pool, gate.hold) for _ in range(THREADS)]
    gate.entered(THREADS)
    gate.go.set()
    assert len(set(results(burst))) == THREADS


def test_no_task_is_ever_forgotten(pool: Pool) -> None:
    without_attendant(pool)
    lock = threading.Lock()
    done = [0]

    def work() -> None:
        with lock:
            done[0] += 1
        with waits:
            pass

    for _ in range(300):
        results([*(short(pool, work) for _ in range(7)), pool.submit(work)])
    assert done[0] == 300 * 8


def test_a_closed_pool_takes_nothing_and_cancels_what_waits() -> None:
    pool, gate = Pool(1, "test"), Gate()
    held = pool.submit(gate.hold)
    gate.entered(1)
    waiting = pool.submit(gate.hold)
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError):
        pool.submit(gate.hold)
    gate.go.set()
    held.result(SECONDS)
    with pytest.raises(CancelledError):
        waiting.result(SECONDS)
    pool.shutdown(wait=True)
    assert not any(thread.is_alive() for thread in pool._workers)


def test_what_waits_when_a_pool_is_closed_is_still_done() -> None:
    pool, gate = Pool(1, "test"), Gate()
    tasks = [pool.submit(gate.hold) for _ in range(3)]
    gate.entered(1)
    pool.shutdown(wait=False)
    gate.go.set()
    assert len(results(tasks)) == 3
    pool.shutdown(wait=True)

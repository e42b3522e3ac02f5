"""The threads of the grpcio front, of which few run at once and the one used last runs next.

A pool that wakes a thread for each call has eight of them fight for one interpreter: at 16 calls in
flight that costs half of what a call does. Here a short call that finds enough threads running is
taken by the next of them that is done, or by another one as soon as one of them waits for something
outside (``base/waits.py``).
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from authz_service.base import waits

# Short calls that run at once. With one, a call that begins to wait would wake the next thread only
# then; more than two fight.
RUNNING_MAX = 2

# The first of those that wait has waited so long since it was looked at: nobody gets anywhere.
STUCK_SECONDS = 0.005

_Task = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...], bool]


class _Worker:
    """One thread: told of its waits, and woken by a lock of its own."""

    __slots__ = ("_depth", "_pool", "counts", "wake")

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._depth = 0
        self.counts = False
        self.wake = threading.Lock()
        self.wake.acquire()

    def leaves(self) -> None:
        self._depth += 1
        if self._depth == 1 and self.counts:
            self._pool._leave()

    def returns(self) -> None:
        self._depth -= 1
        if self._depth == 0 and self.counts:
            self._pool._return()


class Pool(ThreadPoolExecutor):
    """A thread pool for grpcio, which takes nothing else.

    Args:
        threads: At most so many; they are made when first needed.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._name = name
        self._tasks: deque[_Task] = deque()
        self._idle: list[_Worker] = []
        self._workers: list[threading.Thread] = []
        # Short tasks that run, or that a thread was woken for.
        self._running = 0
        self._guard = threading.Lock()
        self._is_closed = False
        self._left_alone = threading.Event()
        self._pause = threading.Event()
        self._attendant = threading.Thread(
            target=self._attend, name=f"{name}-attendant", daemon=True
        )
        self.short = _Short(self)

    @property
    def waiting(self) -> int:
        """Tasks that wait for a thread."""
        return len(self._tasks)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Runs a task as soon as a thread is free, however many are running."""
        return self._submit(partial(fn, **kwargs) if kwargs else fn, args, is_short=False)

    def submit_short(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> "Future[Any]":
        """Runs a task that computes for well under a millisecond, not too many at once."""
        return self._submit(fn, args, is_short=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Lets the threads go when nothing waits any more."""
        with self._guard:
            self._is_closed = True
            if cancel_futures:
                while self._tasks:
                    self._tasks.popleft()[0].cancel()
            idle, self._idle = self._idle, []
            workers = list(self._workers)
        self._left_alone.set()
        self._pause.set()
        for worker in idle:
            worker.wake.release()
        if wait:
            for thread in workers:
                thread.join()

    def _submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], *, is_short: bool
    ) -> "Future[Any]":
        if self._is_closed:
            raise RuntimeError("the pool is closed")
        future: Future[Any] = Future()
        self._tasks.append((future, fn, args, is_short))
        # Read without the lock: whoever is counted looks at the tasks after it is counted no more.
        if not is_short or self._running < RUNNING_MAX:
            self._wake(is_short)
        elif not self._left_alone.is_set():
            self._left_alone.set()
            if self._attendant.ident is None:
                self._attendant.start()
        return future

    def _wake(self, is_short: bool) -> None:
        """Wakes the thread that ran last, or makes one; does nothing if all are at work."""
        with self._guard:
            if self._idle:
                worker = self._idle.pop()
            elif self._is_closed or len(self._workers) >= self._max_workers:
                return
            else:
                worker = _Worker(self)
                name = f"{self._name}_{len(self._workers)}"
                thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
                self._workers.append(thread)
                thread.start()
            if is_short:
                # It is counted before it runs, or a burst would wake all of them.
                worker.counts = True
                self._running += 1
        worker.wake.release()

    def _leave(self) -> None:
        with self._guard:
            self._running -= 1
        if self._tasks:
            self._wake(True)

    def _return(self) -> None:
        with self._guard:
            self._running += 1

    def _work(self, worker: _Worker) -> None:
        waits.watch(worker)
        while True:
            worker.wake.acquire()
            while (task := self._next(worker)) is not None:
                future, fn, args, _ = task
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(fn(*args))
                    except BaseException as error:
                        future.set_exception(error)
                # Nothing of a call outlives it here.
                del task, future, fn, args
            if self._is_closed:
                return

    def _next(self, worker: _Worker) -> _Task | None:
        """Returns the next task; None, and the worker is idle, if there is none."""
        with self._guard:
            if worker.counts:
                self._running -= 1
                worker.counts = False
            if not self._tasks:
                if not self._is_closed:
                    self._idle.append(worker)
                return None
            task = self._tasks.popleft()
            if task[3]:
                worker.counts = True
                self._running += 1
            return task

    def _attend(self) -> None:
        """Wakes another thread when those that run get nowhere, whatever they wait for."""
        while not self._is_closed:
            self._left_alone.wait()
            self._left_alone.clear()
            first: _Task | None = None
            while self._tasks and not self._is_closed:
                with contextlib.suppress(IndexError):
                    now = self._tasks[0]
                    if now is first:
                        self._wake(True)
                    first = now
                self._pause.wait(STUCK_SECONDS)


class _Short(ThreadPoolExecutor):
    """The pool as it is given to grpcio for short tasks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """See ``Pool.submit_short``."""
        return self._pool.submit_short(partial(fn, **kwargs) if kwargs else fn, args)

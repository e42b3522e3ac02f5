"""A process that serves the test service on both fronts, so that its memory can be measured.

``python -m tests.security.served`` says on its first line where each front listens. Then it answers
each line that it reads with numbers, and ends with its input.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from authz_service.rpc.call import Context
from authz_service.rpc.fronts import grpcio, h2
from authz_service.rpc.fronts.listeners import Listener
from tests.rpc import widgets
from tests.rpc.conftest import Building, build

FRONTS = ("decisions", "grpcio")
# Of each front: what the limits of T20 and T21 are counted against.
THREADS = 4
ROOT = Path(__file__).parents[2]


class AtOnceServicer(widgets.WidgetServicer):
    """Answers checks at once, as the real one does, unless their subject begins with slow."""

    def ask(self, name: str, request: Any) -> Any:
        """Returns the subject, None for what is not asked at once."""
        return getattr(request, "subject", None)

    def at_once(
        self, asked: Sequence[tuple[Any, Context]], then: Callable[[Sequence[Any]], None]
    ) -> None:
        """Answers what is quick."""
        yes = widgets.message("CheckResponse", allowed=True)
        then([None if each is None or each.startswith("slow") else yes for each, _ in asked])


class Watched:
    """A building whose handlers are counted while they run."""

    def __init__(self) -> None:
        self.building: Building = build(threads=THREADS, allowed_every=10**9)
        hall = self.building.hall
        hall._methods.clear()
        hall._handlers.clear()
        self.servicer = AtOnceServicer()
        hall.register(widgets.service(), self.servicer)
        self.inside = self.most = self.begun = 0
        self._lock = threading.Lock()
        self.servicer.on_check = self._on_check
        self._pause = threading.Event()

    def _on_check(self, request: Any, context: Any) -> bool:
        with self._lock:
            self.begun += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        if request.subject.startswith("slow"):
            self._pause.wait(0.002)
        with self._lock:
            self.inside -= 1
        # Nobody asks what was asked.
        self.servicer.requests.clear()
        self.servicer.contexts.clear()
        self.building.lines.clear()
        return True


def main() -> None:
    """Serves until its input ends."""
    watched = {name: Watched() for name in FRONTS}
    listeners = [Listener("127.0.0.1:0")]
    ended: list[str] = []
    decisions = h2.Front(
        watched["decisions"].building.hall,
        listeners,
        settings=h2.Settings(threads=THREADS),
        ended=ended.append,
    )
    complete = grpcio.Front(
        watched["grpcio"].building.hall,
        listeners,
        settings=grpcio.Settings(threads=THREADS),
    )
    fronts: dict[str, Any] = dict(zip(FRONTS, (decisions, complete), strict=True))
    for front in fronts.values():
        front.start()
        front.set_serving(True)
    print(json.dumps({name: front.addresses[0] for name, front in fronts.items()}), flush=True)
    for _ in sys.stdin:
        told: dict[str, Any] = {
            name: {"inside": each.inside, "most": each.most, "begun": each.begun}
            for name, each in watched.items()
        }
        told["threads"] = threading.active_count()
        told["links"] = len(decisions._listening.links)
        told["bodies"] = decisions._listening.bodies.size
        told["in_flight"] = decisions._in_flight
        told["ended"] = ended[-10:]
        print(json.dumps(told), flush=True)
    for front in fronts.values():
        front.stop(0.1)


class Served:
    """The process, from outside.

    Attributes:
        addresses: Of each front by its name.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.security.served"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addresses: dict[str, str] = self._line()

    def _line(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    def stats(self) -> Any:
        """Returns the numbers of ``main``."""
        assert self.process.stdin is not None
        self.process.stdin.write("stats\n")
        self.process.stdin.flush()
        return self._line()

    def memory_mb(self) -> float:
        """Returns what the process holds of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (kilobytes,) = [line.split()[1] for line in status.splitlines() if "VmRSS" in line]
        return int(kilobytes) / 1_024

    def until(self, is_so: Any, seconds: float = 10.0) -> Any:
        """Waits until the numbers are so; returns them."""
        pause, end = threading.Event(), time.monotonic() + seconds
        while not is_so(stats := self.stats()):
            assert time.monotonic() < end, stats
            pause.wait(0.02)
        return stats

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(20) == 0
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


if __name__ == "__main__":
    main()

"""The supervisor keeps real processes alive, ends them, and shows them as one."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from authz_service.config import Address
from authz_service.supervisor import EXIT_REFUSED, Supervisor
from authz_service.telemetry.logs import Lines, logger

pytestmark = pytest.mark.server

SECONDS = 30.0
SUPERVISED = Path(__file__).parent / "servers" / "supervised.py"
Event = dict[str, Any]


class Supervised:
    """A supervisor in a process of its own, and all that it and its workers say."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.folder = folder
        self.events: list[Event] = []
        self._output = process.stdout.fileno()
        self._rest = b""
        self.port = int(self._line())

    def _line(self) -> bytes:
        deadline = monotonic() + SECONDS
        while b"\n" not in self._rest:
            poll = select.poll()
            poll.register(self._output, select.POLLIN)
            ready = poll.poll(max(0.0, deadline - monotonic()) * 1_000)
            piece = os.read(self._output, 65_536) if ready else b""
            assert piece, f"nothing more came after {self.events}"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def next(self, event: str, **fields: Any) -> Event:
        """Waits for an event with these fields; all before it are kept in ``events``."""
        while True:
            found: Event = json.loads(self._line())
            self.events.append(found)
            if found["event"] == event and fields.items() <= found.items():
                return found

    def all_up(self, workers: int) -> dict[int, int]:
        """Waits until so many workers are up; returns their process ids by number."""
        found = [self.next("up") for _ in range(workers)]
        return {event["worker"]: event["pid"] for event in found}

    def get(self, path: str) -> tuple[int, str]:
        """Asks the metrics listener; returns status and text."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def signal(self, number: int) -> None:
        """Sends a signal to the supervisor alone."""
        self.process.send_signal(number)

    def code(self) -> int:
        """Waits for the end of the supervisor; returns its exit code."""
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def supervised(
    behaviour: str, *, workers: int = 2, drain_seconds: float = 60
) -> Iterator[Supervised]:
    """Starts a supervisor; whatever the test does, nothing of it is left."""
    command = [sys.executable, str(SUPERVISED), behaviour, str(workers), str(drain_seconds)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": folder},
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Supervised(process, Path(folder))
        finally:
            process.kill()


def at(event: Event) -> float:
    """Returns when a line was logged, in seconds."""
    return datetime.fromisoformat(event["time"]).timestamp()


def value(text: str, sample: str) -> float:
    """Returns the value of a sample without labels."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{sample} ")]
    return float(line.split()[1])


def test_it_starts_all_workers_and_drains_them_when_told() -> None:
    with supervised("serve", workers=3) as run:
        assert set(run.all_up(3)) == {0, 1, 2}

        run.signal(signal.SIGTERM)

        assert run.code() == 0
        for _ in range(3):
            run.next("worker_ended", code=0)
        assert list(run.folder.iterdir()) == []


def test_a_ctrl_c_in_the_terminal_reaches_the_workers_through_the_supervisor() -> None:
    with supervised("serve", workers=1) as run:
        run.all_up(1)

        os.killpg(run.process.pid, signal.SIGINT)

        assert run.next("supervisor_ending")["why"] == "SIGINT"
        assert run.code() == 0
        run.next("worker_ended", code=0)
        asked = [event["event"] for event in run.events if "asked" in event["event"]]
        assert asked == ["asked to end by SIGTERM"]


def test_a_dead_worker_is_replaced_and_the_others_are_left_alone() -> None:
    with supervised("serve") as run:
        pids = run.all_up(2)

        os.kill(pids[0], signal.SIGKILL)

        replaced = run.next("up")
        assert replaced["worker"] == 0
        assert replaced["pid"] != pids[0]
        ended = [event for event in run.events if event["event"] == "worker_ended"]
        assert [(event["worker"], event["code"]) for event in ended] == [(0, -signal.SIGKILL)]


def test_a_worker_that_dies_at_once_is_started_less_and_less_often() -> None:
    with supervised("crash", workers=1) as run:
        run.next("worker_started")
        for least in (0.25, 0.5, 1):
            ended, started = at(run.next("worker_ended")), at(run.next("worker_started"))

            assert started - ended >= least


def test_a_worker_that_cannot_be_started_is_tried_again() -> None:
    with supervised("absent", workers=1) as run:
        first, second = (at(run.next("worker_not_started")) for _ in range(2))
        assert second - first >= 0.25

        run.signal(signal.SIGTERM)

        assert run.code() == 0


def test_it_gives_up_when_a_worker_may_not_serve() -> None:
    with supervised("refuse") as run:
        assert run.code() == EXIT_REFUSED

        run.next("worker_ended", worker=1, code=EXIT_REFUSED)
        run.next("worker_ended", worker=0)


def test_a_worker_that_does_not_drain_in_time_is_killed() -> None:
    with supervised("stubborn", workers=1, drain_seconds=0.1) as run:
        run.all_up(1)

        run.signal(signal.SIGTERM)

        run.next("worker_killed", worker=0)
        assert run.code() == 1


def test_told_twice_it_waits_for_nobody() -> None:
    with supervised("stubborn", workers=1) as run:
        run.all_up(1)
        run.signal(signal.SIGTERM)
        run.next("asked to end by SIGTERM")

        run.signal(signal.SIGTERM)

        assert run.code() == 1
        run.next("worker_killed", worker=0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_workers_end_when_the_supervisor_dies(number: int) -> None:
    with supervised("serve") as run:
        handles = [os.pidfd_open(pid) for pid in run.all_up(2).values()]

        run.signal(number)

        run.code()
        for handle in handles:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            assert poll.poll(SECONDS * 1_000), "a worker is left"
            os.close(handle)
        run.next("asked to end by SIGTERM", worker=0)


def test_metrics_are_the_sum_of_all_workers() -> None:
    with supervised("serve", workers=3) as run:
        run.all_up(3)

        status, text = run.get("/metrics")

        assert status == 200
        assert (value(text, "dummy_total"), value(text, "dummy_open")) == (15, 3)


def test_what_a_dead_worker_counted_stays_and_what_it_held_goes() -> None:
    with supervised("serve") as run:
        pids = run.all_up(2)
        run.get("/metrics")
        os.kill(pids[0], signal.SIGKILL)
        run.next("worker_ended", worker=0)

        _, text = run.get("/metrics")

        assert (value(text, "dummy_total"), value(text, "dummy_open")) == (10, 1)


def test_it_is_ready_once_a_worker_tells_and_until_it_ends() -> None:
    with supervised("stubborn", workers=1) as run:
        run.all_up(1)
        assert run.get("/readyz") == (200, "ready\n")

        run.signal(signal.SIGTERM)
        run.next("asked to end by SIGTERM")

        assert run.get("/readyz") == (503, "not ready\n")
        assert run.get("/livez") == (200, "alive\n")


def test_it_is_alive_but_not_ready_while_no_worker_tells() -> None:
    with supervised("silent", workers=1) as run:
        run.all_up(1)

        assert run.get("/readyz") == (503, "not ready\n")
        assert run.get("/livez") == (200, "alive\n")
        assert run.get("/metrics") == (200, "")


def test_other_pages_do_not_exist() -> None:
    with supervised("serve", workers=1) as run:
        assert run.get("/") == (404, "not found\n")


def test_a_metrics_address_in_use_is_refused_before_any_worker_starts() -> None:
    lines = Lines()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(OSError, match="in use"):
            Supervisor(
                lambda number, path: [],
                workers=1,
                metrics_listen=Address("127.0.0.1", port),
                drain_seconds=1,
                log=logger(lines),
            )
    lines.close()

"""Starts, restarts and drains the workers of one machine, and shows their metrics as one.

Holds no gRPC object and serves no call: every worker is a new process that listens by itself, and
the kernel spreads connections over them (SO_REUSEPORT). So nothing here can take them all down.
"""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from authz_service.base.clock import boot_seconds
from authz_service.config import Address
from authz_service.telemetry.exposition import SOCKET_SECONDS_MAX, Totals, fetch
from authz_service.telemetry.logs import Logger
from authz_service.telemetry.metrics import largest

# How a worker says that starting it again is useless: a setting or the database refuses it.
# Source: sysexits.h, EX_CONFIG.
EXIT_REFUSED = 78
# A worker that dies is started again after a random part of a time that doubles each time, so that
# workers felled by one cause do not come back, and fall, together.
BACK_OFF_SECONDS_MIN = 0.5
BACK_OFF_SECONDS_MAX = 30.0
# One that lived this long did not die of its start.
STABLE_SECONDS = 60.0
# Beyond the time for draining: to close pools and write the last lines.
GRACE_SECONDS = 5.0

Command = Callable[[int, str], Sequence[str]]


@dataclass
class _Worker:
    """A place for a worker, and the process in it, if any.

    Attributes:
        number: 0 and up.
        metrics_socket: Where the process tells its metrics.
        due_at: When to start a process, while there is none.
        deaths: How many in a row died soon after their start, or could not be started.
    """

    number: int
    metrics_socket: str
    due_at: float
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0


class Supervisor:
    """Keeps a number of workers alive until it gets SIGTERM or SIGINT.

    Args:
        command: Returns the command of a worker, from its number and the path of the unix socket
            on which it must tell its metrics (``Teller``). The worker drains on SIGTERM, calls
            ``end_with_supervisor`` at its start, and ends with EXIT_REFUSED if it may not serve.
        workers: How many.
        environment: Of the workers; None = ours.
        metrics_listen: Where /metrics, /livez and /readyz are shown.
        drain_seconds: What a worker allows itself for draining.
        grace_seconds: What it gets beyond that before it is killed.

    Raises:
        OSError: ``metrics_listen`` cannot be listened on.
    """

    def __init__(
        self,
        command: Command,
        *,
        workers: int,
        metrics_listen: Address,
        drain_seconds: float,
        log: Logger,
        environment: Mapping[str, str] | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._command = command
        self._environment = environment
        self._end_seconds = drain_seconds + grace_seconds
        self._log = log
        self._code = 0
        self._kill_at: float | None = None  # set once it is ending
        self._totals = Totals(largest())
        self._lock = threading.Lock()  # who lives, and what is told of them, change together
        self._page = _page(metrics_listen, self._answer)
        self._folder = tempfile.mkdtemp(prefix="authz-")
        self._workers = [
            _Worker(number, os.path.join(self._folder, str(number)), due_at=0.0)
            for number in range(workers)
        ]

    @property
    def metrics_port(self) -> int:
        """Returns the port of ``metrics_listen``, also if it was chosen for port 0."""
        return int(self._page.server_address[1])

    def run(self) -> int:
        """Runs until told to end and all workers have ended; must be called in the main thread.

        Returns:
            0 after a drain, 1 if a worker had to be killed, EXIT_REFUSED if one may not serve.
        """
        threading.Thread(target=self._page.serve_forever, args=(0.1,), daemon=True).start()
        try:
            with _signals() as wait:
                while True:
                    now = boot_seconds()
                    self._reap(now)
                    if self._kill_at is None:
                        self._start_due(now)
                    elif not self._living():
                        return self._code
                    elif now >= self._kill_at:
                        self._kill()
                    for number in wait(self._seconds_to_next(now)):
                        if number != signal.SIGCHLD:
                            self._end(boot_seconds(), signal.Signals(number).name)
        finally:
            self._kill()
            self._page.shutdown()
            self._page.server_close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _living(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.process is not None]

    def _start_due(self, now: float) -> None:
        for worker in self._workers:
            if worker.process is None and worker.due_at <= now:
                try:
                    process = subprocess.Popen(
                        self._command(worker.number, worker.metrics_socket),
                        env=self._environment,
                        # Ends with us, in whatever way we end.
                        stdin=subprocess.PIPE,
                        # A Ctrl-C in the terminal is for us; the workers get our SIGTERM.
                        start_new_session=True,
                    )
                except OSError as error:  # no memory for one more is no reason to end the others
                    self._log.error("worker_not_started", worker=worker.number, why=str(error))
                    self._back_off(worker, now)
                    continue
                with self._lock:
                    worker.process, worker.started_at = process, now
                self._log.info("worker_started", worker=worker.number, pid=process.pid)

    def _back_off(self, worker: _Worker, now: float) -> None:
        worker.deaths += 1
        longest = min(BACK_OFF_SECONDS_MAX, BACK_OFF_SECONDS_MIN * 2 ** (worker.deaths - 1))
        worker.due_at = now + random.uniform(longest / 2, longest)

    def _reap(self, now: float) -> None:
        for worker in self._living():
            process = worker.process
            if process is None or (code := process.poll()) is None:
                continue
            if process.stdin is not None:
                process.stdin.close()
            with self._lock:
                worker.process = None
                self._totals.retire(str(worker.number))
            lived = now - worker.started_at
            if lived >= STABLE_SECONDS:
                worker.deaths = 0
            self._back_off(worker, now)
            self._log.warning(
                "worker_ended", worker=worker.number, pid=process.pid, code=code, seconds=lived
            )
            if code == EXIT_REFUSED:
                self._code = EXIT_REFUSED
                self._end(now, "a worker may not serve")

    def _end(self, now: float, why: str) -> None:
        """Lets all workers drain; told a second time, lets nobody wait any longer."""
        if self._kill_at is not None:
            self._kill_at = now if why.startswith("SIG") else self._kill_at
            return
        self._log.info("supervisor_ending", why=why)
        self._kill_at = now + self._end_seconds
        for worker in self._living():
            if worker.process is not None:
                worker.process.terminate()

    def _kill(self) -> None:
        for worker in self._living():
            if worker.process is not None and worker.process.poll() is None:
                self._log.warning("worker_killed", worker=worker.number, pid=worker.process.pid)
                worker.process.kill()
                worker.process.wait()
                self._code = self._code or 1

    def _seconds_to_next(self, now: float) -> float | None:
        if self._kill_at is not None:
            return max(0.0, self._kill_at - now)
        due = [worker.due_at for worker in self._workers if worker.process is None]
        return max(0.0, min(due) - now) if due else None

    def _answer(self, path: str) -> tuple[int, bytes] | None:
        """Returns status and text of a page, None for an unknown one; runs in other threads."""
        if path == "/livez":
            return 200, b"alive\n"
        if path == "/readyz":
            told = (fetch(worker.metrics_socket) for worker in self._living())
            if self._kill_at is None and any(text is not None for text in told):
                return 200, b"ready\n"
            return 503, b"not ready\n"
        if path != "/metrics":
            return None
        for worker in self._living():
            process = worker.process
            text = fetch(worker.metrics_socket)
            with self._lock:
                # It may have ended meanwhile; what is told of it now would stay for ever.
                if text is not None and process is not None and worker.process is process:
                    self._totals.tell(str(worker.number), text)
        with self._lock:
            return 200, self._totals.render()


def end_with_supervisor() -> None:
    """Sends SIGTERM to this process, a worker, once its supervisor is gone.

    An orphan would go on serving beside the workers of the next supervisor, with old settings. Its
    standard input is a pipe that nothing is written to and that ends with the supervisor.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[float | None], bytes]]:
    """Yields a function that waits, at most so many seconds, and returns the signals that came."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    before = [signal.signal(number, lambda *_: None) for number in watched]

    def wait(seconds: float | None) -> bytes:
        select.select([ours], [], [], seconds)
        try:
            return ours.recv(4096)
        except BlockingIOError:
            return b""

    try:
        yield wait
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        ours.close()
        theirs.close()


def _page(
    address: Address, answer: Callable[[str], tuple[int, bytes] | None]
) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = SOCKET_SECONDS_MAX

        def do_GET(self) -> None:
            status, text = answer(self.path) or (404, b"not found\n")
            self.send_response(status)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def version_string(self) -> str:
            return "authz_service"

        def log_message(self, format: str, *args: Any) -> None:
            """Probes are no news."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A reader that went away is its own business."""

    return Server((address.host, address.port), Handler)

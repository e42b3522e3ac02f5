"""A process that owns one server process: starts, stops and kills it, and cleans up after it.

Run by file path, not as a module, with the standard library alone: it must start in a moment and
keep nothing else alive. Its first line of input is the ``Order`` as JSON, the following ones are
commands (``start``, ``stop``, ``kill``, ``pause``, ``resume``, ``poll``), each answered by one line
of JSON. When its input ends, because the owner closed it or died in whatever way, it stops the
server and deletes what the order says. That is why it exists: no ``atexit`` runs in an owner that
was killed, and a server that survives its test poisons the next one.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        command: The server, in the foreground.
        setup: Runs once, before the first start; empty = nothing to set up.
        user, group: Numeric ids to run both as; None = ours.
        environment: The whole environment of both.
        directory: Their working directory.
        log: File that receives what both print.
        ready_file, ready_text: The server is ready once this file contains this text.
        ready_seconds: How long that may take.
        stop_signal: Asks the server to end.
        stop_seconds: How long that may take before it is killed.
        delete: Folders to delete in the end.
    """

    command: list[str]
    setup: list[str]
    user: int | None
    group: int | None
    environment: dict[str, str]
    directory: str
    log: str
    ready_file: str
    ready_text: str
    ready_seconds: float
    stop_signal: int
    stop_seconds: float
    delete: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Returns the order as one line."""
        return json.dumps(asdict(self))


class _Failed(Exception):
    """The server cannot be started; the text says why."""


def _die_with(keeper: int, number: int) -> Callable[[], None] | None:
    """Returns what a child runs before its program, so that it gets a signal if the keeper dies.

    Only for the keeper killed itself: nothing else is left then that could stop the server. It
    runs after the change of user, which would clear the setting.

    Source: prctl(2), PR_SET_PDEATHSIG; Linux only.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def preexec() -> None:
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != keeper:  # it died before the setting was made
            os._exit(1)

    return preexec


class Keeper:
    """Carries out one order."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._server: subprocess.Popen[bytes] | None = None
        self._is_set_up = not order.setup

    def start(self) -> dict[str, Any]:
        """Starts the server, unless it runs, and waits until it is ready.

        Raises:
            _Failed: It ended, or was not ready in time; it does not run then.
        """
        if not self._is_set_up:
            code = self._spawn(self._order.setup, signal.SIGKILL).wait()
            if code != 0:
                raise _Failed(f"{self._order.setup[0]} ended with code {code}")
            self._is_set_up = True
        if self._server is None or self._server.poll() is not None:
            ready = Path(self._order.ready_file)
            ready.unlink(missing_ok=True)  # left by a server that was killed
            self._server = self._spawn(self._order.command, self._order.stop_signal)
            deadline = time.monotonic() + self._order.ready_seconds
            while not self._is_ready(ready):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self._server.wait(_POLL_SECONDS)
                    raise _Failed(f"{self._order.command[0]} ended with code {code}")
                if time.monotonic() > deadline:
                    self.kill()
                    raise _Failed(f"not ready after {self._order.ready_seconds:g} seconds")
        return {"pid": self._server.pid}

    def stop(self) -> dict[str, Any]:
        """Asks the server to end, waits, and kills it if it does not."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(self._order.stop_signal)
            try:
                self._server.wait(self._order.stop_seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.poll()

    def kill(self) -> dict[str, Any]:
        """Ends the server without warning, as a power cut would."""
        if self._server is not None and self._server.poll() is None:
            self._server.kill()
            self._server.wait()
        return self.poll()

    def pause(self) -> dict[str, Any]:
        """Lets the server do nothing at all until it is resumed; it does nothing from now on."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGSTOP)
            if hasattr(os, "waitid"):  # macOS has none in older Pythons
                # The kernel says when all threads stand still; an end is left for poll() to see.
                os.waitid(os.P_PID, self._server.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return self.poll()

    def resume(self) -> dict[str, Any]:
        """Lets a paused server go on."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGCONT)
        return self.poll()

    def poll(self) -> dict[str, Any]:
        """Tells how the server ended; ``code`` is None while it runs or if it never ran."""
        return {"code": None if self._server is None else self._server.poll()}

    def end(self) -> None:
        """Stops the server and deletes what the order says; nothing may interrupt it."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.stop()
        for folder in self._order.delete:
            shutil.rmtree(folder, ignore_errors=True)

    def _is_ready(self, file: Path) -> bool:
        try:
            return self._order.ready_text in file.read_text()
        except FileNotFoundError:
            return False

    def _spawn(self, command: list[str], death_signal: int) -> subprocess.Popen[bytes]:
        order = self._order
        with open(order.log, "ab") as log:
            try:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=order.directory,
                    env=order.environment,
                    user=order.user,
                    group=order.group,
                    extra_groups=None if order.user is None else [],
                    preexec_fn=_die_with(os.getpid(), death_signal),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise _Failed(f"{command[0]}: {error}") from None


def main() -> None:
    """Reads the order and then commands from standard input, until it ends."""
    keeper = Keeper(Order(**json.loads(sys.stdin.readline())))
    actions = {
        "start": keeper.start,
        "stop": keeper.stop,
        "kill": keeper.kill,
        "pause": keeper.pause,
        "resume": keeper.resume,
        "poll": keeper.poll,
    }
    # A polite end (a service manager, a shutting-down machine) must clean up as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for line in sys.stdin:
            try:
                answer = actions[line.strip()]()
            except _Failed as error:
                answer = {"failed": str(error)}
            print(json.dumps(answer), flush=True)
    except BrokenPipeError:  # the owner died while we answered
        pass
    finally:
        keeper.end()


if __name__ == "__main__":
    main()

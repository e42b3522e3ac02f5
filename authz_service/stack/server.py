"""What all servers of the stack share: each is run by a keeper (see keeper.py), which obeys us."""

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from authz_service.stack.keeper import Order

_KEEPER = Path(__file__).with_name("keeper.py")
_LOG_LINES_SHOWN = 20


class StackError(Exception):
    """A server of the stack is not installed, or does not start; the text is for the user."""


class KeptServer:
    """A server that ends with us, also when we are killed.

    Attributes:
        name: What the program is called in messages.
        log: File with all the server printed.
        pid: Process id of the server; changes with each start.
    """

    def __init__(self, name: str, order: Order) -> None:
        self.name = name
        self.log = Path(order.log)
        self.pid = 0
        self._lock = threading.Lock()  # one command and its answer at a time
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_KEEPER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Its own session: a Ctrl-C in the terminal is for the owner, which then ends us.
            start_new_session=True,
        )
        try:
            self._send(order.to_json())
        except StackError:
            self.close()
            raise

    @property
    def keeper_pid(self) -> int:
        """Returns the process that owns the server for us; it ends after the server."""
        return self._keeper.pid

    def start(self) -> None:
        """Starts the server, unless it runs; the URL is that of before.

        Raises:
            StackError: It does not start, with the end of its log.
        """
        answer = self._ask("start")
        if "pid" not in answer:
            raise StackError(f"{self.name} did not start: {answer['failed']}{self._end_of_log()}")
        self.pid = answer["pid"]

    def kill(self) -> None:
        """Kills the server, as a power cut would."""
        self._ask("kill")

    def is_running(self) -> bool:
        """Returns whether the server's process exists."""
        return self.pid != 0 and self._ask("poll")["code"] is None

    def close(self) -> None:
        """Ends the server for good and deletes what is throwaway; later calls do nothing."""
        if self._keeper.stdin is not None and not self._keeper.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.close()
        self._keeper.wait()
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()

    def _send(self, line: str) -> None:
        assert self._keeper.stdin is not None
        try:
            print(line, file=self._keeper.stdin, flush=True)
        except (BrokenPipeError, ValueError):
            raise StackError(f"the process that keeps {self.name} has ended") from None

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._keeper.stdout is not None
        with self._lock:
            self._send(command)
            line = self._keeper.stdout.readline()
        if not line:
            raise StackError(f"the process that keeps {self.name} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end_of_log(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "".join(f"\n  {line}" for line in lines[-_LOG_LINES_SHOWN:])

"""Stopping a server with all processes it has made, as a machine that hangs would."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

_POLL_SECONDS = 0.01


@contextlib.contextmanager
def all_stopped(pid: int) -> Iterator[None]:
    """Stops a process and its children during the block, by their process ids.

    The parent first: what it cannot do meanwhile is to make another child, or to see one end.
    """
    _stop(pid)
    children = _children(pid)
    try:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                _stop(child)
        yield
    finally:
        for each in (*children, pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _stop(pid: int) -> None:
    """Stops a process and waits until the kernel says that it stands still."""
    os.kill(pid, signal.SIGSTOP)
    while _state(pid) not in "TZX":
        threading.Event().wait(_POLL_SECONDS)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"

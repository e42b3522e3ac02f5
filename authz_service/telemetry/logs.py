"""What is written to standard error: JSON, one line per message, without secrets.

Lines go through a queue to one writing thread, so that a full disk or a stuck reader of our
standard error never holds up a call.
"""

import json
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol

import structlog

LINES_MAX = 10_000
# The writer wakes at the first line and then gathers for this long: under load one system call
# writes hundreds of lines. A killed process loses at most this much of its log.
GATHER_SECONDS = 0.02

_SECRETS = (
    # Service credentials and API keys: the row's id may be shown, the rest not.
    (re.compile(r"\b(azc|sk)_([0-9A-HJKMNP-TV-Z]{26})_[0-9A-Za-z]{8,}"), r"\1_\2_***"),
    (re.compile(r"(?i)\bbearer\s+\S+"), "Bearer ***"),
    # The password inside a URL; greedy, since a wrong configuration may hold an @ in it.
    (re.compile(r"(://[^:/@\s]*):\S*@"), r"\1:***@"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), "***"),
)
_SECRET_NAMES = re.compile(r"(?i)secret|password|token|authorization|bearer|root_key|private")


def redacted(text: str) -> str:
    """Returns the text with everything that looks like one of our secrets replaced by ``***``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


#: A line of the log, or what makes it.
Line = str | Callable[[], str]


class Lines:
    """A bounded queue of log lines and the thread that writes them.

    Args:
        descriptor: Open file descriptor to write to; stays open.
        on_dropped: Told how many lines were lost: the queue was full or writing failed.
    """

    def __init__(
        self,
        descriptor: int = 2,
        *,
        lines_max: int = LINES_MAX,
        on_dropped: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._descriptor = descriptor
        self._lines: deque[tuple[Line, int]] = deque()
        self._waiting = 0
        self._lock = threading.Lock()
        self._lines_max = lines_max
        self._on_dropped = on_dropped
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: Line, count: int = 1) -> None:
        """Queues a line without its end; drops it if LINES_MAX are waiting.

        A function is called by the writing thread, which formats many lines at once for a third of
        what each of them costs in the middle of a call. It must hold on to nothing large.

        Args:
            count: How many lines it is.
        """
        with self._lock:
            if self._waiting + count > self._lines_max:
                is_full = True
            else:
                is_full = False
                self._waiting += count
                self._lines.append((line, count))
        if is_full:
            self._on_dropped(count)
            return
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Writes what is waiting and ends the thread."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(GATHER_SECONDS)
            self._wake.clear()
            self._drain()
        self._drain()

    def _drain(self) -> None:
        lines = self._lines
        while lines:
            # Only this thread takes out, so what is counted here is there.
            batch = [lines.popleft() for _ in range(min(len(lines), 1_000))]
            count = sum(each for _, each in batch)
            with self._lock:
                self._waiting -= count
            text = "\n".join([_text(line) for line, _ in batch]) + "\n"
            data = text.encode("utf-8", "backslashreplace")
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._on_dropped(count)


def _text(line: Line) -> str:
    if isinstance(line, str):
        return line
    try:
        return line()
    except Exception as error:
        return json.dumps({"event": "a log line failed", "error": type(error).__name__})


def _shown(value: Any, depth: int = 0) -> Any:
    """Returns a value without secrets: texts are searched, containers are walked."""
    if isinstance(value, str):
        return redacted(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < 4:
        if isinstance(value, Mapping):
            return {
                str(key): "***" if _SECRET_NAMES.search(str(key)) else _shown(item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [_shown(item, depth + 1) for item in value]
    return redacted(str(value))


def redact(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: replaces secrets by type, by their key's name and by their look."""
    for key, value in event.items():
        event[key] = "***" if _SECRET_NAMES.search(key) else _shown(value)
    return event


class Writing(Protocol):
    """Where lines go; usually ``Lines``."""

    def write(self, line: Line) -> None:
        """Takes one line; neither waits nor raises."""


class _LineLogger:
    """What structlog writes to."""

    def __init__(self, lines: Writing) -> None:
        self._lines = lines

    def msg(self, message: str) -> None:
        self._lines.write(message)

    debug = info = warning = error = critical = exception = msg


Logger = structlog.typing.FilteringBoundLogger


def logger(lines: Writing, *, level: int = 20) -> Logger:
    """Returns a logger that writes JSON lines with time, level, event and the given fields.

    Args:
        level: Lowest level written, as in ``logging``: 10 debug, 20 info, 30 warning.
    """
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        _LineLogger(lines),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        context_class=dict,
        cache_logger_on_first_use=False,
    )

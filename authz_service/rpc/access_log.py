"""One line and one observation per call: who called what, how it ended, how long it took.

Formatted by hand: a line through `logging` costs 16 us, this one 2. It never holds a message, a
secret or metadata; of a caller's text only ids appear, escaped and cut.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from authz_service.base.clock import boot_seconds, wall_milliseconds
from authz_service.rpc import metadata
from authz_service.rpc.call import Call, Context
from authz_service.rpc.methods import DECISION, Method
from authz_service.telemetry.logs import Line
from authz_service.telemetry.metrics import Metrics

UNKNOWN_METHOD = "unknown"
TEXT_MAX = 128


class Record:
    """What is known of a call so far; filled on its way and written at its end.

    Attributes:
        found: The metadata with a meaning, unchecked (``metadata.collected``).
        code: Name of the gRPC code; OK until a refusal says otherwise.
        reason: The reason of the refusal, empty for OK.
        allowed: True only for a decision that was answered with yes.
        is_admitted: Its caller's rate has given the one unit that every call costs.
        is_charged: And the rest.
    """

    __slots__ = (
        "actor_id", "actor_kind", "allowed", "call", "code", "context", "found", "is_admitted",
        "is_charged", "method", "reason", "request_id", "trace_id",
    )  # fmt: skip

    def __init__(self, call: Call, method: Method | None, found: dict[str, str]) -> None:
        self.call = call
        self.method = method
        self.found = found
        self.request_id = metadata.request_id(found)
        self.trace_id = metadata.trace_id(found)
        self.actor_kind = ""
        self.actor_id = ""
        self.context: Context | None = None
        self.code = "OK"
        self.reason = ""
        self.allowed = False
        self.is_admitted = self.is_charged = False


class AccessLog:
    """Writes the records of calls.

    Args:
        write: Takes lines, or the function that makes them, and how many they are; must neither
            wait nor raise (``telemetry.logs.Lines.write``).
        allowed_every: Of the decisions answered with yes, every how manyth is written: 1 = all,
            0 = none. Everything else is always written.
    """

    def __init__(
        self, write: Callable[[Line, int], None], metrics: Metrics, *, allowed_every: int = 1
    ) -> None:
        self._write = write
        self._metrics = metrics
        self._allowed_every = allowed_every
        self._allowed_seen = 0
        # (second since 1970, that second as text): one value, so that threads see both or neither.
        self._clock_text = (-1, "")

    def end(self, record: Record) -> None:
        """Counts the call and writes its line."""
        self.end_all((record,))

    def end_all(self, records: Sequence[Record]) -> None:
        """Counts calls that end together and writes their lines."""
        now, at_ms = boot_seconds(), wall_milliseconds()
        observed: dict[tuple[str, str], list[float]] = {}
        lines: list[tuple[Any, ...]] = []
        for record in records:
            seconds = now - record.call.arrived
            method = record.method
            path = method.path if method is not None else UNKNOWN_METHOD
            observed.setdefault((path, record.code), []).append(seconds)
            if record.allowed and method is not None and method.work == DECISION:
                # Two threads may count the same number: then one line more or less is written.
                self._allowed_seen += 1
                if not self._allowed_every or self._allowed_seen % self._allowed_every:
                    continue
            context = record.context
            # Only what is shown goes along: nothing large and no secret may wait for the log.
            lines.append(
                (
                    at_ms,
                    path,
                    record.code,
                    record.reason,
                    seconds,
                    record.request_id,
                    record.trace_id,
                    record.actor_kind,
                    record.actor_id,
                    context.organization_id if context is not None else "",
                    context.log if context is not None else {},
                )
            )
        for labels, values in observed.items():
            self._metrics.rpc_seconds.observe_all(values, *labels)
        if lines:
            self._write(partial(self._lines, lines), len(lines))

    def _lines(self, lines: Sequence[tuple[Any, ...]]) -> str:
        return "\n".join([self._line(*line) for line in lines])

    def _line(
        self,
        at_ms: int,
        path: str,
        code: str,
        reason: str,
        seconds: float,
        request_id: str,
        trace_id: str,
        actor_kind: str,
        actor_id: str,
        organization_id: str,
        more: Mapping[str, int | float | str],
    ) -> str:
        line = (
            f'{{"time":"{self._time(at_ms)}","method":"{path}","code":"{code}",'
            f'"seconds":{seconds:.6f},"request_id":{quoted(request_id)}'
        )
        if reason:
            line += f',"reason":"{reason}"'
        if actor_kind:
            line += f',"actor_kind":"{actor_kind}","actor_id":{quoted(actor_id[:TEXT_MAX])}'
        if trace_id:
            line += f',"trace_id":"{trace_id}"'
        if organization_id:
            line += f',"organization_id":{quoted(organization_id[:TEXT_MAX])}'
        for key, value in more.items():
            shown = quoted(value[:TEXT_MAX]) if isinstance(value, str) else value
            line += f',"{key}":{shown}'
        return line + "}"

    def _time(self, milliseconds: int) -> str:
        second, text = self._clock_text
        if second != milliseconds // 1000:
            second = milliseconds // 1000
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._clock_text = (second, text)
        return f"{text}.{milliseconds % 1000:03d}Z"

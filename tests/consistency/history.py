"""What a run recorded: registers, the writes that changed them, and what was read of them.

A register is a part of the world that one writer changes, one write after the other, and that many
readers ask about. All times are seconds of one clock, that of the process that records.
"""

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Value = Hashable
NEVER = math.inf


class Write(NamedTuple):
    """A change of a register.

    Attributes:
        invoked: Before its first attempt was sent.
        acknowledged: After the answer that it is done arrived; ``NEVER`` without one.
        value: Of the register once it has happened.
    """

    invoked: float
    acknowledged: float
    value: Value


class Read(NamedTuple):
    """An answer about a register.

    Attributes:
        started: Before the question was sent.
        ended: After the answer arrived.
        reader: Who asked.
    """

    started: float
    ended: float
    value: Value
    reader: str = ""


class Relaxed(NamedTuple):
    """An answer that was allowed to be older than its question.

    Attributes:
        started, ended, value, reader: As of a ``Read``.
        version: The least version that it must show: the one whose token came with the question.
        since: What a write had ended before this instant it must not show.
    """

    started: float
    ended: float
    value: Value
    reader: str
    version: int
    since: float


@dataclass(slots=True)
class Register:
    """The history of a register.

    Attributes:
        kind: Which kind of change it is about.
        initial: Its value before the first write.
        writes: In their order; each was sent after the one before was acknowledged.
        singles: Reads of a single element of the value, by its place.
        relaxed: Reads that are never judged as of now.
    """

    name: str
    kind: str
    initial: Value
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    singles: dict[int, list[Read]] = field(default_factory=lambda: defaultdict(list))
    relaxed: list[Relaxed] = field(default_factory=list)

    def values(self) -> list[Value]:
        """Returns the value at each version; version 0 is the initial one."""
        return [self.initial, *(write.value for write in self.writes)]

    def parts(self) -> "list[Register]":
        """Returns a register for each element of the value that was read alone."""

        def part(value: Any, place: int) -> Value:
            return (value[place],)

        return [
            Register(
                f"{self.name} [{place}]",
                self.kind,
                part(self.initial, place),
                [write._replace(value=part(write.value, place)) for write in self.writes],
                reads,
            )
            for place, reads in sorted(self.singles.items())
        ]


class Finding(NamedTuple):
    """An answer that no correct service gives.

    Attributes:
        judge: Who found it.
        kind: ``stale``: what an acknowledged write had ended. ``backwards``: older than what a
            finished read had shown. ``mixed``: no single instant has it. ``impossible``: no order
            of the calls explains them.
        age: For how many seconds it had been wrong when it was asked; 0 where unknown.
    """

    judge: str
    kind: str
    register: str
    read: Read | Relaxed
    age: float = 0.0

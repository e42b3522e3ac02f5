"""What a run recorded: registers, the writes that changed them, and what was read of them.

A register is a part of the world that one writer changes, one write after the other, and that many
readers ask about. All times are seconds of one clock, that of the process that records.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

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


@dataclass(slots=True)
class Register:
    """The history of a register.

    Attributes:
        kind: Which kind of change it is about.
        initial: Its value before the first write.
        writes: In their order; each was sent after the one before was acknowledged.
    """

    name: str
    kind: str
    initial: Value
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def values(self) -> list[Value]:
        """Returns the value at each version; version 0 is the initial one."""
        return [self.initial, *(write.value for write in self.writes)]


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
    read: Read
    age: float = 0.0

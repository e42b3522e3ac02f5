"""Visit every state of a configuration, or find the shortest way to a broken promise."""

import gc
import itertools
import time
from dataclasses import dataclass, field

from tests.model.configurations import Configuration
from tests.model.protocol import Protocol
from tests.model.scripts import SETTLING, Violation


@dataclass
class Result:
    """What a search found. Complete = no state is left that was not visited."""

    configuration: Configuration
    mutations: frozenset[str]
    states: int
    seconds: float
    complete: bool
    violation: str = ""
    trace: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        """Return the steps to the violation, one on a line."""
        return "\n".join(
            [f"{self.configuration.name}: {self.violation or 'no violation'}", *self.trace]
        )


class _Numbers:
    """Small numbers for parts of states, so that a state is a short tuple of numbers."""

    def __init__(self):
        self.of: dict[tuple, int] = {}
        self.parts: list[tuple] = []

    def __call__(self, part: tuple) -> int:
        number = self.of.get(part)
        if number is None:
            number = self.of[part] = len(self.parts)
            self.parts.append(part)
        return number


class Search:
    """Breadth first, with the steps of each part remembered.

    What a process can do depends on SQL, Redis and itself only, and so on for the other parts. The
    same combination comes back in many states, so its steps are computed once.
    """

    def __init__(self, configuration: Configuration, mutations=()):
        self.configuration = configuration
        self.mutations = frozenset(mutations)
        self.protocol = Protocol(configuration, self.mutations)
        self.sql, self.redis, self.writers = _Numbers(), _Numbers(), _Numbers()
        self.faults, self.processes = _Numbers(), _Numbers()
        self._settle: dict[tuple[int, int], bool] = {}

    def _process(self, sql: int, redis: int, process: int, labels: bool = False) -> list:
        steps = self.protocol.process_steps(
            self.sql.parts[sql], self.redis.parts[redis], self.processes.parts[process]
        )
        out = []
        for label, redis_after, after in steps:
            number = -1 if isinstance(after, Violation) else self.processes(after)
            new = (self.redis(redis_after), number)
            if number < 0 or new != (redis, process):
                out.append((label, *new) if labels else new)
        return out if labels else list(dict.fromkeys(out))

    def _writer(self, sql: int, redis: int, writers: int, labels: bool = False) -> list:
        steps = self.protocol.writer_steps(
            self.sql.parts[sql], self.redis.parts[redis], self.writers.parts[writers]
        )
        out = []
        for label, sql_after, redis_after, after in steps:
            number = -1 if isinstance(after, Violation) else self.writers(after)
            new = (self.sql(sql_after), self.redis(redis_after), number)
            out.append((label, *new) if labels else new)
        return out if labels else list(dict.fromkeys(out))

    def _fault(self, redis: int, faults: int, labels: bool = False) -> list:
        steps = self.protocol.fault_steps(self.redis.parts[redis], self.faults.parts[faults])
        out = []
        for label, redis_after, after in steps:
            new = (self.redis(redis_after), self.faults(after))
            out.append((label, *new) if labels else new)
        return out if labels else list(dict.fromkeys(out))

    def _settled(self, sql: int, processes: tuple) -> int:
        """Return the SQL after settle, or -1."""
        parts = self.sql.parts[sql]
        if parts[2] != SETTLING:
            return -1
        for process in processes:
            key = (process, parts[1])
            blocks = self._settle.get(key)
            if blocks is None:
                blocks = self.protocol.blocks_settle(self.processes.parts[process], parts[1])
                self._settle[key] = blocks
            if blocks:
                return -1
        return self.sql(self.protocol.settled(parts))

    def start(self) -> tuple:
        """Return the first state."""
        sql, redis, writers, faults, processes = self.protocol.initial()
        return (
            self.sql(sql),
            self.redis(redis),
            self.writers(writers),
            self.faults(faults),
            *(self.processes(process) for process in processes),
        )

    def run(self, limit: int = 0, seconds: float = 0) -> Result:
        """Visit all states, up to the first violation or a limit."""
        # Nothing here is cyclic, and the collector would go through all states again and again.
        gc.disable()
        try:
            return self._run(limit, seconds)
        finally:
            gc.enable()

    def _run(self, limit: int, seconds: float) -> Result:
        began = time.perf_counter()
        start = self.start()
        visited: dict[tuple, tuple | None] = {start: None}
        layer = [start]
        process_steps: dict = {}
        writer_steps: dict = {}
        fault_steps: dict = {}
        bad = None
        complete = True
        two = self.configuration.processes > 1
        settling = [part[2] == SETTLING for part in self.sql.parts]
        while layer and bad is None:
            following: list[tuple] = []
            add = following.append
            for state in layer:
                sql, redis, writers, faults, *processes = state
                first = processes[0]
                key = (sql, redis, writers)
                steps = writer_steps.get(key)
                if steps is None:
                    steps = writer_steps[key] = self._writer(*key)
                rest = state[3:]
                for step in steps:
                    new = step + rest
                    if new not in visited:
                        visited[new] = state
                        add(new)
                        if step[2] < 0:
                            bad = new
                key = (redis, faults)
                steps = fault_steps.get(key)
                if steps is None:
                    steps = fault_steps[key] = self._fault(*key)
                for redis_after, faults_after in steps:
                    new = (sql, redis_after, writers, faults_after, *processes)
                    if new not in visited:
                        visited[new] = state
                        add(new)
                key = (sql, redis, first)
                steps = process_steps.get(key)
                if steps is None:
                    steps = process_steps[key] = self._process(*key)
                if two:
                    second = processes[1]
                    for redis_after, after in steps:
                        if after <= second:
                            new = (sql, redis_after, writers, faults, after, second)
                        else:
                            new = (sql, redis_after, writers, faults, second, after)
                        if new not in visited:
                            visited[new] = state
                            add(new)
                            if after < 0:
                                bad = new
                    key = (sql, redis, second)
                    steps = process_steps.get(key)
                    if steps is None:
                        steps = process_steps[key] = self._process(*key)
                    for redis_after, after in steps:
                        if after <= first:
                            new = (sql, redis_after, writers, faults, after, first)
                        else:
                            new = (sql, redis_after, writers, faults, first, after)
                        if new not in visited:
                            visited[new] = state
                            add(new)
                            if after < 0:
                                bad = new
                else:
                    for redis_after, after in steps:
                        new = (sql, redis_after, writers, faults, after)
                        if new not in visited:
                            visited[new] = state
                            add(new)
                            if after < 0:
                                bad = new
                while len(settling) < len(self.sql.parts):
                    settling.append(self.sql.parts[len(settling)][2] == SETTLING)
                if settling[sql]:
                    settled = self._settled(sql, tuple(processes))
                    if settled >= 0:
                        new = (settled, redis, writers, faults, *processes)
                        if new not in visited:
                            visited[new] = state
                            add(new)
                if bad is not None:
                    break
            layer = following
            if (limit and len(visited) > limit) or (
                seconds and time.perf_counter() - began > seconds
            ):
                complete = not layer
                break
        result = Result(
            self.configuration,
            self.mutations,
            len(visited),
            time.perf_counter() - began,
            complete and bad is None,
            seen=self.protocol.seen,
        )
        if bad is not None:
            result.trace = self._trace(visited, bad)
            result.violation = result.trace[-1]
        return result

    def _trace(self, visited: dict, state: tuple) -> list[str]:
        """Return the steps from the start to a state, as text."""
        path = [state]
        while (before := visited[path[-1]]) is not None:
            path.append(before)
        path.reverse()
        # States hold their processes sorted; here each keeps its name.
        names = list(path[0][4:])
        return [
            f"{number:3} {self._label(before, after, names)}"
            for number, (before, after) in enumerate(itertools.pairwise(path), 1)
        ]

    def _label(self, before: tuple, after: tuple, names: list[int]) -> str:
        sql, redis, writers, faults, *processes = before
        for label, *new in self._writer(sql, redis, writers, labels=True):
            if (*new, *before[3:]) == after:
                return _text(label)
        for label, redis_after, faults_after in self._fault(redis, faults, labels=True):
            if (sql, redis_after, writers, faults_after, *processes) == after:
                return _text(label)
        for place, process in enumerate(list(names)):
            others = names[:place] + names[place + 1 :]
            for label, redis_after, new in self._process(sql, redis, process, labels=True):
                if (sql, redis_after, writers, faults, *sorted([new, *others])) == after:
                    names[place] = new
                    who = f"process {place + 1}: " if others else ""
                    return who + _text(label)
        return "settle: mode off"


def _text(label: tuple) -> str:
    return " ".join(map(str, label))

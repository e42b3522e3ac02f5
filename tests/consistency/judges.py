"""Judges of recorded histories: pure functions that return what a correct service never does.

They share no code on purpose: a mistake in one is no mistake in the others.
"""

import bisect
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.consistency.history import NEVER, Finding, Read, Register, Value, Write

# A window of this many calls has at most a few thousand orders.
WINDOW_CALLS_MAX = 8


def floor_monitor(register: Register) -> list[Finding]:
    """Compares each read with the versions it may show (judge a).

    A read that starts after version v was acknowledged shows v or a later one that was sent before
    the read ended; and none shows less than a read that had ended before it started. Each read is
    taken for the oldest version that it can be, so nobody is accused without need.
    """
    values = register.values()
    acknowledged = [write.acknowledged for write in register.writes]
    invoked = [write.invoked for write in register.writes]
    versions: dict[Value, list[int]] = {}
    for version, value in enumerate(values):
        versions.setdefault(value, []).append(version)
    findings = []
    shown = 0  # by reads that have ended
    ending: list[tuple[float, int]] = []
    for read in sorted(register.reads):
        while ending and ending[0][0] < read.started:
            shown = max(shown, heapq.heappop(ending)[1])
        floor = bisect.bisect_left(acknowledged, read.started)
        newest = bisect.bisect_left(invoked, read.ended)
        known = versions.get(read.value, [])
        allowed = known[bisect.bisect_left(known, floor) : bisect.bisect_right(known, newest)]
        if not allowed:
            kind = "stale" if known else "mixed"
            findings.append(Finding("floor", kind, register.name, read, _age(register, read)))
            continue
        later = [version for version in allowed if version >= shown]
        if not later:
            findings.append(Finding("floor", "backwards", register.name, read))
            continue
        heapq.heappush(ending, (read.ended, later[0]))
    return findings


def _age(register: Register, read: Read) -> float:
    """Returns since when the value had been gone for certain when the read started."""
    gone = 0.0
    value = register.initial
    for write in register.writes:
        if write.acknowledged >= read.started:
            break
        if value == read.value != write.value:
            gone = read.started - write.acknowledged
        value = write.value
    return gone


def interval_judge(register: Register) -> list[Finding]:
    """Reports reads that differ between two writes (judge b).

    After a write was acknowledged and before the next one is sent there is one value, and all that
    is asked and answered meanwhile must show it.
    """
    findings = []
    reads = sorted(register.reads)
    begins = [-NEVER, *(write.acknowledged for write in register.writes)]
    ends = [*(write.invoked for write in register.writes), NEVER]
    for begin, end, value in zip(begins, ends, register.values(), strict=True):
        first = bisect.bisect_right(reads, begin, key=lambda read: read.started)
        for read in reads[first:]:
            if read.started >= end:
                break
            if read.ended < end and read.value != value:
                findings.append(
                    Finding("interval", "stale", register.name, read, read.started - begin)
                )
    return findings


def instant_judge(register: Register) -> list[Finding]:
    """Reports values that the register had at no instant (judge c, I7).

    Some registers are about several facts: "may, in the folder" and "is in the folder". Their
    writes are ordered so that a mixture of an old and a new fact is a value that never was.
    """
    known = set(register.values())
    return [
        Finding("instant", "mixed", register.name, read)
        for read in register.reads
        if read.value not in known
    ]


def bound_judge(register: Register) -> list[Finding]:
    """Reports relaxed reads that show less than they must.

    It is the floor monitor's rule, with a floor of the question's own: the version whose token came
    with it, and what was so at the oldest instant that it allowed. That others have read a newer
    version proves nothing here.
    """
    values = register.values()
    acknowledged = [write.acknowledged for write in register.writes]
    invoked = [write.invoked for write in register.writes]
    findings = []
    for read in register.relaxed:
        floor = max(read.version, bisect.bisect_left(acknowledged, read.since))
        newest = bisect.bisect_left(invoked, read.ended)
        if read.value not in values[floor : newest + 1]:
            kind = "stale" if read.value in values else "mixed"
            findings.append(Finding("bound", kind, register.name, read))
    return findings


# --- (d) linearizability -------------------------------------------------------------------------


class Window(NamedTuple):
    """A few calls of a register, and the value before all of them."""

    before: Value
    writes: tuple[Write, ...]
    reads: tuple[Read, ...]


def windows(register: Register) -> Iterator[Window]:
    """Yields parts of a history that must be linearizable by themselves.

    Each is one write, or two, with reads that can have met no other write. A linearizable history
    stays so without some of its reads, so the others may be left out.
    """
    writes, reads = register.writes, sorted(register.reads)
    for count in (1, 2):
        for first in range(len(writes) - count + 1):
            last = first + count - 1
            begin = writes[first - 1].acknowledged if first else -NEVER
            end = writes[last + 1].invoked if last + 1 < len(writes) else NEVER
            start = bisect.bisect_right(reads, begin, key=lambda read: read.started)
            within: list[Read] = []
            for read in reads[start:]:
                if read.started >= end:
                    break
                if read.ended < end:
                    within.append(read)
            # Those nearest to the writes say most.
            middle = writes[first].invoked
            near = heapq.nsmallest(
                WINDOW_CALLS_MAX - count,
                within,
                key=lambda read: max(read.started - middle, middle - read.ended, 0.0),
            )
            before = writes[first - 1].value if first else register.initial
            yield Window(before, tuple(writes[first : last + 1]), tuple(sorted(near)))


def is_linearizable(window: Window) -> bool:
    """Tries all orders of the calls that real time allows, until one explains every read."""
    calls: list[tuple[float, float, bool, Value]] = [
        (write.invoked, write.acknowledged, True, write.value) for write in window.writes
    ]
    calls += [(read.started, read.ended, False, read.value) for read in window.reads]
    dead: set[tuple[int, Value]] = set()

    def explained(left: int, value: Value) -> bool:
        if all(calls[i][1] == NEVER for i in range(len(calls)) if left >> i & 1):
            # What never was acknowledged need not have happened.
            return True
        if (left, value) in dead:
            return False
        first_end = min(calls[i][1] for i in range(len(calls)) if left >> i & 1)
        for i, (begin, _, is_write, of_call) in enumerate(calls):
            if not left >> i & 1 or begin > first_end:
                continue
            if not is_write and of_call != value:
                continue
            if explained(left & ~(1 << i), of_call):
                return True
        dead.add((left, value))
        return False

    return explained((1 << len(calls)) - 1, window.before)


def linearizability(register: Register) -> tuple[int, list[Finding]]:
    """Returns how many windows were tried, and those without an explanation."""
    findings = []
    count = 0
    for window in windows(register):
        count += 1
        if not is_linearizable(window):
            findings.append(Finding("order", "impossible", register.name, window.reads[-1]))
    return count, findings


# --- (e) audit -----------------------------------------------------------------------------------


class Event(NamedTuple):
    """An event as it is in SQL, or as a watcher saw it."""

    realm: str
    sequence: int
    request_id: str
    is_primary: bool


class Link(NamedTuple):
    """The place of an event in the chain of its realm."""

    realm: str
    sequence: int
    previous_hash: bytes
    hash: bytes


def chain_judge(links: Sequence[Link], heads: Mapping[str, bytes]) -> list[str]:
    """Reports chains of events with a broken link (fault F36).

    Args:
        links: All events in SQL, by realm and sequence.
        heads: Realm to the hash that its own row names as the last one.

    Returns:
        Events that do not follow the one before, hashes that occur twice, and realms whose head is
        not their last event.
    """
    faults = []
    last: dict[str, bytes] = {}
    for link in links:
        if link.previous_hash != last.get(link.realm, b""):
            faults.append(f"event {link.realm} {link.sequence} does not follow the one before")
        last[link.realm] = link.hash
    for realm, hashed in heads.items():
        if last.get(realm, b"") != hashed:
            faults.append(f"the head of {realm} is not its last event")
    if len({link.hash for link in links}) != len(links):
        faults.append("two events have one hash")
    return faults


def audit(
    acknowledged: Iterable[Sequence[str]],
    stored: Sequence[Event],
    revisions: Mapping[str, int],
    seen: Sequence[Event] | None,
    since: Mapping[str, int] | None = None,
) -> list[str]:
    """Compares what was acknowledged with SQL and with a watcher.

    Args:
        acknowledged: The request ids of the attempts of each acknowledged write.
        stored: All events in SQL.
        revisions: Realm to its revision in SQL.
        seen: What a watcher of everything saw, in order; None if nobody watched.
        since: Realm to its revision when the watcher began.

    Returns:
        Writes without an event or with several, holes in revisions, and what the watcher missed,
        saw twice, or out of order.
    """
    faults = []
    primary = Counter(event.request_id for event in stored if event.is_primary)
    for attempts in acknowledged:
        effects = sum(primary[attempt] for attempt in attempts)
        if effects != 1:
            faults.append(f"write {attempts[0]} has {effects} effects in SQL")
    by_realm: dict[str, list[int]] = {realm: [] for realm in revisions}
    for event in stored:
        by_realm.setdefault(event.realm, []).append(event.sequence)
    for realm, sequences in by_realm.items():
        if sorted(sequences) != list(range(1, revisions.get(realm, 0) + 1)):
            faults.append(f"{realm} has a hole in its events, or one of them twice")
    if seen is None:
        return faults
    times = Counter((event.realm, event.sequence) for event in seen)
    for event in stored:
        if event.sequence <= (since or {}).get(event.realm, 0):
            continue
        if times[event.realm, event.sequence] != 1:
            faults.append(
                f"the watcher saw {event.realm} {event.sequence}"
                f" {times[event.realm, event.sequence]} times"
            )
    behind: dict[str, int] = {}
    for event in seen:
        if event.sequence < behind.get(event.realm, 0):
            faults.append(f"the watcher saw {event.realm} {event.sequence} late")
        behind[event.realm] = event.sequence
    return faults

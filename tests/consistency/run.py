"""One run: a load on a stack, judged."""

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg

from authz_service.base.actor import SYSTEM
from authz_service.domain import history
from authz_service.storage.database import Database
from tests.consistency.history import Finding, Register
from tests.consistency.judges import (
    Event,
    Link,
    audit,
    bound_judge,
    chain_judge,
    floor_monitor,
    instant_judge,
    interval_judge,
    linearizability,
)
from tests.consistency.leaks import held, leaks
from tests.consistency.load import Failure, Load, Record
from tests.consistency.stack import Stack, within
from tests.servers.postgresql import libpq_url

ANSWERS, FENCES = "authz_cache_answers_total", "authz_cache_fences_total"
CACHED = ("view", "mixed", "l2", "last_cut")

# What a call may end with under faults (product.md, "Errors"). A reason is always given, except by
# gRPC itself where there is no process to give one.
DOCUMENTED = {
    ("UNAVAILABLE", "DATABASE_UNAVAILABLE"),
    ("UNAVAILABLE", "SHUTTING_DOWN"),
    ("RESOURCE_EXHAUSTED", "OVERLOADED"),
    ("ABORTED", "CONFLICT"),
    ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
}
# The caller's own clock, before the answer that says so arrives.
NO_ANSWER = {("DEADLINE_EXCEEDED", "")}
NO_PROCESS = NO_ANSWER | {("UNAVAILABLE", "")}


@dataclass
class Verdict:
    """What the judges say of a run.

    Attributes:
        calls, reads, values: Answered calls, judged reads of registers, and decisions in them.
        reads_by_kind, writes_by_kind: By kind of change.
        mix: Answered calls by kind: check, batch, list, write.
        revokes: Acknowledged writes that took something away.
        relaxed: Judged reads with a token or a bound.
        windows: Small histories tried for linearizability.
        stale, backwards, mixed, impossible: Answers found wrong, by the worst judge.
        oldest: For how long the oldest stale answer had been wrong, seconds.
        lost: What the audit found.
        leaks: Threads, descriptors and connections that stay.
        crashes: Tracebacks, undocumented errors, broken calls.
        failures: Calls without an answer, by code and reason.
        answers: Where answers came from.
        fences: Generations of the cache that were left, by reason.
        findings: The first of each judge, to look into.
    """

    calls: int = 0
    reads: int = 0
    values: int = 0
    writes: int = 0
    reads_by_kind: dict[str, int] = field(default_factory=dict)
    writes_by_kind: dict[str, int] = field(default_factory=dict)
    mix: dict[str, int] = field(default_factory=dict)
    revokes: int = 0
    relaxed: int = 0
    windows: int = 0
    stale: int = 0
    backwards: int = 0
    mixed: int = 0
    impossible: int = 0
    oldest: float = 0.0
    lost: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    fences: dict[str, float] = field(default_factory=dict)
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    findings: list[str] = field(default_factory=list)

    @property
    def cached(self) -> float:
        """Returns the share of answers that came from the cache, in whole or in part."""
        total = sum(self.answers.values())
        return sum(self.answers.get(name, 0.0) for name in CACHED) / total if total else 0.0

    def wrong(self) -> list[str]:
        """Returns what breaks the promise; empty for a run without."""
        counted = {
            "stale": self.stale,
            "backwards": self.backwards,
            "mixed": self.mixed,
            "impossible": self.impossible,
        }
        found = [f"{count} {name}" for name, count in counted.items() if count]
        return found + self.lost + self.leaks + self.crashes + (self.findings if found else [])

    def line(self) -> dict[str, Any]:
        """Returns the verdict for a file of JSON lines."""
        shown = asdict(self)
        shown |= {"cached": round(self.cached, 4), "oldest": round(self.oldest, 3)}
        return shown


def judged(record: Record, verdict: Verdict) -> None:
    """Adds what the judges of registers say to a verdict."""
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    for register in record.registers:
        reads[register.kind] += len(register.reads)
        width = len(register.initial)  # type: ignore[arg-type]
        verdict.values += width * (len(register.reads) + len(register.relaxed))
        verdict.relaxed += len(register.relaxed)
        _judge(register, verdict)
    for write in record.writes:
        writes[write.kind] += 1
    verdict.calls += len(record.answered)
    mix = Counter(read.kind for read in record.answered)
    verdict.mix = dict(Counter(verdict.mix) + mix + Counter(write=len(record.writes)))
    verdict.revokes += sum(write.is_revoke for write in record.writes)
    verdict.reads += sum(reads.values())
    verdict.writes += len(record.writes)
    verdict.reads_by_kind = dict(Counter(verdict.reads_by_kind) + reads)
    verdict.writes_by_kind = dict(Counter(verdict.writes_by_kind) + writes)
    taken = sorted(read.seconds for read in record.answered)
    if taken:
        verdict.p50_ms = round(1_000 * taken[len(taken) // 2], 2)
        verdict.p99_ms = round(1_000 * taken[len(taken) * 99 // 100], 2)


def _judge(register: Register, verdict: Verdict) -> None:
    floor, interval = floor_monitor(register), interval_judge(register)
    instant, bound = instant_judge(register), bound_judge(register)
    windows, order = linearizability(register)
    verdict.windows += windows
    by_kind = Counter(finding.kind for finding in floor)
    # What two judges saw is one wrong answer.
    verdict.stale += max(by_kind["stale"], len([f for f in interval if f not in instant]))
    verdict.stale += sum(finding.kind == "stale" for finding in bound)
    verdict.backwards += by_kind["backwards"]
    verdict.mixed += max(by_kind["mixed"], len(instant))
    verdict.mixed += sum(finding.kind == "mixed" for finding in bound)
    verdict.impossible += len(order)
    found = [*floor, *interval, *instant, *bound, *order]
    verdict.oldest = max([verdict.oldest, *(finding.age for finding in found)])
    room = 12 - len(verdict.findings)
    verdict.findings += [_told(finding, register) for finding in found[:room]]


def _told(finding: Finding, register: Register) -> str:
    """Returns a finding with the writes around it."""
    read = finding.read
    near = [
        f"[{write.invoked - read.started:+.4f} {write.acknowledged - read.started:+.4f}"
        f" {_bits(write.value)}]"
        for write in register.writes
        if -3 < write.invoked - read.started < 1
    ]
    return (
        f"{finding.judge}: {finding.kind} {register.kind} ({finding.register}),"
        f" reader {read.reader}, {_bits(read.value)} in {read.ended - read.started:.4f} s,"
        f" {finding.age:.4f} s old; writes from its start: {' '.join(near[-6:])}"
    )


def _bits(value: Any) -> str:
    return "".join("1" if bit else "0" for bit in value)


def undocumented(
    failures: list[Failure], more: Collection[tuple[str, str]] = frozenset()
) -> list[str]:
    """Returns the failures that no document allows, and calls that went on after their deadline.

    Args:
        more: What may happen besides: ``NO_PROCESS`` where processes are killed or stopped,
            ``NO_ANSWER`` where something that they wait for is.
    """
    allowed = DOCUMENTED | set(more)
    wrong = [failure for failure in failures if (failure.code, failure.reason) not in allowed]
    late = [failure for failure in failures if failure.is_late]
    return [
        *(
            f"{count} x {code} {reason} {text}"
            for (code, reason, text), count in Counter(
                (failure.code, failure.reason, failure.text) for failure in wrong
            ).items()
        ),
        *(f"{f.code} after {f.seconds:.1f} s, long after its deadline" for f in late),
    ]


Counts = dict[int, Counter[str]]


def counts(stack: Stack, metric: str) -> Counts:
    """Returns a counter with one label, for each process that answers."""
    found: Counts = {}
    for service in stack.services:
        with contextlib.suppress(OSError):
            found[service.pid] = Counter(
                {
                    name[1]: int(value)
                    for name, value in service.metrics().items()
                    if name[0] == metric
                }
            )
    return found


def grown(before: Counts, after: Counts) -> dict[str, float]:
    """Returns by how much counters have grown; a process that was started anew began with 0."""
    total: Counter[str] = Counter()
    for pid, now in after.items():
        total += now - before.get(pid, Counter())
    return dict(total)


def unverified(stack: Stack, realms: Collection[str]) -> list[str]:
    """Returns the realms whose chain of events the product itself finds broken."""
    database = Database(stack.database_url, pool_size=1)
    try:
        with database.snapshot(SYSTEM) as snapshot:
            found = {realm: history.verify(snapshot, realm) for realm in realms}
    finally:
        database.close()
    return [
        f"the chain of {realm} is broken at {verified.broken_sequence}"
        for realm, verified in found.items()
        if not verified.intact
    ]


def revisions(stack: Stack) -> dict[str, int]:
    """Returns realms and their revisions in SQL."""
    with psycopg.connect(libpq_url(stack.database_url)) as connection:
        return dict(connection.execute("SELECT id, revision FROM realms").fetchall())


def audited(load: Load, stack: Stack, since: Mapping[str, int]) -> list[str]:
    """Compares all acknowledged writes of a stack with SQL and with its watcher.

    Also verifies the chains of all realms, by their links and by what the product says of them.
    """
    with psycopg.connect(libpq_url(stack.database_url)) as connection:
        rows = connection.execute(
            "SELECT realm, sequence, request_id, is_primary, previous_hash, hash FROM events"
            " ORDER BY realm, sequence"
        ).fetchall()
        heads = dict(connection.execute("SELECT id, last_hash FROM realms").fetchall())
    stored = [Event(*row[:4]) for row in rows]
    broken = chain_judge([Link(*row[:2], *row[4:]) for row in rows], heads)
    broken += unverified(stack, heads)
    # It may be behind, or wait for a stream; what it has not seen in the end is missing.
    last = {realm: n for realm, n in revisions(stack).items() if n > since.get(realm, 0)}
    within(
        20,
        lambda: (
            last.items()
            <= {event.realm: event.sequence for event in list(load.watcher.seen)}.items()
        ),
    )
    return broken + audit(
        [write.attempts for write in load.acknowledged],
        stored,
        revisions(stack),
        list(load.watcher.seen),
        since,
    )


def half(
    stack: Stack, load: Load, since: Mapping[str, int], seconds: float, **options: Any
) -> Verdict:
    """Runs a load without faults and judges it."""
    before, fences = counts(stack, ANSWERS), counts(stack, FENCES)
    ports = {stack.servers.redis.port}
    holding = held(stack, ports)
    record = load.run(seconds, **options)
    verdict = Verdict()
    judged(record, verdict)
    verdict.answers = grown(before, counts(stack, ANSWERS))
    verdict.fences = grown(fences, counts(stack, FENCES))
    verdict.failures = dict(Counter(f"{f.code} {f.reason}" for f in record.failures))
    verdict.crashes = undocumented(record.failures) + record.broken
    verdict.crashes += [line for service in stack.services for line in service.errors()]
    if not stack.is_naive:
        verdict.lost = audited(load, stack, since)
        verdict.leaks = leaks(holding, stack, ports)
    return verdict

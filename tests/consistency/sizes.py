"""How long the runs are and how much must have happened in them: all numbers in one place.

The least numbers are those of a slow machine with two cores and neighbours, at a tenth of what
was measured there; a run with less says too little to be called clean.
"""

from typing import NamedTuple

SEED = 20_250_917


class Size(NamedTuple):
    """Of a histories run.

    Attributes:
        naive_seconds, seconds: Of both halves.
        reads, writes: The least of judged reads and acknowledged writes in the protocol half.
        reads_of_kind, writes_of_kind: The least of each kind of change.
        naive_reads: The least of judged reads in the naive half.
    """

    naive_seconds: float
    seconds: float
    reads: int
    writes: int
    reads_of_kind: int
    writes_of_kind: int
    naive_reads: int


SHORT = Size(4, 16, 1_000, 60, 20, 1, 500)
LONG = Size(60, 1_740, 200_000, 10_000, 2_000, 50, 5_000)

# Naive halves that may be needed to see every kind of lie.
NAIVE_RUNS_MAX = 8

# How late the decision front hears from Redis where that is to matter, and how many runs it may
# take until a broken rule is seen then.
LATE_SECONDS = 0.02
JOINS_RUNS_MAX = 8

# Of the answers of a run without faults, this share comes from the cache.
CACHED_MIN = 0.5


class Crowd(NamedTuple):
    """Of a crowd: every member asks every permission on every document, all at once."""

    members: int
    permissions: int
    documents: int


# Ten thousand questions, and a million.
CROWD, LONG_CROWD = Crowd(25, 16, 25), Crowd(250, 16, 250)

# Of one fault in `make test`, and of one in the nightly run.
FAULT_SECONDS, LONG_FAULT_SECONDS = 8.0, 300.0
LONG_FAILOVER_SECONDS = 120.0
# Without a fault, before and after.
CALM_SECONDS = 0.5
# The least in them.
CHAOS_READS_MIN, CHAOS_WRITES_MIN = 500, 20
# Shorter than by default: a fault costs about one lease.
LEASE_SECONDS = 1.5
# "Cache on again within 6 s after Redis answers."
CACHE_ON_SECONDS = 6.0
# Of a process, or of whatever a fault waits for, on a machine with neighbours.
PATIENCE_SECONDS = 60.0

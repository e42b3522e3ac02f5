"""What may happen in a run of the model, and the runs that are made."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """Something that is cached: its set (0 the organization's, 1 `*`), tags there, has it ev."""

    name: str
    set: int
    tags: tuple[str, ...]
    ev: bool = False


A = Fact("A", 0, ("a",))
B = Fact("B", 0, ("b",))
GRANTS = Fact("grants", 0, ("a",), ev=True)
PERMISSIONS = Fact("permissions", 1, ("E",))
CREDENTIAL = Fact("credential", 1, ("k",))


@dataclass(frozen=True)
class Configuration:
    """One run: its size, and what may happen in it.

    Numbers of faults say how often each may happen. Readers ask any number of times unless `reads`
    is positive.
    """

    name: str
    covers: str
    facts: tuple[Fact, ...] = (A, B)
    asks: tuple[tuple[str, ...], ...] = (("A", "B"),)
    # The tags that each writer writes, in whatever sets they are.
    writers: tuple[tuple[str, ...], ...] = (("a",),)
    tags: tuple[str, ...] = ("a", "b")
    star_tags: tuple[str, ...] = ()
    processes: int = 1
    threads: int = 1
    reads: int = -1
    fine: bool = False  # each local step by itself, also of a thread that is alone
    split: bool = False  # a reply changes log and sequence in two steps; `checked` is kept
    sharing: bool = False
    promise_1_only: bool = False
    l2: bool = False
    l2_queue: int = 2
    reader_loss: bool = False
    renew_always: bool = False
    recover: bool = False
    fence_any: bool = False
    generations: int = 1
    lost: int = 0
    crashes: int = 0
    kill: int = 0
    flush: int = 0
    delete_set: int = 0
    delete_registry: int = 0
    trim: int = 0
    close: int = 0
    save: int = 0
    long: bool = False
    # What must have happened in the run, or it shows nothing.
    shows: tuple[str, ...] = ("answer from L1", "answer from mixed", "answer from SQL")


_CACHED = ("answer from L1", "answer from mixed", "answer from SQL")
_ONE_FACT = {"facts": (A,), "asks": (("A",),), "shows": ("answer from L1", "answer from SQL")}
_TWO_WRITES = (("a",), ("b",))
# One write changes both facts at one instant: with asks for one of them, the smallest way to see
# that an old value of one is combined with a new value of the other.
_BOTH = {"writers": (("a", "b"),), "asks": (("A", "B"), ("A",))}
_STAR = {
    "facts": (GRANTS, PERMISSIONS),
    "asks": (("grants", "permissions"),),
    "tags": ("a",),
    "star_tags": ("E", "k"),
}
_SHARED = (*_CACHED, "validation shared")
_L2 = (*_CACHED, "used from L2")
_OVER_K = (*_CACHED, "grants used after a write of another tag of `*`")
# Everything that can happen to Redis, to a reply and to a writer, once each.
_FAULTS = {
    "generations": 2,
    "kill": 1,
    "flush": 1,
    "delete_set": 1,
    "delete_registry": 1,
    "lost": 1,
    "crashes": 1,
    "recover": True,
}

CONFIGURATIONS = (
    Configuration("two writes", "a thread, writes on two tags", writers=_TWO_WRITES),
    Configuration("one tag", "a thread, two writes on one tag", writers=(("a",), ("a",))),
    Configuration("threads", "two threads on one view, a write on both tags", threads=2, **_BOTH),
    Configuration(
        "split",
        "two threads; log and sequence of the view raised in two steps, `checked`",
        threads=2,
        split=True,
    ),
    Configuration(
        "sharing",
        "two threads that share validations, a write on both tags",
        threads=2,
        sharing=True,
        writers=(("a", "b"),),
        asks=(("A", "B"), ("A",), ("B",)),
        shows=_SHARED,
    ),
    Configuration(
        "L2", "two processes with L2, SETs at any later time", processes=2, l2=True, shows=_L2
    ),
    Configuration(
        "trim", "writes on two tags, trimmed twice, L2", l2=True, trim=2, writers=_TWO_WRITES
    ),
    Configuration(
        "close", "CLOSE, and opened again, L2", l2=True, l2_queue=1, close=1, writers=_TWO_WRITES
    ),
    Configuration(
        "generations",
        "two processes; fences at any time, renewals at any time, enable",
        processes=2,
        fine=True,
        generations=2,
        fence_any=True,
        renew_always=True,
        **_ONE_FACT,
    ),
    Configuration(
        "leases",
        "fences at any time while cached and fresh facts are combined",
        fine=True,
        fence_any=True,
        **_BOTH,
    ),
    Configuration(
        "lost replies",
        "replies of scripts lost, scripts late, writer crashes at each step, abandoned marks, kill",
        fine=True,
        generations=2,
        lost=1,
        reader_loss=True,
        crashes=1,
        kill=1,
        recover=True,
        **_ONE_FACT,
    ),
    Configuration(
        "lost sets",
        "FLUSHALL, a set deleted, the registry deleted",
        fine=True,
        generations=2,
        flush=1,
        delete_set=1,
        delete_registry=1,
        **_ONE_FACT,
    ),
    Configuration("snapshot", "Redis restarted from an old file", save=1, kill=1, generations=2),
    Configuration(
        "acknowledged",
        "promise 1 alone: acknowledgements instead of commits; a set deleted",
        generations=2,
        delete_set=1,
        promise_1_only=True,
        **_ONE_FACT,
    ),
    Configuration(
        "environment",
        "`*`; writes on E and on a credential",
        writers=(("E",), ("k",)),
        **_STAR,
        shows=("answer from L1", "answer from SQL", _OVER_K[-1]),
    ),
    Configuration(
        "both sets",
        "a write on both sets, one on a credential",
        writers=(("E", "a"), ("k",)),
        **_STAR,
        shows=_OVER_K,
    ),
    Configuration(
        "credential",
        "a cached credential beside grants",
        writers=(("k",), ("a",)),
        **{**_STAR, "facts": (GRANTS, CREDENTIAL), "asks": (("grants", "credential"),)},
        shows=_OVER_K,
    ),
    Configuration(
        "environment trim",
        "`*` trimmed twice",
        trim=2,
        writers=(("E",), ("k",)),
        **_STAR,
        shows=_OVER_K,
    ),
    Configuration(
        "environment threads",
        "two threads, a write on both sets",
        threads=2,
        writers=(("E", "a"),),
        **_STAR,
    ),
    Configuration(
        "environment L2",
        "two processes with L2, a write on both sets",
        processes=2,
        l2=True,
        writers=(("E", "a"),),
        **_STAR,
        shows=_L2,
    ),
    Configuration(
        "environment faults",
        "a write on both sets; a set deleted, a reply lost",
        generations=2,
        delete_set=1,
        lost=1,
        writers=(("E", "a"),),
        **_STAR,
    ),
    # The larger ones.
    Configuration(
        "three writes",
        "a thread, three writes on two tags",
        writers=(("a",), ("b",), ("a",)),
        long=True,
    ),
    Configuration(
        "threads, two writes",
        "two threads, writes on two tags",
        threads=2,
        writers=_TWO_WRITES,
        asks=(("A", "B"), ("B",)),
        long=True,
    ),
    Configuration(
        "sharing, two writes",
        "two threads that share, writes on two tags",
        threads=2,
        sharing=True,
        writers=_TWO_WRITES,
        shows=_SHARED,
        long=True,
    ),
    Configuration(
        "L2, any question",
        "two processes with L2, a write on both tags",
        processes=2,
        l2=True,
        writers=(("a", "b"),),
        asks=(("A", "B"), ("A",), ("B",)),
        shows=_L2,
        long=True,
    ),
    Configuration(
        "L2, two writes",
        "two processes with L2, writes on two tags",
        processes=2,
        l2=True,
        l2_queue=1,
        writers=_TWO_WRITES,
        shows=_L2,
        long=True,
    ),
    Configuration("all faults", "every fault once, two facts", **_FAULTS, long=True),
    Configuration(
        "all faults, L2",
        "every fault once, one fact, L2, each local step by itself",
        fine=True,
        l2=True,
        **_FAULTS,
        **_ONE_FACT,
        long=True,
    ),
    Configuration(
        "faults, threads",
        "two threads; a set deleted, a reply lost",
        threads=2,
        generations=2,
        delete_set=1,
        lost=1,
        **_ONE_FACT,
        long=True,
    ),
    Configuration(
        "faults, processes",
        "two processes; FLUSHALL, a reply lost, fences at any time",
        processes=2,
        fine=True,
        generations=2,
        flush=1,
        lost=1,
        fence_any=True,
        **_ONE_FACT,
        long=True,
    ),
    Configuration(
        "faults, two writes",
        "two writes on one tag; a set deleted, a reply lost, crash",
        writers=(("a",), ("a",)),
        generations=2,
        delete_set=1,
        lost=1,
        crashes=1,
        recover=True,
        **_ONE_FACT,
        long=True,
    ),
    Configuration(
        "environment threads, two writes",
        "two threads, writes on E and a credential",
        threads=2,
        writers=(("E",), ("k",)),
        **_STAR,
        long=True,
    ),
    Configuration(
        "environment sharing",
        "two threads that share, writes on E and a credential",
        threads=2,
        sharing=True,
        writers=(("E",), ("k",)),
        **_STAR,
        shows=_SHARED,
        long=True,
    ),
    Configuration(
        "environment L2, two writes",
        "two processes with L2, writes on E and on a tag",
        processes=2,
        l2=True,
        l2_queue=1,
        writers=(("E",), ("a",)),
        **_STAR,
        shows=_L2,
        long=True,
    ),
    Configuration(
        "environment, all faults",
        "a write on both sets; every fault once",
        **{**_FAULTS, "kill": 0},
        writers=(("E", "a"),),
        **_STAR,
        long=True,
    ),
    Configuration(
        "environment faults, credential",
        "writes on both sets and on a credential; a set deleted, a reply lost",
        delete_set=1,
        lost=1,
        writers=(("E", "a"), ("k",)),
        **_STAR,
        shows=_OVER_K,
        long=True,
    ),
)

# For each mutation, the configuration that must show it.
SHOWN_BY = {
    "no_mark": "two writes",
    "no_fence": "lost replies",
    "use_pending": "two writes",
    "fill_s0_late": "threads",
    "l2_s0_late": "L2",
    "l2_no_check": "L2",
    "shared_mark": "one tag",
    "no_sentinel": "lost sets",
    "no_registry": "lost sets",
    "no_nonce": "close",
    "close_while_pending": "close",
    "no_floor": "trim",
    "no_lease_wait": "generations",
    "no_settle_wait": "generations",
    "enable_before_settle": "generations",
    "lease_kept_through_renewal": "generations",
    "lease_checked_once": "leases",
    "no_fill_order": "threads",
    "no_v2": "two writes",
    "no_v2_check": "two writes",
    "open_advances": "threads",
    "seq_before_log": "split",
    "snapshot_restart": "snapshot",
    "ack_without_mark": "acknowledged",
    "join_sent_before_arrival": "sharing",
    "v2_joins_sent_before_snapshot": "sharing",
    "ev_ignores_mark": "environment",
    "ev_not_compared": "environment",
    "trim_drops_e": "environment trim",
    "star_first": "environment L2",
}

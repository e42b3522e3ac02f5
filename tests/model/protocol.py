"""The cache protocol of consistency.md as a transition system on plain tuples.

What is modelled
----------------
A state has five parts, each a tuple that is never changed:

* **sql** ``(history, gen, mode, name, acked)``. `history` lists the writes that committed, in their
  order: an instant of SQL is a length of it, and the value of a fact is the position of the last
  write before that instant which changed it. `name` is the number of G.
* **redis** ``(generations, saved)``: for each G ``(alive, fresh, registry, sets, l2)``, a set being
  ``(nonce, sequence, scores, marks, floor)``. Not alive = Redis is another process now, so every
  connection of this G is refused. `saved` is an old snapshot file.
* **writers** ``(writers, limbo, lost, crashes)``: where each write is; `limbo` holds scripts whose
  client has given up on them and that may still run, at any time or never.
* **processes**: node_lease row, lease, renewal under way, views, L1 entries, L2 fills under way,
  threads, and the shared validation under way.
* **faults**: how many of each kind may still happen.

One step is one atomic action: a statement or a script at its server, or what a thread does under
the lock of a view. Any two steps of different threads, writers and faults may come in any order.

The fill counter `no` and `upto` of the specification are kept as one bit for each thread and fact:
"this entry was put after my validation was sent", which is all that rule 1 asks.

Time is left out: a lease may end at any moment, and settle waits until the leases of the old
generation have ended or the rows of their processes say that they left it. A mark may be called
abandoned at any moment after its transaction ended. This allows more than real clocks do.

What is checked
---------------
* Each answer: there is one instant of SQL, not before the arrival of the call and not after the
  answer, at which all facts used have the values used (promise 2). A write that was acknowledged
  before the arrival is in all these instants, so an answer without it is found too (promise 1), and
  no answer goes behind an earlier one. A configuration with `promise_1_only` judges by
  acknowledgements alone.
* Each acknowledgement: the write is in SQL.

What is left out, and why that hides nothing
--------------------------------------------
* Answers wholly from SQL: they are right by themselves and change nothing in the caches.
* A lease of the present generation does not end, and is not renewed as long as nothing changed: a
  reader without a lease only reads SQL.
* Arrival is one step with the first send, except where validations are shared: a later arrival is
  the stricter one. Threads that are alone in their process make several local steps at once unless
  the configuration says `fine`.
* Single flight, limiter, TTL, retries of readers, budgets of L1: they only take behaviour away.

Not modelled: SQL failover and timelines, clock rates, expiry of assignments, tokens and request
modes, the tag `s` of facts with too many tags, several organizations in one call. A call whose view
is dropped under it reads SQL; going on with the dropped object is not modelled.
"""

from tests.model.readers import Readers
from tests.model.scripts import BEGIN, NOTHING, ON, ORG, STAR, E, put
from tests.model.writers import Writers


class Protocol(Readers, Writers):
    """All steps that a configuration allows, with some rules broken on purpose."""

    def initial(self) -> tuple:
        """Return the parts of the first state: mode on, every process with a lease of it."""
        c = self.c
        sql = (NOTHING, 1, ON, 0, 0)
        redis = ((self._new_generation(),), NOTHING)
        writers = (
            tuple((BEGIN, 0, 0, 0, 0) for _ in c.writers),
            NOTHING,
            c.lost,
            c.crashes,
        )
        faults = (c.kill, c.flush, c.delete_set, c.delete_registry, c.trim, c.close, c.save)
        process = (
            1,
            (1, True, 0),
            NOTHING,
            (NOTHING,) * self.sets,
            (NOTHING,) * len(c.facts),
            NOTHING,
            (self._idle(c.reads),) * c.threads,
            NOTHING,
        )
        return sql, redis, writers, faults, (process,) * c.processes

    def fault_steps(self, redis: tuple, faults: tuple) -> list[tuple]:
        """Return (what happens, redis, faults) for each fault, trim and close."""
        out: list[tuple] = []
        generations, saved = redis
        kill, flush, delete_set, delete_registry, trim, close, save = faults
        empty = (NOTHING,) * self.sets
        if kill:
            after = tuple(
                (False, 0, NOTHING, empty, NOTHING) if generation[0] else generation
                for generation in generations
            )
            if "snapshot_restart" in self.m and saved:
                after = (*saved, *after[len(saved) :])
            if after != generations:
                label = ("Redis: killed, starts again from its last file",)
                out.append((label, (after, saved), put(faults, 0, kill - 1)))
        if flush:
            after = tuple(
                (alive, fresh, NOTHING, empty, NOTHING) if alive else other
                for other in generations
                for alive, fresh in [other[:2]]
            )
            if after != generations:
                out.append((("Redis: FLUSHALL",), (after, saved), put(faults, 1, flush - 1)))
        if save:
            out.append((("Redis: saves a file",), (generations, generations), put(faults, 6, 0)))
        for number, generation in enumerate(generations):
            alive, fresh, registry, sets, l2 = generation
            if not alive:
                continue
            if delete_registry and registry:
                after = (alive, fresh, NOTHING, sets, l2)
                after = (put(generations, number, after), saved)
                label = ("Redis: registry deleted",)
                out.append((label, after, put(faults, 3, delete_registry - 1)))
            for s, there in enumerate(sets):
                if not there:
                    continue
                nonce, sequence, scores, marks, floor = there
                if delete_set:
                    after = (alive, fresh, registry, put(sets, s, NOTHING), l2)
                    after = (put(generations, number, after), saved)
                    label = (f"Redis: set {s} deleted",)
                    out.append((label, after, put(faults, 2, delete_set - 1)))
                if trim:
                    for cut in range(floor + 1, sequence + 1):
                        kept = tuple(
                            score
                            if score >= cut
                            or (s == STAR and tag == E and "trim_drops_e" not in self.m)
                            else 0
                            for tag, score in enumerate(scores)
                        )
                        after = put(sets, s, (nonce, sequence, kept, marks, cut))
                        after = (alive, fresh, registry, after, l2)
                        after = (put(generations, number, after), saved)
                        label = (f"trim: floor of set {s} is", cut)
                        out.append((label, after, put(faults, 4, trim - 1)))
                if close and s == ORG and registry:
                    if marks and "close_while_pending" not in self.m:
                        continue
                    after = (alive, fresh, put(registry, s, 0), put(sets, s, NOTHING), l2)
                    after = (put(generations, number, after), saved)
                    out.append((("CLOSE",), after, put(faults, 5, close - 1)))
        return out

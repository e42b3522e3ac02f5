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

from tests.model.configurations import Configuration

ON, SETTLING, OFF = range(3)

# Steps of a reader.
IDLE, OPENING, OPENED, WAITING, JOINED = range(5)
SENT, READ_1, READ_2, HALF, LOOK, MISS, SNAPPED = range(5, 12)
# What its validation is for: the first of a call, READ (with L2), the second of a call.
FIRST, READ, SECOND = range(1, 4)
# Steps of a writer.
BEGIN, TO_MARK, TO_COMMIT, TO_BUMP, FENCE_THEN_ACK, FENCE_THEN_RETRY, SETTLE_THEN_ACK = range(7)
TO_COMMIT_UNMARKED, ABORTED, ACKED, GONE = range(7, 11)
# While it holds the lock K, shared.
LOCKED = (TO_MARK, TO_COMMIT, TO_COMMIT_UNMARKED)

ORG, STAR = 0, 1
E = 0  # the place of the tag E in `*`
ATTEMPTS = 2

NOTHING = ()


def put(parts: tuple, place: int, value) -> tuple:
    """Return the tuple with one part replaced."""
    return (*parts[:place], value, *parts[place + 1 :])


class Violation(Exception):
    """A promise that a step broke; its text says which."""


class Protocol:
    """The steps that a configuration allows, with some rules broken on purpose."""

    def __init__(self, configuration: Configuration, mutations: frozenset[str] = frozenset()):
        self.c = c = configuration
        self.m = mutations
        self.sets = 2 if c.star_tags else 1
        self.tags = (c.tags, c.star_tags)[: self.sets]
        # For each fact: its set, its tags there, the same as bits, whether it carries ev.
        self.facts = []
        for fact in c.facts:
            places = tuple(self.tags[fact.set].index(tag) for tag in fact.tags)
            bits = sum(1 << place for place in places)
            self.facts.append((fact.set, places, bits, fact.ev))
        # For each writer: [(set, tags as places)], and for each fact whether it changes it.
        self.writes = []
        self.touches = []
        for tags in c.writers:
            by_set = [
                tuple(place for place, tag in enumerate(names) if tag in tags)
                for names in self.tags
            ]
            self.writes.append([(s, places) for s, places in enumerate(by_set) if places])
            self.touches.append(
                tuple(
                    any(tag in tags for tag in fact.tags) or (fact.ev and "E" in tags)
                    for fact in c.facts
                )
            )
        self.asks = [
            tuple(i for i, fact in enumerate(c.facts) if fact.name in ask) for ask in c.asks
        ]
        self.fine = c.fine or c.threads > 1
        self.seen: set[str] = set()
        self._pending: dict = {}
        self._values: dict = {}
        self._answers: dict = {}

    # -- Start ---------------------------------------------------------------------------------

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

    @staticmethod
    def _idle(left: int) -> tuple:
        return (IDLE, left, 0, 0, 0, NOTHING, NOTHING, 0, NOTHING)

    def _new_generation(self) -> tuple:
        return (True, 1, (0,) * self.sets, (NOTHING,) * self.sets, NOTHING)

    # -- Values and answers --------------------------------------------------------------------

    def value(self, fact: int, history: tuple) -> int:
        """Return the value of a fact: the position of the last write that changed it."""
        key = (fact, history)
        value = self._values.get(key)
        if value is None:
            value = 0
            for position, writer in enumerate(history, 1):
                if self.touches[writer][fact]:
                    value = position
            self._values[key] = value
        return value

    def _judge(self, history: tuple, arrival: int, ask: int, have: tuple) -> None:
        """Raise unless one instant since the arrival has all these values."""
        values = tuple(known[-1] for known in have)
        key = (history, arrival, ask, values)
        good = self._answers.get(key)
        if good is None:
            good = any(
                all(
                    self.value(fact, history[:instant]) == value
                    for fact, value in zip(self.asks[ask], values, strict=True)
                )
                for instant in range(arrival, len(history) + 1)
            )
            self._answers[key] = good
        if not good:
            names = [self.c.facts[fact].name for fact in self.asks[ask]]
            told = ", ".join(f"{n} as of write {v}" for n, v in zip(names, values, strict=True))
            raise Violation(
                f"answer with {told}: SQL was never so since the arrival, after write {arrival}"
            )

    # -- Redis ---------------------------------------------------------------------------------

    def _ensure(self, generation: tuple, s: int) -> tuple[bool, tuple]:
        alive, fresh, registry, sets, l2 = generation
        if not alive:
            return False, generation
        if not registry:
            if "no_sentinel" not in self.m:
                return False, generation
            registry = (0,) * self.sets
        if registry[s]:
            if sets[s] and sets[s][0] == registry[s]:
                return True, generation
            if "no_registry" not in self.m:
                return False, generation
        new = (fresh, 0, (0,) * len(self.tags[s]), 0, 0)
        return True, (alive, fresh + 1, put(registry, s, fresh), put(sets, s, new), l2)

    def _mark_bits(self, writer: int, attempt: int, places: tuple) -> int:
        if "shared_mark" in self.m:
            return sum(1 << place for place in places)
        return 1 << (writer * ATTEMPTS + attempt)

    def _mark(self, generation: tuple, s: int, writer: int, attempt: int) -> tuple[bool, tuple]:
        there, generation = self._ensure(generation, s)
        if not there:
            return False, generation
        alive, fresh, registry, sets, l2 = generation
        nonce, sequence, scores, marks, floor = sets[s]
        marks |= self._mark_bits(writer, attempt, self._places(writer, s))
        sets = put(sets, s, (nonce, sequence, scores, marks, floor))
        return True, (alive, fresh, registry, sets, l2)

    def _places(self, writer: int, s: int) -> tuple:
        return next(places for other, places in self.writes[writer] if other == s)

    def _bump(self, generation: tuple, s: int, writer: int, attempt: int) -> tuple[bool, tuple]:
        alive, fresh, registry, sets, l2 = generation
        if not alive or not sets[s]:
            return False, generation
        nonce, sequence, scores, marks, floor = sets[s]
        places = self._places(writer, s)
        bits = self._mark_bits(writer, attempt, places)
        if marks & bits != bits and "no_mark" not in self.m:
            return False, generation
        sequence += 1
        changed = tuple(
            sequence if place in places else score for place, score in enumerate(scores)
        )
        sets = put(sets, s, (nonce, sequence, changed, marks & ~bits, floor))
        return True, (alive, fresh, registry, sets, l2)

    def _pending_tags(self, s: int, marks: int) -> int:
        """Return the tags of a set, as bits, that a mark names."""
        if "shared_mark" in self.m or not marks:
            return marks
        key = (s, marks)
        tags = self._pending.get(key)
        if tags is None:
            tags = 0
            for writer, by_set in enumerate(self.writes):
                if marks >> (writer * ATTEMPTS) & ((1 << ATTEMPTS) - 1):
                    for other, places in by_set:
                        if other == s:
                            tags |= sum(1 << place for place in places)
            self._pending[key] = tags
        return tags

    def _validate(self, generation: tuple, s: int, last: int) -> tuple:
        """Return (nonce, sequence, changed scores, pending, floor above last) of one set."""
        there = generation[3][s]
        if not there:
            return (0, last, (0,) * len(self.tags[s]), 0, False)
        nonce, sequence, scores, marks, floor = there
        changed = tuple([score if score > last else 0 for score in scores])
        pending = self._pending_tags(s, marks)
        return (nonce, max(sequence, last), changed, pending, floor > last)

    def _read_l2(self, generation: tuple, wanted: tuple, nonce: int) -> tuple:
        """Return the L2 entries that READ hands out for keys (fact, ev)."""
        there = generation[3][ORG]
        found = []
        for fact, ev, s0, its_nonce, value in generation[4]:
            if (fact, ev) not in wanted:
                continue
            if its_nonce != nonce and "no_nonce" not in self.m:
                continue
            if there:
                if s0 < there[4] and "no_floor" not in self.m:
                    continue
                scores = there[2]
                if "l2_no_check" not in self.m and any(
                    scores[place] > s0 for place in self.facts[fact][1]
                ):
                    continue
            found.append((fact, ev, value))
        return tuple(found)

    # -- Processes -----------------------------------------------------------------------------

    def process_steps(self, sql: tuple, redis: tuple, process: tuple) -> list[tuple]:
        """Return (what happens, redis, process) for each step of a process.

        A step that breaks a promise has the `Violation` instead of a process.
        """
        out: list[tuple] = []
        _, gen, mode, name, _ = sql
        row, lease, renewal, views, entries, fills, threads, flight = process
        now = (gen, mode == ON, name if mode == ON else 0)
        if renewal:
            after = (row, renewal, NOTHING, views, entries, fills, threads, flight)
            if any(view and view[0] != renewal[2] for view in views):
                after = self._forget(after)
            out.append((("lease: reply of the renewal", renewal), redis, after))
            if renewal[0] != gen:
                after = (row, lease, NOTHING, views, entries, fills, threads, flight)
                out.append((("lease: reply of the renewal too late",), redis, after))
        elif lease != now or self.c.renew_always:
            after = process
            if not lease or lease[0] != gen:
                kept = "lease_kept_through_renewal" in self.m
                if not kept:
                    after = put(self._forget(process), 1, NOTHING)
            after = (gen, after[1], now, *after[3:])
            out.append((("lease: row of the renewal committed", now), redis, after))
        if lease and lease[1] and lease[0] != gen:
            out.append((("lease: ends",), redis, put(process, 1, NOTHING)))
        for fill in fills:
            out.append(self._set_l2(redis, process, fill))
        if self.c.sharing:
            self._shared_steps(sql, redis, process, out)
        before = None
        for place, thread in enumerate(threads):
            if thread != before:
                before = thread
                try:
                    self._thread_steps(sql, redis, process, place, thread, out)
                except Violation as violation:
                    out.append(((f"thread: {violation}",), redis, violation))
        return out

    def blocks_settle(self, process: tuple, gen: int) -> bool:
        """Tell whether settle must wait for this process."""
        row, lease, renewal = process[:3]
        if row >= gen or "no_lease_wait" in self.m:
            return False
        return bool(
            (lease and lease[1] and lease[0] < gen) or (renewal and renewal[1] and renewal[0] < gen)
        )

    def _forget(self, process: tuple, which: int = -1) -> tuple:
        """Drop a view, or all; calls that use one end (from SQL)."""
        row, lease, renewal, views, entries, fills, threads, _ = process
        for s in range(self.sets):
            if which in (s, -1):
                views = put(views, s, NOTHING)
                entries = tuple(
                    NOTHING if self.facts[fact][0] == s else entry
                    for fact, entry in enumerate(entries)
                )
        threads = tuple(
            thread if thread[0] in (IDLE, OPENING, OPENED) else self._end(thread)
            for thread in threads
        )
        return (row, lease, renewal, views, entries, fills, tuple(sorted(threads)), NOTHING)

    def _end(self, thread: tuple) -> tuple:
        """Return a thread after its call."""
        left = thread[1]
        return self._idle(left - 1 if left > 0 else left)

    def _set_l2(self, redis: tuple, process: tuple, fill: tuple) -> tuple:
        number, fact, ev, s0, nonce, value = fill
        if "l2_s0_late" in self.m and process[3][ORG]:
            s0 = process[3][ORG][2]
        generations, saved = redis
        generation = generations[number]
        if generation[0]:
            kept = [entry for entry in generation[4] if entry[:2] != (fact, ev)]
            l2 = tuple(sorted([*kept, (fact, ev, s0, nonce, value)]))
            generations = put(generations, number, put(generation, 4, l2))
        fills = tuple(other for other in process[5] if other != fill)
        label = ("L2: SET", self.c.facts[fact].name, "s0", s0, "value", value)
        return (label, (generations, saved), put(process, 5, fills))

    def _with(self, process: tuple, place: int, thread: tuple) -> tuple:
        """Return the process with one thread changed, threads sorted: they are alike."""
        threads = put(process[6], place, thread)
        if len(threads) > 1:
            threads = tuple(sorted(threads))
        return put(process, 6, threads)

    def _flight(self, process: tuple, number: int, keys: tuple = NOTHING) -> tuple:
        """Return a validation as it is sent: G, last of each set, e, L2 keys, replies, found."""
        views = process[3]
        lasts = tuple(view[2] for view in views)
        e = views[STAR][4] if self.sets > 1 else 0
        return (number, lasts, e, keys, NOTHING, NOTHING)

    def _leased(self, process: tuple) -> int:
        """Return the G that the process may use, or -1."""
        lease = process[1]
        return lease[2] if lease and lease[1] else -1

    def _thread_steps(
        self, sql: tuple, redis: tuple, process: tuple, place: int, thread: tuple, out: list
    ) -> None:
        step, left, arrival, ask, _, flight, cut, _, have = thread
        if step == IDLE:
            self._start(sql, redis, process, place, thread, out)
        elif step == OPENING:
            opened = self._open(redis, *flight)
            if opened is None:
                out.append((("thread: OPEN refused",), redis, self._ended(process, place)))
                return
            redis, replies = opened
            after = put(put(thread, 0, OPENED), 5, replies)
            out.append((("thread: OPEN", replies), redis, self._with(process, place, after)))
        elif step == OPENED:
            after = self._opened(process, flight)
            after = self._with(after, place, self._idle(left))
            out.append((("thread: reply of OPEN",), redis, after))
        elif step in (SENT, READ_1):
            reached = self._reach(redis, process, flight, step, self._order())
            if reached is None:
                out.append((("thread: Redis refuses",), redis, self._ended(process, place)))
                return
            flight, label = reached
            after = put(thread, 0, READ_2 if step == READ_1 or self.sets == 1 else READ_1)
            after = put(after, 5, flight)
            if after[0] == READ_2 and not self.fine:
                self._reply(sql, redis, self._with(process, place, after), place, after, out, label)
            else:
                out.append((label, redis, self._with(process, place, after)))
        elif step == READ_2:
            self._reply(sql, redis, process, place, thread, out, NOTHING)
        elif step == HALF:
            views = self._advance(process[3], cut, flight, 1)
            after = put(process, 3, views)
            self._after_apply(sql, redis, after, place, put(thread, 5, NOTHING), out, NOTHING)
        elif step == LOOK:
            self._look(sql, redis, process, place, thread, out, NOTHING)
        elif step == MISS:
            history = sql[0]
            known = tuple(
                had or (self.value(fact, history),)
                for fact, had in zip(self.asks[ask], have, strict=True)
            )
            after = (SNAPPED, left, arrival, ask, 0, NOTHING, cut, 0, known)
            out.append((("thread: SQL snapshot", known), redis, self._with(process, place, after)))
        elif step == SNAPPED:
            self._fill(sql, redis, process, place, thread, out)

    def _order(self) -> tuple:
        """Return the sets in the order in which a pipeline reads them."""
        if self.sets == 1:
            return (ORG,)
        return (STAR, ORG) if "star_first" in self.m else (ORG, STAR)

    def _ended(self, process: tuple, place: int) -> tuple:
        return self._with(process, place, self._end(process[6][place]))

    def _start(self, sql, redis, process, place, thread, out) -> None:
        number = self._leased(process)
        if number < 0 or thread[1] == 0:
            return
        views = process[3]
        missing = [s for s, view in enumerate(views) if not view]
        if missing and self.fine:
            after = (OPENING, *thread[1:5], (number, tuple(missing)), NOTHING, 0, NOTHING)
            label = ("thread: finds no view",)
            out.append((label, redis, self._with(process, place, after)))
        elif missing:
            opened = self._open(redis, number, missing)
            if opened is not None:
                redis, replies = opened
                out.append((("thread: OPEN", replies), redis, self._opened(process, replies)))
        if missing:
            return
        arrival = sql[4] if self.c.promise_1_only else len(sql[0])
        for ask, wanted in enumerate(self.asks):
            have = (NOTHING,) * len(wanted)
            if self.c.sharing:
                after = (WAITING, thread[1], arrival, ask, FIRST, NOTHING, NOTHING, 0, have)
                label = ("thread: call arrives", self.c.asks[ask])
                out.append((label, redis, self._with(process, place, after)))
                if "join_sent_before_arrival" in self.m and process[7]:
                    after = put(after, 0, JOINED)
                    label = ("thread: call arrives and joins", self.c.asks[ask])
                    out.append((label, redis, self._with(process, place, after)))
                continue
            flight = self._flight(process, number)
            after = (SENT, thread[1], arrival, ask, FIRST, flight, NOTHING, 0, have)
            label = ("thread: call arrives, validation sent", self.c.asks[ask])
            if self.fine:
                out.append((label, redis, self._with(process, place, after)))
            else:
                # Alone in its process: nothing of its own can change before the first command.
                self._thread_steps(sql, redis, self._with(process, place, after), place, after, out)

    def _open(self, redis, number, missing):
        """Run OPEN for some sets; None if Redis refuses or the generation or a set is dead."""
        generations, saved = redis
        generation = generations[number]
        replies = [NOTHING] * self.sets
        for s in missing:
            there, generation = self._ensure(generation, s)
            if not there:
                return None
            nonce, sequence, scores, _, _ = generation[3][s]
            replies[s] = (nonce, sequence, scores[E] if s == STAR else 0)
        return (put(generations, number, generation), saved), (number, *replies)

    def _opened(self, process: tuple, opened: tuple) -> tuple:
        """Make the views of an OPEN that are not there; never touch one that is."""
        views = process[3]
        number = opened[0]
        if self._leased(process) != number:
            return process
        for s, reply in enumerate(opened[1:]):
            if not reply:
                continue
            nonce, sequence, e = reply
            view = views[s]
            if not view:
                views = put(views, s, (number, nonce, sequence, (0,) * len(self.tags[s]), e))
            elif "open_advances" in self.m and view[1] == nonce:
                views = put(views, s, put(view, 2, max(view[2], sequence)))
        return put(process, 3, views)

    def _reach(self, redis, process, flight, step, order):
        """Run the next command of a pipeline; None if the connection is refused."""
        number, lasts, e, keys, replies, found = flight
        generation = redis[0][number]
        if not generation[0]:
            return None
        s = order[0] if step == SENT else order[1]
        reply = self._validate(generation, s, lasts[s])
        if s == ORG and keys:
            found = self._read_l2(generation, keys, process[3][ORG][1])
        replies = (*replies, reply)
        label = ("thread: validation of", "`*`" if s == STAR else "the set", reply, found)
        return (number, lasts, e, keys, replies, found), label

    def _cut(self, flight: tuple, replies: list) -> tuple:
        """Return the cut of the replies: sequence and pending of each set, and ev."""
        pending = [0 if "use_pending" in self.m else reply[3] for reply in replies]
        if self.sets == 1:
            return (replies[ORG][1], pending[ORG], 0, 0, NOTHING)
        star = replies[STAR]
        score = star[2][E] or flight[2]
        ev: tuple = (star[0], score)
        if "ev_is_sequence" in self.m:
            ev = NOTHING if star[3] else (star[0], star[1])
        elif star[3] >> E & 1 and "ev_ignores_mark" not in self.m:
            ev = NOTHING
        return (replies[ORG][1], pending[ORG], star[1], pending[STAR], ev)

    def _advance(self, views: tuple, cut: tuple, replies: tuple, part: int) -> tuple:
        """Apply the replies to the views: part 0 the log, 1 the sequence, -1 both."""
        if part >= 0 and "seq_before_log" in self.m:
            part = 1 - part
        for s, reply in enumerate(replies):
            number, nonce, sequence, log, e = views[s]
            if part != 1:
                log = tuple(map(max, log, reply[2]))
                if s == STAR:
                    e = max(e, reply[2][E])
            if part != 0:
                sequence = max(sequence, reply[1])
            views = put(views, s, (number, nonce, sequence, log, e))
        return views

    def _reply(self, sql, redis, process, place, thread, out, label) -> None:
        """Take the replies of a whole pipeline."""
        if self.c.split and any(other[0] == HALF for other in process[6]):
            return  # another thread has the lock of the view
        label = label or ("thread: reply",)
        flight = thread[5]
        number, replies = flight[0], self._by_set(flight[4])
        if self.c.reader_loss:
            out.append((("thread: reply lost",), redis, self._ended(process, place)))
        bad = self._rejected(process, number, replies)
        if bad is not None:
            out.append(((*label, "refused"), redis, self._drop(process, bad, place)))
            return
        cut = self._cut(flight, replies)
        thread = put(thread, 6, cut)
        if self.c.split:
            views = self._advance(process[3], cut, replies, 0)
            after = put(put(thread, 0, HALF), 5, replies)
            out.append((label, redis, self._with(put(process, 3, views), place, after)))
            return
        process = put(process, 3, self._advance(process[3], cut, replies, -1))
        self._after_apply(sql, redis, process, place, thread, out, label, flight[5])

    def _by_set(self, replies: tuple) -> tuple:
        return replies[::-1] if "star_first" in self.m and self.sets > 1 else replies

    def _rejected(self, process, number, replies):
        """Return the sets whose views go, [] if only the lease is gone, None if all is well."""
        gone = []
        for s, reply in enumerate(replies):
            view = process[3][s]
            if (reply[0] != view[1] and "no_nonce" not in self.m) or (
                reply[4] and "no_floor" not in self.m
            ):
                gone.append(s)
        if gone or self._leased(process) != number:
            return gone
        return None

    def _drop(self, process: tuple, gone: list, place: int) -> tuple:
        if not gone:
            return self._ended(process, place)
        for s in gone:
            process = self._forget(process, s)
        return process

    def _after_apply(self, sql, redis, process, place, thread, out, label, found=NOTHING) -> None:
        """Go on with a call that has a new cut."""
        label = label or ("thread: sequence raised",)
        _, left, arrival, ask, kind, flight, cut, newer, have = thread
        if kind == FIRST:
            after = (LOOK, left, arrival, ask, kind, NOTHING, cut, newer, have)
            if self.fine:
                out.append((label, redis, self._with(process, place, after)))
            else:
                after = put(after, 5, flight)
                self._look(sql, redis, process, place, after, out, label)
            return
        wanted = self.asks[ask]
        if kind == SECOND:
            kept = [
                len(known) == 1 or self._usable(process, fact, known, cut)
                for fact, known in zip(wanted, have, strict=True)
            ]
            if all(kept) or "no_v2_check" in self.m:
                self._answer(sql, redis, process, place, thread, out, label, "mixed")
            else:
                out.append(((*label, "cut broken"), redis, self._ended(process, place)))
            return
        known_now = []
        for fact, known in zip(wanted, have, strict=True):
            if known and not self._usable(process, fact, known, cut):
                known = NOTHING
            known_now.append(known)
        for fact, ev, value in found:
            entry = (cut[0], ev, 0, value)
            if not self._usable(process, fact, entry, cut):
                continue
            known_now[wanted.index(fact)] = entry
            process = self._put_l1(process, fact, entry)
            self.seen.add("used from L2")
        have = tuple(known_now)
        if all(have):
            self._answer(sql, redis, process, place, put(thread, 8, have), out, label, "L2")
            return
        after = (MISS, left, arrival, ask, 0, NOTHING, cut, 0, have)
        out.append((label, redis, self._with(process, place, after)))

    def _usable(self, process: tuple, fact: int, entry: tuple, cut: tuple) -> bool:
        """Rules 2 to 4 of 4.4."""
        s, places, bits, with_ev = self.facts[fact]
        if bits & cut[3 if s else 1]:
            return False
        s0, ev, checked, _ = entry
        if with_ev and (not cut[4] or ev != cut[4]) and "ev_not_compared" not in self.m:
            return False
        view = process[3][s]
        if self.c.split and checked >= view[2]:
            return True
        log = view[3]
        return all(log[place] <= s0 for place in places)

    def _put_l1(self, process: tuple, fact: int, entry: tuple) -> tuple:
        """Put an entry, unless a newer one is there; threads learn that it came after they sent."""
        old = process[4][fact]
        if old and old[0] > entry[0]:
            return process
        row, lease, renewal, views, entries, fills, threads, flight = process
        entries = put(entries, fact, entry)
        if len(threads) > 1:
            bit = 1 << fact
            threads = tuple(
                put(thread, 7, thread[7] | bit) if SENT <= thread[0] <= LOOK else thread
                for thread in threads
            )
            if flight:
                flight = put(flight, 2, flight[2] | bit)
        return (row, lease, renewal, views, entries, fills, threads, flight)

    def _look(self, sql, redis, process, place, thread, out, label) -> None:
        """Look facts up: one at a time if another thread shares the view."""
        _, left, arrival, ask, kind, flight, cut, newer, have = thread
        wanted = self.asks[ask]
        entries = process[4]
        # kind counts the facts looked up from here on.
        done = kind - FIRST
        for place_of, fact in enumerate(wanted[done:], done):
            entry = entries[fact]
            if (
                entry
                and (not newer >> fact & 1 or "no_fill_order" in self.m)
                and self._usable(process, fact, entry, cut)
            ):
                have = put(have, place_of, entry)
                if self.c.split and entry[2] < process[3][self.facts[fact][0]][2]:
                    checked = put(entry, 2, process[3][self.facts[fact][0]][2])
                    process = put(process, 4, put(process[4], fact, checked))
            done += 1
            if self.fine and done < len(wanted):
                after = (LOOK, left, arrival, ask, FIRST + done, NOTHING, cut, newer, have)
                label = label or ("thread: looks up", self.c.facts[fact].name, have[place_of])
                out.append((label, redis, self._with(process, place, after)))
                return
        if (
            flight
            and self.sets > 1
            and flight[1][STAR] < cut[2]  # this very reply told of a write in `*`
            and any(had and self.facts[fact][3] for fact, had in zip(wanted, have, strict=True))
        ):
            self.seen.add("grants used after a write of another tag of `*`")
        label = (*label, "looked up", have) if label else ("thread: looks up", have)
        if all(have):
            self._answer(sql, redis, process, place, put(thread, 8, have), out, label, "L1")
            return
        after = (MISS, left, arrival, ask, 0, NOTHING, cut, 0, have)
        if self.c.l2:
            keys = tuple(
                (fact, cut[4] if self.facts[fact][3] else NOTHING)
                for fact, known in zip(wanted, have, strict=True)
                if not known and self.facts[fact][0] == ORG and (cut[4] or not self.facts[fact][3])
            )
            number = self._leased(process)
            if keys and number >= 0:
                flight = self._flight(process, number, keys)
                after = (SENT, left, arrival, ask, READ, flight, cut, 0, have)
        out.append((label, redis, self._with(process, place, after)))

    def _fill(self, sql, redis, process, place, thread, out) -> None:
        if self.c.split and any(other[0] == HALF for other in process[6]):
            return
        _, left, arrival, ask, _, _, cut, _, have = thread
        mixed = any(len(known) > 1 for known in have)
        for fact, known in zip(self.asks[ask], have, strict=True):
            if len(known) > 1:
                continue
            s, _, bits, with_ev = self.facts[fact]
            if bits & cut[3 if s else 1] and "fill_pending" not in self.m:
                continue
            if with_ev and not cut[4]:
                continue
            s0 = cut[2 if s else 0]
            ev = cut[4] if with_ev else NOTHING
            view = process[3][s]
            if "fill_s0_late" in self.m:
                s0 = view[2]
            process = self._put_l1(process, fact, (s0, ev, s0 if self.c.split else 0, known[0]))
            if self.c.l2 and s == ORG:
                fill = (view[0], fact, ev, cut[0], view[1], known[0])
                fills = process[5]
                if fill not in fills and len(fills) < self.c.l2_queue:
                    process = put(process, 5, tuple(sorted((*fills, fill))))
        label = ("thread: fills", have)
        thread = process[6][place]
        number = self._leased(process)
        if not mixed:
            self._answer(sql, redis, process, place, thread, out, label, "SQL")
        elif "no_v2" in self.m:
            self._answer(sql, redis, process, place, thread, out, label, "mixed")
        elif number < 0 or number != process[3][ORG][0]:
            out.append((label, redis, self._ended(process, place)))
        elif self.c.sharing:
            after = (WAITING, left, arrival, ask, SECOND, NOTHING, NOTHING, 0, have)
            out.append((label, redis, self._with(process, place, after)))
            if "v2_joins_sent_before_snapshot" in self.m and process[7]:
                after = put(after, 0, JOINED)
                out.append(((*label, "joins"), redis, self._with(process, place, after)))
        else:
            flight = self._flight(process, number)
            after = (SENT, left, arrival, ask, SECOND, flight, NOTHING, 0, have)
            out.append((label, redis, self._with(process, place, after)))

    def _answer(self, sql, redis, process, place, thread, out, label, source) -> None:
        self._judge(sql[0], thread[2], thread[3], thread[8])
        self.seen.add(f"answer from {source}")
        out.append(((*label, f"answers from {source}"), redis, self._ended(process, place)))

    def _shared_steps(self, sql, redis, process, out) -> None:
        """Send, run and take the one validation that all waiting calls share."""
        flight = process[7]
        number = self._leased(process)
        if not flight:
            waiting = any(thread[0] == WAITING for thread in process[6])
            if waiting and number >= 0 and all(process[3]):
                threads = tuple(
                    put(thread, 0, JOINED) if thread[0] == WAITING else thread
                    for thread in process[6]
                )
                sent = (SENT, self._flight(process, number), 0)
                after = (*process[:6], tuple(sorted(threads)), sent)
                joined = sum(thread[0] == JOINED for thread in threads)
                if joined > 1:
                    self.seen.add("validation shared")
                label = ("shared validation: sent for", joined)
                out.append((label, redis, after))
            return
        step, content, newer = flight
        if step in (SENT, READ_1):
            reached = self._reach(redis, process, content, step, self._order())
            if reached is None:
                after = self._forget(process)
                out.append((("shared validation: refused",), redis, after))
                return
            content, label = reached
            step = READ_2 if step == READ_1 or self.sets == 1 else READ_1
            out.append((label, redis, put(process, 7, (step, content, newer))))
            return
        replies = self._by_set(content[4])
        bad = self._rejected(process, content[0], replies)
        if bad is not None:
            after = process
            for s in bad:
                after = self._forget(after, s)
            threads = tuple(
                self._end(thread) if thread[0] == JOINED else thread for thread in after[6]
            )
            after = (*after[:6], tuple(sorted(threads)), NOTHING)
            out.append((("shared validation: reply refused",), redis, after))
            return
        cut = self._cut(content, replies)
        process = put(process, 3, self._advance(process[3], cut, replies, -1))
        threads = []
        for thread in process[6]:
            if thread[0] != JOINED:
                threads.append(thread)
                continue
            _, left, arrival, ask, kind, _, _, _, have = thread
            if kind == FIRST:
                threads.append((LOOK, left, arrival, ask, kind, NOTHING, cut, newer, have))
                continue
            # The second validation: judged and answered at once.
            good = all(
                len(known) == 1 or self._usable(process, fact, known, cut)
                for fact, known in zip(self.asks[ask], have, strict=True)
            )
            if good:
                try:
                    self._judge(sql[0], arrival, ask, have)
                except Violation as violation:
                    out.append(((f"thread: {violation}",), redis, violation))
                    return
                self.seen.add("answer from mixed")
            threads.append(self._end(thread))
        after = (*process[:6], tuple(sorted(threads)), NOTHING)
        out.append((("shared validation: reply",), redis, after))

    # -- Writers, fence and enable -------------------------------------------------------------

    def writer_steps(self, sql: tuple, redis: tuple, writers: tuple) -> list[tuple]:
        """Return (what happens, sql, redis, writers) for each step of a writer, fence or enable.

        A step that breaks a promise has the `Violation` instead of the writers.
        """
        out: list[tuple] = []
        history, gen, mode, name, acked = sql
        each, limbo, lost, crashes = writers
        generations, saved = redis
        free = not any(writer[0] in LOCKED for writer in each)
        for place, writer in enumerate(each):
            step, attempt, its_gen, number, _ = writer
            if step in (ACKED, GONE):
                continue

            def go(
                new, what, sql=sql, redis=redis, limbo=limbo, lost=lost, crashes=crashes, w=place
            ):
                label = (f"write {self._name(w)}: {what}",)
                out.append((label, sql, redis, (put(each, w, new), limbo, lost, crashes)))

            if crashes and step != BEGIN:
                # Before COMMIT it is rolled back, afterwards its marks stay.
                go((GONE, attempt, 0, 0, 0), "crashes", crashes=crashes - 1)
            if step == BEGIN:
                if mode == ON:
                    go((TO_MARK, attempt, gen, name, 0), "locks, reads mode on")
                elif mode == OFF or "no_settle_wait" in self.m:
                    go((TO_COMMIT_UNMARKED, attempt, gen, 0, 0), "locks, reads mode off")
            elif step == TO_MARK:
                self._mark_step(redis, limbo, lost, place, writer, go)
            elif step in (TO_COMMIT, TO_COMMIT_UNMARKED):
                unmarked = step == TO_COMMIT_UNMARKED
                after = (*history, place)
                position = len(after) if self.c.promise_1_only else 0
                if unmarked:
                    go(
                        (ACKED, 0, 0, 0, 0), "commits, acknowledged",
                        sql=(after, gen, mode, name, position or acked),
                    )  # fmt: skip
                else:
                    ack = position if "ack_before_bump" in self.m else 0
                    go(
                        (TO_BUMP, attempt, its_gen, number, 0), "commits",
                        sql=(after, gen, mode, name, ack or acked),
                    )  # fmt: skip
                    if crashes:
                        go(
                            (GONE, attempt, 0, 0, 0), "commits, result unknown",
                            sql=(after, gen, mode, name, acked), crashes=crashes - 1,
                        )  # fmt: skip
                        go(
                            (ABORTED, attempt, its_gen, number, 0), "COMMIT fails",
                            crashes=crashes - 1,
                        )  # fmt: skip
            elif step in (TO_BUMP, ABORTED):
                self._bump_step(sql, redis, limbo, lost, place, writer, go, out)
            elif step in (FENCE_THEN_ACK, FENCE_THEN_RETRY) and free:
                after = sql
                what = "fence: left already"
                if gen == its_gen and mode == ON:
                    after = (history, gen + 1, SETTLING, name, acked)
                    what = "fences"
                if step == FENCE_THEN_ACK:
                    go((SETTLE_THEN_ACK, attempt, 0, 0, 0), what, sql=after)
                elif attempt + 1 < ATTEMPTS:
                    go((BEGIN, attempt + 1, 0, 0, 0), what, sql=after)
                else:
                    go((GONE, attempt, 0, 0, 0), what + ", gives up", sql=after)
            elif step == SETTLE_THEN_ACK and mode != SETTLING:
                self._acknowledge(sql, redis, place, attempt, go, out)
        for script in limbo:
            kind, number, s, writer, attempt = script
            act = self._mark if kind else self._bump
            _, after = act(generations[number], s, writer, attempt)
            rest = tuple(other for other in limbo if other != script)
            label = (f"late {'MARK' if kind else 'BUMP'} of write {self._name(writer)}, set {s}",)
            out.append(
                (label, sql, (put(generations, number, after), saved), (each, rest, lost, crashes))
            )
        if self.c.recover:
            self._recover(sql, redis, writers, out)
        if free:
            self._generation_steps(sql, redis, writers, out)
        return out

    def _name(self, writer: int) -> str:
        return f"{writer + 1} on {' and '.join(self.c.writers[writer])}"

    def _mark_step(self, redis, limbo, lost, place, writer, go) -> None:
        _, attempt, gen, number, done = writer
        generations, saved = redis
        wanted = self.writes[place]
        if "no_mark" in self.m:
            go((TO_COMMIT, attempt, gen, number, 0), "does not mark")
            return
        s = wanted[done][0]
        late = tuple((1, number, other, place, attempt) for other, _ in wanted[done:])
        there, after = self._mark(generations[number], s, place, attempt)
        next_step = TO_COMMIT if done + 1 == len(wanted) else TO_MARK
        done = 0 if next_step == TO_COMMIT else done + 1
        failed = (FENCE_THEN_RETRY, attempt, gen, 0, 0)
        if "no_fence" in self.m:
            failed = (TO_COMMIT, attempt, gen, number, 0)
        redis_after = (put(generations, number, after), saved)
        if there:
            go((next_step, attempt, gen, number, done), f"MARK in set {s}", redis=redis_after)
        else:
            # The rest of the pipeline runs or not; nobody waits for it.
            rest = tuple(sorted({*limbo, *late[1:]}))
            go(failed, f"MARK in set {s} refused, rolls back", redis=redis_after, limbo=rest)
        if lost:
            rest = tuple(sorted({*limbo, *late}))
            go(failed, f"MARK in set {s} not answered, rolls back", limbo=rest, lost=lost - 1)

    def _bump_step(self, sql, redis, limbo, lost, place, writer, go, out) -> None:
        step, attempt, gen, number, done = writer
        generations, saved = redis
        wanted = self.writes[place]
        s = wanted[done][0]
        there, after = self._bump(generations[number], s, place, attempt)
        redis_after = (put(generations, number, after), saved)
        last = done + 1 == len(wanted)
        late = tuple((0, number, other, place, attempt) for other, _ in wanted[done:])
        if step == ABORTED:
            # Reported as failed; whatever becomes of the bump.
            new = (GONE, attempt, 0, 0, 0) if last else (step, attempt, gen, number, done + 1)
            go(new, f"BUMP in set {s} after failure", redis=redis_after)
            return
        ignore = "ack_without_mark" in self.m or "no_fence" in self.m
        if there or ignore:
            what = f"BUMP in set {s}" + ("" if there else " finds no mark")
            if not last:
                go((step, attempt, gen, number, done + 1), what, redis=redis_after)
            else:
                self._acknowledge(sql, redis_after, place, attempt, go, out, what)
        else:
            rest = tuple(sorted({*limbo, *late[1:]}))
            failed = (FENCE_THEN_ACK, attempt, gen, 0, 0)
            go(failed, f"BUMP in set {s} finds no mark", redis=redis_after, limbo=rest)
        if lost:
            rest = tuple(sorted({*limbo, *late}))
            failed = (FENCE_THEN_ACK, attempt, gen, 0, 0)
            go(failed, f"BUMP in set {s} not answered", limbo=rest, lost=lost - 1)

    def _acknowledge(self, sql, redis, place, attempt, go, out, what="settled") -> None:
        history, gen, mode, name, acked = sql
        if place not in history:
            out.append((("write: acknowledged, not in SQL",), sql, redis, Violation("not in SQL")))
            return
        if self.c.promise_1_only:
            acked = max(acked, history.index(place) + 1)
        after = (history, gen, mode, name, acked)
        go((ACKED, 0, 0, 0, 0), what + ", acknowledged", sql=after, redis=redis)

    def _recover(self, sql, redis, writers, out) -> None:
        """Bump a mark whose transaction has ended."""
        generations, saved = redis
        for number, generation in enumerate(generations):
            for s, there in enumerate(generation[3]):
                if not there or not there[3] or not generation[0]:
                    continue
                for place, writer in enumerate(writers[0]):
                    for attempt in range(ATTEMPTS):
                        if not self._marked(there[3], s, place, attempt):
                            continue
                        if writer[0] in LOCKED and writer[1] == attempt:
                            continue  # in progress
                        _, after = self._bump(generation, s, place, attempt)
                        label = (f"abandoned mark of write {self._name(place)} bumped, set {s}",)
                        out.append((label, sql, (put(generations, number, after), saved), writers))

    def _marked(self, marks: int, s: int, writer: int, attempt: int) -> bool:
        for other, places in self.writes[writer]:
            if other == s:
                bits = self._mark_bits(writer, attempt, places)
                return marks & bits == bits
        return False

    def _generation_steps(self, sql, redis, writers, out) -> None:
        """Fence from the background, and enable; both need the lock K alone."""
        history, gen, mode, name, acked = sql
        generations, saved = redis
        if mode == ON:
            alive, _, registry, sets, _ = generations[name]
            lost = not alive or not registry
            lost = lost or any(
                nonce and not there for nonce, there in zip(registry, sets, strict=True)
            )
            if lost or self.c.fence_any:
                after = (history, gen + 1, SETTLING, name, acked)
                out.append((("background: fences",), after, redis, writers))
        elif len(generations) < self.c.generations and (
            mode == OFF or "enable_before_settle" in self.m
        ):
            more = "gen_at_enable" in self.m
            after = (history, gen + more, ON, len(generations), acked)
            label = ("background: enables G", len(generations))
            out.append((label, after, ((*generations, self._new_generation()), saved), writers))

    def settled(self, sql: tuple) -> tuple:
        """Return the SQL after settle."""
        history, gen, _, name, acked = sql
        return (history, gen, OFF, name, acked)

    # -- Faults of Redis -----------------------------------------------------------------------

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

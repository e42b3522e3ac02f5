"""Processes: leases, views, and calls of readers from arrival to answer."""

from tests.model.scripts import (
    FIRST,
    HALF,
    IDLE,
    JOINED,
    LOOK,
    MISS,
    NOTHING,
    ON,
    OPENED,
    OPENING,
    ORG,
    READ,
    READ_1,
    READ_2,
    SECOND,
    SENT,
    SNAPPED,
    STAR,
    WAITING,
    E,
    Scripts,
    Violation,
    put,
)


class Readers(Scripts):
    """The steps of processes and their threads (4.1, 4.3 to 4.6)."""

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
        if gone or (
            self._leased(process) != number
            and not {"lease_checked_at_send", "lease_checked_once"} & self.m
        ):
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
        if "lease_checked_once" in self.m:
            number = process[3][ORG][0]
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

    @staticmethod
    def _idle(left: int) -> tuple:
        return (IDLE, left, 0, 0, 0, NOTHING, NOTHING, 0, NOTHING)

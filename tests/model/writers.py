"""Writers, abandoned marks, fence, settle and enable."""

from tests.model.scripts import (
    ABORTED,
    ACKED,
    ATTEMPTS,
    BEGIN,
    FENCE_THEN_ACK,
    FENCE_THEN_RETRY,
    GONE,
    LOCKED,
    OFF,
    ON,
    SETTLE_THEN_ACK,
    SETTLING,
    TO_BUMP,
    TO_COMMIT,
    TO_COMMIT_UNMARKED,
    TO_MARK,
    Scripts,
    Violation,
    put,
)


class Writers(Scripts):
    """The steps of writes and of generations (4.8 to 4.10)."""

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

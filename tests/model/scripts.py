"""What all parts of the model share: names, values of facts, and the scripts of Redis."""

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


class Scripts:
    """The tables of a configuration, the judge of answers, and the scripts of 4.2."""

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

    def _new_generation(self) -> tuple:
        return (True, 1, (0,) * self.sets, (NOTHING,) * self.sets, NOTHING)

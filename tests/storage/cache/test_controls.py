"""Control sets: one suite for those in memory and those in Redis, then what only Redis can do."""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz_service.base.clock import boot_seconds
from authz_service.storage.cache.control import CHANGES_MAX, Control, Look, Lost, Reply
from tests.oracle.sizes import how_many
from tests.storage.cache.lives import Place, eventually, finish, opened, seen, why_lost

Begin = Callable[..., Control]
A, B, STAR = "org_a", "org_b", "*"


# --- every kind ----------------------------------------------------------------------------------


def test_open_makes_a_set_once_and_never_changes_it(begin: Begin) -> None:
    control = begin()
    first = control.open([A])
    assert first is not None
    assert (first[A].sequence, first[A].definitions) == (0, 0)
    assert control.mark("1:x", {A: ["m:1"]})
    assert control.open([A]) == first
    assert seen(control, Look(A, first[A].nonce, 0)) == (0, {}, {"m:1"})
    control.bump("1:x", {A: ["m:1"]})
    again = control.open([A])
    assert again is not None
    assert again[A] == (first[A].nonce, 1, 0)
    assert seen(control, Look(A, first[A].nonce, 0)) == (1, {"m:1": 1}, set())


def test_each_set_has_a_name_of_its_own(begin: Begin) -> None:
    control = begin()
    both = control.open([A, B])
    assert both is not None
    assert both[A].nonce != both[B].nonce
    other = begin().open([A])
    assert other is not None
    assert other[A].nonce != both[A].nonce


def test_validate_tells_what_finished_after_the_last_look(begin: Begin) -> None:
    control = begin()
    look = opened(control)
    finish(control, "1:x", {A: ["m:1", "g:1"]})
    finish(control, "2:x", {A: ["m:2"]})
    finish(control, "3:x", {A: ["m:1", "R"]})
    told = [
        {"g:1": 1, "m:2": 2, "m:1": 3, "R": 3},
        {"m:2": 2, "m:1": 3, "R": 3},
        {"m:1": 3, "R": 3},
        {},
    ]
    for last, changed in enumerate(told):
        assert seen(control, look._replace(last=last)) == (3, changed, set())


def test_a_pending_tag_is_told_from_everywhere(begin: Begin) -> None:
    control = begin()
    look = opened(control)
    finish(control, "1:x", {A: ["m:1"]})
    assert control.mark("2:x", {A: ["m:1", "r:1"]})
    for last in (0, 1):
        assert seen(control, look._replace(last=last))[2] == {"m:1", "r:1"}
    control.bump("2:x", {A: ["m:1", "r:1"]})
    assert seen(control, look) == (2, {"m:1": 2, "r:1": 2}, set())


def test_a_mark_raises_no_sequence(begin: Begin) -> None:
    control = begin()
    look = opened(control)
    assert control.mark("1:x", {A: ["m:1"]})
    assert opened(control) == look
    assert seen(control, look) == (0, {}, {"m:1"})


def test_a_mark_makes_the_set_that_it_needs(begin: Begin) -> None:
    control = begin()
    assert control.mark("1:x", {A: ["m:1"]})
    assert seen(control, opened(control)) == (0, {}, {"m:1"})
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 1}


def test_the_end_of_one_writer_leaves_the_mark_of_the_other(begin: Begin) -> None:
    control = begin()
    look = opened(control)
    assert control.mark("1:x", {A: ["m:1"]})
    assert control.mark("2:x", {A: ["m:1", "m:2"]})
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 1}
    assert seen(control, look) == (1, {"m:1": 1}, {"m:1", "m:2"})
    assert control.bump("2:x", {A: ["m:1", "m:2"]}) == {A: 2}
    assert seen(control, look) == (2, {"m:1": 2, "m:2": 2}, set())


def test_the_same_transaction_may_mark_twice(begin: Begin) -> None:
    """Its attempts differ in the second half of the mark."""
    control = begin()
    look = opened(control)
    assert control.mark("1:x", {A: ["m:1"]})
    assert control.mark("1:y", {A: ["m:1"]})
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 1}
    assert seen(control, look)[2] == {"m:1"}


def test_to_mark_once_more_changes_nothing(begin: Begin) -> None:
    control = begin()
    look = opened(control)
    for _ in range(2):
        assert control.mark("1:x", {A: ["m:1"]})
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 1}
    assert seen(control, look) == (1, {"m:1": 1}, set())


def test_a_mark_that_is_gone_finishes_nothing(begin: Begin) -> None:
    control = begin()
    look = opened(control)
    finish(control, "1:x", {A: ["m:1"]})
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 0}
    assert control.bump("2:x", {A: ["m:2"]}) == {A: 0}
    assert seen(control, look) == (1, {"m:1": 1}, set())


def test_a_mark_belongs_to_its_set(begin: Begin) -> None:
    control = begin()
    look = opened(control, B)
    assert control.mark("1:x", {A: ["m:1"]})
    assert control.bump("1:x", {B: ["m:1"]}) == {B: 0}
    assert seen(control, look) == (0, {}, set())
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 1}


def test_one_write_in_several_sets(begin: Begin) -> None:
    control = begin()
    looks = [opened(control, realm) for realm in (A, B, STAR)]
    finish(control, "1:x", {B: ["O"]})
    tags = {A: ["m:1"], B: ["m:2", "R"], STAR: ["E"]}
    assert control.mark("2:x", tags)
    replies = control.validate(looks)
    assert replies is not None
    assert [(reply.sequence, dict(reply.changed), set(reply.pending)) for reply in replies] == [  # type: ignore[union-attr]
        (0, {}, {"m:1"}),
        (1, {"O": 1}, {"m:2", "R"}),
        (0, {}, {"E"}),
    ]
    assert control.bump("2:x", tags) == {A: 1, B: 2, STAR: 1}
    replies = control.validate(looks)
    assert replies is not None
    assert [(reply.sequence, dict(reply.changed)) for reply in replies] == [  # type: ignore[union-attr]
        (1, {"m:1": 1}),
        (2, {"O": 1, "m:2": 2, "R": 2}),
        (1, {"E": 1}),
    ]


def test_one_lost_set_says_nothing_of_another(begin: Begin) -> None:
    control = begin()
    good = opened(control)
    finish(control, "1:x", {A: ["m:1"]})
    replies = control.validate([Look(B, "never", 0), good])
    assert replies == [Lost("nonce"), Reply(1, (("m:1", 1),), frozenset())]


def test_another_name_is_another_set(begin: Begin) -> None:
    control = begin()
    look = opened(control)
    finish(control, "1:x", {A: ["m:1"]})
    for last in (0, 1):
        assert why_lost(control, look._replace(nonce="other", last=last)) == "nonce"


def test_open_tells_when_the_definitions_were_written(begin: Begin) -> None:
    control = begin()
    finish(control, "1:x", {STAR: ["k:1"]})
    finish(control, "2:x", {STAR: ["E"]})
    finish(control, "3:x", {STAR: ["k:1"]})
    found = control.open([STAR])
    assert found is not None
    assert (found[STAR].sequence, found[STAR].definitions) == (3, 2)


@pytest.mark.parametrize(("count", "is_lost"), [(CHANGES_MAX - 3, False), (CHANGES_MAX, True)])
def test_very_many_changes_are_a_loss(begin: Begin, count: int, is_lost: bool) -> None:
    control = begin()
    look = opened(control)
    for first in range(0, count, 100):
        tags = [f"m:{i}" for i in range(first, min(first + 100, count))]
        finish(control, f"{first}:x", {A: tags})
    if is_lost:
        assert why_lost(control, look) == "changes"
    else:
        assert len(seen(control, look)[1]) == count
    # From the end of them nothing is lost.
    assert seen(control, opened(control)) == (-(-count // 100), {}, set())


def test_trimming_raises_the_floor_and_keeps_the_definitions(begin: Begin) -> None:
    control = begin(members_max=20)
    look = opened(control, STAR)
    finish(control, "0:x", {STAR: ["E"]})
    lasts = []
    for i in range(1, 61):
        (sequence,) = finish(control, f"{i}:x", {STAR: [f"k:{i}"]}).values()
        assert sequence == i + 1
        lasts.append(sequence)
    assert why_lost(control, look) == "floor"
    assert why_lost(control, look._replace(last=2)) == "floor"
    found = control.open([STAR])
    assert found is not None
    assert found[STAR] == (look.nonce, 61, 1)
    # What can still be told is told whole; what cannot is lost.
    for last in lasts:
        (reply,) = control.validate([look._replace(last=last)])  # type: ignore[misc]
        if isinstance(reply, Lost):
            assert reply.reason == "floor"
            assert last < 58
        else:
            assert dict(reply.changed) == {f"k:{i}": i + 1 for i in range(last, 61)}
    assert seen(control, look._replace(last=61)) == (61, {}, set())


def test_trimming_leaves_marks(begin: Begin) -> None:
    control = begin(members_max=10)
    look = opened(control)
    assert control.mark("0:x", {A: ["m:0"]})
    for i in range(1, 31):
        finish(control, f"{i}:x", {A: [f"m:{i}"]})
    assert why_lost(control, look) == "floor"
    assert seen(control, opened(control)) == (30, {}, {"m:0"})
    assert control.bump("0:x", {A: ["m:0"]}) == {A: 31}


def test_a_write_of_many_tags_is_trimmed_as_one(begin: Begin) -> None:
    """Half of the tags of one sequence may go; whoever needs them must be told."""
    control = begin(members_max=20)
    look = opened(control)
    for i in range(6):
        finish(control, f"{i}:x", {A: [f"m:{i}{j}" for j in range(8)]})
    for last in range(7):
        (reply,) = control.validate([look._replace(last=last)])  # type: ignore[misc]
        if isinstance(reply, Reply):
            every = {f"m:{i}{j}": i + 1 for i in range(last, 6) for j in range(8)}
            assert dict(reply.changed) == every
        else:
            assert (reply.reason, last < 5) == ("floor", True)


def test_threads_are_told_of_their_own_sets(begin: Begin) -> None:
    control = begin()
    looks = {}
    for number in range(8):
        realm = f"org_{number}"
        looks[realm] = opened(control, realm)
        for i in range(number):
            finish(control, f"{i}:{number}", {realm: [f"m:{number}"]})
    wrong: list[Any] = []

    def ask(realm: str, number: int) -> None:
        for _ in range(40):
            found = control.validate([looks[realm]])
            changed = ((f"m:{number}", number),) if number else ()
            if found != [Reply(number, changed, frozenset())]:
                wrong.append((realm, found))

    threads = [
        threading.Thread(target=ask, args=(realm, number)) for number, realm in enumerate(looks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- against a naive model -----------------------------------------------------------------------

REALMS, TAGS = (A, B, STAR), ("m:1", "g:1", "r:1", "E")
_some_tags = st.sets(st.sampled_from(TAGS), min_size=1)
_touched = st.dictionaries(st.sampled_from(REALMS), _some_tags, min_size=1)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sets(st.sampled_from(REALMS), min_size=1)),
        st.tuples(st.just("mark"), _touched),
        st.tuples(st.just("bump"), st.integers(0, 20)),
        st.tuples(st.just("look"), st.lists(st.tuples(st.sampled_from(REALMS), st.integers(0, 9)))),
    ),
    max_size=30,
)


class Naive:
    """What control sets are about: finished writes in order, and writes under way."""

    def __init__(self) -> None:
        self.finished: dict[str, list[set[str]]] = defaultdict(list)
        self.marks: list[tuple[str, dict[str, set[str]]]] = []
        self.ended: set[str] = set()

    def bump(self, mark: str, tags: Mapping[str, set[str]]) -> dict[str, int]:
        if mark in self.ended:
            return dict.fromkeys(tags, 0)
        self.ended.add(mark)
        for realm, changed in tags.items():
            self.finished[realm].append(changed)
        return {realm: len(self.finished[realm]) for realm in tags}

    def look(self, realm: str, last: int) -> tuple[int, dict[str, int], set[str]]:
        changed = {}
        for number, tags in enumerate(self.finished[realm], 1):
            for tag in tags:
                if number > last:
                    changed[tag] = number
        pending = {
            tag
            for mark, tags in self.marks
            if mark not in self.ended
            for tag in tags.get(realm, ())
        }
        return len(self.finished[realm]), changed, pending

    def definitions(self, realm: str) -> int:
        numbers = [n for n, tags in enumerate(self.finished[realm], 1) if "E" in tags]
        return max(numbers, default=0)


@settings(
    max_examples=how_many("control sets"),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps, members_max=st.sampled_from([20_000, 8]))
def test_any_interleaving_is_that_of_the_naive_model(
    begin: Begin, steps: list[tuple[str, Any]], members_max: int
) -> None:
    control, naive = begin(members_max=members_max), Naive()
    nonces: dict[str, str] = {}
    for kind, what in steps:
        if kind == "open":
            found = control.open(what)
            assert found is not None
            for realm, state in found.items():
                assert nonces.setdefault(realm, state.nonce) == state.nonce
                assert state.sequence == naive.look(realm, 0)[0]
                assert state.definitions == naive.definitions(realm)
        elif kind == "mark":
            mark = f"{len(naive.marks)}:x"
            naive.marks.append((mark, what))
            assert control.mark(mark, what)
        elif kind == "bump" and naive.marks:
            mark, tags = naive.marks[what % len(naive.marks)]
            assert control.bump(mark, tags) == naive.bump(mark, tags)
        elif kind == "look":
            asked = [(realm, last) for realm, last in what if realm in nonces]
            lasts = [min(last, naive.look(realm, 0)[0]) for realm, last in asked]
            looks = [
                Look(realm, nonces[realm], last)
                for (realm, _), last in zip(asked, lasts, strict=True)
            ]
            replies = control.validate(looks)
            assert replies is not None
            for look, reply in zip(looks, replies, strict=True):
                sequence, changed, pending = naive.look(look.realm, look.last)
                if isinstance(reply, Lost):
                    assert (reply.reason, members_max) == ("floor", 8)
                    assert look.last < sequence
                else:
                    assert reply.sequence == sequence
                    assert dict(reply.changed) == changed
                    assert reply.pending == pending


# --- what can happen to a Redis ------------------------------------------------------------------


def test_a_lost_registry_ends_the_life(place: Place) -> None:
    control = place.begin()
    look = opened(control)
    place.client.delete(control.registry)
    assert control.open([A]) is None
    assert control.open([B]) is None
    assert control.mark("1:x", {A: ["m:1"]}) is False
    assert place.lost == ["registry", "registry"]
    assert place.metrics.cache_mark_failures.value("registry") == 1
    # It was marked by the writers under way, and is until somebody fences.
    assert seen(control, look) == (0, {}, set())
    assert place.client.keys() == [control.key(A).encode()]


def test_a_lost_set_is_never_made_again(place: Place) -> None:
    control = place.begin()
    look, other = opened(control), opened(control, B)
    assert control.mark("1:x", {A: ["m:1"]})
    place.client.delete(control.key(A))
    assert control.open([A]) is None
    assert control.mark("2:x", {A: ["m:1"]}) is False
    assert control.mark("2:x", {A: ["m:1"], B: ["m:2"]}) is False
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 0}
    assert why_lost(control, look) == "nonce"
    assert place.lost == ["set"]
    assert place.metrics.cache_mark_failures.value("set") == 2
    assert not place.client.exists(control.key(A))
    # The write in both marked the other one.
    assert seen(control, other) == (0, {}, {"m:2"})


STEPS: list[tuple[str, Callable[[Any, Look], Any], Any]] = [
    ("open", lambda control, _: control.open([A]), None),
    ("mark", lambda control, _: control.mark("1:x", {A: ["m:1"]}), False),
    ("look", lambda control, look: control.validate([look]), [Lost("nonce")]),
    ("bump", lambda control, _: control.bump("1:x", {A: ["m:1"]}), {A: 0}),
    ("look again", lambda control, look: control.validate([look]), [Lost("nonce")]),
    ("open again", lambda control, _: control.open([A]), None),
]


@pytest.mark.parametrize("loss", ["everything", "registry and set", "set"])
@pytest.mark.parametrize("at", range(len(STEPS)), ids=[name for name, _, _ in STEPS])
def test_after_a_loss_there_are_only_refusals(place: Place, at: int, loss: str) -> None:
    control = place.begin()
    look = opened(control)
    for _, step, refusal in STEPS[:at]:
        assert step(control, look) != refusal
    if loss == "everything":
        place.client.flushall()
    elif loss == "set":
        place.client.delete(control.key(A))
    else:
        place.client.delete(control.registry, control.key(A))
    for _ in range(2):
        for name, step, refusal in STEPS:
            assert step(control, look) == refusal, name


def test_a_bump_cannot_make_a_set(place: Place) -> None:
    control = place.begin()
    opened(control)
    assert control.mark("1:x", {A: ["m:1"]})
    place.client.flushall()
    assert control.bump("1:x", {A: ["m:1"]}) == {A: 0}
    assert place.client.keys() == []


def test_a_set_of_before_is_not_taken_over(place: Place) -> None:
    """Its registry is gone and another life has its name, which cannot be: names are random."""
    control = place.begin()
    look = opened(control)
    finish(control, "1:x", {A: ["m:1"]})
    place.client.delete(control.registry)
    place.client.hset(control.registry, "", "1")
    assert why_lost(control, opened(control)._replace(nonce=look.nonce)) == "nonce"
    assert opened(control).last == 0


@pytest.mark.parametrize("kept", [False, True], ids=["empty", "old snapshot"])
def test_no_command_reaches_a_redis_that_was_restarted(throwaway: Place, kept: bool) -> None:
    control = throwaway.begin()
    look = opened(control)
    snapshot = throwaway.server.snapshot()
    finish(control, "1:x", {A: ["m:1"]})
    old = throwaway.server.run_id
    throwaway.server.restart(from_snapshot=snapshot if kept else None)
    assert throwaway.server.run_id != old
    fresh = throwaway.join(control.name, run_id=old)
    for each in (control, fresh):
        for _ in range(2):
            assert each.validate([look]) is None
            assert each.open([A]) is None
            assert each.mark("2:x", {A: ["m:1"]}) is False
            assert each.bump("2:x", {A: ["m:1"]}) == {A: 0}
    assert throwaway.metrics.cache_mark_failures.value("run_id") >= 3
    assert throwaway.lost == []
    if kept:
        # That is why: it would have been told that nothing has happened.
        assert seen(throwaway.join(control.name, run_id=""), look) == (0, {}, set())


def test_scripts_that_redis_forgot_are_sent_again(place: Place) -> None:
    control = place.begin()
    look, star = opened(control), opened(control, STAR)
    tags = {A: ["m:1"], STAR: ["E"]}
    for number in range(1, 4):
        place.client.script_flush()
        assert control.open([A]) is not None
        place.client.script_flush()
        assert control.mark(f"{number}:x", tags)
        place.client.script_flush()
        assert control.bump(f"{number}:x", tags) == {A: number, STAR: number}
    assert seen(control, look) == (3, {"m:1": 3}, set())
    assert seen(control, star) == (3, {"E": 3}, set())


def test_a_paused_redis_is_refused_in_time_and_never_mixes_up_answers(throwaway: Place) -> None:
    setup = throwaway.begin()
    looks = {}
    for number, realm in enumerate((A, B, STAR), 1):
        looks[realm] = opened(setup, realm)
        for i in range(number):
            finish(setup, f"{i}:x", {realm: [f"m:{number}"]})
    seconds = 0.15
    control = throwaway.join(setup.name, seconds=seconds)
    # A connection that the pause finds idle, and those that it finds asking.
    assert control.validate([looks[A]]) is not None
    for _ in range(3):
        throwaway.server.stop()
        for call, refusal in (
            (lambda: control.validate([looks[A]]), None),
            (lambda: control.open([A]), None),
            (lambda: control.mark("9:x", {B: ["m:9"]}), False),
            (lambda: control.bump("8:x", {B: ["m:8"]}), {B: 0}),
        ):
            began = boot_seconds()
            assert call() == refusal  # type: ignore[no-untyped-call]
            # The time limit, and what a busy machine adds to it.
            assert boot_seconds() - began < seconds + 1.0
        throwaway.server.cont()
        patient = throwaway.join(setup.name)
        # The answers of the questions above are written to connections that nobody reads.
        for _ in range(5):
            for count, realm in enumerate((A, B, STAR), 1):
                sequence, changed, _ = seen(patient, looks[realm])
                assert (sequence, changed) == (count, {f"m:{count}": count})
                found = control.validate([looks[realm]])
                if found is not None:
                    (reply,) = found
                    assert isinstance(reply, Reply)
                    assert (reply.sequence, dict(reply.changed)) == (count, changed)
    assert throwaway.metrics.cache_mark_failures.value("timeout") >= 1


def test_a_mark_that_comes_late_is_seen(throwaway: Place) -> None:
    """Nobody was told that it is there, but then nobody has committed either."""
    setup = throwaway.begin()
    look = opened(setup)
    finish(setup, "0:x", {A: ["m:0"]})
    control = throwaway.join(setup.name, seconds=0.15)
    assert control.validate([look]) is not None
    throwaway.server.stop()
    assert control.mark("1:x", {A: ["m:1"]}) is False
    throwaway.server.cont()
    assert eventually(lambda: seen(setup, look) == (1, {"m:0": 1}, {"m:1"}))


def test_a_wrong_password_is_a_refusal(place: Place) -> None:
    name = place.begin().name
    port = place.server.port
    for url in (f"redis://:wrong@127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/0"):
        control = place.join(name, url=url)
        assert control.open([A]) is None
        assert control.validate([Look(A, "x", 0)]) is None
        assert control.mark("1:x", {A: ["m:1"]}) is False
        assert control.bump("1:x", {A: ["m:1"]}) == {A: 0}


def test_a_redis_that_is_not_there_is_a_refusal(throwaway: Place) -> None:
    control = throwaway.begin()
    look = opened(control)
    throwaway.server.kill()
    for _ in range(2):
        assert control.validate([look]) is None
        assert control.open([A]) is None
        assert control.mark("1:x", {A: ["m:1"]}) is False
        assert control.bump("1:x", {A: ["m:1"]}) == {A: 0}


def test_an_error_among_answers_leaves_the_connection_usable(place: Place) -> None:
    control = place.begin()
    looks = [opened(control, realm) for realm in (A, B, STAR)]
    finish(control, "1:x", {A: ["m:1"], STAR: ["E"]})
    place.client.set(control.key(B), "not a sorted set")
    made = place.client.info("stats")["total_connections_received"]
    for _ in range(5):
        assert control.validate(looks) is None
        assert control.open([A, B, STAR]) is None
        assert control.mark("2:x", {B: ["m:2"]}) is False
        assert control.bump("2:x", {B: ["m:2"]}) == {B: 0}
        assert seen(control, looks[0]) == (1, {"m:1": 1}, set())
        assert seen(control, looks[2]) == (1, {"E": 1}, set())
    assert place.client.info("stats")["total_connections_received"] == made
    # All keys of a write are marked, or it is not: that of the other was not told to anybody.
    assert place.metrics.cache_mark_failures.value("error") == 5


def test_marks_are_remembered_with_their_age(place: Place) -> None:
    control = place.begin()
    look = opened(control)
    assert control.mark("7:x", {A: ["m:1", "r:1"]})
    assert control.marks_seen() == []
    seen(control, look)
    ((realm, mark, tags, age),) = control.marks_seen()
    assert (realm, mark, tags) == (A, "7:x", frozenset({"m:1", "r:1"}))
    assert 0 <= age < 2
    seen(control, look)
    assert control.marks_seen()[0][3] >= age


@pytest.mark.parametrize("count", [254, 256])
def test_marks_that_fill_the_answer_are_remembered(place: Place, count: int) -> None:
    """Nobody could lift them else: every look at them is lost."""
    control = place.begin()
    look = opened(control)
    every = [f"m:{i:03}" for i in range(count)]
    assert control.mark("7:x", {A: every})
    control.validate([look])
    ((realm, mark, tags, _),) = control.marks_seen()
    assert (realm, mark, len(tags)) == (A, "7:x", count)
    assert control.bump(mark, {realm: tags}) == {A: 1}
    assert seen(control, opened(control)) == (1, {}, set())


def test_keys_of_the_cache_lie_together(place: Place) -> None:
    """In a cluster a life is lost as a whole, registry and sets, or not at all."""
    control = place.begin()
    for realm in (A, STAR):
        opened(control, realm)
    keys = {key.decode() for key in place.client.scan_iter()}
    assert keys == {control.registry + rest for rest in ("", f":{A}:z", f":{STAR}:z")}
    assert control.registry == "az:{" + control.name + "}"
    assert place.client.ttl(control.registry) == place.client.ttl(control.key(A)) == -1

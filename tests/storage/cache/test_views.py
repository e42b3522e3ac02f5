"""L1 alone: when an entry may be used, with replies in whatever order a test wants them."""

import itertools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest

from authz_service.engine.tags import ANY_WRITE
from authz_service.storage.cache import views as module
from authz_service.storage.cache.control import Look, Lost, Opened, Replies, Reply
from authz_service.storage.cache.memory_control import MemoryControl
from authz_service.storage.cache.views import Cut, Part, View, Views, usable
from authz_service.storage.tagged_facts import TaggedFact
from tests.histories import Together
from tests.storage.cache.lives import finish

A, B, STAR = "org_a", "org_b", "*"
NOW, LATER = 1_000, 2_000
MUCH = 2**40


class Script:
    """Control sets that say what the test wants, and remember what they were asked.

    Attributes:
        states: What ``open`` finds; realms that are not named are new.
        answers: Realm to what ``validate`` says of it; the others say that nothing happened.
    """

    is_shared = False
    is_over = False

    def __init__(self, name: str = "life") -> None:
        self.name = name
        self.states: dict[str, Opened] = {}
        self.answers: dict[str, Reply | Lost] = {}
        self.asked: list[Look] = []
        self.is_up = self.is_leased = True

    def is_alive(self) -> bool:
        return self.is_leased

    def open(self, realms: Collection[str]) -> Mapping[str, Opened] | None:
        found = {realm: self.states.get(realm, Opened(f"n-{realm}", 0, 0)) for realm in realms}
        return found if self.is_up else None

    def validate(self, looks: Sequence[Look]) -> Replies | None:
        self.asked += looks
        if not self.is_up:
            return None
        return [self.answers.get(look.realm, Reply(look.last, (), frozenset())) for look in looks]

    def read(
        self, looks: Sequence[Look], keys: Sequence[Sequence[str]]
    ) -> tuple[Replies, list[list[bytes | None]]] | None:
        replies = self.validate(looks)
        return None if replies is None else (replies, [[None] * len(each) for each in keys])

    def share(self, realm: str, key: str, entry: bytes, milliseconds: int) -> None:
        return

    def mark(self, mark: str, tags: Mapping[str, Collection[str]]) -> bool:
        return True

    def bump(self, mark: str, tags: Mapping[str, Collection[str]]) -> Mapping[str, int]:
        return dict.fromkeys(tags, 1)


class Held(MemoryControl):
    """Control sets whose answers are on their way until the test lets them arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.before_opening: Callable[[], Any] = lambda: None
        self.after_opening: Callable[[], Any] = lambda: None
        self.arrive: dict[str, threading.Event] = {}
        self.answered: dict[str, threading.Event] = {}

    def open(self, realms: Collection[str]) -> Mapping[str, Opened] | None:
        before, self.before_opening = self.before_opening, lambda: None
        before()
        found = super().open(realms)
        after, self.after_opening = self.after_opening, lambda: None
        after()
        return found

    def validate(self, looks: Sequence[Look]) -> Replies | None:
        found = super().validate(looks)
        name = threading.current_thread().name
        if name in self.arrive:
            self.answered[name].set()
            assert self.arrive[name].wait(20)
        return found


def fact(*tags: str, realm: str = A, **more: Any) -> TaggedFact:
    return TaggedFact(realm, f"value of {tags}", frozenset(tags), **more)


def grants(*tags: str, **more: Any) -> TaggedFact:
    """A fact that uses definitions."""
    return fact(*tags, uses_definitions=True, **more)


def cut_of(views: Views, control: Any, *realms: str) -> Cut:
    cut = views.validate(control, realms or (A,))
    assert isinstance(cut, Cut), cut
    return cut


def reply(sequence: int, *pending: str, **changed: int) -> Reply:
    """A reply; ``m1=3`` says that ``m:1`` changed then."""
    named = {tag if len(tag) == 1 else f"{tag[0]}:{tag[1:]}": n for tag, n in changed.items()}
    return Reply(sequence, tuple(named.items()), frozenset(pending))


def is_usable(cut: Cut, key: str, *, realm: str = A, in_order: bool = True, now: int = NOW) -> bool:
    """Whether what is under a key may be used under a cut."""
    part = cut.parts[realm]
    entry = part.view.entries.get(key)
    return entry is not None and usable(entry, part, cut.version, now, in_order=in_order)


@pytest.fixture
def control() -> Script:
    return Script()


@pytest.fixture
def views() -> Views:
    return Views(MUCH)


# --- the rules of 4.4, one by one ----------------------------------------------------------------


def test_an_entry_is_used_while_nothing_happens(views: Views, control: Script) -> None:
    cut = cut_of(views, control)
    assert views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    for _ in range(3):
        assert is_usable(cut_of(views, control), "k")
    assert not is_usable(cut_of(views, control), "other")


def test_rule_1_an_entry_put_after_the_validation_was_sent(views: Views, control: Script) -> None:
    """It may hold a later write than what else the call has seen (no_fill_order)."""
    mine, others = cut_of(views, control), cut_of(views, control)
    views.put(others.parts[A], "k", fact("m:1"), others.version)
    assert not is_usable(mine, "k")
    assert not is_usable(others, "k")
    assert is_usable(mine, "k", in_order=False)
    assert is_usable(cut_of(views, control), "k")


def test_rule_1_an_entry_put_while_the_reply_was_on_its_way(views: Views) -> None:
    control = Held()
    first = cut_of(views, control)
    together = Together()
    cuts: list[Cut] = []
    control.arrive["late"] = threading.Event()
    control.answered["late"] = threading.Event()

    def ask() -> None:
        threading.current_thread().name = "late"
        cuts.append(cut_of(views, control))

    together.start(ask)
    assert control.answered["late"].wait(20)
    finish(control, "1:x", {A: ["m:1"]})
    between = cut_of(views, control)
    views.put(between.parts[A], "k", fact("m:1"), between.version)
    control.arrive["late"].set()
    together.join()
    assert not is_usable(cuts[0], "k")
    assert not is_usable(first, "k")
    assert is_usable(cut_of(views, control), "k")


def test_rule_1_numbers_are_of_one_view(views: Views, control: Script) -> None:
    cut = cut_of(views, control, A, B)
    for i in range(5):
        views.put(cut.parts[A], f"a{i}", fact("m:1"), cut.version)
    cut = cut_of(views, control, A, B)
    views.put(cut.parts[B], "b", fact("m:1", realm=B), cut.version)
    assert is_usable(cut, "a4")
    assert not is_usable(cut, "b", realm=B)


@pytest.mark.parametrize(
    ("tags", "pending", "is_used"),
    [
        (("m:1", "R"), ("m:1",), False),
        (("m:1", "R"), ("R", "m:2"), False),
        (("m:1", "R"), ("m:2",), True),
        (("s",), ("m:2",), False),
        (("m:1", "R"), (), True),
        (("s",), (), True),
    ],
)
def test_rule_2_a_pending_tag(
    views: Views,
    control: Script,
    tags: tuple[str, ...],
    pending: tuple[str, ...],
    is_used: bool,
) -> None:
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact(*tags), cut.version)
    control.answers[A] = reply(0, *pending)
    for in_order in (True, False):
        assert is_usable(cut_of(views, control), "k", in_order=in_order) is is_used
    # In the reply of another organization it means another thing.
    control.answers = {B: reply(0, *pending)}
    assert is_usable(cut_of(views, control, A, B), "k")


def test_rule_2_a_pending_tag_of_the_past_is_no_harm(views: Views, control: Script) -> None:
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    control.answers[A] = reply(0, "m:1")
    assert not is_usable(cut_of(views, control), "k")
    # The write was rolled back by its server, and bumped another tag meanwhile.
    control.answers[A] = reply(1, m2=1)
    assert is_usable(cut_of(views, control), "k")


@pytest.mark.parametrize(
    ("tags", "changed", "is_used"),
    [
        (("m:1", "R"), {"m1": 1}, False),
        (("m:1", "R"), {"m2": 1, "R": 1}, False),
        (("m:1", "R"), {"m2": 1, "g1": 1}, True),
        (("s",), {"m2": 1}, False),
        (("s",), {}, True),
    ],
)
def test_rule_3_a_changed_tag(
    views: Views,
    control: Script,
    tags: tuple[str, ...],
    changed: dict[str, int],
    is_used: bool,
) -> None:
    old = cut_of(views, control)
    views.put(old.parts[A], "k", fact(*tags), old.version)
    control.answers[A] = reply(1 if changed else 0, **changed)
    for in_order in (True, False):
        assert is_usable(cut_of(views, control), "k", in_order=in_order) is is_used
    # For good: that nothing happens afterwards does not bring it back.
    control.answers = {}
    for _ in range(2):
        assert is_usable(cut_of(views, control), "k") is is_used
    new = cut_of(views, control)
    views.put(new.parts[A], "k", fact(*tags), new.version)
    assert is_usable(cut_of(views, control), "k")


def test_rule_3_a_change_that_was_known_at_the_fill(views: Views, control: Script) -> None:
    cut_of(views, control)
    control.answers[A] = reply(3, m1=3)
    cut = cut_of(views, control)
    assert cut.parts[A].sequence == 3
    views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    assert is_usable(cut_of(views, control), "k")
    control.answers[A] = reply(4, m1=4)
    assert not is_usable(cut_of(views, control), "k")


def test_rule_3_what_was_checked_once_is_checked_again(views: Views, control: Script) -> None:
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    for sequence in range(1, 5):
        control.answers[A] = reply(sequence, m2=sequence)
        assert is_usable(cut_of(views, control), "k")
    control.answers[A] = reply(5, m1=5)
    assert not is_usable(cut_of(views, control), "k")


def test_a_fill_that_lost_a_race_is_never_usable(views: Views, control: Script) -> None:
    """Between its validation and its fill another thread learned of a write (fill_s0_late)."""
    slow = cut_of(views, control)
    control.answers[A] = reply(1, m1=1)
    cut_of(views, control)
    control.answers = {}
    # What it holds was read before the write.
    views.put(slow.parts[A], "k", fact("m:1"), slow.version)
    views.put(slow.parts[A], "whole", fact(ANY_WRITE), slow.version)
    views.put(slow.parts[A], "unconcerned", fact("m:2"), slow.version)
    for _ in range(3):
        cut = cut_of(views, control)
        for in_order in (True, False):
            assert not is_usable(cut, "k", in_order=in_order)
            assert not is_usable(cut, "whole", in_order=in_order)
            assert is_usable(cut, "unconcerned", in_order=in_order)


def test_a_fill_replaces_nothing_newer(views: Views, control: Script) -> None:
    slow = cut_of(views, control)
    control.answers[A] = reply(1, m1=1)
    quick = cut_of(views, control)
    control.answers = {}
    assert views.put(quick.parts[A], "k", fact("m:1", size=7), quick.version)
    assert not views.put(slow.parts[A], "k", fact("m:1"), slow.version)
    assert is_usable(cut_of(views, control), "k")


@pytest.mark.parametrize(
    ("now", "is_used"), [(LATER - 1, True), (LATER, False), (LATER + 1, False)]
)
def test_rule_4_the_end(views: Views, control: Script, now: int, is_used: bool) -> None:
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact("m:1", expires=LATER), cut.version)
    for in_order in (True, False):
        assert is_usable(cut_of(views, control), "k", now=now, in_order=in_order) is is_used


def test_rule_4_definitions_that_changed(views: Views, control: Script) -> None:
    cut = cut_of(views, control)
    views.put(cut.parts[A], "grants", grants("m:1"), cut.version)
    views.put(cut.parts[A], "path", fact("r:1"), cut.version)
    views.put(cut.parts[STAR], "permissions", fact("E", realm=STAR), cut.version)
    assert is_usable(cut_of(views, control), "grants")
    control.answers[STAR] = reply(1, E=1)
    changed = cut_of(views, control)
    assert changed.version != cut.version
    for each in (changed, cut_of(views, control)):
        assert not is_usable(each, "grants")
        assert not is_usable(each, "permissions", realm=STAR)
        assert is_usable(each, "path")
    views.put(changed.parts[A], "grants", grants("m:1"), changed.version)
    control.answers = {}
    assert is_usable(cut_of(views, control), "grants")


def test_rule_4_definitions_that_are_being_changed(views: Views, control: Script) -> None:
    cut = cut_of(views, control)
    views.put(cut.parts[A], "grants", grants("m:1"), cut.version)
    views.put(cut.parts[A], "path", fact("r:1"), cut.version)
    control.answers[STAR] = reply(0, "E")
    pending = cut_of(views, control)
    assert pending.version is None
    assert not is_usable(pending, "grants")
    assert not is_usable(pending, "grants", in_order=False)
    assert is_usable(pending, "path")
    # Nor is it filled, for nobody could say under which definitions.
    assert not views.put(pending.parts[A], "new", grants("m:1"), pending.version)
    assert views.put(pending.parts[A], "other path", fact("r:2"), pending.version)
    # It failed: nothing has changed.
    control.answers = {}
    assert is_usable(cut_of(views, control), "grants")


def test_rule_4_a_credential_leaves_all_grants(views: Views, control: Script) -> None:
    """The second tag in ``*`` raises its sequence, and voids nothing but itself."""
    cut = cut_of(views, control)
    views.put(cut.parts[A], "grants", grants("m:1"), cut.version)
    views.put(cut.parts[STAR], "credential", fact("k:1", realm=STAR), cut.version)
    views.put(cut.parts[STAR], "other", fact("k:2", realm=STAR), cut.version)
    control.answers[STAR] = reply(0, "k:1")
    pending = cut_of(views, control)
    control.answers[STAR] = reply(1, k1=1)
    changed = cut_of(views, control)
    for each in (pending, changed):
        assert each.version == cut.version
        assert is_usable(each, "grants")
        assert is_usable(each, "other", realm=STAR)
        assert not is_usable(each, "credential", realm=STAR)


def test_the_version_is_the_score_of_the_definitions(views: Views, control: Script) -> None:
    control.states[STAR] = Opened("n", 7, 4)
    control.answers[STAR] = Reply(7, (), frozenset())
    assert cut_of(views, control).version == "n.4"
    control.answers[STAR] = reply(9, k1=8, k2=9)
    assert cut_of(views, control).version == "n.4"
    control.answers[STAR] = reply(12, E=11, k1=12)
    assert cut_of(views, control).version == "n.11"
    control.answers[STAR] = Reply(12, (), frozenset())
    assert cut_of(views, control).version == "n.11"


def test_an_answer_that_was_overtaken_has_the_version_of_its_time(views: Views) -> None:
    control = Held()
    cut_of(views, control)
    control.arrive["slow"] = threading.Event()
    control.answered["slow"] = threading.Event()
    cuts: list[Cut] = []

    def ask() -> None:
        threading.current_thread().name = "slow"
        cuts.append(cut_of(views, control))

    together = Together()
    together.start(ask)
    assert control.answered["slow"].wait(20)
    finish(control, "1:x", {STAR: ["E"]})
    quick = cut_of(views, control)
    control.arrive["slow"].set()
    together.join()
    assert quick.version is not None
    assert quick.version.endswith(".1")
    assert cuts[0].version is not None
    assert cuts[0].version.endswith(".0")
    # What it reads from SQL now may hold the new definitions: under the old version it is of no
    # use to anybody who validates from now on.
    views.put(cuts[0].parts[A], "grants", grants("m:1"), cuts[0].version)
    assert not is_usable(cut_of(views, control), "grants")


# --- open, and replies in every order ------------------------------------------------------------


def test_open_leaves_a_view_that_is_there(views: Views) -> None:
    """Two threads miss it; the reply of the second one comes after a write (I8)."""
    control = Held()

    def meanwhile() -> None:
        cut = cut_of(views, control)
        views.put(cut.parts[A], "k", fact("m:1"), cut.version)
        views.put(cut.parts[A], "grants", grants("m:1"), cut.version)
        finish(control, "1:x", {A: ["m:1"], STAR: ["E"]})

    control.before_opening = meanwhile
    cut = cut_of(views, control)
    view = cut.parts[A].view
    assert (view.sequence, dict(view.log)) == (1, {"m:1": 1, ANY_WRITE: 1})
    assert len(view.entries) == 2
    for in_order in (True, False):
        assert not is_usable(cut, "k", in_order=in_order)
        assert not is_usable(cut, "grants", in_order=in_order)


def test_open_begins_a_view_at_its_own_instant(views: Views) -> None:
    control = Held()
    finish(control, "1:x", {A: ["m:1"]})
    control.after_opening = lambda: finish(control, "2:x", {A: ["m:1"]})
    cut = cut_of(views, control)
    # The validation that follows brings what open could not know.
    assert cut.parts[A].sequence == 2
    assert dict(cut.parts[A].view.log) == {"m:1": 2, ANY_WRITE: 2}


def _schedules() -> list[tuple[int, ...]]:
    """Every order of three validations, each first sent and then arriving."""
    return sorted(set(itertools.permutations((0, 0, 1, 1, 2, 2))))


@pytest.mark.parametrize("schedule", _schedules(), ids=lambda each: "".join(map(str, each)))
def test_replies_may_arrive_in_every_order(schedule: tuple[int, ...]) -> None:
    """After each step the view knows every write up to its sequence, and judges by it (I8)."""
    views, control, together = Views(MUCH), Held(), Together()
    view = cut_of(views, control).parts[A].view
    written: list[str] = []
    cuts: dict[str, Cut] = {}
    done = {str(number): threading.Event() for number in range(3)}

    def ask(name: str) -> None:
        threading.current_thread().name = name
        cuts[name] = cut_of(views, control)
        done[name].set()

    for name in map(str, schedule):
        if name not in control.arrive:
            # Before each validation one more write has finished.
            tag = f"m:{len(written)}"
            finish(control, f"{name}:x", {A: [tag, "R"], STAR: ["E"]})
            written.append(tag)
            control.arrive[name], control.answered[name] = threading.Event(), threading.Event()
            together.start(lambda name=name: ask(name))
            assert control.answered[name].wait(20)
        else:
            control.arrive[name].set()
            assert done[name].wait(20)
            cut = cuts[name]
            part = cut.parts[A]
            assert part.sequence <= view.sequence
            assert cut.version is not None
            assert cut.version.endswith(f".{part.sequence}")
            views.put(part, f"fill {name}", fact(*written, "R"), cut.version)
        _holds(views, view, written)
    together.join()
    assert view.sequence == 3
    final = cut_of(views, control)
    for name, cut in cuts.items():
        # Only what was read after the last write is used.
        assert is_usable(final, f"fill {name}") is (cut.parts[A].sequence == 3)


def _holds(views: Views, view: View, written: Sequence[str]) -> None:
    expected = {tag: number for number, tag in enumerate(written, 1) if number <= view.sequence}
    if view.sequence:
        expected |= {"R": view.sequence, ANY_WRITE: view.sequence}
    assert dict(view.log) == expected
    for key, entry in view.entries.items():
        part = Part(view, view.sequence, frozenset(), view.fills)
        is_current = entry.since == view.sequence
        assert usable(entry, part, None, NOW, in_order=True) is is_current, key


def test_the_log_grows_before_the_sequence(views: Views) -> None:
    """Who reads the new sequence must find the changes, else it takes an old entry for checked."""
    control = Held()
    view = cut_of(views, control).parts[A].view
    ahead: list[int] = []

    class Watched(dict[str, int]):
        def __setitem__(self, tag: str, score: int) -> None:
            ahead.append(view.sequence - score)
            super().__setitem__(tag, score)

    view.log = Watched()
    for number in range(1, 4):
        finish(control, f"{number}:x", {A: ["m:1", "m:2"]})
        cut_of(views, control)
    assert len(ahead) == 9
    assert set(ahead) == {-1}


# --- what ends a view ----------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["nonce", "floor", "changes"])
@pytest.mark.parametrize("realm", [A, STAR])
def test_a_lost_set_ends_its_view(views: Views, control: Script, realm: str, reason: str) -> None:
    cut = cut_of(views, control, A, B)
    views.put(cut.parts[A], "k", grants("m:1"), cut.version)
    views.put(cut.parts[B], "k", grants("m:1", realm=B), cut.version)
    views.put(cut.parts[STAR], "permissions", fact("E", realm=STAR), cut.version)
    control.answers[realm] = Lost(reason)
    assert views.validate(control, [A, B]) == reason
    # It begins anew, at what open finds, which is another set if its name was lost.
    control.answers = {}
    control.states[realm] = Opened("another", 9, 0)
    control.asked = []
    again = cut_of(views, control, A, B)
    assert Look(realm, "another", 9) in control.asked
    assert again.parts[realm].view.entries == {}
    assert is_usable(again, "k", realm=B) is (realm == A)


def test_what_fails_proves_nothing(views: Views, control: Script) -> None:
    control.is_up = False
    assert views.validate(control, [A]) == "failed"
    control.is_up = True
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    control.is_up = False
    assert views.validate(control, [A]) == "failed"
    control.is_up = True
    assert is_usable(cut_of(views, control), "k")
    control.is_leased = False
    assert views.validate(control, [A]) == "lease"


def test_another_life_begins_without_entries(views: Views, control: Script) -> None:
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    other = Script("another")
    assert not is_usable(cut_of(views, other), "k")
    assert (views.entries, views.bytes_held) == (0, 0)
    # A fill into the life of before is kept nowhere.
    views.put(cut.parts[A], "late", fact("m:1"), cut.version)
    assert (views.entries, views.bytes_held) == (0, 0)


def test_a_fill_into_a_view_that_ended_is_nowhere_seen(views: Views, control: Script) -> None:
    cut = cut_of(views, control)
    control.answers[A] = Lost("floor")
    assert views.validate(control, [A]) == "floor"
    control.answers = {}
    views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    assert not is_usable(cut_of(views, control), "k")
    assert views.bytes_held == 0


def test_a_long_log_ends_its_view(
    views: Views, control: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_MAX", 10)
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact("r:9"), cut.version)
    for sequence in range(1, 10):
        control.answers[A] = reply(sequence, **{f"m{sequence}": sequence})
        assert is_usable(cut_of(views, control), "k")
    control.answers[A] = reply(10, m10=10)
    # This call may still use it: its log is whole.
    assert is_usable(cut_of(views, control), "k")
    control.states[A] = Opened("n-org_a", 10, 0)
    control.answers[A] = Reply(10, (), frozenset())
    again = cut_of(views, control)
    assert again.parts[A].view.log == {}
    assert not is_usable(again, "k")
    assert views.bytes_held == 0


# --- memory --------------------------------------------------------------------------------------


def weigh(views: Views, control: Script, **more: Any) -> int:
    """What one entry weighs."""
    before = views.bytes_held
    cut = cut_of(views, control)
    views.put(cut.parts[A], "weighed", fact("m:1", **more), cut.version)
    return views.bytes_held - before


def test_entries_are_weighed(views: Views, control: Script) -> None:
    small = weigh(views, control)
    assert small > 0
    assert views.entries == 1
    # Another one in its place weighs instead of it.
    assert weigh(views, control, size=100) > 50 * 100
    assert views.entries == 1
    cut = cut_of(views, control)
    views.put(cut.parts[A], "weighed", fact("m:1"), cut.version)
    assert views.bytes_held == small


def test_the_oldest_entries_of_the_view_used_longest_ago_make_room(control: Script) -> None:
    one = weigh(Views(MUCH), control)
    views = Views(20 * one)
    for realm in (B, A):
        cut = cut_of(views, control, realm)
        for number in range(10):
            views.put(cut.parts[realm], f"{realm} {number}", fact("m:1", realm=realm), cut.version)
    assert views.entries == 20
    # A was used last, whichever was filled last.
    cut = cut_of(views, control, A)
    views.put(cut.parts[A], "one more", fact("m:1"), cut.version)
    assert views.bytes_held <= 20 * one * 9 // 10
    left = cut_of(views, control, A, B)
    assert [number for number in range(10) if is_usable(left, f"{A} {number}")] == [*range(10)]
    kept = [number for number in range(10) if is_usable(left, f"{B} {number}", realm=B)]
    assert kept == [*range(3, 10)]
    assert is_usable(left, "one more")


def test_an_entry_that_was_filled_again_is_not_the_oldest(control: Script) -> None:
    one = weigh(Views(MUCH), control)
    views = Views(10 * one)
    for number in (*range(10), 0, 10):
        cut = cut_of(views, control)
        views.put(cut.parts[A], str(number), fact("m:1"), cut.version)
    left = cut_of(views, control)
    assert [n for n in range(11) if is_usable(left, str(n))] == [0, *range(3, 11)]


def test_idle_views_make_room_first(control: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    one = weigh(Views(MUCH), control)
    views = Views(10 * one)
    idle = cut_of(views, control, B)
    for number in range(5):
        views.put(idle.parts[B], str(number), fact("m:1", realm=B), idle.version)
    idle.parts[B].view.used -= module.IDLE_SECONDS + 1
    cut = cut_of(views, control)
    for number in range(6):
        views.put(cut.parts[A], str(number), fact("m:1"), cut.version)
    assert views.entries == 6
    left = cut_of(views, control, A, B)
    assert all(is_usable(left, str(number)) for number in range(6))
    assert left.parts[B].view is not idle.parts[B].view


def test_an_entry_above_the_budget_is_not_kept_for_long(control: Script) -> None:
    one = weigh(Views(MUCH), control)
    views = Views(one // 2)
    cut = cut_of(views, control)
    views.put(cut.parts[A], "k", fact("m:1"), cut.version)
    assert views.bytes_held == 0


# --- threads -------------------------------------------------------------------------------------


def test_readers_never_use_what_an_acknowledged_write_changed() -> None:
    """Three writers, four readers: each write is a number under its tag, and only rises."""
    control = MemoryControl()
    tags = ("m:1", "m:2", "m:3")
    one = weigh(Views(MUCH), Script())
    # Room for few entries, so that there are always fills and evictions.
    views = Views(3 * one)
    stored = dict.fromkeys(tags, 0)
    acknowledged = dict.fromkeys(tags, 0)
    ended = threading.Event()
    hits = [0]

    def write(tag: str) -> None:
        for number in range(1, 1_000):
            marked = {A: [tag]}
            control.mark(f"{number}:{tag}", marked)
            stored[tag] = number
            control.bump(f"{number}:{tag}", marked)
            acknowledged[tag] = number

    def read() -> None:
        while not ended.is_set():
            for tag in tags:
                at_least = acknowledged[tag]
                cut = cut_of(views, control)
                part = cut.parts[A]
                entry = part.view.entries.get(tag)
                if entry is not None and usable(entry, part, cut.version, NOW, in_order=True):
                    assert entry.value >= at_least
                    hits[0] += 1
                else:
                    value = stored[tag]
                    assert value >= at_least
                    views.put(part, tag, TaggedFact(A, value, frozenset({tag})), cut.version)

    readers, writers = Together(), Together()
    readers.start(*[read] * 4)
    writers.start(*(lambda tag=tag: write(tag) for tag in tags))
    writers.join()
    ended.set()
    readers.join()
    assert hits[0] > 0
    assert views.bytes_held == sum(
        entry.size for view in views._views.values() for entry in view.entries.values()
    )

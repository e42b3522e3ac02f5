"""Validations of an event loop: what a call may share, however long an answer is on its way."""

from collections.abc import Callable, Sequence
from typing import Any

from authz_service.storage.cache.control import Look, Poller, Replies
from authz_service.storage.cache.memory_control import MemoryControl
from authz_service.storage.cache.views import Cut, Views
from tests.storage.cache.lives import finish

A, B, STAR = "org_a", "org_b", "*"
OF_A, OF_BOTH = frozenset({A, STAR}), frozenset({A, B, STAR})
POLLER: Any = None


class Far(MemoryControl):
    """Control sets far away: what they say is said now and heard when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_up = True
        self.under_way: list[tuple[Sequence[Look], Callable[[], None]]] = []

    def validate_soon(
        self, looks: Sequence[Look], then: Callable[[Replies | None], None], poller: Poller
    ) -> None:
        replies = self.validate(looks) if self.is_up else None
        self.under_way.append((looks, lambda: then(replies)))

    def arrive(self) -> list[str]:
        """Lets the oldest answer arrive; returns the realms that were asked."""
        looks, heard = self.under_way.pop(0)
        heard()
        return [look.realm for look in looks]


def opened(*realms: str) -> tuple[Far, Views]:
    """Views of some realms, as an earlier call left them."""
    control, views = Far(), Views(2**20)
    assert isinstance(views.validate(control, realms), Cut)
    return control, views


def asked(views: Views, control: Far, *combinations: frozenset[str]) -> list[Cut | str]:
    """Asks, and returns where the answer will be."""
    told: list[Cut | str] = []
    views.validate_soon(control, combinations, told.append, POLLER)
    return told


def test_a_call_shares_no_validation_that_was_sent_before_it_arrived() -> None:
    control, views = opened(A)
    first = asked(views, control, OF_A)
    finish(control, "mark", {A: {"m:1"}})
    second = asked(views, control, OF_A)
    assert len(control.under_way) == 1
    control.arrive()
    assert [len(told) for told in (first, second)] == [1, 0]
    control.arrive()
    (before,), (after,) = first, second
    assert isinstance(before, Cut)
    assert isinstance(after, Cut)
    assert (before.parts[A].sequence, after.parts[A].sequence) == (0, 1)
    assert after.parts[A].view.log["m:1"] == 1


def test_all_that_arrive_meanwhile_share_the_next_one() -> None:
    control, views = opened(A, B)
    first = asked(views, control, OF_A)
    others = [asked(views, control, OF_A), asked(views, control, OF_BOTH, OF_A)]
    assert control.arrive() == [A, STAR]
    assert sorted(control.arrive()) == sorted([A, B, STAR])
    assert control.under_way == []
    assert len(first) == 1
    assert others[0] == others[1] != first


def test_a_realm_that_nobody_knows_here_has_no_part() -> None:
    control, views = opened(A)
    (told,) = asked_at_once(views, control, OF_BOTH)
    assert isinstance(told, Cut)
    assert set(told.parts) == {A, STAR}


def asked_at_once(views: Views, control: Far, *combinations: frozenset[str]) -> list[Cut | str]:
    told = asked(views, control, *combinations)
    control.arrive()
    return told


def test_nothing_is_sent_before_anything_is_known() -> None:
    control, views = Far(), Views(2**20)
    assert asked(views, control, OF_A) == ["dropped"]
    assert control.under_way == []


def test_who_waits_is_told_of_a_failure_and_the_next_one_is_sent() -> None:
    control, views = opened(A)
    control.is_up = False
    first, second = asked(views, control, OF_A), asked(views, control, OF_A)
    control.is_up = True
    control.arrive()
    control.arrive()
    assert first == ["failed"]
    assert isinstance(second[0], Cut)


def test_a_new_life_answers_none_that_was_asked_of_the_old_one() -> None:
    control, views = opened(A)
    other = Far()
    other.name = "another"
    first, second = asked(views, control, OF_A), asked(views, control, OF_A)
    third = asked(views, other, OF_A)
    control.arrive()
    assert isinstance(first[0], Cut)
    # Nothing is known of the new life yet.
    assert (second, third) == (["dropped"], ["dropped"])


def test_what_was_proved_without_waiting_is_remembered_for_those_who_may_be_stale() -> None:
    control, views = opened(A)
    (told,) = asked_at_once(views, control, OF_A)
    assert views.last_cut(OF_A, 60.0) is told


def test_of_a_life_that_is_over_not_even_what_may_be_old_is_used() -> None:
    control, views = opened(A)
    asked_at_once(views, control, OF_A)
    control.is_over = True
    assert views.last_cut(OF_A, 60.0) is None

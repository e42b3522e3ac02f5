"""Several questions from memory, without waiting: all under one validation, or not at all."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import update

from authz_service.engine.check import decide
from authz_service.engine.facts import Ask, Facts, MayBe, Question, ResourceRef
from authz_service.storage import cached_facts
from authz_service.storage.tables import Membership
from tests.conftest import ManualClock
from tests.storage.test_cached_facts import SLUG, World

# The control sets of these worlds are in the process: nothing is asked of the event loop.
POLLER: Any = object()


@pytest.fixture
def world(database_url: str, clock: ManualClock) -> Iterator[World]:
    world = World(database_url, clock, poller=POLLER)
    yield world
    world.facts.close()
    world.database.close()


def question(world: World, key: str, home: str = "acme", **more: Any) -> Question:
    return Question((world.ann(home),), (SLUG,), (world.ref(key, home),), **more)


def known(world: World, *questions: Question) -> Sequence[Facts | None]:
    told: list[Sequence[Facts | None]] = []
    world.facts.at_once(questions, told.append)
    (facts,) = told
    assert len(facts) == len(questions)
    return facts


def learn(world: World, *keys: str, home: str = "acme") -> None:
    for key in keys:
        for _ in range(2):
            world.facts.load([world.ann(home)], [SLUG], [world.ref(key, home)])


def allowed(world: World, facts: Facts | None, key: str, home: str = "acme") -> bool:
    assert facts is not None
    return decide(facts, Ask(world.ann(home), SLUG, world.ref(key, home))).allowed


def test_what_is_not_in_memory_must_wait_and_what_is_need_not(world: World) -> None:
    world.grant("a")
    assert known(world, question(world, "a")) == [None]
    learn(world, "a")
    a, c = known(world, question(world, "a"), question(world, "c"))
    assert allowed(world, a, "a")
    assert c is None


def test_all_questions_of_all_organizations_share_one_validation(world: World) -> None:
    world.grant("a")
    learn(world, "a", "c")
    learn(world, "a", home="globex")
    before = world.control.validated
    first, second, other = known(
        world, question(world, "a"), question(world, "c"), question(world, "a", "globex")
    )
    assert world.control.validated == before + 1
    assert [allowed(world, first, "a"), allowed(world, second, "c")] == [True, False]
    assert not allowed(world, other, "a", "globex")
    # An answer's token tells of its own organizations alone.
    assert first is not None
    assert other is not None
    assert set(first.positions or {}) == {"*", world.ids["acme"]}
    assert set(other.positions or {}) == {"*", world.ids["globex"]}


def test_a_write_is_seen_at_once_and_concerns_nobody_else(world: World) -> None:
    assignment = world.grant("a")
    learn(world, "a")
    learn(world, "a", home="globex")
    assert allowed(world, known(world, question(world, "a"))[0], "a")
    world.revoke(assignment)
    mine, theirs = known(world, question(world, "a"), question(world, "a", "globex"))
    assert mine is None
    assert theirs is not None


def test_a_write_between_question_and_answer_is_not_answered_the_old_way_later(
    world: World,
) -> None:
    assignment = world.grant("a")
    learn(world, "a")
    world.control.after = [lambda: world.revoke(assignment)]
    # Sent before the revoke: the answer of that instant.
    assert allowed(world, known(world, question(world, "a"))[0], "a")
    assert known(world, question(world, "a")) == [None]


def test_without_a_life_or_an_event_loop_everything_must_wait(
    world: World, database_url: str, clock: ManualClock
) -> None:
    learn(world, "a")
    world.is_on = False
    assert known(world, question(world, "a")) == [None]
    world.is_on = True
    assert known(world, question(world, "a"))[0] is not None
    world.facts._poller = None
    assert known(world, question(world, "a")) == [None]


def test_what_may_be_old_needs_no_validation(world: World) -> None:
    world.grant("a")
    learn(world, "a")
    # The last validation must be one that was sent after the fact was kept.
    known(world, question(world, "a"))
    before = world.control.validated
    (facts,) = known(world, question(world, "a", may_be=MayBe(60.0)))
    assert allowed(world, facts, "a")
    assert world.control.validated == before


def test_unknown_ids_must_wait(world: World) -> None:
    learn(world, "a")
    stranger = Question((world.ann(),), (SLUG,), (ResourceRef("resource_x"),))
    mine, unknown = known(world, question(world, "a"), stranger)
    assert mine is not None
    assert unknown is None


def alarmed(world: World) -> list[str]:
    """What the sampler rings for, with every answer compared."""
    rung: list[str] = []
    world.facts._alarm = rung.append
    world.facts._verify_ratio = 1.0
    return rung


def behind_its_back(world: World) -> None:
    """Changes a fact past the service, as nobody may."""
    with world.database._engine.begin() as connection:
        connection.execute(update(Membership).values(status="INACTIVE"))


WAYS: dict[str, Callable[[World], object]] = {
    "load": lambda world: world.facts.load([world.ann()], [SLUG], [world.ref("a")]),
    "at once": lambda world: known(world, question(world, "a")),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_sampler_rings_for_a_fact_that_is_wrong_and_for_no_other(
    world: World, way: str
) -> None:
    world.grant("a")
    learn(world, "a")
    rung = alarmed(world)
    for _ in range(10):
        WAYS[way](world)
    settle(world)
    assert (rung, world.metrics.cache_inconsistency.value()) == ([], 0)
    behind_its_back(world)
    # Which of the facts of an answer is compared is drawn.
    for _ in range(100):
        WAYS[way](world)
    settle(world)
    assert set(rung) == {"grants"}
    assert world.metrics.cache_inconsistency.value() == len(rung)


def settle(world: World) -> None:
    """Waits until nothing is compared any more."""
    if world.facts._verifying is not None:
        world.facts._verifying.submit(lambda: None).result()


@pytest.mark.parametrize(("most", "compared"), [(0, False), (1, True)])
def test_no_more_comparisons_wait_than_may(
    world: World, monkeypatch: pytest.MonkeyPatch, most: int, compared: bool
) -> None:
    monkeypatch.setattr(cached_facts, "VERIFYING_MAX", most)
    world.grant("a")
    learn(world, "a")
    rung = alarmed(world)
    behind_its_back(world)
    for _ in range(100):
        known(world, question(world, "a"))
        settle(world)
    assert bool(rung) == compared

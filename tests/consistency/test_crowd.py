"""Distinct questions, very many at once, at the decision front: each gets its own answer (T21)."""

import random
from collections.abc import Iterator

import grpc
import pytest

from authz_service.base.clock import boot_seconds
from tests.callers import Caller, through_channel
from tests.consistency.conftest import Told
from tests.consistency.crowd import (
    CALLS_EACH,
    CALLS_MAX,
    CONNECTIONS,
    Question,
    World,
    asked_at_once,
    world,
)
from tests.consistency.run import ANSWERS, Verdict, counts, grown
from tests.consistency.sizes import CACHED_MIN, CROWD, LONG_CROWD, SEED, Crowd
from tests.consistency.stack import Servers, stack

# Nothing fails on purpose here: until the facts are cached all calls wait for the database, and
# none is to be refused for it.
PATIENT = {
    "AUTHZ_REDIS_TIMEOUT_MS": "1000",
    "AUTHZ_CACHE_MARK_TIMEOUT_MS": "2000",
    "AUTHZ_QUEUE_MAX": str(CONNECTIONS * CALLS_EACH),
    "AUTHZ_QUEUE_SECONDS_MAX": "60",
}


def shuffled(made: World, number: int) -> Iterator[Question]:
    """Yields so many questions, each once, so that neighbours have nothing in common."""
    order = list(range(number))
    random.Random(SEED).shuffle(order)
    return map(made.question, order)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(CROWD, id="by day"),
        pytest.param(LONG_CROWD, id="long", marks=[pytest.mark.long, pytest.mark.timeout(1_800)]),
    ],
)
def test_every_question_of_a_crowd_gets_its_own_answer(
    under: Servers, told: Told, size: Crowd
) -> None:
    number = size.members * size.permissions * size.documents
    name = f"crowd{number}"
    with stack(under, name, naive=False, seed=SEED, processes=1, settings=PATIENT) as started:
        (service,) = started.services
        with grpc.insecure_channel(service.address) as channel:
            made = world(Caller(through_channel(channel), started.bearer), size)
        before = counts(started, ANSWERS)
        began = boot_seconds()
        answers, connections = asked_at_once(
            service.decisions_address, started.bearer, shuffled(made, number)
        )
        seconds = boot_seconds() - began
        verdict = Verdict(calls=len(answers), answers=grown(before, counts(started, ANSWERS)))
        verdict.crashes = service.errors()
        wrong = [each for each, got in answers.items() if got != made.expected(each)]
        told(name, verdict, seconds=round(seconds, 1), connections=connections, crossed=len(wrong))
        assert sorted(answers) == list(range(number))
        assert wrong == [], [(made.places(each), answers[each]) for each in wrong[:10]]
        # Else all could be the same answer.
        assert list(answers.values()).count("allowed") == number // 2
        assert connections >= max(CONNECTIONS, number // CALLS_MAX)
        # No question was answered by an answer to another one that came with it.
        assert sum(verdict.answers.values()) == number
        assert verdict.cached > CACHED_MIN
        assert verdict.crashes == []

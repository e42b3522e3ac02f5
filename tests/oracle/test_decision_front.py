"""The decision front answers as the oracle does, many questions at once over one connection."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc.status_pb2 import Status
from hypothesis import given, settings

from authz_service.config import Config
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.server import Worker
from authz_service.storage.cached_facts import CachedFacts
from tests.conftest import ManualClock, begun
from tests.oracle import naive, rows, worlds
from tests.oracle.test_asking import ASKED, decision_of, error_of, ref_of, subject_of
from tests.oracle.test_reading import at

CHECK = "/authz.v1.AuthorizationService/Check"
IN_FLIGHT = 64


@pytest.fixture(name="settings")
def _settings() -> dict[str, str]:
    # However slow the machine is, nothing is to be refused for its waiting.
    return {"AUTHZ_DECISIONS_LISTEN": "127.0.0.1:0", "AUTHZ_QUEUE_SECONDS_MAX": "60"}


@pytest.fixture
def check(worker: Worker, config: Config) -> Iterator[Any]:
    """Asks Check of the decision front: takes requests, returns answers or (code, reason)."""
    assert worker._decisions is not None
    # Nothing else of the worker: its background steps would write into the worlds of the tests.
    worker._decisions.start()
    first = config.security.first_credential
    assert first is not None
    metadata = (("authorization", f"Bearer {first.reveal()}"),)
    with grpc.insecure_channel(worker.decision_addresses[0]) as channel:
        call = channel.unary_unary(
            CHECK, pb.CheckRequest.SerializeToString, pb.CheckResponse.FromString
        )

        def ask(requests: list[pb.CheckRequest]) -> list[Any]:
            answers: list[Any] = []
            for place in range(0, len(requests), IN_FLIGHT):
                sent = [
                    call.future(request, metadata=metadata, timeout=30)
                    for request in requests[place : place + IN_FLIGHT]
                ]
                answers += [_answer(each) for each in sent]
            return answers

        yield ask


def _answer(sent: Any) -> Any:
    error = sent.exception()
    if error is None:
        return decision_of(sent.result())
    trailing = dict(error.trailing_metadata())
    return error_of(Status.FromString(trailing["grpc-status-details-bin"]))


@pytest.mark.every_cache
@given(world=worlds.worlds(api_keys=False, directory_roles=True))
@settings(**ASKED)
def test_checks_agree_cold_filling_and_warm(
    check: Any, worker: Worker, clock: ManualClock, world: dict[str, Any]
) -> None:
    rows.replace(worker.database, world)
    begun(worker)
    at(clock, worlds.NOW)
    asked = list(worlds.all_questions(world, every_form=True))
    asked = asked[:: max(1, len(asked) // 300)]
    expected = [naive.check(world, *question, worlds.NOW) for question in asked]
    requests = [
        pb.CheckRequest(subject=subject_of(s), permission_slug=p, resource=ref_of(r))
        for s, p, r in asked
    ]
    for _ in range(3):
        for question, ours, theirs in zip(asked, check(requests), expected, strict=True):
            assert ours == theirs, question
    # The next world replaces these rows past the service: nothing may still compare with them.
    if isinstance(worker._facts, CachedFacts) and worker._facts._verifying is not None:
        worker._facts._verifying.submit(lambda: None).result()
    if worker.has_cache and any(isinstance(answer, dict) for answer in expected):
        assert worker.metrics.cache_answers.value("view") > 0

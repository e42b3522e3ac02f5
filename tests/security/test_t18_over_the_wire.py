"""Who may ask what, as raw calls on both fronts (T18, T22, T24).

What the hall decides is tested elsewhere; here that no way through a front goes around it, and that
the decision front refuses like the complete one.
"""

from base64 import b64decode
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.rpc import status as statuses
from authz_service.server import Worker
from tests.callers import Caller, method
from tests.rpc.fronts.h2.peer import Pairs
from tests.security import sound
from tests.security.test_bad_input import filled, texts, with_text
from tests.security.wire import Answer, Wire, head

CHECK = "/authz.v1.AuthorizationService/Check"


@pytest.fixture
def settings() -> dict[str, str]:
    """A worker with both fronts."""
    return {"AUTHZ_DECISIONS_LISTEN": "127.0.0.1:0"}


class Fronts(NamedTuple):
    """A connection to each front."""

    complete: Wire
    decisions: Wire


@pytest.fixture
def fronts(worker: Worker) -> Iterator[Fronts]:
    """Both fronts of a worker that serves."""
    worker.start()
    with Wire(worker.addresses[0]) as complete, Wire(worker.decision_addresses[0]) as decisions:
        yield Fronts(complete, decisions)


def told(answer: Answer) -> tuple[str, str]:
    """The code's name and the reason of an answer; how its stream was reset."""
    if answer.code is None:
        return f"reset {answer.reset}", ""
    packed = answer.value(b"grpc-status-details-bin")
    if packed is None:
        return Code.Name(answer.code), ""
    status = Status.FromString(b64decode(packed + b"=" * (-len(packed) % 4)))
    assert status.code == answer.code
    return Code.Name(answer.code), statuses.reason_of(status)


def decides(worker: Worker, path: str) -> bool:
    """Tells whether a method is answered by the decision front."""
    found = worker.hall.methods[path]
    return found.work == "decision" and found.streaming == "unary"


def scope_of(path: str) -> str:
    """The scope that the contract declares."""
    _, service, name = path.split("/")
    descriptor = method(service.rpartition(".")[2], name)
    return str(descriptor.GetOptions().Extensions[required_scope])


def test_no_method_answers_without_a_credential_that_may(
    api: Caller, worker: Worker, fronts: Fronts
) -> None:
    create = api.ConfigurationService.CreateServiceCredential
    check, read = (create(name=name, scopes=[name]).secret for name in ("check", "read"))
    others = 0
    for path in worker.hall.methods:
        wrong = read if scope_of(path) == "check" else check
        missing, too_small = head(path, bearer=None), head(path, bearer=wrong)
        expected = [
            ("UNAUTHENTICATED", "CREDENTIAL_MISSING"), ("PERMISSION_DENIED", "SCOPE_MISSING"),
        ]  # fmt: skip
        assert [told(fronts.complete.ask(each, b"")) for each in (missing, too_small)] == expected
        if not decides(worker, path):
            others += 1
            expected = [("UNIMPLEMENTED", "")] * 2
        assert [told(fronts.decisions.ask(each, b"")) for each in (missing, too_small)] == expected
    assert 3 <= len(worker.hall.methods) - others <= 6


ODD_PATHS = [
    "authz.v1.AuthorizationService/Check", "/" + CHECK, "/authz.v1.AuthorizationService//Check",
    CHECK + "/", "/authz.v1.authorizationservice/Check", "/authz.v1.AuthorizationService/check",
    CHECK + "?a", CHECK + "#a", CHECK + "%20", "/authz.v1.AuthorizationService/Che%63k", "*", "/",
    "/authz.v1.AuthorizationService/Nope", "http://127.0.0.1" + CHECK, CHECK + "\u00e9",
    "/../authz.v1.AuthorizationService/Check", "/" + "a" * 7_000,
]  # fmt: skip


def test_odd_paths_lead_nowhere(api: Caller, fronts: Fronts) -> None:
    for path in ODD_PATHS:
        for bearer in (api._bearer, None):
            pairs = [
                (name, path.encode("latin-1") if name == b":path" else value)
                for name, value in head(CHECK, bearer=bearer)
            ]
            assert told(fronts.decisions.ask(pairs, b"")) == ("UNIMPLEMENTED", ""), path


def test_a_credential_of_one_organization_sees_no_other(
    api: Caller, worker: Worker, fronts: Fronts
) -> None:
    sound.prepare(api)
    own, other = sound.build(api, 1), sound.build(api, 2)
    restricted = api.ConfigurationService.CreateServiceCredential(
        name="Of one", scopes=["admin"], organization_ids=[own.organization]
    ).secret
    seen = 0
    for place in (own, other):
        for service, name, request in sound.requests(place):
            path = f"/authz.v1.{service}/{name}"
            if not decides(worker, path):
                continue
            found = [
                each.ask(head(path, bearer=restricted), request.SerializeToString())
                for each in fronts
            ]
            assert told(found[0]) == told(found[1]), (name, request)
            if place is other:
                assert b"\x08\x01" not in found[1].body[5:7], "allowed"
            seen += 1
    assert seen >= 6


# Strings (T22)

PLACE = "@@@@@@@@"
SPOILED = [
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xc0\x80", b"\xf8\x88\x80\x80\x80",
    b"a\0b", b"\x7f", b"\xc2\x85",
]  # fmt: skip


@pytest.mark.parametrize("bad", SPOILED)
def test_texts_that_are_none_are_refused_in_every_field(
    api: Caller, worker: Worker, fronts: Fronts, bad: bytes
) -> None:
    sent = bad + b"z" * (len(PLACE) - len(bad))
    seen = 0
    for path in worker.hall.methods:
        if not decides(worker, path):
            continue
        _, service, name = path.split("/")
        descriptor = method(service.rpartition(".")[2], name).input_type
        for field in texts(descriptor):
            whole = with_text(filled(descriptor), field, PLACE).SerializeToString()
            assert whole.count(PLACE.encode()) == 1
            request = whole.replace(PLACE.encode(), sent)
            found = [told(each.ask(head(path, bearer=api._bearer), request)) for each in fronts]
            assert found[0] == found[1], (name, field)
            assert found[1][0] == "INVALID_ARGUMENT", (name, field, found)
            seen += 1
    assert seen >= 5


@pytest.mark.parametrize("bad", [*SPOILED, b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\xe2\x80\x8f"])
def test_metadata_that_is_no_text_is_no_credential_and_no_mistake_of_ours(
    api: Caller, fronts: Fronts, bad: bytes
) -> None:
    assert api._bearer is not None
    good = f"Bearer {api._bearer}".encode()
    for value in (bad, b"Bearer " + bad, good + bad, bad + good):
        pairs = head(CHECK, (b"authorization", value), bearer=None)
        assert told(fronts.decisions.ask(pairs, b""))[0] in ("UNAUTHENTICATED", "reset 1")
    for name in (b"x-request-id", b"traceparent", b"x", b"user-agent", b":authority"):
        if name == b":authority":
            pairs = [(n, bad if n == name else v) for n, v in head(CHECK, bearer=api._bearer)]
        else:
            pairs = [*head(CHECK, bearer=api._bearer), (name, bad)]
        answer = told(fronts.decisions.ask(pairs, b""))
        assert answer[0] in ("INVALID_ARGUMENT", "reset 1"), (name, answer)
        # And it is another call's turn.
        again = told(fronts.decisions.ask(head(CHECK, bearer=api._bearer), b""))
        assert again == ("INVALID_ARGUMENT", "FIELD_REQUIRED")


# Bearers (T24)


def test_only_one_bearer_is_a_credential(api: Caller, fronts: Fronts) -> None:
    good, bad = f"Bearer {api._bearer}".encode(), b"Bearer bad"
    name, binary = b"authorization", b"authorization-bin"
    invalid = ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
    missing = ("UNAUTHENTICATED", "CREDENTIAL_MISSING")
    cases: list[tuple[Pairs, Any]] = [
        ([(name, good), (name, bad)], invalid),
        ([(name, bad), (name, good)], invalid),
        ([(name, good), (name, good)], invalid),
        ([(name, good + b", " + bad)], invalid),
        ([(name, good + b"," + good)], invalid),
        ([(name, good), (binary, b"Z29vZA")], invalid),
        ([(binary, b"Z29vZA"), (name, good)], invalid),
        ([(name, good), (binary, b"")], invalid),
        ([(name, b"Bearer")], invalid),
        ([(name, b"")], invalid),
        ([(name, b"Basic YTpi")], invalid),
        ([(b"organization-id", b"org_1")], missing),
        ([(b"x-authorization", good)], missing),
        ([(b"cookie", good)], missing),
    ]
    for pairs, expected in cases:
        for wire in fronts:
            assert told(wire.ask([*head(CHECK, bearer=None), *pairs], b"")) == expected, pairs
    # Names are in lower case (RFC 9113 section 8.2.1).
    for upper in (b"Authorization", b"AUTHORIZATION"):
        assert told(fronts.decisions.ask([*head(CHECK, bearer=None), (upper, good)], b"")) == (
            "reset 1", "",
        )  # fmt: skip
    assert told(fronts.decisions.ask(head(CHECK, bearer=api._bearer), b""))[1] == "FIELD_REQUIRED"

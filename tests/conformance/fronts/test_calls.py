"""Whole calls, as four libraries make them and tell of them."""

import pytest
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from authz_service.rpc import status as statuses
from tests.conformance.fronts import echo
from tests.conformance.fronts.clients import BEARER, Ask, Client, Pairs, see
from tests.conformance.fronts.conftest import Maker, Stage
from tests.conformance.fronts.echo import MESSAGE_BYTES_MAX, SECONDS, asking, payload_of
from tests.rpc.conftest import detail
from tests.rpc.fronts.test_grpcio import until

HEALTH = "/grpc.health.v1.Health/Check"
TEXTS = [
    "plain", "100 % sure", "%41 %zz %", "Rädchen 齿轮 🔒", "two\nlines\r\n\ttab\n",
    '"quoted" \\ \x7f \x00', "long, " * 40 + "end",
]  # fmt: skip


def reason_of(details: bytes) -> str:
    """Returns the reason within a packed status."""
    return statuses.reason_of(Status.FromString(details))


# Answers


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_384, 99_000])
def test_an_answer_is_that_of_its_request(client: Client, size: int) -> None:
    payload = bytes(at * 7 % 256 for at in range(size))
    seen = see(client, Ask(asking(payload=payload)))
    assert (seen.code, payload_of(seen.payload)) == ("OK", payload)


def test_an_empty_message_is_a_message(client: Client) -> None:
    seen = see(client, Ask(b""))
    assert (seen.code, seen.payload) == ("OK", b"")


def test_bytes_that_are_no_message_are_an_invalid_argument(client: Client) -> None:
    for payload in (b"\xff", b"\x0a", b"\x0a\x05abc", b"\x00" * 10):
        seen = see(client, Ask(payload))
        assert (seen.code, reason_of(seen.details)) == ("INVALID_ARGUMENT", "FIELD_INVALID")


def test_a_compressed_request_is_read(client: Client, stage: Stage) -> None:
    payload = b"again and " * 2_000
    seen = see(client, Ask(asking(payload=payload), gzip=True))
    assert (seen.code, payload_of(seen.payload)) == ("OK", payload)
    assert seen.trailing["x-request-id"]


def test_health_is_told(client: Client) -> None:
    seen = see(client, Ask(b"", HEALTH, ()))
    assert (seen.code, seen.payload) == ("OK", b"\x08\x01")
    named = b"\x0a" + bytes([len(echo.SERVICE)]) + echo.SERVICE.encode()
    assert see(client, Ask(named, HEALTH, ())).payload == b"\x08\x01"
    seen = see(client, Ask(b"\x0a\x04nope", HEALTH, ()))
    assert (seen.code, seen.message) == ("NOT_FOUND", "unknown service")
    assert see(client, Ask(b"\xff", HEALTH, ())).code == "INVALID_ARGUMENT"


def test_health_follows_what_the_server_says(client: Client, stage: Stage) -> None:
    stage.front.set_serving(False)
    try:
        assert see(client, Ask(b"", HEALTH, ())).payload == b"\x08\x02"
    finally:
        stage.front.set_serving(True)
    assert see(client, Ask(b"", HEALTH, ())).payload == b"\x08\x01"


# Refusals


@pytest.mark.usefixtures("every_code")
def test_every_code_arrives_with_its_text_and_details(client: Client) -> None:
    for code in range(1, 17):
        request = asking(code=code, text=f"number {code}", fields=["a", "b.c"])
        seen = see(client, Ask(request))
        assert (seen.code, seen.message) == (Code.Name(code), f"number {code}")
        status = Status.FromString(seen.details)
        assert (status.code, status.message) == (code, f"number {code}")
        assert detail(status, ErrorInfo).reason == "ETAG_MISMATCH"
        violations = detail(status, BadRequest).field_violations
        assert [(one.field, one.description) for one in violations] == [
            ("a", "is bad"), ("b.c", "is bad"),
        ]  # fmt: skip


@pytest.mark.usefixtures("every_code")
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_text_may_be_any(client: Client, text: str) -> None:
    seen = see(client, Ask(asking(code=Code.NOT_FOUND, text=text)))
    assert (seen.code, seen.message) == ("NOT_FOUND", text)


def test_what_the_floor_itself_knows_has_its_codes(client: Client) -> None:
    for code, name in (
        (echo.GONE, "CANCELLED"), (echo.UNKNOWN_METHOD, "UNIMPLEMENTED"), (echo.BUG, "INTERNAL"),
    ):  # fmt: skip
        seen = see(client, Ask(asking(code=code)))
        assert seen.code == name
        assert b"canary" not in repr(seen).encode()


@pytest.mark.usefixtures("every_code")
def test_large_details_arrive_whole(client: Client) -> None:
    fields = [f"field_{number:03}" for number in range(150)]
    seen = see(client, Ask(asking(code=Code.INVALID_ARGUMENT, text="many", fields=fields)))
    violations = detail(Status.FromString(seen.details), BadRequest).field_violations
    assert [one.field for one in violations] == fields


def test_only_a_credential_lets_in(client: Client) -> None:
    seen = see(client, Ask(metadata=()))
    assert (seen.code, reason_of(seen.details)) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING")
    for pairs in (
        (*BEARER, ("authorization-bin", b"x")), (("authorization", "Bearer other"),),
        (("authorization", f"{BEARER[0][1]!s}, Bearer other"),),
    ):  # fmt: skip
        seen = see(client, Ask(metadata=pairs))
        assert (seen.code, reason_of(seen.details)) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID")


@pytest.mark.parametrize(
    "path",
    [
        f"/{echo.SERVICE}/Nope", f"/{echo.SERVICE}/echo", f"/{echo.SERVICE}/Echo/",
        f"/{echo.SERVICE}//Echo", f"//{echo.SERVICE}/Echo", f"/{echo.SERVICE.lower()}/Echo",
        f"/{echo.SERVICE}/", f"/{echo.SERVICE}", "/Echo", "/",
        f"/{echo.SERVICE}/Echo?a=b", f"/{echo.SERVICE}/%45cho", "/grpc.health.v1.Health/Nope",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)  # fmt: skip
def test_unknown_methods_and_odd_paths_are_unimplemented(client: Client, path: str) -> None:
    assert see(client, Ask(path=path)).code == "UNIMPLEMENTED"


@pytest.mark.parametrize("path", [echo.CHANGE, echo.READ, echo.FOLLOW, echo.GATHER])
def test_only_the_complete_front_serves_what_is_no_decision(
    client: Client, stage: Stage, path: str
) -> None:
    assert see(client, Ask(asking(payload=b"a"), path)).code == stage.differs("no decision")


# Metadata


def found(stage: Stage, *keys: str) -> list[tuple[str, str | bytes]]:
    """Returns what the hall was given of some keys in the last call, in order."""
    return [(key, value) for key, value in stage.room.calls[-1].metadata if key in keys]


def test_metadata_reaches_the_hall_in_order_and_doubled(client: Client, stage: Stage) -> None:
    pairs: Pairs = (
        ("b", "one"), ("b", "two"), ("b", "one"), ("c-bin", b"\x00\xff"), ("c-bin", b""),
        ("c-bin", b"abc"), ("d", "a, b,,c"),
    )  # fmt: skip
    assert see(client, Ask(metadata=(*BEARER, *pairs))).code == "OK"
    assert found(stage, "b") == [*pairs[:3]]
    assert found(stage, "c-bin") == [*pairs[3:6]]
    assert found(stage, "d") == [pairs[-1]]


@pytest.mark.parametrize("size", range(5))
def test_binary_metadata_of_any_length_reaches_the_hall(
    client: Client, stage: Stage, size: int
) -> None:
    value = bytes(range(250, 250 + size))
    assert see(client, Ask(metadata=(*BEARER, ("a-bin", value)))).code == "OK"
    assert found(stage, "a-bin") == [("a-bin", value)]


def test_trailing_metadata_comes_with_answers(client: Client) -> None:
    trailing = {"a": [b"1", b"2", b"1"], "b-bin": [b"\x00\xff\xfe", b"", b"x"], "c": [b"a, b"]}
    seen = see(client, Ask(asking(payload=b"p", trailing=trailing)))
    assert (seen.code, payload_of(seen.payload)) == ("OK", b"p")
    assert {key: seen.trailing[key] for key in trailing} == client.told(trailing)


@pytest.mark.usefixtures("every_code")
def test_trailing_metadata_comes_with_refusals(client: Client) -> None:
    trailing = {"a": [b"1", b"2"], "b-bin": [b"\x00\xff"]}
    seen = see(client, Ask(asking(code=Code.ABORTED, text="no", trailing=trailing)))
    assert (seen.code, seen.message) == ("ABORTED", "no")
    assert {key: seen.trailing[key] for key in trailing} == client.told(trailing)


def test_the_request_id_comes_back(client: Client) -> None:
    given: Pairs = (("x-request-id", "r-1"),)
    for metadata in ((*BEARER, *given), given):
        assert see(client, Ask(metadata=metadata)).trailing["x-request-id"] == [b"r-1"]
    for metadata in (BEARER, (*BEARER, *given, ("x-request-id", "r-2"))):
        (made,) = see(client, Ask(metadata=metadata)).trailing["x-request-id"]
        assert len(made) == 32


def test_unknown_headers_are_ignored(client: Client) -> None:
    pairs = (("x-forwarded-for", "10.0.0.1"), ("organization-id", "org_1"), ("cookie", "a=b"))
    assert see(client, Ask(metadata=(*BEARER, *pairs))).code == "OK"


# Limits


def test_messages_up_to_the_limit_pass_and_larger_ones_are_told_so(
    client: Client, stage: Stage
) -> None:
    for gzip in (False, True):
        assert see(client, Ask(echo.sized(MESSAGE_BYTES_MAX), gzip=gzip)).code == "OK"
        seen = see(client, Ask(echo.sized(MESSAGE_BYTES_MAX + 1), gzip=gzip))
        assert (seen.code, reason_of(seen.details)) == ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
    seen = see(client, Ask(echo.sized(4_000_000)))
    told = f"{seen.code} {reason_of(seen.details)}".rstrip()
    assert told == stage.differs("message far above the limit")
    assert see(client, Ask()).code == "OK"


def test_answers_up_to_the_limit_pass_and_larger_ones_are_a_documented_refusal(
    client: Client,
) -> None:
    seen = see(client, Ask(asking(answer_bytes=MESSAGE_BYTES_MAX - 4)))
    assert (seen.code, len(seen.payload)) == ("OK", MESSAGE_BYTES_MAX)
    seen = see(client, Ask(asking(answer_bytes=MESSAGE_BYTES_MAX - 3)))
    assert (seen.code, reason_of(seen.details)) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")


def test_metadata_above_its_limit_is_told_so(client: Client) -> None:
    assert see(client, Ask(metadata=(*BEARER, ("x", "a" * 7_000)))).code == "OK"
    seen = see(client, Ask(metadata=(*BEARER, ("x", "a" * 9_000))))
    assert (seen.code, reason_of(seen.details)) == ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
    assert see(client, Ask()).code == "OK"


def test_metadata_far_above_its_limit_ends_only_that_call(client: Client) -> None:
    # Some libraries read the server's settings and do not even send it.
    assert see(client, Ask(metadata=(*BEARER, ("x", "a" * 30_000)))).code != "OK"
    assert see(client, Ask()).code == "OK"


# Deadlines and cancellation


def test_a_deadline_reaches_the_servicer(client: Client, stage: Stage) -> None:
    for seconds in (5, 0):
        assert see(client, Ask(seconds=seconds)).code == "OK"
    with_one, without = stage.room.calls
    assert with_one.deadline is not None
    assert 4 < with_one.deadline - with_one.arrived < 5.1
    assert without.deadline is None
    assert 9 < stage.servicer.contexts[-1].seconds_left() <= 10


def test_a_deadline_ends_the_call_and_no_other(client: Client, stage: Stage) -> None:
    assert see(client, Ask(asking(held=True), seconds=0.2)).code == "DEADLINE_EXCEEDED"
    stage.servicer.go.set()
    assert see(client, Ask()).code == "OK"
    until(lambda: stage.room.in_flight() == 0)


def test_a_deadline_in_the_past_or_too_short_is_exceeded(client: Client, stage: Stage) -> None:
    for seconds in (-1, 0.000001, 0.001):
        codes = {see(client, Ask(asking(held=True), seconds=seconds)).code for _ in range(2)}
        assert codes == {"DEADLINE_EXCEEDED"}
    stage.servicer.go.set()
    assert see(client, Ask()).code == "OK"


def test_honest_calls_with_short_deadlines_are_taken_for_no_flood(
    client: Client, stage: Stage
) -> None:
    stage.servicer.go.set()
    for _ in range(10):
        going = [client.start(Ask(asking(held=True), seconds=0.001)) for _ in range(50)]
        assert {one.seen().code for one in going} <= {"OK", "DEADLINE_EXCEEDED"}
        assert see(client, Ask()).code == "OK"


def test_a_cancelled_call_leaves_the_next_ones_alone(client: Client, stage: Stage) -> None:
    going = client.start(Ask(asking(held=True)))
    stage.servicer.entered()
    going.cancel()
    assert going.seen().code == "CANCELLED"
    assert see(client, Ask(asking(payload=b"next"))).code == "OK"
    stage.servicer.go.set()
    # Its handler has seen nothing of it, and its place is free again.
    until(lambda: stage.room.in_flight() == 0)
    assert stage.room.codes == ["OK", "OK"]


def test_calls_cancelled_at_once_leave_the_next_ones_alone(client: Client, stage: Stage) -> None:
    stage.servicer.go.set()
    going = [client.start(Ask(asking(held=True))) for _ in range(50)]
    for one in going:
        one.cancel()
    assert {one.seen().code for one in going} <= {"CANCELLED", "OK"}
    assert see(client, Ask(asking(payload=b"next"))).code == "OK"
    until(lambda: stage.room.in_flight() == 0)


# Many


def test_each_of_many_concurrent_calls_gets_its_own_answer(client: Client, stage: Stage) -> None:
    asks = {
        at: Ask(asking(payload=b"%d " % at * (at % 50)), seconds=2 * SECONDS) for at in range(1_000)
    }
    answered: dict[int, bytes] = {}
    codes = set()
    while len(answered) < len(asks):
        going = {at: client.start(ask) for at, ask in asks.items() if at not in answered}
        for at, one in going.items():
            seen = one.seen()
            codes.add(seen.code)
            if seen.code == "OK":
                answered[at] = payload_of(seen.payload)
    assert codes <= stage.may("a thousand calls at once")
    assert answered == {at: b"%d " % at * (at % 50) for at in asks}
    assert stage.room.in_flight() == 0


def test_many_held_calls_do_not_hold_up_health(
    clients_of: Maker, client: Client, stage: Stage
) -> None:
    going = [client.start(Ask(asking(held=True, payload=b"%d" % one))) for one in range(8)]
    stage.servicer.entered(8)
    assert see(clients_of(stage.address), Ask(b"", HEALTH, ())).code == "OK"
    stage.servicer.go.set()
    assert [payload_of(one.seen().payload) for one in going] == [b"%d" % one for one in range(8)]

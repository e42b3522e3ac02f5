"""Every call passes every step, in order, and nothing gets past the catcher (T18, T22, T24)."""

import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from authz_service.base import ids
from authz_service.base.clock import boot_seconds
from authz_service.base.errors import Aborted, NotFound, Unavailable
from authz_service.rpc.call import Call, CallerGone, CredentialChanged, Reply
from tests.rpc import widgets
from tests.rpc.conftest import (
    FIRST,
    Building,
    answer,
    bearer,
    build,
    call,
    info,
    reason,
)

NAMES = list(widgets.REQUESTS)
UNARY = [name for name in NAMES if name not in ("Watch", "Export", "Import")]


def never() -> bool:
    return False


def outcome(building: Building, call: Call) -> Reply:
    """The reply of a call of any kind; messages of a stream are dropped."""
    method = building.hall.methods.get(call.method)
    if method is not None and method.streaming == "server_stream":
        # A watch never ends by itself.
        is_cancelled = (lambda: True) if method.work == "watch" else never
        *_, last = building.hall.stream(call, is_cancelled)
        assert isinstance(last, Reply)
        return last
    if method is not None and method.streaming == "client_stream":
        return building.hall.collect(call, iter([call.payload]), never)
    return building.hall.answer((call,))[0]


def text(reply: Reply) -> str:
    return str(widgets.message("GetWidgetResponse").FromString(reply.payload).text)


def test_a_call_is_answered_by_the_servicers_method_of_that_name(building: Building) -> None:
    reply = answer(building, "GetWidget", widgets.message("GetWidgetRequest", id="abc"))
    assert (text(reply), reply.status) == ("abc", None)
    (context,) = building.servicer.contexts
    assert context.method == widgets.path("GetWidget")
    assert context.actor.id == "first"
    assert context.deadline is not None
    assert 9 < context.seconds_left() <= 10


def test_calls_are_answered_each_for_itself_and_in_order(building: Building) -> None:
    replies = building.hall.answer(
        (
            call("GetWidget", widgets.message("GetWidgetRequest", id="a")),
            call("GetWidget", b"\xff"),
            call("GetWidget", widgets.message("GetWidgetRequest", id="c")),
        )
    )
    assert [text(replies[0]), reason(replies[1])[1], text(replies[2])] == [
        "a", "FIELD_INVALID", "c",
    ]  # fmt: skip


def test_what_a_servicer_may_know_comes_from_credential_and_metadata(building: Building) -> None:
    user_id = ids.new(ids.USER)
    secret = building.credentials.add("write:roles", organization_ids=frozenset({"org_1"}))
    reply = answer(
        building,
        "CreateWidget",
        metadata=(
            *bearer(secret),
            ("idempotency-key", "k"),
            ("x-request-id", "r"),
            ("authz-on-behalf-of-user-id", user_id),
            ("organization-id", "org_2"),
            ("x-authz-organization-id", "org_2"),
        ),
    )
    assert reply.trailing == (("x-request-id", "r"), ("idempotency-replayed", "true"))
    (context,) = building.servicer.contexts
    assert context.actor.organization_ids == {"org_1"}
    assert context.actor.on_behalf_of_user_id == user_id
    assert context.actor.request_id == "r"
    assert context.idempotency_key == "k"
    assert context.provisional_credential is None


def test_a_request_id_is_made_and_echoed_also_with_refusals(building: Building) -> None:
    for reply in (answer(building, "GetWidget"), answer(building, "GetWidget", metadata=())):
        ((key, value),) = reply.trailing
        assert key == "x-request-id"
        assert len(value) == 32


def test_a_servicer_without_a_method_is_refused_at_the_start() -> None:
    hall = build().hall
    with pytest.raises(ValueError, match="registered already"):
        hall.register(widgets.service(), widgets.WidgetServicer())
    with pytest.raises(ValueError, match="object has no method GetWidget"):
        hall.register(widgets.service(), object(), known_as="other.Service")


WITHOUT_ACCESS = [
    ("no credential", lambda building: (), "CREDENTIAL_MISSING"),
    ("unknown", lambda building: bearer("nonsense"), "CREDENTIAL_INVALID"),
    ("no scopes", lambda building: bearer(building.credentials.add()), "SCOPE_MISSING"),
    (
        "revoked",
        lambda building: bearer(building.credentials.add("admin", is_revoked=True)),
        "CREDENTIAL_INVALID",
    ),
    (
        "expired",
        lambda building: bearer(building.credentials.add("admin", expires_at=building.now[0])),
        "CREDENTIAL_EXPIRED",
    ),
    (
        "twice",
        lambda building: bearer(FIRST) + bearer(FIRST),
        "CREDENTIAL_INVALID",
    ),
]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "GetKeys"])
@pytest.mark.parametrize(
    ("metadata", "expected"),
    [(metadata, expected) for _, metadata, expected in WITHOUT_ACCESS],
    ids=[case for case, _, _ in WITHOUT_ACCESS],
)
def test_without_access_no_handler_is_reached(
    building: Building, name: str, metadata: Any, expected: str
) -> None:
    # Bytes that are no message: a stranger cannot make us decode anything.
    reply = outcome(building, call(name, b"\xff\xff", metadata(building)))
    assert reason(reply)[1] == expected
    assert building.servicer.contexts == []
    assert building.metrics.auth_failures.value(
        "none" if expected == "CREDENTIAL_MISSING" else "bearer", expected
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_check_only_credential_may_check_only(building: Building, name: str) -> None:
    secret = building.credentials.add("check")
    reply = outcome(building, call(name, metadata=bearer(secret)))
    if name in ("Check", "BatchCheck", "GetKeys"):
        assert reply.status is None
    else:
        assert reason(reply) == ("PERMISSION_DENIED", "SCOPE_MISSING")
        assert building.servicer.contexts == []


@pytest.mark.parametrize("name", NAMES)
def test_admin_may_call_everything(building: Building, name: str) -> None:
    reply = outcome(building, call(name, metadata=bearer(building.credentials.add("admin"))))
    assert reason(reply)[0] == ("CANCELLED" if name == "Watch" else "OK")
    assert len(building.servicer.contexts) == 1


def test_an_open_method_needs_no_credential(building: Building) -> None:
    assert answer(building, "GetKeys", metadata=()).status is None
    (context,) = building.servicer.contexts
    assert context.actor.scopes == frozenset()


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "//", "test.v1.WidgetService/GetWidget", "//test.v1.WidgetService/GetWidget",
        "/test.v1.WidgetService//GetWidget", "/test.v1.WidgetService/GetWidget/",
        "/test.v1.WidgetService/getWidget", "/Test.v1.WidgetService/GetWidget",
        "/test.v1.WidgetService/Nope", "/test.v1.Nope/GetWidget", "/test.v1.WidgetService",
        "/test.v1.WidgetService/GetWidget ", "/test.v1.WidgetService/GetWidget?x=1",
        "/test.v1.WidgetService/../WidgetService/GetWidget", "/test.v1.WidgetService/%47etWidget",
        "/test.v1.WidgetService/__init__", "/test.v1.WidgetService/on_get",
    ],
)  # fmt: skip
def test_an_odd_path_is_unimplemented(building: Building, path: str) -> None:
    for metadata in ((), bearer(FIRST)):
        (reply,) = building.hall.answer((Call(path, metadata),))
        assert reason(reply) == ("UNIMPLEMENTED", "")
    assert building.servicer.contexts == []


def test_a_method_called_with_another_kind_of_streaming_is_unimplemented(
    building: Building,
) -> None:
    assert reason(building.hall.answer((call("Watch"),))[0])[0] == "UNIMPLEMENTED"
    assert reason(building.hall.collect(call("GetWidget"), iter(()), never))[0] == "UNIMPLEMENTED"
    (reply,) = building.hall.stream(call("Import"), never)
    assert isinstance(reply, Reply)
    assert reason(reply)[0] == "UNIMPLEMENTED"


def test_the_steps_come_in_their_order() -> None:
    """One call that every step would refuse; each step's cause is taken away in turn."""
    building = build(threads=1, per_second=1)
    spent = building.credentials.add("read")
    answer(building, "GetWidget", metadata=bearer(spent))
    building.admission.enter(call("GetWidget"), "read")
    bad_key = ("idempotency-key", "é")
    payload: Any = b"\xff"
    seen = []
    secret, metadata = "nonsense", (bad_key,)
    seen.append(reason(answer(building, "CreateWidget", payload, (*bearer(secret), *metadata)))[1])
    seen.append(reason(answer(building, "CreateWidget", payload, bearer(secret)))[1])
    building.admission.leave("read")
    seen.append(reason(answer(building, "CreateWidget", payload, bearer(secret)))[1])
    seen.append(reason(answer(building, "CreateWidget", payload, bearer(spent)))[1])
    seen.append(reason(answer(building, "GetWidget", payload, bearer(spent)))[1])
    fresh = building.credentials.add("admin")
    seen.append(reason(answer(building, "CreateWidget", payload, bearer(fresh)))[1])
    fresh = building.credentials.add("admin")
    payload = widgets.created(name="")
    seen.append(reason(answer(building, "CreateWidget", payload, bearer(fresh)))[1])
    fresh = building.credentials.add("admin")
    seen.append(reason(answer(building, "CreateWidget", widgets.created(), bearer(fresh)))[1])
    assert seen == [
        "IDEMPOTENCY_KEY_INVALID",  # metadata
        "OVERLOADED",  # admission
        "CREDENTIAL_INVALID",  # auth
        "SCOPE_MISSING",
        "RATE_LIMITED",  # rate
        "FIELD_INVALID",  # decode
        "FIELD_REQUIRED",  # validation
        "",
    ]


def test_a_payload_is_waited_for_only_once_its_caller_is_known(building: Building) -> None:
    read: list[int] = []

    def reading() -> bytes:
        read.append(1)
        return widgets.message("GetWidgetRequest", id="late").SerializeToString()  # type: ignore[no-any-return]

    reply = answer(building, "GetWidget", b"", (), read=reading)
    assert (reason(reply)[1], read) == ("CREDENTIAL_MISSING", [])
    assert text(answer(building, "GetWidget", b"", read=reading)) == "late"


def test_what_a_request_costs_is_paid_after_decoding() -> None:
    building = build(per_second=10)
    secret = building.credentials.add("check")
    parts = [widgets.message("Part", slug="a")] * 1_000
    batch = widgets.message("BatchCheckRequest", items=parts)
    assert answer(building, "BatchCheck", batch, bearer(secret)).status is None
    reply = answer(building, "Check", metadata=bearer(secret))
    assert reason(reply) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert answer(building, "Check", metadata=bearer(building.credentials.add("check")))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff",
        b"\x0a\xff",
        b"\x0a\x05abc",
        b"\x0a\x02\xc3\x28",  # invalid UTF-8
        b"\x0a\x03\xed\xa0\x80",  # a lone surrogate
        b"\x0a\x02\xc0\x80",  # an overlong NUL
        b"\x0a\x01\x80",
        b"\x0f\x0f\x0f",
        b"\x08" + b"\xff" * 20,
        b"\x2a\x03" * 3_000,
    ],
)
@pytest.mark.parametrize("name", ["CreateWidget", "Import"])
def test_bytes_that_are_no_message_are_an_invalid_argument(
    building: Building, name: str, payload: bytes
) -> None:
    reply = outcome(building, call(name, payload))
    assert reason(reply) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert building.servicer.requests in ([], [None])


def test_nesting_without_end_is_an_invalid_argument(building: Building) -> None:
    payload = b""
    for _ in range(10_000):
        size = len(payload)
        length = (
            bytes([size])
            if size < 128
            else bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
        )
        payload = b"\x1a" + length + payload
    reply = answer(building, "CreateWidget", b"\x2a" + payload[1:])
    assert reason(reply) == ("INVALID_ARGUMENT", "FIELD_INVALID")


@pytest.mark.parametrize(
    "bad", [b"\x00", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\xe2\x81\xa6", b"\x1b"]
)
@pytest.mark.parametrize("field", [1, 2, 3])
def test_text_that_cannot_be_seen_is_refused_in_each_field(
    building: Building, field: int, bad: bytes
) -> None:
    payload = widgets.created().SerializeToString() + bytes([field << 3 | 2, len(bad)]) + bad
    reply = answer(building, "CreateWidget", payload)
    assert reason(reply) == ("INVALID_ARGUMENT", "FIELD_INVALID")


DOCUMENTED = {"OK", "INVALID_ARGUMENT", "UNIMPLEMENTED"}


@pytest.mark.parametrize("name", NAMES)
def test_no_bytes_at_all_make_more_than_a_documented_refusal(building: Building, name: str) -> None:
    random = Random(name)
    valid = widgets.REQUESTS[name]().SerializeToString() or b"\x0a\x01a"
    for _ in range(300):
        spoiled = bytearray(valid)
        for _ in range(random.randrange(1, 4)):
            spoiled[random.randrange(len(spoiled))] = random.randrange(256)
        for payload in (bytes(spoiled), random.randbytes(random.randrange(64)), valid[:-1]):
            reply = outcome(building, call(name, payload))
            code = reason(reply)[0]
            assert code in DOCUMENTED or (name == "Watch" and code == "CANCELLED"), payload


def test_unknown_fields_are_ignored(building: Building) -> None:
    payload = widgets.created().SerializeToString() + b"\xfa\x3f\x03abc"
    assert answer(building, "CreateWidget", payload).status is None


def test_a_request_of_the_largest_size_passes_and_one_byte_more_does_not() -> None:
    building = build(message_bytes_max=100)
    request = widgets.message("GetWidgetRequest", id="a" * 98)
    assert len(request.SerializeToString()) == 100
    assert answer(building, "GetWidget", request).status is None
    request.id += "a"
    reply = answer(building, "GetWidget", request)
    assert reason(reply) == ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
    assert dict(info(reply).metadata) == {"field": "", "maximum": "100", "actual": "101"}


def test_an_answer_of_the_largest_size_passes_and_one_byte_more_does_not() -> None:
    building = build(message_bytes_max=100)
    # 4 bytes of text, 2 of tags and 2 of lengths, and the data.
    assert len(answer(building, "GetWidget", widgets.message("GetWidgetRequest", id="94")).payload)
    assert (
        len(answer(building, "GetWidget", widgets.message("GetWidgetRequest", id="94")).payload)
        == 100
    )
    reply = answer(building, "GetWidget", widgets.message("GetWidgetRequest", id="95"))
    assert reason(reply) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert dict(info(reply).metadata) == {"limit": "answer_message_bytes", "maximum": "100"}


def test_a_refusal_of_a_servicer_is_its_status(building: Building) -> None:
    def refuse(request: Any, context: Any) -> None:
        raise NotFound("WIDGET_NOT_FOUND", "no such widget", metadata={"widget_id": "w"})

    building.servicer.on_get = refuse
    reply = answer(building, "GetWidget")
    assert reason(reply) == ("NOT_FOUND", "WIDGET_NOT_FOUND")
    assert dict(info(reply).metadata) == {"widget_id": "w"}


@pytest.mark.parametrize(
    "error", [ValueError("canary"), KeyError("canary"), MemoryError(), RecursionError()]
)
@pytest.mark.parametrize("name", ["GetWidget", "Export", "Import"])
def test_a_bug_tells_the_caller_nothing_and_the_log_everything(
    building: Building, name: str, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    building.servicer.on_get = fail
    building.servicer.on_import = fail
    reply = outcome(building, call(name, metadata=(*bearer(FIRST), ("x-request-id", "r-9"))))
    assert reason(reply) == ("INTERNAL", "INTERNAL")
    assert dict(info(reply).metadata) == {"request_id": "r-9"}
    assert "canary" not in str(reply)
    failed, access = building.log()
    assert (failed["level"], failed["request_id"]) == ("error", "r-9")
    assert type(error).__name__ in failed["exception"]
    assert "widgets.py" in failed["exception"]
    assert (access["code"], access["reason"]) == ("INTERNAL", "INTERNAL")
    assert building.metrics.rpc_in_flight.value("read") == 0


def test_a_refusal_that_is_no_unicode_is_a_bug_and_not_a_crash(building: Building) -> None:
    def refuse(request: Any, context: Any) -> None:
        raise NotFound("WIDGET_NOT_FOUND", "\ud800")

    building.servicer.on_get = refuse
    assert reason(answer(building, "GetWidget")) == ("INTERNAL", "INTERNAL")


def test_an_answer_of_another_kind_is_a_bug(building: Building) -> None:
    building.hall._handlers[widgets.path("GetWidget")] = lambda request, context: widgets.message(
        "GetKeysResponse"
    )
    assert reason(answer(building, "GetWidget"))[0] == "INTERNAL"


def test_every_outcome_gives_its_place_back(building: Building) -> None:
    def fail(request: Any, context: Any) -> None:
        raise Aborted("CONFLICT")

    building.servicer.on_get = fail
    for _ in range(20):
        answer(building, "GetWidget")
        answer(building, "GetWidget", b"\xff")
        answer(building, "GetWidget", metadata=())
    for name in NAMES:
        outcome(building, call(name))
    counts = [
        building.metrics.rpc_in_flight.value(work)
        for work in ("decision", "list", "read", "write", "watch")
    ]
    assert counts == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", NAMES)
def test_a_call_past_its_deadline_does_no_work(building: Building, name: str) -> None:
    reply = outcome(building, call(name, deadline=boot_seconds()))
    assert reason(reply) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert building.servicer.contexts == []


def test_a_unary_call_has_the_nearer_of_two_deadlines() -> None:
    building = build(call_seconds_max=5)
    answer(building, "GetWidget", deadline=boot_seconds() + 2)
    answer(building, "GetWidget", deadline=boot_seconds() + 60)
    answer(building, "GetWidget")
    left = [context.seconds_left() for context in building.servicer.contexts]
    assert [round(seconds) for seconds in left] == [2, 5, 5]


def test_a_stream_has_no_deadline_but_its_own(building: Building) -> None:
    outcome(building, call("Export"))
    outcome(building, call("Import", deadline=boot_seconds() + 60))
    first, second = building.servicer.contexts
    assert first.deadline is None
    assert first.seconds_left() == float("inf")
    assert 59 < second.seconds_left() <= 60


def test_time_spent_on_waiting_for_the_payload_counts(building: Building) -> None:
    def reading() -> bytes:
        pause = threading.Event()
        while boot_seconds() < deadline:
            pause.wait(0.005)
        return b""

    deadline = boot_seconds() + 0.02
    reply = answer(building, "GetWidget", b"", deadline=deadline, read=reading)
    assert reason(reply)[1] == "DEADLINE_EXCEEDED"
    assert building.servicer.contexts == []


def test_a_changed_credential_is_read_again_and_the_call_repeated(building: Building) -> None:
    secret = building.credentials.add("check", revision=1)
    answer(building, "Check", metadata=bearer(secret))
    (id,) = building.credentials.by_id
    tries = []

    def check(request: Any, context: Any) -> bool:
        tries.append(context.provisional_credential)
        if context.provisional_credential is not None:
            raise CredentialChanged
        return True

    building.servicer.on_check = check
    reply = answer(building, "Check", metadata=bearer(secret))
    assert reply.status is None
    assert tries == [(id, 1), None]
    assert len(building.lines) == 2


def test_a_revoked_credential_ends_the_repeated_call(building: Building) -> None:
    secret = building.credentials.add("check")
    answer(building, "Check", metadata=bearer(secret))
    building.credentials.by_id.clear()

    def check(request: Any, context: Any) -> bool:
        raise CredentialChanged

    building.servicer.on_check = check
    reply = answer(building, "Check", metadata=bearer(secret))
    assert reason(reply) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
    assert len(building.servicer.contexts) == 2


def test_a_servicer_that_is_never_content_is_a_bug(building: Building) -> None:
    def check(request: Any, context: Any) -> bool:
        raise CredentialChanged

    building.servicer.on_check = check
    assert reason(answer(building, "Check"))[0] == "INTERNAL"
    assert len(building.servicer.contexts) == 2


def test_an_outage_while_reading_the_credential_is_unavailable(building: Building) -> None:
    secret = building.credentials.add("read")

    class Away(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise Unavailable("DATABASE_UNAVAILABLE")

    building.credentials.by_id = Away()
    reply = answer(building, "GetWidget", metadata=bearer(secret))
    assert reason(reply) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")


def test_a_server_stream_yields_messages_and_then_its_reply(building: Building) -> None:
    request = widgets.message("WatchRequest", count=3, size=5)
    *messages, last = building.hall.stream(call("Export", request), never)
    assert [len(one) for one in messages if isinstance(one, bytes)] == [7, 7, 7]
    assert isinstance(last, Reply)
    assert last.status is None
    (line,) = building.log()
    assert line["code"] == "OK"


def test_a_stream_that_fails_in_the_middle_ends_with_its_status(building: Building) -> None:
    def responses(request: Any, context: Any) -> Iterator[Any]:
        yield widgets.message("WatchResponse")
        raise Unavailable("DATABASE_UNAVAILABLE")

    building.hall._handlers[widgets.path("Export")] = responses
    first, last = building.hall.stream(call("Export"), never)
    assert first == b""
    assert isinstance(last, Reply)
    assert reason(last) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")


def test_a_cancelled_watch_ends_and_gives_its_slot_back(building: Building) -> None:
    gone = threading.Event()
    stream = building.hall.stream(
        call("Watch", widgets.message("WatchRequest", organization_id="org_3", count=1)),
        gone.is_set,
    )
    assert next(stream) == b""
    assert building.metrics.rpc_in_flight.value("watch") == 1
    gone.set()
    (last,) = stream
    assert isinstance(last, Reply)
    assert reason(last)[0] == "CANCELLED"
    assert building.metrics.rpc_in_flight.value("watch") == 0
    assert building.log()[0]["organization_id"] == "org_3"


def test_a_closed_watch_gives_its_slot_back_and_is_logged(building: Building) -> None:
    stream = building.hall.stream(call("Watch", widgets.message("WatchRequest", count=1)), never)
    next(stream)
    stream.close()
    assert building.servicer.ended.is_set()
    assert building.metrics.rpc_in_flight.value("watch") == 0
    (line,) = building.log()
    assert line["code"] == "CANCELLED"


def test_watches_above_their_slots_are_refused(building: Building) -> None:
    request = widgets.message("WatchRequest", count=1)
    streams = [building.hall.stream(call("Watch", request), never) for _ in range(2)]
    for stream in streams:
        next(stream)
    (last,) = building.hall.stream(call("Watch", request), never)
    assert isinstance(last, Reply)
    assert reason(last) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    for stream in streams:
        stream.close()


def test_a_client_stream_is_decoded_and_validated_message_by_message(building: Building) -> None:
    payloads = [widgets.message("ImportRequest", text=text).SerializeToString() for text in "abc"]
    reply = building.hall.collect(call("Import"), iter(payloads), never)
    assert widgets.message("ImportResponse").FromString(reply.payload).text == "abc"
    reply = building.hall.collect(call("Import"), iter([payloads[0], b""]), never)
    assert reason(reply) == ("INVALID_ARGUMENT", "FIELD_REQUIRED")


def test_a_client_that_goes_away_ends_its_stream(building: Building) -> None:
    def payloads() -> Iterator[bytes]:
        yield widgets.message("ImportRequest", text="a").SerializeToString()
        raise CallerGone

    reply = building.hall.collect(call("Import"), payloads(), never)
    assert reason(reply)[0] == "CANCELLED"
    assert building.metrics.rpc_in_flight.value("write") == 0


def test_a_stream_is_never_admitted_by_memory() -> None:
    building = build(confirming=frozenset({"read"}))
    secret = building.credentials.add("admin")
    for _ in range(2):
        outcome(building, call("Export", metadata=bearer(secret)))
    assert len(building.credentials.asked) == 2
    assert all(context.provisional_credential is None for context in building.servicer.contexts)


def test_a_closed_hall_answers_shutting_down_and_ends_watches(building: Building) -> None:
    before = call("GetWidget")
    stream = building.hall.stream(call("Watch", widgets.message("WatchRequest", count=1)), never)
    next(stream)
    building.hall.close()
    assert reason(answer(building, "GetWidget")) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert building.hall.answer((before,))[0].status is None
    (last,) = stream
    assert isinstance(last, Reply)
    assert reason(last) == ("UNAVAILABLE", "SHUTTING_DOWN")


def test_an_export_that_was_running_is_not_cut_short_by_a_closing_hall(building: Building) -> None:
    request = widgets.message("WatchRequest", count=2)
    stream = building.hall.stream(call("Export", request), never)
    next(stream)
    building.hall.close()
    *_, last = stream
    assert isinstance(last, Reply)
    assert last.status is None


REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def test_reflection_needs_any_credential(building: Building) -> None:
    refused = building.hall.admit(Call(REFLECTION, ()))
    assert refused is not None
    assert reason(refused) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING")
    assert building.hall.admit(Call(REFLECTION, bearer(building.credentials.add()))) is None


def test_a_fronts_refusal_is_logged_like_any_other(building: Building) -> None:
    from authz_service.rpc.admission import overloaded

    reply = building.hall.refuse(call("GetWidget"), overloaded())
    assert reason(reply) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    (line,) = building.log()
    assert line["reason"] == "OVERLOADED"

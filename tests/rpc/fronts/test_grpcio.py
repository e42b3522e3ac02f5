"""The whole way through a real server: what clients see, and what holds when they misbehave."""

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo

from authz_service.base.errors import NotFound
from authz_service.rpc.call import CallerGone
from authz_service.rpc.fronts.grpcio import MESSAGE_BYTES_ABOVE
from authz_service.rpc.fronts.listeners import Listener, Unlistenable
from tests.rpc import widgets
from tests.rpc.conftest import FIRST, bearer, build, detail
from tests.rpc.fronts.conftest import SECONDS_MAX, Authority, Client, House, Refused, ended

HEALTH = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def until(is_so: Callable[[], bool], seconds: float = SECONDS_MAX) -> None:
    """Waits for something that another thread or process does."""
    pause, end = threading.Event(), time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        pause.wait(0.005)


class Held:
    """Makes GetWidget wait until it is let go."""

    def __init__(self, house: House) -> None:
        self.go = threading.Event()
        self.inside = threading.Semaphore(0)
        house.building.servicer.on_get = self._on_get

    def _on_get(self, request: Any, context: Any) -> None:
        if request.id == "held":
            self.inside.release()
            assert self.go.wait(SECONDS_MAX)

    def call(self, client: Client, **changes: Any) -> Any:
        """Starts a call that is held; returns its future."""
        return client.channel.unary_unary(widgets.path("GetWidget")).future(
            widgets.message("GetWidgetRequest", id="held").SerializeToString(),
            metadata=bearer(FIRST),
            timeout=SECONDS_MAX,
        )

    def hold(self, client: Client, count: int) -> list[Any]:
        """Starts calls and waits until all of them are inside their handler."""
        calls = [self.call(client) for _ in range(count)]
        for _ in calls:
            assert self.inside.acquire(timeout=SECONDS_MAX)
        return calls


def in_flight(house: House, work: str) -> float:
    return house.building.metrics.rpc_in_flight.value(work)


@pytest.fixture
def client(house: House) -> Client:
    """A client of a front with the usual sizes."""
    return house.client(house.front().addresses[0])


# Codes, details and metadata


def test_a_call_is_answered_with_metadata_both_ways(house: House, client: Client) -> None:
    response, trailing = client.call(
        "CreateWidget",
        metadata=(*bearer(FIRST), ("x-request-id", "r-1"), ("idempotency-key", "k-1")),
    )
    assert widgets.message("CreateWidgetResponse").FromString(response).widget.name == "gear"
    assert trailing == {"x-request-id": "r-1", "idempotency-replayed": "true"}
    (context,) = house.building.servicer.contexts
    assert (context.actor.request_id, context.idempotency_key) == ("r-1", "k-1")


def test_a_refusal_has_code_text_details_and_request_id(client: Client) -> None:
    refused = client.refused(
        "CreateWidget", widgets.message("CreateWidgetRequest", organization_id="o"),
        metadata=(*bearer(FIRST), ("x-request-id", "r-2")),
    )  # fmt: skip
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "FIELD_REQUIRED")
    assert refused.text == "name is required"
    assert refused.trailing["x-request-id"] == "r-2"
    assert refused.status is not None
    violations = detail(refused.status, BadRequest).field_violations
    assert [one.field for one in violations] == ["name", "color", "count"]


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([], "CREDENTIAL_MISSING"),
        ([*bearer(FIRST), *bearer("bad")], "CREDENTIAL_INVALID"),
        ([*bearer("bad"), *bearer(FIRST)], "CREDENTIAL_INVALID"),
        ([*bearer(FIRST), *bearer(FIRST)], "CREDENTIAL_INVALID"),
        ([("authorization", f"Bearer {FIRST}, Bearer bad")], "CREDENTIAL_INVALID"),
        ([*bearer(FIRST), ("authorization-bin", b"x")], "CREDENTIAL_INVALID"),
        ([("organization-id", "org_1")], "CREDENTIAL_MISSING"),
    ],
)
def test_only_one_bearer_is_a_credential(client: Client, pairs: Any, reason: str) -> None:
    refused = client.refused("GetWidget", metadata=tuple(pairs))
    assert (refused.code, refused.reason) == ("UNAUTHENTICATED", reason)


def test_text_of_an_error_may_be_any(house: House, client: Client) -> None:
    def refuse(request: Any, context: Any) -> None:
        raise NotFound("WIDGET_NOT_FOUND", "Rädchen % 齿轮\n")

    house.building.servicer.on_get = refuse
    assert client.refused("GetWidget").text == "Rädchen % 齿轮\n"


def test_bytes_that_are_no_message_are_an_invalid_argument(client: Client) -> None:
    refused = client.refused("GetWidget", b"\xff\xff")
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")


def test_a_bug_says_nothing(house: House, client: Client) -> None:
    def fail(request: Any, context: Any) -> None:
        raise ValueError("canary")

    house.building.servicer.on_get = fail
    refused = client.refused("GetWidget")
    assert (refused.code, refused.reason, refused.text) == ("INTERNAL", "INTERNAL", "")
    assert "canary" not in str(refused.trailing)


@pytest.mark.parametrize(
    "path",
    [
        "/", "//test.v1.WidgetService/GetWidget", "/test.v1.WidgetService//GetWidget",
        "/test.v1.WidgetService/GetWidget/", "/test.v1.WidgetService/getwidget",
        "/test.v1.WidgetService/Nope", "/test.v1.Nope/GetWidget", "/GetWidget",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
    ],
)  # fmt: skip
def test_unknown_methods_and_odd_paths_are_unimplemented(client: Client, path: str) -> None:
    assert client.refused(path, b"").code == "UNIMPLEMENTED"


def test_a_compressed_request_is_read(client: Client) -> None:
    response = client.channel.unary_unary(widgets.path("GetWidget"))(
        widgets.message("GetWidgetRequest", id="a" * 1_000).SerializeToString(),
        metadata=bearer(FIRST),
        compression=grpc.Compression.Gzip,
        timeout=SECONDS_MAX,
    )
    assert b"a" * 1_000 in response


# Sizes


def test_messages_up_to_the_limit_pass_and_larger_ones_are_told_so(house: House) -> None:
    house.building = build(message_bytes_max=100_000)
    client = house.client(house.front().addresses[0])
    overhead = (
        len(widgets.message("GetWidgetRequest", id="a" * 50_000).SerializeToString()) - 50_000
    )

    def request(size: int) -> Any:
        return widgets.message("GetWidgetRequest", id="a" * (size - overhead))

    house.building.servicer.GetWidget = None  # type: ignore[assignment,method-assign]
    house.building.hall._handlers[widgets.path("GetWidget")] = lambda request, context: (
        widgets.message("GetWidgetResponse")
    )
    client.call("GetWidget", request(100_000))
    refused = client.refused("GetWidget", request(100_001))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
    client.refused("GetWidget", request(100_000 + MESSAGE_BYTES_ABOVE))
    # Far above the transport itself refuses, with the code of its own.
    refused = client.refused("GetWidget", request(100_001 + MESSAGE_BYTES_ABOVE))
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "")
    client.call("GetWidget", request(10_000))


def test_answers_up_to_the_limit_pass_and_larger_ones_are_a_documented_refusal(
    house: House,
) -> None:
    house.building = build(message_bytes_max=1_000)
    client = house.client(house.front().addresses[0])
    overhead = 8
    response, _ = client.call(
        "GetWidget", widgets.message("GetWidgetRequest", id=f"{1_000 - overhead}")
    )
    assert len(response) == 1_000
    refused = client.refused(
        "GetWidget", widgets.message("GetWidgetRequest", id=f"{1_001 - overhead}")
    )
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")


def test_metadata_above_its_limit_is_told_so_and_far_above_ends_only_that_call(
    client: Client,
) -> None:
    client.call("GetWidget", metadata=(*bearer(FIRST), ("x", "a" * 7_000)))
    refused = client.refused("GetWidget", metadata=(*bearer(FIRST), ("x", "a" * 9_000)))
    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
    refused = client.refused("GetWidget", metadata=(*bearer(FIRST), ("x", "a" * 20_000)))
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "")
    assert client.text() == "abc"


# Deadlines and cancellation


def test_a_deadline_reaches_the_servicer_and_ends_the_call(house: House, client: Client) -> None:
    held = Held(house)
    request = widgets.message("GetWidgetRequest", id="held")
    refused = client.refused("GetWidget", request, timeout=0.2)
    assert refused.code == "DEADLINE_EXCEEDED"
    (context,) = house.building.servicer.contexts
    assert context.seconds_left() == 0
    held.go.set()
    client.call("GetWidget", timeout=5)
    # The transport rounds a timeout up a little.
    assert 4 < house.building.servicer.contexts[-1].seconds_left() < 5.1


def test_without_a_deadline_a_unary_call_gets_ours(house: House, client: Client) -> None:
    client.channel.unary_unary(widgets.path("GetWidget"))(b"", metadata=bearer(FIRST))
    assert 9 < house.building.servicer.contexts[-1].seconds_left() <= 10


def test_a_cancelled_watch_frees_its_thread_and_its_slot(house: House, client: Client) -> None:
    for _ in range(3):
        house.building.servicer.ended.clear()
        watches = [client.stream("Watch", count=1) for _ in range(2)]
        for watch in watches:
            next(watch)
        assert in_flight(house, "watch") == 2
        for watch in watches:
            watch.cancel()
        until(lambda: in_flight(house, "watch") == 0)
    assert [line["code"] for line in house.building.log()] == ["CANCELLED"] * 6


def test_a_client_that_closes_its_connection_frees_its_watch(house: House, client: Client) -> None:
    watch = client.stream("Watch", count=1)
    next(watch)
    client.channel.close()
    until(lambda: in_flight(house, "watch") == 0)


def test_a_cancelled_import_ends_its_handler(house: House, client: Client) -> None:
    going = threading.Event()

    def requests() -> Iterator[bytes]:
        yield widgets.message("ImportRequest", text="a").SerializeToString()
        going.set()
        stopped.wait(SECONDS_MAX)

    stopped = threading.Event()
    call = client.channel.stream_unary(widgets.path("Import")).future(
        requests(), metadata=bearer(FIRST), timeout=SECONDS_MAX
    )
    assert going.wait(SECONDS_MAX)
    until(lambda: in_flight(house, "write") == 1)
    call.cancel()
    until(lambda: in_flight(house, "write") == 0)
    stopped.set()
    until(lambda: [line["code"] for line in house.building.log()] == ["CANCELLED"])


def test_the_end_of_a_cancelled_stream_is_not_taken_for_the_end_of_its_messages(
    house: House,
) -> None:
    """What grpcio does now and then, done on purpose: the end comes before the cancellation."""
    front, gone = house.front(), threading.Event()
    received = front._all_received(iter([b"a"]), cast(Any, object()), gone)
    assert next(received) == b"a"
    gone.set()
    with pytest.raises(CallerGone):
        next(received)
    assert list(front._all_received(iter([b"a"]), cast(Any, object()), threading.Event())) == [b"a"]


# Streams


def test_streams_of_both_kinds_pass(client: Client) -> None:
    assert [len(one) for one in client.stream("Export", count=3, size=100)] == [102] * 3
    payloads = [widgets.message("ImportRequest", text=text).SerializeToString() for text in "abc"]
    response = client.channel.stream_unary(widgets.path("Import"))(
        iter(payloads), metadata=bearer(FIRST), timeout=SECONDS_MAX
    )
    assert widgets.message("ImportResponse").FromString(response).text == "abc"


def test_a_stream_has_trailing_metadata_and_refusals_too(client: Client) -> None:
    call = client.stream("Export", (*bearer(FIRST), ("x-request-id", "r-3")), count=1)
    list(call)
    assert ("x-request-id", "r-3") in [tuple(one) for one in call.trailing_metadata()]
    refused = ended(client.stream("Export", metadata=()))
    assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING")


def test_watches_beyond_the_slots_are_refused_at_once_while_calls_go_on(house: House) -> None:
    house.building = build(watch_streams=2)
    client = house.client(house.front(watch_streams=2).addresses[0])
    watches = [client.stream("Watch", count=1) for _ in range(2)]
    for watch in watches:
        next(watch)
    for _ in range(5):
        refused = ended(client.stream("Watch", count=1))
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert client.text() == "abc"
    watches[0].cancel()
    until(lambda: in_flight(house, "watch") == 1)
    next(client.stream("Watch", count=1))


def test_many_watches_opened_and_cancelled_leave_nothing_behind(
    house: House, client: Client
) -> None:
    before = threading.active_count()
    for _ in range(100):
        client.stream("Watch", count=1).cancel()
    until(lambda: in_flight(house, "watch") == 0)
    assert client.text() == "abc"
    until(lambda: threading.active_count() <= before + 8 + 2 + 18)


# Callers that make no progress


def test_who_sends_no_message_is_cut_off_and_frees_the_thread(house: House) -> None:
    client = house.client(house.front(threads=1, request_seconds_max=0.2).addresses[0])
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait(SECONDS_MAX)
        yield b""

    silent = client.channel.stream_unary(widgets.path("GetWidget")).future(
        nothing(), metadata=bearer(FIRST), timeout=SECONDS_MAX
    )
    assert client.text() == "abc"
    with pytest.raises(grpc.RpcError):
        silent.result()
    stop.set()


def test_a_stranger_who_sends_no_message_is_refused_at_once(house: House) -> None:
    client = house.client(house.front(request_seconds_max=60.0).addresses[0])
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait(SECONDS_MAX)
        yield b""

    with pytest.raises(grpc.RpcError) as caught:
        client.channel.stream_unary(widgets.path("GetWidget"))(nothing(), timeout=SECONDS_MAX)
    assert Refused(caught.value).reason == "CREDENTIAL_MISSING"
    stop.set()


def test_who_does_not_read_a_stream_is_cut_off(house: House) -> None:
    front = house.front(stalled_seconds_max=0.3, request_seconds_max=1.0)
    client = house.client(
        front.addresses[0],
        None,
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65_536),
    )
    stalled = client.stream("Export", count=1_000, size=1_000_000)
    next(stalled)
    until(lambda: in_flight(house, "read") == 1)
    until(lambda: in_flight(house, "read") == 0)
    assert ended(stalled).code == "CANCELLED"
    assert client.text() == "abc"


def test_who_stops_sending_a_client_stream_is_cut_off(house: House) -> None:
    client = house.client(
        house.front(stalled_seconds_max=0.3, request_seconds_max=1.0).addresses[0]
    )
    stop = threading.Event()

    def one_and_no_more() -> Iterator[bytes]:
        yield widgets.message("ImportRequest", text="a").SerializeToString()
        stop.wait(SECONDS_MAX)

    with pytest.raises(grpc.RpcError):
        client.channel.stream_unary(widgets.path("Import"))(
            one_and_no_more(), metadata=bearer(FIRST), timeout=SECONDS_MAX
        )
    stop.set()
    until(lambda: in_flight(house, "write") == 0)


def test_a_request_without_a_message_ends(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.stream_unary(widgets.path("GetWidget"))(
            iter(()), metadata=bearer(FIRST), timeout=SECONDS_MAX
        )
    assert Refused(caught.value).code == "CANCELLED"


# Overload


def test_more_calls_than_threads_and_queue_hold_are_refused_with_a_time_to_repeat(
    house: House,
) -> None:
    house.building = build(threads=2, queue_seconds_max=60)
    client = house.client(house.front(threads=2, queue=2).addresses[0])
    held = Held(house)
    calls = held.hold(client, 2)
    calls += [held.call(client) for _ in range(3)]
    health = house.client(house.fronts[0].addresses[0])
    refused = []
    while not refused:
        # Until the three above have arrived, calls of ours wait too: give them no time to.
        found = client.refused("GetWidget", timeout=0.3)
        if found.code != "DEADLINE_EXCEEDED":
            refused.append(found)
    assert (refused[0].code, refused[0].reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refused[0].status is not None
    assert detail(refused[0].status, RetryInfo).retry_delay.nanos > 0
    assert health.call(HEALTH, b"", metadata=())[0] == SERVING
    held.go.set()
    assert all(call.result() is not None for call in calls)
    assert client.text() == "abc"


def test_waves_of_calls_never_put_more_into_handlers_than_there_are_threads(
    house: House,
) -> None:
    house.building = build(threads=2)
    client = house.client(house.front(threads=2, queue=4).addresses[0])
    lock = threading.Lock()
    inside, most = [0], [0]

    def on_get(request: Any, context: Any) -> None:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        threading.Event().wait(0.001)
        with lock:
            inside[0] -= 1

    house.building.servicer.on_get = on_get
    get = client.channel.unary_unary(widgets.path("GetWidget"))
    codes = set()
    for _ in range(3):
        wave = [get.future(b"", metadata=bearer(FIRST), timeout=SECONDS_MAX) for _ in range(60)]
        for call in wave:
            codes.add(call.code().name)
        assert client.text() == "abc"
    assert codes <= {"OK", "RESOURCE_EXHAUSTED"}
    assert "OK" in codes
    assert most[0] == 2
    assert inside[0] == 0


def test_who_waited_too_long_for_a_thread_is_refused(house: House) -> None:
    house.building = build(threads=1, queue_seconds_max=0.05)
    client = house.client(house.front(threads=1).addresses[0])
    held = Held(house)
    (first,) = held.hold(client, 1)
    waiting = held.call(client)
    until(lambda: house.fronts[0]._calls.waiting == 1)
    threading.Event().wait(0.1)
    held.go.set()
    first.result()
    with pytest.raises(grpc.RpcError) as caught:
        waiting.result()
    assert Refused(caught.value).reason == "OVERLOADED"


def test_calls_in_a_queue_past_their_deadline_do_no_work(house: House) -> None:
    house.building = build(threads=1)
    client = house.client(house.front(threads=1).addresses[0])
    held = Held(house)
    (first,) = held.hold(client, 1)
    assert client.refused("GetWidget", timeout=0.05).code == "DEADLINE_EXCEEDED"
    held.go.set()
    first.result()
    assert client.text() == "abc"
    assert len(house.building.servicer.contexts) == 2


# Health


def test_health_follows_what_the_server_says(house: House) -> None:
    front = house.front()
    client = house.client(front.addresses[0])
    named = b"\x0a" + bytes([len(widgets.SERVICE)]) + widgets.SERVICE.encode()
    for request in (b"", named):
        assert client.call(HEALTH, request, metadata=())[0] == SERVING
    front.set_serving(False)
    for request in (b"", named):
        assert client.call(HEALTH, request, metadata=())[0] == NOT_SERVING
    refused = client.refused(HEALTH, b"\x0a\x04nope", metadata=())
    assert (refused.code, refused.status) == ("NOT_FOUND", None)
    assert client.refused(HEALTH, b"\xff", metadata=()).code == "INVALID_ARGUMENT"


def test_health_watches_tell_changes_and_end_with_the_server(house: House) -> None:
    front = house.front()
    client = house.client(front.addresses[0])
    watch = client.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=SECONDS_MAX)
    assert next(watch) == SERVING
    front.set_serving(False)
    assert next(watch) == NOT_SERVING
    house.fronts.remove(front)
    began = time.monotonic()
    front.stop(SECONDS_MAX)
    assert time.monotonic() - began < SECONDS_MAX / 2
    assert list(watch) == []


def test_health_watchers_are_bounded(house: House) -> None:
    client = house.client(house.front().addresses[0])
    watches = [
        client.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=SECONDS_MAX)
        for _ in range(20)
    ]
    codes = set()
    for watch in watches:
        try:
            next(watch)
        except grpc.RpcError as error:
            codes.add(Refused(error).code)
    assert codes == {"RESOURCE_EXHAUSTED"}
    assert client.call(HEALTH, b"", metadata=())[0] == SERVING


def test_health_may_have_an_address_of_its_own_that_answers_nothing_else(house: House) -> None:
    front = house.front(health_listener=Listener("127.0.0.1:0"))
    client = house.client(front.addresses[1])
    assert client.call(HEALTH, b"", metadata=())[0] == SERVING
    assert client.refused("GetWidget").code == "UNIMPLEMENTED"


# Reflection


def test_reflection_where_switched_on_needs_a_credential(house: House) -> None:
    from grpc_reflection.v1alpha import reflection_pb2 as pb

    front = house.front(reflection=True)
    client = house.client(front.addresses[0])
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    question = pb.ServerReflectionRequest(list_services="").SerializeToString()

    def ask(metadata: Any) -> Any:
        return client.channel.stream_stream(path)(
            iter([question]), metadata=metadata, timeout=SECONDS_MAX
        )

    refused = ended(ask(()))
    assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING")
    (answer,) = ask(bearer(house.building.credentials.add()))
    names = pb.ServerReflectionResponse.FromString(answer).list_services_response.service
    assert widgets.SERVICE in [one.name for one in names]


def test_an_open_reflection_does_not_hold_up_the_end(house: House) -> None:
    front = house.front(reflection=True)
    client = house.client(front.addresses[0])
    stop = threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait(SECONDS_MAX)
        yield b""

    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    reflecting = client.channel.stream_stream(path)(
        nothing(), metadata=bearer(FIRST), timeout=SECONDS_MAX
    )
    until(lambda: len(front._reflecting) == 1)
    house.fronts.remove(front)
    began = time.monotonic()
    front.stop(SECONDS_MAX)
    assert time.monotonic() - began < SECONDS_MAX / 2
    assert ended(reflecting).code == "CANCELLED"
    stop.set()


# The end


def test_a_drain_finishes_calls_in_flight_and_takes_no_new_ones(house: House) -> None:
    front = house.front()
    client, late = house.client(front.addresses[0]), house.client(front.addresses[0])
    held = Held(house)
    (call,) = held.hold(client, 1)
    watch = late.stream("Watch", count=1)
    next(watch)
    house.fronts.remove(front)
    stopping = threading.Thread(target=front.stop, args=(SECONDS_MAX,))
    stopping.start()
    refused = ended(watch)
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
    assert late.refused("GetWidget").code == "UNAVAILABLE"
    assert not call.done()
    held.go.set()
    assert call.result() is not None
    stopping.join(SECONDS_MAX)
    assert not stopping.is_alive()


def test_a_drain_ends_what_does_not_end_by_itself(house: House) -> None:
    front = house.front()
    client = house.client(front.addresses[0])
    held = Held(house)
    (call,) = held.hold(client, 1)
    house.fronts.remove(front)
    front.stop(0.1)
    with pytest.raises(grpc.RpcError):
        call.result()
    held.go.set()


# Listeners


def test_a_unix_socket_is_open_to_its_group_only(house: House, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/authz.sock"
    front = house.front(Listener(address))
    assert stat.S_IMODE(os.stat(tmp_path / "authz.sock").st_mode) == 0o660
    assert front.addresses == [address]
    assert house.client(address).text() == "abc"


def test_several_addresses_are_one_server(house: House, tmp_path: Path) -> None:
    front = house.front(Listener("127.0.0.1:0"), Listener(f"unix:{tmp_path}/a.sock"))
    assert [house.client(address).text() for address in front.addresses] == ["abc", "abc"]


def test_plaintext_beyond_this_machine_is_refused_before_anything_listens(house: House) -> None:
    with pytest.raises(Unlistenable, match="AUTHZ_INSECURE"):
        house.front(Listener("127.0.0.1:0"), Listener("0.0.0.0:0"))
    house.front(Listener("0.0.0.0:0", insecure=True))


def test_a_taken_port_is_refused_unless_it_is_shared_on_purpose(house: House) -> None:
    address = house.front().addresses[0]
    with pytest.raises(Unlistenable, match="cannot listen"):
        house.front(Listener(address))
    address = house.front(reuse_port=True).addresses[0]
    house.front(Listener(address), reuse_port=True)


def test_tls_serves_who_trusts_it_and_no_plaintext(house: House, authority: Authority) -> None:
    port = house.front(Listener("127.0.0.1:0", authority.tls())).addresses[0].rpartition(":")[2]
    assert house.client(f"localhost:{port}", authority.trusted()).text() == "abc"
    assert house.client(f"localhost:{port}").refused("GetWidget").code == "UNAVAILABLE"
    stranger = grpc.ssl_channel_credentials()
    assert house.client(f"localhost:{port}", stranger).refused("GetWidget").code == "UNAVAILABLE"


def test_a_client_certificate_is_a_credential_and_without_one_nobody_gets_in(
    house: House, authority: Authority
) -> None:
    front = house.front(Listener("127.0.0.1:0", authority.tls(clients=True)))
    address = f"localhost:{front.addresses[0].rpartition(':')[2]}"
    app = authority.trusted(*authority.issue("app", "URI:spiffe://test/app"))
    assert house.client(address, app).text(metadata=()) == "abc"
    actor = house.building.servicer.contexts[-1].actor
    assert (actor.kind, actor.id) == ("CERTIFICATE", "app")
    refused = house.client(address, app).refused("CreateWidget", metadata=())
    assert refused.reason == "SCOPE_MISSING"
    other = authority.trusted(*authority.issue("other", "DNS:other.test"))
    refused = house.client(address, other).refused("GetWidget", metadata=())
    assert refused.reason == "CREDENTIAL_MISSING"
    assert house.client(address, other).text() == "abc"
    refused = house.client(address, authority.trusted()).refused("GetWidget")
    assert refused.code == "UNAVAILABLE"


def test_a_dns_name_of_a_certificate_is_a_name_too(house: House, authority: Authority) -> None:
    from authz_service.rpc.auth import Client as Known

    house.building = build(clients={"dns.test": Known("by-dns", frozenset({"read"}))})
    front = house.front(Listener("127.0.0.1:0", authority.tls(clients=True)))
    address = f"localhost:{front.addresses[0].rpartition(':')[2]}"
    named = authority.trusted(*authority.issue("named", "DNS:dns.test"))
    assert house.client(address, named).text(metadata=()) == "abc"


def test_a_new_certificate_is_served_without_a_restart_and_without_a_dropped_call(
    house: House, authority: Authority
) -> None:
    tls = authority.tls("rotated")
    port = house.front(Listener("127.0.0.1:0", tls)).addresses[0].rpartition(":")[2]
    before = house.client(f"localhost:{port}", authority.trusted())
    assert before.text() == "abc"
    held = Held(house)
    (call,) = held.hold(before, 1)
    new = replace(authority.tls("new"))
    for source, target in ((new.certificate, tls.certificate), (new.key, tls.key)):
        os.replace(source, target)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import ssl

    served = ssl.get_server_certificate(("127.0.0.1", int(port)), timeout=SECONDS_MAX)
    assert served.split() == Path(tls.certificate).read_text().split()
    assert house.client(f"localhost:{port}", authority.trusted()).text() == "abc"
    held.go.set()
    assert call.result() is not None

"""Several calls at once, without waiting: what is known now, what goes to threads, what fails."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from authz_service.rpc import hall as module
from authz_service.rpc.call import Call, Context, CredentialChanged, Reply
from authz_service.rpc.hall import AT_ONCE_BYTES_MAX, Hall
from tests.rpc import widgets
from tests.rpc.conftest import Building, bearer, build, call, reason


class Knowing(widgets.WidgetServicer):
    """Knows what each request comes to, as far as a test says.

    Attributes:
        known: By the request's text; what is not there must wait.
        asked: The names of the methods, each time that a request was looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Any] = {}
        self.asked: list[str] = []
        self.fails: Exception | None = None
        self.later: list[Callable[[], None]] | None = None

    def ask(self, name: str, request: Any) -> Any:
        self.asked.append(name)
        return request.subject

    def at_once(
        self, asked: Sequence[tuple[Any, Context]], then: Callable[[Sequence[Any]], None]
    ) -> None:
        if self.fails is not None:
            raise self.fails
        outcomes = [self.known.get(each) for each, _ in asked]
        if self.later is None:
            then(outcomes)
        else:
            self.later.append(lambda: then(outcomes))


class Place:
    """A hall before a servicer that knows, and a front that collects.

    Attributes:
        replies: What was answered, in order.
        waiting: What was handed to threads.
        room: How many of those there is room for.
    """

    def __init__(self, **changes: Any) -> None:
        self.building: Building = build(**changes)
        self.hall: Hall = self.building.hall
        self.servicer = Knowing()
        self.hall._at_once[widgets.path("Check")] = self.servicer
        self.hall._handlers[widgets.path("Check")] = self.servicer.Check
        self.replies: list[tuple[Call, Reply]] = []
        self.waiting: list[tuple[Call, Callable[[], Reply]]] = []
        self.room = 100

    def later(self, call: Call, job: Callable[[], Reply]) -> bool:
        if len(self.waiting) >= self.room:
            return False
        self.waiting.append((call, job))
        return True

    def ask(self, *calls: Call) -> list[Reply]:
        """Hands calls over; returns what was answered at once."""
        before = len(self.replies)
        self.hall.answer_soon(calls, self.replies.extend, self.later)
        return [reply for _, reply in self.replies[before:]]


@pytest.fixture
def place() -> Place:
    return Place()


def check(id: str, **changes: Any) -> Call:
    return call("Check", widgets.message("CheckRequest", subject=id), **changes)


def yes() -> Any:
    return widgets.message("CheckResponse", allowed=True)


def test_what_is_known_is_answered_and_what_is_not_goes_to_threads(place: Place) -> None:
    place.servicer.known["a"] = yes()
    first, second = check("a"), check("b")
    (reply,) = place.ask(first, second)
    assert widgets.message("CheckResponse").FromString(reply.payload).allowed
    ((waiting, job),) = place.waiting
    assert waiting is second
    assert job().status is None
    assert [line["code"] for line in place.building.log()] == ["OK", "OK"]


def test_answers_may_come_later_and_together(place: Place) -> None:
    place.servicer.later = []
    place.servicer.known["a"] = yes()
    assert place.ask(check("a"), check("a")) == []
    (arrive,) = place.servicer.later
    arrive()
    assert len(place.replies) == 2


def test_the_same_bytes_are_read_once(place: Place) -> None:
    place.servicer.known["a"] = yes()
    for _ in range(3):
        place.ask(check("a"))
    assert place.servicer.asked == ["Check"]
    assert len(place.replies) == 3


def test_a_failing_batch_fails_each_of_its_calls_and_the_next_one_is_well(place: Place) -> None:
    place.servicer.known["a"] = yes()
    place.servicer.fails = RuntimeError("a bug")
    replies = place.ask(check("a"), check("b"))
    assert [reason(reply)[1] for reply in replies] == ["INTERNAL", "INTERNAL"]
    place.servicer.fails = None
    assert [reply.status for reply in place.ask(check("a"))] == [None]


def test_a_failing_call_fails_alone(place: Place) -> None:
    place.servicer.known.update(a=RuntimeError("a bug"), b=yes())
    first, second = place.ask(check("a"), check("b"))
    assert reason(first)[1] == "INTERNAL"
    assert second.status is None


def test_a_changed_credential_is_read_in_a_thread(place: Place) -> None:
    place.servicer.known["a"] = CredentialChanged()
    assert place.ask(check("a")) == []
    assert len(place.waiting) == 1


def test_a_credential_that_is_not_remembered_is_read_in_a_thread_and_then_known(
    place: Place,
) -> None:
    secret = place.building.credentials.add("check")
    place.servicer.known["a"] = yes()
    assert place.ask(check("a", metadata=bearer(secret))) == []
    assert place.building.credentials.asked == []
    ((_, job),) = place.waiting
    assert job().status is None
    assert len(place.ask(check("a", metadata=bearer(secret)))) == 1


def test_without_room_for_threads_a_call_is_refused(place: Place) -> None:
    place.room = 0
    (reply,) = place.ask(check("a"))
    assert reason(reply)[1] == "OVERLOADED"


def test_a_refused_credential_is_refused_at_once(place: Place) -> None:
    (reply,) = place.ask(check("a", metadata=()))
    assert reason(reply)[1] == "CREDENTIAL_MISSING"


@pytest.mark.parametrize(("more", "answered"), [(0, 1), (1, 0)])
def test_large_requests_go_to_threads(place: Place, more: int, answered: int) -> None:
    size = AT_ONCE_BYTES_MAX + more
    text = "x" * (size - 4)
    request = widgets.message("CheckRequest", subject=text)
    text = "x" * (len(text) - (len(request.SerializeToString()) - size))
    place.servicer.known[text] = yes()
    assert len(place.ask(check(text))) == answered


def test_what_is_asked_is_remembered_up_to_a_size_and_a_number(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASKED_BYTES_MAX", 10)
    for id in ("short", "short", "longer than that", "longer than that"):
        place.servicer.known[id] = yes()
        place.ask(check(id))
    assert len(place.servicer.asked) == 3


def test_a_call_that_goes_to_a_thread_is_charged_once() -> None:
    place = Place(per_second=2)
    place.ask(check("a"))
    ((_, job),) = place.waiting
    assert job().status is None
    place.servicer.known["a"] = yes()
    assert [reply.status for reply in place.ask(check("a"))] == [None]
    (reply,) = place.ask(check("a"))
    assert reason(reply)[1] == "RATE_LIMITED"


def test_other_methods_go_to_threads(place: Place) -> None:
    assert place.ask(call("GetWidget")) == []
    assert len(place.waiting) == 1

"""What does not fit is refused at once, and every place is given back."""

import pytest

from authz_service.base.clock import boot_seconds
from authz_service.base.errors import Refusal
from authz_service.rpc.admission import Admission
from authz_service.rpc.call import Call
from authz_service.telemetry.metrics import Metrics


class Gate:
    """An admission and its metrics."""

    def __init__(self, threads: int = 4, watch_streams: int = 2) -> None:
        self.metrics = Metrics()
        self.admission = Admission(
            threads=threads, watch_streams=watch_streams, metrics=self.metrics
        )

    def enter(self, work: str, count: int = 1, **changes: float) -> None:
        for _ in range(count):
            self.admission.enter(Call("/a/b", (), **changes), work)  # type: ignore[arg-type]

    def refusal(self, work: str, **changes: float) -> Refusal:
        with pytest.raises(Refusal) as caught:
            self.enter(work, **changes)
        return caught.value

    def refused(self, why: str) -> float:
        return self.metrics.rpc_refused.value(why)


@pytest.mark.parametrize("work", ["decision", "read"])
def test_all_threads_may_decide_or_read_and_no_more(work: str) -> None:
    gate = Gate()
    gate.enter(work, 4)
    assert gate.refusal("decision").reason == "OVERLOADED"
    assert gate.refusal("read").reason == "OVERLOADED"
    gate.admission.leave(work)
    gate.enter("decision")
    assert gate.refused("overloaded") == 2


@pytest.mark.parametrize("work", ["list", "write"])
@pytest.mark.parametrize(("threads", "cap"), [(8, 4), (5, 2), (1, 1)])
def test_lists_and_writes_get_half_of_the_threads(work: str, threads: int, cap: int) -> None:
    gate = Gate(threads)
    gate.enter(work, cap)
    assert gate.refusal(work).reason == "OVERLOADED"
    gate.enter("decision", threads - cap)
    assert gate.refusal("decision").reason == "OVERLOADED"


def test_watches_have_slots_of_their_own() -> None:
    gate = Gate()
    gate.enter("watch", 2)
    refusal = gate.refusal("watch")
    assert refusal.reason == "LIMIT_REACHED"
    assert refusal.metadata == {"limit": "watch_streams", "maximum": "2"}
    gate.enter("decision", 4)
    gate.admission.leave("watch")
    gate.enter("watch")
    assert gate.refused("watch_slots") == 1


def test_who_waited_too_long_is_refused() -> None:
    gate = Gate()
    gate.enter("decision", arrived=boot_seconds() - 0.4)
    assert gate.refusal("decision", arrived=boot_seconds() - 0.6).reason == "OVERLOADED"
    assert gate.metrics.rpc_queue_seconds.count() == 2


def test_a_call_past_its_deadline_does_no_work() -> None:
    gate = Gate()
    assert gate.refusal("decision", deadline=boot_seconds()).reason == "DEADLINE_EXCEEDED"
    gate.enter("decision", deadline=boot_seconds() + 60)
    assert gate.refused("deadline") == 1


def test_a_refused_call_takes_no_place() -> None:
    gate = Gate()
    for _ in range(10):
        gate.refusal("decision", deadline=0.0)
        gate.refusal("decision", arrived=0.0)
    gate.enter("decision", 4)
    assert gate.metrics.rpc_in_flight.value("decision") == 4


def test_closed_it_serves_only_who_was_there_before() -> None:
    gate = Gate()
    before = boot_seconds()
    gate.admission.close()
    gate.enter("decision", arrived=before)
    refusal = gate.refusal("decision")
    assert refusal.reason == "SHUTTING_DOWN"
    assert gate.admission.is_closed

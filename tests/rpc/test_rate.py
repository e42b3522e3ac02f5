"""Each caller has a bucket; one large call may overdraw it and is paid for afterwards."""

import pytest

from authz_service.base.errors import Refusal
from authz_service.rpc.rate import Rate
from authz_service.telemetry.metrics import Metrics


class Meter:
    """A rate of 10 units per second, and its clock."""

    def __init__(self, per_second: float = 10, buckets_max: int = 100) -> None:
        self.now = 1_000.0
        self.metrics = Metrics()
        self.rate = Rate(
            per_second=per_second,
            metrics=self.metrics,
            buckets_max=buckets_max,
            now=lambda: self.now,
        )

    def ask(self, id: str = "a", cost: float = 1.0) -> None:
        self.rate.admit("SERVICE_CREDENTIAL", id)
        self.rate.charge("SERVICE_CREDENTIAL", id, cost)

    def refusal(self, id: str = "a") -> Refusal:
        with pytest.raises(Refusal) as caught:
            self.ask(id)
        return caught.value


def test_a_second_is_worth_its_rate_and_refills() -> None:
    meter = Meter()
    for _ in range(10):
        meter.ask()
    refusal = meter.refusal()
    assert refusal.reason == "RATE_LIMITED"
    assert refusal.retry_seconds == pytest.approx(0.1)
    assert meter.metrics.rpc_refused.value("rate") == 1
    meter.now += 0.11
    meter.ask()
    meter.refusal()


def test_a_bucket_never_holds_more_than_a_second() -> None:
    meter = Meter()
    meter.ask()
    meter.now += 3_600
    for _ in range(10):
        meter.ask()
    meter.refusal()


def test_a_batch_larger_than_the_bucket_passes_and_is_paid_for() -> None:
    meter = Meter()
    meter.ask(cost=100)
    assert meter.refusal().retry_seconds == pytest.approx(9.1)
    meter.now += 8.9
    meter.refusal()
    meter.now += 0.2
    meter.ask()


def test_being_refused_costs_nothing() -> None:
    meter = Meter()
    meter.ask(cost=10)
    for _ in range(100):
        meter.refusal()
    meter.now += 0.11
    meter.ask()


def test_callers_do_not_pay_for_each_other() -> None:
    meter = Meter()
    meter.ask("a", cost=1_000)
    meter.refusal("a")
    meter.ask("b")
    meter.rate.admit("CERTIFICATE", "a")


def test_a_rate_below_one_lets_one_call_through() -> None:
    meter = Meter(per_second=0.5)
    meter.ask()
    assert meter.refusal().retry_seconds == pytest.approx(2)
    meter.now += 2.1
    meter.ask()


def test_zero_switches_it_off() -> None:
    meter = Meter(per_second=0)
    for _ in range(100):
        meter.ask(cost=1_000)


def test_buckets_are_bounded_and_the_longest_unused_goes() -> None:
    meter = Meter(buckets_max=2)
    meter.ask("a", cost=1_000)
    meter.ask("b", cost=1_000)
    meter.refusal("a")
    meter.ask("c")
    # b was the longest unused; a is still in debt.
    meter.refusal("a")
    meter.ask("b")

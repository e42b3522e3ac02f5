"""Each metric is documented and emitted, and no value of a label comes from a caller."""

import importlib.metadata
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from prometheus_client.parser import text_string_to_metric_families

from authz_service.base import ids, secrets
from authz_service.base.clock import boot_seconds
from authz_service.pb.authz.v1 import error_reason_pb2, watch_pb2
from authz_service.rpc.access_log import UNKNOWN_METHOD
from authz_service.rpc.call import Call, Reply
from authz_service.rpc.methods import WORKS
from authz_service.server import Worker
from authz_service.storage import poison, schema, statements
from authz_service.telemetry.logs import Lines
from authz_service.telemetry.metrics import Counter, Gauge, Histogram, Metrics
from tests.architecture.conftest import Place, Stocked, another
from tests.callers import Caller, Refused

ROOT = Path(__file__).resolve().parents[2]
ALL = list(Metrics().all())
# Of the cache that several processes share; tests/consistency sees them told.
OF_REDIS = re.compile(
    "authz_cache_(cut_broken|fences|settle|enable|mark|oldest|redis|rejected|validation_calls|view_dropped|lease"
    "|generation|mode).*"
)
# Of the decision front, which these workers have not; tests/rpc/fronts/h2 sees it told.
OF_DECISIONS = re.compile("authz_connections_ended.*")
# They ring when something is broken: tests/api breaks it, test_consistency.py and
# test_poison_rows.py.
ALARMS = {
    "authz_cache_token_ahead_total",
    "authz_cache_inconsistency_total",
    "authz_poison_rows_total",
}
COUNTED = [
    metric
    for metric in ALL
    if not OF_REDIS.fullmatch(metric.name) and not OF_DECISIONS.fullmatch(metric.name)
]
CANARY = "canary-7f3a"
Sample = tuple[str, dict[str, str], float]


def reasons() -> set[str]:
    """All reasons of the contract."""
    names = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name
    return {name.removeprefix("ERROR_REASON_") for name in names}


def label_values(worker: Worker) -> dict[str, set[str]]:
    """The closed set of each label."""
    return {
        "method": {*worker.hall.methods, UNKNOWN_METHOD},
        "code": set(Code.keys()),
        "class": set(WORKS),
        "why": {"overloaded", "watch_slots", "rate", "deadline"},
        "allowed": {"true", "false"},
        "reason": reasons(),
        "kind": {"bearer", "certificate", "none"},
        "version": {importlib.metadata.version("authz_service")},
        "schema": {schema.head()},
        "from": {"last_cut", "view", "l2", "mixed", "sql", "bypass"},
        "fact": {"grants", "path", "permissions", "credential"},
        "source": {"l1", "l2", "sql"},
        "outcome": {"kept", "skipped", "failed", "committed", "again", "refused", "unknown"}
        | statements.OUTCOMES,
        "statement": set(statements.NAMES),
        "table": set(poison.TABLES),
        "compat": {str(schema.COMPAT)},
    }


def samples(worker: Worker) -> Iterator[Sample]:
    """What the worker tells, read as Prometheus would."""
    for family in text_string_to_metric_families(worker.metrics.render().decode()):
        for sample in family.samples:
            yield sample.name, dict(sample.labels), sample.value


def sent(api: Caller, worker: Worker, path: str, *more: tuple[str, str], **fields: Any) -> Reply:
    """Sends an empty call, whatever comes of it."""
    metadata = (("authorization", f"Bearer {api._bearer}"), *more)
    (reply,) = worker.hall.answer([Call(path, metadata, **fields)])
    return reply


def ask(world: Any, **fields: Any) -> dict[str, Any]:
    """A question that is answered with yes."""
    return {
        "subject": {"organization_membership_id": world["ann@acme"]},
        "resource": {"resource_id": world["paper"]},
        "permission_slug": "doc:read",
        **fields,
    }


def watched(place: Place) -> None:
    """Opens a watch and makes a change that it tells of."""
    call = Call(
        "/authz.v1.WatchService/Watch",
        (("authorization", f"Bearer {place.api._bearer}"),),
        watch_pb2.WatchRequest(kinds=["user.*"]).SerializeToString(),
    )
    stream = place.worker.hall.stream(call, lambda: False)
    next(stream)
    place.api.UserService.CreateUser(email=f"{CANARY}@example.com", name=CANARY)
    place.api.EventService.ListEvents()  # turns the feed, which no started worker does here
    for reply in itertools.islice(stream, 10):
        if not isinstance(reply, Reply) and watch_pb2.WatchResponse.FromString(reply).events:
            break
    stream.close()


def refused(call: Any, **fields: Any) -> None:
    """Makes a call that must be refused."""
    with pytest.raises(Refused):
        call(**fields)


@pytest.fixture
def driven(stocked: Stocked, place: Place, tmp_path: Path) -> Iterator[Place]:
    """A worker after calls of every kind, with a canary wherever a caller may put text."""
    worker, api = another(stocked, tmp_path)
    here = Place(worker, api, place.world)
    decisions = api.AuthorizationService
    decisions.Check(**ask(place.world))
    decisions.Check(**ask(place.world, permission_slug="doc:edit"))
    decisions.BatchCheck(
        items=[ask(place.world), ask(place.world, resource={"resource_id": CANARY})]
    )
    refused(decisions.Check, **ask(place.world, permission_slug=CANARY))
    refused(api.with_bearer(CANARY).UserService.ListUsers)
    stranger = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, ids.new(ids.CREDENTIAL))
    refused(api.with_bearer(stranger.reveal()).UserService.ListUsers)
    refused(api.with_bearer(None).UserService.ListUsers)
    refused(api.RoleService.GetRole, role_id=CANARY)
    sent(api, worker, f"/{CANARY}/GetUser")
    sent(api, worker, f"/authz.v1.UserService/{CANARY}")
    sent(api, worker, "/authz.v1.UserService/ListUsers", ("x-request-id", CANARY), (CANARY, CANARY))
    sent(api, worker, "/authz.v1.UserService/ListUsers", deadline=boot_seconds() - 1)
    watched(here)
    yield here
    worker.stop()


@pytest.fixture
def crowded(stocked: Stocked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that had to refuse for want of rate, of threads and of watch slots."""
    worker, api = another(
        stocked,
        tmp_path_factory.mktemp("crowded"),
        AUTHZ_RATE_PER_SECOND="1",
        AUTHZ_WATCH_STREAMS_MAX="1",
        AUTHZ_QUEUE_MAX="0",
    )
    path = "/authz.v1.WatchService/Watch"
    metadata = (("authorization", f"Bearer {api._bearer}"),)
    first = worker.hall.stream(Call(path, metadata), lambda: False)
    next(first)
    next(worker.hall.stream(Call(path, metadata), lambda: False))
    first.close()
    sent(api, worker, "/authz.v1.UserService/ListUsers")
    sent(api, worker, "/authz.v1.UserService/ListUsers", arrived=boot_seconds() - 60)
    yield worker
    worker.stop()


def test_every_metric_is_on_the_page() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert set(rows) == {metric.name for metric in ALL}
    for metric in ALL:
        kind, labels, help = (cell.strip() for cell in rows[metric.name].split("|"))
        assert kind == type(metric).__name__.lower()
        assert labels == ", ".join(f"`{label}`" for label in metric.labels)
        assert help == metric.help


@pytest.mark.parametrize("metric", COUNTED, ids=lambda metric: metric.name)
def test_every_other_metric_is_told_by_a_worker(
    driven: Place, metric: Counter | Gauge | Histogram
) -> None:
    name = metric.name + {Histogram: "_count"}.get(type(metric), "")
    found = [sample for sample in samples(driven.worker) if sample[0] == name]
    assert found
    if metric.name in ALARMS:
        assert sum(value for _, _, value in found) == 0
    elif not isinstance(metric, Gauge) and metric.name != "authz_log_lines_dropped_total":
        assert sum(value for _, _, value in found) > 0


def test_lost_lines_are_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    metrics = Metrics()
    lines = Lines(writer, on_dropped=lambda count: metrics.log_lines_dropped.add(amount=count))
    lines.write("a line that nobody reads")
    lines.close()
    os.close(writer)
    assert metrics.log_lines_dropped.value() == 1


def test_refusals_without_work_are_told_apart(crowded: Worker, driven: Place) -> None:
    why = {
        labels["why"]
        for worker in (crowded, driven.worker)
        for name, labels, value in samples(worker)
        if name == "authz_rpc_refused_total" and value
    }
    assert why == label_values(crowded)["why"]


def test_decisions_are_counted_by_their_answer(driven: Place) -> None:
    count = {
        (name, *labels.values()): value
        for name, labels, value in samples(driven.worker)
        if name in ("authz_decisions_total", "authz_unknown_total")
    }
    assert count == {
        ("authz_decisions_total", "true"): 2,
        ("authz_decisions_total", "false"): 1,
        ("authz_unknown_total", "RESOURCE_NOT_FOUND"): 1,
        ("authz_unknown_total", "PERMISSION_NOT_FOUND"): 1,
    }


def test_a_matrix_counts_each_of_its_answers(place: Place) -> None:
    decisions = place.worker.metrics.decisions
    before = decisions.value("true"), decisions.value("false")
    names = ("paper", "letter", "one")
    place.api.AuthorizationService.CheckMatrix(
        subject={"organization_membership_id": place.world["ann@acme"]},
        permission_slugs=["doc:read", "doc:edit"],
        resources=[{"resource_id": place.world[name]} for name in names] + [{"resource_id": "x"}],
    )
    assert decisions.value("true") - before[0] == 2
    assert decisions.value("false") - before[1] == 4


def test_no_label_comes_from_a_caller(driven: Place, crowded: Worker) -> None:
    for worker in (driven.worker, crowded):
        allowed = label_values(worker)
        assert CANARY not in worker.metrics.render().decode()
        for name, labels, _ in samples(worker):
            for label, value in labels.items():
                assert label == "le" or value in allowed[label], (name, label, value)


def test_every_label_has_a_closed_set(worker: Worker) -> None:
    assert {label for metric in COUNTED for label in metric.labels} == set(label_values(worker))

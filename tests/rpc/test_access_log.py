"""One line and one observation per call; nothing of a caller's text gets out unescaped."""

import json
from typing import Any

import pytest

from authz_service.base.errors import NotFound
from tests.rpc import widgets
from tests.rpc.conftest import FIRST, Building, answer, bearer, build, call


def test_a_call_leaves_one_line_with_what_happened(building: Building) -> None:
    answer(
        building,
        "CreateWidget",
        metadata=(
            *bearer(FIRST),
            ("x-request-id", "r-1"),
            ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),
        ),
    )
    (line,) = building.log()
    assert line.pop("time").endswith("Z")
    assert 0 <= line.pop("seconds") < 5
    assert line == {
        "method": widgets.path("CreateWidget"),
        "code": "OK",
        "request_id": "r-1",
        "actor_kind": "SERVICE_CREDENTIAL",
        "actor_id": "first",
        "organization_id": "org_1",
        "trace_id": "a" * 32,
    }
    assert building.metrics.rpc_seconds.count(widgets.path("CreateWidget"), "OK") == 1


def test_a_refusal_leaves_its_code_and_reason(building: Building) -> None:
    def refuse(request: Any, context: Any) -> None:
        context.organization_id = "org_2"
        context.log["facts_l1"] = 3
        context.log["source"] = 'l"1'
        raise NotFound("WIDGET_NOT_FOUND", metadata={"id": "canary"})

    building.servicer.on_get = refuse
    answer(building, "GetWidget")
    (line,) = building.log()
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "WIDGET_NOT_FOUND")
    assert (line["organization_id"], line["facts_l1"], line["source"]) == ("org_2", 3, 'l"1')
    assert "canary" not in building.lines[0]


def test_a_stranger_has_no_actor(building: Building) -> None:
    answer(building, "GetWidget", metadata=())
    (line,) = building.log()
    assert line["reason"] == "CREDENTIAL_MISSING"
    assert "actor_id" not in line


@pytest.mark.parametrize("text", ['"}\n{"forged":"', "\x1b[31m", "\u2028", "\\", "é" * 1_000])
def test_a_callers_text_cannot_make_a_line_of_its_own(building: Building, text: str) -> None:
    request = widgets.created(organization_id="org_1")
    request.organization_id = text
    metadata = (*bearer(FIRST), ("x-request-id", text), ("user-agent", text))
    answer(building, "CreateWidget", request, metadata)
    building.hall.answer((call("GetWidget", metadata=metadata),))
    for line in building.lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 2_000
        assert "forged" not in json.loads(line)


def test_no_message_and_no_secret_is_written(building: Building) -> None:
    secret = building.credentials.add("write:roles")
    answer(
        building, "CreateWidget", widgets.created(name="canary", description="canary"),
        (*bearer(secret), ("idempotency-key", "canary"), ("cookie", "canary")),
    )  # fmt: skip
    text = "".join(building.lines)
    assert "canary" not in text
    assert secret.split("_")[2] not in text


def test_allowed_decisions_may_be_sampled_and_nothing_else() -> None:
    building = build(allowed_every=10)
    for _ in range(20):
        answer(building, "Check")
    assert len(building.lines) == 2
    building.servicer.on_check = lambda request, context: False
    for _ in range(5):
        answer(building, "Check")
    assert len(building.lines) == 7
    for name in ("CreateWidget", "GetWidget", "BatchCheck", "Explain"):
        answer(building, name)
    answer(building, "Check", metadata=())
    assert len(building.lines) == 12
    assert building.metrics.rpc_seconds.count(widgets.path("Check"), "OK") == 25


def test_allowed_decisions_may_be_left_out_altogether() -> None:
    building = build(allowed_every=0)
    for _ in range(20):
        answer(building, "Check")
    answer(building, "Check", metadata=())
    (line,) = building.log()
    assert line["code"] == "UNAUTHENTICATED"


def test_a_path_of_the_callers_own_is_no_label_and_no_text(building: Building) -> None:
    from authz_service.rpc.call import Call

    building.hall.answer((Call("/canary/canary", bearer(FIRST)),))
    (line,) = building.log()
    assert (line["method"], line["code"]) == ("unknown", "UNIMPLEMENTED")
    assert building.metrics.rpc_seconds.count("unknown", "UNIMPLEMENTED") == 1
    assert b"canary" not in building.metrics.render()

"""What can be refused by looking at the request alone is refused, all of it at once (T22)."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import BadRequest

from authz_service.base.errors import InvalidArgument
from authz_service.rpc import validation
from authz_service.rpc.status import status_of
from authz_service.rpc.validation import Validator, update_paths
from tests.rpc import widgets
from tests.rpc.conftest import detail

VALIDATOR = Validator(frozenset({"test.v1.BatchCheckRequest.items"}))


def part(**fields: Any) -> Any:
    return widgets.message("Part", **fields)


def refusal(request: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        VALIDATOR.check(request)
    return caught.value


def test_a_request_that_breaks_no_rule_passes() -> None:
    VALIDATOR.check(
        widgets.created(
            description="Zoë's gear, 齿轮 👩‍🔧 می‌خواهم",
            part=part(slug="a", inner=part(slug="b")),
            parts=[part(slug="c")],
            tags=["x", ""],
            colors=[1, 7],
            starts_at={"seconds": 253_402_300_799, "nanos": 999_999_999},
            lasts={"seconds": -5, "nanos": -1},
            weight=-1.5,
            metadata={"k": "v"},
            picture=b"\x00\xff",
        )
    )


def test_all_missing_fields_are_told_at_once_and_the_first_one_first() -> None:
    found = refusal(widgets.message("CreateWidgetRequest", part=part(note="x")))
    assert found.reason == "FIELD_REQUIRED"
    assert found.metadata == {"field": "organization_id"}
    violations = detail(status_of(found), BadRequest).field_violations
    assert [one.field for one in violations] == [
        "organization_id", "name", "color", "part.slug", "count",
    ]  # fmt: skip


def test_what_is_missing_comes_before_what_is_wrong() -> None:
    found = refusal(widgets.created(name="", description="\x00"))
    assert (found.reason, found.metadata["field"]) == ("FIELD_REQUIRED", "name")
    assert [field for field, _ in found.fields] == ["name", "description"]


@pytest.mark.parametrize(
    ("request_", "field", "rule"),
    [
        (widgets.created(name="a\x00b"), "name", validation.CONTROL_RULE),
        (widgets.created(description="a\nb"), "description", validation.CONTROL_RULE),
        (widgets.created(part=part(slug="a\tb")), "part.slug", validation.CONTROL_RULE),
        (
            widgets.created(part=part(slug="a", inner=part(slug="\x7f"))),
            "part.inner.slug",
            validation.CONTROL_RULE,
        ),
        (
            widgets.created(parts=[part(slug="a"), part(slug="b", note="\x1b[0m")]),
            "parts[1].note",
            validation.CONTROL_RULE,
        ),
        (widgets.created(tags=["a", "b", "\r"]), "tags[2]", validation.CONTROL_RULE),
        (widgets.created(labels={"k": "\x01"}), "labels", validation.CONTROL_RULE),
        (widgets.created(labels={"\x01": "v"}), "labels", validation.CONTROL_RULE),
        (widgets.created(metadata={"k": "\x01"}), "metadata", validation.CONTROL_RULE),
        (widgets.created(color=2), "color", validation.ENUM_RULE),
        (widgets.created(color=-1), "color", validation.ENUM_RULE),
        (widgets.created(colors=[1, 9]), "colors[1]", validation.ENUM_RULE),
        (widgets.created(colors=[0]), "colors[0]", validation.ENUM_RULE),
        (widgets.created(weight=float("nan")), "weight", validation.FINITE_RULE),
        (widgets.created(weight=float("inf")), "weight", validation.FINITE_RULE),
        (
            widgets.created(starts_at={"seconds": 253_402_300_800}),
            "starts_at",
            validation.TIMESTAMP_RULE,
        ),
        (widgets.created(starts_at={"nanos": -1}), "starts_at", validation.TIMESTAMP_RULE),
        (widgets.created(starts_at={"nanos": 10**9}), "starts_at", validation.TIMESTAMP_RULE),
        (widgets.created(lasts={"seconds": 1, "nanos": -1}), "lasts", validation.DURATION_RULE),
        (widgets.created(lasts={"seconds": 315_576_000_001}), "lasts", validation.DURATION_RULE),
    ],
)
def test_a_bad_value_is_named_by_its_path_and_rule(request_: Any, field: str, rule: str) -> None:
    found = refusal(request_)
    assert found.reason == "FIELD_INVALID"
    assert found.metadata == {"field": field, "rule": rule}
    assert found.fields == ((field, rule),)


@pytest.mark.parametrize(
    "text",
    [
        *(chr(code) for code in range(0x20)),
        "\x7f", "\x80", "\x9f", "\ufeff", "\u200e", "\u200f", "\u061c", "\u202a", "\u202e",
        "\u2066", "\u2069", "\u2028", "\u2029",
    ],
)  # fmt: skip
def test_no_text_holds_what_cannot_be_seen(text: str) -> None:
    for request in (widgets.created(description=f"a{text}b"), widgets.created(name=text)):
        assert refusal(request).reason == "FIELD_INVALID"


@pytest.mark.parametrize(
    "text", ["\u200d", "\u200c", "\u00a0", "\u3000", "\U000e0001", "é", "👩‍🔧"]
)
def test_other_text_is_the_callers(text: str) -> None:
    VALIDATOR.check(widgets.created(description=f"a{text}b"))


def test_a_refusal_does_not_repeat_the_text() -> None:
    found = refusal(widgets.created(labels={"canary\x00": "canary\x00"}, name="canary\x00"))
    assert "canary" not in repr((found.message, found.metadata, found.fields))


def test_required_zero_false_and_empty() -> None:
    assert refusal(widgets.created(color=0)).metadata["field"] == "color"
    VALIDATOR.check(widgets.created(count=0, is_new=False))
    without = widgets.created()
    without.ClearField("count")
    assert refusal(without).metadata["field"] == "count"
    assert refusal(widgets.message("BatchCheckRequest")).metadata["field"] == "items"


def test_what_callers_send_back_of_an_output_field_is_not_judged() -> None:
    VALIDATOR.check(widgets.created(widget=widgets.message("Widget", id="\x00")))
    found = refusal(widgets.created(widget=widgets.message("Widget", name="\x00")))
    assert found.metadata["field"] == "widget.name"


def test_the_items_of_a_batch_are_their_own_business() -> None:
    VALIDATOR.check(widgets.message("BatchCheckRequest", items=[part(slug="\x00"), part()]))


def test_the_real_batch_is_the_one_that_is_not_entered() -> None:
    from authz_service.pb.authz.v1 import authorization_pb2 as pb

    names = {
        field.full_name
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    assert names >= validation.NOT_ENTERED
    request = pb.BatchCheckRequest(items=[{"permission_slug": "\x00"}])
    Validator().check(request)


def test_a_message_inside_itself_is_followed_as_deep_as_it_goes() -> None:
    deepest = part(slug="\x00")
    for _ in range(90):
        deepest = part(slug="a", inner=deepest)
    assert refusal(widgets.created(part=deepest)).metadata["field"].count("inner") == 90


def test_the_number_of_problems_told_is_bounded() -> None:
    found = refusal(widgets.created(tags=["\x00"] * 100_000))
    assert len(found.fields) == validation.PROBLEMS_MAX


def paths(*given: str) -> tuple[str, ...]:
    return update_paths(FieldMask(paths=given), widgets.message("Widget").DESCRIPTOR)


def test_a_mask_names_what_may_change_each_path_once() -> None:
    assert paths("name", "made_at", "name", "part.note") == ("name", "made_at", "part.note")


def test_an_empty_mask_is_missing() -> None:
    with pytest.raises(InvalidArgument) as caught:
        paths()
    assert (caught.value.reason, caught.value.metadata) == (
        "FIELD_REQUIRED", {"field": "update_mask"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "id", "slug", "etag", "code", "", "*", "nope", "name.x", "made_at.seconds", "Name", " name",
        "part.nope", "part..note", ".name", "name.", "naïve", "__class__", "DESCRIPTOR",
    ],
)  # fmt: skip
def test_a_fixed_or_unknown_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        paths("name", path)
    assert (caught.value.reason, caught.value.metadata) == ("UPDATE_MASK_INVALID", {"path": path})


def test_a_path_that_cannot_be_shown_is_not() -> None:
    with pytest.raises(InvalidArgument) as caught:
        paths("x\n" * 500)
    assert caught.value.metadata == {"path": ""}
    with pytest.raises(InvalidArgument) as caught:
        paths("x" * 500)
    assert len(caught.value.metadata["path"]) == 128

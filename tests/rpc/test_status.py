"""Each refusal becomes its documented code and details, and fits into metadata."""

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo

from authz_service.base import errors
from authz_service.base.errors import Refusal
from authz_service.rpc import status
from authz_service.rpc.status import CODE_NAMES, CODES, status_of
from tests.rpc.conftest import detail


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidArgument, "INVALID_ARGUMENT"),
        (errors.Unauthenticated, "UNAUTHENTICATED"),
        (errors.PermissionDenied, "PERMISSION_DENIED"),
        (errors.NotFound, "NOT_FOUND"),
        (errors.AlreadyExists, "ALREADY_EXISTS"),
        (errors.FailedPrecondition, "FAILED_PRECONDITION"),
        (errors.Aborted, "ABORTED"),
        (errors.ResourceExhausted, "RESOURCE_EXHAUSTED"),
        (errors.Unavailable, "UNAVAILABLE"),
        (errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
    ],
)
def test_each_class_of_refusals_has_its_code(kind: type[Refusal], code: str) -> None:
    found = status_of(kind("SOME_REASON", "some words", metadata={"a": 1}))
    assert CODE_NAMES[found.code] == code
    assert found.message == "some words"
    info = detail(found, ErrorInfo)
    assert (info.domain, info.reason, dict(info.metadata)) == (
        "authz_service", "SOME_REASON", {"a": "1"},
    )  # fmt: skip


def test_no_class_of_refusals_is_without_a_code() -> None:
    assert set(CODES) == set(Refusal.__subclasses__())


def kinds(refusal: Refusal) -> set[str]:
    return {one.type_url.rpartition(".")[2] for one in status_of(refusal).details}


@pytest.mark.parametrize(
    ("refusal", "more"),
    [
        (errors.NotFound("ROLE_NOT_FOUND"), set()),
        (errors.field_required("name"), {"BadRequest"}),
        (errors.Aborted("CONFLICT"), {"RetryInfo"}),
        (errors.Aborted("ETAG_MISMATCH"), set()),
        (errors.Unavailable("DATABASE_UNAVAILABLE"), {"RetryInfo"}),
        (errors.Unavailable("SHUTTING_DOWN"), {"RetryInfo"}),
        (errors.ResourceExhausted("RATE_LIMITED"), {"RetryInfo"}),
        (errors.ResourceExhausted("OVERLOADED"), {"RetryInfo"}),
        (errors.ResourceExhausted("USER_LOCKED", retry_seconds=9), {"RetryInfo"}),
        (errors.limit_reached("roles", maximum=5), {"QuotaFailure"}),
        (errors.DeadlineExceeded("DEADLINE_EXCEEDED"), set()),
    ],
)
def test_details_come_with_their_reasons(refusal: Refusal, more: set[str]) -> None:
    assert kinds(refusal) == {"ErrorInfo"} | more


def test_the_time_to_repeat_is_the_refusals_own() -> None:
    refusal = errors.ResourceExhausted("RATE_LIMITED", retry_seconds=2.25)
    delay = detail(status_of(refusal), RetryInfo).retry_delay
    assert (delay.seconds, delay.nanos) == (2, 250_000_000)


def test_every_bad_field_is_named() -> None:
    refusal = errors.fields_exclusive("a", "b")
    found = detail(status_of(refusal), BadRequest).field_violations
    assert [one.field for one in found] == ["a", "b"]


def test_a_limit_names_itself() -> None:
    (violation,) = detail(
        status_of(errors.limit_reached("roles", maximum=5)), QuotaFailure
    ).violations
    assert (violation.subject, violation.description) == ("roles", "at most 5")


def test_an_error_fits_into_what_clients_accept() -> None:
    findings = [(f"organizations[{n}].roles[{n}]", "é" * 40) for n in range(1_000)]
    refusal = errors.InvalidArgument(
        "DIRECTORY_FILE_INVALID", "é" * 9_000, metadata={"a": "x" * 9_000}, fields=findings
    )
    found = status_of(refusal)
    in_base_64 = len(found.SerializeToString()) * 4 / 3
    # The message goes as a header of its own too, each byte of such text as three.
    message = len(found.message.encode()) * 3
    assert in_base_64 + message < 8 * 1024
    assert len(detail(found, BadRequest).field_violations) > 20


def test_a_bug_has_no_text() -> None:
    found = status.internal("r1")
    assert (CODE_NAMES[found.code], found.message) == ("INTERNAL", "")
    assert dict(detail(found, ErrorInfo).metadata) == {"request_id": "r1"}
    assert status.reason_of(found) == "INTERNAL"


def test_a_status_without_reason_has_none() -> None:
    assert status.reason_of(status.bare(12, "no")) == ""

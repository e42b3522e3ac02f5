"""Five keys are read, one value each; everything else means nothing (T22, T24)."""

import pytest

from authz_service.base import ids
from authz_service.base.errors import Refusal
from authz_service.rpc import metadata
from authz_service.rpc.call import Metadata
from authz_service.rpc.metadata import CallMetadata

USER = ids.new(ids.USER)


def read(*pairs: tuple[str, str | bytes], is_mutating: bool = True) -> CallMetadata:
    return metadata.checked(metadata.collected(pairs), is_mutating=is_mutating)


def refusal(*pairs: tuple[str, str | bytes], is_mutating: bool = True) -> str:
    with pytest.raises(Refusal) as caught:
        read(*pairs, is_mutating=is_mutating)
    return caught.value.reason


def test_the_five_keys_are_read_and_no_other() -> None:
    found = read(
        ("user-agent", "x"),
        ("authorization", "Bearer abc"),
        ("idempotency-key", "k 1"),
        ("authz-on-behalf-of-user-id", USER),
        ("x-organization-id", "org_1"),
        ("grpc-trace-bin", b"\x00"),
    )
    assert found == CallMetadata("abc", "k 1", USER)
    assert read() == CallMetadata()


@pytest.mark.parametrize(
    "pairs",
    [
        [("authorization", "Bearer good"), ("authorization", "Bearer bad")],
        [("authorization", "Bearer bad"), ("authorization", "Bearer good")],
        [("authorization", "Bearer good"), ("authorization", "Bearer good")],
        [("authorization", "Bearer good"), ("authorization", "Basic x")],
        [("authorization", "Bearer good, Bearer bad")],
        [("authorization", "Bearer good,Bearer bad")],
        [("authorization", "Bearer good, bad")],
        [("authorization", "Bearer good bad")],
        [("authorization", "Bearer good"), ("authorization-bin", b"Bearer good")],
        [("authorization-bin", b"Bearer good"), ("authorization", "Bearer good")],
        [("authorization-bin", b"Bearer good")],
        [("authorization", "Bearer good"), ("proxy-authorization", "Bearer bad")],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer  good")],
        [("authorization", " Bearer good")],
        [("authorization", "Bearer good ")],
        [("authorization", "good")],
        [("authorization", "Basic good")],
        [("authorization", "Bearer go\x00od")],
        [("authorization", "Bearer good\n")],
        [("authorization", "Bearer goöd")],
        [("authorization", "Bearer \ufeffgood")],
        [("authorization", "Bearer \u202egood")],
        [("authorization", b"Bearer good")],
    ],
)
def test_anything_but_one_bearer_is_refused(pairs: list[tuple[str, str | bytes]]) -> None:
    assert refusal(*pairs) == "CREDENTIAL_INVALID"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_case_of_the_scheme_is_free(scheme: str) -> None:
    assert read(("authorization", f"{scheme} abc")).bearer == "abc"


@pytest.mark.parametrize("key", ["a", " ", "~" * 255, "with space, and comma"])
def test_an_idempotency_key_is_printable_ascii(key: str) -> None:
    assert read(("idempotency-key", key)).idempotency_key == key


@pytest.mark.parametrize("key", ["", "~" * 256, "é", "\x1f", "a\n", "a\x7f", "\ufeffa", b"a"])
def test_any_other_idempotency_key_is_refused(key: str | bytes) -> None:
    assert refusal(("idempotency-key", key)) == "IDEMPOTENCY_KEY_INVALID"


def test_a_doubled_idempotency_key_is_refused() -> None:
    pairs = (("idempotency-key", "a"), ("idempotency-key", "a"))
    assert refusal(*pairs) == "IDEMPOTENCY_KEY_INVALID"


def test_on_reads_an_idempotency_key_means_nothing() -> None:
    assert read(("idempotency-key", "é"), is_mutating=False).idempotency_key == ""


@pytest.mark.parametrize(
    "value",
    ["", "user_1", ids.new(ids.ORGANIZATION), USER.lower(), USER + "\n", "\u202e" + USER],
    # Made anew in every process: workers must agree on the names of tests.
    ids=lambda _: "value",
)
def test_a_malformed_user_id_is_refused(value: str) -> None:
    assert refusal(("authz-on-behalf-of-user-id", value)) == "FIELD_INVALID"


def test_a_doubled_user_id_is_refused() -> None:
    pair = ("authz-on-behalf-of-user-id", USER)
    assert refusal(pair, pair) == "FIELD_INVALID"


@pytest.mark.parametrize("value", ["r-1", "a" * 128, '"}{', "a:b/c"])
def test_a_request_id_is_the_callers(value: str) -> None:
    assert metadata.request_id(metadata.collected((("x-request-id", value),))) == value


MALFORMED: list[Metadata] = [
    (),
    (("x-request-id", ""),),
    (("x-request-id", "a" * 129),),
    (("x-request-id", "a b"),),
    (("x-request-id", "a\n"),),
    (("x-request-id", 'a"\n{"forged":1}'),),
    (("x-request-id", "é"),),
    (("x-request-id", b"a"),),
    (("x-request-id", "a"), ("x-request-id", "a")),
]


@pytest.mark.parametrize("pairs", MALFORMED)
def test_a_malformed_request_id_is_replaced(pairs: Metadata) -> None:
    found = metadata.collected(pairs)
    first, second = metadata.request_id(found), metadata.request_id(found)
    assert first != second
    assert len(first) == 32
    assert int(first, 16) >= 0


def test_metadata_is_bounded() -> None:
    at_limit = metadata.METADATA_BYTES_MAX - 1 - 32
    assert read(("a", "x" * at_limit)) == CallMetadata()
    with pytest.raises(Refusal) as caught:
        read(("a", "x" * (at_limit + 1)))
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert caught.value.metadata == {"field": "metadata", "maximum": "8192", "actual": "8193"}


def test_many_small_pairs_are_counted_with_their_overhead() -> None:
    pairs = tuple((f"k{n:02}", "") for n in range(250))
    assert refusal(*pairs) == "REQUEST_TOO_LARGE"


def test_a_trace_id_is_read_from_a_well_formed_traceparent() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    pair = ("traceparent", f"00-{trace}-b7ad6b7169203331-01")
    assert metadata.trace_id(metadata.collected((pair,))) == trace
    assert metadata.trace_id(metadata.collected((("traceparent", trace),))) == ""
    assert metadata.trace_id(metadata.collected((pair, pair))) == ""
    assert metadata.trace_id({}) == ""

"""Header blocks read in two ways that share nothing: ours with its tables, and hpack's decoder.

Blocks are written here by hand, in every way that RFC 7541 allows for a field; whatever the way,
and whatever was read before it, they mean the same.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz_service.rpc.fronts.h2 import headers
from authz_service.rpc.fronts.h2.headers import Broken, Head, Reader, Tables, Timeout, field_of
from tests.oracle.sizes import is_nightly
from tests.rpc.fronts.h2.peer import HEAD, Pairs, block, prefixed, string

STATIC = HeaderTable.STATIC_TABLE
HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
BYTES_MAX = 16 * 1024
# One for all examples: whatever one of them leaves behind must not change what the next one reads.
TABLES = Tables()
many = settings(
    max_examples=10_000 if is_nightly() else 120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def coded(text: bytes) -> bytes:
    """A Huffman-coded string."""
    code = HUFFMAN.encode(text)
    return prefixed(0x80, 7, len(code)) + code


def agreed() -> Reader:
    """A reader whose peer has taken our settings."""
    reader = Reader(TABLES, BYTES_MAX)
    reader.agree()
    return reader


def said(read: tuple[Head, Timeout]) -> tuple[Any, ...]:
    """Everything that a block says."""
    head, timeout = read
    return (
        head.path, head.method, head.encoding, head.is_grpc, head.length, head.metadata,
        head.is_malformed, head.fits_trailers, timeout,
    )  # fmt: skip


def meaning(pairs: Pairs) -> tuple[Any, ...]:
    """What these pairs say, whatever block they came in."""
    fields = [field_of(*pair) for pair in pairs]
    timeouts = [field.value for field in fields if field.kind == headers.TIMEOUT]
    timeout = Timeout(timeouts[0], timeouts[0] is None) if timeouts else Timeout()
    return said((Head(fields), timeout))


def outcome(read: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """What a reader says, None if it refuses."""
    try:
        return read()
    except (Broken, hpack.HPACKError):
        return None


# Fields and ways to write them

TIMEOUT_HEADS = [
    first + name
    for first in (b"\x00", b"\x10", b"\x40")
    for name in (b"\x0cgrpc-timeout", coded(b"grpc-timeout"))
]
names = st.sampled_from(
    [pair[0] for pair in STATIC]
    + [
        b"grpc-timeout", b"grpc-timeout", b"te", b"grpc-encoding", b"x", b"x-bin",
        b"grpc-trace-bin",
        b"X", b"", b"connection", b":unknown", b"grpc-timeout2", b"a" * 126, b"a" * 127, b"a" * 400,
    ]
)  # fmt: skip
values = st.one_of(
    st.sampled_from(
        [pair[1] for pair in STATIC]
        + [
            b"1S", b"100m", b"99999999H", b"999999999S", b"S", b" 1S", b"1S\0", b"application/grpc",
            b"trailers", b"/a/b", b"5", b"YWJj", b"YWJj,YWI=", b"gzip", b"a" * 126, b"a" * 127,
            b"a" * 400,
        ]
    ),
    st.binary(max_size=20),
    # Bytes in which a timeout seems to begin.
    st.tuples(st.binary(max_size=4), st.sampled_from(TIMEOUT_HEADS), st.binary(max_size=6)).map(
        b"".join
    ),
)  # fmt: skip
pairs = st.lists(st.tuples(names, values), max_size=8)


def chance(draw: st.DrawFn) -> bool:
    """A coin."""
    return draw(st.booleans())


@st.composite
def ways(draw: st.DrawFn, pair: tuple[bytes, bytes], *, indexing: bool = True) -> bytes:
    """One of the ways to write a field without what came before."""
    name, value = pair
    whole: list[int] = [place for place, each in enumerate(STATIC, 1) if each == pair]
    if whole and chance(draw):
        return prefixed(0x80, 7, draw(st.sampled_from(whole)))
    first, bits = draw(st.sampled_from([(0x00, 4), (0x10, 4), (0x40, 6)][: 3 if indexing else 2]))
    named: list[int] = [place for place, each in enumerate(STATIC, 1) if each[0] == name]
    if named and chance(draw):
        start = prefixed(first, bits, draw(st.sampled_from(named)))
    else:
        start = bytes((first,)) + draw(st.sampled_from([string, coded]))(name)
    return start + draw(st.sampled_from([string, coded]))(value)


@st.composite
def blocks(draw: st.DrawFn, *, indexing: bool = True) -> tuple[Pairs, bytes]:
    """Pairs, and a block that says them."""
    found: Pairs = draw(st.one_of(pairs, pairs.map(lambda more: [*HEAD, *more])))
    return found, b"".join(draw(ways(pair, indexing=indexing)) for pair in found)


# The two readings


@many
@given(blocks(), st.integers(0, 2))
def test_a_block_means_what_was_written_whatever_was_read_before(
    written: tuple[Pairs, bytes], updates: int
) -> None:
    found, data = written
    for reader in (agreed(), agreed()):
        assert said(reader.read(b"\x20" * updates + data)) == meaning(found)


@many
@given(blocks(indexing=False))
def test_the_same_block_means_the_same_before_the_settings_are_agreed(
    written: tuple[Pairs, bytes],
) -> None:
    found, data = written
    reader = Reader(TABLES, BYTES_MAX)
    assert said(reader.read(data)) == meaning(found)
    reader.agree()
    assert said(reader.read(data)) == meaning(found)


def reference(data: bytes, size: int) -> Callable[[], tuple[Any, ...]]:
    """Reads a first block by hpack, with a table of at most this size."""
    decoder = hpack.Decoder(BYTES_MAX * 4)
    decoder.header_table_size = decoder.max_allowed_table_size = size
    return lambda: meaning([(bytes(n), bytes(v)) for n, v in decoder.decode(data, raw=True)])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A block with some bytes changed, lost, or put in."""
    data = bytearray(draw(blocks())[1])
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["flip", "set", "cut", "lose", "add", "timeout"]))
        if what == "add":
            data[at:at] = draw(st.binary(min_size=1, max_size=3))
        elif what == "timeout":
            data[at:at] = draw(st.sampled_from(TIMEOUT_HEADS)) + draw(st.binary(max_size=4))
        elif at == len(data):
            continue
        elif what == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "set":
            data[at] = draw(st.integers(0, 255))
        elif what == "lose":
            del data[at]
        else:
            del data[at:]
    return bytes(data)


@many
@given(damaged())
def test_damaged_blocks_mean_the_same_to_both_or_are_refused_by_both(data: bytes) -> None:
    expected = outcome(reference(data, 0))
    # Twice: the second time it may be remembered.
    for _ in range(2):
        assert outcome(lambda: said(agreed().read(data))) == expected
    early = outcome(reference(data, 4_096))
    assert outcome(lambda: said(Reader(TABLES, BYTES_MAX).read(data))) == early


@many
@given(st.binary(max_size=40))
def test_any_bytes_mean_the_same_to_both_or_are_refused_by_both(data: bytes) -> None:
    assert outcome(lambda: said(agreed().read(data))) == outcome(reference(data, 0))


@many
@given(
    st.lists(st.tuples(pairs, st.booleans()), min_size=1, max_size=6),
    st.integers(0, 6),
    st.sampled_from([4_096, 200, 0]),
)
def test_blocks_of_one_connection_mean_the_same_across_the_agreement(
    sent: Sequence[tuple[Pairs, bool]], agreed_at: int, size: int
) -> None:
    """A peer that fills a table, as all do, until it has taken our settings."""
    reader, encoder = Reader(TABLES, BYTES_MAX), hpack.Encoder()
    for place, (found, huffman) in enumerate(sent):
        if place == 1 and size < 4_096 and agreed_at > 1:
            encoder.header_table_size = size
        if place == agreed_at:
            encoder.header_table_size = 0
            reader.agree()
        data = encoder.encode([(name, value, False) for name, value in found], huffman=huffman)
        assert said(reader.read(data)) == meaning(found)
    if agreed_at < len(sent):
        assert reader._is_plain


@many
@given(st.lists(blocks(), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_damage_within_a_sequence_is_seen_alike(
    sent: Sequence[tuple[Pairs, bytes]], chosen: random.Random
) -> None:
    """Fields that are put into a table, and places in it that later blocks point at."""
    reader, decoder = Reader(TABLES, BYTES_MAX), hpack.Decoder(BYTES_MAX * 4)
    for _, data in sent:
        for _ in range(chosen.randrange(3)):
            at = chosen.randrange(len(data) + 1)
            data = data[:at] + bytes((chosen.choice((0xBE, 0xBF, 0xC0, 0x7E, 0x2F)),)) + data[at:]

        def other(data: bytes = data) -> tuple[Any, ...]:
            return meaning([(bytes(n), bytes(v)) for n, v in decoder.decode(data, raw=True)])

        expected = outcome(other)
        assert outcome(lambda data=data: said(reader.read(data))) == expected  # type: ignore[misc]
        if expected is None:
            # Here a connection ends.
            return


# Timeouts, cut out


def with_timeout(value: bytes, *, around: Pairs = ()) -> list[bytes]:
    """The same head with a timeout, in all ways in which a timeout is written."""
    found = []
    for first in (b"\x00", b"\x10", b"\x40"):
        for name in (string(b"grpc-timeout"), coded(b"grpc-timeout")):
            found += [
                block(HEAD) + first + name + how(value) + block(around) for how in (string, coded)
            ]
    return found


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1S", 1.0), (b"0n", 0.0), (b"1n", 1e-9), (b"10u", 10 * 1e-6), (b"250m", 0.25),
        (b"1M", 60.0), (b"2H", 7200.0), (b"99999999S", 99_999_999.0), (b"00000001S", 1.0),
        (b"999999999S", None), (b"000000001S", None), (b"", None), (b"S", None), (b"1", None),
        (b"1s", None), (b"1h", None), (b"-1S", None), (b"+1S", None), (b"1.5S", None),
        (b" 1S", 1.0), (b"1S ", 1.0), (b"\t1S", 1.0),
        (b"1 S", None), (b"1SS", None), (b"1_0S", None), (b"\xd9\xa1S", None), (b"\xb2S", None),
    ],
)  # fmt: skip
def test_a_timeout_means_the_same_wherever_it_is_read(value: bytes, seconds: float | None) -> None:
    # Once with what stands around it unknown, and again when it is remembered.
    for data in with_timeout(value, around=[(b"x", b"1")]) * 2:
        head, timeout = agreed().read(data)
        assert timeout == Timeout(seconds, seconds is None)
        assert head.metadata == (("x", "1"),)
        assert not head.is_malformed
        assert (
            Reader(TABLES, BYTES_MAX).read(block([*HEAD, (b"grpc-timeout", value)]))[1] == timeout
        )


@pytest.mark.parametrize("value", [b"1S\0", b"\n", b"1\rS", b"1S\r\n", b"\0"])
def test_a_timeout_that_is_no_value_at_all_makes_a_head_malformed(value: bytes) -> None:
    for data in with_timeout(value) * 2:
        assert agreed().read(data)[0].is_malformed


def test_new_timeouts_leave_nothing_behind_that_grows() -> None:
    tables = Tables()
    reader = Reader(tables, BYTES_MAX)
    reader.agree()
    for place in range(1_000):
        data = block(HEAD) + b"\x40" + coded(b"grpc-timeout") + coded(b"%dm" % place)
        assert reader.read(data)[1].seconds == pytest.approx(place / 1_000)
    assert (len(tables.blocks), len(tables.around)) == (0, 1)
    assert reader.read(data)[0] is reader.read(data)[0]


def test_a_timeout_within_another_value_is_none() -> None:
    for start in TIMEOUT_HEADS:
        hidden = b"abc" + start + b"\x021S"
        data = block(HEAD, (b"x-bin-text", hidden))
        for _ in range(2):
            head, timeout = agreed().read(data)
            assert timeout == Timeout()
            # No value holds a NUL.
            assert head.is_malformed is (start[0] == 0)
            if not head.is_malformed:
                assert head.metadata == (("x-bin-text", hidden.decode("latin-1")),)


def test_a_second_timeout_makes_a_head_malformed() -> None:
    for first in with_timeout(b"1S"):
        for second in with_timeout(b"2S"):
            data = first + second[len(block(HEAD)) :]
            assert agreed().read(data)[0].is_malformed


def test_a_table_update_after_a_timeout_is_refused() -> None:
    for data in with_timeout(b"1S"):
        for later in (b"\x20", b"\x20" + block([(b"x", b"1")])):
            for _ in range(2):
                with pytest.raises(Broken):
                    agreed().read(data + later)


# What is remembered


def test_what_is_large_is_not_remembered() -> None:
    most = headers._REMEMBERED_BYTES_MAX
    for size, is_kept in ((most, True), (most + 1, False)):
        tables = Tables()
        reader = Reader(tables, BYTES_MAX)
        reader.agree()
        data = block(HEAD)
        data += block([(b"x", b"a" * (size - len(data) - 6))])
        assert len(data) == size
        reader.read(data)
        assert len(tables.blocks) == is_kept
        tables = Tables()
        field = b"\0\1x" + string(b"a" * (size - 6))
        assert len(field) == size
        headers.plain(field, tables, is_empty=True)
        assert len(tables.fields) == is_kept


def test_what_stands_for_many_pairs_is_not_remembered() -> None:
    """Half a kilobyte may mean hundreds of pairs, thirty kilobytes, and thousands would stay."""
    most = headers._REMEMBERED_PAIRS_MAX
    for count, is_kept in ((most, True), (most + 1, False)):
        for pairs_ in ([(b"a-bin", b"," * (count - 1))], [(b"vary", b"")] * count):
            for timeout in ([], [(b"grpc-timeout", b"1S")]):
                tables = Tables()
                reader = Reader(tables, BYTES_MAX)
                reader.agree()
                data = b"".join(
                    b"\xbb" if name == b"vary" else block([(name, value)])
                    for name, value in [*HEAD, *timeout, *pairs_]
                )
                assert len(reader.read(data)[0].metadata) == count
                assert len(tables.around if timeout else tables.blocks) == is_kept
                if pairs_[0][0] == b"a-bin":
                    assert (tables.fields.get(block(pairs_)) is not None) is is_kept


def test_tables_are_bounded() -> None:
    tables = Tables()
    reader = Reader(tables, BYTES_MAX)
    reader.agree()
    for place in range(3 * headers._REMEMBERED_MAX):
        reader.read(block(HEAD, (b"x", b"%d" % place)))
        reader.read(block(HEAD, (b"y", b"%d" % place)) + block([(b"grpc-timeout", b"1S")]))
    for table in (tables.blocks, tables.fields, tables.around):
        assert headers._REMEMBERED_MAX <= len(table) <= 2 * headers._REMEMBERED_MAX


@pytest.mark.parametrize(
    "data",
    [
        # No field has number 0, and after the static ones there are none.
        b"\x80", b"\xbe", b"\xff\0", prefixed(0x40, 6, 62) + b"\1a", prefixed(0, 4, 62) + b"\1a",
        # Cut off, at every place.
        *[(prefixed(0, 4, 31) + string(b"a" * 200))[:size] for size in (1, 2, 3, 4, 5, 203)],
        b"\0", b"\0\1", b"\0\1a", b"\0\1a\1", b"\0\x7f", b"\0\1a\x7f", b"\x40\1a\x7f\x80",
        # Numbers that do not end, or are too long.
        b"\0\x7f" + b"\x80" * 5 + b"\0", b"\0\x7f" + b"\xff" * 40, b"\x0f" + b"\x80" * 5 + b"\0",
        # Sizes of a table after a field, and above what was agreed.
        b"\x82\x20", b"\x21", b"\x3f\0",
    ],
)  # fmt: skip
def test_what_is_no_block_is_refused_by_both(data: bytes) -> None:
    for _ in range(2):
        assert outcome(lambda: said(agreed().read(data))) is None
    assert outcome(reference(data, 0)) is None


def test_the_first_and_the_last_static_field_are_read() -> None:
    assert said(agreed().read(b"\x81\xbd")) == meaning([STATIC[0], STATIC[60]])
    last = prefixed(0, 4, 61) + string(b"v")
    assert said(agreed().read(last)) == meaning([(b"www-authenticate", b"v")])


def test_a_peer_that_used_its_table_must_say_that_it_no_longer_does() -> None:
    reader, encoder = Reader(TABLES, BYTES_MAX), hpack.Encoder()
    reader.read(encoder.encode(list(HEAD)))
    reader.agree()
    with pytest.raises(Broken):
        reader.read(encoder.encode(list(HEAD)))


def test_a_peer_that_has_agreed_keeps_no_table_of_any_size() -> None:
    for update, is_fine in ((b"\x20", True), (b"\x21", False), (b"\x3f\xe1\x1f", False)):
        reader, encoder = Reader(TABLES, BYTES_MAX), hpack.Encoder()
        reader.read(encoder.encode(list(HEAD)))
        reader.agree()
        if is_fine:
            assert said(reader.read(update + block())) == meaning(HEAD)
            continue
        with pytest.raises(Broken):
            reader.read(update + block())


def test_a_peer_may_use_its_table_again_until_it_has_agreed() -> None:
    reader, encoder = Reader(TABLES, BYTES_MAX), hpack.Encoder()
    for size in (4_096, 0, 4_096, 4_096):
        encoder.header_table_size = size
        assert said(reader.read(encoder.encode(list(HEAD)))) == meaning(HEAD)


def test_a_block_that_means_far_too_much_is_refused_before_the_agreement() -> None:
    encoder = hpack.Encoder()
    data = encoder.encode([(b"x", b"a" * 3_000)])
    bomb = data + b"\xbe" * 100
    with pytest.raises(Broken):
        Reader(TABLES, BYTES_MAX).read(bomb)


# What fields mean


def head_of(*more: tuple[bytes, bytes], without: bytes = b"") -> Head:
    """The head of a call with more fields."""
    return agreed().read(block([pair for pair in HEAD if pair[0] != without], *more))[0]


def test_a_call_is_what_it_says() -> None:
    head = head_of(
        (b"x-request-id", b"r-1"), (b"grpc-encoding", b"gzip"), (b"content-length", b"7")
    )
    assert (head.path, head.method) == ("/test.v1.WidgetService/Check", "POST")
    assert (head.encoding, head.length, head.is_grpc) == ("gzip", 7, True)
    assert head.metadata == (("x-request-id", "r-1"),)
    assert not head.is_malformed
    assert not head.fits_trailers


def test_metadata_keeps_its_order_and_what_is_doubled() -> None:
    given_ = [(b"b", b"1"), (b"a", b"2"), (b"b", b"3"), (b"b", b"1")]
    assert head_of(*given_).metadata == (("b", "1"), ("a", "2"), ("b", "3"), ("b", "1"))


@pytest.mark.parametrize(
    "name", [b"host", b"te", b"grpc-timeout", b"grpc-accept-encoding", b"grpc-message-type"]
)
def test_what_http_and_grpc_keep_for_themselves_is_no_metadata(name: bytes) -> None:
    head = head_of((name, b"trailers"), without=b"te")
    assert head.metadata == ()
    assert not head.is_malformed


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"YWJj", [b"abc"]), (b"YWI=", [b"ab"]), (b"YWI", [b"ab"]), (b"YQ==", [b"a"]),
        (b"YQ", [b"a"]),
        (b"", [b""]), (b"YQ,YWI=", [b"a", b"ab"]), (b"YQ, YWI", [b"a", b"ab"]),
        (b"YQ,", [b"a", b""]),
        (b"+/+/", [b"\xfb\xff\xbf"]),
    ],
)  # fmt: skip
def test_binary_metadata_is_decoded(value: bytes, found: list[bytes]) -> None:
    head = head_of((b"x-bin", value))
    assert head.metadata == tuple(("x-bin", each) for each in found)
    assert not head.is_malformed


@pytest.mark.parametrize(
    "value",
    [b"Y", b"YQ=x", b"a b c", b"-_-_", b"\xff\xff", b"YQ===", b"=", b"YQ,!", b"YQ,Y,YWI="],
)
def test_binary_metadata_that_is_none_makes_a_head_malformed(value: bytes) -> None:
    head = head_of((b"x-bin", value))
    assert (head.metadata, head.is_malformed, head.fits_trailers) == ((), True, False)


@pytest.mark.parametrize("value", [b" a b", b"a b ", b"\ta b\t", b" \t a b \t "])
def test_blanks_around_a_value_are_stripped_as_grpc_lets_us(value: bytes) -> None:
    head = head_of((b"x", value), (b"grpc-encoding", b" gzip"), (b"content-length", b"7 "))
    assert (head.metadata, head.encoding, head.length) == ((("x", "a b"),), "gzip", 7)
    assert not head.is_malformed


@pytest.mark.parametrize(
    ("value", "is_grpc"),
    [
        (b"application/grpc", True), (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True), (b"application/grpc+proto ; a=b", True),
        (b"application/grpc+json", False), (b"application/grpc-web", False),
        (b"application/grpc+protobuf", False), (b"application/grpcx", False), (b"text/html", False),
        (b"", False), (b"Application/grpc", False), (b"application/grpc application/grpc", False),
    ],
)  # fmt: skip
def test_content_types(value: bytes, is_grpc: bool) -> None:
    head = head_of((b"content-type", value), without=b"content-type")
    assert (head.is_grpc, head.is_malformed) == (is_grpc, False)


def test_without_a_content_type_it_is_none_of_ours() -> None:
    assert head_of(without=b"content-type").is_grpc is False


@pytest.mark.parametrize("name", [b"content-type", b"grpc-timeout", b"grpc-encoding"])
def test_what_grpc_reads_may_come_once(name: bytes) -> None:
    assert head_of((name, b"1S"), (name, b"1S"), without=name).is_malformed
    assert not head_of((name, b"1S"), without=name).is_malformed


@pytest.mark.parametrize(
    ("value", "length"),
    [(b"0", 0), (b"00", 0), (b"7", 7), (b"9" * 18, int("9" * 18)), (b"9" * 19, None), (b"", None),
     (b"+1", None), (b"1,1", None), (b"0x1", None), (b"1 1", None), (b"\xb2", None)],
)  # fmt: skip
def test_lengths(value: bytes, length: int | None) -> None:
    head = head_of((b"content-length", value))
    assert (head.length, head.is_malformed) == (length, length is None)
    assert head_of().length == -1


def test_a_pseudo_header_after_an_ordinary_one_is_malformed() -> None:
    for late in (b"x", b"host", b"content-type", b"grpc-timeout", b"x-bin"):
        assert agreed().read(block([(late, b"1S"), *HEAD]))[0].is_malformed


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        ([(b"a", b"b")], True), ([], True), ([(b"te", b"trailers"), (b"grpc-status", b"0")], True),
        ([(b":path", b"/a")], False), ([(b":status", b"200")], False), ([(b"A", b"b")], False),
        ([(b"a", b"b\n")], False), ([(b"upgrade", b"b")], False),
        ([(b"content-length", b"x")], False),
    ],
)  # fmt: skip
def test_trailers_have_fields_and_no_pseudo_headers(found: Pairs, fits: bool) -> None:
    assert agreed().read(block(found))[0].fits_trailers is fits


@pytest.mark.parametrize("name", [b"a", b"0", b"a-b_c.d", b"!#$%&'*+-.^_`|~", b"a" * 1_000])
def test_names_of_fields(name: bytes) -> None:
    assert field_of(name, b"").kind == headers.METADATA


@pytest.mark.parametrize(
    "name", [bytes((code,)) for code in (*range(0x21), *b'"(),/:;<=>?@[\\]{}', *range(0x7F, 0x100))]
)
def test_what_is_no_name(name: bytes) -> None:
    for each in (name, b"a" + name, name + b"a"):
        assert field_of(each, b"").kind == headers.MALFORMED


def test_names_in_upper_case_are_malformed() -> None:
    for code in range(0x41, 0x5B):
        assert field_of(b"a" + bytes((code,)), b"").kind == headers.MALFORMED


@pytest.mark.parametrize("code", [code for code in range(256) if code not in b"\0\r\n\t "])
def test_any_other_byte_may_stand_in_a_value(code: int) -> None:
    value = bytes((code,))
    assert field_of(b"a", value) == (headers.METADATA, (("a", value.decode("latin-1")),), 34)
    assert field_of(b"a", b"a \t" + value).kind == headers.METADATA
    # Its size is that of what came.
    assert field_of(b"a", b" " + value) == (headers.METADATA, (("a", value.decode("latin-1")),), 35)


def test_sizes_are_those_of_the_rfc() -> None:
    assert field_of(b"abc", b"defg").size == 32 + 7
    assert field_of(b"X", b"y").size == 34
    head = head_of()
    assert head.size == sum(len(name) + len(value) + 32 for name, value in HEAD)


# What we write


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 16_511, 100_000])
def test_fields_that_we_write_are_read(size: int) -> None:
    for pair in ((b"n" * max(size, 1), b"v"), (b"n", b"v" * size)):
        decoder = hpack.Decoder(1_000_000)
        assert decoder.decode(headers.literal(*pair), raw=True) == [pair]
        assert decoder.header_table.maxsize == 4_096
        assert len(decoder.header_table.dynamic_entries) == 0

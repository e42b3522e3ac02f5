"""Limits say why they are what they are, fit each other, and each has a test at it and above it."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from authz_service.rpc.fronts.h2.connection import PREFIX_BYTES
from authz_service.rpc.fronts.h2.limits import Limits

LIMITS = Limits()
NAMES = [field.name for field in fields(Limits)]


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_says_why(name: str) -> None:
    assert re.search(rf"^        {name}: [A-Z]", Limits.__doc__ or "", re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_every_limit_is_tested(name: str) -> None:
    """By name, in a test that sets it or that goes by its value."""
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    assert any(re.search(rf"\b{name}\b", text) for text in texts) or name in BY_VALUE


# Limits that tests meet at their value: see test_connection.
BY_VALUE = {"frame_bytes_max", "keepalive_seconds", "keepalive_timeout_seconds", "tiny_bytes",
            "age_grace_seconds"}  # fmt: skip


def test_limits_fit_each_other() -> None:
    # RFC 9113 sections 4.2 and 6.9.
    assert 2**14 <= LIMITS.frame_bytes_max < 2**24
    assert 65_535 < LIMITS.connection_window_bytes < 2**31
    assert LIMITS.stream_window_bytes <= LIMITS.connection_window_bytes
    # One whole message fits, or nobody could send it.
    assert LIMITS.message_bytes_max + PREFIX_BYTES <= LIMITS.unfinished_bytes_max
    assert LIMITS.unfinished_bytes_max <= LIMITS.unfinished_bytes_max_in_all
    # The first part of a block is a frame like any other.
    assert LIMITS.frame_bytes_max <= LIMITS.header_block_bytes_max
    # A head that is just refused fits into a block.
    assert LIMITS.header_bytes_max < LIMITS.header_block_bytes_max
    # All streams of a connection may end by time at once.
    assert LIMITS.streams_max < LIMITS.budget
    # A deadline of a millisecond: a thousand resets in a second.
    assert LIMITS.budget_per_second >= 1_000

"""Frames as we write them, read by another implementation."""

import hyperframe.frame as theirs
import pytest

from authz_service.rpc.fronts.h2 import frames


def read(data: bytes) -> theirs.Frame:
    """The one frame in these bytes, as hyperframe reads it."""
    found, length = theirs.Frame.parse_frame_header(memoryview(data[:9]))
    assert len(data) == 9 + length
    found.parse_body(memoryview(data[9:]))
    return found


def test_numbers_are_those_of_the_rfc() -> None:
    for number, name in enumerate(
        ("DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY",
         "WINDOW_UPDATE", "CONTINUATION")
    ):  # fmt: skip
        assert getattr(frames, name) == number
    from h2.errors import ErrorCodes
    from h2.settings import SettingCodes

    for code in ErrorCodes:
        if hasattr(frames, code.name):
            assert getattr(frames, code.name) == code
    for setting in SettingCodes:
        if hasattr(frames, setting.name):
            assert getattr(frames, setting.name) == setting


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 2**24 - 1])
def test_lengths_fill_three_bytes(size: int) -> None:
    written = frames.frame(frames.DATA, 0, 5, b"x" * size)
    found = read(written)
    assert isinstance(found, theirs.DataFrame)
    assert (len(found.data), found.stream_id) == (size, 5)
    assert frames.read_head(written) == (size >> 16, size & 0xFFFF, 0, 0, 5)


def test_settings_keep_their_pairs() -> None:
    found = read(frames.settings({1: 0, 4: 2**31 - 1, 0xFFFF: 2**32 - 1}))
    assert isinstance(found, theirs.SettingsFrame)
    assert found.settings == {1: 0, 4: 2**31 - 1, 0xFFFF: 2**32 - 1}
    assert "ACK" not in found.flags
    assert "ACK" in read(frames.SETTINGS_ACK).flags
    packed = frames.settings({3: 7})[9:]
    assert list(frames.read_setting(packed)) == [(3, 7)]


def test_resets_windows_and_farewells_keep_their_numbers() -> None:
    reset = read(frames.reset(2**31 - 1, frames.ENHANCE_YOUR_CALM))
    assert isinstance(reset, theirs.RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (2**31 - 1, 11)
    window = read(frames.window_update(0, frames.WINDOW_MAX))
    assert isinstance(window, theirs.WindowUpdateFrame)
    assert (window.stream_id, window.window_increment) == (0, 2**31 - 1)
    farewell = read(frames.goaway(3, frames.PROTOCOL_ERROR, b"why"))
    assert isinstance(farewell, theirs.GoAwayFrame)
    told = (farewell.last_stream_id, farewell.error_code, farewell.additional_data)
    assert told == (3, 1, b"why")

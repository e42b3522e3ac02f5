"""Plaintext stays on this machine unless told otherwise; certificates follow their files."""

import os
from pathlib import Path

import pytest

from authz_service.rpc.fronts.listeners import Tls, Unlistenable, _Files, check_listener


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051", "127.1.2.3:1", "[::1]:50051", "localhost:0", "unix:/run/authz.sock",
        "unix:authz.sock",
    ],
)  # fmt: skip
def test_on_this_machine_plaintext_is_fine(address: str) -> None:
    check_listener(address, tls=False, insecure=False)


BEYOND = [
    "0.0.0.0:50051", "[::]:50051", "10.0.0.1:50051", "authz.example:50051", "128.0.0.1:1",
    "[::ffff:10.0.0.1]:1", "localhost.example:1", "127.0.0.1.example:1", "[fe80::1]:1",
]  # fmt: skip


@pytest.mark.parametrize("address", BEYOND)
def test_beyond_it_needs_tls_or_a_clear_word(address: str) -> None:
    with pytest.raises(Unlistenable, match="AUTHZ_INSECURE"):
        check_listener(address, tls=False, insecure=False)
    check_listener(address, tls=True, insecure=False)
    check_listener(address, tls=False, insecure=True)


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "127.0.0.1:", ":50051", "localhost:65536", "localhost:-1", "a:b", "a:٣"],
)
def test_what_is_no_address_is_refused_in_any_case(address: str) -> None:
    with pytest.raises(Unlistenable, match="is no address"):
        check_listener(address, tls=True, insecure=True)


def test_files_are_read_again_only_when_they_changed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.pem", "a.key")]
    for path in paths:
        path.write_text("old")
    files = _Files(Tls(*map(str, paths)))
    assert files.changed() is None
    # Also a rotation within the clock's grain, by rename, is seen.
    new = tmp_path / "new"
    new.write_text("new")
    os.replace(new, paths[0])
    assert files.changed() is not None
    assert files.changed() is None


def test_a_file_that_is_gone_leaves_the_last_good_ones(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.pem", "a.key")]
    for path in paths:
        path.write_text("old")
    files = _Files(Tls(*map(str, paths)))
    paths[1].unlink()
    assert files.changed() is None
    paths[1].write_text("new")
    assert files.changed() is not None

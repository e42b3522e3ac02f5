"""Lines are written whole, never hold anybody up, and never show a secret."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from authz_service.base import ids, secrets
from authz_service.base.secrets import Secret
from authz_service.telemetry import logs
from authz_service.telemetry.logs import Lines, redacted


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def read_all(reading: int, writing: int) -> list[str]:
    os.close(writing)
    with os.fdopen(os.dup(reading)) as file:
        return file.read().splitlines()


def test_lines_arrive_whole_and_in_order(pipe: tuple[int, int]) -> None:
    lines = Lines(pipe[1])
    for number in range(2_500):
        lines.write(f"line {number}")
    lines.close()
    assert read_all(*pipe) == [f"line {number}" for number in range(2_500)]


def test_a_line_may_be_made_later_and_one_that_cannot_be_made_ends_nothing(
    pipe: tuple[int, int],
) -> None:
    lines = Lines(pipe[1])
    lines.write(lambda: "late")
    lines.write(lambda: str(1 / 0))
    lines.write("last")
    lines.close()
    first, second, third = read_all(*pipe)
    assert (first, third) == ("late", "last")
    assert json.loads(second)["error"] == "ZeroDivisionError"


def test_lines_of_many_threads_are_not_mixed(pipe: tuple[int, int]) -> None:
    lines = Lines(pipe[1])
    threads = [
        threading.Thread(target=lambda n=n: [lines.write(str(n) * 50) for _ in range(100)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines.close()
    written = read_all(*pipe)
    assert sorted(written) == sorted(str(n) * 50 for n in range(4) for _ in range(100))


def test_a_reader_that_does_not_read_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    dropped: list[int] = []
    lines = Lines(pipe[1], lines_max=10, on_dropped=dropped.append)
    # More than a pipe holds: the writing thread is stuck, the queue fills.
    for _ in range(5_000):
        lines.write("x" * 1_000)
    assert sum(dropped) > 4_000
    reader = threading.Thread(
        target=lambda: [None for _ in iter(lambda: os.read(pipe[0], 65536), b"")]
    )
    reader.start()
    lines.close()
    os.close(pipe[1])
    reader.join()


def test_what_waits_together_is_counted_by_its_lines(pipe: tuple[int, int]) -> None:
    dropped: list[int] = []
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe[1], b"x" * 65_536)
    os.set_blocking(pipe[1], True)
    lines = Lines(pipe[1], lines_max=10, on_dropped=dropped.append)
    # The writing thread takes the first and is stuck with it.
    lines.write("first")
    deadline = time.monotonic() + 20
    while lines._lines:
        assert time.monotonic() < deadline
    lines.write("a\nb\nc\nd\ne\nf\ng\nh\ni", 9)
    lines.write("two\nmore", 2)
    lines.write("the last")
    assert dropped == [2]
    lines.write("one more")
    assert dropped == [2, 1]
    reader = threading.Thread(
        target=lambda: [None for _ in iter(lambda: os.read(pipe[0], 65536), b"")]
    )
    reader.start()
    lines.close()
    os.close(pipe[1])
    reader.join()


def test_a_full_disk_costs_lines_and_is_counted() -> None:
    dropped: list[int] = []
    with open("/dev/full", "wb", buffering=0) as full:
        lines = Lines(full.fileno(), on_dropped=dropped.append)
        lines.write("a")
        lines.write("b")
        lines.close()
    assert sum(dropped) == 2


def test_text_that_is_no_unicode_is_escaped(pipe: tuple[int, int]) -> None:
    lines = Lines(pipe[1])
    lines.write("a\ud800")
    lines.close()
    assert read_all(*pipe) == ["a\\ud800"]


def secret() -> str:
    id = ids.new(ids.CREDENTIAL)
    return secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, id).reveal()


CANARY = secret()
RANDOM = CANARY.split("_")[2]


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        f"bad token {CANARY}.",
        f"Authorization: Bearer {RANDOM}",
        f"bearer   {RANDOM}",
        f"postgresql://authz:{RANDOM}@db/authz",
        f"postgresql://authz:{RANDOM}:/@{RANDOM}@db/authz",
        f"rediss://:{RANDOM}@redis:6379",
        f"eyJhbGciOiJF.{RANDOM}.{RANDOM}",
        CANARY.replace("azc_", "sk_"),
    ],
    # Made anew in every process: workers must agree on the names of tests.
    ids=lambda _: "text",
)
def test_what_looks_like_a_secret_is_not_shown(text: str) -> None:
    assert RANDOM not in redacted(text)
    assert "***" in redacted(text)


def test_what_is_no_secret_stays() -> None:
    text = "GET http://127.0.0.1:80/metrics: role_01 not found, 5 of 7"
    assert redacted(text) == text


def logged(write: Any) -> dict[str, Any]:
    reading, writing = os.pipe()
    lines = Lines(writing)
    write(logs.logger(lines))
    lines.close()
    (line,) = read_all(reading, writing)
    os.close(reading)
    shown: dict[str, Any] = json.loads(line)
    assert RANDOM not in line
    return shown


def test_secrets_are_replaced_by_type_by_name_and_by_look() -> None:
    shown = logged(
        lambda logger: logger.info(
            "started",
            root_keys=RANDOM,
            password=RANDOM,
            url=f"redis://:{RANDOM}@redis",
            typed=Secret(RANDOM),
            nested={"inner": [Secret(RANDOM), {"a_token": RANDOM}, CANARY], "port": 5},
        )
    )
    assert shown["event"] == "started"
    assert shown["level"] == "info"
    assert shown["password"] == shown["typed"] == "***"
    assert shown["nested"]["port"] == 5
    assert shown["time"].endswith("Z")


def test_secrets_in_tracebacks_are_replaced() -> None:
    def write(logger: logs.Logger) -> None:
        try:
            raise ValueError(f"cannot parse {CANARY}")
        except ValueError as error:
            logger.error("failed", exc_info=error)

    shown = logged(write)
    assert "ValueError" in shown["exception"]
    assert "test_logs.py" in shown["exception"]


def test_below_the_level_nothing_is_written() -> None:
    shown = logged(lambda logger: (logger.debug("quiet"), logger.info("loud")))
    assert shown["event"] == "loud"

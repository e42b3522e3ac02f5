"""The generated pages in docs/ are what the code says today, and leave nothing out."""

import re
import subprocess
import sys
from pathlib import Path

from authz_service.pb.authz.v1 import error_reason_pb2
from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.server import Worker
from tests.callers import method

ROOT = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    """A generated page."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def sections(text: str) -> dict[str, list[list[str]]]:
    """The cells of each table's rows, by the heading above it."""
    found = {}
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        rows = re.findall(r"^\| (.*) \|$", body, re.MULTILINE)
        found[heading] = [row.replace("`", "").split(" | ") for row in rows[1:]]
    return found


def test_a_new_generation_equals_what_is_committed() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_reason_is_on_its_page() -> None:
    contract = {
        name.removeprefix("ERROR_REASON_")
        for name, value in error_reason_pb2.ErrorReason.items()
        if value
    }
    told = [row[0] for rows in sections(page("errors.md")).values() for row in rows]
    assert sorted(told) == sorted(contract)


def test_every_method_is_on_its_page_with_its_scope(worker: Worker) -> None:
    told = {
        (service, row[0], row[1])
        for service, rows in sections(page("scopes.md")).items()
        for row in rows
    }
    for each in worker.hall.methods.values():
        service = each.service.rpartition(".")[2]
        options = method(service, each.name).GetOptions()
        assert (service, each.name, options.Extensions[required_scope]) in told

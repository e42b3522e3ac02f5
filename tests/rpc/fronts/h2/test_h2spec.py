"""The decision front under h2spec, the conformance tests of HTTP/2 that are not ours; needs Go."""

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from authz_service.rpc.fronts.h2 import Front
from authz_service.rpc.fronts.listeners import Listener
from tests.rpc import widgets
from tests.rpc.conftest import build

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.timeout(600)]

H2SPEC = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
TABLE = "it uses a table, though it has agreed to have none: COMPRESSION_ERROR"
EMPTY = "it waits for DATA, and the answer to a GET is one block of headers"
# What we answer otherwise, and why that is right.
OTHERWISE = {
    "Sends multiple CONTINUATION frames preceded by a HEADERS frame": TABLE,
    "Sends a dynamic table size update": TABLE,
    "Sends multiple dynamic table size update": TABLE,
    "Sends a WINDOW_UPDATE frame on half-closed (remote) stream": EMPTY,
    "Sends a PRIORITY frame on half-closed (remote) stream": EMPTY,
    "Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded": (
        "each is answered as soon as it is there, so that there are never too many"
    ),
}


def test_h2spec_finds_nothing_but_what_we_do_on_purpose(tmp_path: Path) -> None:
    front = Front(build().hall, [Listener("127.0.0.1:0")])
    front.start()
    host, _, port = front.addresses[0].rpartition(":")
    report = tmp_path / "report.xml"
    try:
        told = subprocess.run(
            ["go", "run", H2SPEC, "--strict", "-h", host, "-p", port, "-o", "3",
             "-P", widgets.path("Check"), "-j", str(report)],
            capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
    finally:
        front.stop(0.2)
    assert report.exists(), told.stderr
    cases = list(ET.parse(report).iter("testcase"))
    failed = {
        case.get("classname", "")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert len(cases) >= 145
    assert failed == set(OTHERWISE)

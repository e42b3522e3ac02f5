"""The command ``authz``, as somebody at a terminal uses it: processes, a socket, real databases."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "acme.yaml"
SERVING = "Serving until interrupted"

pytestmark = pytest.mark.server


def environment(**more: str) -> dict[str, str]:
    """What a shell hands on, without settings of ours but the given ones."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("AUTHZ_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def authz(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "authz_service", *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def free_port() -> int:
    """A port nobody listens on; another program could take it before we do."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Demo(NamedTuple):
    """A demo that serves, what it has said, and how to call it."""

    process: subprocess.Popen[str]
    said: str
    settings: dict[str, str]


@pytest.fixture(params=[(), ("--stack",)], ids=["sqlite", "stack"])
def demo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Demo]:
    """``make run`` and ``make run-stack``, in a folder of their own."""
    address = f"127.0.0.1:{free_port()}"
    decisions = f"127.0.0.1:{free_port()}"
    settings = {"AUTHZ_LISTEN": address, "AUTHZ_METRICS_LISTEN": f"127.0.0.1:{free_port()}"}
    told = {"AUTHZ_ADDRESS": address}
    if request.param:
        settings["AUTHZ_DECISIONS_LISTEN"] = told["AUTHZ_DECISIONS_ADDRESS"] = decisions
    with subprocess.Popen(
        [sys.executable, "-m", "authz_service", "demo", *request.param],
        env=environment(**settings, PYTHONUNBUFFERED="1"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if SERVING in line:
                    break
            else:
                pytest.fail(said)
            (exported,) = [line for line in said.splitlines() if "export AUTHZ_CREDENTIAL=" in line]
            credential = exported.partition("=")[2]
            yield Demo(process, said, {**told, "AUTHZ_CREDENTIAL": credential})
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_the_demo_answers_what_it_shows_and_what_it_is_asked(demo: Demo) -> None:
    for expected in ("allowed", "denied: NO_GRANT", "document-reader on document/Specification"):
        assert expected in demo.said
    if "Valkey" in demo.said:
        for expected in ("8 of 8 say allowed", "0 of 8 say allowed", 'total{from="view"}'):
            assert expected in demo.said
    asked: dict[tuple[str, ...], tuple[int, str]] = {
        ("check", "cat@acme", "project:edit", "project/web"): (0, "allowed"),
        ("check", "dan@acme", "document:read", "document/spec"): (1, "denied"),
        ("explain", "gus@acme", "document:edit", "document/spec"): (0, "MEMBERSHIP_INACTIVE"),
        ("verify", str(EXAMPLE)): (0, "0 failed"),
    }
    for arguments, (code, text) in asked.items():
        done = authz(*arguments, **demo.settings)
        assert (done.returncode, text in done.stdout) == (code, True), (arguments, done)
    strange = {**demo.settings, "AUTHZ_CREDENTIAL": authz("keys", "credential").stdout.strip()}
    refused = authz("check", "cat@acme", "project:edit", "project/web", **strange)
    assert refused.returncode == 2
    assert "CREDENTIAL_INVALID" in refused.stderr


def test_an_export_proves_itself(demo: Demo, tmp_path: Path) -> None:
    exported = tmp_path / "export.yaml"
    done = authz("export", str(exported), **demo.settings)
    assert done.returncode == 0, done
    again = authz("import", str(exported), **demo.settings)
    assert again.returncode == 0, again
    assert again.stdout.splitlines()
    assert all(" 0 created, 0 updated, " in line for line in again.stdout.splitlines())


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_assertions_that_do_not_hold_are_told_and_end_with_1(tmp_path: Path, database: str) -> None:
    wrong = tmp_path / "wrong.yaml"
    text = EXAMPLE.read_text()
    assert "external_id: spec}, allowed: false}" in text
    wrong.write_text(
        text.replace("external_id: spec}, allowed: false}", "external_id: spec}, allowed: true}", 1)
    )
    done = authz("verify", "--ephemeral", "--database", database, str(wrong))
    assert done.returncode == 1, done
    assert "FAILED assertions[" in done.stdout
    assert "1 failed" in done.stdout


def test_a_broken_file_is_refused_with_a_path_and_a_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(EXAMPLE.read_text() + "\nnonsense: true\n")
    done = authz("verify", "--ephemeral", str(broken))
    assert done.returncode == 2, done
    assert "nonsense" in done.stderr


def test_keys_are_made_and_accepted(tmp_path: Path) -> None:
    root, credential = authz("keys", "root"), authz("keys", "credential")
    settings: dict[str, Any] = {
        "AUTHZ_DATABASE_URL": f"sqlite:///{tmp_path / 'authz.db'}",
        "AUTHZ_ROOT_KEYS": root.stdout.strip(),
        "AUTHZ_FIRST_CREDENTIAL": credential.stdout.strip(),
    }
    shown = authz("config", **settings)
    assert shown.returncode == 0, shown
    for secret in (settings["AUTHZ_ROOT_KEYS"], settings["AUTHZ_FIRST_CREDENTIAL"]):
        assert secret
        assert secret not in shown.stdout + shown.stderr
    migrated = authz("migrate", **settings)
    assert migrated.returncode == 0, migrated
    assert (tmp_path / "authz.db").exists()

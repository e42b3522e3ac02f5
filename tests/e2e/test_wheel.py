"""What is installed without this checkout: the wheel has everything, and serves from anywhere."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.e2e.serving import ROOT, SECONDS, environment, serving

pytestmark = [pytest.mark.server, pytest.mark.alone]

PACKAGE = "authz_service"
EXAMPLE = ROOT / "examples" / "acme.yaml"


def _pip(*arguments: str | Path) -> None:
    """Runs pip, which may ask nobody for anything."""
    offline = ("--no-index", "--no-deps", "--disable-pip-version-check", "--quiet")
    done = subprocess.run(
        [sys.executable, "-m", "pip", arguments[0], *offline, *arguments[1:]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what the wheel is made of: nothing of an earlier build can slip in."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network."""
    folder = tmp_path_factory.mktemp("dist")
    _pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed")
    _pip("install", "--target", folder, wheel)
    return folder


def _authz(
    installed: Path, folder: Path, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the installed package, with no other copy of it in reach."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(**settings, PYTHONPATH=str(installed)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
    )


def test_the_wheel_holds_the_whole_package_and_nothing_else(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    held = {name for name in names if ".dist-info/" not in name}
    paths = (path for path in (source / PACKAGE).rglob("*") if path.is_file())
    assert held == {path.relative_to(source).as_posix() for path in paths}
    assert held >= {
        f"{PACKAGE}/py.typed",
        f"{PACKAGE}/pb/descriptors.binpb",
        f"{PACKAGE}/pb/authz/v1/authorization_pb2.pyi",
        f"{PACKAGE}/storage/migrations/env.py",
        f"{PACKAGE}/storage/migrations/versions/0001_the_first_schema.py",
    }
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    where = f"import {PACKAGE}; print({PACKAGE}.__file__)"
    found = _authz(installed, tmp_path, "-c", where)
    assert Path(found.stdout.strip()).is_relative_to(installed), found
    helped = _authz(installed, tmp_path, "-m", PACKAGE, "--help")
    assert helped.returncode == 0, helped
    assert "serve" in helped.stdout
    # The example is no part of the package.
    demo = _authz(installed, tmp_path, "-m", PACKAGE, "demo")
    assert (demo.returncode, demo.stdout) == (2, ""), demo
    assert "needs a checkout" in demo.stderr


def test_the_installed_package_migrates_serves_and_decides(installed: Path, tmp_path: Path) -> None:
    key = _authz(installed, tmp_path, "-m", PACKAGE, "keys", "root").stdout.strip()
    settings = {
        "AUTHZ_DATABASE_URL": f"sqlite:///{tmp_path / 'authz.db'}",
        "AUTHZ_ROOT_KEYS": key,
    }
    migrated = _authz(installed, tmp_path, "-m", PACKAGE, "migrate", **settings)
    assert migrated.returncode == 0, migrated
    assert "schema is at" in migrated.stdout
    with serving(tmp_path, PYTHONPATH=str(installed), **settings) as running:
        client = {"AUTHZ_ADDRESS": running.address, "AUTHZ_CREDENTIAL": running.credential}
        imported = _authz(installed, tmp_path, "-m", PACKAGE, "import", str(EXAMPLE), **client)
        assert imported.returncode == 0, imported
        for question, code in (
            (("cat@acme", "project:edit", "project/web"), 0),
            (("dan@acme", "document:read", "document/spec"), 1),
        ):
            done = _authz(installed, tmp_path, "-m", PACKAGE, "check", *question, **client)
            assert done.returncode == code, done

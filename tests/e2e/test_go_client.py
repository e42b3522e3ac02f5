"""The worked call from Go: stubs from the contract, one program, a real service.

Needs a Go toolchain and, since nothing is fetched here, the modules of clients/go in its cache
(``go mod download`` in that folder).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.e2e.serving import ROOT, SECONDS, environment, serving

pytestmark = [pytest.mark.server, pytest.mark.alone, pytest.mark.long]

CLIENT = ROOT / "clients" / "go"
PROTOS = ROOT / "protos"


def _run(*command: str | Path, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command,
        env=environment(**variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def worked_call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built from the sources and fresh stubs, with the modules in the cache alone."""
    go = shutil.which("go")
    assert go, "no Go toolchain on PATH: install one, as clients/go/go.mod says which"
    folder = tmp_path_factory.mktemp("go") / "client"
    made = shutil.ignore_patterns("v1", "worked_call")
    shutil.copytree(CLIENT, folder, ignore=made)
    offline = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    plugins = folder / "bin"
    plugins.mkdir()
    _run(go, "build", "-o", f"{plugins}/", "tool", folder=folder, **offline)
    _run(
        sys.executable, "-m", "grpc_tools.protoc",
        f"-I{PROTOS}", f"-I{sysconfig.get_path('purelib')}",
        f"--go_out={folder}", f"--go-grpc_out={folder}",
        *sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")),
        folder=PROTOS, PATH=f"{plugins}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    program = folder / "worked_call"
    _run(go, "build", "-o", program, ".", folder=folder, **offline)
    return program


def test_the_worked_call_is_answered(worked_call: Path, tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        client = {"AUTHZ_ADDRESS": running.address, "AUTHZ_CREDENTIAL": running.credential}
        example = str(ROOT / "examples" / "acme.yaml")
        _run(sys.executable, "-m", "authz_service", "import", example, folder=tmp_path, **client)
        assert _run(worked_call, folder=tmp_path, **client) == "true\n"
        api = running.caller()
        user = api.UserService.GetUser(external_id="cat").user
        organization = api.OrganizationService.GetOrganization(external_id="acme").organization
        memberships = api.OrganizationMembershipService
        cat = memberships.GetOrganizationMembership(
            user={"user_id": user.id, "organization_id": organization.id}
        ).organization_membership
        memberships.DeactivateOrganizationMembership(organization_membership_id=cat.id)
        assert _run(worked_call, folder=tmp_path, **client) == "false\n"

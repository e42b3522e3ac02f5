"""What would break callers of the released contract is refused by ``make lint``."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = "authz/v1/authorization.proto"
# A comment and what it explains.
RPC = r"(  //[^\n]*\n)+  rpc Explain\(.*?\n  }\n"
FIELD = r"(  //[^\n]*\n)*  string permission_slug = 2[^;]*;\n"


def judged(folder: Path, old: str, new: str) -> subprocess.CompletedProcess[str]:
    """Changes one place of the contract, in a copy, and judges that as ``make lint`` does."""
    shutil.copytree(ROOT / "protos", folder / "protos")
    shutil.copy(ROOT / "buf.yaml", folder)
    path = folder / "protos" / CONTRACT
    text, count = re.subn(old, new, path.read_text(), count=1, flags=re.S)
    assert count == 1
    path.write_text(text)
    return subprocess.run(
        [sys.executable, str(folder / "protos" / "lint.py")],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (FIELD, "", 'Previously present field "2" with name "permission_slug"'),
        (FIELD, "  // Other.\n  bytes permission_slug = 2;\n", 'changed type from "string"'),
        (FIELD, "  // Other.\n  string slug = 2;\n", 'changed name from "permission_slug"'),
        (RPC, "", 'Previously present RPC "Explain"'),
    ],
    ids=["field", "type", "name", "rpc"],
)
def test_a_breaking_change_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    done = judged(tmp_path, old, new)
    assert done.returncode == 1, done
    assert told in done.stderr


def test_an_addition_breaks_nobody(tmp_path: Path) -> None:
    added = "  // New.\n  string some_day = 99;\n"
    done = judged(tmp_path, r"(?<=message CheckRequest {\n)", added)
    assert (done.returncode, done.stderr) == (0, "")

"""Every refusal in the code is one that the contract knows, with its code and its metadata."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from authz_service.base import errors
from authz_service.base.errors import Refusal

ROOT = Path(__file__).resolve().parents[2]
_ENTRY = re.compile(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = (\d+);")
_CODE_OF = {
    name: re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, Refusal)
}


class Promise(NamedTuple):
    """What the contract says of a reason."""

    code: str
    comment: str
    keys: frozenset[str]


class Raised(NamedTuple):
    """A place in the code that makes a refusal. ``keys`` is None where they are not literal."""

    where: str
    code: str
    reason: str
    keys: frozenset[str] | None


def promises() -> dict[str, Promise]:
    """All reasons of the contract."""
    text = (ROOT / "protos/authz/v1/error_reason.proto").read_text()
    found = {}
    for comment, reason, _ in _ENTRY.findall(text):
        said = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
        _, _, metadata = said.partition("Metadata:")
        found[reason] = Promise(
            said.partition(":")[0], said, frozenset(re.findall(r"`(\w+)`", metadata))
        )
    return found


def refusals() -> Iterator[Raised]:
    """All places in the code that name a reason."""
    for path in sorted((ROOT / "authz_service").rglob("*.py")):
        if "pb" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", "") or getattr(node.func, "id", "")
            reason = node.args[0]
            if name not in _CODE_OF or not isinstance(reason, ast.Constant):
                continue
            yield Raised(
                f"{path.relative_to(ROOT)}:{node.lineno}",
                _CODE_OF[name],
                str(reason.value),
                _keys(node),
            )


def _keys(call: ast.Call) -> frozenset[str] | None:
    for keyword in call.keywords:
        if keyword.arg == "metadata":
            if not isinstance(keyword.value, ast.Dict):
                return None
            keys = keyword.value.keys
            if not all(isinstance(key, ast.Constant) for key in keys):
                return None
            return frozenset(str(key.value) for key in keys if isinstance(key, ast.Constant))
    return frozenset()


PROMISES = promises()
REFUSALS = list(refusals())


def test_both_sides_are_read() -> None:
    assert len(PROMISES) > 90
    assert len({raised.reason for raised in REFUSALS}) > 60
    assert sum(raised.keys is not None for raised in REFUSALS) > 60


@pytest.mark.parametrize("raised", REFUSALS, ids=lambda raised: f"{raised.where}-{raised.reason}")
def test_a_refusal_is_in_the_contract_with_its_code(raised: Raised) -> None:
    assert raised.reason in PROMISES
    assert raised.code == PROMISES[raised.reason].code


@pytest.mark.parametrize(
    "raised",
    [raised for raised in REFUSALS if raised.keys is not None],
    ids=lambda raised: f"{raised.where}-{raised.reason}",
)
def test_its_metadata_is_in_the_contract(raised: Raised) -> None:
    assert raised.keys is not None
    promise = PROMISES[raised.reason]
    assert "count per kind" in promise.comment or raised.keys <= promise.keys, promise.comment

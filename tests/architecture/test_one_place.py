"""What no linter can say: transactions begin and end in one file, and calls are aborted in one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "authz_service"

TRANSACTIONS = {"begin", "begin_nested", "begin_twophase", "commit", "rollback"}
# By statement, too: the upper case of SQL tells it from a docstring.
STATEMENT = re.compile(r"\s*(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|START TRANSACTION)\b")
TRANSACTIONS_PLACE = {"storage/database.py", "storage/migrations/env.py"}

ABORTS = {"abort", "abort_with_status", "set_code", "set_details"}
# The second ends sockets, not calls.
ABORTS_PLACE = {"rpc/errors.py", "rpc/fronts/h2/listener.py"}


def called_on_objects(tree: ast.Module) -> Iterator[str]:
    """Yields the names of methods that are called; functions of an imported module are none."""
    imported = {
        name.asname or name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if not (isinstance(owner, ast.Name) and owner.id in imported):
                yield node.func.attr


def controls_transactions(tree: ast.Module) -> bool:
    """True if a transaction is begun or ended here, by method or by statement."""
    return not TRANSACTIONS.isdisjoint(called_on_objects(tree)) or any(
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and STATEMENT.match(node.value)
        for node in ast.walk(tree)
    )


def aborts(tree: ast.Module) -> bool:
    """True if a call is ended with a status here."""
    return not ABORTS.isdisjoint(called_on_objects(tree))


def modules() -> dict[str, ast.Module]:
    """Returns our modules by path below the package."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "pb"
    }


def test_transactions_begin_and_end_in_one_place() -> None:
    found = {name for name, tree in modules().items() if controls_transactions(tree)}

    assert found - TRANSACTIONS_PLACE == set()
    assert "storage/database.py" in found, "the guard sees nothing any more"


def test_calls_are_aborted_in_one_place() -> None:
    found = {name for name, tree in modules().items() if aborts(tree)}

    assert found == ABORTS_PLACE


@pytest.mark.parametrize(
    "code",
    [
        "session.commit()",
        "with connection.begin(): pass",
        "self.database.engine.begin()",
        "tx.session.begin_nested()",
        "connection.exec_driver_sql('ROLLBACK')",
        "connection.execute(text(f'SAVEPOINT {name}'))",
    ],
)
def test_the_guard_sees_a_transaction(code: str) -> None:
    assert controls_transactions(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    ["from authz_service.domain import idempotency\nidempotency.begin(tx)", "'Begins to commit.'"],
)
def test_the_guard_sees_no_transaction_where_there_is_none(code: str) -> None:
    assert not controls_transactions(ast.parse(code))


@pytest.mark.parametrize("code", ["context.abort(code, '')", "self.context.set_code(code)"])
def test_the_guard_sees_an_abort(code: str) -> None:
    assert aborts(ast.parse(code))

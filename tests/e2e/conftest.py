"""Fixtures of whole services: a database without a schema, and certificates."""

from pathlib import Path

import pytest

from tests.rpc.fronts.conftest import Authority


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database of this kind without any schema, which ``serve --dev`` makes."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path / 'authz.db'}"
    return str(request.getfixturevalue("postgresql_empty_url"))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority for the run."""
    return Authority(tmp_path_factory.mktemp("authority"))

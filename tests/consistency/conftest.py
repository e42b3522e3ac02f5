"""All runs start servers; they tell their seed and what was found."""

import json
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.consistency.run import Verdict
from tests.consistency.sizes import SEED


class Told(Protocol):
    """Tells a verdict to whoever runs the tests."""

    def __call__(self, run: str, verdict: Verdict, **more: Any) -> None: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the runs: they need servers, and the machine for themselves."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and "told" in getattr(
            item, "fixturenames", ()
        ):
            item.add_marker("server")
            item.add_marker("alone")


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    """Prints a verdict with the seed of its run."""

    def tell(run: str, verdict: Verdict, **more: Any) -> None:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        line = json.dumps({"run": run, "seed": SEED, **verdict.line(), **more})
        with capture.global_and_fixture_disabled():
            print(f"\n{line}")

    return tell

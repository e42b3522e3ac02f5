"""All runs start servers; they tell their seed and what was found."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.consistency.run import Verdict
from tests.consistency.sizes import SEED

Told = Callable[[str, Verdict], None]


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

    def tell(name: str, verdict: Verdict) -> None:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        line = json.dumps({"run": name, "seed": SEED, **verdict.line()})
        with capture.global_and_fixture_disabled():
            print(f"\n{line}")

    return tell

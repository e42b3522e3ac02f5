"""All runs start servers; they tell their seed and what was found."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from tests.consistency.chaos.naive import TROUBLE
from tests.consistency.chaos.scene import Played, play, played_on
from tests.consistency.run import Verdict, half
from tests.consistency.sizes import FAULT_SECONDS, NAIVE_RUNS_MAX, SEED, SHORT
from tests.consistency.stack import Servers, servers


class Naive(NamedTuple):
    """What became of the naive cache, without faults and with them."""

    histories: Verdict
    chaos: Played


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


@pytest.fixture(scope="session", params=["valkey", pytest.param("redis", marks=pytest.mark.long)])
def under(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """PostgreSQL, and Valkey or Redis."""
    with servers(request.param) as started:
        yield started


@pytest.fixture(scope="session")
def naive(under: Servers) -> Naive:
    """The naive half of all runs by day."""
    return halves(under, "naive", SHORT.naive_seconds)


def halves(under: Servers, name: str, seconds: float) -> Naive:
    """Runs the naive cache until it was caught, which takes longer on a slow machine."""
    with played_on(under, name, naive=True) as scene:
        for _ in range(NAIVE_RUNS_MAX):
            histories = half(scene.stack, scene.load, scene.since, seconds)
            if histories.stale and histories.impossible:
                break
        for _ in range(NAIVE_RUNS_MAX):
            chaos = play(scene, TROUBLE, FAULT_SECONDS)
            if chaos.verdict.stale:
                break
    return Naive(histories, chaos)


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    """Prints a verdict with the seed of its run."""

    def tell(run: str, verdict: Verdict, **more: Any) -> None:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        line = json.dumps({"run": run, "seed": SEED, **verdict.line(), **more})
        with capture.global_and_fixture_disabled():
            print(f"\n{line}")

    return tell

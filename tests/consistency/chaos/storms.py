"""Faults of what goes on around a cache that works: clocks that jump or run at another rate, and
very many writes (F28, F35)."""

from authz_service.base.clock import boot_seconds
from tests.consistency.chaos.scene import Scene
from tests.consistency.run import ANSWERS, CACHED, counts, grown
from tests.consistency.sizes import PATIENCE_SECONDS
from tests.consistency.stack import pause, within

JUMPS = (3_600.0, -3_600.0, 5.0, -5.0)
# What leases and settles allow for is 2 %.
RATES = (1.05, 0.95)
# For some renewals.
RATE_SECONDS = 2.0
# Memberships on and off, roles edited, a document and a subtree moved to and fro, a group put into
# another and taken out, organizations deleted and made again.
KINDS = frozenset(
    {
        "status",
        "organization role",
        "environment role",
        "move",
        "subtree",
        "nesting",
        "member",
        "organization",
    }
)
STORM_SECONDS = 3.0
# Of the share that came from the cache before.
BACK = 0.8


def clocks_jump(scene: Scene) -> None:
    """Lets the wall clock of a process jump by an hour, or by steps of seconds, and back."""
    service = scene.stack.services[scene.chance.choice([1, 2])]
    fences = scene.fences()
    jump = scene.chance.choice(JUMPS)
    steps = [jump] if abs(jump) > 60 else [jump * (number + 1) for number in range(4)]
    for ahead in [*steps, 0.0]:
        service.shift_clock(ahead)
        pause(0.5)
    scene.note("fenced by a jump", scene.fences() - fences)
    assert all(each.has_lease() for each in scene.stack.services)


def clock_at_another_rate(scene: Scene) -> None:
    """Lets the boot clock of a process run too fast, or too slowly, for a while.

    It gives up its lease and answers from SQL; the others go on.
    """
    service = scene.stack.services[scene.chance.choice([1, 2])]
    others = [each for each in scene.stack.services if each is not service]
    fences, found = scene.fences(), service.told("cache_clock_wrong")
    service.rate_clock(RATES[scene.faults % len(RATES)])
    taken = within(PATIENCE_SECONDS, lambda: service.told("cache_clock_wrong") > found)
    assert taken is not None, "a process goes by a clock that runs at another rate"
    scene.note("lease given up", taken)
    until = boot_seconds() + RATE_SECONDS
    while boot_seconds() < until:
        assert not service.has_lease(), "it goes by that clock again"
        pause(0.02)
    assert within(PATIENCE_SECONDS, lambda: all(each.has_lease() for each in others)) is not None
    service.rate_clock(1.0)
    taken = within(PATIENCE_SECONDS, service.is_cache_on)
    assert taken is not None, "a right clock is not believed again"
    scene.note("cache on with a right clock", taken)
    scene.note("fenced by a rate", scene.fences() - fences)
    pause(0.5)


def _cached(scene: Scene, seconds: float) -> float:
    """Returns the share of the answers of a while that come from the cache."""
    before = counts(scene.stack, ANSWERS)
    pause(seconds)
    answers = grown(before, counts(scene.stack, ANSWERS))
    return sum(answers.get(name, 0.0) for name in CACHED) / max(1.0, sum(answers.values()))


def storm(scene: Scene) -> None:
    """Writes what touches most facts as fast as the writers can, and waits for the cache."""
    usual = _cached(scene, 1.0)
    written = len(scene.load.record.writes)
    began = boot_seconds()
    scene.load.storm = KINDS
    pause(STORM_SECONDS)
    scene.load.storm = frozenset()
    taken = boot_seconds() - began
    scene.note("writes a second", (len(scene.load.record.writes) - written) / taken)
    back = within(PATIENCE_SECONDS, lambda: _cached(scene, 0.2) >= BACK * usual)
    assert back is not None, "the cache does not come back after the storm"
    scene.note("hit ratio back", back)

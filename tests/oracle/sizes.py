"""How much of each property is tried: by ``make test``, and by ``make test-long``.

The only place for these numbers. The nightly ones are what two cores do in about an hour, each test
on both databases; the profile that chooses them is given by ``make test-long``.
"""

from typing import NamedTuple

from hypothesis import settings

NIGHTLY = "nightly"


class Size(NamedTuple):
    """Examples of one property.

    Attributes:
        day: In ``make test``.
        night: In ``make test-long``.
    """

    day: int
    night: int


SIZES = {
    # The oracle against itself, on worlds in memory.
    "oracle": Size(60, 5_000),
    "oracle writes": Size(100, 5_000),
    # Until the strategies have come up with everything: more examples would prove less.
    "worlds": Size(400, 400),
    "attempts": Size(1_200, 1_200),
    # What reads the tables.
    "decisions": Size(30, 400),
    "listed resources": Size(15, 800),
    "listed members": Size(15, 800),
    "listed permissions": Size(15, 800),
    "explanations": Size(15, 800),
    # The same over the API.
    "asked": Size(5, 600),
    # Sequences of writes, and how many writes each has.
    "writes": Size(12, 300),
    "steps": Size(12, 50),
    # Control sets against sets and loops, in memory and in two servers.
    "control sets": Size(200, 10_000),
}


def is_nightly() -> bool:
    """True in ``make test-long``."""
    return settings.get_current_profile_name() == NIGHTLY


def how_many(name: str) -> int:
    """Returns how many examples of a property this run tries."""
    found = SIZES[name]
    return found.night if is_nightly() else found.day


# A failure is to be repeated by whoever reads the log of the night.
settings.register_profile(NIGHTLY, print_blob=True)

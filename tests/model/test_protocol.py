"""No reachable state breaks a promise, and each broken rule is found."""

import pytest

from tests.model.configurations import CONFIGURATIONS, SHOWN_BY, Configuration
from tests.model.mutations import MUTATIONS, PAIRS, VARIANTS
from tests.model.search import Search

BY_NAME = {configuration.name: configuration for configuration in CONFIGURATIONS}
WITH = {first: (first, second) for first, second in PAIRS}


def cases():
    """Return every configuration; the large ones only run at night."""
    for configuration in CONFIGURATIONS:
        marks = [pytest.mark.long, pytest.mark.timeout(1800)] if configuration.long else []
        yield pytest.param(configuration, id=configuration.name, marks=marks)


@pytest.mark.parametrize("configuration", list(cases()))
def test_no_state_breaks_a_promise(configuration: Configuration) -> None:
    result = Search(configuration).run()
    assert not result.violation, str(result)
    assert result.complete
    assert result.states > 0
    assert set(configuration.shows) <= result.seen


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_rule_is_found(mutation: str) -> None:
    configuration = BY_NAME[SHOWN_BY[mutation]]
    result = Search(configuration, WITH.get(mutation, (mutation,))).run()
    assert result.violation
    assert len(result.trace) > 1


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_one_of_a_pair_alone_breaks_no_promise_there(pair: tuple[str, str]) -> None:
    # So that the pair shows what the two rules do for each other.
    for mutation in pair:
        result = Search(BY_NAME[SHOWN_BY[pair[0]]], (mutation,)).run()
        assert not result.violation, str(result)


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("ev_is_sequence", "both sets"),
        ("fill_pending", "two writes"),
        ("ack_before_bump", "lost sets"),
        ("ack_before_bump", "acknowledged"),
        ("gen_at_enable", "lost sets"),
        ("lease_checked_at_send", "leases"),
    ],
)
def test_a_harmless_change_is_harmless(variant: str, name: str) -> None:
    assert variant in VARIANTS
    result = Search(BY_NAME[name], (variant,)).run()
    assert not result.violation, str(result)
    assert result.complete


def test_with_the_sequence_as_ev_a_credential_voids_grants() -> None:
    kept = "grants used after a write of another tag of `*`"
    configuration = BY_NAME["both sets"]
    assert kept in Search(configuration).run().seen
    assert kept not in Search(configuration, ("ev_is_sequence",)).run().seen

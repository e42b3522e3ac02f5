"""The judges, on histories made by hand: each good one is let through, each bad one is named."""

from tests.consistency.history import NEVER, Read, Register, Relaxed, Write
from tests.consistency.judges import (
    Event,
    Link,
    Window,
    audit,
    bound_judge,
    chain_judge,
    floor_monitor,
    instant_judge,
    interval_judge,
    is_linearizable,
    linearizability,
)

# Denied, granted from 10 to 11, revoked from 20 to 21.
WRITES = [Write(10, 11, True), Write(20, 21, False)]


def register(*reads: Read, writes: list[Write] = WRITES, initial: object = False) -> Register:
    return Register("r", "assignment", initial, list(writes), list(reads))


def kinds(findings: list) -> list[str]:
    return [finding.kind for finding in findings]


def everything(history: Register) -> list[str]:
    """What any of the judges of registers says."""
    findings = floor_monitor(history) + interval_judge(history) + instant_judge(history)
    return kinds(findings + linearizability(history)[1])


def test_reads_between_writes_show_the_last_one() -> None:
    assert not everything(register(Read(1, 2, False), Read(12, 13, True), Read(22, 23, False)))


def test_reads_beside_a_write_may_show_either() -> None:
    for value in (True, False):
        assert not everything(register(Read(9, 12, value)))
        assert not everything(register(Read(10.2, 10.8, value)))


def test_no_reads_and_no_writes_are_fine() -> None:
    assert not everything(register())
    assert not everything(register(Read(1, 2, False), writes=[]))


def test_an_allow_after_an_acknowledged_revoke_is_stale() -> None:
    history = register(Read(21.5, 22, True))
    (finding,) = floor_monitor(history)
    assert (finding.kind, finding.age) == ("stale", 0.5)
    assert kinds(interval_judge(history)) == ["stale"]
    assert kinds(linearizability(history)[1]) == ["impossible", "impossible"]


def test_a_deny_after_an_acknowledged_grant_is_stale() -> None:
    history = register(Read(11.5, 12, False))
    assert kinds(floor_monitor(history)) == ["stale"]
    assert kinds(interval_judge(history)) == ["stale"]
    assert linearizability(history)[1]


def test_a_stale_read_that_ends_beside_the_next_write_is_found_by_the_floor_alone() -> None:
    history = register(Read(11.5, 20.5, False), writes=[*WRITES[:1], Write(20, 21, True)])
    assert kinds(floor_monitor(history)) == ["stale"]
    assert not interval_judge(history)


def test_a_read_from_the_future_is_named() -> None:
    assert kinds(floor_monitor(register(Read(1, 2, True)))) == ["stale"]
    assert kinds(interval_judge(register(Read(1, 2, True)))) == ["stale"]


def test_going_back_beside_a_write_is_named() -> None:
    slow = [Write(10, 20, True)]
    back = register(Read(11, 12, True), Read(13, 14, False), writes=slow)
    assert kinds(floor_monitor(back)) == ["backwards"]
    assert not interval_judge(back)
    assert kinds(linearizability(back)[1]) == ["impossible"]


def test_overlapping_reads_may_differ_in_any_order() -> None:
    slow = [Write(10, 20, True)]
    assert not everything(register(Read(11, 14, True), Read(12, 13, False), writes=slow))


def test_a_read_that_may_be_an_older_version_is_not_taken_for_a_newer() -> None:
    # True is version 1 or 3; taken for 3 it would accuse the read of version 2 that follows.
    writes = [Write(10, 11, True), Write(20, 40, False), Write(41, 60, True)]
    assert not everything(register(Read(30, 45, True), Read(46, 47, False), writes=writes))


def test_a_write_without_answer_may_have_happened_or_not() -> None:
    writes = [Write(10, NEVER, True)]
    assert not everything(register(Read(20, 21, False), Read(30, 31, True), writes=writes))
    back = register(Read(20, 21, True), Read(30, 31, False), writes=writes)
    assert kinds(floor_monitor(back)) == ["backwards"]


def test_a_value_that_never_was_is_mixed() -> None:
    # The role goes from one to the other, in one write: never both, never none.
    writes = [Write(10, 11, (False, True))]
    history = register(
        Read(10.1, 10.9, (True, True)),
        Read(1, 2, (True, False)),
        writes=writes,
        initial=(True, False),
    )
    assert kinds(instant_judge(history)) == ["mixed"]
    assert kinds(floor_monitor(history)) == ["mixed"]


def test_the_checker_finds_the_one_order_that_explains() -> None:
    window = Window(0, (Write(0, 10, 1), Write(11, 20, 2)), (Read(1, 19, 2), Read(2, 3, 0)))
    assert is_linearizable(window)


def test_the_checker_refuses_what_no_order_explains() -> None:
    assert not is_linearizable(Window(0, (Write(0, 10, 1),), (Read(1, 2, 1), Read(3, 4, 0))))
    assert not is_linearizable(Window(0, (Write(0, 10, 1),), (Read(11, 12, 0),)))
    assert not is_linearizable(Window(0, (Write(0, NEVER, 1),), (Read(1, 2, 1), Read(3, 4, 0))))


def test_every_write_is_in_a_window() -> None:
    count, findings = linearizability(register(Read(12, 13, True)))
    assert (count, findings) == (3, [])


def relaxed(value: object, *, version: int = 0, seconds: float = 100) -> Register:
    """A history with an answer that was asked for between 30 and 31."""
    history = register()
    history.relaxed.append(Relaxed(30, 31, value, "r", version, 30 - seconds))
    return history


def test_a_relaxed_read_may_be_old() -> None:
    assert not bound_judge(relaxed(False)) + bound_judge(relaxed(True))
    assert not everything(relaxed(True))


def test_a_relaxed_read_is_no_older_than_its_bound() -> None:
    assert not bound_judge(relaxed(True, seconds=9.5))
    assert kinds(bound_judge(relaxed(True, seconds=8.5))) == ["stale"]


def test_a_relaxed_read_shows_the_write_whose_token_it_brought() -> None:
    assert not bound_judge(relaxed(True, version=1))
    assert kinds(bound_judge(relaxed(True, version=2))) == ["stale"]


def test_a_relaxed_read_shows_nothing_that_never_was_or_is_not_sent_yet() -> None:
    assert kinds(bound_judge(relaxed("none of these"))) == ["mixed"]
    history = register(writes=[Write(40, 41, True)])
    history.relaxed.append(Relaxed(30, 31, True, "r", 0, 0))
    assert kinds(bound_judge(history)) == ["stale"]


def test_an_element_that_was_read_alone_is_a_register_of_its_own() -> None:
    history = register(initial=(False, True), writes=[Write(10, 11, (True, True))])
    history.singles[0].append(Read(12, 13, (False,)))
    history.singles[1].append(Read(12, 13, (True,)))
    first, second = history.parts()
    assert kinds(floor_monitor(first)) == ["stale"]
    assert not everything(second)


LINKS = [Link("a", 1, b"", b"1"), Link("a", 2, b"1", b"2"), Link("b", 1, b"", b"3")]
HEADS = {"a": b"2", "b": b"3", "empty": b""}


def test_a_whole_chain_is_let_through() -> None:
    assert not chain_judge(LINKS, HEADS)


def test_a_broken_chain_is_named() -> None:
    assert chain_judge([LINKS[0], *LINKS[2:]], HEADS) == ["the head of a is not its last event"]
    changed = [LINKS[0], Link("a", 2, b"0", b"2"), LINKS[2]]
    assert chain_judge(changed, HEADS) == ["event a 2 does not follow the one before"]
    assert chain_judge(LINKS, HEADS | {"b": b""})
    assert chain_judge([*LINKS, Link("c", 1, b"", b"3")], HEADS | {"c": b"3"})


STORED = [Event("a", 1, "w1", True), Event("a", 2, "w1", False), Event("*", 1, "w2-again", True)]
REVISIONS = {"a": 2, "*": 1}


def test_the_audit_lets_a_complete_history_through() -> None:
    seen = [STORED[2], *STORED[:2]]
    assert not audit([["w1"], ["w2", "w2-again"]], STORED, REVISIONS, seen)
    assert not audit([], STORED, REVISIONS, None)


def test_the_audit_names_a_lost_write() -> None:
    assert audit([["w3"]], STORED, REVISIONS, None) == ["write w3 has 0 effects in SQL"]


def test_the_audit_names_a_write_that_happened_twice() -> None:
    stored = [*STORED, Event("*", 2, "w2", True)]
    faults = audit([["w2", "w2-again"]], stored, {"a": 2, "*": 2}, None)
    assert faults == ["write w2 has 2 effects in SQL"]


def test_the_audit_names_holes() -> None:
    assert audit([], STORED[1:], REVISIONS, None)
    assert audit([], STORED, {"a": 3, "*": 1}, None)
    assert audit([], STORED, {"a": 2}, None)


def test_the_audit_names_what_a_watcher_missed_or_saw_twice_or_late() -> None:
    assert audit([], STORED, REVISIONS, STORED[:2]) == ["the watcher saw * 1 0 times"]
    assert audit([], STORED, REVISIONS, [*STORED, STORED[1]])
    assert audit([], STORED, REVISIONS, [STORED[1], STORED[0], STORED[2]])


def test_the_audit_asks_of_a_watcher_only_what_happened_since_it_began() -> None:
    assert not audit([], STORED, REVISIONS, STORED[2:], {"a": 2})
    assert audit([], STORED, REVISIONS, STORED[2:], {"a": 1})

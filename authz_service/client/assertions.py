"""Asks the assertions of a directory file of a running service, and says which do not hold."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BATCH_ITEMS = 1_000


class Asked(Protocol):
    """What assertions need of a service; names are those of the file."""

    def checks(self, questions: Sequence[Mapping[str, Any]]) -> list[bool | str]:
        """Answers assertions with ``allowed``: the decision, or the error as text."""
        ...

    def members(self, question: Mapping[str, Any]) -> set[str] | str:
        """Returns who passes, by external id, or the error as text."""
        ...

    def resources(self, question: Mapping[str, Any]) -> set[str] | str:
        """Returns which resources pass, by external id, or the error as text."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one assertion went.

    Attributes:
        number: Its place in the file, from 0.
        difference: What the service says instead; empty if the assertion holds.
    """

    number: int
    assertion: Mapping[str, Any]
    difference: str


def kind_of(assertion: Any) -> str:
    """Returns ``allowed``, ``members`` or ``resources``: what the assertion is about.

    Raises:
        ValueError: It is about none of them, or something it needs is missing or no text.
    """
    if not isinstance(assertion, Mapping):
        raise ValueError("an assertion is an object")
    needed = {
        "allowed": ("organization", "permission", "user"),
        "members": ("organization", "permission"),
        "resources": ("organization", "permission", "user", "type"),
    }
    kinds = [kind for kind in needed if kind in assertion]
    if len(kinds) != 1:
        raise ValueError("an assertion says one of allowed, members and resources")
    kind = kinds[0]
    for name in needed[kind]:
        if not isinstance(assertion.get(name), str):
            raise ValueError(f"an assertion with {kind} names {name}")
    if kind != "resources":
        place = assertion.get("resource")
        is_place = isinstance(place, Mapping) and all(
            isinstance(place.get(name), str) for name in ("type", "external_id")
        )
        if not is_place:
            raise ValueError("a resource has a type and an external_id")
    expected = assertion[kind]
    if kind == "allowed" and not isinstance(expected, bool):
        raise ValueError("allowed is true or false")
    if kind != "allowed" and not (
        isinstance(expected, list) and all(isinstance(each, str) for each in expected)
    ):
        raise ValueError(f"{kind} is a list of external ids")
    return kind


def verify(
    assertions: Sequence[Any],
    asked: Asked,
    *,
    shown: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Iterator[Outcome]:
    """Yields the outcome of every assertion, in no particular order.

    Args:
        shown: Wraps the work to be done, for a progress bar.
    """
    checks: list[tuple[int, Mapping[str, Any]]] = []
    work: list[tuple[str, list[tuple[int, Mapping[str, Any]]]]] = []
    for number, assertion in enumerate(assertions):
        try:
            kind = kind_of(assertion)
        except ValueError as error:
            yield Outcome(number, {"assertion": assertion}, str(error))
            continue
        if kind == "allowed":
            checks.append((number, assertion))
        else:
            work.append((kind, [(number, assertion)]))
    for start in range(0, len(checks), BATCH_ITEMS):
        work.append(("allowed", checks[start : start + BATCH_ITEMS]))
    for kind, numbered in shown(work):
        if kind == "allowed":
            answers = asked.checks([assertion for _, assertion in numbered])
            for (number, assertion), answer in zip(numbered, answers, strict=True):
                yield Outcome(number, assertion, _compare_check(assertion["allowed"], answer))
            continue
        ((number, assertion),) = numbered
        found = asked.members(assertion) if kind == "members" else asked.resources(assertion)
        yield Outcome(number, assertion, _compare_sets(set(assertion[kind]), found))


def _compare_check(expected: bool, answer: bool | str) -> str:
    if isinstance(answer, str):
        return answer
    if answer == expected:
        return ""
    return "allowed, not denied" if answer else "denied, not allowed"


def _compare_sets(expected: set[str], found: set[str] | str) -> str:
    if isinstance(found, str):
        return found
    parts = []
    if missing := sorted(expected - found):
        parts.append(f"missing {', '.join(missing)}")
    if extra := sorted(found - expected):
        parts.append(f"besides {', '.join(extra)}")
    return "; ".join(parts)

"""What freshness a question asks for, and whether an answer has it (product.md M30, M31)."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from authz_service.base import errors
from authz_service.base.consistency import ConsistencyTokens, Position, State
from authz_service.engine.facts import MayBe
from authz_service.engine.limits import STALENESS_SECONDS_MAX
from authz_service.pb.authz.v1.core_pb2 import Consistency

# A token can be satisfied without a look at what happened since, but not by a very old state.
_TOKEN_SECONDS = 10.0
_NOWHERE = Position("", 0)


class Wanted(NamedTuple):
    """What the ``consistency`` of a request asks for.

    Attributes:
        revisions: What an answer must have reached; empty without a token.
        may_be: How old the answer's state may be; None = it must be of now.
    """

    revisions: Mapping[str, int]
    may_be: MayBe | None


_STRONG = Wanted({}, None)


class Freshness:
    """Judges the ``consistency`` of requests and makes the tokens of answers.

    Args:
        ahead: Called for each token that names a state which the database has lost.

    Every answer here holds all that was acknowledged before the call arrived, so that each mode is
    satisfied; what is left to find out is whether a token names a state the database has lost.
    """

    def __init__(self, tokens: ConsistencyTokens, ahead: Callable[[], None] = lambda: None) -> None:
        self._tokens = tokens
        self._ahead = ahead

    def wanted(self, consistency: Consistency) -> Wanted:
        """Returns what an answer must have seen, and how old it may be.

        Raises:
            InvalidArgument: FIELD_INVALID, CONSISTENCY_TOKEN_INVALID.
        """
        mode = consistency.WhichOneof("mode")
        if mode is None:
            return _STRONG
        if mode == "at_least_as_fresh":
            state = self._tokens.open(consistency.at_least_as_fresh)
            if state.is_partial:
                return Wanted(state.revisions, None)
            return Wanted(state.revisions, MayBe(_TOKEN_SECONDS, _positions(state)))
        if mode == "strong":
            if not consistency.strong:
                raise errors.field_invalid("consistency.strong", "true, or another mode")
            return _STRONG
        age = consistency.max_staleness
        nanos = age.seconds * 1_000_000_000 + age.nanos
        if not 0 < nanos <= STALENESS_SECONDS_MAX * 1_000_000_000:
            raise errors.field_invalid(
                "consistency.max_staleness",
                f"more than 0 and at most {STALENESS_SECONDS_MAX} seconds",
            )
        return Wanted({}, MayBe(nanos / 1_000_000_000))

    def check(
        self,
        wanted: Wanted,
        revisions: Mapping[str, int],
        positions: Mapping[str, Position] | None = None,
        present: Callable[[Collection[str]], Mapping[str, int]] | None = None,
    ) -> None:
        """Refuses a token that names a state which the database does not have.

        Args:
            revisions: Of the realms the answer came from; other realms of the token cannot change
                this answer.
            positions: Where the control sets were, if the answer is a remembered one.
            present: Reads revisions from the database, where an answer knows only the least that
                its state has; None where it knows them.

        Raises:
            FailedPrecondition: CONSISTENCY_TOKEN_AHEAD: an acknowledged write has been lost.
        """
        ahead = [
            realm
            for realm, revision in wanted.revisions.items()
            if revision > revisions.get(realm, revision)
            and not _is_reached(wanted, realm, positions)
        ]
        if ahead and present is not None:
            revisions = present(ahead)
        for realm in ahead:
            if wanted.revisions[realm] > revisions.get(realm, 0):
                self._ahead()
                raise errors.FailedPrecondition(
                    "CONSISTENCY_TOKEN_AHEAD",
                    "the token names a state that this database does not have",
                )

    def token(
        self, revisions: Mapping[str, int], positions: Mapping[str, Position] | None = None
    ) -> str:
        """Returns the token of the state an answer came from."""
        return self._tokens.seal(revisions, positions)


def _is_reached(wanted: Wanted, realm: str, positions: Mapping[str, Position] | None) -> bool:
    """True if an answer's control set had come to where the token wants it."""
    if wanted.may_be is None or wanted.may_be.positions is None or positions is None:
        return False
    there, here = wanted.may_be.positions[realm], positions.get(realm, _NOWHERE)
    return there.life == here.life != "" and there.sequence <= here.sequence


def _positions(state: State) -> Mapping[str, Position]:
    """Returns where the control sets must be; a place that none can be in where that is unknown."""
    return {realm: state.positions.get(realm, _NOWHERE) for realm in state.revisions}

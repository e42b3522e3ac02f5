"""What freshness a question asks for, and whether an answer has it (product.md M30, M31)."""

from collections.abc import Mapping

from authz_service.base import errors
from authz_service.base.consistency import ConsistencyTokens
from authz_service.engine.limits import STALENESS_SECONDS_MAX
from authz_service.pb.authz.v1.core_pb2 import Consistency


class Freshness:
    """Judges the ``consistency`` of requests and makes the tokens of answers.

    Every answer here comes from one SQL snapshot begun after the call arrived, so that each mode is
    satisfied; what is left to find out is whether a token names a state the database has lost.
    """

    def __init__(self, tokens: ConsistencyTokens) -> None:
        self._tokens = tokens

    def wanted(self, consistency: Consistency) -> Mapping[str, int]:
        """Returns the revisions an answer must have reached; empty without a token.

        Raises:
            InvalidArgument: FIELD_INVALID, CONSISTENCY_TOKEN_INVALID.
        """
        mode = consistency.WhichOneof("mode")
        if mode is None:
            return {}
        if mode == "at_least_as_fresh":
            return self._tokens.open(consistency.at_least_as_fresh).revisions
        if mode == "strong":
            if not consistency.strong:
                raise errors.field_invalid("consistency.strong", "true, or another mode")
            return {}
        age = consistency.max_staleness
        nanos = age.seconds * 1_000_000_000 + age.nanos
        if not 0 < nanos <= STALENESS_SECONDS_MAX * 1_000_000_000:
            raise errors.field_invalid(
                "consistency.max_staleness",
                f"more than 0 and at most {STALENESS_SECONDS_MAX} seconds",
            )
        return {}

    def check(self, wanted: Mapping[str, int], revisions: Mapping[str, int]) -> None:
        """Refuses a token that names a state which the database does not have.

        Args:
            revisions: Of the realms the answer came from; other realms of the token cannot change
                this answer.

        Raises:
            FailedPrecondition: CONSISTENCY_TOKEN_AHEAD: an acknowledged write has been lost.
        """
        for realm, revision in wanted.items():
            if revision > revisions.get(realm, revision):
                raise errors.FailedPrecondition(
                    "CONSISTENCY_TOKEN_AHEAD",
                    "the token names a state that this database does not have",
                )

    def token(self, revisions: Mapping[str, int]) -> str:
        """Returns the token of the state an answer came from."""
        return self._tokens.seal(revisions)

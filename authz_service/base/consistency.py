"""Consistency tokens: the state of SQL that an answer came from, as a sealed string (M30, M31)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from authz_service.base import errors
from authz_service.base.sealed import Sealer

ENVIRONMENT = "*"
TOKEN_CHARACTERS_MAX = 512
_FORMAT = "1"
_REMEMBERED_MAX = 4_096


class Position(NamedTuple):
    """A place in the history of a control set: the life of the cache, and a sequence in it."""

    life: str
    sequence: int


@dataclass(frozen=True, slots=True)
class State:
    """Revisions of realms: organization id or ``*`` to its revision.

    Attributes:
        revisions: What the token names.
        positions: Where the control sets were, of those realms where that is known: it tells
            without a look at SQL that a remembered state is as new.
        is_partial: More organizations took part than a token can name; whoever presents it gets an
            answer as for ``strong``.
    """

    revisions: Mapping[str, int]
    is_partial: bool = False
    positions: Mapping[str, Position] = field(default_factory=dict)


class ConsistencyTokens:
    """Makes and reads tokens. They are signed, at most 512 ASCII characters, and never expire.

    Args:
        sealer: Of the purpose ``consistency``.
    """

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        # The token of one state is always the same text; reads of a quiet organization repeat it.
        self._remembered: dict[tuple[tuple[str, int, Position | None], ...], str] = {}

    def seal(
        self, revisions: Mapping[str, int], positions: Mapping[str, Position] | None = None
    ) -> str:
        """Returns the token of a state.

        Args:
            positions: As in ``State``.
        """
        at = positions or {}
        key = tuple(
            (realm, revision, at.get(realm)) for realm, revision in sorted(revisions.items())
        )
        token = self._remembered.get(key)
        if token is not None:
            return token
        token = self._make(key)
        if len(self._remembered) >= _REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[key] = token
        return token

    def _make(self, key: tuple[tuple[str, int, Position | None], ...]) -> str:
        entries = [
            f"{realm}:{revision}" + (f":{at.life}:{at.sequence}" if at else "")
            for realm, revision, at in key
        ]
        partial = ""
        while True:
            text = f"{_FORMAT}{partial} " + " ".join(entries)
            token = self._sealer.seal(text.encode())
            if len(token) <= TOKEN_CHARACTERS_MAX:
                return token
            # ``*`` sorts first and stays; the organizations at the end are dropped.
            entries.pop()
            partial = "p"

    def open(self, token: str) -> State:
        """Returns the state that a token names.

        Raises:
            InvalidArgument: CONSISTENCY_TOKEN_INVALID for anything this service did not sign.
        """
        payload = self._sealer.open(token) if len(token) <= TOKEN_CHARACTERS_MAX else None
        if payload is None:
            raise errors.InvalidArgument(
                "CONSISTENCY_TOKEN_INVALID", "the consistency token is damaged"
            )
        head, *entries = payload.decode().split(" ")
        revisions = {}
        positions = {}
        for entry in filter(None, entries):
            realm, revision, *at = entry.split(":")
            revisions[realm] = int(revision)
            if at:
                positions[realm] = Position(at[0], int(at[1]))
        return State(revisions, head.endswith("p"), positions)

"""The contract of what judges cached facts: control sets, and the marks of writes under way.

Two implementations stand behind it from the first day: an object in this process, and Redis. One
suite of tests runs against both.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

# More changes than this since the last look, and starting anew is cheaper than reading them all.
CHANGES_MAX = 256


class Opened(NamedTuple):
    """A control set as it is when a view of it begins.

    Attributes:
        nonce: Its identity; another one means that it was lost and made anew.
        sequence: How many writes have finished in it.
        definitions: The sequence at which the tag ``E`` was last written; 0 for never.
    """

    nonce: str
    sequence: int
    definitions: int


class Look(NamedTuple):
    """From where a control set is to be read.

    Attributes:
        realm: An organization's id, or ``*``.
        nonce: The identity it had.
        last: The sequence that is known already.
    """

    realm: str
    nonce: str
    last: int


class Reply(NamedTuple):
    """What a control set said: everything that happened after ``Look.last``.

    Attributes:
        sequence: How many writes have finished by now.
        changed: Tags with the sequence of the last finished write on each.
        pending: Tags of writes under way.
    """

    sequence: int
    changed: tuple[tuple[str, int], ...]
    pending: frozenset[str]


class Lost(NamedTuple):
    """A control set of which nothing that was known may be believed any more.

    Attributes:
        reason: ``nonce`` (another set), ``floor`` (trimmed) or ``changes`` (too many).
    """

    reason: str


Replies = Sequence[Reply | Lost]


class Timer(Protocol):
    """Something that will happen, and can be stopped."""

    def cancel(self) -> None: ...


class Poller(Protocol):
    """What is needed of an event loop; all but the last are called in its own thread."""

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> object: ...

    def remove_reader(self, fd: int, /) -> object: ...

    def add_writer(self, fd: int, callback: Callable[[], None], /) -> object: ...

    def remove_writer(self, fd: int, /) -> object: ...

    def call_later(self, seconds: float, callback: Callable[[], None], /) -> Timer: ...

    def call_soon_threadsafe(self, callback: Callable[[], None], /) -> object: ...


class Control(Protocol):
    """Keeps the control sets of one life of the cache. Calls may come from any thread.

    Attributes:
        name: Of this life; entries of another are never used.
        is_shared: Other processes leave entries that ``read`` finds.
        is_over: It has ended for good: not even what may be old is answered from it.
    """

    name: str
    is_shared: bool
    is_over: bool

    def is_alive(self) -> bool:
        """True while this process may answer from this life of the cache."""
        ...

    def open(self, realms: Collection[str]) -> Mapping[str, Opened] | None:
        """Returns control sets as they are now, made if they do not exist; None if that fails."""
        ...

    def validate(self, looks: Sequence[Look]) -> Replies | None:
        """Returns what happened since, one for each look, ``*`` read last; None if that fails."""
        ...

    def validate_soon(
        self, looks: Sequence[Look], then: Callable[[Replies | None], None], poller: Poller
    ) -> None:
        """As ``validate``, for the thread of an event loop: nothing is waited for.

        Args:
            then: Told the replies, in that thread, perhaps at once.
            poller: The event loop; always the same one.
        """
        ...

    def read(
        self, looks: Sequence[Look], keys: Sequence[Sequence[str]]
    ) -> tuple[Replies, list[list[bytes | None]]] | None:
        """Validates, and reads entries that are not older than what they depend on.

        Args:
            keys: For each look, the digests of the entries wanted of its realm.

        Returns:
            The replies, and for each look the entries found; None if that fails.
        """
        ...

    def share(self, realm: str, key: str, entry: bytes, milliseconds: int) -> None:
        """Leaves an entry to other processes, soon and perhaps not at all."""
        ...

    def mark(self, mark: str, tags: Mapping[str, Collection[str]]) -> bool:
        """Notes in each realm that a write on these tags is under way; False if that failed.

        Args:
            mark: Of this write alone.
        """
        ...

    def bump(self, mark: str, tags: Mapping[str, Collection[str]]) -> Mapping[str, int]:
        """Turns the marks of a write into a finished one.

        Returns:
            Realm to its sequence with this write; 0 where the mark was not there any more.
        """
        ...

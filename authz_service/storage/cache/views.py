"""L1: what this process remembers of each control set, and the rule by which it may be used.

Nothing is removed when something changes: an entry is judged when it is used, against what one
validation proved (consistency.md 4.3 to 4.6). Nothing else reads or writes an entry.
"""

import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from authz_service.base.clock import boot_seconds
from authz_service.base.consistency import ENVIRONMENT, Position
from authz_service.base.remembered import Remembered
from authz_service.engine.tags import ANY_WRITE, ENVIRONMENT_DEFINITIONS
from authz_service.storage.cache.control import (
    Control,
    Look,
    Lost,
    Opened,
    Poller,
    Replies,
    Reply,
)
from authz_service.storage.cache.lanes import Lanes
from authz_service.storage.cache.sharing import Sharing
from authz_service.storage.tagged_facts import TaggedFact
from authz_service.telemetry.metrics import Metrics

# A log of more tags costs more than starting the view anew.
LOG_MAX = 50_000
IDLE_SECONDS = 600.0
_CUTS_MAX = 10_000
# What an entry and each of its parts weigh, measured on 64-bit CPython 3.11 and rounded up.
_ENTRY_BYTES, _PART_BYTES, _TAG_BYTES = 600, 160, 110


class Entry:
    """A cached fact.

    Attributes:
        since: The sequence of the last reply before the fact was read: it holds what finished up to
            there.
        checked: Up to this sequence of the view no tag of it has changed.
        number: Of its fill in the view; a cut knows the fills before it was sent.
        version: For facts that use definitions: the version it was read under, else None.
    """

    __slots__ = (
        "checked", "expires", "number", "since", "size", "tags", "uses_definitions", "value",
        "version",
    )  # fmt: skip

    def __init__(self, fact: TaggedFact, since: int, number: int, version: str | None) -> None:
        self.value = fact.value
        self.tags = fact.tags
        self.uses_definitions = fact.uses_definitions
        self.version = version
        self.expires = fact.expires
        self.since = since
        self.checked = since
        self.number = number
        self.size = _ENTRY_BYTES + _PART_BYTES * fact.size + _TAG_BYTES * len(fact.tags)


class View:
    """What one process knows of one control set.

    Invariant: ``log`` holds every tag that finished after the view began, up to ``sequence``.

    Attributes:
        definitions: For ``*``: the sequence at which ``E`` was last written, known at ``sequence``.
        fills: Counts entries put in.
        used: When it was last used, boot clock.
    """

    __slots__ = (
        "bytes", "definitions", "entries", "fills", "lock", "log", "nonce", "realm", "sequence",
        "used",
    )  # fmt: skip

    def __init__(self, realm: str, opened: Opened) -> None:
        self.realm = realm
        self.nonce = opened.nonce
        self.sequence = opened.sequence
        self.definitions = opened.definitions
        self.log: dict[str, int] = {}
        self.entries: dict[Hashable, Entry] = {}
        self.fills = 0
        self.bytes = 0
        self.used = boot_seconds()
        self.lock = threading.Lock()


class Part(NamedTuple):
    """What one validation proved about one view.

    Attributes:
        sequence: Of the reply.
        pending: Tags of writes under way then, and ``s`` if there were any.
        upto: Entries with a higher number were put in after the validation was sent.
    """

    view: View
    sequence: int
    pending: frozenset[str]
    upto: int


class Cut(NamedTuple):
    """What one validation proved: one instant of all control sets of a request.

    Attributes:
        parts: Realm to its part; ``*`` is always there.
        version: Of the environment's definitions; None while a write on them is under way.
        sent: When the validation was sent, boot clock.
        control: The life of the cache it belongs to.
        lost: Realms whose view had to be given up, and why.
    """

    parts: Mapping[str, Part]
    version: str | None
    sent: float
    control: Control
    lost: Mapping[str, str] = MappingProxyType({})

    def positions(self, realms: Iterable[str]) -> dict[str, Position]:
        """Returns where control sets were, for the token of an answer."""
        name, parts = self.control.name, self.parts
        return {realm: Position(name, parts[realm].sequence) for realm in realms}


class _Asking(NamedTuple):
    """What a validation asks, and what was known when it did.

    Attributes:
        upto: Of each view, the fills so far.
        definitions: Of ``*``.
    """

    views: list[View]
    looks: list[Look]
    upto: list[int]
    sent: float
    definitions: int


class _Soon(NamedTuple):
    """A batch of calls that waits for a validation."""

    control: Control
    combinations: Collection[frozenset[str]]
    then: Callable[["Cut | str"], None]


_NOTHING: frozenset[str] = frozenset()
_ANY_WRITE = frozenset({ANY_WRITE})


def usable(entry: Entry, part: Part, version: str | None, now: int, *, in_order: bool) -> bool:
    """True if an entry was valid at the instant of the cut (consistency.md 4.4).

    Args:
        version: Of the cut.
        now: The instant at which ends are judged.
        in_order: Only entries put in before the validation was sent; others may hold a later write
            than the rest of the answer.
    """
    if in_order and entry.number > part.upto:
        return False
    if part.pending and not part.pending.isdisjoint(entry.tags):
        return False
    if entry.uses_definitions and (version is None or entry.version != version):
        return False
    if entry.expires is not None and now >= entry.expires:
        return False
    view = part.view
    # Read before the log: what is checked below may only be more than this.
    sequence = view.sequence
    if entry.checked >= sequence:
        return True
    log, since = view.log, entry.since
    for tag in entry.tags:
        if log.get(tag, 0) > since:
            return False
    entry.checked = sequence
    return True


def _wanted(realms: Iterable[str]) -> tuple[str, ...]:
    """Returns realms in the one order in which they are asked, ``*`` last."""
    return (*sorted(realm for realm in realms if realm != ENVIRONMENT), ENVIRONMENT)


class Views:
    """The views of one process, for one life of the cache at a time.

    Args:
        bytes_max: What all entries together may weigh, by estimate.
        sharing: How entries are shared with other processes.
        metrics: None for tests that count nothing.
    """

    def __init__(
        self, bytes_max: int, sharing: Sharing | None = None, metrics: Metrics | None = None
    ) -> None:
        self._bytes_max = bytes_max
        self._metrics = metrics
        # The last cut of each combination of control sets; few of them are asked for.
        self._cuts: dict[tuple[str, ...], Cut] = {}
        self._lanes: Lanes[Cut | str] = Lanes(self._count_calls)
        self._sharing = sharing or Sharing()
        self._name = ""
        self._views: dict[str, View] = {}
        self._lock = threading.Lock()
        self._bytes = 0
        # Of the event loop's thread alone.
        self._soon: list[_Soon] = []
        self._under_way: list[_Soon] | None = None
        self._orders: Remembered[frozenset[str], tuple[str, ...]] = Remembered(_CUTS_MAX)

    def _count_calls(self, calls: int) -> None:
        if self._metrics is not None:
            self._metrics.cache_validation_calls.observe(calls)

    @property
    def bytes_held(self) -> int:
        """What all entries weigh, by estimate."""
        return self._bytes

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return sum(len(view.entries) for view in list(self._views.values()))

    def validate(self, control: Control, realms: Iterable[str]) -> Cut | str:
        """Asks the control sets of some organizations, and ``*``, what happened.

        Returns:
            The cut, or why there is none: nothing known may be used for this request then.
        """
        wanted = _wanted(realms)
        if not control.is_shared:
            # Nothing to wait for, hence nothing to share.
            return self._validated(control, wanted)
        shared = self._lanes.run((control.name, *wanted), lambda: self._validated(control, wanted))
        return "failed" if shared is None else shared

    def last_cut(self, realms: Iterable[str], seconds: float) -> Cut | None:
        """Returns the last validation of some organizations, if it was sent lately enough."""
        wanted = _wanted(realms)
        cut = self._cuts.get(wanted)
        if cut is None or boot_seconds() - cut.sent > seconds:
            return None
        if cut.control.name != self._name or cut.control.is_over:
            return None
        # A view that was given up may hold what was never validated again.
        if any(self._views.get(realm) is not cut.parts[realm].view for realm in wanted):
            return None
        return cut

    def _validated(self, control: Control, wanted: Sequence[str]) -> Cut | str:
        asked = self._ask(control, wanted, None)
        return asked if isinstance(asked, str) else asked[0]

    def read(
        self, control: Control, realms: Iterable[str], keys: Mapping[str, Sequence[Hashable]]
    ) -> tuple[Cut, dict[Hashable, Entry]] | str:
        """Validates anew, and finds entries that other processes left.

        Args:
            keys: Facts that are missing here, by organization; of subjects and resources.

        Returns:
            The new cut and what was found, all valid at its instant; or why there is none.
        """
        wanted = [realm for realm in realms if realm != ENVIRONMENT]
        wanted.append(ENVIRONMENT)
        # The version is part of the digest: the last one known, which the reply then confirms.
        star = self._views.get(ENVIRONMENT)
        version = f"{star.nonce}.{star.definitions}" if star is not None else ""
        digests = [
            [self._sharing.digest(realm, key, version) for key in keys.get(realm, ())]
            for realm in wanted
        ]
        asked = self._ask(control, wanted, digests)
        if isinstance(asked, str):
            return asked
        cut, blobs = asked
        found: dict[Hashable, Entry] = {}
        for realm, there in zip(wanted, blobs, strict=True):
            part = cut.parts[realm]
            for key, blob in zip(keys.get(realm, ()), there, strict=True):
                shared = None if blob is None else self._sharing.decode(blob, key, realm)
                if shared is None:
                    continue
                fact = shared.fact
                if fact.uses_definitions and shared.version != cut.version:
                    continue
                entry = self.put(part, key, fact, cut.version)
                if entry is not None:
                    found[key] = entry
        return cut, found

    def share(self, cut: Cut, part: Part, key: Hashable, fact: TaggedFact, now: int) -> None:
        """Leaves a fact that was just put in to other processes."""
        if cut.control.is_shared and part.view.realm != ENVIRONMENT:
            version = (cut.version or "") if fact.uses_definitions else ""
            self._sharing.share(
                cut.control, part.view.realm, key, fact,
                since=part.sequence, nonce=part.view.nonce, version=version, now=now,
            )  # fmt: skip

    def _ask(
        self, control: Control, wanted: Sequence[str], keys: Sequence[Sequence[str]] | None
    ) -> tuple[Cut, list[list[bytes | None]]] | str:
        views = self._views if control.name == self._name else self._begin(control)
        missing = [realm for realm in wanted if realm not in views]
        if missing and not self._open(control, missing):
            return "failed"
        asking = self._asking(wanted)
        if len(asking.looks) != len(wanted):
            return "dropped"
        blobs: list[list[bytes | None]] = []
        replies: Replies | None
        if keys is None:
            replies = control.validate(asking.looks)
        else:
            read = control.read(asking.looks, keys)
            replies, blobs = read if read is not None else (None, blobs)
        cut = self._cut(control, asking, replies)
        if isinstance(cut, str):
            return cut
        if len(cut.parts) != len(wanted):
            return next(iter(cut.lost.values()))
        if keys is None:
            self._keep(tuple(wanted), cut)
        return cut, blobs

    def _asking(self, wanted: Iterable[str]) -> "_Asking":
        """Returns what is to be asked of control sets that have a view, ``*`` last."""
        views = self._views
        looking = [view for realm in wanted if (view := views.get(realm)) is not None]
        sent = boot_seconds()
        star = looking[-1] if looking else None
        if star is None or star.realm != ENVIRONMENT:
            return _Asking([], [], [], sent, 0)
        with star.lock:
            definitions = star.definitions
            star_look = Look(ENVIRONMENT, star.nonce, star.sequence)
        upto = [view.fills for view in looking]
        looks = [Look(view.realm, view.nonce, view.sequence) for view in looking[:-1]]
        looks.append(star_look)
        return _Asking(looking, looks, upto, sent, definitions)

    def _cut(self, control: Control, asking: "_Asking", replies: Replies | None) -> Cut | str:
        """Returns what the replies prove, or why they prove nothing."""
        if replies is None:
            return "failed"
        sent, definitions = asking.sent, asking.definitions
        parts: dict[str, Part] = {}
        lost: dict[str, str] = {}
        for view, fills, reply in zip(asking.views, asking.upto, replies, strict=True):
            if isinstance(reply, Lost):
                self.drop(view)
                lost[view.realm] = reply.reason
                continue
            self._apply(view, reply)
            view.used = sent
            parts[view.realm] = Part(
                view,
                reply.sequence,
                reply.pending | _ANY_WRITE if reply.pending else _NOTHING,
                fills,
            )
        reply = replies[-1]
        if isinstance(reply, Lost):
            return reply.reason
        for tag, score in reply.changed:
            if tag == ENVIRONMENT_DEFINITIONS:
                definitions = max(definitions, score)
        version = None
        if ENVIRONMENT_DEFINITIONS not in reply.pending:
            version = f"{asking.views[-1].nonce}.{definitions}"
        if self._metrics is not None:
            self._metrics.cache_validation_seconds.observe(boot_seconds() - sent)
        if not control.is_alive():
            return "lease"
        return Cut(parts, version, sent, control, lost)

    def _keep(self, wanted: tuple[str, ...], cut: Cut) -> None:
        """Remembers the last cut of a combination of control sets."""
        last = self._cuts.get(wanted)
        if last is None or last.sent < cut.sent:
            if len(self._cuts) >= _CUTS_MAX:
                self._cuts.clear()
            self._cuts[wanted] = cut

    # --- without waiting, in the thread of an event loop -----------------------------------------

    def validate_soon(
        self,
        control: Control,
        combinations: Collection[frozenset[str]],
        then: Callable[[Cut | str], None],
        poller: Poller,
    ) -> None:
        """Asks the control sets of some organizations, and ``*``, all at once.

        At most one validation is under way; what is asked meanwhile shares the next one. The cut
        has no part for organizations that nothing is known of here, or nothing more.

        Args:
            combinations: Of organizations, as calls ask about them.
            then: Told the cut, or why there is none, in the thread of the event loop.
        """
        self._soon.append(_Soon(control, combinations, then))
        if self._under_way is None:
            self._ask_soon(poller)

    def _ask_soon(self, poller: Poller) -> None:
        soon, self._soon = self._soon, []
        control = soon[-1].control
        if control.name != self._name:
            self._begin(control)
        realms = set[str]().union(*(realms for each in soon for realms in each.combinations))
        realms.discard(ENVIRONMENT)
        asking = self._asking((*realms, ENVIRONMENT))
        if not asking.looks:
            self._answer_soon(soon, "dropped")
            return
        self._under_way = soon

        def answered(replies: Replies | None) -> None:
            self._under_way = None
            cut = self._cut(control, asking, replies)
            # The next is sent first: its answer is on its way while these are worked on.
            if self._soon:
                self._ask_soon(poller)
            self._count_calls(sum(len(each.combinations) for each in soon))
            self._answer_soon(soon, cut)

        control.validate_soon(asking.looks, answered, poller)

    def _answer_soon(self, soon: Iterable["_Soon"], cut: Cut | str) -> None:
        for each in soon:
            if not isinstance(cut, str) and each.control is cut.control:
                for realms in each.combinations:
                    if realms <= cut.parts.keys():
                        wanted = self._orders.get(realms)
                        if wanted is None:
                            wanted = _wanted(realms)
                            self._orders.put(realms, wanted)
                        self._keep(wanted, cut)
                each.then(cut)
            else:
                each.then(cut if isinstance(cut, str) else "dropped")

    def _begin(self, control: Control) -> dict[str, View]:
        """Forgets everything of another life."""
        with self._lock:
            if self._name != control.name:
                self._views, self._name, self._bytes = {}, control.name, 0
            return self._views

    def _open(self, control: Control, realms: Collection[str]) -> bool:
        opened = control.open(realms)
        if opened is None:
            return False
        with self._lock:
            if self._name == control.name:
                for realm, state in opened.items():
                    # An existing view is never touched: its log knows nothing of what was missed.
                    self._views.setdefault(realm, View(realm, state))
        return True

    def _apply(self, view: View, reply: Reply) -> None:
        if reply.sequence <= view.sequence:
            # Nothing that another reply did not bring.
            return
        with view.lock:
            log = view.log
            for tag, score in reply.changed:
                if score > log.get(tag, 0):
                    log[tag] = score
                    if tag == ENVIRONMENT_DEFINITIONS and view.realm == ENVIRONMENT:
                        view.definitions = max(view.definitions, score)
            log[ANY_WRITE] = max(log.get(ANY_WRITE, 0), reply.sequence)
            # Last: who reads the new sequence must find its changes.
            view.sequence = max(view.sequence, reply.sequence)
        if len(view.log) > LOG_MAX:
            self.drop(view)

    def drop(self, view: View) -> None:
        """Gives a view up; the next request begins it anew."""
        with self._lock:
            if self._views.get(view.realm) is view:
                del self._views[view.realm]
                self._bytes -= view.bytes

    def put(self, part: Part, key: Hashable, fact: TaggedFact, version: str | None) -> Entry | None:
        """Fills an entry with a fact read after the validation that made the cut.

        A fill that lost a race against a write is never usable, so nothing is checked but that it
        replaces nothing newer.

        Returns:
            The entry; None if it was not kept.
        """
        if fact.uses_definitions and version is None:
            return None
        if not part.pending.isdisjoint(fact.tags):
            return None
        view = part.view
        with view.lock:
            old = view.entries.get(key)
            if old is not None and old.since > part.sequence:
                return None
            view.fills += 1
            entry = Entry(
                fact, part.sequence, view.fills, version if fact.uses_definitions else None
            )
            # Taken out first, so that the order of entries is that of their fills.
            view.entries.pop(key, None)
            view.entries[key] = entry
            self._weigh(view, entry.size - (old.size if old is not None else 0))
        if self._bytes > self._bytes_max:
            self._evict()
        return entry

    def _evict(self) -> None:
        """Makes room: idle views first, then the oldest entries of the one used longest ago."""
        now = boot_seconds()
        for view in sorted(self._views.values(), key=lambda view: view.used):
            if self._bytes <= self._bytes_max * 9 // 10:
                return
            if now - view.used > IDLE_SECONDS:
                self.drop(view)
                continue
            with view.lock:
                freed = 0
                while view.entries and self._bytes - freed > self._bytes_max * 9 // 10:
                    freed += view.entries.pop(next(iter(view.entries))).size
                self._weigh(view, -freed)

    def _weigh(self, view: View, grown: int) -> None:
        with self._lock:
            # What was given up is weighed no more.
            if self._views.get(view.realm) is view:
                view.bytes += grown
                self._bytes += grown

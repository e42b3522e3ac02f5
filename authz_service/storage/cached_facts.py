"""Facts from a cache that is as exact as SQL: validate, cut, snapshot, second validation.

One validation a request tells what changed; what is remembered and did not change is used, what is
missing comes from one SQL snapshot begun afterwards (consistency.md 4.5). Whenever the cache cannot
be believed, all facts come from SQL.
"""

import random
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from authz_service.base import errors
from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import ENVIRONMENT, Position
from authz_service.engine.facts import Facts, MayBe, Question, ResourceRef, Subject
from authz_service.storage import tagged_facts
from authz_service.storage.cache.control import Control, Poller
from authz_service.storage.cache.flights import Flights
from authz_service.storage.cache.sharing import READ_MAX
from authz_service.storage.cache.views import Cut, Entry, Views, usable
from authz_service.storage.database import Database
from authz_service.storage.facts import SqlFacts
from authz_service.storage.tagged_facts import TaggedFact
from authz_service.telemetry.metrics import Metrics

# Of its own: threads must not disturb who seeds the common one.
_RANDOM = random.Random()

# Owners remembered: an id is about 60 characters, so this is some 30 MiB at most.
OWNERS_MAX = 200_000

# Comparisons that wait for their thread.
VERIFYING_MAX = 10_000

# Keys of the two facts of ``*``; the others are named by their subject or resource.
_PERMISSIONS = "permissions"


class _Need(NamedTuple):
    """A fact that a request needs: under which key, and which control set judges it."""

    key: Hashable
    realm: str
    kind: str


class _Waiting(NamedTuple):
    """A question that needs a validation: its place, what it needs, and of which realms."""

    place: int
    question: Question
    needs: list[_Need]
    realms: frozenset[str]


class CachedFacts:
    """The FactSource that remembers.

    Args:
        database: Where missing facts come from.
        control: Gives the life of the cache that may be used now; None = read SQL.
        views: What this process remembers.
        snapshots_max: Computations of missing facts at once.
        verify_ratio: Share of the answers from the cache that are compared with SQL.
        alarm: Told the kind of a cached fact that was wrong: nothing cached may be believed then.
        poller: The event loop in whose thread ``at_once`` is asked; None if nobody asks it.
    """

    def __init__(
        self,
        database: Database,
        control: Callable[[], Control | None],
        views: Views,
        metrics: Metrics,
        *,
        snapshots_max: int,
        verify_ratio: float = 0.0,
        alarm: Callable[[str], None] = lambda kind: None,
        poller: Poller | None = None,
    ) -> None:
        self._database = database
        self._sql = SqlFacts(database)
        self._control = control
        self._views = views
        self._metrics = metrics
        self._flights = Flights(snapshots_max)
        self._verify_ratio = verify_ratio
        self._alarm = alarm
        self._poller = poller
        self._verifying: ThreadPoolExecutor | None = None
        # Whose a membership, group or resource is never changes, so this needs no validation.
        self._owners: dict[Hashable, str] = {}
        # The highest revision of each realm that was read: a lower bound of every later state.
        self._revisions: dict[str, int] = {}
        self._lock = threading.Lock()

    def load(
        self,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        *,
        credential_id: str = "",
        may_be: MayBe | None = None,
    ) -> Facts:
        """Returns the facts for every combination of the arguments, of one instant.

        Args:
            may_be: A remembered state that is old enough is used as it is, without a look at what
                happened since, unless a credential is to be confirmed.

        Raises:
            ResourceExhausted: OVERLOADED.
            Unavailable: DATABASE_UNAVAILABLE.
        """
        if may_be is not None and not credential_id:
            facts = self._under_last_cut(subjects, permission_slugs, resources, may_be)
            if facts is not None:
                return facts
        control = self._control()
        if control is None:
            return self._from_sql(subjects, permission_slugs, resources, credential_id, "bypass")
        needs = self._needs(subjects, resources, credential_id)
        realms = {need.realm for need in needs}
        if "" in realms:
            # Only what exists has an owner; one statement answers, and tells it for the next time.
            facts = self._from_sql(subjects, permission_slugs, resources, credential_id, "sql")
            self._learn(facts)
            return facts
        for waiting in (True, False):
            # Before the validation: what is known by then is part of every state it can prove.
            revisions = {realm: self._revisions.get(realm, 0) for realm in realms}
            cut = self._views.validate(control, realms)
            if isinstance(cut, str):
                self._metrics.cache_view_dropped.add(cut)
                break
            now = self._database.now()
            found, missing = self._look_up(needs, cut, now)
            source, others = "view", frozenset[Hashable]()
            if control.is_shared and any(need.realm != ENVIRONMENT for need in missing):
                shared = self._from_others(cut, realms, needs, found, missing, now)
                if isinstance(shared, str):
                    self._metrics.cache_view_dropped.add(shared)
                    break
                cut, found, missing, others = shared
                source = "l2"
            if not missing:
                self._count(needs, missing, others, source)
                if self._verify_ratio and _RANDOM.random() < self._verify_ratio:
                    self._verify(_RANDOM.choice(needs), found, cut, now)
                return _facts(
                    found,
                    subjects,
                    permission_slugs,
                    resources,
                    credential_id,
                    now,
                    revisions,
                    cut.positions(realms),
                )
            with self._flights.alone([need.key for need in missing], waiting=waiting) as is_first:
                if not is_first:
                    continue
                filled = self._fill(
                    subjects, permission_slugs, resources, credential_id, needs, found, missing, cut
                )
            if filled is not None:
                self._count(needs, missing, others, "mixed" if found else "sql")
                return filled
            break
        return self._from_sql(subjects, permission_slugs, resources, credential_id, "sql")

    # --- without waiting, in the thread of an event loop -----------------------------------------

    def at_once(
        self, questions: Sequence[Question], then: Callable[[Sequence[Facts | None]], None]
    ) -> None:
        """Answers several questions from memory, with one validation for all of them.

        Args:
            then: As ``FactSource`` has it.
        """
        answers: list[Facts | None] = [None] * len(questions)
        waiting: list[_Waiting] = []
        control = self._control() if self._poller is not None else None
        for i, question in enumerate(questions):
            subjects, permission_slugs, resources, credential_id, may_be = question
            if may_be is not None and not credential_id:
                answers[i] = self._under_last_cut(subjects, permission_slugs, resources, may_be)
                if answers[i] is not None:
                    continue
            if control is None:
                continue
            needs = self._needs(subjects, resources, credential_id)
            realms = frozenset([need.realm for need in needs])
            if "" not in realms:
                waiting.append(_Waiting(i, question, needs, realms))
        if control is None or self._poller is None or not waiting:
            then(answers)
            return
        combinations = {each.realms for each in waiting}
        # Before the validation, as in ``load``.
        revisions = {
            realms: {realm: self._revisions.get(realm, 0) for realm in realms}
            for realms in combinations
        }

        def validated(cut: Cut | str) -> None:
            if isinstance(cut, str):
                self._metrics.cache_view_dropped.add(cut)
            else:
                self._judge(waiting, cut, revisions, answers)
            then(answers)

        self._views.validate_soon(control, combinations, validated, self._poller)

    def _judge(
        self,
        waiting: Iterable["_Waiting"],
        cut: Cut,
        revisions: Mapping[frozenset[str], Mapping[str, int]],
        answers: list[Facts | None],
    ) -> None:
        """Answers what can be answered under a cut."""
        now = self._database.now()
        positions: dict[frozenset[str], Mapping[str, Position]] = {}
        used: list[_Need] = []
        count = 0
        for i, question, needs, realms in waiting:
            found, missing = self._look_up(needs, cut, now)
            if missing:
                continue
            here = positions.get(realms)
            if here is None:
                here = positions[realms] = cut.positions(realms)
            answers[i] = _facts(
                found,
                question.subjects,
                question.permission_slugs,
                question.resources,
                question.credential_id,
                now,
                revisions[realms],
                here,
            )
            used += needs
            count += 1
            if self._verify_ratio and _RANDOM.random() < self._verify_ratio:
                self._verify_in_thread(_RANDOM.choice(needs), found, cut, now)
        if count:
            self._count(used, (), frozenset(), "view", amount=count)

    def _verify_in_thread(
        self, need: _Need, found: Mapping[Hashable, Entry], cut: Cut, now: int
    ) -> None:
        """Compares with SQL where it holds up nobody; too much of it is left out."""
        if self._verifying is None:
            self._verifying = ThreadPoolExecutor(1, thread_name_prefix="cache-verify")
        if self._verifying._work_queue.qsize() < VERIFYING_MAX:
            self._verifying.submit(self._verify, need, found, cut, now)

    def close(self) -> None:
        """Ends what runs in the background."""
        if self._verifying is not None:
            self._verifying.shutdown(cancel_futures=True)

    def revisions(self, realms: Collection[str]) -> Mapping[str, int]:
        """Returns the present revisions of realms in SQL."""
        found = self._sql.revisions(realms)
        self._remember(found)
        return found

    def _from_sql(
        self,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        credential_id: str,
        source: str,
    ) -> Facts:
        self._metrics.cache_answers.add(source)
        return self._sql.load(subjects, permission_slugs, resources, credential_id=credential_id)

    # --- what a request needs ----------------------------------------------------------------

    def _needs(
        self, subjects: Iterable[Subject], resources: Iterable[ResourceRef], credential_id: str
    ) -> list[_Need]:
        owners = self._owners
        needs = [_Need(_PERMISSIONS, ENVIRONMENT, "permissions")]
        if credential_id:
            needs.append(_Need(credential_id, ENVIRONMENT, "credential"))
        # A caller may name an organization that does not exist; nothing is opened for those.
        known = self._revisions
        for subject in subjects:
            realm = subject.organization_id
            realm = (realm if realm in known else "") if realm else owners.get(subject, "")
            needs.append(_Need(subject, realm, "grants"))
        for ref in resources:
            realm = ref.organization_id
            realm = (realm if realm in known else "") if realm else owners.get(ref, "")
            needs.append(_Need(ref, realm, "path"))
        return needs

    def _learn(self, facts: Facts) -> None:
        """Remembers whose the subjects and resources are."""
        owners: dict[Hashable, str] = {}
        for known in (facts.grants, facts.paths):
            owners.update((key, fact.organization_id) for key, fact in known.items())
        self._own(owners)
        self._remember(facts.revisions)

    def _own(self, owners: Mapping[Hashable, str]) -> None:
        with self._lock:
            if len(self._owners) + len(owners) > OWNERS_MAX:
                self._owners.clear()
            self._owners.update(owners)

    def _remember(self, revisions: Mapping[str, int]) -> None:
        with self._lock:
            for realm, revision in revisions.items():
                if revision > self._revisions.get(realm, 0):
                    self._revisions[realm] = revision

    # --- what is remembered --------------------------------------------------------------------

    @staticmethod
    def _look_up(
        needs: Iterable[_Need], cut: Cut, now: int
    ) -> tuple[dict[Hashable, Entry], list[_Need]]:
        found: dict[Hashable, Entry] = {}
        missing = []
        parts, version = cut.parts, cut.version
        for need in needs:
            part = parts.get(need.realm)
            if part is not None:
                entry = part.view.entries.get(need.key)
                if entry is not None and usable(entry, part, version, now, in_order=True):
                    found[need.key] = entry
                    continue
            missing.append(need)
        return found, missing

    def _under_last_cut(
        self,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        may_be: MayBe,
    ) -> Facts | None:
        """Answers from the last validation, without any I/O; None if that cannot be done."""
        needs = self._needs(subjects, resources, "")
        realms = {need.realm for need in needs}
        cut = self._views.last_cut(realms, may_be.seconds)
        if cut is None:
            return None
        positions = cut.positions(realms)
        for realm, wanted in (may_be.positions or {}).items():
            here = positions.get(realm)
            # A write in an organization that was not asked about cannot change the answer.
            if here is not None and (here.life != wanted.life or here.sequence < wanted.sequence):
                return None
        now = self._database.now()
        found, missing = self._look_up(needs, cut, now)
        if missing:
            return None
        self._count(needs, (), frozenset(), "last_cut")
        revisions = dict.fromkeys(positions, 0)
        return _facts(found, subjects, permission_slugs, resources, "", now, revisions, positions)

    def _from_others(
        self,
        before: Cut,
        realms: Collection[str],
        needs: Collection[_Need],
        found: Mapping[Hashable, Entry],
        missing: Collection[_Need],
        now: int,
    ) -> tuple[Cut, dict[Hashable, Entry], list[_Need], frozenset[Hashable]] | str:
        """Looks for what is missing among what other processes left: a validation by itself.

        Args:
            before: The cut under which the rest was found.

        Returns:
            A new cut, what is usable under it, what is still missing, and what others left.
        """
        keys: dict[str, list[Hashable]] = {}
        wanted = [need for need in missing if need.realm != ENVIRONMENT][:READ_MAX]
        for need in wanted:
            keys.setdefault(need.realm, []).append(need.key)
        read = self._views.read(before.control, realms, keys)
        if isinstance(read, str):
            return read
        cut, others = read
        usable_now: dict[Hashable, Entry] = {}
        still = []
        for need in needs:
            part = cut.parts[need.realm]
            entry = others.get(need.key)
            # The log of a view that was begun anew knows nothing of what an older entry missed.
            if entry is None and part.view is before.parts[need.realm].view:
                entry = found.get(need.key)
            if entry is not None and usable(entry, part, cut.version, now, in_order=False):
                usable_now[need.key] = entry
            else:
                still.append(need)
        return cut, usable_now, still, frozenset(others)

    def _fill(
        self,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        credential_id: str,
        needs: Collection[_Need],
        found: Mapping[Hashable, Entry],
        missing: Collection[_Need],
        cut: Cut,
    ) -> Facts | None:
        """Reads what is missing from one snapshot; None if it does not go with what was found."""
        keys = {need.key for need in missing}
        with self._database.snapshot(SYSTEM) as snapshot:
            loaded = tagged_facts.load(
                snapshot,
                [subject for subject in subjects if subject in keys],
                [ref for ref in resources if ref in keys],
                permissions=_PERMISSIONS in keys,
                credential_id=credential_id if credential_id in keys else "",
                realms={need.realm for need in needs},
            )
            now = snapshot.now
        if loaded is None:
            self._metrics.cache_fills.add("skipped")
            return None
        self._remember(loaded.revisions)
        fresh: dict[Hashable, TaggedFact] = {
            key: fact for facts in (loaded.grants, loaded.paths) for key, fact in facts.items()
        }
        if loaded.permissions is not None:
            fresh[_PERMISSIONS] = loaded.permissions
        if loaded.credential is not None:
            fresh[credential_id] = loaded.credential
        # What was thought of their owners may have been wrong after rows were restored.
        self._own({key: fact.realm for key, fact in fresh.items() if fact.realm != ENVIRONMENT})
        for key, fact in fresh.items():
            part = cut.parts.get(fact.realm)
            if part is None or self._views.put(part, key, fact, cut.version) is None:
                self._metrics.cache_fills.add("skipped")
                continue
            self._metrics.cache_fills.add("kept")
            self._views.share(cut, part, key, fact, now)
        if found and not self._still_usable(needs, found, cut, now):
            self._metrics.cache_cut_broken.add()
            return None
        return _facts(
            {**found, **fresh},
            subjects,
            permission_slugs,
            resources,
            credential_id,
            now,
            loaded.revisions,
        )

    def _still_usable(
        self, needs: Iterable[_Need], found: Mapping[Hashable, Entry], cut: Cut, now: int
    ) -> bool:
        """True if what was found is valid after the snapshot as before it, hence at its instant."""
        used = [need for need in needs if need.key in found]
        again = self._views.validate(cut.control, {need.realm for need in used})
        if isinstance(again, str):
            return False
        for need in used:
            part = again.parts[need.realm]
            if part.view is not cut.parts[need.realm].view:
                return False
            if not usable(found[need.key], part, again.version, now, in_order=False):
                return False
        return True

    def _verify(self, need: _Need, found: Mapping[Hashable, Entry], cut: Cut, now: int) -> None:
        """Compares a fact that was used with SQL; no write can make this a false alarm.

        What is usable under the cut before the snapshot and under one after it did not change in
        between, so the snapshot must show the same.
        """
        entry = found[need.key]
        key = need.key
        try:
            with self._database.snapshot(SYSTEM) as snapshot:
                loaded = tagged_facts.load(
                    snapshot,
                    [key] if isinstance(key, Subject) else (),
                    [key] if isinstance(key, ResourceRef) else (),
                    permissions=need.kind == "permissions",
                    credential_id=str(key) if need.kind == "credential" else "",
                )
                if loaded is None:
                    return
                fact: TaggedFact | None
                if isinstance(key, Subject):
                    fact = loaded.grants.get(key)
                elif isinstance(key, ResourceRef):
                    fact = loaded.paths.get(key)
                else:
                    fact = loaded.permissions or loaded.credential
                is_wrong = fact is None or tagged_facts.differs(snapshot, entry.value, fact.value)
                now = max(now, snapshot.now)
        except errors.Refusal:
            return
        again = self._views.validate(cut.control, {need.realm})
        if not is_wrong or isinstance(again, str):
            return
        part = again.parts[need.realm]
        if part.view is cut.parts[need.realm].view and usable(
            entry, part, again.version, now, in_order=False
        ):
            self._metrics.cache_inconsistency.add()
            self._alarm(need.kind)

    def _count(
        self,
        needs: Iterable[_Need],
        missing: Iterable[_Need],
        others: frozenset[Hashable],
        source: str,
        *,
        amount: int = 1,
    ) -> None:
        """Counts answers, and their facts together: a batch has thousands.

        Args:
            missing: What came from SQL.
            others: The keys of what other processes left.
            amount: How many answers.
        """
        self._metrics.cache_answers.add(source, amount=amount)
        count: dict[tuple[str, str], int] = {}
        read = {need.key for need in missing}
        for need in needs:
            where = "sql" if need.key in read else "l2" if need.key in others else "l1"
            count[need.kind, where] = count.get((need.kind, where), 0) + 1
        for (kind, where), facts in count.items():
            self._metrics.cache_facts.add(kind, where, amount=facts)


def _facts(
    known: Mapping[Hashable, Any],
    subjects: Iterable[Subject],
    permission_slugs: Iterable[str],
    resources: Iterable[ResourceRef],
    credential_id: str,
    now: int,
    revisions: Mapping[str, int],
    positions: Mapping[str, Position] | None = None,
) -> Facts:
    """Returns what decisions are made of; entries and facts look alike here."""
    types = known[_PERMISSIONS].value
    credential = known.get(credential_id) if credential_id else None
    return Facts(
        {subject: known[subject].value for subject in subjects if subject in known},
        {ref: known[ref].value for ref in resources if ref in known},
        {slug: types[slug] for slug in permission_slugs if slug in types},
        now,
        revisions,
        credential.value if credential is not None else None,
        positions,
    )

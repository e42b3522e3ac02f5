"""Facts that are remembered: what costs a statement, what never does, and one instant for all."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import event, select

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Refusal, ResourceExhausted
from authz_service.domain import (
    groups,
    memberships,
    permissions,
    resource_types,
    resources,
    role_assignments,
    roles,
    service_credentials,
    users,
)
from authz_service.domain.lifecycles import memberships as membership_lifecycle
from authz_service.domain.lifecycles import organizations
from authz_service.domain.role_assignments import Entry
from authz_service.engine.check import decide
from authz_service.engine.facts import GROUP, MEMBERSHIP, USER, Ask, ResourceRef, Subject
from authz_service.storage import cached_facts, tagged_facts
from authz_service.storage.cache import flights
from authz_service.storage.cache.control import Control, Look, Opened, Replies
from authz_service.storage.cache.marking import MemoryMarking
from authz_service.storage.cache.memory_control import MemoryControl
from authz_service.storage.cache.views import Views
from authz_service.storage.cached_facts import CachedFacts
from authz_service.storage.database import Database, Transaction
from authz_service.storage.facts import SqlFacts
from authz_service.storage.tables import Membership
from authz_service.telemetry.metrics import Metrics
from tests.conftest import ManualClock
from tests.histories import Together
from tests.statements import counting

SLUG = "folder:read"


class Meddled(MemoryControl):
    """Control sets after whose answers something happens.

    Attributes:
        after: What happens after each validation, the next one first.
        opened: Whose control sets were opened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.after: list[Callable[[], Any]] = []
        self.opened: set[str] = set()
        self.validated = 0

    def open(self, realms: Collection[str]) -> Mapping[str, Opened] | None:
        self.opened.update(realms)
        return super().open(realms)

    def validate(self, looks: Sequence[Look]) -> Replies | None:
        found = super().validate(looks)
        self.validated += 1
        if self.after:
            self.after.pop(0)()
        return found


class World:
    """Two organizations alike, and what remembers facts about them.

    Attributes:
        ids: "ann@acme", "acme", "band@acme" to ids.
        is_on: Whether the cache may be used.
    """

    def __init__(self, url: str, clock: ManualClock, **settings: Any) -> None:
        self.control = Meddled()
        self.database = Database(url, clock=clock, marking=MemoryMarking(self.control))
        self.views = Views(2**30)
        self.metrics = Metrics()
        self.is_on = True
        self.facts = CachedFacts(
            self.database,
            self._current,
            self.views,
            self.metrics,
            **{"snapshots_max": 4, "verify_ratio": 0.0, **settings},
        )
        self.sql = SqlFacts(self.database)
        self.ids: dict[str, str] = self.write(self._make)

    def _current(self) -> Control | None:
        return self.control if self.is_on else None

    @staticmethod
    def _make(tx: Transaction) -> dict[str, str]:
        resource_types.create(
            tx, slug="folder", name="F", parent_type_slugs=["organization", "folder"]
        )
        permissions.create(tx, slug=SLUG, name="R", resource_type_slug="folder")
        role = roles.create(tx, slug="folder-reader", name="R", resource_type_slug="folder")
        roles.set_permissions(tx, role.id, [SLUG])
        ids = {"reader": role.id, "ann": users.create(tx, email="ann@example.com").id}
        for name in ("acme", "globex"):
            home = ids[name] = organizations.create(tx, name=name).id
            made = memberships.create(tx, user_id=ids["ann"], organization_id=home)
            ids[f"ann@{name}"] = made["id"]
            ids[f"band@{name}"] = groups.create(tx, organization_id=home, name="band").id
            for key, parent in (("a", ""), ("b", "a"), ("c", "")):
                ids[f"{key}@{name}"] = resources.create(
                    tx,
                    organization_id=home,
                    resource_type_slug="folder",
                    external_id=key,
                    name=key,
                    parent=ResourceRef("", home, "folder", parent) if parent else None,
                ).id
        return ids

    def write(self, work: Callable[[Transaction], Any]) -> Any:
        """Makes a write and returns its result."""
        return self.database.write(work, actor=SYSTEM).result

    def ann(self, home: str = "acme") -> Subject:
        return Subject(MEMBERSHIP, self.ids[f"ann@{home}"])

    def ref(self, key: str, home: str = "acme") -> ResourceRef:
        return ResourceRef(self.ids[f"{key}@{home}"])

    def by_key(self, key: str, home: str = "acme") -> ResourceRef:
        return ResourceRef("", self.ids[home], "folder", key)

    def grant(self, key: str, home: str = "acme", end: int | None = None) -> str:
        """Lets ann read a folder; returns the role assignment's id."""
        entry = Entry(self.ann(home), "folder-reader", self.ref(key, home), end)
        return str(self.write(lambda tx: role_assignments.create(tx, entry))["id"])

    def revoke(self, assignment_id: str) -> None:
        self.write(lambda tx: role_assignments.delete(tx, assignment_id))

    def move(self, key: str, parent: str, home: str = "acme") -> None:
        self.write(
            lambda tx: resources.move(tx, self.ref(key, home), parent=self.ref(parent, home))
        )

    def may(self, resource: ResourceRef, subject: Subject | None = None) -> bool:
        """Asks the cache."""
        subject = subject or self.ann()
        facts = self.facts.load([subject], [SLUG], [resource])
        return decide(facts, Ask(subject, SLUG, resource)).allowed

    def cost(self, *args: Any, **kwargs: Any) -> int:
        """Returns how many statements a load takes."""
        with counting() as statements:
            self.facts.load(*args, **kwargs)
        return len(statements)


@pytest.fixture
def world(database_url: str, clock: ManualClock) -> Iterator[World]:
    world = World(database_url, clock)
    yield world
    world.database.close()


def answers(world: World, source: Any, asks: Sequence[Ask]) -> list[Any]:
    """Decides every question from one load; a refusal by its reason."""
    facts = source.load(
        list({ask.subject for ask in asks}),
        list({ask.permission_slug for ask in asks}),
        list({ask.resource for ask in asks}),
    )
    found: list[Any] = []
    for ask in asks:
        try:
            found.append(decide(facts, ask))
        except Refusal as refusal:
            found.append(refusal.reason)
    return found


# --- hits and misses -----------------------------------------------------------------------------


def test_a_miss_fills_and_a_hit_takes_no_statement(world: World) -> None:
    world.grant("a")
    asked = ([world.ann()], [SLUG], [world.ref("b")])
    # Whose they are is not known, then the facts are not.
    assert world.cost(*asked) == 1
    assert world.cost(*asked) > 1
    for _ in range(3):
        assert world.cost(*asked) == 0
        assert world.may(world.ref("b"))
    assert world.metrics.cache_fills.value("kept") == 3
    assert world.metrics.cache_answers.value("view") == 6
    # A slug that is not among all permissions is known to be unknown.
    assert world.cost([world.ann()], ["folder:nothing"], [world.ref("b")]) == 0


def test_every_form_of_a_subject_and_a_resource(world: World) -> None:
    world.grant("a")
    subjects = [world.ann(), Subject(USER, world.ids["ann"], world.ids["acme"])]
    subjects.append(Subject(GROUP, world.ids["band@acme"]))
    refs = [world.ref("b"), world.by_key("b"), world.ref("c"), world.by_key("c")]
    asks = [Ask(subject, SLUG, ref) for subject in subjects for ref in refs]
    expected = answers(world, world.sql, asks)
    assert {answer.allowed for answer in expected} == {True, False}
    for _ in range(3):
        assert answers(world, world.facts, asks) == expected
    assert world.cost(subjects, [SLUG], refs) == 0
    # Named twice, they are the same.
    assert answers(world, world.facts, asks + asks) == expected * 2


def test_what_is_named_twice_is_read_once(world: World) -> None:
    subject, ref = Subject(USER, world.ids["ann"], world.ids["acme"]), world.by_key("b")
    for _ in range(2):
        facts = world.facts.load([subject, subject], [SLUG, SLUG], [ref, ref])
        assert set(facts.grants) == {subject}
        assert set(facts.paths) == {ref}
    assert world.cost([subject], [SLUG], [ref]) == 0


def test_each_write_is_seen_at_once(world: World) -> None:
    assert not world.may(world.ref("b"))
    assert not world.may(world.ref("b"))
    made = world.grant("a")
    assert world.may(world.ref("b"))
    assert world.may(world.ref("b"))
    world.move("b", "c")
    assert not world.may(world.ref("b"))
    world.move("b", "a")
    assert world.may(world.ref("b"))
    world.write(lambda tx: roles.set_permissions(tx, world.ids["reader"], []))
    assert not world.may(world.ref("b"))
    world.write(lambda tx: roles.set_permissions(tx, world.ids["reader"], [SLUG]))
    assert world.may(world.ref("b"))
    world.write(lambda tx: memberships.deactivate(tx, world.ids["ann@acme"]))
    assert not world.may(world.ref("b"))
    world.write(lambda tx: memberships.reactivate(tx, world.ids["ann@acme"]))
    assert world.may(world.ref("b"))
    world.revoke(made)
    assert not world.may(world.ref("b"))


def test_a_write_elsewhere_costs_nothing_here(world: World) -> None:
    asked = ([world.ann()], [SLUG], [world.ref("b")])
    for _ in range(2):
        world.facts.load(*asked)
    world.grant("a", "globex")
    world.move("b", "c", "globex")
    # Another resource of the same organization, and the like.
    world.move("c", "a")
    assert world.cost(*asked) == 0


def test_an_end_that_has_passed(world: World, clock: ManualClock) -> None:
    world.grant("a", end=world.database.now() + 60_000_000)
    for _ in range(3):
        assert world.may(world.ref("b"))
    assert world.cost([world.ann()], [SLUG], [world.ref("b")]) == 0
    clock.advance(seconds=61)
    assert not world.may(world.ref("b"))
    assert not world.may(world.ref("b"))


def test_two_organizations_never_cross(world: World) -> None:
    world.grant("a")
    pairs = [Subject(USER, world.ids["ann"], world.ids[home]) for home in ("acme", "globex")]
    refs = [world.by_key("b", home) for home in ("acme", "globex")]
    asks = [Ask(subject, SLUG, ref) for subject in pairs for ref in refs]
    expected = answers(world, world.sql, asks)
    assert [getattr(answer, "allowed", answer) for answer in expected] == [
        True,
        "RESOURCE_NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        False,
    ]
    for _ in range(3):
        assert answers(world, world.facts, asks) == expected
        for ask, answer in zip(asks, expected, strict=True):
            assert answers(world, world.facts, [ask]) == [answer]
    made = world.grant("a", "globex")
    assert [world.may(ref, pair) for pair, ref in zip(pairs, refs, strict=True)] == [True, True]
    world.revoke(made)
    assert [world.may(ref, pair) for pair, ref in zip(pairs, refs, strict=True)] == [True, False]


def test_without_a_life_of_the_cache_everything_is_read(world: World) -> None:
    asked = ([world.ann()], [SLUG], [world.ref("b")])
    for _ in range(2):
        world.facts.load(*asked)
    world.is_on = False
    for _ in range(2):
        assert world.cost(*asked) == 1
    assert world.metrics.cache_answers.value("bypass") == 2
    world.is_on = True
    assert world.cost(*asked) == 0


# --- what is not kept ----------------------------------------------------------------------------


def test_unknown_ids_are_looked_up_each_time(world: World) -> None:
    stranger = world.write(lambda tx: users.create(tx, email="eve@example.com")).id
    pair = Subject(USER, stranger, world.ids["acme"])
    new = world.by_key("new")
    for subject, ref in (
        (Subject(MEMBERSHIP, "om_none"), world.ref("b")),
        (Subject(GROUP, "group_none"), world.ref("b")),
        (pair, world.ref("b")),
        (world.ann(), ResourceRef("resource_none")),
        (world.ann(), new),
    ):
        for _ in range(3):
            assert world.cost([subject], [SLUG], [ref]) > 0
            facts = world.facts.load([subject], [SLUG], [ref])
            assert len(facts.grants) + len(facts.paths) == 1
    # So that nothing has to be told when they come to be.
    world.write(
        lambda tx: memberships.create(
            tx, user_id=stranger, organization_id=world.ids["acme"], role_slug="member"
        )
    )
    world.write(
        lambda tx: resources.create(
            tx,
            organization_id=world.ids["acme"],
            resource_type_slug="folder",
            external_id="new",
            name="new",
        )
    )
    facts = world.facts.load([pair], [SLUG], [new])
    assert (set(facts.grants), set(facts.paths)) == ({pair}, {new})
    # And go: an id is never used again.
    world.write(
        lambda tx: membership_lifecycle.delete(tx, memberships_of(tx, stranger, world.ids["acme"]))
    )
    assert world.facts.load([pair], [SLUG], [new]).grants == {}


def memberships_of(tx: Transaction, user_id: str, organization_id: str) -> str:
    """Id of a membership by its pair."""
    return str(
        tx.connection.execute(
            select(Membership.id).where(
                Membership.user_id == user_id, Membership.organization_id == organization_id
            )
        ).scalar_one()
    )


def test_an_organization_that_does_not_exist_gets_no_control_set(world: World) -> None:
    """Else whoever asks about made-up ones fills Redis, and every process, for ever."""
    for number in range(3):
        home = f"org_made_up_{number}"
        facts = world.facts.load(
            [Subject(USER, "user_1", home)], [SLUG], [ResourceRef("", home, "folder", "a")]
        )
        assert (facts.grants, facts.paths) == ({}, {})
    assert world.control.opened <= {"*", world.ids["acme"], world.ids["globex"]}


def test_what_has_a_pending_tag_is_read_and_not_kept(world: World) -> None:
    world.grant("a")
    asked = ([world.ann()], [SLUG], [world.ref("b")])
    for _ in range(2):
        world.facts.load(*asked)
    kept = world.metrics.cache_fills.value("kept")
    tags = {world.ids["acme"]: [f"m:{world.ids['ann@acme']}"]}
    assert world.control.mark("1:x", tags)
    for _ in range(3):
        assert world.cost(*asked) > 0
        assert world.may(world.ref("b"))
    assert world.metrics.cache_fills.value("kept") == kept
    # Others are not concerned.
    band = ([Subject(GROUP, world.ids["band@acme"])], [SLUG], [world.ref("b")])
    for _ in range(2):
        world.facts.load(*band)
    assert world.cost(*band) == 0
    world.control.bump("1:x", tags)
    world.facts.load(*asked)
    assert world.cost(*asked) == 0


def test_grants_without_a_version_are_not_kept(world: World) -> None:
    asked = ([world.ann()], [SLUG], [world.ref("b")])
    for _ in range(2):
        world.facts.load(*asked)
    assert world.control.mark("1:x", {"*": ["E"]})
    for _ in range(2):
        assert world.cost(*asked) > 0
    world.control.bump("1:x", {"*": ["E"]})
    assert world.cost(*asked) > 0
    assert world.cost(*asked) == 0


def test_very_many_grants_are_answered_and_not_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tagged_facts, "GRANTS_MAX", 1)
    world.grant("a")
    world.grant("c")
    asked = ([world.ann()], [SLUG], [world.ref("b"), world.ref("c")])
    for _ in range(3):
        assert world.may(world.ref("b"))
        assert world.may(world.ref("c"))
        assert world.cost(*asked) > 0
    assert world.metrics.cache_fills.value("skipped") > 0
    monkeypatch.setattr(tagged_facts, "GRANTS_MAX", 100)
    world.facts.load(*asked)
    assert world.cost(*asked) == 0


@pytest.mark.parametrize("form", ["ids", "keys"])
def test_only_so_many_owners_are_remembered(
    world: World, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(cached_facts, "OWNERS_MAX", 10)

    def work(tx: Transaction) -> list[str]:
        return [
            resources.create(
                tx,
                organization_id=world.ids["acme"],
                resource_type_slug="folder",
                external_id=f"f{number}",
                name="f",
            ).id
            for number in range(30)
        ]

    for number, id in enumerate(world.write(work)):
        ref = ResourceRef(id) if form == "ids" else world.by_key(f"f{number}")
        for _ in range(2):
            facts = world.facts.load([world.ann()], [SLUG], [ref])
            assert set(facts.paths) == {ref}
        # At most what one call adds comes on top.
        assert len(world.facts._owners) <= 10 + 3


# --- the credential, revisions -------------------------------------------------------------------


def test_a_credential_is_confirmed_with_the_rest(world: World) -> None:
    made, _ = world.write(
        lambda tx: service_credentials.create(tx, key=b"k" * 32, name="robot", scopes=["read"])
    )
    asked = ([world.ann()], [SLUG], [world.ref("b")])
    for _ in range(2):
        before = world.facts.load(*asked, credential_id=made.id).credential_revision
    assert before is not None
    assert world.cost(*asked, credential_id=made.id) == 0
    world.write(lambda tx: service_credentials.revoke(tx, made.id))
    after = world.facts.load(*asked, credential_id=made.id).credential_revision
    assert after is not None
    assert after > before
    # Its change has cooled nothing else.
    assert world.cost(*asked) == 0
    for _ in range(2):
        assert world.facts.load(*asked, credential_id="svc_none").credential_revision is None


def test_revisions_are_a_lower_bound_of_what_was_seen(world: World) -> None:
    home = world.ids["acme"]
    asked = ([world.ann()], [SLUG], [world.ref("b")])
    seen = 0
    for step in range(6):
        if step % 2:
            made = world.grant("a")
            world.revoke(made)
        else:
            # Nothing that is asked about changes: a hit, which may not say too much.
            world.move("c", "a" if step % 4 else "b")
        present = world.sql.revisions([home, "*"])
        for _ in range(2):
            facts = world.facts.load(*asked)
            assert set(facts.revisions) >= {home, "*"}
            for realm, revision in facts.revisions.items():
                assert revision <= present[realm]
            assert facts.revisions[home] >= seen
            seen = facts.revisions[home]
    assert seen > 0
    assert dict(world.facts.revisions([home])) == {home: world.sql.revisions([home])[home]}
    assert world.facts.load(*asked).revisions[home] == world.sql.revisions([home])[home]


# --- one instant ---------------------------------------------------------------------------------


def test_old_grants_and_a_new_path_never_meet(world: World) -> None:
    """The folder is moved below what ann may not read any more (I7)."""
    made = world.grant("a")
    world.move("b", "c")
    for _ in range(2):
        assert not world.may(world.ref("c"))
    # Whose it is is known, its path is not.
    world.move("b", "c")
    assert not world.may(world.ref("b"))
    world.move("b", "a")
    world.move("b", "c")

    def enemy() -> None:
        world.revoke(made)
        world.move("b", "a")

    world.control.after = [enemy]
    broken = world.metrics.cache_cut_broken.value()
    assert not world.may(world.ref("b"))
    assert world.control.after == []
    assert world.metrics.cache_cut_broken.value() == broken + 1
    assert not world.may(world.ref("b"))


def test_a_write_between_that_concerns_nothing_found_breaks_nothing(world: World) -> None:
    world.grant("a")
    for _ in range(2):
        assert world.may(world.ref("a"))
    assert world.may(world.ref("b"))
    world.move("b", "c")
    world.control.after = [lambda: world.move("b", "a")]
    assert world.may(world.ref("b"))
    assert world.metrics.cache_cut_broken.value() == 0
    # What it filled is older than that write, or not: it was read after the validation.
    assert world.may(world.ref("b"))


def test_a_mark_between_breaks_the_cut(world: World) -> None:
    world.grant("a")
    for _ in range(2):
        assert world.may(world.ref("a"))
    assert world.may(world.ref("b"))
    world.move("b", "c")
    world.move("b", "a")
    tags = {world.ids["acme"]: [f"m:{world.ids['ann@acme']}"]}
    world.control.after = [lambda: world.control.mark("1:x", tags)]
    assert world.may(world.ref("b"))
    assert world.metrics.cache_cut_broken.value() == 1


def test_definitions_that_change_between_break_the_cut(world: World) -> None:
    world.grant("a")
    for _ in range(2):
        assert world.may(world.ref("a"))
    assert world.may(world.ref("b"))
    world.move("b", "c")
    world.move("b", "a")
    world.control.after = [
        lambda: world.write(lambda tx: roles.set_permissions(tx, world.ids["reader"], []))
    ]
    assert not world.may(world.ref("b"))
    assert world.metrics.cache_cut_broken.value() == 1


def test_what_was_filled_during_a_write_is_not_used_after_it(world: World) -> None:
    """Validated, then written, then read and filled: the sequence is that of before (I3)."""
    world.grant("a")
    pair, ref = Subject(USER, world.ids["ann"], world.ids["acme"]), world.by_key("b")
    held: list[bool] = []

    def slow() -> None:
        # The other call sees nothing of the write, and fills after it.
        world.control.after = []
        held.append(world.may(ref, pair))
        world.move("b", "c")

    # The first call tells that there is such an organization, and remembers nothing else.
    world.may(ref, pair)
    world.control.after = [slow]
    world.may(ref, pair)
    assert held == [True]
    assert not world.may(ref, pair)
    assert not world.may(ref, pair)


# --- many at once --------------------------------------------------------------------------------


def at_begin(world: World, then: Callable[[], Any]) -> None:
    """Does something whenever a snapshot begins."""

    def look(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("BEGIN"):
            then()

    event.listen(world.database._engine, "before_cursor_execute", look)


def test_a_cold_fact_is_computed_once_for_all_who_ask(world: World) -> None:
    world.grant("a")
    world.may(world.ref("b"))
    begun: list[int] = []
    everybody = threading.Event()

    def hold() -> None:
        begun.append(1)
        # Until all have looked for it.
        if world.control.validated >= 20:
            everybody.set()
        assert everybody.wait(20)

    at_begin(world, hold)
    world.control.validated = 0
    found: list[bool] = []
    counted = [lambda: world.control.validated >= 20 and everybody.set()] * 40
    world.control.after = counted  # type: ignore[assignment]
    together = Together()
    together.start(*[lambda: found.append(world.may(world.ref("b")))] * 20)
    together.join()
    assert found == [True] * 20
    # Who looked for it before it was there, and asks for the room after that, computes it again.
    assert len(begun) <= 4
    assert world.cost([world.ann()], [SLUG], [world.ref("b")]) == 0


def test_who_waits_too_long_for_room_is_told(
    database_url: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "WAIT_SECONDS", 0.2)
    world = World(database_url, clock, snapshots_max=1)
    asked = {
        home: (Subject(USER, world.ids["ann"], world.ids[home]), world.by_key("b", home))
        for home in ("acme", "globex")
    }
    inside, resume, together = threading.Event(), threading.Event(), Together()
    found: list[bool] = []

    def hold() -> None:
        inside.set()
        assert resume.wait(20)

    # The first calls tell that there are such organizations, and remember nothing else.
    for subject, ref in asked.values():
        world.may(ref, subject)
    # All permissions are a fact of both; from now on they have none in common.
    world.may(world.by_key("c"), asked["acme"][0])
    at_begin(world, hold)
    together.start(lambda: found.append(world.may(asked["acme"][1], asked["acme"][0])))
    assert inside.wait(20)
    try:
        # For another fact there is no room; for the same one it waits in vain.
        for home in ("globex", "acme"):
            with pytest.raises(ResourceExhausted) as refused:
                world.may(asked[home][1], asked[home][0])
            assert refused.value.reason == "OVERLOADED"
    finally:
        resume.set()
        together.join()
    assert found == [False]
    assert world.may(asked["globex"][1], asked["globex"][0]) is False
    world.database.close()


def test_a_computation_that_failed_leaves_the_way_free(world: World) -> None:
    pair, ref = Subject(USER, world.ids["ann"], world.ids["acme"]), world.by_key("b")
    failing = [1]

    def fail() -> None:
        if failing:
            failing.pop()
            raise RuntimeError("no snapshot")

    # The first call tells that there is such an organization, and remembers nothing else.
    world.may(ref, pair)
    at_begin(world, fail)
    with pytest.raises(RuntimeError):
        world.may(ref, pair)
    assert world.may(ref, pair) is False

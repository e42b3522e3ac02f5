"""Rows that nobody can interpret deny the decisions that rest on them, are counted, and no more.

They are written past the service, past the constraints that would refuse them, as a hand or a
damaged file might.
"""

import json
import sqlite3
from typing import Any, NamedTuple

import psycopg
import pytest
from sqlalchemy.engine import make_url

from authz_service.config import Config
from authz_service.server import Worker
from authz_service.storage import poison
from tests.callers import Caller, Refused, through_hall
from tests.conftest import begun
from tests.directories import Directory

READ = "doc:read"
# Who may read what: ann by two roles, bob by one, cat by a role of her own.
ALLOWED = {(who, doc) for who in ("ann", "bob", "cat") for doc in ("paper", "letter")}
Answers = dict[tuple[str, str], bool]


class Poison(NamedTuple):
    """A row, and what it does.

    Attributes:
        table: Where it is counted.
        statement: What writes it.
        nullable: A column that must take NULL for it.
        denied: The decisions that rest on it.
    """

    table: str
    statement: str
    nullable: str
    denied: set[tuple[str, str]]


def of(who: str = "", doc: str = "") -> set[tuple[str, str]]:
    """The decisions about somebody, or about something."""
    return {pair for pair in ALLOWED if pair[0] == who or pair[1] == doc}


ROWS = {
    "unknown status": Poison(
        "memberships", "UPDATE memberships SET status = 'BOSS' WHERE id = '{ann}'", "", of("ann")
    ),
    "no status": Poison(
        "memberships",
        "UPDATE memberships SET status = NULL WHERE id = '{ann}'",
        "status",
        of("ann"),
    ),
    "no path": Poison(
        "resources",
        "UPDATE resources SET path = NULL WHERE id = '{paper}'",
        "path",
        of(doc="paper"),
    ),
    "path to elsewhere": Poison(
        "resources",
        "UPDATE resources SET path = '{letter}' WHERE id = '{paper}'",
        "",
        of(doc="paper"),
    ),
    "no type": Poison(
        "resources",
        "UPDATE resources SET resource_type_slug = NULL WHERE id = '{paper}'",
        "resource_type_slug",
        of(doc="paper"),
    ),
    "assigned role is gone": Poison(
        "role_assignments", "DELETE FROM roles WHERE id = '{reader}'", "", {("ann", "paper")}
    ),
    "own role is gone": Poison(
        "membership_roles", "DELETE FROM roles WHERE id = '{auditor}'", "", of("cat")
    ),
}
NO_NUMBER = (
    "UPDATE role_assignments SET expires_at = 'tomorrow'"
    " WHERE membership_id = '{ann}' AND resource_id = '{paper}'"
)
NO_CREDENTIAL = "UPDATE service_credentials SET {column} = '{value}' WHERE id = '{id}'"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"AUTHZ_CACHE_BYPASS": getattr(request, "param", "off")}


@pytest.fixture
def world(worker: Worker, api: Caller, config: Config) -> dict[str, str]:
    """Ids by name."""
    directory = Directory(api, worker, config)
    directory.types(doc=["organization"])
    api.PermissionService.CreatePermission(slug=READ, name="Read", resource_type_slug="doc")
    reader, clerk = directory.role("reader", "doc"), directory.role("clerk", "doc")
    auditor = directory.role("auditor", "organization")
    for role in (reader, clerk, auditor):
        api.RoleService.SetRolePermissions(role_id=role.id, permission_slugs=[READ])
    acme = directory.organization()
    ann, bob, cat = (directory.membership(acme) for _ in range(3))
    paper, letter = (directory.resource(acme, "doc", name) for name in ("paper", "letter"))
    for role, doc, who in (
        (reader, paper, ann),
        (clerk, letter, ann),
        (clerk, paper, bob),
        (clerk, letter, bob),
    ):
        directory.assignment(role, doc, who)
    api.OrganizationMembershipService.UpdateOrganizationMembership(
        organization_membership_id=cat.id, role_slugs=["auditor"]
    )
    named = {
        "ann": ann, "bob": bob, "cat": cat, "paper": paper, "letter": letter, "reader": reader,
        "auditor": auditor, "acme": acme,
    }  # fmt: skip
    return {name: each.id for name, each in named.items()}


def written(config: Config, statement: str, table: str, nullable: str) -> None:
    """Writes to the database as nobody should, whatever its constraints say."""
    url = config.database.url.reveal()
    if url.startswith("sqlite"):
        with sqlite3.connect(make_url(url).database or "", isolation_level=None) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            if nullable:
                (version,) = connection.execute("PRAGMA schema_version").fetchone()
                connection.execute("PRAGMA writable_schema = ON")
                connection.execute(
                    "UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE name = ?",
                    (table,),
                )
                connection.execute(f"PRAGMA schema_version = {version + 1}")
                connection.execute("PRAGMA writable_schema = RESET")
            changed = connection.execute(statement).rowcount
        connection.close()
    else:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as admin:
            admin.execute("SET session_replication_role = replica")
            if nullable:
                admin.execute(f"ALTER TABLE {table} ALTER COLUMN {nullable} DROP NOT NULL")
            changed = admin.execute(statement).rowcount
    assert changed == 1


def poisoned(worker: Worker) -> dict[str, float]:
    """What was counted, by table."""
    counter = worker.metrics.poison_rows
    return {table: counter.value(table) for table in poison.TABLES if counter.value(table)}


def checked(api: Caller, world: dict[str, str]) -> Answers:
    """By one call each; an error is a no."""
    answers = {}
    for who, doc in sorted(ALLOWED):
        try:
            answers[who, doc] = api.AuthorizationService.Check(**ask(world, who, doc)).allowed
        except Refused as refused:
            assert refused.reason == "RESOURCE_NOT_FOUND"
            answers[who, doc] = False
    return answers


def batched(api: Caller, world: dict[str, str]) -> Answers:
    """By one call."""
    pairs = sorted(ALLOWED)
    results = api.AuthorizationService.BatchCheck(
        items=[ask(world, *pair) for pair in pairs]
    ).results
    return {pair: result.decision.allowed for pair, result in zip(pairs, results, strict=True)}


def listed(api: Caller, world: dict[str, str]) -> Answers:
    """By what each may reach."""
    answers = {}
    for who in ("ann", "bob", "cat"):
        subject = {"organization_membership_id": world[who]}
        for slugs in ([READ], [READ, "organization:view"]):
            found = api.AuthorizationService.ListResources(subject=subject, permission_slugs=slugs)
            ids = {each.resource.id for each in found.items}
            answers.update({(who, doc): world[doc] in ids for doc in ("paper", "letter")})
    return answers


def listed_back(api: Caller, world: dict[str, str]) -> Answers:
    """By who may reach each."""
    answers = {}
    for doc in ("paper", "letter"):
        try:
            found = api.AuthorizationService.ListMembers(
                resource={"resource_id": world[doc]}, permission_slug=READ
            ).members
        except Refused as refused:
            assert refused.reason == "PERMISSION_RESOURCE_TYPE_MISMATCH"
            found = []
        ids = {each.organization_membership.id for each in found}
        answers.update({(who, doc): world[who] in ids for who in ("ann", "bob", "cat")})
    return answers


def explained(api: Caller, world: dict[str, str]) -> Answers:
    """With reasons."""
    answers = {}
    for who, doc in sorted(ALLOWED):
        try:
            found = api.AuthorizationService.Explain(**ask(world, who, doc))
            answers[who, doc] = found.allowed
        except Refused as refused:
            assert refused.reason == "PERMISSION_RESOURCE_TYPE_MISMATCH"
            answers[who, doc] = False
    return answers


def ask(world: dict[str, str], who: str, doc: str) -> dict[str, Any]:
    return {
        "subject": {"organization_membership_id": world[who]},
        "permission_slug": READ,
        "resource": {"resource_id": world[doc]},
    }


WAYS = (checked, batched, listed, listed_back, explained)


@pytest.mark.every_cache
def test_nothing_is_poisoned_at_first(worker: Worker, api: Caller, world: dict[str, str]) -> None:
    for way in WAYS:
        assert way(api, world) == dict.fromkeys(ALLOWED, True), way.__name__
    assert poisoned(worker) == {}


@pytest.mark.every_cache
@pytest.mark.parametrize("settings", ["off", "on"], ids=["cached", "from SQL"], indirect=True)
@pytest.mark.parametrize("name", ROWS)
def test_a_poison_row_denies_what_rests_on_it_and_no_more(
    worker: Worker, api: Caller, config: Config, world: dict[str, str], name: str
) -> None:
    row = ROWS[name]
    written(config, row.statement.format(**world), row.table, row.nullable)
    begun(worker)
    expected = {pair: pair not in row.denied for pair in ALLOWED}
    for decide in (checked, batched):
        before = poisoned(worker).get(row.table, 0)
        assert decide(api, world) == expected, decide.__name__
        if decide is checked or worker.has_cache is False:
            assert poisoned(worker).get(row.table, 0) > before, decide.__name__
    for way in (listed, listed_back, explained):
        assert way(api, world) == expected, way.__name__
    assert set(poisoned(worker)) == {row.table}
    assert worker.metrics.rpc_seconds.count("/authz.v1.AuthorizationService/Check", "INTERNAL") == 0


@pytest.mark.parametrize("settings", ["off", "on"], ids=["cached", "from SQL"], indirect=True)
def test_an_end_that_is_no_number_is_refused_or_grants_nothing(
    worker: Worker, api: Caller, config: Config, world: dict[str, str], backend: str
) -> None:
    statement = NO_NUMBER.format(**world)
    if backend != "sqlite":
        with pytest.raises(psycopg.DataError):
            written(config, statement, "", "")
        return
    written(config, statement, "", "")
    begun(worker)
    expected = {pair: pair != ("ann", "paper") for pair in ALLOWED}
    for way in WAYS:
        assert way(api, world) == expected, way.__name__
    assert set(poisoned(worker)) == {"role_assignments"}


@pytest.fixture
def credential(api: Caller) -> Any:
    """One that may check."""
    return api.ConfigurationService.CreateServiceCredential(name="robot", scopes=["check"])


@pytest.mark.parametrize("column", ["scopes", "organization_ids"])
@pytest.mark.parametrize(
    "value",
    [
        '{"check": 1}',
        '"check"',
        "[1]",
        json.dumps(["check", *["x" * 30] * 3_000]),
        '["check"',
        "null",
    ],
    ids=["object", "text", "numbers", "oversized", "broken", "null"],
)
def test_a_credential_that_makes_no_sense_is_unknown(
    worker: Worker,
    api: Caller,
    config: Config,
    world: dict[str, str],
    credential: Any,
    backend: str,
    column: str,
    value: str,
) -> None:
    robot = api.with_bearer(credential.secret)
    id = credential.service_credential.id
    statement = NO_CREDENTIAL.format(column=column, value=value, id=id)
    if backend != "sqlite" and value == '["check"':
        with pytest.raises(psycopg.DataError):
            written(config, statement, "", "")
        assert robot.AuthorizationService.Check(**ask(world, "ann", "paper")).allowed
        return
    written(config, statement, "", "")
    with pytest.raises(Refused) as refused:
        robot.AuthorizationService.Check(**ask(world, "ann", "paper"))
    assert refused.value.reason == "CREDENTIAL_INVALID"
    assert poisoned(worker) == {"service_credentials": 1}
    assert checked(api, world) == dict.fromkeys(ALLOWED, True)


def test_a_worker_starts_on_poisoned_tables(
    worker: Worker, api: Caller, config: Config, world: dict[str, str], settings: dict[str, str]
) -> None:
    for row in ROWS.values():
        written(config, row.statement.format(**world), row.table, row.nullable)
    worker.stop()
    again = Worker(config)
    again.start()
    try:
        caller = Caller(through_hall(again.hall), api._bearer)
        assert checked(caller, world) == {pair: pair == ("bob", "letter") for pair in ALLOWED}
        assert set(poisoned(again)) == {row.table for row in ROWS.values()}
    finally:
        again.stop()

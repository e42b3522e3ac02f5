"""The modes of ``Consistency``: what an answer must have seen, and what it may come from."""

import time
from typing import Any, NamedTuple

import pytest
from sqlalchemy import delete

from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import ConsistencyTokens
from authz_service.base.sealed import Sealer
from authz_service.config import Config
from authz_service.server import Worker
from authz_service.storage.database import Database
from authz_service.storage.tables import RoleAssignment
from authz_service.telemetry.metrics import Counter
from tests.callers import Caller, Refused
from tests.directories import Directory


class Question(NamedTuple):
    """A check whose facts are remembered, and the assignment that allows it."""

    api: Caller
    worker: Worker
    fields: dict[str, Any]
    assignment: Any

    def allowed(self, **consistency: Any) -> bool:
        """Asks it."""
        answer = self.api.AuthorizationService.Check(**self.fields, consistency=consistency)
        return bool(answer.allowed)

    def token(self) -> str:
        """Asks it, for the token of the state."""
        return str(self.api.AuthorizationService.Check(**self.fields).consistency_token)

    def revoke(self) -> str:
        """Takes the assignment away and returns the write's token."""
        gone = self.api.RoleAssignmentService.DeleteRoleAssignment(
            role_assignment_id=self.assignment.id
        )
        return str(gone.consistency_token)

    def answers(self, source: str) -> float:
        """How many answers came from there."""
        return self.worker.metrics.cache_answers.value(source)


@pytest.fixture
def question(api: Caller, worker: Worker, config: Config) -> Question:
    directory = Directory(api, worker, config)
    directory.types(document=["organization"])
    api.PermissionService.CreatePermission(
        slug="document:read", name="read", resource_type_slug="document"
    )
    api.RoleService.CreateRole(
        slug="document-reader",
        name="Reader",
        resource_type_slug="document",
        permission_slugs=["document:read"],
    )
    acme = directory.organization()
    member = directory.membership(acme)
    document = directory.resource(acme, "document", "d")
    made = api.RoleAssignmentService.CreateRoleAssignment(
        organization_membership_id=member.id,
        role_slug="document-reader",
        resource={"resource_id": document.id},
    ).role_assignment
    asked = Question(
        api,
        worker,
        {
            "subject": {"organization_membership_id": member.id},
            "permission_slug": "document:read",
            "resource": {"resource_id": document.id},
        },
        made,
    )
    assert [asked.allowed() for _ in range(3)] == [True] * 3
    return asked


@pytest.fixture
def remembers(backend: str) -> bool:
    """Without Redis only the embedded database is remembered."""
    return backend == "sqlite"


def test_an_answer_of_now_has_seen_every_write(question: Question) -> None:
    question.revoke()
    assert not question.allowed()
    assert not question.allowed(strong=True)


def test_an_answer_may_be_as_old_as_is_said(question: Question, remembers: bool) -> None:
    question.revoke()
    before = question.answers("last_cut")
    assert question.allowed(max_staleness={"seconds": 60}) == remembers
    assert question.answers("last_cut") - before == remembers
    # It is not that old when somebody has looked since.
    assert not question.allowed()
    assert not question.allowed(max_staleness={"seconds": 60})


def test_an_answer_that_is_too_old_is_not_given(question: Question) -> None:
    question.revoke()
    assert not question.allowed(max_staleness={"nanos": 1})


def test_an_answer_has_seen_the_state_of_its_token(question: Question) -> None:
    token = question.revoke()
    before = question.answers("last_cut")
    assert not question.allowed(at_least_as_fresh=token)
    assert question.answers("last_cut") == before


def test_a_token_of_what_was_seen_needs_no_look(question: Question, remembers: bool) -> None:
    token = question.token()
    before = question.answers("last_cut")
    assert question.allowed(at_least_as_fresh=token)
    assert question.answers("last_cut") - before == remembers


def test_a_token_of_another_life_is_looked_up(question: Question) -> None:
    token = question.token()
    question.worker.fence()
    before = question.answers("last_cut")
    assert question.allowed(at_least_as_fresh=token)
    assert question.answers("last_cut") == before


def test_a_write_elsewhere_does_not_make_a_remembered_answer_older(
    question: Question, remembers: bool
) -> None:
    other = question.api.OrganizationService.CreateOrganization(name="Other").organization
    token = question.api.GroupService.CreateGroup(
        organization_id=other.id, name="Crew"
    ).consistency_token
    question.allowed()
    before = question.answers("last_cut")
    assert question.allowed(at_least_as_fresh=token)
    assert question.answers("last_cut") - before == remembers


def test_a_token_of_a_lost_state_is_an_alarm(question: Question, config: Config) -> None:
    tokens = ConsistencyTokens(Sealer(config.security.root_key_bytes(), "consistency"))
    organization = question.api.OrganizationService.ListOrganizations().organizations[0]
    lost = tokens.seal({organization.id: 10_000})
    with pytest.raises(Refused) as refused:
        question.allowed(at_least_as_fresh=lost)
    assert refused.value.reason == "CONSISTENCY_TOKEN_AHEAD"
    assert question.worker.metrics.cache_token_ahead.value() == 1


def test_what_was_held_on_a_deleted_resource_is_no_alarm(
    question: Question, worker: Worker, config: Config
) -> None:
    api, asked = question.api, question.fields
    organization = api.OrganizationService.ListOrganizations().organizations[0]
    other = Directory(api, worker, config).resource(organization, "document", "other")
    api.RoleAssignmentService.CreateRoleAssignment(
        organization_membership_id=asked["subject"]["organization_membership_id"],
        role_slug="document-reader",
        resource={"resource_id": other.id},
    )
    assert [question.allowed() for _ in range(3)] == [True] * 3
    api.ResourceService.DeleteResource(resource={"resource_id": other.id}, cascade=True)
    # One of three facts is compared each time.
    assert [question.allowed() for _ in range(30)] == [True] * 30
    assert question.worker.metrics.cache_inconsistency.value() == 0


def test_a_cached_fact_that_is_wrong_is_an_alarm_and_is_left(
    question: Question, remembers: bool, database_url: str
) -> None:
    # Past the service, as a person at the database would.
    past = Database(database_url)
    past.write(lambda tx: tx.connection.execute(delete(RoleAssignment)), actor=SYSTEM)
    past.close()
    alarms = question.worker.metrics.cache_inconsistency
    deadline = time.monotonic() + 30
    while remembers and not alarms.value():
        # One fact of an answer is looked at, and not each time the wrong one.
        question.allowed()
        assert time.monotonic() < deadline
    assert not question.allowed()
    assert alarms.value() == remembers
    # What was to be seen here must not fail the test that saw it.
    question.worker.metrics.cache_inconsistency = Counter(alarms.name, alarms.help)

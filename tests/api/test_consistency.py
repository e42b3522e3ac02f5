"""The modes of ``Consistency``: what an answer must have seen, and what it may come from."""

from typing import Any, NamedTuple

import pytest

from authz_service.config import Config
from authz_service.server import Worker
from tests.callers import Caller
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

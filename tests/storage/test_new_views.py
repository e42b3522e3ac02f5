"""An entry is judged by the log of its own view, however many views come after it."""

from collections.abc import Callable, Sequence

import pytest

from authz_service.config import Config
from authz_service.engine.check import decide
from authz_service.engine.facts import MEMBERSHIP, Ask, ResourceRef, Subject
from authz_service.engine.tags import membership
from authz_service.server import Worker
from authz_service.storage.cache.control import Look, Replies
from authz_service.storage.cache.memory_control import MemoryControl
from authz_service.storage.cache.views import Views
from authz_service.storage.cached_facts import CachedFacts
from authz_service.telemetry.metrics import Metrics
from tests.callers import Caller
from tests.directories import Directory


class Watched(MemoryControl):
    """Control sets that others could share entries of, and that tell of each validation."""

    is_shared = True
    is_over = False

    def __init__(self) -> None:
        super().__init__()
        self.validated: Callable[[], None] = lambda: None

    def validate(self, looks: Sequence[Look]) -> Replies | None:
        replies = super().validate(looks)
        self.validated()
        return replies


@pytest.fixture
def settings() -> dict[str, str]:
    return {"AUTHZ_CACHE_BYPASS": "on"}


def test_an_entry_is_not_judged_by_a_view_begun_after_a_write(
    api: Caller, worker: Worker, config: Config
) -> None:
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
    one, other = (directory.resource(acme, "document", name) for name in ("one", "other"))
    assignment = api.RoleAssignmentService.CreateRoleAssignment(
        organization_membership_id=member.id,
        role_slug="document-reader",
        resource={"resource_id": one.id},
    ).role_assignment
    control, views = Watched(), Views(1_000_000)
    facts = CachedFacts(worker.database, lambda: control, views, Metrics(), snapshots_max=2)
    subject, resources = Subject(MEMBERSHIP, member.id), (ResourceRef(one.id),)
    ask = Ask(subject, "document:read", resources[0])

    def load(*refs: ResourceRef) -> bool:
        return decide(facts.load((subject,), ("document:read",), refs), ask).allowed

    # The path of the other document is not remembered, but whose it is.
    assert [load(*resources) for _ in range(3)] == [True] * 3
    facts.load((Subject(MEMBERSHIP, "om_nobody"),), ("document:read",), (ResourceRef(other.id),))

    def revoke_and_begin_anew() -> None:
        control.validated = lambda: None
        tags = {acme.id: (membership(member.id),)}
        control.mark("m", tags)
        api.RoleAssignmentService.DeleteRoleAssignment(role_assignment_id=assignment.id)
        control.bump("m", tags)
        views.drop(views._views[acme.id])
        # With another organization: calls about the same one would wait for each other here.
        assert not isinstance(views.validate(control, [acme.id, "org_other"]), str)

    control.validated = revoke_and_begin_anew
    assert not load(*resources, ResourceRef(other.id))

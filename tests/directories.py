"""Fills a directory over the API and reads what it recorded, for tests of its services."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import insert, select, update

from authz_service.base import ids
from authz_service.base.actor import SYSTEM
from authz_service.base.sealed import derive
from authz_service.config import Config
from authz_service.domain import service_credentials
from authz_service.server import CREDENTIAL_PURPOSE, Worker
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Event, Membership, RoleAssignment
from tests.callers import Caller


class Recorded(NamedTuple):
    """An event as a test compares it."""

    kind: str
    target_id: str
    is_primary: bool


class Directory:
    """Makes what a test needs but does not test.

    Args:
        api: An unrestricted admin.
        worker: The worker behind it.
        config: The worker's.
    """

    def __init__(self, api: Caller, worker: Worker, config: Config) -> None:
        self.api = api
        self._worker = worker
        self._config = config
        self._users = 0

    def types(self, **parents: Sequence[str]) -> None:
        """Creates resource types, each with the types it may be placed below."""
        for slug, parent_slugs in parents.items():
            self.api.ResourceTypeService.CreateResourceType(
                slug=slug, name=slug.capitalize(), parent_type_slugs=parent_slugs
            )

    def organization(self, name: str = "Acme") -> Any:
        """Creates an organization."""
        return self.api.OrganizationService.CreateOrganization(name=name).organization

    def resource(
        self, organization: Any, type_slug: str, external_id: str, parent: Any = None
    ) -> Any:
        """Registers a resource below a parent, or below the organization; its name is its key."""
        return self.api.ResourceService.CreateResource(
            organization_id=organization.id,
            resource_type_slug=type_slug,
            external_id=external_id,
            name=external_id,
            parent={"resource_id": parent.id} if parent else None,
        ).resource

    def group(self, organization: Any, name: str, *inside: Any) -> Any:
        """Creates a group with memberships and groups in it."""
        made = self.api.GroupService.CreateGroup(organization_id=organization.id, name=name).group
        for member in inside:
            self.api.GroupService.AddGroupMember(group_id=made.id, **named(member))
        return made

    def membership(self, organization: Any, status: str = "ACTIVE") -> Any:
        """Creates a user and its membership."""
        self._users += 1
        user = self.api.UserService.CreateUser(email=f"user{self._users}@example.com").user
        made = self.api.OrganizationMembershipService.CreateOrganizationMembership(
            user_id=user.id, organization_id=organization.id
        ).organization_membership
        if status != "ACTIVE":
            self.write(
                lambda tx: tx.connection.execute(
                    update(Membership).where(Membership.id == made.id).values(status=status)
                )
            )
        return made

    def role(self, slug: str, type_slug: str) -> Any:
        """Creates an environment role without permissions."""
        return self.api.RoleService.CreateRole(
            slug=slug, name=slug, resource_type_slug=type_slug
        ).role

    def assignment(
        self, role: Any, resource: Any, subject: Any, *, expires_at: int | None = None
    ) -> str:
        """Stores a role assignment, also one that has ended, and returns its id.

        Args:
            expires_at: Microseconds since 1970.
        """
        assignment_id = ids.new(ids.ROLE_ASSIGNMENT)
        column = "group_id" if subject.id.startswith("group_") else "membership_id"
        values = {
            "organization_id": resource.organization_id,
            "id": assignment_id,
            column: subject.id,
            "role_id": role.id,
            "resource_id": resource.id,
            "expires_at": expires_at,
            "is_end_recorded": False,
            "created_at": 1,
            "updated_at": 1,
            "revision": 1,
        }
        self.write(lambda tx: tx.connection.execute(insert(RoleAssignment).values(values)))
        return assignment_id

    def restricted_to(self, *organizations: Any) -> Caller:
        """Returns an admin that is restricted to organizations."""
        key = derive(self._config.security.root_key_bytes()[0], CREDENTIAL_PURPOSE)

        def work(tx: Transaction) -> str:
            _, secret = service_credentials.create(
                tx,
                key=key,
                name="restricted",
                scopes=["admin"],
                organization_ids=[organization.id for organization in organizations],
            )
            return secret.reveal()

        return self.api.with_bearer(self.write(work))

    def write(self, work: Any) -> Any:
        """Runs a transaction of the test's own and returns what it returns."""
        return self._worker.database.write(work, actor=SYSTEM).result

    def events(self, organization: Any) -> list[Event]:
        """Returns all events of an organization, in order."""
        with self._worker.database.snapshot(SYSTEM) as snapshot:
            rows = snapshot.connection.execute(
                select(*Event.__table__.columns)
                .where(Event.realm == organization.id)
                .order_by(Event.sequence)
            ).all()
        assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
        return rows

    def recorded(self, organization: Any, after: int) -> list[Recorded]:
        """Returns what was recorded after so many events, and that each cause is the primary."""
        rows = self.events(organization)[after:]
        primary = ""
        for row in rows:
            primary = row.id if row.is_primary else primary
            assert row.cause_event_id == ("" if row.is_primary else primary)
        return [Recorded(row.kind, row.target_id, row.is_primary) for row in rows]

    def data(self, organization: Any) -> Any:
        """Returns what the last event says: (data, previous)."""
        last = self.events(organization)[-1]
        return json.loads(last.data), json.loads(last.previous)


def named(member: Any) -> dict[str, str]:
    """Returns a group or membership as the requests about members of a group name it."""
    if member.id.startswith("group_"):
        return {"member_group_id": member.id}
    return {"organization_membership_id": member.id}

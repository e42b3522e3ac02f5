"""A running service as the commands see it: its stubs, and names in place of ids."""

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from authz_service.cli.output import fail
from authz_service.client.channel import connect
from authz_service.client.retry import CallFailed, described, retrying
from authz_service.config import Client, ConfigError, client_settings
from authz_service.pb.authz.v1 import (
    authorization_pb2_grpc,
    core_pb2,
    directory_files_pb2_grpc,
    memberships_pb2,
    memberships_pb2_grpc,
    organizations_pb2,
    organizations_pb2_grpc,
    role_assignments_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

CALL_SECONDS = 30.0


class Service:
    """Calls one service.

    Args:
        client: Where it is and what to present.
        is_alone: With a connection of its own.
    """

    def __init__(self, client: Client, *, is_alone: bool = False) -> None:
        if client.credential is None:
            fail("set AUTHZ_CREDENTIAL (or AUTHZ_CREDENTIAL_FILE) to a service credential")
        decisions = client.decisions_address
        self.channel = connect(
            str(client.address),
            client.credential,
            decisions_address=None if decisions is None else str(decisions),
            ca=client.ca,
            is_alone=is_alone,
        )
        self._users: dict[str, str] = {}
        self._organizations: dict[str, str] = {}

    @cached_property
    def authorization(self) -> Any:
        """Stub of AuthorizationService."""
        return authorization_pb2_grpc.AuthorizationServiceStub(self.channel)

    @cached_property
    def role_assignments(self) -> Any:
        """Stub of RoleAssignmentService."""
        return role_assignments_pb2_grpc.RoleAssignmentServiceStub(self.channel)

    @cached_property
    def directory_files(self) -> Any:
        """Stub of DirectoryFileService."""
        return directory_files_pb2_grpc.DirectoryFileServiceStub(self.channel)

    def ask(self, method: Callable[..., Any], request: Any) -> Any:
        """Makes a reading call, again where the service says so."""
        return retrying(
            lambda seconds: method(request, timeout=seconds),
            deadline_seconds=CALL_SECONDS,
            repeatable=True,
        )

    def organization_id(self, name: str) -> str:
        """Returns the id of an organization given by id or external id."""
        if name not in self._organizations:
            stub = organizations_pb2_grpc.OrganizationServiceStub(self.channel)
            key = "organization_id" if name.startswith("org_") else "external_id"
            request = organizations_pb2.GetOrganizationRequest(**{key: name})
            answer = self.ask(stub.GetOrganization, request)
            self._organizations[name] = answer.organization.id
        return self._organizations[name]

    def user_id(self, name: str) -> str:
        """Returns the id of a user given by id or external id."""
        if name not in self._users:
            stub = users_pb2_grpc.UserServiceStub(self.channel)
            key = "user_id" if name.startswith("user_") else "external_id"
            answer = self.ask(stub.GetUser, users_pb2.GetUserRequest(**{key: name}))
            self._users[name] = answer.user.id
        return self._users[name]

    def subject(self, text: str) -> tuple[core_pb2.Subject, str]:
        """Returns a subject and its organization's id, empty where the text does not tell.

        Args:
            text: ``om_…``, ``group_…`` or ``USER@ORGANIZATION`` by id or external id.
        """
        if text.startswith("group_"):
            return core_pb2.Subject(group_id=text), ""
        if text.startswith("om_"):
            return core_pb2.Subject(organization_membership_id=text), ""
        user, at, organization = text.rpartition("@")
        if not at or not user or not organization:
            fail(f"{text!r} is no subject: give om_…, group_… or USER@ORGANIZATION")
        organization_id = self.organization_id(organization)
        pair = core_pb2.UserInOrganization(
            user_id=self.user_id(user), organization_id=organization_id
        )
        return core_pb2.Subject(user=pair), organization_id

    def resource(self, text: str, organization_id: str) -> core_pb2.ResourceRef:
        """Returns a resource reference.

        Args:
            text: ``resource_…``, ``TYPE/EXTERNAL_ID``, or ``organization`` for the root.
            organization_id: Where the last two forms are looked up.
        """
        if text.startswith("resource_"):
            return core_pb2.ResourceRef(resource_id=text)
        if not organization_id:
            fail(f"say with --organization where {text!r} is")
        type_slug, slash, external_id = text.partition("/")
        if text == "organization":
            external_id = organization_id
        elif not slash:
            fail(f"{text!r} is no resource: give resource_…, TYPE/EXTERNAL_ID or organization")
        key = core_pb2.ResourceKey(
            organization_id=organization_id, resource_type_slug=type_slug, external_id=external_id
        )
        return core_pb2.ResourceRef(key=key)

    def organization_of(self, subject: core_pb2.Subject) -> str:
        """Returns the organization of a membership; empty for a group."""
        if not subject.organization_membership_id:
            return ""
        stub = memberships_pb2_grpc.OrganizationMembershipServiceStub(self.channel)
        request = memberships_pb2.GetOrganizationMembershipRequest(
            organization_membership_id=subject.organization_membership_id
        )
        answer = self.ask(stub.GetOrganizationMembership, request)
        return str(answer.organization_membership.organization_id)

    def membership_id(self, subject: core_pb2.Subject) -> str:
        """Returns the id of the membership of a user in an organization."""
        stub = memberships_pb2_grpc.OrganizationMembershipServiceStub(self.channel)
        request = memberships_pb2.GetOrganizationMembershipRequest(user=subject.user)
        answer = self.ask(stub.GetOrganizationMembership, request)
        return str(answer.organization_membership.id)

    def pages(self, method: Callable[..., Any], request: Any, field: str) -> Iterator[Any]:
        """Yields the rows of all pages of a list."""
        while True:
            answer = self.ask(method, request)
            yield from getattr(answer, field)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token


@contextlib.contextmanager
def telling(running: Service) -> Iterator[Service]:
    """Gives a service; a call it refuses ends the command with the reason."""
    try:
        yield running
    except CallFailed as error:
        fail(described(error))
    finally:
        running.channel.close()


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """Gives the configured service."""
    try:
        settings = client_settings()
    except ConfigError as error:
        fail(str(error))
    with telling(Service(settings)) as running:
        yield running

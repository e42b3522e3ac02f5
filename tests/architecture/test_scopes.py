"""Every method is closed without a credential, to a wrong one, and to too small a scope (T18)."""

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from authz_service.base import ids, secrets
from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.rpc.call import Call
from authz_service.rpc.hall import Hall
from authz_service.server import Worker
from tests.callers import Caller, Refused, method, through_hall


def registered(hall: Hall) -> list[tuple[str, str]]:
    """Service and name of every method."""
    return [(each.service.rpartition(".")[2], each.name) for each in hall.methods.values()]


def refused(hall: Hall, service: str, name: str, bearer: str | None) -> Refused:
    """How a method refuses an empty request."""
    metadata = () if bearer is None else (("authorization", f"Bearer {bearer}"),)
    path = f"/authz.v1.{service}/{name}"
    descriptor = method(service, name)
    if descriptor.client_streaming:
        reply = hall.collect(Call(path, metadata), iter(()), lambda: False)
    elif descriptor.server_streaming:
        *_, reply = hall.stream(Call(path, metadata), lambda: False)
    else:
        (reply,) = hall.answer([Call(path, metadata)])
    assert reply.status is not None, f"{name} answered"
    return Refused(reply.status)


def test_every_method_of_the_contract_is_served(worker: Worker) -> None:
    served = {path.split("/")[1] for path in worker.hall.methods}
    contract = {
        f"authz.v1.{name}"
        for name in (
            "AuthorizationService",
            "ConfigurationService",
            "DirectoryFileService",
            "EventService",
            "GroupService",
            "OrganizationMembershipService",
            "OrganizationService",
            "PermissionService",
            "ResourceService",
            "ResourceTypeService",
            "RoleAssignmentService",
            "RoleService",
            "UserService",
            "WatchService",
        )
    }
    assert contract <= served


def test_no_method_answers_without_a_credential(worker: Worker) -> None:
    for service, name in registered(worker.hall):
        refusal = refused(worker.hall, service, name, None)
        assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING"), name


def test_no_method_answers_a_credential_that_does_not_exist(worker: Worker) -> None:
    stranger = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, ids.new(ids.CREDENTIAL))
    for service, name in registered(worker.hall):
        refusal = refused(worker.hall, service, name, stranger.reveal())
        assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID"), name


def test_no_method_answers_a_credential_without_its_scope(api: Caller, worker: Worker) -> None:
    made = {
        scope: api.ConfigurationService.CreateServiceCredential(name=scope, scopes=[scope]).secret
        for scope in ("check", "read")
    }
    for service, name in registered(worker.hall):
        scope = scope_of(method(service, name))
        bearer = made["read" if scope == "check" else "check"]
        refusal = refused(worker.hall, service, name, bearer)
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING"), name
        assert refusal.metadata["scope"] == scope


def scope_of(descriptor: MethodDescriptor) -> str:
    """The scope that the contract declares."""
    return str(descriptor.GetOptions().Extensions[required_scope])


@pytest.mark.parametrize(
    "path",
    [
        "authz.v1.UserService/GetUser",
        "//authz.v1.UserService/GetUser",
        "/authz.v1.UserService//GetUser",
        "/authz.v1.UserService/GetUser/",
        "/authz.v1.userservice/GetUser",
        "/authz.v1.UserService/getuser",
        "/authz.v1.UserService/DropUsers",
        "/",
        "",
    ],
)
def test_odd_paths_are_unimplemented(api: Caller, worker: Worker, path: str) -> None:
    send = through_hall(worker.hall)
    request = message_factory.GetMessageClass(method("UserService", "GetUser").input_type)()
    reply = send(path, (("authorization", f"Bearer {api._bearer}"),), request.SerializeToString())
    assert reply.status is not None
    assert Refused(reply.status).code == "UNIMPLEMENTED"

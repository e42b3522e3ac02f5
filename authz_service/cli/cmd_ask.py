"""``authz check``, ``explain``, ``list-members`` and ``list-resources``: questions to a service."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from authz_service.cli import app
from authz_service.cli.output import EXIT_DENIED, as_json, line

SUBJECT = typer.Argument(help="om_…, group_…, or USER@ORGANIZATION by id or external id")
PERMISSION = typer.Argument(help="a permission slug, such as document:read")
RESOURCE = typer.Argument(help="resource_…, TYPE/EXTERNAL_ID, or organization")
ORGANIZATION = typer.Option(help="id or external id; the subject's, if that names one")
JSON = typer.Option("--json", help="print the whole response")


def _time(timestamp: Any) -> str:
    return str(timestamp.ToJsonString())


def _holder(grant: Any) -> str:
    kind = grant.WhichOneof("holder")
    if kind == "own_role":
        return "own role"
    if kind == "group":
        via = "".join(f" via {group_id}" for group_id in grant.group.via_group_ids)
        return f"group {grant.group.group_id}{via}"
    return "own assignment"


def _grant(grant: Any) -> str:
    until = f", until {_time(grant.expires_at)}" if grant.HasField("expires_at") else ""
    place = f"{grant.resource.resource_type_slug}/{grant.resource.name}"
    return f"{grant.role_slug} on {place} ({_holder(grant)}{until})"


def _question(running: Any, subject: str, resource: str, organization: str) -> dict[str, Any]:
    who, where = running.subject(subject)
    place = running.organization_id(organization) if organization else where
    return {
        "subject": who,
        "resource": running.resource(resource, place or running.organization_of(who)),
    }


def _checked(running: Any, subject: str, permission: str, resource: str, organization: str) -> Any:
    from authz_service.pb.authz.v1 import authorization_pb2 as pb

    question = _question(running, subject, resource, organization)
    request = pb.CheckRequest(permission_slug=permission, **question)
    return running.ask(running.authorization.Check, request)


def _check_lines(answer: Any) -> list[str]:
    if not answer.allowed:
        return ["denied"]
    until = f" until {_time(answer.allowed_until)}" if answer.HasField("allowed_until") else ""
    return [f"allowed{until}"]


def ask_check(
    running: Any, subject: str, permission: str, resource: str, organization: str = ""
) -> list[str]:
    """Asks Check and returns what to print."""
    return _check_lines(_checked(running, subject, permission, resource, organization))


@app.command()
def check(
    subject: Annotated[str, SUBJECT],
    permission: Annotated[str, PERMISSION],
    resource: Annotated[str, RESOURCE],
    organization: Annotated[str, ORGANIZATION] = "",
    json: Annotated[bool, JSON] = False,
) -> None:
    """Asks whether a subject may do something. Ends with 0 for allowed, 1 for denied."""
    from authz_service.cli.service import service

    with service() as running:
        answer = _checked(running, subject, permission, resource, organization)
    _print([as_json(answer)] if json else _check_lines(answer))
    if not answer.allowed:
        raise typer.Exit(EXIT_DENIED)


def _explained(
    running: Any, subject: str, permission: str, resource: str, organization: str
) -> Any:
    from authz_service.pb.authz.v1 import authorization_pb2 as pb

    question = _question(running, subject, resource, organization)
    request = pb.ExplainRequest(permission_slug=permission, **question)
    return running.ask(running.authorization.Explain, request)


def _explain_lines(answer: Any) -> list[str]:
    from authz_service.pb.authz.v1 import authorization_pb2 as pb

    reason = pb.ExplainReason.Name(answer.reason).removeprefix("EXPLAIN_REASON_")
    path = " > ".join(f"{node.resource_type_slug}/{node.name}" for node in answer.resource_path)
    return [
        f"{'allowed' if answer.allowed else 'denied'}: {reason}",
        f"path: {path}",
        *(f"granted by {_grant(grant)}" for grant in answer.grants),
        *(f"blocked: {_grant(grant)}" for grant in answer.blocked_grants),
        *(
            "would be allowed by " + " and ".join(_step(step) for step in remedy.steps)
            for remedy in answer.remedies
        ),
    ]


def ask_explain(
    running: Any, subject: str, permission: str, resource: str, organization: str = ""
) -> list[str]:
    """Asks Explain and returns what to print."""
    return _explain_lines(_explained(running, subject, permission, resource, organization))


@app.command()
def explain(
    subject: Annotated[str, SUBJECT],
    permission: Annotated[str, PERMISSION],
    resource: Annotated[str, RESOURCE],
    organization: Annotated[str, ORGANIZATION] = "",
    json: Annotated[bool, JSON] = False,
) -> None:
    """Tells why a subject may or may not do something, and what would change that."""
    from authz_service.cli.service import service

    with service() as running:
        answer = _explained(running, subject, permission, resource, organization)
    _print([as_json(answer)] if json else _explain_lines(answer))


def _step(step: Any) -> str:
    from authz_service.pb.authz.v1 import authorization_pb2 as pb

    kind = pb.RemedyStepKind.Name(step.kind).removeprefix("REMEDY_STEP_KIND_")
    place = f"{step.resource.resource_type_slug}/{step.resource.name}"
    words = {
        "ASSIGN_ROLE": f"role {step.role_slug} on {place}",
        "UPDATE_MEMBERSHIP_ROLES": f"membership role {step.role_slug}",
        "EXTEND_ASSIGNMENT": f"a later end of {step.role_slug} on {place}",
        "REACTIVATE_MEMBERSHIP": "reactivating the membership",
        "ACCEPT_INVITATION": "accepting the invitation",
        "DEFINE_ROLE": f"a role that contains {step.permission_slug}",
    }
    return words.get(str(kind), str(kind))


def _members(
    running: Any, resource: str, permission: str, organization: str, direct_only: bool
) -> Iterator[Any]:
    from authz_service.pb.authz.v1 import authorization_pb2 as pb

    place = running.organization_id(organization) if organization else ""
    request = pb.ListMembersRequest(
        resource=running.resource(resource, place),
        permission_slug=permission,
        direct_only=direct_only,
    )
    rows: Iterator[Any] = running.pages(running.authorization.ListMembers, request, "members")
    return rows


def _member_line(row: Any) -> str:
    user = row.organization_membership.user
    return f"{user.external_id or user.id}\t{'; '.join(map(_grant, row.grants))}"


def ask_list_members(running: Any, resource: str, permission: str, organization: str) -> list[str]:
    """Asks ListMembers and returns what to print."""
    rows = _members(running, resource, permission, organization, direct_only=False)
    return [_member_line(row) for row in rows]


@app.command()
def list_members(
    resource: Annotated[str, RESOURCE],
    permission: Annotated[str, PERMISSION],
    organization: Annotated[str, ORGANIZATION] = "",
    direct_only: Annotated[bool, typer.Option("--direct-only")] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Lists who has a permission on a resource, and through what."""
    from authz_service.cli.service import service

    with service() as running:
        for row in _members(running, resource, permission, organization, direct_only):
            line(as_json(row) if json else _member_line(row))


@app.command()
def list_resources(
    subject: Annotated[str, SUBJECT],
    permissions: Annotated[list[str], typer.Argument(help="1 to 10 permission slugs")],
    parent: Annotated[str, typer.Option(help="only below it; as RESOURCE elsewhere")] = "",
    type: Annotated[list[str] | None, typer.Option(help="only of this type")] = None,
    organization: Annotated[str, ORGANIZATION] = "",
    children_only: Annotated[bool, typer.Option("--children-only")] = False,
    json: Annotated[bool, JSON] = False,
) -> None:
    """Lists the resources on which a subject has a permission, newest first."""
    from authz_service.cli.service import service
    from authz_service.pb.authz.v1 import authorization_pb2 as pb

    with service() as running:
        who, where = running.subject(subject)
        place = running.organization_id(organization) if organization else where
        request = pb.AuthorizationServiceListResourcesRequest(
            subject=who,
            permission_slugs=permissions,
            resource_type_slugs=type or [],
            children_only=children_only,
        )
        if parent:
            below = running.resource(parent, place or running.organization_of(who))
            request.parent.CopyFrom(below)
        for row in running.pages(running.authorization.ListResources, request, "items"):
            line(as_json(row) if json else _resource_line(row))


def _resource_line(row: Any) -> str:
    found = row.resource
    held = ", ".join(row.permission_slugs)
    return f"{found.resource_type_slug}/{found.external_id}\t{found.name}\t{held}"


def _print(lines: list[str]) -> None:
    for each in lines:
        line(each)

"""Decides: facts and a question in, a decision out."""

from typing import NamedTuple

from authz_service.base import errors
from authz_service.engine.facts import (
    API_KEY,
    GROUP,
    NO_END,
    USER,
    Ask,
    Ends,
    Facts,
    ResourceRef,
    Subject,
)


class Decision(NamedTuple):
    """An answer.

    Attributes:
        allowed_until: The instant, in microseconds since 1970, at which an allowed answer turns
            into a deny without any write (product.md M18); None without one, and for a deny.
    """

    allowed: bool
    allowed_until: int | None


DENIED = Decision(False, None)
ALLOWED = Decision(True, None)


def decide(facts: Facts, ask: Ask) -> Decision:
    """Returns the decision for one question (product.md M13 to M18).

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, GROUP_NOT_FOUND, API_KEY_NOT_FOUND, PERMISSION_NOT_FOUND,
            RESOURCE_NOT_FOUND, in the order of product.md 2.6.
        InvalidArgument: PERMISSION_RESOURCE_TYPE_MISMATCH.
    """
    subject, permission_slug, resource = ask
    grants = facts.grants.get(subject)
    if grants is None:
        raise subject_not_found(subject)
    permission_type = facts.permission_types.get(permission_slug)
    if permission_type is None:
        raise permission_not_found(permission_slug)
    path = facts.paths.get(resource)
    if path is None or path.organization_id != grants.organization_id:
        raise resource_not_found(resource)
    if path.resource_type_slug != permission_type:
        raise type_mismatch(permission_slug, permission_type, path.resource_type_slug)
    if not grants.is_active:
        return DENIED
    until = latest_end(grants.holders, path.resource_ids, permission_slug)
    if until == NO_END:
        return ALLOWED
    return Decision(True, until) if until > facts.now else DENIED


def latest_end(holders: tuple[Ends, ...], resource_ids: tuple[str, ...], slug: str) -> int:
    """Returns the latest end among the grants on these resources, 0 without any."""
    latest = 0
    for ends in holders:
        for resource_id in resource_ids:
            held = ends.get(resource_id)
            if held is not None:
                end = held.get(slug, 0)
                if end > latest:
                    latest = end
    return latest


def subject_not_found(subject: Subject) -> errors.NotFound:
    """The NOT_FOUND of a subject, with the ids as they were given."""
    if subject.kind == USER:
        return errors.NotFound(
            "MEMBERSHIP_NOT_FOUND",
            "no such membership",
            metadata={"user_id": subject.id, "organization_id": subject.organization_id},
        )
    if subject.kind == GROUP:
        return errors.NotFound(
            "GROUP_NOT_FOUND", "no such group", metadata={"group_id": subject.id}
        )
    if subject.kind == API_KEY:
        return errors.NotFound(
            "API_KEY_NOT_FOUND", "no such API key", metadata={"api_key_id": subject.id}
        )
    return errors.NotFound(
        "MEMBERSHIP_NOT_FOUND",
        "no such membership",
        metadata={"organization_membership_id": subject.id},
    )


def type_mismatch(slug: str, permission_type: str, resource_type: str) -> errors.InvalidArgument:
    """The refusal of a permission that was asked on a resource of another type."""
    return errors.InvalidArgument(
        "PERMISSION_RESOURCE_TYPE_MISMATCH",
        "the permission belongs to another resource type",
        metadata={
            "permission_slug": slug,
            "permission_type": permission_type,
            "resource_type": resource_type,
        },
    )


def permission_not_found(slug: str) -> errors.NotFound:
    """The NOT_FOUND of a permission."""
    return errors.NotFound(
        "PERMISSION_NOT_FOUND", "no such permission", metadata={"permission_slug": slug}
    )


def resource_not_found(resource: ResourceRef) -> errors.NotFound:
    """The NOT_FOUND of a resource, with the id or key as it was given."""
    if resource.id:
        metadata = {"resource_id": resource.id}
    else:
        metadata = {
            "organization_id": resource.organization_id,
            "resource_type_slug": resource.resource_type_slug,
            "external_id": resource.external_id,
        }
    return errors.NotFound("RESOURCE_NOT_FOUND", "no such resource", metadata=metadata)

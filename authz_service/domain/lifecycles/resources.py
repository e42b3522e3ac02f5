"""What goes with a resource (product.md RS5, RS7)."""

from authz_service.base import errors
from authz_service.domain import events, resources
from authz_service.domain.lifecycles import assignments
from authz_service.engine import limits
from authz_service.engine.facts import ResourceRef
from authz_service.storage.database import Transaction
from authz_service.storage.tables import RoleAssignment


def delete(
    tx: Transaction,
    ref: ResourceRef,
    *,
    cascade: bool = False,
    etag: str = "",
    allow_missing: bool = False,
) -> tuple[int, int]:
    """Deletes a resource, with ``cascade`` all below it and every role assignment on any of it.

    Returns:
        How many resources went, this one included, and how many role assignments.

    Raises:
        NotFound: RESOURCE_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: RESOURCE_HAS_DEPENDENTS, ORGANIZATION_RESOURCE_IMMUTABLE.
        Aborted: ETAG_MISMATCH.
        ResourceExhausted: LIMIT_REACHED (cascade_resources).
    """
    try:
        row = resources.for_update(tx, ref)
    except errors.NotFound:
        if allow_missing:
            return 0, 0
        raise
    resources.refuse_root(row.resource_type_slug)
    events.check_etag(row, etag)
    if cascade:
        rows = resources.subtree(tx, row, limit=limits.CASCADE_RESOURCES_MAX + 1)
        if len(rows) > limits.CASCADE_RESOURCES_MAX:
            raise errors.limit_reached("cascade_resources", maximum=limits.CASCADE_RESOURCES_MAX)
        inside = RoleAssignment.resource_id.in_(resources.ids_below(row.id))
        ended = assignments.unexpired(tx, inside)
    else:
        # Its first row is the resource itself.
        rows = resources.subtree(tx, row, limit=1)
        ended = []
        dependents = {
            "resources": resources.count_children(tx, row),
            "role_assignments": len(
                assignments.unexpired(tx, RoleAssignment.resource_id == row.id)
            ),
        }
        if any(dependents.values()):
            raise errors.FailedPrecondition(
                "RESOURCE_HAS_DEPENDENTS",
                "other resources lie below it, or roles are assigned on it",
                metadata={kind: count for kind, count in dependents.items() if count},
            )
    resources.remove(tx, rows)
    # Nobody can ask about a resource that is gone, so what was held there is in no answer.
    assignments.record_deleted(tx, ended, tags=())
    return len(rows), len(ended)

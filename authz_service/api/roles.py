"""RoleService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.domain import configuration, roles
from authz_service.domain.lifecycles import roles as lifecycle
from authz_service.pb.authz.v1 import roles_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Snapshot, Transaction


class RoleServicer:
    """Creates, reads, changes and deletes roles."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateRole(self, request: pb.CreateRoleRequest, context: Context) -> pb.CreateRoleResponse:
        def work(tx: Transaction) -> pb.CreateRoleResponse:
            row = roles.create(
                tx,
                organization_id=request.organization_id,
                slug=request.slug,
                name=request.name,
                description=request.description,
                resource_type_slug=request.resource_type_slug,
                permission_slugs=request.permission_slugs,
            )
            return pb.CreateRoleResponse(role=_role(tx, row, roles.organization_of(row)))

        return self._mutations.run(request, context, work)

    def GetRole(self, request: pb.GetRoleRequest, context: Context) -> pb.GetRoleResponse:
        if render.required_oneof(request, "role") == "key":
            named = {"organization_id": request.key.organization_id, "slug": request.key.slug}
        else:
            named = {"role_id": request.role_id}
        with self._database.snapshot(context.actor) as snapshot:
            row = roles.get(snapshot, **named)
            role = _role(snapshot, row, request.key.organization_id or roles.organization_of(row))
        return pb.GetRoleResponse(role=role)

    def ListRoles(self, request: pb.ListRolesRequest, context: Context) -> pb.ListRolesResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            listed, after, total = roles.page(
                snapshot,
                organization_id=request.organization_id,
                resource_type_slug=request.resource_type_slug,
                include_total=request.include_total_size,
                page=listing.page,
            )
        return pb.ListRolesResponse(
            roles=[pb.Role(**role) for role in listed],
            next_page_token=listing.token(after),
            total_size=total,
        )

    def UpdateRole(self, request: pb.UpdateRoleRequest, context: Context) -> pb.UpdateRoleResponse:
        role_id = render.required("role.id", request.role.id)
        changes = render.changes(request.role, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateRoleResponse:
            row = roles.update(tx, role_id, changes, etag=request.role.etag)
            return pb.UpdateRoleResponse(role=_role(tx, row, roles.organization_of(row)))

        return self._mutations.run(request, context, work)

    def SetRolePermissions(
        self, request: pb.SetRolePermissionsRequest, context: Context
    ) -> pb.SetRolePermissionsResponse:
        def work(tx: Transaction) -> pb.SetRolePermissionsResponse:
            row = roles.set_permissions(
                tx, request.role_id, request.permission_slugs, etag=request.etag
            )
            return pb.SetRolePermissionsResponse(role=_role(tx, row, roles.organization_of(row)))

        return self._mutations.run(request, context, work)

    def AddRolePermissions(
        self, request: pb.AddRolePermissionsRequest, context: Context
    ) -> pb.AddRolePermissionsResponse:
        def work(tx: Transaction) -> pb.AddRolePermissionsResponse:
            row = roles.add_permissions(
                tx, request.role_id, request.permission_slugs, etag=request.etag
            )
            return pb.AddRolePermissionsResponse(role=_role(tx, row, roles.organization_of(row)))

        return self._mutations.run(request, context, work)

    def RemoveRolePermissions(
        self, request: pb.RemoveRolePermissionsRequest, context: Context
    ) -> pb.RemoveRolePermissionsResponse:
        def work(tx: Transaction) -> pb.RemoveRolePermissionsResponse:
            row = roles.remove_permissions(
                tx, request.role_id, request.permission_slugs, etag=request.etag
            )
            return pb.RemoveRolePermissionsResponse(role=_role(tx, row, roles.organization_of(row)))

        return self._mutations.run(request, context, work)

    def DeleteRole(self, request: pb.DeleteRoleRequest, context: Context) -> pb.DeleteRoleResponse:
        def work(tx: Transaction) -> pb.DeleteRoleResponse:
            counts = lifecycle.delete(
                tx,
                request.role_id,
                replacement_role_slug=request.replacement_role_slug,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteRoleResponse(replaced_counts=counts)

        return self._mutations.run(request, context, work)


def _role(snapshot: Snapshot, row: roles.AnyRole, organization_id: str) -> pb.Role:
    """Returns a role as an organization sees it; as the deployment does, if none is named."""
    order = configuration.role_order(snapshot, organization_id)
    assert order is not None  # the role was found there
    return pb.Role(**roles.views(snapshot, [row], order)[0])

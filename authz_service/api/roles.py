"""RoleService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import roles
from authz_service.domain.lifecycles import roles as lifecycle
from authz_service.pb.authz.v1 import roles_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Snapshot, Transaction


def _message(snapshot: Snapshot, row: roles.AnyRole) -> pb.Role:
    organization_id = "" if row.realm == ENVIRONMENT else row.realm
    return pb.Role(**roles.seen(snapshot, [row], organization_id)[0])


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
            return pb.CreateRoleResponse(role=_message(tx, row))

        return self._mutations.run(request, context, work)

    def GetRole(self, request: pb.GetRoleRequest, context: Context) -> pb.GetRoleResponse:
        chosen = render.required_oneof(request, "role")
        with self._database.snapshot(context.actor) as snapshot:
            if chosen == "key":
                organization_id = request.key.organization_id
                row = roles.find(snapshot, organization_id=organization_id, slug=request.key.slug)
                return pb.GetRoleResponse(
                    role=pb.Role(**roles.seen(snapshot, [row], organization_id)[0])
                )
            row = roles.find(snapshot, role_id=request.role_id)
            return pb.GetRoleResponse(role=_message(snapshot, row))

    def ListRoles(self, request: pb.ListRolesRequest, context: Context) -> pb.ListRolesResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after, total = roles.page(
                snapshot,
                organization_id=request.organization_id,
                resource_type_slug=request.resource_type_slug,
                page=listing.page,
                include_total=request.include_total_size,
            )
            views = roles.seen(snapshot, rows, request.organization_id)
        return pb.ListRolesResponse(
            roles=[pb.Role(**view) for view in views],
            next_page_token=listing.token(after),
            total_size=total,
        )

    def UpdateRole(self, request: pb.UpdateRoleRequest, context: Context) -> pb.UpdateRoleResponse:
        role_id = render.required("role.id", request.role.id)
        changes = render.changes(request.role, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateRoleResponse:
            row = roles.update(tx, role_id, changes, etag=request.role.etag)
            return pb.UpdateRoleResponse(role=_message(tx, row))

        return self._mutations.run(request, context, work)

    def SetRolePermissions(
        self, request: pb.SetRolePermissionsRequest, context: Context
    ) -> pb.SetRolePermissionsResponse:
        def work(tx: Transaction) -> pb.SetRolePermissionsResponse:
            row = roles.set_permissions(
                tx, request.role_id, request.permission_slugs, etag=request.etag
            )
            return pb.SetRolePermissionsResponse(role=_message(tx, row))

        return self._mutations.run(request, context, work)

    def AddRolePermissions(
        self, request: pb.AddRolePermissionsRequest, context: Context
    ) -> pb.AddRolePermissionsResponse:
        def work(tx: Transaction) -> pb.AddRolePermissionsResponse:
            row = roles.add_permissions(
                tx, request.role_id, request.permission_slugs, etag=request.etag
            )
            return pb.AddRolePermissionsResponse(role=_message(tx, row))

        return self._mutations.run(request, context, work)

    def RemoveRolePermissions(
        self, request: pb.RemoveRolePermissionsRequest, context: Context
    ) -> pb.RemoveRolePermissionsResponse:
        def work(tx: Transaction) -> pb.RemoveRolePermissionsResponse:
            row = roles.remove_permissions(
                tx, request.role_id, request.permission_slugs, etag=request.etag
            )
            return pb.RemoveRolePermissionsResponse(role=_message(tx, row))

        return self._mutations.run(request, context, work)

    def DeleteRole(self, request: pb.DeleteRoleRequest, context: Context) -> pb.DeleteRoleResponse:
        def work(tx: Transaction) -> pb.DeleteRoleResponse:
            counts = lifecycle.delete_role(
                tx,
                request.role_id,
                replacement_role_slug=request.replacement_role_slug,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteRoleResponse(replaced_counts=counts)

        return self._mutations.run(request, context, work)

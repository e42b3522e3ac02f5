"""PermissionService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.domain import permissions
from authz_service.domain.lifecycles import permissions as lifecycle
from authz_service.pb.authz.v1 import permissions_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction


class PermissionServicer:
    """Creates, reads, changes and deletes permissions."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreatePermission(
        self, request: pb.CreatePermissionRequest, context: Context
    ) -> pb.CreatePermissionResponse:
        def work(tx: Transaction) -> pb.CreatePermissionResponse:
            row = permissions.create(
                tx,
                slug=request.slug,
                name=request.name,
                description=request.description,
                resource_type_slug=request.resource_type_slug,
                assignable_to_api_keys=request.assignable_to_api_keys,
            )
            return pb.CreatePermissionResponse(permission=pb.Permission(**permissions.view(row)))

        return self._mutations.run(request, context, work)

    def GetPermission(
        self, request: pb.GetPermissionRequest, context: Context
    ) -> pb.GetPermissionResponse:
        with self._database.snapshot(context.actor) as snapshot:
            row = permissions.get(snapshot, request.permission_slug)
        return pb.GetPermissionResponse(permission=pb.Permission(**permissions.view(row)))

    def ListPermissions(
        self, request: pb.ListPermissionsRequest, context: Context
    ) -> pb.ListPermissionsResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = permissions.page(
                snapshot,
                resource_type_slug=request.resource_type_slug,
                query=request.query,
                page=listing.page,
            )
        return pb.ListPermissionsResponse(
            permissions=[pb.Permission(**permissions.view(row)) for row in rows],
            next_page_token=listing.token(after),
        )

    def UpdatePermission(
        self, request: pb.UpdatePermissionRequest, context: Context
    ) -> pb.UpdatePermissionResponse:
        slug = render.required("permission.slug", request.permission.slug)
        changes = render.changes(request.permission, request.update_mask)

        def work(tx: Transaction) -> pb.UpdatePermissionResponse:
            row = permissions.update(tx, slug, changes, etag=request.permission.etag)
            return pb.UpdatePermissionResponse(permission=pb.Permission(**permissions.view(row)))

        return self._mutations.run(request, context, work)

    def DeletePermission(
        self, request: pb.DeletePermissionRequest, context: Context
    ) -> pb.DeletePermissionResponse:
        def work(tx: Transaction) -> pb.DeletePermissionResponse:
            lifecycle.delete(
                tx,
                request.permission_slug,
                cascade=request.cascade,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeletePermissionResponse()

        return self._mutations.run(request, context, work)

"""ResourceTypeService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.domain import resource_types
from authz_service.pb.authz.v1 import resource_types_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction


class ResourceTypeServicer:
    """Creates, reads, changes and deletes resource types."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateResourceType(
        self, request: pb.CreateResourceTypeRequest, context: Context
    ) -> pb.CreateResourceTypeResponse:
        def work(tx: Transaction) -> pb.CreateResourceTypeResponse:
            view = resource_types.create(
                tx,
                slug=request.slug,
                name=request.name,
                description=request.description,
                parent_type_slugs=request.parent_type_slugs,
            )
            return pb.CreateResourceTypeResponse(resource_type=pb.ResourceType(**view))

        return self._mutations.run(request, context, work)

    def GetResourceType(
        self, request: pb.GetResourceTypeRequest, context: Context
    ) -> pb.GetResourceTypeResponse:
        with self._database.snapshot(context.actor) as snapshot:
            view = resource_types.get(snapshot, request.resource_type_slug)
        return pb.GetResourceTypeResponse(resource_type=pb.ResourceType(**view))

    def ListResourceTypes(
        self, request: pb.ListResourceTypesRequest, context: Context
    ) -> pb.ListResourceTypesResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            views, after = resource_types.page(snapshot, page=listing.page)
        return pb.ListResourceTypesResponse(
            resource_types=[pb.ResourceType(**view) for view in views],
            next_page_token=listing.token(after),
        )

    def UpdateResourceType(
        self, request: pb.UpdateResourceTypeRequest, context: Context
    ) -> pb.UpdateResourceTypeResponse:
        slug = render.required("resource_type.slug", request.resource_type.slug)
        changes = render.changes(request.resource_type, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateResourceTypeResponse:
            view = resource_types.update(tx, slug, changes, etag=request.resource_type.etag)
            return pb.UpdateResourceTypeResponse(resource_type=pb.ResourceType(**view))

        return self._mutations.run(request, context, work)

    def DeleteResourceType(
        self, request: pb.DeleteResourceTypeRequest, context: Context
    ) -> pb.DeleteResourceTypeResponse:
        def work(tx: Transaction) -> pb.DeleteResourceTypeResponse:
            resource_types.delete(
                tx,
                request.resource_type_slug,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteResourceTypeResponse()

        return self._mutations.run(request, context, work)

"""ResourceService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.domain import resources
from authz_service.domain.lifecycles import resources as lifecycle
from authz_service.engine.facts import ResourceRef
from authz_service.pb.authz.v1 import resources_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction


class ResourceServicer:
    """Registers, reads, changes, moves and deletes resources."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateResource(
        self, request: pb.CreateResourceRequest, context: Context
    ) -> pb.CreateResourceResponse:
        parent = _parent(request)

        def work(tx: Transaction) -> pb.CreateResourceResponse:
            row = resources.create(
                tx,
                organization_id=request.organization_id,
                resource_type_slug=request.resource_type_slug,
                external_id=request.external_id,
                name=request.name,
                description=request.description,
                parent=parent,
            )
            return pb.CreateResourceResponse(resource=pb.Resource(**resources.view(row)))

        return self._mutations.run(request, context, work)

    def UpsertResource(
        self, request: pb.UpsertResourceRequest, context: Context
    ) -> pb.UpsertResourceResponse:
        parent = _parent(request)

        def work(tx: Transaction) -> pb.UpsertResourceResponse:
            row, is_new = resources.upsert(
                tx,
                organization_id=request.organization_id,
                resource_type_slug=request.resource_type_slug,
                external_id=request.external_id,
                name=request.name,
                description=request.description if request.HasField("description") else None,
                parent=parent,
            )
            return pb.UpsertResourceResponse(
                resource=pb.Resource(**resources.view(row)), is_new=is_new
            )

        return self._mutations.run(request, context, work)

    def GetResource(
        self, request: pb.GetResourceRequest, context: Context
    ) -> pb.GetResourceResponse:
        ref = render.resource_ref(request.resource)
        with self._database.snapshot(context.actor) as snapshot:
            row = resources.find(snapshot, ref)
        return pb.GetResourceResponse(resource=pb.Resource(**resources.view(row)))

    def ListResources(
        self, request: pb.ListResourcesRequest, context: Context
    ) -> pb.ListResourcesResponse:
        parent = _parent(request)
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = resources.page(
                snapshot,
                organization_id=request.organization_id,
                resource_type_slug=request.resource_type_slug,
                parent=parent,
                children_only=request.children_only,
                query=request.query,
                page=listing.page,
            )
        return pb.ListResourcesResponse(
            resources=[pb.Resource(**resources.view(row)) for row in rows],
            next_page_token=listing.token(after),
        )

    def UpdateResource(
        self, request: pb.UpdateResourceRequest, context: Context
    ) -> pb.UpdateResourceResponse:
        ref = render.resource_ref(request.resource)
        # The request names the resource beside the new values; what may be masked is the object's.
        values = pb.Resource(name=request.name, description=request.description)
        changes = render.changes(values, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateResourceResponse:
            row = resources.update(tx, ref, changes, etag=request.etag)
            return pb.UpdateResourceResponse(resource=pb.Resource(**resources.view(row)))

        return self._mutations.run(request, context, work)

    def MoveResource(
        self, request: pb.MoveResourceRequest, context: Context
    ) -> pb.MoveResourceResponse:
        ref = render.resource_ref(request.resource)
        parent = render.resource_ref(request.parent, "parent")

        def work(tx: Transaction) -> pb.MoveResourceResponse:
            row = resources.move(tx, ref, parent=parent, etag=request.etag)
            return pb.MoveResourceResponse(resource=pb.Resource(**resources.view(row)))

        return self._mutations.run(request, context, work)

    def DeleteResource(
        self, request: pb.DeleteResourceRequest, context: Context
    ) -> pb.DeleteResourceResponse:
        ref = render.resource_ref(request.resource)

        def work(tx: Transaction) -> pb.DeleteResourceResponse:
            resource_count, assignment_count = lifecycle.delete(
                tx,
                ref,
                cascade=request.cascade,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteResourceResponse(
                deleted_resource_count=resource_count,
                deleted_role_assignment_count=assignment_count,
            )

        return self._mutations.run(request, context, work)


def _parent(
    request: pb.CreateResourceRequest | pb.UpsertResourceRequest | pb.ListResourcesRequest,
) -> ResourceRef | None:
    return render.resource_ref(request.parent, "parent") if request.HasField("parent") else None

"""OrganizationService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.domain import organizations
from authz_service.domain.lifecycles import organizations as lifecycle
from authz_service.pb.authz.v1 import organizations_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction


class OrganizationServicer:
    """Creates, reads, changes and deletes organizations."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateOrganization(
        self, request: pb.CreateOrganizationRequest, context: Context
    ) -> pb.CreateOrganizationResponse:
        def work(tx: Transaction) -> pb.CreateOrganizationResponse:
            row = lifecycle.create(
                tx,
                name=request.name,
                external_id=request.external_id,
                metadata=request.metadata,
            )
            return pb.CreateOrganizationResponse(
                organization=pb.Organization(**organizations.view(row))
            )

        return self._mutations.run(request, context, work)

    def GetOrganization(
        self, request: pb.GetOrganizationRequest, context: Context
    ) -> pb.GetOrganizationResponse:
        render.required_oneof(request, "organization")
        with self._database.snapshot(context.actor) as snapshot:
            row = organizations.get(
                snapshot,
                organization_id=request.organization_id,
                external_id=request.external_id,
            )
        return pb.GetOrganizationResponse(organization=pb.Organization(**organizations.view(row)))

    def ListOrganizations(
        self, request: pb.ListOrganizationsRequest, context: Context
    ) -> pb.ListOrganizationsResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = organizations.page(snapshot, query=request.query, page=listing.page)
        return pb.ListOrganizationsResponse(
            organizations=[pb.Organization(**organizations.view(row)) for row in rows],
            next_page_token=listing.token(after),
        )

    def UpdateOrganization(
        self, request: pb.UpdateOrganizationRequest, context: Context
    ) -> pb.UpdateOrganizationResponse:
        organization_id = render.required("organization.id", request.organization.id)
        changes = render.changes(request.organization, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateOrganizationResponse:
            row = lifecycle.update(tx, organization_id, changes, etag=request.organization.etag)
            return pb.UpdateOrganizationResponse(
                organization=pb.Organization(**organizations.view(row))
            )

        return self._mutations.run(request, context, work)

    def DeleteOrganization(
        self, request: pb.DeleteOrganizationRequest, context: Context
    ) -> pb.DeleteOrganizationResponse:
        def work(tx: Transaction) -> pb.DeleteOrganizationResponse:
            counts = lifecycle.delete(
                tx,
                request.organization_id,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteOrganizationResponse(deleted_counts=counts)

        return self._mutations.run(request, context, work)

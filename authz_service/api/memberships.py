"""OrganizationMembershipService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.domain import memberships
from authz_service.domain.lifecycles import memberships as lifecycle
from authz_service.pb.authz.v1 import memberships_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction

_STATUS = "MEMBERSHIP_STATUS_"


class MembershipServicer:
    """Creates, reads, changes, suspends and deletes memberships."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateOrganizationMembership(
        self, request: pb.CreateOrganizationMembershipRequest, context: Context
    ) -> pb.CreateOrganizationMembershipResponse:
        def work(tx: Transaction) -> pb.CreateOrganizationMembershipResponse:
            seen = memberships.create(
                tx,
                user_id=request.user_id,
                organization_id=request.organization_id,
                role_slug=request.role_slug,
                role_slugs=request.role_slugs,
            )
            return pb.CreateOrganizationMembershipResponse(
                organization_membership=pb.OrganizationMembership(**seen)
            )

        return self._mutations.run(request, context, work)

    def GetOrganizationMembership(
        self, request: pb.GetOrganizationMembershipRequest, context: Context
    ) -> pb.GetOrganizationMembershipResponse:
        render.required_oneof(request, "membership")
        with self._database.snapshot(context.actor) as snapshot:
            row = memberships.get(
                snapshot,
                request.organization_membership_id,
                user_id=request.user.user_id,
                organization_id=request.user.organization_id,
            )
            (seen,) = memberships.views(snapshot, [row])
        return pb.GetOrganizationMembershipResponse(
            organization_membership=pb.OrganizationMembership(**seen)
        )

    def ListOrganizationMemberships(
        self, request: pb.ListOrganizationMembershipsRequest, context: Context
    ) -> pb.ListOrganizationMembershipsResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after, total = memberships.page(
                snapshot,
                organization_id=request.organization_id,
                user_id=request.user_id,
                statuses=[
                    pb.MembershipStatus.Name(status).removeprefix(_STATUS)
                    for status in request.statuses
                ],
                role_slugs=request.role_slugs,
                query=request.query,
                include_total=request.include_total_size,
                page=listing.page,
            )
            listed = memberships.views(snapshot, rows)
        return pb.ListOrganizationMembershipsResponse(
            organization_memberships=[pb.OrganizationMembership(**seen) for seen in listed],
            next_page_token=listing.token(after),
            total_size=total,
        )

    def UpdateOrganizationMembership(
        self, request: pb.UpdateOrganizationMembershipRequest, context: Context
    ) -> pb.UpdateOrganizationMembershipResponse:
        def work(tx: Transaction) -> pb.UpdateOrganizationMembershipResponse:
            seen = memberships.update(
                tx,
                request.organization_membership_id,
                role_slug=request.role_slug,
                role_slugs=request.role_slugs,
                etag=request.etag,
            )
            return pb.UpdateOrganizationMembershipResponse(
                organization_membership=pb.OrganizationMembership(**seen)
            )

        return self._mutations.run(request, context, work)

    def DeleteOrganizationMembership(
        self, request: pb.DeleteOrganizationMembershipRequest, context: Context
    ) -> pb.DeleteOrganizationMembershipResponse:
        def work(tx: Transaction) -> pb.DeleteOrganizationMembershipResponse:
            lifecycle.delete(
                tx,
                request.organization_membership_id,
                etag=request.etag,
                allow_missing=request.allow_missing,
            )
            return pb.DeleteOrganizationMembershipResponse()

        return self._mutations.run(request, context, work)

    def DeactivateOrganizationMembership(
        self, request: pb.DeactivateOrganizationMembershipRequest, context: Context
    ) -> pb.DeactivateOrganizationMembershipResponse:
        def work(tx: Transaction) -> pb.DeactivateOrganizationMembershipResponse:
            seen = memberships.deactivate(tx, request.organization_membership_id, etag=request.etag)
            return pb.DeactivateOrganizationMembershipResponse(
                organization_membership=pb.OrganizationMembership(**seen)
            )

        return self._mutations.run(request, context, work)

    def ReactivateOrganizationMembership(
        self, request: pb.ReactivateOrganizationMembershipRequest, context: Context
    ) -> pb.ReactivateOrganizationMembershipResponse:
        def work(tx: Transaction) -> pb.ReactivateOrganizationMembershipResponse:
            seen = memberships.reactivate(tx, request.organization_membership_id, etag=request.etag)
            return pb.ReactivateOrganizationMembershipResponse(
                organization_membership=pb.OrganizationMembership(**seen)
            )

        return self._mutations.run(request, context, work)

"""UserService."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.domain import users
from authz_service.domain.lifecycles import users as lifecycle
from authz_service.pb.authz.v1 import users_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction


class UserServicer:
    """Creates, reads, changes and deletes users."""

    def __init__(self, database: Database, mutations: Mutations, listings: Listings) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings

    def CreateUser(self, request: pb.CreateUserRequest, context: Context) -> pb.CreateUserResponse:
        def work(tx: Transaction) -> pb.CreateUserResponse:
            row = users.create(
                tx,
                email=request.email,
                email_verified=request.email_verified,
                first_name=request.first_name,
                last_name=request.last_name,
                name=request.name,
                profile_picture_url=request.profile_picture_url,
                phone_number=request.phone_number,
                locale=request.locale,
                external_id=request.external_id,
                metadata=request.metadata,
            )
            return pb.CreateUserResponse(user=pb.User(**users.view(row)))

        return self._mutations.run(request, context, work)

    def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.GetUserResponse:
        render.required_oneof(request, "user")
        with self._database.snapshot(context.actor) as snapshot:
            row = users.get(
                snapshot,
                user_id=request.user_id,
                external_id=request.external_id,
                email=request.email,
            )
        return pb.GetUserResponse(user=pb.User(**users.view(row)))

    def ListUsers(self, request: pb.ListUsersRequest, context: Context) -> pb.ListUsersResponse:
        listing = self._listings.open(request, context)
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = users.page(
                snapshot,
                email=request.email,
                organization_id=request.organization_id,
                query=request.query,
                page=listing.page,
            )
        return pb.ListUsersResponse(
            users=[pb.User(**users.view(row)) for row in rows],
            next_page_token=listing.token(after),
        )

    def UpdateUser(self, request: pb.UpdateUserRequest, context: Context) -> pb.UpdateUserResponse:
        user_id = render.required("user.id", request.user.id)
        changes = render.changes(request.user, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateUserResponse:
            row = users.update(tx, user_id, changes, etag=request.user.etag)
            return pb.UpdateUserResponse(user=pb.User(**users.view(row)))

        return self._mutations.run(request, context, work)

    def DeleteUser(self, request: pb.DeleteUserRequest, context: Context) -> pb.DeleteUserResponse:
        def work(tx: Transaction) -> pb.DeleteUserResponse:
            count = lifecycle.delete(
                tx, request.user_id, etag=request.etag, allow_missing=request.allow_missing
            )
            return pb.DeleteUserResponse(deleted_membership_count=count)

        return self._mutations.run(request, context, work)

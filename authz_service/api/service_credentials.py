"""The RPCs of ConfigurationService that are about service credentials, and when they were used."""

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.api.mutation import Mutations
from authz_service.base.actor import SYSTEM
from authz_service.domain import service_credentials
from authz_service.pb.authz.v1 import configuration_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction

_STATE = "SERVICE_CREDENTIAL_STATE_"


class ServiceCredentialMethods:
    """Creates, lists, changes, rotates and revokes service credentials.

    Args:
        credential_key: What new secrets are hashed under.
    """

    def __init__(
        self,
        database: Database,
        mutations: Mutations,
        listings: Listings,
        credential_key: bytes,
    ) -> None:
        self._database = database
        self._mutations = mutations
        self._listings = listings
        self._credential_key = credential_key

    def CreateServiceCredential(
        self, request: pb.CreateServiceCredentialRequest, context: Context
    ) -> pb.CreateServiceCredentialResponse:
        def work(tx: Transaction) -> pb.CreateServiceCredentialResponse:
            row, secret = service_credentials.create(
                tx,
                key=self._credential_key,
                name=request.name,
                scopes=request.scopes,
                organization_ids=request.organization_ids,
                expires_at=render.optional_instant(request, "expires_at"),
            )
            return pb.CreateServiceCredentialResponse(
                service_credential=pb.ServiceCredential(**service_credentials.view(row, tx.now)),
                secret=secret.reveal(),
            )

        return self._mutations.run(request, context, work)

    def ListServiceCredentials(
        self, request: pb.ListServiceCredentialsRequest, context: Context
    ) -> pb.ListServiceCredentialsResponse:
        listing = self._listings.open(request, context)
        states = {
            pb.ServiceCredentialState.Name(state).removeprefix(_STATE) for state in request.states
        }
        with self._database.snapshot(context.actor) as snapshot:
            rows, after = service_credentials.page(snapshot, states=states, page=listing.page)
            listed = [
                pb.ServiceCredential(**service_credentials.view(row, snapshot.now)) for row in rows
            ]
        return pb.ListServiceCredentialsResponse(
            service_credentials=listed, next_page_token=listing.token(after)
        )

    def UpdateServiceCredential(
        self, request: pb.UpdateServiceCredentialRequest, context: Context
    ) -> pb.UpdateServiceCredentialResponse:
        credential_id = render.required("service_credential.id", request.service_credential.id)
        changes = render.changes(request.service_credential, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateServiceCredentialResponse:
            row = service_credentials.update(
                tx, credential_id, changes, etag=request.service_credential.etag
            )
            return pb.UpdateServiceCredentialResponse(
                service_credential=pb.ServiceCredential(**service_credentials.view(row, tx.now))
            )

        return self._mutations.run(request, context, work)

    def RotateServiceCredential(
        self, request: pb.RotateServiceCredentialRequest, context: Context
    ) -> pb.RotateServiceCredentialResponse:
        def work(tx: Transaction) -> pb.RotateServiceCredentialResponse:
            _, secret = service_credentials.rotate(
                tx,
                request.service_credential_id,
                key=self._credential_key,
                overlap=render.span(request.overlap),
            )
            return pb.RotateServiceCredentialResponse(secret=secret.reveal())

        return self._mutations.run(request, context, work)

    def RevokeServiceCredential(
        self, request: pb.RevokeServiceCredentialRequest, context: Context
    ) -> pb.RevokeServiceCredentialResponse:
        def work(tx: Transaction) -> pb.RevokeServiceCredentialResponse:
            row = service_credentials.revoke(tx, request.service_credential_id, etag=request.etag)
            return pb.RevokeServiceCredentialResponse(
                service_credential=pb.ServiceCredential(**service_credentials.view(row, tx.now))
            )

        return self._mutations.run(request, context, work)


class CredentialUses:
    """Which service credentials were used; noted on every call, written down in the background."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[str, None] = {}
        self._unwritten: dict[str, int] = {}

    def note(self, credential_id: str) -> None:
        """Notes a use. Runs on the path of every call: one assignment, no lock, no clock."""
        self._noted[credential_id] = None

    def write(self) -> None:
        """Writes down what was noted since the last time; by one thread, several times a minute.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE; the next time writes it.
        """
        now = self._database.now()
        # A use noted while this runs is this one or the next: list() and pop() are atomic.
        for credential_id in list(self._noted):
            self._noted.pop(credential_id, None)
            self._unwritten[credential_id] = now
        if not self._unwritten:
            return

        def work(tx: Transaction) -> None:
            service_credentials.record_uses(tx, self._unwritten)

        self._database.write(work, actor=SYSTEM)
        self._unwritten = {}

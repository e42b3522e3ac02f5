"""ConfigurationService: settings; what is about service credentials is in that file."""

from authz_service.api import render
from authz_service.api.service_credentials import ServiceCredentialMethods
from authz_service.domain import configuration, organizations
from authz_service.domain.lifecycles import configuration as lifecycle
from authz_service.pb.authz.v1 import configuration_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Transaction


class ConfigurationServicer(ServiceCredentialMethods):
    """Reads and changes the settings of the deployment and of organizations."""

    def GetConfiguration(
        self, request: pb.GetConfigurationRequest, context: Context
    ) -> pb.GetConfigurationResponse:
        with self._database.snapshot(context.actor) as snapshot:
            seen = configuration.view(snapshot, configuration.current(snapshot))
        return pb.GetConfigurationResponse(configuration=pb.Configuration(**seen))

    def UpdateConfiguration(
        self, request: pb.UpdateConfigurationRequest, context: Context
    ) -> pb.UpdateConfigurationResponse:
        changes = render.changes(request.configuration, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateConfigurationResponse:
            seen = lifecycle.update(
                tx,
                changes,
                collapse_membership_roles=request.collapse_membership_roles,
                etag=request.configuration.etag,
            )
            return pb.UpdateConfigurationResponse(configuration=pb.Configuration(**seen))

        return self._mutations.run(request, context, work)

    def GetOrganizationConfiguration(
        self, request: pb.GetOrganizationConfigurationRequest, context: Context
    ) -> pb.GetOrganizationConfigurationResponse:
        with self._database.snapshot(context.actor) as snapshot:
            organizations.require(snapshot, request.organization_id)
            row = configuration.organization(snapshot, request.organization_id)
            seen = configuration.organization_view(snapshot, row)
        return pb.GetOrganizationConfigurationResponse(
            organization_configuration=pb.OrganizationConfiguration(**seen)
        )

    def UpdateOrganizationConfiguration(
        self, request: pb.UpdateOrganizationConfigurationRequest, context: Context
    ) -> pb.UpdateOrganizationConfigurationResponse:
        organization_id = render.required(
            "organization_configuration.organization_id",
            request.organization_configuration.organization_id,
        )
        changes = render.changes(request.organization_configuration, request.update_mask)

        def work(tx: Transaction) -> pb.UpdateOrganizationConfigurationResponse:
            seen = lifecycle.update_organization(
                tx, organization_id, changes, etag=request.organization_configuration.etag
            )
            return pb.UpdateOrganizationConfigurationResponse(
                organization_configuration=pb.OrganizationConfiguration(**seen)
            )

        return self._mutations.run(request, context, work)

    def SetRolePriority(
        self, request: pb.SetRolePriorityRequest, context: Context
    ) -> pb.SetRolePriorityResponse:
        def work(tx: Transaction) -> pb.SetRolePriorityResponse:
            role_slugs = lifecycle.set_role_priority(
                tx, organization_id=request.organization_id, role_slugs=request.role_slugs
            )
            return pb.SetRolePriorityResponse(role_slugs=role_slugs)

        return self._mutations.run(request, context, work)

"""The tables, one file per concern: columns and constraints only."""

from authz_service.storage.tables.base import Base
from authz_service.storage.tables.cache import CacheState, NodeLease
from authz_service.storage.tables.configuration import Configuration, ServiceCredential
from authz_service.storage.tables.events import Event, EventPosition, EventQueueEntry, KeptReply
from authz_service.storage.tables.groups import Group, GroupMember, GroupNesting
from authz_service.storage.tables.memberships import Membership, MembershipRole
from authz_service.storage.tables.organizations import Organization, OrganizationConfiguration
from authz_service.storage.tables.permissions import Permission
from authz_service.storage.tables.realms import Realm, SchemaInfo
from authz_service.storage.tables.resource_types import ResourceType, ResourceTypeParent
from authz_service.storage.tables.resources import Resource, ResourceAncestor, ResourceCount
from authz_service.storage.tables.role_assignments import RoleAssignment
from authz_service.storage.tables.roles import Role, RolePermission
from authz_service.storage.tables.users import User

__all__ = [
    "Base",
    "CacheState",
    "Configuration",
    "Event",
    "EventPosition",
    "EventQueueEntry",
    "Group",
    "GroupMember",
    "GroupNesting",
    "KeptReply",
    "Membership",
    "MembershipRole",
    "NodeLease",
    "Organization",
    "OrganizationConfiguration",
    "Permission",
    "Realm",
    "Resource",
    "ResourceAncestor",
    "ResourceCount",
    "ResourceType",
    "ResourceTypeParent",
    "Role",
    "RoleAssignment",
    "RolePermission",
    "SchemaInfo",
    "ServiceCredential",
    "User",
]

"""The limits of product.md section 6, each by one name and with its reason.

Constants are fixed; the fields of ``Limits`` may be changed by the deployment's configuration.
"""

from dataclasses import dataclass

# One request may not hold a thread, or a realm's lock, for seconds.
MATRIX_PERMISSIONS_MAX = 50
MATRIX_RESOURCES_MAX = 1_000
LIST_PERMISSIONS_MAX = 10
LIST_TYPES_MAX = 10
MODIFY_ENTRIES_MAX = 100
SET_ROLES_MAX = 50
CASCADE_RESOURCES_MAX = 10_000
REPLACED_USES_MAX = 10_000

# What one answer shows: more is not read by people.
LISTED_GRANTS_MAX = 50
EXPLAINED_GRANTS_MAX = 1_000
REMEDIES_MAX = 20

# Depth of the tree below the organization; the setting resource_depth_max moves within it.
RESOURCE_DEPTH_MIN, RESOURCE_DEPTH_MAX = 1, 16
# Groups in one chain, each in the next: bounds every walk through groups.
GROUP_NESTING_MAX = 8
TYPE_PARENTS_MAX = 10
ROLE_PERMISSIONS_MAX = 500
OWN_ROLES_MAX = 50

CREDENTIAL_SCOPES_MAX = 20
CREDENTIAL_ORGANIZATIONS_MAX = 1_000
ROTATION_OVERLAP_DAYS_MAX = 7

# Expired assignments are kept for Explain and then go.
EXPIRED_KEPT_DAYS = 30
STALENESS_SECONDS_MAX = 60

DIRECTORY_CHUNK_IN_MAX = 1024 * 1024
DIRECTORY_CHUNK_OUT_MAX = 64 * 1024
DIRECTORY_FINDINGS_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits marked D: their meaning and range stand with the settings in ``config``."""

    batch_items_max: int = 10_000
    total_size_max: int = 10_000
    resource_types_max: int = 200
    permissions_max: int = 5_000
    environment_roles_max: int = 500
    organization_roles_max: int = 200
    resources_max: int = 100_000
    role_assignments_max: int = 10_000
    membership_groups_max: int = 1_000
    groups_max: int = 5_000
    group_members_max: int = 10_000
    group_groups_max: int = 1_000
    service_credentials_max: int = 1_000
    event_days: int = 90
    directory_file_bytes_max: int = 64 * 1024 * 1024

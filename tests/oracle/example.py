"""The worked example of product.md section 2.11: one world and every answer the text gives.

Ids are symbolic ("om_ann", "resource_spec"). What the text leaves open (emails, names of users
and of keys) is filled in so that the world can also be written into the service.
The tables name things as the text does; ``subject`` and ``resource`` turn a name into a reference.
Instants are seconds since 1970 in UTC.
"""

import copy

BEFORE_2030 = 1_893_369_600  # 2029-12-31T00:00:00Z
START_OF_2030 = 1_893_456_000  # 2030-01-01T00:00:00Z, when fay's assignment ends

SEEDED_PERMISSIONS = (
    "organization:view",
    "organization:manage",
    "organization:delete",
    "members:view",
    "members:manage",
    "roles:manage",
)

TYPES = {
    "organization": [],
    "workspace": ["organization"],
    "project": ["workspace"],
    "document": ["project", "workspace"],
}

# slug -> (type, assignable to API keys)
PERMISSIONS = {
    **dict.fromkeys(SEEDED_PERMISSIONS, ("organization", False)),
    "workspace:view": ("workspace", False),
    "workspace:manage": ("workspace", False),
    "project:view": ("project", True),
    "project:edit": ("project", True),
    "document:read": ("document", True),
    "document:edit": ("document", False),
}

# slug -> (organization, type, permissions)
ROLES = {
    "owner": (None, "organization", [*SEEDED_PERMISSIONS]),
    "admin": (
        None,
        "organization",
        [
            *(slug for slug in SEEDED_PERMISSIONS if slug != "organization:delete"),
            "workspace:view",
            "project:view",
            "document:read",
        ],
    ),
    "member": (None, "organization", ["organization:view", "members:view"]),
    "guest": (None, "organization", ["organization:view"]),
    "org-auditor": ("acme", "organization", ["document:read"]),
    "workspace-admin": (
        None,
        "workspace",
        ["workspace:view", "workspace:manage", "project:view", "project:edit", "document:read"],
    ),
    "project-editor": (
        None,
        "project",
        ["project:view", "project:edit", "document:read", "document:edit"],
    ),
    "project-viewer": (None, "project", ["project:view"]),
    "document-reader": (None, "document", ["document:read"]),
}

# name -> (organization, type, parent)
RESOURCES = {
    "acme": ("acme", "organization", None),
    "eng": ("acme", "workspace", "acme"),
    "api": ("acme", "project", "eng"),
    "spec": ("acme", "document", "api"),
    "roadmap": ("acme", "document", "api"),
    "web": ("acme", "project", "eng"),
    "style": ("acme", "document", "web"),
    "handbook": ("acme", "document", "eng"),
    "sales": ("acme", "workspace", "acme"),
    "crm": ("acme", "project", "sales"),
    "leads": ("acme", "document", "crm"),
    "globex": ("globex", "organization", None),
    "hq": ("globex", "workspace", "globex"),
}

# name -> (status, own roles), all in acme
MEMBERSHIPS = {
    "ann": ("ACTIVE", ["owner"]),
    "bob": ("ACTIVE", ["admin"]),
    "cat": ("ACTIVE", ["member"]),
    "dan": ("ACTIVE", ["member"]),
    "eve": ("ACTIVE", ["member"]),
    "fay": ("ACTIVE", ["guest"]),
    "gus": ("INACTIVE", ["member"]),
    "hal": ("PENDING", ["admin"]),
    "ivy": ("ACTIVE", ["member", "org-auditor"]),
}

# name -> (kind, organization, members, groups in it)
GROUPS = {
    "writers": ("STANDARD", "acme", ["eve"], []),
    "staff": ("STANDARD", "acme", [], ["writers"]),
    "everyone": ("EVERYONE", "acme", [], []),
    "globex_everyone": ("EVERYONE", "globex", [], []),
}

# (subject, role, resource, expires_at); the id is role_assignment_<subject>_<resource>
ASSIGNMENTS = (
    ("cat", "workspace-admin", "eng", None),
    ("dan", "project-viewer", "api", None),
    ("fay", "document-reader", "spec", START_OF_2030),
    ("gus", "project-editor", "api", None),
    ("writers", "project-editor", "web", None),
    ("staff", "project-viewer", "crm", None),
    ("everyone", "document-reader", "roadmap", None),
)

# name -> (owning user, permissions)
API_KEYS = {
    "key_ci": (None, ["document:read"]),
    "key_dan": ("dan", ["project:view", "project:edit"]),
}


def subject(name):
    """The subject of that name, by its own id."""
    if isinstance(name, tuple):
        return name
    if name in GROUPS:
        return ("group", f"group_{name}")
    if name in API_KEYS:
        return ("api_key", f"api_{name}")
    return ("membership", f"om_{name}")


def pair(name):
    """The membership of that name as the pair of its user and organization."""
    return ("user", f"user_{name}", "org_acme")


def resource(name):
    """The resource of that name, by id."""
    return ("id", f"resource_{name}")


def key(name):
    """The resource of that name, by its key."""
    organization, kind, parent = RESOURCES[name]
    external_id = name if parent else f"org_{name}"
    return ("key", f"org_{organization}", kind, external_id)


def _role_id(slug):
    return f"role_{slug}"


def world():
    """The world of the example, new at every call."""
    organizations = {
        f"org_{name}": {
            "name": name,
            "external_id": None,
            "resource_id": f"resource_{name}",
            "everyone_group_id": everyone,
            "default_role_id": None,
            "role_priority": None,
        }
        for name, everyone in (("acme", "group_everyone"), ("globex", "group_globex_everyone"))
    }
    return copy.deepcopy(
        {
            "configuration": {
                "default_role_id": "role_member",
                "owner_role_id": "role_owner",
                "role_priority": ["role_owner", "role_admin", "role_member", "role_guest"],
                "last_owner_guard_enabled": True,
                "resource_depth_max": 8,
            },
            "organizations": organizations,
            "users": {
                f"user_{name}": {"email": f"{name}@example.com", "name": name}
                for name in MEMBERSHIPS
            },
            "memberships": {
                f"om_{name}": {
                    "user_id": f"user_{name}",
                    "organization_id": "org_acme",
                    "status": status,
                    "direct_role_ids": [_role_id(slug) for slug in roles],
                    "directory_role_ids": [],
                }
                for name, (status, roles) in MEMBERSHIPS.items()
            },
            "groups": {
                f"group_{name}": {
                    "organization_id": f"org_{organization}",
                    "name": "everyone" if kind == "EVERYONE" else name,
                    "kind": kind,
                    "membership_ids": [f"om_{member}" for member in members],
                    "group_ids": [f"group_{inner}" for inner in groups],
                }
                for name, (kind, organization, members, groups) in GROUPS.items()
            },
            "resource_types": {
                slug: {"name": slug, "parent_type_slugs": parents}
                for slug, parents in TYPES.items()
            },
            "permissions": {
                slug: {
                    "name": slug,
                    "resource_type_slug": kind,
                    "assignable_to_api_keys": assignable,
                }
                for slug, (kind, assignable) in PERMISSIONS.items()
            },
            "roles": {
                _role_id(slug): {
                    "organization_id": organization and f"org_{organization}",
                    "slug": slug,
                    "name": slug,
                    "resource_type_slug": kind,
                    "permission_slugs": permissions,
                }
                for slug, (organization, kind, permissions) in ROLES.items()
            },
            "resources": {
                f"resource_{name}": {
                    "organization_id": f"org_{organization}",
                    "resource_type_slug": kind,
                    "external_id": key(name)[3],
                    "name": name,
                    "parent_id": parent and f"resource_{parent}",
                }
                for name, (organization, kind, parent) in RESOURCES.items()
            },
            "role_assignments": {
                f"role_assignment_{name}_{place}": {
                    "organization_id": "org_acme",
                    "subject": subject(name),
                    "role_id": _role_id(slug),
                    "resource_id": f"resource_{place}",
                    "expires_at": expires_at,
                }
                for name, slug, place, expires_at in ASSIGNMENTS
            },
            "api_keys": {
                f"api_{name}": {
                    "organization_id": "org_acme",
                    "user_id": owner and f"user_{owner}",
                    "name": name,
                    "permission_slugs": permissions,
                    "expires_at": None,
                    "revoked": False,
                }
                for name, (owner, permissions) in API_KEYS.items()
            },
            # So that writes of worlds.py can be applied.
            "ghosts": {},
            "next_number": 1000,
        }
    )


# (number, subject, permission, resource, now, allowed, allowed_until, reason)
CHECKS = (
    (1, "ann", "organization:delete", "acme", BEFORE_2030, True, None, "GRANTED"),
    (2, "ann", "document:read", "spec", BEFORE_2030, False, None, "NO_GRANT"),
    (3, "bob", "document:read", "leads", BEFORE_2030, True, None, "GRANTED"),
    (4, "bob", "document:edit", "leads", BEFORE_2030, False, None, "NO_GRANT"),
    (5, "cat", "project:edit", "web", BEFORE_2030, True, None, "GRANTED"),
    (6, "cat", "document:read", "handbook", BEFORE_2030, True, None, "GRANTED"),
    (7, "cat", "project:view", "crm", BEFORE_2030, False, None, "NO_GRANT"),
    (8, "dan", "project:view", "api", BEFORE_2030, True, None, "GRANTED"),
    (9, "dan", "document:read", "spec", BEFORE_2030, False, None, "NO_GRANT"),
    (10, "dan", "workspace:view", "eng", BEFORE_2030, False, None, "NO_GRANT"),
    (11, "eve", "document:edit", "style", BEFORE_2030, True, None, "GRANTED"),
    (12, "eve", "document:edit", "spec", BEFORE_2030, False, None, "NO_GRANT"),
    (13, "writers", "project:edit", "web", BEFORE_2030, True, None, "GRANTED"),
    (14, "fay", "document:read", "spec", BEFORE_2030, True, START_OF_2030, "GRANTED"),
    (15, "fay", "document:read", "spec", START_OF_2030, False, None, "GRANT_EXPIRED"),
    (16, "gus", "document:edit", "spec", BEFORE_2030, False, None, "MEMBERSHIP_INACTIVE"),
    (17, "hal", "members:manage", "acme", BEFORE_2030, False, None, "MEMBERSHIP_PENDING"),
    (18, "ivy", "document:read", "leads", BEFORE_2030, True, None, "GRANTED"),
    (19, "key_ci", "document:read", "handbook", BEFORE_2030, True, None, "GRANTED"),
    (20, "key_dan", "project:edit", "api", BEFORE_2030, False, None, "API_KEY_OWNER_DENIED"),
    (21, "eve", "project:view", "crm", BEFORE_2030, True, None, "GRANTED"),
    (22, "staff", "project:edit", "web", BEFORE_2030, False, None, "NO_GRANT"),
    (23, "ann", "document:read", "roadmap", BEFORE_2030, True, None, "GRANTED"),
    (24, "gus", "document:read", "roadmap", BEFORE_2030, False, None, "MEMBERSHIP_INACTIVE"),
)

# (label, subject, permission, resource, error)
ERRORS = (
    (
        "E1",
        "cat",
        "project:edit",
        "eng",
        ("INVALID_ARGUMENT", "PERMISSION_RESOURCE_TYPE_MISMATCH"),
    ),
    ("E2", "cat", "workspace:view", "hq", ("NOT_FOUND", "RESOURCE_NOT_FOUND")),
    ("E3", "cat", "project:destroy", "api", ("NOT_FOUND", "PERMISSION_NOT_FOUND")),
    (
        "E4",
        ("user", "user_cat", "org_globex"),
        "workspace:view",
        "hq",
        ("NOT_FOUND", "MEMBERSHIP_NOT_FOUND"),
    ),
    ("E5", "gus", "project:destroy", "api", ("NOT_FOUND", "PERMISSION_NOT_FOUND")),
)

# (subject, permissions, parent or None, children_only, {resource: its permissions})
LIST_RESOURCES = (
    (
        "bob",
        ["document:read"],
        None,
        False,
        {name: {"document:read"} for name in ("spec", "roadmap", "style", "handbook", "leads")},
    ),
    (
        "cat",
        ["project:view", "project:edit"],
        "eng",
        True,
        {name: {"project:view", "project:edit"} for name in ("api", "web")},
    ),
    ("cat", ["document:read"], "eng", True, {"handbook": {"document:read"}}),
    ("gus", ["project:view"], None, False, {}),
)

OWN_ROLE = ("own_role",)


def assigned(name, place):
    """The holder of a grant that is the subject's own assignment."""
    return ("role_assignment", f"role_assignment_{name}_{place}")


def through(group, place, *via):
    """The holder of a grant that comes from a group."""
    return (
        "group",
        f"group_{group}",
        f"role_assignment_{group}_{place}",
        tuple(f"group_{name}" for name in via),
    )


_EVERYONE = [("document-reader", "roadmap", through("everyone", "roadmap"))]

# (resource, permission, direct_only, {member: [(role, held on, holder)]})
LIST_MEMBERS = (
    (
        "spec",
        "document:read",
        False,
        {
            "bob": [("admin", "acme", OWN_ROLE)],
            "cat": [("workspace-admin", "eng", assigned("cat", "eng"))],
            "fay": [("document-reader", "spec", assigned("fay", "spec"))],
            "ivy": [("org-auditor", "acme", OWN_ROLE)],
        },
    ),
    (
        "spec",
        "document:read",
        True,
        {"fay": [("document-reader", "spec", assigned("fay", "spec"))]},
    ),
    (
        "roadmap",
        "document:read",
        True,
        dict.fromkeys(("ann", "bob", "cat", "dan", "eve", "fay", "ivy"), _EVERYONE),
    ),
    (
        "web",
        "project:edit",
        False,
        {
            "cat": [("workspace-admin", "eng", assigned("cat", "eng"))],
            "eve": [("project-editor", "web", through("writers", "web"))],
        },
    ),
    (
        "web",
        "project:edit",
        True,
        {"eve": [("project-editor", "web", through("writers", "web"))]},
    ),
    (
        "acme",
        "members:manage",
        False,
        {"ann": [("owner", "acme", OWN_ROLE)], "bob": [("admin", "acme", OWN_ROLE)]},
    ),
)

# (subject, resource, include_descendant_types, slugs in order)
LIST_PERMISSIONS = (
    ("cat", "eng", False, ["workspace:manage", "workspace:view"]),
    (
        "cat",
        "eng",
        True,
        ["document:read", "project:edit", "project:view", "workspace:manage", "workspace:view"],
    ),
    ("key_dan", "api", False, ["project:view"]),
)

# The two explanations of the text, then others that follow from the same rules. grants and blocked
# are [(role or None, held on, expires_at, holder)].
EXPLANATIONS = (
    {
        "question": ("dan", "document:read", "spec", BEFORE_2030),
        "reason": "NO_GRANT",
        "path": ["acme", "eng", "api", "spec"],
        "grants": [],
        "blocked": [],
        "remedies": [
            (("ASSIGN_ROLE", "role_document-reader", "resource_spec"),),
            (("ASSIGN_ROLE", "role_project-editor", "resource_api"),),
            (("ASSIGN_ROLE", "role_workspace-admin", "resource_eng"),),
            (("UPDATE_MEMBERSHIP_ROLES", "role_admin"),),
            (("UPDATE_MEMBERSHIP_ROLES", "role_org-auditor"),),
        ],
    },
    {
        "question": ("gus", "document:edit", "spec", BEFORE_2030),
        "reason": "MEMBERSHIP_INACTIVE",
        "path": ["acme", "eng", "api", "spec"],
        "grants": [],
        "blocked": [("project-editor", "api", None, assigned("gus", "api"))],
        "remedies": [(("REACTIVATE_MEMBERSHIP",),)],
    },
    {
        "question": ("eve", "project:view", "crm", BEFORE_2030),
        "reason": "GRANTED",
        "path": ["acme", "sales", "crm"],
        "grants": [("project-viewer", "crm", None, through("staff", "crm", "writers"))],
        "blocked": [],
        "remedies": [],
    },
    {
        "question": ("hal", "document:edit", "spec", BEFORE_2030),
        "reason": "MEMBERSHIP_PENDING",
        "path": ["acme", "eng", "api", "spec"],
        "grants": [],
        "blocked": [],
        "remedies": [
            (
                ("ACCEPT_INVITATION",),
                ("ASSIGN_ROLE", "role_project-editor", "resource_api"),
            )
        ],
    },
    {
        "question": ("key_ci", "document:read", "handbook", BEFORE_2030),
        "reason": "GRANTED",
        "path": ["acme", "eng", "handbook"],
        "grants": [(None, "acme", None, ("api_key", "api_key_ci"))],
        "blocked": [],
        "remedies": [],
    },
    {
        "question": ("key_ci", "project:view", "web", BEFORE_2030),
        "reason": "API_KEY_PERMISSION_MISSING",
        "path": ["acme", "eng", "web"],
        "grants": [],
        "blocked": [],
        "remedies": [(("ADD_API_KEY_PERMISSION",),)],
    },
    {
        "question": ("key_dan", "project:edit", "api", BEFORE_2030),
        "reason": "API_KEY_OWNER_DENIED",
        "path": ["acme", "eng", "api"],
        "grants": [],
        "blocked": [],
        "remedies": [
            (("ASSIGN_ROLE", "role_project-editor", "resource_api"),),
            (("ASSIGN_ROLE", "role_workspace-admin", "resource_eng"),),
        ],
    },
    {
        "question": ("fay", "document:read", "spec", START_OF_2030),
        "reason": "GRANT_EXPIRED",
        "path": ["acme", "eng", "api", "spec"],
        "grants": [],
        "blocked": [("document-reader", "spec", START_OF_2030, assigned("fay", "spec"))],
        "remedies": [
            (("EXTEND_ASSIGNMENT", "role_assignment_fay_spec"),),
            (("ASSIGN_ROLE", "role_project-editor", "resource_api"),),
            (("ASSIGN_ROLE", "role_workspace-admin", "resource_eng"),),
            (("UPDATE_MEMBERSHIP_ROLES", "role_admin"),),
            (("UPDATE_MEMBERSHIP_ROLES", "role_org-auditor"),),
        ],
    },
    {
        "question": ("staff", "project:edit", "web", BEFORE_2030),
        "reason": "NO_GRANT",
        "path": ["acme", "eng", "web"],
        "grants": [],
        "blocked": [],
        "remedies": [
            (("ASSIGN_ROLE", "role_project-editor", "resource_web"),),
            (("ASSIGN_ROLE", "role_workspace-admin", "resource_eng"),),
        ],
    },
)

# member -> the roles of its `roles` field, in order
MEMBERSHIP_ROLES = {
    "ann": ["owner"],
    "bob": ["admin"],
    "gus": ["member"],
    "hal": ["admin"],
    "ivy": ["member", "org-auditor"],
}

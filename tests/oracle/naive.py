"""A naive evaluator of the authorization model: sets and loops, nothing of the service.

It is written from product.md sections 2, 3 and 5 alone and is judged by the worked example of
section 2.11. Speed is no aim; being readable next to the rules (labels M1 to M29, GR, RO, LO, RA)
is. Every function takes a *world* and, where time matters, the instant ``now``.

A world is a plain dict of tables; each table is keyed by id, types and permissions by slug::

    configuration      one dict: default_role_id, owner_role_id (or None), role_priority (ids of the
                       environment roles of type organization, highest first),
                       last_owner_guard_enabled, resource_depth_max
    organizations      id -> name, external_id (or None), resource_id (its organization resource),
                       everyone_group_id, default_role_id (or None: the deployment's),
                       role_priority (ids, or None: derived, RO4)
    users              id -> email, name
    memberships        id -> user_id, organization_id, status (PENDING, ACTIVE, INACTIVE),
                       direct_role_ids, directory_role_ids (the own roles, by source)
    groups             id -> organization_id, name, kind (STANDARD, EVERYONE),
                       membership_ids, group_ids (what is directly in it; empty for EVERYONE)
    resource_types     slug -> name, parent_type_slugs (empty for organization)
    permissions        slug -> name, resource_type_slug, assignable_to_api_keys
    roles              id -> organization_id (None: environment role), slug, name,
                       resource_type_slug, permission_slugs
    resources          id -> organization_id, resource_type_slug, external_id, name, parent_id
                       (None for an organization resource, whose external_id is the organization)
    role_assignments   id -> organization_id, subject (("membership" | "group"), id), role_id,
                       resource_id, expires_at (or None)
    api_keys           id -> organization_id, user_id (None: owned by the organization), name,
                       permission_slugs, expires_at (or None), revoked (bool)

Collections inside a row are lists without order unless called a priority. Instants are values of
any one ordered type (numbers, datetimes). Ids are opaque text: "oldest first" is ascending and
"newest first" descending order of the id. Expired assignments are taken as present for as long as
they are in the world. Tables not named here are ignored.

What is passed and returned::

    subject      ("membership", id) | ("user", user_id, organization_id) | ("group", id)
                 | ("api_key", id)
    resource     ("id", id) | ("key", organization_id, resource_type_slug, external_id)
    error        (code, reason), the only kind of answer that is a tuple: see is_error
    grant        dict: role_id, role_slug (None for a key's), resource_id, expires_at, holder, which
                 is ("own_role",) | ("role_assignment", id) | ("api_key", id)
                 | ("group", group_id, role_assignment_id, via_group_ids)
    remedy       a tuple of steps; a step is (kind, *what): ("EXTEND_ASSIGNMENT", assignment_id),
                 ("ASSIGN_ROLE", role_id, resource_id), ("UPDATE_MEMBERSHIP_ROLES", role_id), ...

``organizations`` is the set of organizations a restricted credential may see (2.6 row 4); None
means all. Consistency tokens (2.6 row 2), paging and credentials are not modelled.
"""

import re

GRANTS_PER_MEMBER = 50
GRANTS_PER_EXPLANATION = 1000
REMEDIES = 20
ROOT_TYPE = "organization"

FIELD_REQUIRED = ("INVALID_ARGUMENT", "FIELD_REQUIRED")
FIELD_INVALID = ("INVALID_ARGUMENT", "FIELD_INVALID")
TOO_LARGE = ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
TYPE_MISMATCH = ("INVALID_ARGUMENT", "PERMISSION_RESOURCE_TYPE_MISMATCH")
NO_MEMBERSHIP = ("NOT_FOUND", "MEMBERSHIP_NOT_FOUND")
NO_API_KEY = ("NOT_FOUND", "API_KEY_NOT_FOUND")
NO_GROUP = ("NOT_FOUND", "GROUP_NOT_FOUND")
NO_PERMISSION = ("NOT_FOUND", "PERMISSION_NOT_FOUND")
NO_RESOURCE = ("NOT_FOUND", "RESOURCE_NOT_FOUND")
NO_TYPE = ("NOT_FOUND", "RESOURCE_TYPE_NOT_FOUND")

DENIED = {"allowed": False, "allowed_until": None}

_PERMISSION = re.compile(r"[a-z0-9][a-z0-9_:.*-]{0,47}")
_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,47}")
_EXTERNAL_ID = re.compile(r"[!-~]([ -~]{0,126}[!-~])?")
_ID = re.compile(r"[^\x00-\x1f\x7f]{1,64}")


def is_error(answer):
    """Whether an answer is a refusal (code, reason) and not a result."""
    return isinstance(answer, tuple)


# --- Structure: resources, types, groups, roles


def path(world, resource_id):
    """The resource and all above it, nearest first (M5)."""
    above = []
    while resource_id is not None:
        above.append(resource_id)
        resource_id = world["resources"][resource_id]["parent_id"]
    return above


def depth(world, resource_id):
    """How far a resource is below the organization resource (M4)."""
    return len(path(world, resource_id)) - 1


def descendant_types(world, type_slug):
    """The child types, their child types, and so on (M2); itself only if it nests in itself."""
    found = set()
    while True:
        more = {
            slug
            for slug, kind in world["resource_types"].items()
            if {type_slug, *found} & set(kind["parent_type_slugs"])
        }
        if more <= found:
            return found
        found |= more


def groups_above(world, group_ids):
    """Every group that contains one of these, directly or through others, and these."""
    found = set(group_ids)
    while True:
        more = {id for id, group in world["groups"].items() if found & set(group["group_ids"])}
        if more <= found:
            return found
        found |= more


def groups_directly_with(world, who):
    """The groups in which a membership or a group is placed itself."""
    kind, id = who
    places = "membership_ids" if kind == "membership" else "group_ids"
    return {group_id for group_id, group in world["groups"].items() if id in group[places]}


def groups_of(world, who):
    """The groups whose assignments count for a membership (M10a) or for a group (M15)."""
    kind, id = who
    if kind == "group":
        return groups_above(world, {id})
    organization_id = world["memberships"][id]["organization_id"]
    everyone = world["organizations"][organization_id]["everyone_group_id"]
    return groups_above(world, groups_directly_with(world, who)) | {everyone}


def chain(world, who, group_id):
    """One shortest chain of groups from ``who`` up to, not including, ``group_id``.

    Of several equally short ones the smallest in order of ids is returned, but any is right: judge
    an answer of the service with is_valid_chain.
    """
    if world["groups"][group_id]["kind"] == "EVERYONE":
        return ()
    chains = {(first,) for first in groups_directly_with(world, who)}
    while chains:
        there = sorted(links for links in chains if links[-1] == group_id)
        if there:
            return there[0][:-1]
        chains = {
            (*links, above)
            for links in chains
            for above in groups_directly_with(world, ("group", links[-1]))
        }
    return None


def is_valid_chain(world, who, group_id, via_group_ids):
    """Whether a chain leads from ``who`` to just below ``group_id`` and none is shorter."""
    shortest = chain(world, who, group_id)
    if shortest is None or len(via_group_ids) != len(shortest):
        return False
    if world["groups"][group_id]["kind"] == "EVERYONE":
        return True
    inner = who
    for outer in (*via_group_ids, group_id):
        if outer not in groups_directly_with(world, inner):
            return False
        inner = ("group", outer)
    return True


def own_roles(membership):
    """The ids of a membership's own roles, whatever their source (RO6)."""
    return set(membership["direct_role_ids"]) | set(membership["directory_role_ids"])


def role_priority(world, organization_id=None):
    """The ids of the roles of type organization, highest priority first (RO4)."""
    if organization_id is not None:
        own_order = world["organizations"][organization_id]["role_priority"]
        if own_order is not None:
            return list(own_order)
    own = sorted(
        id
        for id, role in world["roles"].items()
        if role["resource_type_slug"] == ROOT_TYPE
        and role["organization_id"] == organization_id is not None
    )
    return [*world["configuration"]["role_priority"], *own]


def roles_in_order(world, organization_id=None):
    """The ids of the roles usable in an organization, as ListRoles orders them."""
    first = role_priority(world, organization_id)
    usable = {
        id
        for id, role in world["roles"].items()
        if role["organization_id"] in (None, organization_id)
    }
    return first + sorted(usable - set(first))


def membership_roles(world, membership_id, now):
    """The ``roles`` field of a membership (3.3), in priority order, whatever its status."""
    membership = world["memberships"][membership_id]
    organization = world["organizations"][membership["organization_id"]]
    belongs = groups_of(world, ("membership", membership_id))
    rows = []
    for role_id in role_priority(world, membership["organization_id"]):
        group_ids = sorted(
            row["subject"][1]
            for row in world["role_assignments"].values()
            if row["role_id"] == role_id
            and row["resource_id"] == organization["resource_id"]
            and row["subject"][0] == "group"
            and row["subject"][1] in belongs
            and is_valid(row["expires_at"], now)
        )
        sources = [
            source
            for source, applies in (
                ("DIRECT", role_id in membership["direct_role_ids"]),
                ("DIRECTORY", role_id in membership["directory_role_ids"]),
                ("GROUP", group_ids),
            )
            if applies
        ]
        if sources:
            slug = world["roles"][role_id]["slug"]
            rows.append(
                {"role_id": role_id, "slug": slug, "sources": sources, "group_ids": group_ids}
            )
    return rows


def membership_role(world, membership_id, now):
    """The ``role`` field of a membership: the slug of the first of its roles."""
    return membership_roles(world, membership_id, now)[0]["slug"]


def owners(world, organization_id):
    """The owners of an organization (LO1): active, with the owner role among the own roles."""
    return {
        id
        for id, membership in world["memberships"].items()
        if membership["organization_id"] == organization_id
        and membership["status"] == "ACTIVE"
        and world["configuration"]["owner_role_id"] in own_roles(membership)
    }


def last_owner_lost(before, after):
    """The organizations that a change would leave without an owner though they had one (LO1)."""
    return {
        id
        for id in set(before["organizations"]) & set(after["organizations"])
        if owners(before, id) and not owners(after, id)
    }


# --- Grants


def is_valid(expires_at, now):
    """Whether something with this end still holds (M12)."""
    return expires_at is None or now < expires_at


def _earlier(one, other):
    ends = [end for end in (one, other) if end is not None]
    return min(ends) if ends else None


def _held(world, who):
    """All (role, resource, end, assignment, group) of a membership or group (M10), valid or not.

    The last two are None for an own role; the group is None for an own assignment.
    """
    kind, id = who
    if kind == "membership":
        membership = world["memberships"][id]
        root = world["organizations"][membership["organization_id"]]["resource_id"]
        for role_id in own_roles(membership):
            yield role_id, root, None, None, None
    through = groups_of(world, who)
    for assignment_id, row in world["role_assignments"].items():
        if row["subject"] == who:
            yield row["role_id"], row["resource_id"], row["expires_at"], assignment_id, None
        elif row["subject"][0] == "group" and row["subject"][1] in through:
            group_id = row["subject"][1]
            yield row["role_id"], row["resource_id"], row["expires_at"], assignment_id, group_id


def _allowing(world, who, permission_slug, resource_id):
    """Those held on the resource or above whose role contains the permission, valid or not."""
    here_or_above = set(path(world, resource_id))
    return [
        held
        for held in _held(world, who)
        if held[1] in here_or_above
        and permission_slug in world["roles"][held[0]]["permission_slugs"]
    ]


def _organization_of(world, who):
    table = {"membership": "memberships", "group": "groups", "api_key": "api_keys"}[who[0]]
    return world[table][who[1]]["organization_id"]


def _in_order(world, who, held, resource_id):
    """Grants in the order of M23, each with its holder written out."""
    nearest = path(world, resource_id)
    roles = roles_in_order(world, _organization_of(world, who))
    held = sorted(
        held,
        key=lambda h: (nearest.index(h[1]), roles.index(h[0]), h[4] is not None, h[3] or ""),
    )
    grants = []
    for role_id, held_on, expires_at, assignment_id, group_id in held:
        if assignment_id is None:
            holder = ("own_role",)
        elif group_id is None:
            holder = ("role_assignment", assignment_id)
        else:
            holder = ("group", group_id, assignment_id, chain(world, who, group_id))
        grants.append(
            {
                "role_id": role_id,
                "role_slug": world["roles"][role_id]["slug"],
                "resource_id": held_on,
                "expires_at": expires_at,
                "holder": holder,
            }
        )
    return grants


# --- Questions (2.6)


def find_membership(world, user_id, organization_id):
    """The id of the one membership of a user in an organization, or None."""
    for id, membership in world["memberships"].items():
        if (membership["user_id"], membership["organization_id"]) == (user_id, organization_id):
            return id
    return None


def _malformed(*fields):
    """Row 1 for (value, pattern) in the order of the request: the error of the first bad one."""
    for value, pattern in fields:
        if not value:
            return FIELD_REQUIRED
        if not pattern.fullmatch(value):
            return FIELD_INVALID
    return None


def _subject_fields(subject):
    return [(part, _ID) for part in subject[1:]] if subject else [(None, _ID)]


def _resource_fields(resource):
    patterns = (_ID, _TYPE, _EXTERNAL_ID) if resource and resource[0] == "key" else (_ID,)
    return list(zip(resource[1:] if resource else [None], patterns, strict=True))


def _slug_fields(slugs):
    """A list of permission slugs that must not be empty."""
    return [(slug, _PERMISSION) for slug in slugs] or [(None, _PERMISSION)]


def find_subject(world, subject, organizations=None):
    """Rows 3 and 4: ("membership" | "group" | "api_key", id), or the error."""
    kind = subject[0]
    if kind == "user":
        kind, id = "membership", find_membership(world, subject[1], subject[2])
    else:
        id = subject[1]
    table, missing = {
        "membership": ("memberships", NO_MEMBERSHIP),
        "group": ("groups", NO_GROUP),
        "api_key": ("api_keys", NO_API_KEY),
    }[kind]
    if id not in world[table]:
        return ("error", missing)
    if organizations is not None and world[table][id]["organization_id"] not in organizations:
        return ("error", missing)
    return (kind, id)


def find_resource(world, resource, organizations=None):
    """Row 6: the id of a resource of one of these organizations (None: of any), or None."""
    for id, row in world["resources"].items():
        key = (row["organization_id"], row["resource_type_slug"], row["external_id"])
        if resource in (("id", id), ("key", *key)):
            return id if organizations is None or key[0] in organizations else None
    return None


def _question(world, subject, permission_slugs, resource, organizations):
    """Rows 3 to 6 in order: ((kind, id), resource id), or ("error", error).

    ``resource`` may be None where the call asks for none.
    """
    who = find_subject(world, subject, organizations)
    if who[0] == "error":
        return who
    if not set(permission_slugs) <= set(world["permissions"]):
        return "error", NO_PERMISSION
    if resource is None:
        return who, None
    resource_id = find_resource(world, resource, {_organization_of(world, who)})
    return ("error", NO_RESOURCE) if resource_id is None else (who, resource_id)


def _is_of_type(world, permission_slug, resource_id):
    permission = world["permissions"][permission_slug]
    return permission["resource_type_slug"] == world["resources"][resource_id]["resource_type_slug"]


# --- Decisions (M13 to M20a)


def decide(world, who, permission_slug, resource_id, now):
    """The decision about an existing subject, permission and resource of one organization."""
    kind, id = who
    if kind == "api_key":
        key = world["api_keys"][id]
        if key["revoked"] or not is_valid(key["expires_at"], now):
            return DENIED
        if permission_slug not in key["permission_slugs"]:
            return DENIED
        if key["user_id"] is None:
            return {"allowed": True, "allowed_until": key["expires_at"]}
        answer = decide(world, key_owner(world, id), permission_slug, resource_id, now)
        if not answer["allowed"]:
            return DENIED
        return {
            "allowed": True,
            "allowed_until": _earlier(answer["allowed_until"], key["expires_at"]),
        }
    if kind == "membership" and world["memberships"][id]["status"] != "ACTIVE":
        return DENIED
    ends = [
        held[2]
        for held in _allowing(world, who, permission_slug, resource_id)
        if is_valid(held[2], now)
    ]
    if not ends:
        return DENIED
    return {"allowed": True, "allowed_until": None if None in ends else max(ends)}


def key_owner(world, api_key_id):
    """The membership behind a user-owned API key, as a subject; None for an organization's key."""
    key = world["api_keys"][api_key_id]
    if key["user_id"] is None:
        return None
    return "membership", find_membership(world, key["user_id"], key["organization_id"])


def check(world, subject, permission_slug, resource, now, organizations=None):
    """Check: {allowed, allowed_until} or an error."""
    error = _malformed(
        *_subject_fields(subject), (permission_slug, _PERMISSION), *_resource_fields(resource)
    )
    if error:
        return error
    who, resource_id = _question(world, subject, [permission_slug], resource, organizations)
    if who == "error":
        return resource_id
    if not _is_of_type(world, permission_slug, resource_id):
        return TYPE_MISMATCH
    return decide(world, who, permission_slug, resource_id, now)


def batch_check(world, items, now, organizations=None):
    """BatchCheck: the answer of Check for each (subject, permission, resource) (M20)."""
    if not items:
        return FIELD_REQUIRED
    return [check(world, *item, now, organizations) for item in items]


def check_matrix(world, subject, permission_slugs, resources, now, organizations=None):
    """CheckMatrix: one row per resource, a list of booleans or an error (M20a); or an error."""
    error = _malformed(
        *_subject_fields(subject),
        *_slug_fields(permission_slugs),
        *(field for resource in resources or [None] for field in _resource_fields(resource)),
    )
    if error:
        return error
    if len(permission_slugs) > 50 or len(resources) > 1000:
        return TOO_LARGE
    who, error = _question(world, subject, permission_slugs, None, organizations)
    if who == "error":
        return error
    rows = []
    for resource in resources:
        resource_id = find_resource(world, resource, {_organization_of(world, who)})
        if resource_id is None:
            rows.append(NO_RESOURCE)
            continue
        rows.append(
            [
                _is_of_type(world, slug, resource_id)
                and decide(world, who, slug, resource_id, now)["allowed"]
                for slug in permission_slugs
            ]
        )
    return rows


# --- Discovery (M21 to M25)


def list_resources(
    world,
    subject,
    permission_slugs,
    now,
    parent=None,
    resource_type_slugs=(),
    children_only=False,
    organizations=None,
):
    """ListResources: [(resource id, its permission slugs as asked)], newest first; or an error."""
    error = _malformed(
        *_subject_fields(subject),
        *_slug_fields(permission_slugs),
        *(_resource_fields(parent) if parent else []),
        *((slug, _TYPE) for slug in resource_type_slugs),
    )
    if error:
        return error
    if len(permission_slugs) > 10 or len(resource_type_slugs) > 10:
        return TOO_LARGE
    who, parent_id = _question(world, subject, permission_slugs, parent, organizations)
    if who == "error":
        return parent_id
    if not set(resource_type_slugs) <= set(world["resource_types"]):
        return NO_TYPE
    if parent_id is None:
        parent_id = world["organizations"][_organization_of(world, who)]["resource_id"]
    rows = []
    for resource_id in sorted(world["resources"], reverse=True):
        above = path(world, resource_id)[1:]
        if parent_id not in (above[:1] if children_only else above):
            continue
        kind = world["resources"][resource_id]["resource_type_slug"]
        if resource_type_slugs and kind not in resource_type_slugs:
            continue
        has = [
            slug
            for slug in dict.fromkeys(permission_slugs)
            if _is_of_type(world, slug, resource_id)
            and decide(world, who, slug, resource_id, now)["allowed"]
        ]
        if has:
            rows.append((resource_id, has))
    return rows


def list_members(world, resource, permission_slug, now, direct_only=False, organizations=None):
    """ListMembers: [{membership_id, grants, grants_truncated}], newest first; or an error."""
    error = _malformed(*_resource_fields(resource), (permission_slug, _PERMISSION))
    if error:
        return error
    if permission_slug not in world["permissions"]:
        return NO_PERMISSION
    resource_id = find_resource(world, resource, organizations)
    if resource_id is None:
        return NO_RESOURCE
    if not _is_of_type(world, permission_slug, resource_id):
        return TYPE_MISMATCH
    rows = []
    for id, membership in sorted(world["memberships"].items(), reverse=True):
        if membership["status"] != "ACTIVE":
            continue
        who = ("membership", id)
        held = [
            held
            for held in _allowing(world, who, permission_slug, resource_id)
            if is_valid(held[2], now) and not (direct_only and held[1] != resource_id)
        ]
        if held:
            grants = _in_order(world, who, held, resource_id)
            rows.append(
                {
                    "membership_id": id,
                    "grants": grants[:GRANTS_PER_MEMBER],
                    "grants_truncated": len(grants) > GRANTS_PER_MEMBER,
                }
            )
    return rows


def list_permissions(
    world, subject, resource, now, include_descendant_types=False, organizations=None
):
    """ListPermissions: the slugs, in order (M24); or an error."""
    error = _malformed(*_subject_fields(subject), *_resource_fields(resource))
    if error:
        return error
    who, resource_id = _question(world, subject, [], resource, organizations)
    if who == "error":
        return resource_id
    own_type = world["resources"][resource_id]["resource_type_slug"]
    types = {own_type}
    if include_descendant_types:
        types |= descendant_types(world, own_type)
    return sorted(
        slug
        for slug, permission in world["permissions"].items()
        if permission["resource_type_slug"] in types
        and decide(world, who, slug, resource_id, now)["allowed"]
    )


# --- Explain (M27 to M29)


def explain(world, subject, permission_slug, resource, now, organizations=None):
    """Explain: the decision with reason, resource_path, grants, blocked_grants and remedies."""
    answer = check(world, subject, permission_slug, resource, now, organizations)
    if is_error(answer):
        return answer
    who = find_subject(world, subject, organizations)
    resource_id = find_resource(world, resource)
    grants, blocked = _explained_grants(world, who, permission_slug, resource_id, now, answer)
    return {
        **answer,
        "reason": _reason(world, who, permission_slug, resource_id, now, answer, blocked),
        "resource_path": path(world, resource_id)[::-1],
        "grants": grants[:GRANTS_PER_EXPLANATION],
        "blocked_grants": blocked[:GRANTS_PER_EXPLANATION],
        "grants_truncated": max(len(grants), len(blocked)) > GRANTS_PER_EXPLANATION,
        "remedies": (
            []
            if answer["allowed"]
            else _remedies(world, who, permission_slug, resource_id, now)[:REMEDIES]
        ),
    }


def _explained_grants(world, who, permission_slug, resource_id, now, answer):
    """The grants that allow it, and those that would but for expiry or status."""
    holder = who
    if who[0] == "api_key":
        key = world["api_keys"][who[1]]
        if permission_slug not in key["permission_slugs"]:
            return [], []
        holder = key_owner(world, who[1])
        if holder is None:
            root = world["organizations"][key["organization_id"]]["resource_id"]
            grant = {
                "role_id": None,
                "role_slug": None,
                "resource_id": root,
                "expires_at": key["expires_at"],
                "holder": who,
            }
            return ([grant], []) if answer["allowed"] else ([], [grant])
    held = _allowing(world, holder, permission_slug, resource_id)
    allow = [h for h in held if answer["allowed"] and is_valid(h[2], now)]
    block = [h for h in held if h not in allow]
    return (
        _in_order(world, holder, allow, resource_id),
        _in_order(world, holder, block, resource_id),
    )


def _reason(world, who, permission_slug, resource_id, now, answer, blocked):
    """The first reason of M28 that applies."""
    if answer["allowed"]:
        return "GRANTED"
    kind, id = who
    if kind == "membership" and world["memberships"][id]["status"] != "ACTIVE":
        return "MEMBERSHIP_" + world["memberships"][id]["status"]
    if kind == "api_key":
        key = world["api_keys"][id]
        if not is_valid(key["expires_at"], now):
            return "API_KEY_EXPIRED"
        if key["revoked"]:
            return "API_KEY_REVOKED"
        if permission_slug not in key["permission_slugs"]:
            return "API_KEY_PERMISSION_MISSING"
        return "API_KEY_OWNER_DENIED"
    return "GRANT_EXPIRED" if blocked else "NO_GRANT"


def _remedies(world, who, permission_slug, resource_id, now):
    """The remedies of a denied answer (M29); all have the same, least, number of steps."""
    needed = []
    holder = who
    if who[0] == "api_key":
        key = world["api_keys"][who[1]]
        if key["revoked"] or not is_valid(key["expires_at"], now):
            needed.append(("REPLACE_API_KEY",))
        if permission_slug not in key["permission_slugs"]:
            if not world["permissions"][permission_slug]["assignable_to_api_keys"]:
                return []  # No key can be given it, so no step would turn the answer.
            needed.append(("ADD_API_KEY_PERMISSION",))
        holder = key_owner(world, who[1])
        if holder is None:
            return [tuple(needed)]
    if holder[0] == "membership":
        status = world["memberships"][holder[1]]["status"]
        if status != "ACTIVE":
            step = "ACCEPT_INVITATION" if status == "PENDING" else "REACTIVATE_MEMBERSHIP"
            needed.append((step,))
    held = _allowing(world, holder, permission_slug, resource_id)
    if any(is_valid(h[2], now) for h in held):
        return [tuple(needed)]

    nearest = path(world, resource_id)
    roles = roles_in_order(world, _organization_of(world, holder))
    extend = sorted(held, key=lambda h: (nearest.index(h[1]), roles.index(h[0]), h[3]))
    last_steps = [("EXTEND_ASSIGNMENT", h[3]) for h in extend]
    own_expired = {
        (row["role_id"], row["resource_id"])
        for row in world["role_assignments"].values()
        if row["subject"] == holder
    }
    for place in nearest:
        for role_id in roles:
            role = world["roles"][role_id]
            if role["resource_type_slug"] != world["resources"][place]["resource_type_slug"]:
                continue
            if permission_slug not in role["permission_slugs"] or (role_id, place) in own_expired:
                continue
            if world["resources"][place]["parent_id"] is None and holder[0] == "membership":
                last_steps.append(("UPDATE_MEMBERSHIP_ROLES", role_id))
            else:
                last_steps.append(("ASSIGN_ROLE", role_id, place))
    if not last_steps:
        last_steps = [("DEFINE_ROLE",)]
    return [(*needed, step) for step in last_steps]

"""Hypothesis strategies for worlds, questions and writes, and the effect of a write on a world.

A world is the dict described in naive.py, with these additions:

    ghosts       id -> {"table", "twin"}: ids that existed once. ``twin`` is the living row
                 created again under the same key, None if nothing took its place. A loader
                 creates a twin once more than needed, deletes it, and maps the ghost to that id
    next_number  what the next id made by a write is built from

Instants are whole seconds. Everything a world holds is within the documented limits, so it can be
written through the API: slugs, names, addresses and external ids have the documented shapes. Of the
seeds, the roles ``member`` and ``owner`` and the permissions ``organization:view`` and
``members:manage`` may occur; a loader sets these to what the world says and deletes the others. It
gives inactive memberships their roles after deactivating them, or LO1 may refuse. The service makes
its own ids: rename() turns a world into the same world with those ids.

A write is a dict: ``op``, ``at`` (the instant of the call) and the fields of the call, with ids
where the call has slugs. A write that creates something carries the id to use. apply() gives the
world after it or raises Refused with the documented (code, reason). Worlds are never changed in
place; untouched tables are shared between the world before and the world after.

Random choices are read off byte strings: a draw of Hypothesis costs far more than the choice it
makes, and byte 0 always means the first and simplest choice, so that examples still shrink. Each
row reads from its own stretch of bytes: changing one does not shift the others.
"""

import itertools
import random
import re

from hypothesis import strategies as st

from tests.oracle import naive

NOW = 1_800_000_000
DAY = 86_400

TYPE_SLUGS = ("folder", "workspace", "document", "note")
# An environment slug may begin with "org", only not with "org-".
ENVIRONMENT_SLUGS = (
    *("admin", "viewer", "editor", "organization-admin", "organ", "reader_2", "0", "x-org-y"),
    "org_a",
)
ORGANIZATION_SLUGS = ("org-admin", "org-viewer", *(f"org-{letter}" for letter in "abcdefg"))
NAMES = ("Name", "name", "Ünïcode 名", "a/b:c|d", "x" * 48, "%s {0} \\")
# Delimiters, near-equal texts and words that mean something elsewhere.
EXTERNAL_IDS = (
    *("1", "2", "a", "A", "a b", "a/b", "a:b", "a|b", 'a"b', "%41", "\\", "{}", "0", "01", "-"),
    *("~", "a,b", "a;b", "*", "..", "organization", "null", "e" * 128, "'--"),
)
DEPTH_MAXIMA = (8, 8, 3, 1)
# Seconds from now, None for no end. Those at now and next to it are the interesting ones.
ENDS = (None, None, None, 1, DAY, 0, -1, -DAY, 3 * DAY, 2)
FUTURE_ENDS = (None, None, 1, DAY, 2, 3 * DAY)
STATUSES = ("ACTIVE",) * 5 + ("INACTIVE",) * 2 + ("PENDING",)
GROUP_LEVELS_MAX = 8
WORLD_GROUP_LEVELS = 3

PREFIXES = {
    "organizations": "org",
    "users": "user",
    "memberships": "om",
    "groups": "group",
    "roles": "role",
    "resources": "resource",
    "role_assignments": "role_assignment",
    "api_keys": "api_key",
}

# Every draw has this many bytes. Hypothesis mutates examples by putting one draw in the place of
# another; where sizes differ it falls back to zeros, and worlds would be small and dull.
_BLOCK = 48
# part -> (rows, bytes of a row)
_PARTS = {
    "shape": (1, 12),
    "types": (4, 3),
    "permissions": (10, 2),
    "roles": (8, 6),
    "organizations": (4, 12),
    "resources": (20, 4),
    "memberships": (12, 8),
    "groups": (6, 6),
    "assignments": (24, 5),
    "keys": (4, 6),
    "ghosts": (4, 2),
}


class _Tape:
    """Choices read off bytes; past the end every choice is the first."""

    def __init__(self, data):
        self._data = data
        self._at = 0

    def byte(self):
        at = self._at
        self._at += 1
        return self._data[at] if at < len(self._data) else 0

    def below(self, number):
        return self.byte() % number

    def pick(self, items):
        return items[self.byte() % len(items)]

    def some(self, items):
        """Those of at most sixteen items whose bit is set."""
        bits = self.byte() | self.byte() << 8
        return [item for at, item in enumerate(items) if bits >> at & 1]

    def shuffled(self, items):
        left = list(items)
        return [left.pop(self.byte() % len(left)) for _ in items]


def _id(table, number):
    """An id of the documented shape: a prefix and the 26 characters of a ULID."""
    return f"{PREFIXES[table]}_01JZ{number:022d}"


def _free(wanted, candidates, taken):
    """The first candidate from position ``wanted`` on, round about, that is not taken."""
    for at in range(len(candidates)):
        candidate = candidates[(wanted + at) % len(candidates)]
        if candidate not in taken:
            return candidate
    return None


# --- What a world has


def _of(world, table, organization_id):
    """The ids of the rows of one organization."""
    return [id for id, row in world[table].items() if row["organization_id"] == organization_id]


def _scope(world, type_slug):
    """The permissions a role of this type may contain (M7)."""
    types = {type_slug} | naive.descendant_types(world, type_slug)
    return [
        slug
        for slug, permission in world["permissions"].items()
        if permission["resource_type_slug"] in types
    ]


def _grantable(world, organization_id):
    """All (role, resource) of an organization that an assignment may name (M11)."""
    return [
        (role_id, resource_id)
        for resource_id in _of(world, "resources", organization_id)
        for role_id, role in world["roles"].items()
        if role["organization_id"] in (None, organization_id)
        and role["resource_type_slug"] == world["resources"][resource_id]["resource_type_slug"]
    ]


def _is_root(world, resource_id):
    return world["resources"][resource_id]["parent_id"] is None


def _subtree(world, resource_id):
    return {id for id in world["resources"] if resource_id in naive.path(world, id)}


def _levels(world, group_id, towards):
    """How many groups the longest chain has that starts here and goes up or down."""
    if towards == "up":
        nearest = naive.groups_directly_with(world, ("group", group_id))
    else:
        nearest = world["groups"][group_id]["group_ids"]
    return 1 + max((_levels(world, id, towards) for id in nearest), default=0)


def _own_types(world):
    return [slug for slug in world["resource_types"] if slug != naive.ROOT_TYPE]


# --- Worlds


def worlds(now=NOW, *, api_keys=True, expired=True, directory_roles=False):
    """Random worlds.

    Args:
        now: The instant that ends of assignments and keys are chosen around.
        api_keys: Whether there are API keys.
        expired: Whether some assignments and keys are over at ``now`` (the API cannot write such
            ones without waiting).
        directory_roles: Whether some own roles come from a directory.

    Returns:
        A strategy.
    """
    ends = [None if end is None else now + end for end in (ENDS if expired else FUTURE_ENDS)]
    parts = [
        st.tuples(*[st.binary(min_size=_BLOCK, max_size=_BLOCK)] * -(-rows * width // _BLOCK))
        for rows, width in _PARTS.values()
    ]
    return st.tuples(*parts).map(
        lambda drawn: _Builder(map(b"".join, drawn), ends, directory_roles).build(api_keys)
    )


class _Builder:
    """Makes one world from drawn bytes."""

    def __init__(self, drawn, ends, directory_roles):
        self._rows = {
            part: [_Tape(data[at * width : (at + 1) * width]) for at in range(rows)]
            for (part, (rows, width)), data in zip(_PARTS.items(), drawn, strict=True)
        }
        self._ends = ends
        self._directory_roles = directory_roles
        self._pairs = {}
        self.world = {table: {} for table in PREFIXES}
        self.world.update(ghosts={}, next_number=1000)

    def build(self, api_keys):
        world = self.world
        shape = self._rows["shape"][0]
        numbers = list(range(1, 161))
        seed = shape.byte() | shape.byte() << 8
        if seed:
            # Without a seed ids are in order of creation, which is what examples shrink to.
            random.Random(seed).shuffle(numbers)
        self._numbers = iter(numbers)
        organization_count = 1 + shape.below(3)
        type_count = 1 + shape.below(4)
        self._depth_max = shape.pick(DEPTH_MAXIMA)
        counts = {
            "roles": 1 + shape.below(8),
            "memberships": 1 + shape.below(12),
            "groups": shape.below(7),
            "resources": shape.below(21),
            "assignments": shape.below(25),
            "keys": shape.below(5) if api_keys else 0,
            "ghosts": shape.below(5),
        }
        self._types(type_count)
        self._permissions()
        self._organizations(organization_count)
        self._roles(counts["roles"])
        self._priorities()
        for at in range(counts["memberships"]):
            world["users"][self._new("users")] = {
                "email": f"user-{at}@example.com",
                "name": NAMES[at % len(NAMES)],
            }
        makers = {
            "resources": self._resource,
            "memberships": self._membership,
            "groups": self._group,
            "assignments": self._assignment,
            "keys": self._key,
            "ghosts": self._ghost,
        }
        for part, make in makers.items():
            for row in self._rows[part][: counts[part]]:
                make(row)
        return world

    def _new(self, table):
        return _id(table, next(self._numbers))

    def _organization(self, row):
        # The first has the most, so that there is one with enough to interact.
        first, *others = self.world["organizations"]
        return row.pick([first, first, *others])

    def _types(self, count):
        types = {naive.ROOT_TYPE: {"name": "Organization", "parent_type_slugs": []}}
        for slug, row in zip(TYPE_SLUGS[:count], self._rows["types"], strict=False):
            parents = row.some(list(types)) or [naive.ROOT_TYPE]
            if row.below(2):
                parents.append(slug)
            types[slug] = {"name": slug.title(), "parent_type_slugs": parents}
        self.world["resource_types"] = types

    def _permissions(self):
        wanted = [("organization:view", naive.ROOT_TYPE), ("members:manage", naive.ROOT_TYPE)]
        for kind in _own_types(self.world):
            # "*" is an ordinary character of a slug, no wildcard (M9).
            wanted += [(f"{kind}:view", kind), (f"{kind}:*", kind)]
        permissions = self.world["permissions"] = {}
        for (slug, kind), row in zip(wanted, self._rows["permissions"], strict=False):
            if slug.endswith(":view") or row.below(4) != 3:
                permissions[slug] = {
                    "name": slug,
                    "resource_type_slug": kind,
                    "assignable_to_api_keys": row.below(4) != 3,
                }

    def _organizations(self, count):
        for name, external_id in [("Acme", None), ("Globex", "org 1"), ("Acme", "2")][:count]:
            _add_organization(
                self.world,
                self._new("organizations"),
                self._new("resources"),
                self._new("groups"),
                name,
                external_id,
            )

    def _roles(self, count):
        world = self.world
        scopes = {slug: _scope(world, slug) for slug in world["resource_types"]}
        owner_id = None
        for at, row in enumerate(self._rows["roles"][:count]):
            kind = row.pick([naive.ROOT_TYPE, *world["resource_types"]])
            organization_id = row.pick([None, None, *world["organizations"]])
            slug_at = row.byte()
            candidates = ENVIRONMENT_SLUGS if organization_id is None else ORGANIZATION_SLUGS
            if at == 0 or (at == 1 and slug_at % 4):
                kind, organization_id = naive.ROOT_TYPE, None
                candidates = ["owner"] if at else ["member"]
            taken = {world["roles"][id]["slug"] for id in _of(world, "roles", organization_id)}
            id = self._new("roles")
            world["roles"][id] = {
                "organization_id": organization_id,
                "slug": _free(slug_at, candidates, taken),
                "name": row.pick(NAMES),
                "resource_type_slug": kind,
                "permission_slugs": row.some(scopes[kind]),
            }
            if candidates == ["owner"]:
                owner_id = id
        self._owner_role_id = owner_id

    def _priorities(self):
        world = self.world
        *rows, deployment = self._rows["organizations"]
        world["configuration"] = {
            "default_role_id": next(iter(world["roles"])),
            "owner_role_id": self._owner_role_id,
            "role_priority": deployment.shuffled(_organization_level(world, None)),
            "last_owner_guard_enabled": True,
            "resource_depth_max": self._depth_max,
        }
        for (id, organization), row in zip(world["organizations"].items(), rows, strict=False):
            roles = _organization_level(world, id)
            if row.below(4) == 3:
                organization["default_role_id"] = row.pick(roles)
            if row.below(2):
                organization["role_priority"] = row.shuffled(roles)

    def _resource(self, row):
        world = self.world
        organization_id = self._organization(row)
        inside = _of(world, "resources", organization_id)
        kind_at, parent_at, external_at = row.byte(), row.byte(), row.byte()
        places = [
            (id, kind)
            for id in inside
            if naive.depth(world, id) < self._depth_max
            for kind in _own_types(world)
            if _allowed_parent(world, kind, id)
        ]
        # Mostly below the newest resource that may have children: trees get deep.
        parents = list(dict.fromkeys(id for id, _ in places))
        parent_id = parents[-1] if parent_at % 4 else parents[parent_at // 4 % len(parents)]
        kinds = [kind for id, kind in places if id == parent_id]
        kind = kinds[kind_at % len(kinds)]
        taken = {
            world["resources"][id]["external_id"]
            for id in inside
            if world["resources"][id]["resource_type_slug"] == kind
        }
        world["resources"][self._new("resources")] = {
            "organization_id": organization_id,
            "resource_type_slug": kind,
            "external_id": _free(external_at, EXTERNAL_IDS, taken),
            "name": NAMES[external_at % len(NAMES)],
            "parent_id": parent_id,
        }

    def _membership(self, row):
        world = self.world
        organization_id = self._organization(row)
        taken = {
            world["memberships"][id]["user_id"] for id in _of(world, "memberships", organization_id)
        }
        user_id = _free(row.byte(), list(world["users"]), taken)
        status = row.pick(STATUSES)
        usable = naive.role_priority(world, organization_id)
        direct = list(dict.fromkeys([row.pick(usable), *row.some(usable)[:2]]))
        directory = row.some(usable)[:2] if self._directory_roles else []
        if directory and len(direct) == 1:
            direct = []
        world["memberships"][self._new("memberships")] = {
            "user_id": user_id,
            "organization_id": organization_id,
            "status": status,
            "direct_role_ids": direct,
            "directory_role_ids": directory,
        }

    def _group(self, row):
        world = self.world
        organization_id = self._organization(row)
        outer = [
            id
            for id in _of(world, "groups", organization_id)
            if world["groups"][id]["kind"] == "STANDARD"
            and _levels(world, id, "up") < WORLD_GROUP_LEVELS
        ]
        id = self._new("groups")
        world["groups"][id] = {
            "organization_id": organization_id,
            "name": row.pick(NAMES),
            "kind": "STANDARD",
            "membership_ids": row.some(_of(world, "memberships", organization_id)),
            "group_ids": [],
        }
        for outer_id in outer[-1:] if row.below(2) else row.some(outer):
            world["groups"][outer_id]["group_ids"].append(id)

    def _assignment(self, row):
        world = self.world
        organization_id = self._organization(row)
        people = _assignable(world, organization_id)
        kind = row.pick(["membership", "group"])
        subject = row.pick([one for one in people if one[0] == kind] or people)
        if organization_id not in self._pairs:
            self._pairs[organization_id] = _grantable(world, organization_id)
        pairs = self._pairs[organization_id]
        if subject[0] == "membership":
            pairs = [pair for pair in pairs if not _is_root(world, pair[1])]
        taken = {
            (held["role_id"], held["resource_id"])
            for held in world["role_assignments"].values()
            if held["subject"] == subject
        }
        pair = _free(row.byte(), pairs, taken)
        if pair is not None:
            world["role_assignments"][self._new("role_assignments")] = {
                "organization_id": organization_id,
                "subject": subject,
                "role_id": pair[0],
                "resource_id": pair[1],
                "expires_at": row.pick(self._ends),
            }

    def _key(self, row):
        world = self.world
        organization_id = self._organization(row)
        world["api_keys"][self._new("api_keys")] = {
            "organization_id": organization_id,
            "user_id": row.pick([None, *_key_owners(world, organization_id, ("PENDING",))]),
            "name": "key",
            "permission_slugs": row.some(_listable(world)),
            "expires_at": row.pick(self._ends),
            "revoked": row.below(4) == 3,
        }

    def _ghost(self, row):
        world = self.world
        owner_role_id = world["configuration"]["owner_role_id"]
        twins = {
            "resources": [id for id in world["resources"] if not _is_root(world, id)],
            # An owner cannot be deleted and created again while it is the only one (LO1).
            "memberships": [
                id
                for id, membership in world["memberships"].items()
                if owner_role_id not in naive.own_roles(membership)
            ],
            "groups": [id for id, group in world["groups"].items() if group["kind"] == "STANDARD"],
            "roles": [
                id for id, role in world["roles"].items() if role["slug"] not in ("member", "owner")
            ],
            "role_assignments": list(world["role_assignments"]),
            "api_keys": list(world["api_keys"]),
        }
        table = row.pick(list(twins))
        if twins[table]:
            twin = row.pick(twins[table])
            world["ghosts"][self._new(table)] = {"table": table, "twin": twin}


def _organization_level(world, organization_id):
    """The roles of type organization usable in an organization, or in the deployment."""
    return [
        id
        for id, role in world["roles"].items()
        if role["resource_type_slug"] == naive.ROOT_TYPE
        and role["organization_id"] in (None, organization_id)
    ]


def _add_organization(world, id, resource_id, everyone_group_id, name, external_id):
    """Put an organization, its resource and its everyone group into the tables, in place."""
    world["organizations"][id] = {
        "name": name,
        "external_id": external_id,
        "resource_id": resource_id,
        "everyone_group_id": everyone_group_id,
        "default_role_id": None,
        "role_priority": None,
    }
    world["resources"][resource_id] = {
        "organization_id": id,
        "resource_type_slug": naive.ROOT_TYPE,
        "external_id": id,
        "name": name,
        "parent_id": None,
    }
    world["groups"][everyone_group_id] = {
        "organization_id": id,
        "name": "everyone",
        "kind": "EVERYONE",
        "membership_ids": [],
        "group_ids": [],
    }


def _assignable(world, organization_id):
    """Everybody in an organization that an assignment may name as its subject."""
    return [("membership", id) for id in _of(world, "memberships", organization_id)] + [
        ("group", id) for id in _of(world, "groups", organization_id)
    ]


def _assignment_id(world, subject, role_id, resource_id):
    """The one assignment with this key (RA1), or None."""
    for id, row in world["role_assignments"].items():
        if (row["subject"], row["role_id"], row["resource_id"]) == (subject, role_id, resource_id):
            return id
    return None


def _key_owners(world, organization_id, without_statuses):
    return [
        row["user_id"]
        for row in world["memberships"].values()
        if row["organization_id"] == organization_id and row["status"] not in without_statuses
    ]


def _listable(world):
    """The permissions an API key may be given."""
    return [slug for slug, row in world["permissions"].items() if row["assignable_to_api_keys"]]


# --- The same world with other ids, invariants


def rename(value, mapping):
    """A world, write, question or answer with ids replaced; ids not in the mapping stay.

    Args:
        value: Any nesting of dicts, lists and tuples.
        mapping: New id by old id.

    Returns:
        A copy, in which a dict keyed by ids keeps its order.
    """
    if isinstance(value, str):
        return mapping.get(value, value)
    if isinstance(value, dict):
        return {rename(key, mapping): rename(item, mapping) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(rename(item, mapping) for item in value)
    return value


def ids(world):
    """Every id of the world, ghosts included: what a loader has to map."""
    return [id for table in PREFIXES for id in world[table]] + list(world["ghosts"])


def problems(world):
    """What is wrong with a world: a list of texts, empty for every world made here."""
    found = []

    def expect(condition, text):
        if not condition:
            found.append(text)

    types, roles, resources = world["resource_types"], world["roles"], world["resources"]
    for id in ids(world):
        expect(re.fullmatch(r"[a-z_]+_[0-9A-HJKMNP-TV-Z]{26}", id), f"shape of {id}")
    alive = {id for table in PREFIXES for id in world[table]}
    expect(not alive & set(world["ghosts"]), "a ghost lives")
    for id, ghost in world["ghosts"].items():
        expect(ghost["twin"] is None or ghost["twin"] in world[ghost["table"]], f"twin of {id}")

    for slug, kind in types.items():
        parents = set(kind["parent_type_slugs"])
        expect(re.fullmatch(r"[a-z][a-z0-9_-]{0,47}", slug), f"slug of type {slug}")
        expect(parents <= set(types), f"parents of {slug}")
        expect((slug == naive.ROOT_TYPE) == (not parents), f"M1 {slug}")
        expect(slug == naive.ROOT_TYPE or parents - {slug}, f"M2 {slug} only in itself")
        for below in naive.descendant_types(world, slug) - {slug}:
            expect(slug not in naive.descendant_types(world, below), f"M2 cycle {slug} {below}")
    expect(
        naive.descendant_types(world, naive.ROOT_TYPE) == set(types) - {naive.ROOT_TYPE},
        "M2 not below organization",
    )
    for slug, permission in world["permissions"].items():
        expect(re.fullmatch(r"[a-z0-9][a-z0-9_:.*-]{0,47}", slug), f"slug of permission {slug}")
        expect(permission["resource_type_slug"] in types, f"type of {slug}")

    keys = [(role["organization_id"], role["slug"]) for role in roles.values()]
    expect(len(keys) == len(set(keys)), "role slugs are not unique")
    for id, role in roles.items():
        expect(re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,47}", role["slug"]), f"slug of {id}")
        own = role["organization_id"] is not None
        expect(role["slug"].startswith("org-") == own, f"M8 {id}")
        expect(not own or role["organization_id"] in world["organizations"], f"home of {id}")
        expect(
            set(role["permission_slugs"]) <= set(_scope(world, role["resource_type_slug"])),
            f"M7 {id}",
        )
    configuration = world["configuration"]
    orders = [(configuration["role_priority"], None)]
    defaults = [(configuration["default_role_id"], None)]
    for id, organization in world["organizations"].items():
        if organization["role_priority"] is not None:
            orders.append((organization["role_priority"], id))
        if organization["default_role_id"] is not None:
            defaults.append((organization["default_role_id"], id))
        everyone = [
            group_id
            for group_id in _of(world, "groups", id)
            if world["groups"][group_id]["kind"] == "EVERYONE"
        ]
        expect(everyone == [organization["everyone_group_id"]], f"GR1 {id}")
        root = resources[organization["resource_id"]]
        expect(root["external_id"] == id and root["name"] == organization["name"], f"M3 {id}")
        roots = [r for r in _of(world, "resources", id) if _is_root(world, r)]
        expect(roots == [organization["resource_id"]], f"M3 roots of {id}")
    for order, id in orders:
        expect(sorted(order) == sorted(_organization_level(world, id)), f"RO4 of {id}")
    for role_id, id in defaults:
        expect(role_id in _organization_level(world, id), f"RO3 of {id}")
    expect(
        configuration["owner_role_id"] in (None, *_organization_level(world, None)), "owner role"
    )

    emails = [user["email"] for user in world["users"].values()]
    expect(len(emails) == len(set(emails)), "emails are not unique")
    pairs = [(row["user_id"], row["organization_id"]) for row in world["memberships"].values()]
    expect(len(pairs) == len(set(pairs)), "memberships are not unique")
    for id, row in world["memberships"].items():
        expect(row["user_id"] in world["users"], f"user of {id}")
        own = naive.own_roles(row)
        expect(own, f"MB2 {id}")
        expect(own <= set(_organization_level(world, row["organization_id"])), f"roles of {id}")

    for id, group in world["groups"].items():
        home = group["organization_id"]
        members = set(group["membership_ids"])
        expect(members <= set(_of(world, "memberships", home)), f"members of {id}")
        expect(set(group["group_ids"]) <= set(_of(world, "groups", home)), f"groups in {id}")
        expect(group["kind"] == "STANDARD" or not (members or group["group_ids"]), f"GR1 {id}")
        above = naive.groups_directly_with(world, ("group", id))
        expect(id not in naive.groups_above(world, above), f"GR2 cycle {id}")
        expect(group["kind"] == "STANDARD" or not above, f"GR1 nested {id}")
    if not any("cycle" in text for text in found):
        for id in world["groups"]:
            expect(_levels(world, id, "up") <= GROUP_LEVELS_MAX, f"GR2 levels {id}")

    keys = []
    for id, row in resources.items():
        keys.append((row["organization_id"], row["resource_type_slug"], row["external_id"]))
        expect(re.fullmatch(r"[!-~]([ -~]{0,126}[!-~])?", row["external_id"]), f"C14 {id}")
        if row["parent_id"] is None:
            continue
        parent = resources[row["parent_id"]]
        expect(parent["organization_id"] == row["organization_id"], f"M4 organization {id}")
        expect(
            parent["resource_type_slug"] in types[row["resource_type_slug"]]["parent_type_slugs"],
            f"M4 parent type {id}",
        )
        expect(naive.depth(world, id) <= configuration["resource_depth_max"], f"M4 depth {id}")
    expect(len(keys) == len(set(keys)), "external ids are not unique")

    keys = []
    for id, row in world["role_assignments"].items():
        keys.append((row["subject"], row["role_id"], row["resource_id"]))
        home = row["organization_id"]
        expect(row["subject"] in _assignable(world, home), f"subject of {id}")
        expect((row["role_id"], row["resource_id"]) in _grantable(world, home), f"M11 {id}")
        expect(row["subject"][0] == "group" or not _is_root(world, row["resource_id"]), f"RA3 {id}")
    expect(len(keys) == len(set(keys)), "RA1")
    for id, row in world["api_keys"].items():
        home = row["organization_id"]
        expect(home in world["organizations"], f"home of {id}")
        expect(row["user_id"] in (None, *_key_owners(world, home, ())), f"owner of {id}")
        expect(set(row["permission_slugs"]) <= set(world["permissions"]), f"list of {id}")
    return found


# --- Questions

UNKNOWN = 99_999_999
UNKNOWN_PERMISSION = "nothing:known"


def subjects(world, *, every_form=True):
    """Every subject, the unknown ones too.

    Args:
        world: The world asked about.
        every_form: Also name memberships as pairs, with the pairs that have none, and add unknown
            and former ids.
    """
    known = [("membership", id) for id in world["memberships"]]
    known += [("group", id) for id in world["groups"]]
    known += [("api_key", id) for id in world["api_keys"]]
    if not every_form:
        return known
    unknown_user, unknown_home = _id("users", UNKNOWN), _id("organizations", UNKNOWN)
    known += [
        ("user", user_id, organization_id)
        for user_id in [*world["users"], unknown_user]
        for organization_id in [*world["organizations"], unknown_home]
    ]
    for kind, table in (
        ("membership", "memberships"),
        ("group", "groups"),
        ("api_key", "api_keys"),
    ):
        known.append((kind, _id(table, UNKNOWN)))
        known += [(kind, id) for id, ghost in world["ghosts"].items() if ghost["table"] == table]
    return known


def resources(world, *, every_form=True):
    """Every resource, as for subjects: by id, by key, unknown, of an unknown type or home."""
    known = [("id", id) for id in world["resources"]]
    if not every_form:
        return known
    known += [
        ("key", row["organization_id"], row["resource_type_slug"], row["external_id"])
        for row in world["resources"].values()
    ]
    known.append(("id", _id("resources", UNKNOWN)))
    known += [("id", id) for id, ghost in world["ghosts"].items() if ghost["table"] == "resources"]
    some_home = next(iter(world["organizations"]), _id("organizations", UNKNOWN))
    known += [
        ("key", some_home, TYPE_SLUGS[0], "nothing there"),
        ("key", some_home, "no-such-type", "1"),
        ("key", some_home, naive.ROOT_TYPE, "1"),
        ("key", _id("organizations", UNKNOWN), TYPE_SLUGS[0], "1"),
    ]
    return known


def permissions(world):
    """Every permission and an unknown one."""
    return [*world["permissions"], UNKNOWN_PERMISSION]


def all_questions(world, *, every_form=False):
    """Every (subject, permission, resource); with every form there are tens of thousands."""
    return itertools.product(
        subjects(world, every_form=every_form),
        permissions(world),
        resources(world, every_form=every_form),
    )


def questions(world):
    """A strategy for one (subject, permission, resource), in any form, unknown ones included."""
    return st.tuples(
        st.sampled_from(subjects(world)),
        st.sampled_from(permissions(world)),
        st.sampled_from(resources(world)),
    )


def instants(world, now=NOW):
    """The instants at which answers may differ: now, and around each end."""
    ends = {
        row["expires_at"]
        for table in ("role_assignments", "api_keys")
        for row in world[table].values()
        if row["expires_at"] is not None
    }
    return sorted({now} | {end + shift for end in ends for shift in (-1, 0)})


# --- Writes


class Refused(Exception):
    """A write that the documented rules refuse.

    Attributes:
        error: (code, reason).
    """

    def __init__(self, code, reason):
        super().__init__(f"{code}:{reason}")
        self.error = (code, reason)


def apply(world, write):
    """The world after a write.

    Args:
        world: The world before; it is not changed.
        write: See the top of this file.

    Returns:
        The world after it; the very same object if the write has no effect.

    Raises:
        Refused: If the rules refuse it.
    """
    after = _APPLY[write["op"]](world, write)
    if world["configuration"]["last_owner_guard_enabled"] and naive.last_owner_lost(world, after):
        raise Refused("FAILED_PRECONDITION", "LAST_OWNER")
    return after


def attempts(world, now=NOW, *, api_keys=True):
    """A strategy for writes, some of which are refused or without effect."""
    operations = _operations(api_keys)
    return st.binary(min_size=_WRITE_BYTES, max_size=_WRITE_BYTES).map(
        lambda data: _write(world, now, data, operations)
    )


def writes(world, now=NOW, *, api_keys=True):
    """A strategy for writes that are not refused and change something."""
    operations = _operations(api_keys)
    return st.binary(min_size=_WRITE_BYTES, max_size=_WRITE_BYTES).map(
        lambda data: _write(world, now, data, operations, accepted=True)
    )


_WRITE_BYTES = 15


def _operations(api_keys):
    return [op for op, (weight, _) in _DRAW.items() for _ in range(weight)] + (
        [op for op, (weight, _) in _DRAW_KEYS.items() for _ in range(weight)] if api_keys else []
    )


def _write(world, now, data, operations, accepted=False):
    """The first write, from the drawn operation on, that can be made up in this world."""
    distinct = list(dict.fromkeys(operations))
    start = distinct.index(operations[data[0] % len(operations)])
    # If that cannot be made up here, go on in one of several orders, so that no other operation is
    # always its stand-in. A prime above their number passes all of them.
    step = (37, 41, 43, 47, 53)[data[1] % 5]
    for at in range(len(distinct)):
        op = distinct[(start + at * step) % len(distinct)]
        _, draw = {**_DRAW, **_DRAW_KEYS}[op]
        write = draw(world, _Tape(data[2:]), now)
        if write is None:
            continue
        write = {"op": op, "at": now, **write}
        if not accepted:
            return write
        try:
            if apply(world, write) is not world:
                return write
        except Refused:
            continue
    raise AssertionError("an organization can always be created")


# --- Effects


def _put(world, table, id, **fields):
    row = {**world[table].get(id, {}), **fields}
    if row == world[table].get(id):
        return world
    return {**world, table: {**world[table], id: row}}


def _create(world, table, id, **fields):
    made = _put(world, table, id, **fields)
    return {**made, "next_number": world["next_number"] + 1}


def _drop(world, table, gone):
    """Without these rows; whatever refers to them is the caller's business."""
    gone = [id for id in world[table] if id in gone]
    if not gone:
        return world
    kept = {id: row for id, row in world[table].items() if id not in gone}
    ghosts = {
        id: {**ghost, "twin": None} if ghost["twin"] in gone else ghost
        for id, ghost in world["ghosts"].items()
    }
    ghosts.update({id: {"table": table, "twin": None} for id in gone})
    return {**world, table: kept, "ghosts": ghosts}


def _drop_where(world, table, matches):
    return _drop(world, table, {id for id, row in world[table].items() if matches(row)})


_MISSING = {
    "organizations": "ORGANIZATION_NOT_FOUND",
    "users": "USER_NOT_FOUND",
    "memberships": "MEMBERSHIP_NOT_FOUND",
    "groups": "GROUP_NOT_FOUND",
    "roles": "ROLE_NOT_FOUND",
    "resources": "RESOURCE_NOT_FOUND",
    "role_assignments": "ROLE_ASSIGNMENT_NOT_FOUND",
    "api_keys": "API_KEY_NOT_FOUND",
    "permissions": "PERMISSION_NOT_FOUND",
    "resource_types": "RESOURCE_TYPE_NOT_FOUND",
}


def _need(world, table, id, home=None):
    """The row, or NOT_FOUND if there is none in this organization (C17)."""
    row = world[table].get(id)
    # An environment role has no organization and exists in each.
    if row is None or (home and row["organization_id"] not in (None, home)):
        raise Refused("NOT_FOUND", _MISSING[table])
    return row


def _precondition(condition, reason):
    if not condition:
        raise Refused("FAILED_PRECONDITION", reason)


def _argument(condition, reason):
    if not condition:
        raise Refused("INVALID_ARGUMENT", reason)


def _future(expires_at, write):
    _argument(expires_at is None or expires_at > write["at"], "FIELD_INVALID")


def _assign(world, write):
    _future(write["expires_at"], write)
    subject, role_id, resource_id = write["subject"], write["role_id"], write["resource_id"]
    home = _need(world, PLACES[subject[0]], subject[1])["organization_id"]
    role = _need(world, "roles", role_id, home)
    resource = _need(world, "resources", resource_id, home)
    _argument(
        role["resource_type_slug"] == resource["resource_type_slug"], "ROLE_RESOURCE_TYPE_MISMATCH"
    )
    _argument(
        subject[0] == "group" or not _is_root(world, resource_id),
        "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY",
    )
    old = _assignment_id(world, subject, role_id, resource_id)
    if old is not None:
        if naive.is_valid(world["role_assignments"][old]["expires_at"], write["at"]):
            raise Refused("ALREADY_EXISTS", "ROLE_ASSIGNMENT_EXISTS")
        world = _drop(world, "role_assignments", {old})
    return _create(
        world,
        "role_assignments",
        write["id"],
        organization_id=home,
        subject=subject,
        role_id=role_id,
        resource_id=resource_id,
        expires_at=write["expires_at"],
    )


PLACES = {"membership": "memberships", "group": "groups", "api_key": "api_keys"}


def _unassign(world, write):
    _need(world, "role_assignments", write["id"])
    return _drop(world, "role_assignments", {write["id"]})


def _change_end(world, write):
    _future(write["expires_at"], write)
    _need(world, "role_assignments", write["id"])
    return _put(world, "role_assignments", write["id"], expires_at=write["expires_at"])


def _standard_group(world, id):
    group = _need(world, "groups", id)
    _precondition(group["kind"] == "STANDARD", "GROUP_BUILT_IN")
    return group


def _with_item(items, item):
    return items if item in items else [*items, item]


def _without_item(items, item):
    return [other for other in items if other != item]


def _add_member(world, write):
    home = _need(world, "groups", write["group_id"])["organization_id"]
    _need(world, "memberships", write["membership_id"], home)
    group = _standard_group(world, write["group_id"])
    members = _with_item(group["membership_ids"], write["membership_id"])
    return _put(world, "groups", write["group_id"], membership_ids=members)


def _remove_member(world, write):
    home = _need(world, "groups", write["group_id"])["organization_id"]
    _need(world, "memberships", write["membership_id"], home)
    group = _standard_group(world, write["group_id"])
    members = _without_item(group["membership_ids"], write["membership_id"])
    return _put(world, "groups", write["group_id"], membership_ids=members)


def _nest(world, write):
    outer_id, inner_id = write["outer_id"], write["inner_id"]
    home = _need(world, "groups", outer_id)["organization_id"]
    _need(world, "groups", inner_id, home)
    outer = _standard_group(world, outer_id)
    _standard_group(world, inner_id)
    if inner_id in outer["group_ids"]:
        return world
    _precondition(inner_id not in naive.groups_above(world, {outer_id}), "GROUP_CYCLE")
    levels = _levels(world, outer_id, "up") + _levels(world, inner_id, "down")
    _precondition(levels <= GROUP_LEVELS_MAX, "GROUP_DEPTH_EXCEEDED")
    return _put(world, "groups", outer_id, group_ids=[*outer["group_ids"], inner_id])


def _unnest(world, write):
    home = _need(world, "groups", write["outer_id"])["organization_id"]
    _need(world, "groups", write["inner_id"], home)
    outer = _standard_group(world, write["outer_id"])
    inside = _without_item(outer["group_ids"], write["inner_id"])
    return _put(world, "groups", write["outer_id"], group_ids=inside)


def _create_group(world, write):
    _need(world, "organizations", write["organization_id"])
    return _create(
        world,
        "groups",
        write["id"],
        organization_id=write["organization_id"],
        name=write["name"],
        kind="STANDARD",
        membership_ids=[],
        group_ids=[],
    )


def _delete_group(world, write):
    id = write["id"]
    _standard_group(world, id)
    world = _drop_where(world, "role_assignments", lambda row: row["subject"] == ("group", id))
    for outer_id in naive.groups_directly_with(world, ("group", id)):
        inside = _without_item(world["groups"][outer_id]["group_ids"], id)
        world = _put(world, "groups", outer_id, group_ids=inside)
    return _drop(world, "groups", {id})


def _own_role_ids(world, role_ids, home):
    for role_id in role_ids:
        role = _need(world, "roles", role_id, home)
        _argument(role["resource_type_slug"] == naive.ROOT_TYPE, "ROLE_RESOURCE_TYPE_MISMATCH")
    return list(role_ids)


def _create_membership(world, write):
    home = write["organization_id"]
    _need(world, "users", write["user_id"])
    organization = _need(world, "organizations", home)
    roles = _own_role_ids(world, write["role_ids"], home)
    default = organization["default_role_id"] or world["configuration"]["default_role_id"]
    roles = roles or [default]
    id = naive.find_membership(world, write["user_id"], home)
    if id is None:
        return _create(
            world,
            "memberships",
            write["id"],
            user_id=write["user_id"],
            organization_id=home,
            status="ACTIVE",
            direct_role_ids=roles,
            directory_role_ids=[],
        )
    status = world["memberships"][id]["status"]
    if status == "ACTIVE":
        raise Refused("ALREADY_EXISTS", "MEMBERSHIP_EXISTS")
    _precondition(status == "INACTIVE", "MEMBERSHIP_PENDING")
    return _put(world, "memberships", id, status="ACTIVE", direct_role_ids=roles)


def _set_status(status):
    def effect(world, write):
        membership = _need(world, "memberships", write["id"])
        _precondition(membership["status"] != "PENDING", "MEMBERSHIP_PENDING")
        return _put(world, "memberships", write["id"], status=status)

    return effect


def _accept_invitation(world, write):
    membership = _need(world, "memberships", write["id"])
    _precondition(membership["status"] == "PENDING", "INVITATION_NOT_PENDING")
    return _put(world, "memberships", write["id"], status="ACTIVE")


def _set_own_roles(world, write):
    membership = _need(world, "memberships", write["id"])
    _argument(write["role_ids"], "FIELD_REQUIRED")
    roles = _own_role_ids(world, write["role_ids"], membership["organization_id"])
    if set(roles) == set(membership["direct_role_ids"]):
        return world
    return _put(world, "memberships", write["id"], direct_role_ids=roles)


def _delete_membership(world, write):
    _need(world, "memberships", write["id"])
    return _without_membership(world, write["id"])


def _without_membership(world, id):
    membership = world["memberships"][id]
    pair = (membership["user_id"], membership["organization_id"])
    world = _drop_where(world, "role_assignments", lambda row: row["subject"] == ("membership", id))
    world = _drop_where(
        world, "api_keys", lambda row: (row["user_id"], row["organization_id"]) == pair
    )
    for group_id in naive.groups_directly_with(world, ("membership", id)):
        members = _without_item(world["groups"][group_id]["membership_ids"], id)
        world = _put(world, "groups", group_id, membership_ids=members)
    return _drop(world, "memberships", {id})


def _create_user(world, write):
    taken = {user["email"] for user in world["users"].values()}
    if write["email"] in taken:
        raise Refused("ALREADY_EXISTS", "EMAIL_TAKEN")
    return _create(world, "users", write["id"], email=write["email"], name=write["name"])


def _delete_user(world, write):
    _need(world, "users", write["id"])
    for id, membership in list(world["memberships"].items()):
        if membership["user_id"] == write["id"]:
            world = _without_membership(world, id)
    return _drop(world, "users", {write["id"]})


def _create_role(world, write):
    home = write["organization_id"]
    if home is not None:
        _need(world, "organizations", home)
    _need(world, "resource_types", write["resource_type_slug"])
    _role_permissions(world, write["resource_type_slug"], write["permission_slugs"])
    if write["slug"] in {world["roles"][id]["slug"] for id in _of(world, "roles", home)}:
        raise Refused("ALREADY_EXISTS", "SLUG_TAKEN")
    fields = ("organization_id", "slug", "name", "resource_type_slug", "permission_slugs")
    made = _create(world, "roles", write["id"], **{field: write[field] for field in fields})
    if write["resource_type_slug"] != naive.ROOT_TYPE:
        return made
    return _with_orders(made, home, lambda order: [*order, write["id"]])


def _with_orders(world, home, change):
    """Change every priority order that concerns a role of this organization, or of all."""
    if home is None:
        order = world["configuration"]["role_priority"]
        configuration = {**world["configuration"], "role_priority": change(order)}
        world = {**world, "configuration": configuration}
    for id, organization in world["organizations"].items():
        if organization["role_priority"] is not None and home in (None, id):
            order = change(organization["role_priority"])
            world = _put(world, "organizations", id, role_priority=order)
    return world


def _role_permissions(world, type_slug, slugs):
    for slug in slugs:
        _need(world, "permissions", slug)
    _argument(set(slugs) <= set(_scope(world, type_slug)), "PERMISSION_OUT_OF_SCOPE")


def _set_role_permissions(world, write):
    role = _need(world, "roles", write["id"])
    _role_permissions(world, role["resource_type_slug"], write["permission_slugs"])
    if set(write["permission_slugs"]) == set(role["permission_slugs"]):
        return world
    return _put(world, "roles", write["id"], permission_slugs=list(write["permission_slugs"]))


def _add_role_permissions(world, write):
    role = _need(world, "roles", write["id"])
    _role_permissions(world, role["resource_type_slug"], write["permission_slugs"])
    slugs = list(dict.fromkeys([*role["permission_slugs"], *write["permission_slugs"]]))
    return _put(world, "roles", write["id"], permission_slugs=slugs)


def _remove_role_permissions(world, write):
    role = _need(world, "roles", write["id"])
    for slug in write["permission_slugs"]:
        _need(world, "permissions", slug)
    slugs = [slug for slug in role["permission_slugs"] if slug not in write["permission_slugs"]]
    return _put(world, "roles", write["id"], permission_slugs=slugs)


def _delete_role(world, write):
    id, new = write["id"], write["replacement_role_id"]
    role = _need(world, "roles", id)
    configuration = world["configuration"]
    defaults = {row["default_role_id"] for row in world["organizations"].values()}
    _precondition(id not in defaults | {configuration["default_role_id"]}, "ROLE_IS_DEFAULT")
    uses = [row_id for row_id, row in world["memberships"].items() if id in naive.own_roles(row)]
    held = {
        row_id: row
        for row_id, row in world["role_assignments"].items()
        if row["role_id"] == id and naive.is_valid(row["expires_at"], write["at"])
    }
    if new is None:
        _precondition(not uses and not held, "ROLE_IN_USE")
    else:
        other = world["roles"].get(new)
        fits = (
            other is not None
            and new != id
            and other["resource_type_slug"] == role["resource_type_slug"]
            and other["organization_id"] in (None, role["organization_id"])
        )
        _argument(fits, "REPLACEMENT_ROLE_INVALID")
    for row_id in uses:
        row = world["memberships"][row_id]
        switched = {
            field: list(dict.fromkeys(new if own == id else own for own in row[field]))
            for field in ("direct_role_ids", "directory_role_ids")
        }
        world = _put(world, "memberships", row_id, **switched)
    for row_id, row in held.items():
        same = _assignment_id(world, row["subject"], new, row["resource_id"])
        if same is None:
            world = _put(world, "role_assignments", row_id, role_id=new)
            continue
        ends = [row["expires_at"], world["role_assignments"][same]["expires_at"]]
        later = None if None in ends else max(ends)
        world = _put(world, "role_assignments", same, expires_at=later)
    # What is left names the role only in expired or merged rows, which go without a trace.
    world = _drop_where(world, "role_assignments", lambda row: row["role_id"] == id)
    world = _with_orders(world, role["organization_id"], lambda order: _without_item(order, id))
    if configuration["owner_role_id"] == id:
        world = {**world, "configuration": {**world["configuration"], "owner_role_id": None}}
    return _drop(world, "roles", {id})


def _set_priority(world, write):
    home, order = write["organization_id"], write["role_ids"]
    if home is None:
        concerned = _organization_level(world, None)
    else:
        _need(world, "organizations", home)
        concerned = _organization_level(world, home)
    for role_id in order:
        _own_role_ids(world, [role_id], home)
        _argument(role_id in concerned, "FIELD_INVALID")
    if home is not None and not order:
        return _put(world, "organizations", home, role_priority=None)
    _argument(sorted(order) == sorted(concerned), "FIELD_INVALID")
    if home is not None:
        return _put(world, "organizations", home, role_priority=list(order))
    if order == world["configuration"]["role_priority"]:
        return world
    return {**world, "configuration": {**world["configuration"], "role_priority": list(order)}}


def _create_permission(world, write):
    _need(world, "resource_types", write["resource_type_slug"])
    if write["slug"] in world["permissions"]:
        raise Refused("ALREADY_EXISTS", "SLUG_TAKEN")
    return _create(
        world,
        "permissions",
        write["slug"],
        name=write["name"],
        resource_type_slug=write["resource_type_slug"],
        assignable_to_api_keys=write["assignable_to_api_keys"],
    )


def _delete_permission(world, write):
    slug = write["slug"]
    _need(world, "permissions", slug)
    for table in ("roles", "api_keys"):
        for id, row in world[table].items():
            if slug in row["permission_slugs"]:
                _precondition(write["cascade"], "PERMISSION_IN_USE")
                kept = _without_item(row["permission_slugs"], slug)
                world = _put(world, table, id, permission_slugs=kept)
    kept = {other: row for other, row in world["permissions"].items() if other != slug}
    return {**world, "permissions": kept}


def _allowed_parent(world, type_slug, parent_id):
    parent_type = world["resources"][parent_id]["resource_type_slug"]
    return parent_type in world["resource_types"][type_slug]["parent_type_slugs"]


def _create_resource(world, write):
    home, kind, parent_id = (
        write["organization_id"],
        write["resource_type_slug"],
        write["parent_id"],
    )
    organization = _need(world, "organizations", home)
    _need(world, "resource_types", kind)
    _precondition(kind != naive.ROOT_TYPE, "ORGANIZATION_RESOURCE_IMMUTABLE")
    if parent_id is None:
        parent_id = organization["resource_id"]
        _argument(_allowed_parent(world, kind, parent_id), "RESOURCE_PARENT_REQUIRED")
    _need(world, "resources", parent_id, home)
    _argument(_allowed_parent(world, kind, parent_id), "RESOURCE_PARENT_TYPE_NOT_ALLOWED")
    _precondition(
        naive.depth(world, parent_id) < world["configuration"]["resource_depth_max"],
        "RESOURCE_DEPTH_EXCEEDED",
    )
    if naive.find_resource(world, ("key", home, kind, write["external_id"])) is not None:
        raise Refused("ALREADY_EXISTS", "EXTERNAL_ID_TAKEN")
    return _create(
        world,
        "resources",
        write["id"],
        organization_id=home,
        resource_type_slug=kind,
        external_id=write["external_id"],
        name=write["name"],
        parent_id=parent_id,
    )


def _move_resource(world, write):
    id, parent_id = write["id"], write["parent_id"]
    resource = _need(world, "resources", id)
    _need(world, "resources", parent_id, resource["organization_id"])
    _precondition(not _is_root(world, id), "ORGANIZATION_RESOURCE_IMMUTABLE")
    if resource["parent_id"] == parent_id:
        return world
    _argument(
        _allowed_parent(world, resource["resource_type_slug"], parent_id),
        "RESOURCE_PARENT_TYPE_NOT_ALLOWED",
    )
    below = _subtree(world, id)
    _precondition(parent_id not in below, "RESOURCE_CYCLE")
    height = max(naive.depth(world, other) for other in below) - naive.depth(world, id)
    _precondition(
        naive.depth(world, parent_id) + 1 + height <= world["configuration"]["resource_depth_max"],
        "RESOURCE_DEPTH_EXCEEDED",
    )
    return _put(world, "resources", id, parent_id=parent_id)


def _delete_resource(world, write):
    _need(world, "resources", write["id"])
    _precondition(not _is_root(world, write["id"]), "ORGANIZATION_RESOURCE_IMMUTABLE")
    below = _subtree(world, write["id"])
    held = any(
        row["resource_id"] in below and naive.is_valid(row["expires_at"], write["at"])
        for row in world["role_assignments"].values()
    )
    _precondition(write["cascade"] or (len(below) == 1 and not held), "RESOURCE_HAS_DEPENDENTS")
    world = _drop_where(world, "role_assignments", lambda row: row["resource_id"] in below)
    return _drop(world, "resources", below)


def _rename(world, write):
    table, id, name = write["table"], write["id"], write["name"]
    row = _need(world, table, id)
    if table == "groups":
        _standard_group(world, id)
    if table == "resources":
        _precondition(not _is_root(world, id), "ORGANIZATION_RESOURCE_IMMUTABLE")
    if table == "api_keys":
        _active_key(world, write)
    if table == "organizations":
        world = _put(world, "resources", row["resource_id"], name=name)
    return _put(world, table, id, name=name)


def _create_organization(world, write):
    taken = {row["external_id"] for row in world["organizations"].values()} - {None}
    if write["external_id"] in taken:
        raise Refused("ALREADY_EXISTS", "EXTERNAL_ID_TAKEN")
    tables = ("organizations", "resources", "groups")
    made = {**world, **{table: dict(world[table]) for table in tables}}
    made["next_number"] += 1
    fields = ("id", "resource_id", "everyone_group_id", "name", "external_id")
    _add_organization(made, *(write[field] for field in fields))
    return made


def _delete_organization(world, write):
    _need(world, "organizations", write["id"])
    for table in ("role_assignments", "api_keys", "memberships", "groups", "roles", "resources"):
        world = _drop_where(world, table, lambda row: row["organization_id"] == write["id"])
    return _drop(world, "organizations", {write["id"]})


def _create_key(world, write):
    home, user_id = write["organization_id"], write["user_id"]
    if user_id is None:
        _need(world, "organizations", home)
    else:
        id = naive.find_membership(world, user_id, home)
        status = _need(world, "memberships", id)["status"]
        _precondition(status == "ACTIVE", f"MEMBERSHIP_{status}")
    _key_permissions(world, write["permission_slugs"])
    return _create(
        world,
        "api_keys",
        write["id"],
        organization_id=home,
        user_id=user_id,
        name="key",
        permission_slugs=write["permission_slugs"],
        expires_at=write["expires_at"],
        revoked=False,
    )


def _key_permissions(world, slugs):
    for slug in slugs:
        _need(world, "permissions", slug)
    _precondition(set(slugs) <= set(_listable(world)), "PERMISSION_NOT_ASSIGNABLE")


def _active_key(world, write):
    key = _need(world, "api_keys", write["id"])
    active = not key["revoked"] and naive.is_valid(key["expires_at"], write["at"])
    _precondition(active, "API_KEY_NOT_ACTIVE")
    return key


def _set_key_permissions(world, write):
    key = _need(world, "api_keys", write["id"])
    # Those it lists already it keeps, assignable or not.
    _key_permissions(
        world, [slug for slug in write["permission_slugs"] if slug not in key["permission_slugs"]]
    )
    _active_key(world, write)
    if set(write["permission_slugs"]) == set(key["permission_slugs"]):
        return world
    return _put(world, "api_keys", write["id"], permission_slugs=write["permission_slugs"])


def _expire_key(world, write):
    _active_key(world, write)
    return _put(world, "api_keys", write["id"], expires_at=write["expires_at"])


def _revoke_key(world, write):
    _need(world, "api_keys", write["id"])
    return _put(world, "api_keys", write["id"], revoked=True)


def _delete_key(world, write):
    _need(world, "api_keys", write["id"])
    return _drop(world, "api_keys", {write["id"]})


_APPLY = {
    "assign": _assign,
    "unassign": _unassign,
    "change_end": _change_end,
    "add_member": _add_member,
    "remove_member": _remove_member,
    "nest": _nest,
    "unnest": _unnest,
    "create_group": _create_group,
    "delete_group": _delete_group,
    "create_membership": _create_membership,
    "deactivate": _set_status("INACTIVE"),
    "reactivate": _set_status("ACTIVE"),
    "accept_invitation": _accept_invitation,
    "set_own_roles": _set_own_roles,
    "delete_membership": _delete_membership,
    "create_user": _create_user,
    "delete_user": _delete_user,
    "create_role": _create_role,
    "set_role_permissions": _set_role_permissions,
    "add_role_permissions": _add_role_permissions,
    "remove_role_permissions": _remove_role_permissions,
    "delete_role": _delete_role,
    "set_priority": _set_priority,
    "create_permission": _create_permission,
    "delete_permission": _delete_permission,
    "create_resource": _create_resource,
    "move_resource": _move_resource,
    "delete_resource": _delete_resource,
    "rename": _rename,
    "create_organization": _create_organization,
    "delete_organization": _delete_organization,
    "create_api_key": _create_key,
    "set_key_permissions": _set_key_permissions,
    "expire_api_key": _expire_key,
    "revoke_api_key": _revoke_key,
    "delete_api_key": _delete_key,
}


# --- Making writes up. Each function gives the fields of a call, or None if the world has nothing
# to do it to. Most keep to what is possible; some, on purpose, do not look (C17, GR2, RS4).


def _new(world, table):
    return _id(table, world["next_number"])


def _some_home(world, tape):
    homes = list(world["organizations"])
    return tape.pick(homes) if homes else None


def _some_row(world, tape, table, fits=lambda row: True):
    found = [id for id, row in world[table].items() if fits(row)]
    return tape.pick(found) if found else None


def _on_some_row(table, fits=lambda row: True):
    def draw(world, tape, now):
        id = _some_row(world, tape, table, fits)
        return None if id is None else {"id": id}

    return draw


def _end(tape, now):
    end = tape.pick(FUTURE_ENDS)
    return None if end is None else now + end


def _draw_assign(world, tape, now):
    home = _some_home(world, tape)
    foreign = tape.below(16) == 15
    people = _assignable(world, home) if home else []
    if foreign:
        home = _some_home(world, tape)
    pairs = _grantable(world, home) if home else []
    if not people or not pairs:
        return None
    subject = tape.pick(people)
    if subject[0] == "membership" and not foreign:
        pairs = [pair for pair in pairs if not _is_root(world, pair[1])]
        if not pairs:
            return None
    if tape.below(8) != 7:
        # Mostly something new; RA1 refuses the rest.
        pairs = [pair for pair in pairs if _assignment_id(world, subject, *pair) is None] or pairs
    role_id, resource_id = tape.pick(pairs)
    return {
        "id": _new(world, "role_assignments"),
        "subject": subject,
        "role_id": role_id,
        "resource_id": resource_id,
        "expires_at": _end(tape, now),
    }


def _draw_change_end(world, tape, now):
    id = _some_row(world, tape, "role_assignments")
    return None if id is None else {"id": id, "expires_at": _end(tape, now)}


def _draw_add_member(world, tape, now):
    group_id = _some_row(world, tape, "groups", lambda row: row["kind"] == "STANDARD")
    if group_id is None:
        return None
    home = world["groups"][group_id]["organization_id"]
    people = list(world["memberships"]) if tape.below(16) == 15 else _of(world, "memberships", home)
    return {"group_id": group_id, "membership_id": tape.pick(people)} if people else None


def _draw_place(field, outer, inner):
    """One of the places that are taken: a member in a group, or a group in a group."""

    def draw(world, tape, now):
        places = [(id, one) for id, group in world["groups"].items() for one in group[field]]
        return dict(zip((outer, inner), tape.pick(places), strict=True)) if places else None

    return draw


def _draw_nest(world, tape, now):
    outer_id = _some_row(world, tape, "groups", lambda row: row["kind"] == "STANDARD")
    if outer_id is None:
        return None
    inner = _of(world, "groups", world["groups"][outer_id]["organization_id"])
    if tape.below(8) != 7:
        above = naive.groups_above(world, {outer_id})
        inner = [
            id
            for id in inner
            if id not in above
            and id not in world["groups"][outer_id]["group_ids"]
            and world["groups"][id]["kind"] == "STANDARD"
        ]
    return {"outer_id": outer_id, "inner_id": tape.pick(inner)} if inner else None


def _draw_create_group(world, tape, now):
    home = _some_home(world, tape)
    if home is None:
        return None
    return {"id": _new(world, "groups"), "organization_id": home, "name": tape.pick(NAMES)}


def _draw_create_membership(world, tape, now):
    home = _some_home(world, tape)
    users = list(world["users"])
    if tape.below(8) != 7:
        # Mostly one that can become a member now.
        users = [
            id
            for id in users
            if world["memberships"].get(naive.find_membership(world, id, home), {}).get("status")
            in (None, "INACTIVE")
        ]
    if home is None or not users:
        return None
    user_id = tape.pick(users)
    return {
        "id": _new(world, "memberships"),
        "user_id": user_id,
        "organization_id": home,
        "role_ids": tape.some(_organization_level(world, home)[:16])[:3],
    }


def _draw_own_roles(world, tape, now):
    id = _some_row(world, tape, "memberships")
    if id is None:
        return None
    usable = _organization_level(world, world["memberships"][id]["organization_id"])
    role_ids = dict.fromkeys([tape.pick(usable), *tape.some(usable[:16])[:2]])
    return {"id": id, "role_ids": list(role_ids)}


def _draw_create_user(world, tape, now):
    email = f"user-{world['next_number']}@example.com"
    return {"id": _new(world, "users"), "email": email, "name": tape.pick(NAMES)}


def _draw_create_role(world, tape, now):
    home = tape.pick([None, *world["organizations"]])
    kind = tape.pick(list(world["resource_types"]))
    return {
        "id": _new(world, "roles"),
        "organization_id": home,
        "slug": tape.pick(ENVIRONMENT_SLUGS if home is None else ORGANIZATION_SLUGS),
        "name": tape.pick(NAMES),
        "resource_type_slug": kind,
        "permission_slugs": tape.some(_scope(world, kind)[:16]),
    }


def _draw_role_permissions(world, tape, now):
    id = _some_row(world, tape, "roles")
    if id is None:
        return None
    scope = _scope(world, world["roles"][id]["resource_type_slug"])
    if tape.below(16) == 15:
        scope = list(world["permissions"])
    return {"id": id, "permission_slugs": tape.some(scope[:16])}


def _draw_delete_role(world, tape, now):
    # Seeds stay, so that a world can be described as a change of what a new database holds.
    id = _some_row(world, tape, "roles", lambda row: row["slug"] != "member")
    if id is None:
        return None
    kind = world["roles"][id]["resource_type_slug"]
    others = [
        other
        for other, row in world["roles"].items()
        if other != id and (row["resource_type_slug"] == kind or tape.below(16) == 15)
    ]
    return {"id": id, "replacement_role_id": tape.pick([*others, None])}


def _draw_set_priority(world, tape, now):
    home = tape.pick([None, *world["organizations"]])
    if home is not None and tape.below(8) == 7:
        return {"organization_id": home, "role_ids": []}
    return {"organization_id": home, "role_ids": tape.shuffled(_organization_level(world, home))}


def _draw_create_permission(world, tape, now):
    kind = tape.pick(list(world["resource_types"]))
    slugs = (f"{kind}:edit", f"{kind}:view", f"{kind}:*", "a.b-c_d:*", "0")
    return {
        "slug": tape.pick(slugs),
        "name": tape.pick(NAMES),
        "resource_type_slug": kind,
        "assignable_to_api_keys": tape.below(4) != 3,
    }


def _draw_delete_permission(world, tape, now):
    slug = _some_row(world, tape, "permissions")
    return None if slug is None else {"slug": slug, "cascade": tape.below(4) != 3}


def _draw_create_resource(world, tape, now):
    home = _some_home(world, tape)
    if home is None:
        return None
    kind = tape.pick(_own_types(world))
    allowed = world["resource_types"][kind]["parent_type_slugs"]
    parents = [
        id
        for id in _of(world, "resources", home)
        if world["resources"][id]["resource_type_slug"] in allowed
    ]
    if tape.below(16) == 15:
        parents = list(world["resources"])
    taken = {
        row["external_id"]
        for row in world["resources"].values()
        if (row["organization_id"], row["resource_type_slug"]) == (home, kind)
    }
    wanted = tape.byte()
    external_id = EXTERNAL_IDS[wanted % len(EXTERNAL_IDS)]
    if wanted < 240:
        external_id = _free(wanted, EXTERNAL_IDS, taken) or f"new {world['next_number']}"
    return {
        "id": _new(world, "resources"),
        "organization_id": home,
        "resource_type_slug": kind,
        "external_id": external_id,
        "name": tape.pick(NAMES),
        "parent_id": tape.pick([*parents, None]),
    }


def _draw_move(world, tape, now):
    movable = [id for id, row in world["resources"].items() if row["parent_id"] is not None]
    start, anywhere = tape.byte(), tape.below(16) == 15
    for at in range(len(movable)):
        id = movable[(start + at) % len(movable)]
        row = world["resources"][id]
        parents = [
            other
            for other in _of(world, "resources", row["organization_id"])
            if _allowed_parent(world, row["resource_type_slug"], other)
            and other != row["parent_id"]
            and id not in naive.path(world, other)
        ]
        if anywhere:
            parents = list(world["resources"])
        if parents:
            return {"id": id, "parent_id": tape.pick(parents)}
    return None


def _draw_delete_resource(world, tape, now):
    id = _some_row(world, tape, "resources", lambda row: row["parent_id"] is not None)
    return None if id is None else {"id": id, "cascade": tape.below(4) != 3}


_NAMED = (
    *("organizations", "users", "groups", "roles", "permissions", "resource_types", "resources"),
)


def _draw_rename(world, tape, now):
    table = tape.pick(_NAMED)
    id = _some_row(world, tape, table)
    return None if id is None else {"table": table, "id": id, "name": tape.pick(NAMES)}


def _draw_create_organization(world, tape, now):
    return {
        "id": _new(world, "organizations"),
        "resource_id": _new(world, "resources"),
        "everyone_group_id": _new(world, "groups"),
        "name": tape.pick(NAMES),
        "external_id": f"org {world['next_number']}",
    }


def _draw_create_key(world, tape, now):
    home = _some_home(world, tape)
    if home is None:
        return None
    return {
        "id": _new(world, "api_keys"),
        "organization_id": home,
        "user_id": tape.pick([None, *_key_owners(world, home, ())]),
        "permission_slugs": tape.some(_listable(world)[:16]),
        "expires_at": _end(tape, now),
    }


def _draw_key_permissions(world, tape, now):
    id = _some_row(world, tape, "api_keys")
    return None if id is None else {"id": id, "permission_slugs": tape.some(_listable(world)[:16])}


def _draw_expire_key(world, tape, now):
    id = _some_row(world, tape, "api_keys")
    return None if id is None else {"id": id, "expires_at": tape.pick([now, now + 1, None])}


def _is_standard(row):
    return row["kind"] == "STANDARD"


def _is_status(status):
    return lambda row: row["status"] == status


# op -> (weight, how to make one up)
_DRAW = {
    "assign": (8, _draw_assign),
    "unassign": (4, _on_some_row("role_assignments")),
    "change_end": (3, _draw_change_end),
    "add_member": (4, _draw_add_member),
    "remove_member": (3, _draw_place("membership_ids", "group_id", "membership_id")),
    "nest": (4, _draw_nest),
    "unnest": (3, _draw_place("group_ids", "outer_id", "inner_id")),
    "create_group": (1, _draw_create_group),
    "delete_group": (2, _on_some_row("groups", _is_standard)),
    "create_membership": (4, _draw_create_membership),
    "deactivate": (3, _on_some_row("memberships", _is_status("ACTIVE"))),
    "reactivate": (3, _on_some_row("memberships", _is_status("INACTIVE"))),
    "accept_invitation": (2, _on_some_row("memberships", _is_status("PENDING"))),
    "set_own_roles": (4, _draw_own_roles),
    "delete_membership": (2, _on_some_row("memberships")),
    "create_user": (1, _draw_create_user),
    "delete_user": (1, _on_some_row("users")),
    "create_role": (2, _draw_create_role),
    "set_role_permissions": (3, _draw_role_permissions),
    "add_role_permissions": (3, _draw_role_permissions),
    "remove_role_permissions": (2, _draw_role_permissions),
    "delete_role": (2, _draw_delete_role),
    "set_priority": (2, _draw_set_priority),
    "create_permission": (1, _draw_create_permission),
    "delete_permission": (1, _draw_delete_permission),
    "create_resource": (5, _draw_create_resource),
    "move_resource": (6, _draw_move),
    "delete_resource": (2, _draw_delete_resource),
    "rename": (2, _draw_rename),
    "create_organization": (1, _draw_create_organization),
    "delete_organization": (1, _on_some_row("organizations")),
}
_DRAW_KEYS = {
    "create_api_key": (2, _draw_create_key),
    "set_key_permissions": (2, _draw_key_permissions),
    "expire_api_key": (2, _draw_expire_key),
    "revoke_api_key": (2, _on_some_row("api_keys")),
    "delete_api_key": (2, _on_some_row("api_keys")),
}

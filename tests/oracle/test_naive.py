"""The oracle is right: it gives the worked example exactly and obeys each rule of the model.

Rules are shown on changes of the worked example, each with the answer before and after, so that a
test cannot pass by an oracle that always says the same. The properties at the end hold the oracle
to itself, and the worlds to their invariants, on random worlds.
"""

import collections

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracle import example, naive, worlds
from tests.oracle.sizes import how_many, is_nightly

NOW = example.BEFORE_2030
END = example.START_OF_2030


def allowed(world, name, permission, place, now=NOW):
    """Whether the subject of that name may do it, asked as Check."""
    answer = naive.check(world, example.subject(name), permission, example.resource(place), now)
    assert not naive.is_error(answer), answer
    return answer["allowed"]


def until(world, name, permission, place, now=NOW):
    """The allowed_until of an answer that must be allowed."""
    answer = naive.check(world, example.subject(name), permission, example.resource(place), now)
    assert answer["allowed"]
    return answer["allowed_until"]


def why(world, name, permission, place, now=NOW):
    """The whole explanation."""
    return naive.explain(world, example.subject(name), permission, example.resource(place), now)


def after(world, op, **fields):
    """The world after one write at NOW."""
    return worlds.apply(world, {"op": op, "at": NOW, **fields})


def assign(world, name, role, place, expires_at=None, id=None):
    """The world with one more assignment."""
    return after(
        world,
        "assign",
        id=id or f"role_assignment_{name}_{role}_{place}",
        subject=example.subject(name),
        role_id=f"role_{role}",
        resource_id=f"resource_{place}",
        expires_at=expires_at,
    )


def refusal(world, op, **fields):
    """The error with which a write is refused."""
    with pytest.raises(worlds.Refused) as caught:
        after(world, op, **fields)
    return caught.value.error


def shaped_ids(world):
    """Ids of the documented shape for the symbolic ones of the example."""
    return {id: f"x_{number:026}" for number, id in enumerate(worlds.ids(world))}


@pytest.fixture
def world():
    return example.world()


# --- The worked example


def members(rows):
    """ListMembers rows in the notation of the example."""
    return {
        row["membership_id"].removeprefix("om_"): [
            (grant["role_slug"], grant["resource_id"].removeprefix("resource_"), grant["holder"])
            for grant in row["grants"]
        ]
        for row in rows
    }


def grants(rows):
    """Grants in the notation of the explanations of the example."""
    return [
        (
            grant["role_slug"],
            grant["resource_id"].removeprefix("resource_"),
            grant["expires_at"],
            grant["holder"],
        )
        for grant in rows
    ]


def wrong_rows(world):
    """The rows of the worked example that the oracle answers otherwise than the text."""
    wrong = []
    for number, name, permission, place, now, is_allowed, allowed_until, reason in example.CHECKS:
        question = (example.subject(name), permission, example.resource(place), now)
        answer = naive.check(world, *question)
        if answer != {"allowed": is_allowed, "allowed_until": allowed_until}:
            wrong.append(number)
        if naive.explain(world, *question)["reason"] != reason:
            wrong.append(f"reason of {number}")
    for label, name, permission, place, error in example.ERRORS:
        question = (example.subject(name), permission, example.resource(place), NOW)
        if naive.check(world, *question) != error or naive.explain(world, *question) != error:
            wrong.append(label)
    for row in example.LIST_RESOURCES:
        name, permissions, parent, children_only, expected = row
        listed = naive.list_resources(
            world,
            example.subject(name),
            permissions,
            NOW,
            parent=parent and example.resource(parent),
            children_only=children_only,
        )
        if {id.removeprefix("resource_"): set(slugs) for id, slugs in listed} != expected:
            wrong.append(row)
    for row in example.LIST_MEMBERS:
        place, permission, direct_only, expected = row
        listed = naive.list_members(world, example.resource(place), permission, NOW, direct_only)
        if members(listed) != expected:
            wrong.append(row)
    for row in example.LIST_PERMISSIONS:
        name, place, descendants, expected = row
        question = (example.subject(name), example.resource(place), NOW, descendants)
        if naive.list_permissions(world, *question) != expected:
            wrong.append(row)
    for row in example.EXPLANATIONS:
        name, permission, place, now = row["question"]
        answer = why(world, name, permission, place, now)
        told = {
            "question": row["question"],
            "reason": answer["reason"],
            "path": [id.removeprefix("resource_") for id in answer["resource_path"]],
            "grants": grants(answer["grants"]),
            "blocked": grants(answer["blocked_grants"]),
            "remedies": answer["remedies"],
        }
        if told != row or answer["grants_truncated"]:
            wrong.append(told)
    for name, slugs in example.MEMBERSHIP_ROLES.items():
        if [row["slug"] for row in naive.membership_roles(world, f"om_{name}", NOW)] != slugs:
            wrong.append(f"roles of {name}")
    return wrong


def test_the_worked_example(world):
    assert len(example.CHECKS) == 24
    assert len(example.ERRORS) == 5
    assert wrong_rows(world) == []


def test_the_worked_example_in_every_form_of_reference(world):
    for number, name, permission, place, now, is_allowed, *_ in example.CHECKS:
        subjects = [example.subject(name)]
        if name in example.MEMBERSHIPS:
            subjects.append(example.pair(name))
        for subject in subjects:
            for resource in (example.resource(place), example.key(place)):
                answer = naive.check(world, subject, permission, resource, now)
                assert answer["allowed"] is is_allowed, (number, subject, resource)


def _only_itself(world, resource_id):
    return [resource_id]


def _children(world, resource_id):
    inside = [id for id, row in world["resources"].items() if row["parent_id"] == resource_id]
    return [resource_id, *inside, *_PATH(world, resource_id)[1:]]


_PATH, _GROUPS_OF, _OWN_ROLES = naive.path, naive.groups_of, naive.own_roles
_ALLOWING, _ORDER = naive._allowing, naive.roles_in_order

BROKEN = {
    "nothing flows down": ("path", _only_itself),
    "something flows up": ("path", _children),
    "the end is included": ("is_valid", lambda end, now: end is None or now <= end),
    "ends are ignored": ("is_valid", lambda end, now: True),
    "groups give nothing": ("groups_of", lambda world, who: set()),
    "groups do not nest": ("groups_above", lambda world, ids: set(ids)),
    "own roles give nothing": ("own_roles", lambda membership: set()),
    "everyone is forgotten": (
        "groups_of",
        lambda world, who: {id for id in _GROUPS_OF(world, who) if id != "group_everyone"},
    ),
    "roles contain everything": (
        "_allowing",
        lambda world, who, slug, id: list(naive._held(world, who)),
    ),
    "types are not compared": ("_is_of_type", lambda world, slug, id: True),
    "roles are in reverse order": ("roles_in_order", lambda *args: _ORDER(*args)[::-1]),
    "chains are empty": ("chain", lambda world, who, group_id: ()),
    "types have no descendants": ("descendant_types", lambda world, slug: set()),
    "no pair is found": ("find_membership", lambda world, user_id, home: None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_oracle_fails_the_worked_example(world, monkeypatch, name):
    attribute, broken = BROKEN[name]
    monkeypatch.setattr(naive, attribute, broken)
    try:
        wrong = wrong_rows(world)
    except (KeyError, ValueError):
        return
    assert wrong


# --- 2.2 to 2.5: the tree, roles, grants, the decision


def test_m5_path_and_depth(world):
    assert naive.path(world, "resource_spec") == [
        f"resource_{name}" for name in ("spec", "api", "eng", "acme")
    ]
    assert naive.depth(world, "resource_acme") == 0
    assert naive.depth(world, "resource_spec") == 3


def test_m2_descendant_types(world):
    assert naive.descendant_types(world, "workspace") == {"project", "document"}
    assert naive.descendant_types(world, "document") == set()
    world["resource_types"]["project"]["parent_type_slugs"].append("project")
    assert naive.descendant_types(world, "project") == {"project", "document"}


def test_m9_a_star_is_an_ordinary_character(world):
    world["permissions"]["document:*"] = {**world["permissions"]["document:read"]}
    world = after(world, "set_role_permissions", id="role_member", permission_slugs=["document:*"])
    assert allowed(world, "dan", "document:*", "spec")
    assert not allowed(world, "dan", "document:read", "spec")


def test_m10_grants_of_every_origin_count_and_add_up(world):
    assert allowed(world, "ivy", "document:read", "leads")
    assert allowed(world, "ivy", "members:view", "acme")
    assert not allowed(world, "ivy", "document:edit", "leads")
    world = assign(world, "ivy", "project-editor", "crm")
    assert allowed(world, "ivy", "document:edit", "leads")
    assert allowed(world, "ivy", "document:read", "leads")


def test_m10_a_groups_role_on_the_organization_resource_counts(world):
    assert not allowed(world, "eve", "members:manage", "acme")
    world = assign(world, "staff", "admin", "acme")
    assert allowed(world, "eve", "members:manage", "acme")
    assert not allowed(world, "dan", "members:manage", "acme")


def test_m10_a_directory_role_is_an_own_role(world):
    assert not allowed(world, "eve", "members:manage", "acme")
    world["memberships"]["om_eve"]["directory_role_ids"] = ["role_admin"]
    assert allowed(world, "eve", "members:manage", "acme")


def test_m10a_belonging_reaches_upwards_only(world):
    of_eve = naive.groups_of(world, ("membership", "om_eve"))
    assert of_eve == {"group_writers", "group_staff", "group_everyone"}
    assert naive.groups_of(world, ("membership", "om_ann")) == {"group_everyone"}


def test_m12_a_grant_ends_exactly_at_its_end(world):
    assert allowed(world, "fay", "document:read", "spec", END - 1)
    assert not allowed(world, "fay", "document:read", "spec", END)
    assert not allowed(world, "fay", "document:read", "spec", END + 1)


def test_m14_everything_counts_again_when_the_membership_becomes_active(world):
    for name, permission, place in (
        ("gus", "document:edit", "spec"),
        ("gus", "document:read", "roadmap"),
        ("hal", "members:manage", "acme"),
    ):
        assert not allowed(world, name, permission, place)
        world["memberships"][f"om_{name}"]["status"] = "ACTIVE"
        assert allowed(world, name, permission, place)
        world["memberships"][f"om_{name}"]["status"] = "INACTIVE"


def test_m15_a_group_has_its_own_and_what_contains_it_has(world):
    assert allowed(world, "writers", "project:edit", "web")
    assert allowed(world, "writers", "project:view", "crm")
    assert allowed(world, "staff", "project:view", "crm")
    assert not allowed(world, "staff", "project:edit", "web")


def test_m15_everyone_is_asked_as_itself(world):
    assert allowed(world, "everyone", "document:read", "roadmap")
    assert not allowed(world, "staff", "document:read", "roadmap")
    assert not allowed(world, "everyone", "project:view", "crm")


def test_m15_a_group_is_asked_whatever_its_members_are(world):
    world["memberships"]["om_eve"]["status"] = "INACTIVE"
    assert allowed(world, "writers", "project:edit", "web")


def test_m16_an_organizations_key_has_its_list_everywhere_in_it(world):
    assert allowed(world, "key_ci", "document:read", "leads")
    assert not allowed(world, "key_ci", "document:edit", "leads")
    assert not allowed(world, "key_ci", "project:view", "api")


def test_m16_a_users_key_is_the_intersection(world):
    assert allowed(world, "key_dan", "project:view", "api")
    assert not allowed(world, "key_dan", "project:edit", "api")
    assert not allowed(world, "key_dan", "members:view", "acme")
    world = assign(world, "dan", "project-editor", "api")
    assert allowed(world, "key_dan", "project:edit", "api")
    world = after(world, "deactivate", id="om_dan")
    assert not allowed(world, "key_dan", "project:view", "api")


@pytest.mark.parametrize("name", ["key_ci", "key_dan"])
def test_m16_an_expired_or_revoked_key_is_denied(world, name):
    permission, place = ("document:read", "spec") if name == "key_ci" else ("project:view", "api")
    key = world["api_keys"][f"api_{name}"]
    key["expires_at"] = END
    assert allowed(world, name, permission, place, END - 1)
    assert not allowed(world, name, permission, place, END)
    key.update(expires_at=None, revoked=True)
    assert not allowed(world, name, permission, place)


# --- M17, one test per consequence


def test_m17_nothing_flows_up_or_sideways(world):
    assert allowed(world, "dan", "project:view", "api")
    assert not allowed(world, "dan", "project:view", "web")
    world = after(
        world, "add_role_permissions", id="role_member", permission_slugs=["workspace:manage"]
    )
    assert allowed(world, "dan", "workspace:manage", "eng")
    world = after(world, "set_own_roles", id="om_dan", role_ids=["role_guest"])
    assert not allowed(world, "dan", "workspace:manage", "eng")


def test_m17_a_role_without_permissions_of_a_child_type_gives_nothing_on_children(world):
    assert allowed(world, "dan", "project:view", "api")
    assert not allowed(world, "dan", "document:read", "spec")
    world = after(
        world,
        "add_role_permissions",
        id="role_project-viewer",
        permission_slugs=["document:read"],
    )
    assert allowed(world, "dan", "document:read", "spec")


def test_m17_a_new_resource_below_a_grant_is_reachable_at_once(world):
    world = after(
        world,
        "create_resource",
        id="resource_new",
        organization_id="org_acme",
        resource_type_slug="document",
        external_id="new",
        name="new",
        parent_id="resource_eng",
    )
    assert allowed(world, "cat", "document:read", "new")
    assert not allowed(world, "dan", "document:read", "new")


def test_m17_after_a_move_access_follows_the_new_ancestors(world):
    assert allowed(world, "cat", "document:read", "style")
    assert not allowed(world, "cat", "document:read", "leads")
    world = after(world, "move_resource", id="resource_web", parent_id="resource_sales")
    world = after(world, "move_resource", id="resource_crm", parent_id="resource_eng")
    assert not allowed(world, "cat", "document:read", "style")
    assert allowed(world, "cat", "document:read", "leads")
    assert allowed(world, "eve", "document:edit", "style")


def test_m17_removing_an_assignment_leaves_those_further_down(world):
    world = assign(world, "cat", "project-viewer", "web")
    world = after(world, "unassign", id="role_assignment_cat_eng")
    assert allowed(world, "cat", "project:view", "web")
    assert not allowed(world, "cat", "project:view", "api")
    assert not allowed(world, "cat", "project:edit", "web")


def test_m17_nesting_groups_changes_at_once_what_their_people_reach(world):
    world = after(world, "unnest", outer_id="group_staff", inner_id="group_writers")
    assert not allowed(world, "eve", "project:view", "crm")
    assert allowed(world, "eve", "project:edit", "web")
    world = after(world, "nest", outer_id="group_staff", inner_id="group_writers")
    assert allowed(world, "eve", "project:view", "crm")


def test_m17_editing_a_roles_permissions_changes_every_holder(world):
    world = assign(world, "hal", "workspace-admin", "sales")
    world["memberships"]["om_hal"]["status"] = "ACTIVE"
    for name, place in (("cat", "eng"), ("hal", "sales")):
        assert allowed(world, name, "workspace:manage", place)
    world = after(
        world,
        "remove_role_permissions",
        id="role_workspace-admin",
        permission_slugs=["workspace:manage"],
    )
    for name, place in (("cat", "eng"), ("hal", "sales")):
        assert not allowed(world, name, "workspace:manage", place)


# --- M18


def test_m18_the_latest_of_several_ends(world):
    assert until(world, "fay", "document:read", "spec") == END
    world = assign(world, "fay", "project-editor", "api", END + 10)
    assert until(world, "fay", "document:read", "spec") == END + 10
    world = assign(world, "everyone", "document-reader", "spec", END + 5)
    assert until(world, "fay", "document:read", "spec") == END + 10


def test_m18_unset_if_one_grant_has_no_end(world):
    assert until(world, "fay", "document:read", "spec") == END
    world = assign(world, "everyone", "document-reader", "spec")
    assert until(world, "fay", "document:read", "spec") is None


def test_m18_of_a_key_the_earlier_of_both(world):
    key = world["api_keys"]["api_key_dan"]
    world["role_assignments"]["role_assignment_dan_api"]["expires_at"] = END
    assert until(world, "key_dan", "project:view", "api") == END
    key["expires_at"] = END - 10
    assert until(world, "key_dan", "project:view", "api") == END - 10
    key["expires_at"] = END + 10
    assert until(world, "key_dan", "project:view", "api") == END
    world["role_assignments"]["role_assignment_dan_api"]["expires_at"] = None
    assert until(world, "key_dan", "project:view", "api") == END + 10
    world["api_keys"]["api_key_ci"]["expires_at"] = END
    assert until(world, "key_ci", "document:read", "spec") == END


# --- 2.6


def test_26_the_first_that_applies_is_returned(world):
    """Everything is wrong at first; each step puts one thing right and meets the next row."""

    def error(subject, permission, resource, organizations=None):
        return naive.check(world, subject, permission, resource, NOW, organizations)

    nobody, cat = ("membership", "om_nobody"), example.subject("cat")
    nothing, eng = ("id", "resource_nothing"), example.resource("eng")
    elsewhere = {"org_globex"}
    assert error(nobody, "", nothing, elsewhere) == naive.FIELD_REQUIRED
    assert error(nobody, "Not A Slug", nothing, elsewhere) == naive.FIELD_INVALID
    assert error(nobody, "no:such", nothing, elsewhere) == naive.NO_MEMBERSHIP
    assert error(cat, "no:such", nothing, elsewhere) == naive.NO_MEMBERSHIP
    assert error(cat, "no:such", nothing) == naive.NO_PERMISSION
    assert error(cat, "project:edit", nothing) == naive.NO_RESOURCE
    assert error(cat, "project:edit", eng) == naive.TYPE_MISMATCH
    assert error(cat, "workspace:view", eng) == {"allowed": True, "allowed_until": None}


@pytest.mark.parametrize(
    ("subject", "error"),
    [
        (("membership", "om_nobody"), naive.NO_MEMBERSHIP),
        (("user", "user_cat", "org_globex"), naive.NO_MEMBERSHIP),
        (("user", "user_nobody", "org_acme"), naive.NO_MEMBERSHIP),
        (("user", "user_cat", "org_nowhere"), naive.NO_MEMBERSHIP),
        (("group", "group_nobody"), naive.NO_GROUP),
        (("api_key", "api_key_nobody"), naive.NO_API_KEY),
        (None, naive.FIELD_REQUIRED),
        (("membership", ""), naive.FIELD_REQUIRED),
        (("user", "user_cat", ""), naive.FIELD_REQUIRED),
        (("membership", "x" * 65), naive.FIELD_INVALID),
    ],
)
def test_26_row_3_unknown_subjects(world, subject, error):
    spec = example.resource("spec")
    assert naive.check(world, subject, "document:read", spec, NOW) == error
    assert naive.explain(world, subject, "document:read", spec, NOW) == error
    assert naive.check_matrix(world, subject, ["document:read"], [spec], NOW) == error
    assert naive.list_resources(world, subject, ["document:read"], NOW) == error
    assert naive.list_permissions(world, subject, spec, NOW) == error


def test_26_row_4_a_restricted_credential_sees_its_organizations_only(world):
    spec = example.resource("spec")
    for name, missing in (
        ("bob", naive.NO_MEMBERSHIP),
        ("writers", naive.NO_GROUP),
        ("key_ci", naive.NO_API_KEY),
    ):
        question = (world, example.subject(name), "document:read", spec, NOW)
        assert not naive.is_error(naive.check(*question, {"org_acme"}))
        assert naive.check(*question, {"org_globex"}) == missing
        assert naive.check(*question, set()) == missing
    assert naive.list_members(world, spec, "document:read", NOW, organizations={"org_acme"})
    hidden = naive.list_members(world, spec, "document:read", NOW, organizations={"org_globex"})
    assert hidden == naive.NO_RESOURCE


@pytest.mark.parametrize(
    "resource",
    [
        ("id", "resource_nothing"),
        ("id", "resource_hq"),
        ("key", "org_globex", "workspace", "hq"),
        ("key", "org_acme", "workspace", "hq"),
        ("key", "org_acme", "document", "api"),
        ("key", "org_acme", "no-such-type", "api"),
        ("key", "org_nowhere", "project", "api"),
        ("key", "org_acme", "organization", "acme"),
    ],
)
def test_26_row_6_unknown_and_foreign_resources(world, resource):
    for name in ("ann", "gus", "writers", "key_ci"):
        subject = example.subject(name)
        assert naive.check(world, subject, "project:view", resource, NOW) == naive.NO_RESOURCE
        assert naive.list_permissions(world, subject, resource, NOW) == naive.NO_RESOURCE
        listed = naive.list_resources(world, subject, ["project:view"], NOW, parent=resource)
        assert listed == naive.NO_RESOURCE


@pytest.mark.parametrize(
    ("resource", "error"),
    [
        (None, naive.FIELD_REQUIRED),
        (("id", ""), naive.FIELD_REQUIRED),
        (("key", "", "project", "api"), naive.FIELD_REQUIRED),
        (("key", "org_acme", "project", ""), naive.FIELD_REQUIRED),
        (("key", "org_acme", "Project", "api"), naive.FIELD_INVALID),
        (("key", "org_acme", "project", " api"), naive.FIELD_INVALID),
        (("key", "org_acme", "project", "é"), naive.FIELD_INVALID),
        (("key", "org_acme", "project", "x" * 129), naive.FIELD_INVALID),
    ],
)
def test_26_row_1_comes_before_the_subject_is_looked_up(world, resource, error):
    subject = ("membership", "om_nobody")
    assert naive.check(world, subject, "project:view", resource, NOW) == error
    assert naive.list_permissions(world, subject, resource, NOW) == error
    assert naive.list_members(world, resource, "project:view", NOW) == error


def test_26_row_1_in_every_question(world):
    nobody, nothing = ("membership", "om_nobody"), ("id", "resource_nothing")
    bad = "Not A Slug"

    def lists(slugs, parent=None, kinds=()):
        return naive.list_resources(
            world, nobody, slugs, NOW, parent=parent, resource_type_slugs=kinds
        )

    fine = ["project:view"]
    assert lists(fine) == naive.NO_MEMBERSHIP
    assert lists([bad]) == naive.FIELD_INVALID
    assert lists([]) == naive.FIELD_REQUIRED
    assert lists(fine, parent=("id", "")) == naive.FIELD_REQUIRED
    assert lists(fine, kinds=["Not A Type"]) == naive.FIELD_INVALID
    assert lists(fine * 10, kinds=["project"] * 10) == naive.NO_MEMBERSHIP
    assert naive.check_matrix(world, nobody, [bad], [nothing], NOW) == naive.FIELD_INVALID
    assert naive.check_matrix(world, nobody, fine, [nothing], NOW) == naive.NO_MEMBERSHIP
    assert naive.list_members(world, nothing, bad, NOW) == naive.FIELD_INVALID
    assert naive.list_members(world, nothing, "", NOW) == naive.FIELD_REQUIRED
    assert naive.list_permissions(world, ("group", ""), nothing, NOW) == naive.FIELD_REQUIRED
    assert naive.check(world, nobody, bad, None, NOW) == naive.FIELD_INVALID
    assert naive.check(world, nobody, "project:view", None, NOW) == naive.FIELD_REQUIRED


def test_26_list_members_knows_rows_5_to_7(world):
    eng, nothing = example.resource("eng"), ("id", "resource_nothing")
    assert naive.list_members(world, nothing, "no:such", NOW) == naive.NO_PERMISSION
    assert naive.list_members(world, nothing, "project:view", NOW) == naive.NO_RESOURCE
    assert naive.list_members(world, eng, "project:view", NOW) == naive.TYPE_MISMATCH


# --- M20, M20a


def test_m20_every_item_is_answered_like_check(world):
    items = [
        (example.subject("bob"), "document:read", example.resource("leads")),
        (example.subject("bob"), "no:such", example.resource("leads")),
        (example.subject("bob"), "document:edit", example.resource("leads")),
    ]
    answers = naive.batch_check(world, items, NOW)
    assert [naive.is_error(a) or a["allowed"] for a in answers] == [True, True, False]
    assert answers[1] == naive.NO_PERMISSION
    assert naive.batch_check(world, [], NOW) == naive.FIELD_REQUIRED


def test_m20a_rows_of_booleans_or_an_error(world):
    cat = example.subject("cat")
    resources = [example.resource(name) for name in ("eng", "web", "hq", "crm")]
    slugs = ["project:view", "workspace:view", "project:view"]
    assert naive.check_matrix(world, cat, slugs, resources, NOW) == [
        [False, True, False],
        [True, False, True],
        naive.NO_RESOURCE,
        [False, False, False],
    ]


def test_m20a_errors_of_the_call(world):
    cat, eng = example.subject("cat"), example.resource("eng")
    for slugs, resources, error in (
        ([], [eng], naive.FIELD_REQUIRED),
        (["project:view"], [], naive.FIELD_REQUIRED),
        (["project:view", "no:such"], [eng], naive.NO_PERMISSION),
        (["project:view"] * 51, [eng], naive.TOO_LARGE),
        (["project:view"], [eng] * 1001, naive.TOO_LARGE),
        (["project:view"], [eng, ("id", "")], naive.FIELD_REQUIRED),
    ):
        assert naive.check_matrix(world, cat, slugs, resources, NOW) == error
    assert len(naive.check_matrix(world, cat, ["project:view"] * 50, [eng] * 1000, NOW)) == 1000


# --- M22 to M26


def listed(world, name, permissions, **options):
    """The ids that ListResources gives, in order."""
    rows = naive.list_resources(world, example.subject(name), permissions, NOW, **options)
    assert not naive.is_error(rows), rows
    return [id.removeprefix("resource_") for id, _ in rows]


def test_m22_strictly_below_the_parent_newest_first(world):
    documents = ["style", "spec", "roadmap", "leads", "handbook"]
    assert listed(world, "bob", ["document:read"]) == documents
    assert listed(world, "bob", ["document:read"], parent=example.resource("eng")) == [
        name for name in documents if name != "leads"
    ]
    assert listed(world, "bob", ["document:read"], parent=example.resource("spec")) == []
    assert listed(world, "ann", ["organization:view"]) == []


def test_m22_the_parent_need_not_be_accessible(world):
    assert not allowed(world, "dan", "workspace:view", "eng")
    assert listed(world, "dan", ["project:view"], parent=example.key("eng")) == ["api"]


def test_m22_children_only_and_types(world):
    permissions = ["project:view", "document:read"]
    eng = example.resource("eng")
    assert listed(world, "bob", permissions, parent=eng) == [
        *("web", "style", "spec", "roadmap", "handbook", "api")
    ]
    children = listed(world, "bob", permissions, parent=eng, children_only=True)
    assert children == ["web", "handbook", "api"]
    only = listed(
        world, "bob", permissions, parent=eng, children_only=True, resource_type_slugs=["project"]
    )
    assert only == ["web", "api"]


def test_m22_rows_say_which_of_the_permissions(world):
    rows = naive.list_resources(
        world, example.subject("dan"), ["project:edit", "document:read", "project:view"], NOW
    )
    assert rows == [("resource_roadmap", ["document:read"]), ("resource_api", ["project:view"])]


def test_m22_errors(world):
    bob = example.subject("bob")
    hq = example.resource("hq")
    types = ["no-such-type"]
    for slugs, parent, kinds, error in (
        ([], hq, types, naive.FIELD_REQUIRED),
        (["project:view"] * 11, hq, types, naive.TOO_LARGE),
        (["project:view"], hq, ["project"] * 11, naive.TOO_LARGE),
        (["no:such"], hq, types, naive.NO_PERMISSION),
        (["project:view"], hq, types, naive.NO_RESOURCE),
        (["project:view"], None, types, naive.NO_TYPE),
    ):
        answer = naive.list_resources(
            world, bob, slugs, NOW, parent=parent, resource_type_slugs=kinds
        )
        assert answer == error
    assert listed(world, "bob", ["project:view"] * 10) == ["web", "crm", "api"]
    every_type = list(example.TYPES)
    assert listed(world, "bob", ["project:view"], resource_type_slugs=every_type) == [
        *("web", "crm", "api")
    ]


def test_m22_for_groups_and_keys(world):
    assert listed(world, "writers", ["project:view"]) == ["web", "crm"]
    assert listed(world, "staff", ["project:view"]) == ["crm"]
    assert listed(world, "key_dan", ["project:view", "project:edit"]) == ["api"]
    assert listed(world, "key_ci", ["document:read", "project:view"]) == [
        *("style", "spec", "roadmap", "leads", "handbook")
    ]


def test_m23_newest_first_and_active_only(world):
    rows = naive.list_members(world, example.resource("roadmap"), "document:read", NOW)
    assert [row["membership_id"] for row in rows] == [
        f"om_{name}" for name in ("ivy", "fay", "eve", "dan", "cat", "bob", "ann")
    ]


def test_m23_direct_only_needs_a_grant_on_that_very_resource(world):
    world = assign(world, "cat", "project-viewer", "web")
    rows = naive.list_members(world, example.resource("web"), "project:view", NOW)
    assert [slug for slug, *_ in members(rows)["cat"]] == ["project-viewer", "workspace-admin"]
    rows = naive.list_members(world, example.resource("web"), "project:view", NOW, True)
    assert set(members(rows)) == {"cat", "eve"}
    assert [slug for slug, *_ in members(rows)["cat"]] == ["project-viewer"]


def test_m23_own_roles_are_direct_on_the_organization_resource(world):
    rows = naive.list_members(world, example.resource("acme"), "members:manage", NOW, True)
    assert set(members(rows)) == {"ann", "bob"}


def test_m23_expired_grants_are_left_out(world):
    spec = example.resource("spec")
    assert "fay" in members(naive.list_members(world, spec, "document:read", END - 1))
    assert "fay" not in members(naive.list_members(world, spec, "document:read", END))


def test_m23_order_of_grants(world):
    """Nearest, then role, then own before a group's, then the assignment's id."""
    for group in ("writers", "staff", "everyone"):
        world = assign(world, group, "admin", "acme", id=f"role_assignment_{group}_admin")
    world = assign(world, "writers", "org-auditor", "acme", id="role_assignment_0")
    world = assign(world, "bob", "workspace-admin", "eng", id="role_assignment_2")
    world = assign(world, "everyone", "workspace-admin", "eng", id="role_assignment_1")
    world = assign(world, "bob", "document-reader", "spec", id="role_assignment_3")
    world = after(world, "add_member", group_id="group_writers", membership_id="om_bob")
    rows = naive.list_members(world, example.resource("spec"), "document:read", NOW)
    assert members(rows)["bob"] == [
        ("document-reader", "spec", ("role_assignment", "role_assignment_3")),
        ("workspace-admin", "eng", ("role_assignment", "role_assignment_2")),
        ("workspace-admin", "eng", ("group", "group_everyone", "role_assignment_1", ())),
        ("admin", "acme", example.OWN_ROLE),
        ("admin", "acme", ("group", "group_everyone", "role_assignment_everyone_admin", ())),
        (
            "admin",
            "acme",
            ("group", "group_staff", "role_assignment_staff_admin", ("group_writers",)),
        ),
        ("admin", "acme", ("group", "group_writers", "role_assignment_writers_admin", ())),
        ("org-auditor", "acme", ("group", "group_writers", "role_assignment_0", ())),
    ]


def test_m23_at_most_fifty_grants(world):
    def grants_of_ivy(count):
        crowded = world
        for number in range(count):
            role = f"role_{number:02}"
            crowded = {
                **crowded,
                "roles": {**crowded["roles"], role: {**world["roles"]["role_document-reader"]}},
            }
            crowded = assign(crowded, "ivy", f"{number:02}", "spec")
        rows = naive.list_members(crowded, example.resource("spec"), "document:read", NOW, True)
        return next(row for row in rows if row["membership_id"] == "om_ivy")

    assert len(grants_of_ivy(50)["grants"]) == 50
    assert not grants_of_ivy(50)["grants_truncated"]
    assert len(grants_of_ivy(51)["grants"]) == 50
    assert grants_of_ivy(51)["grants_truncated"]


def test_shortest_chain_and_its_judge(world):
    """eve is in writers; two chains of equal length lead to top, a longer one too."""
    for name in ("left", "right", "long", "top", "lonely"):
        world = after(
            world, "create_group", id=f"group_{name}", organization_id="org_acme", name=name
        )
    for outer, inner in (
        ("left", "writers"),
        ("right", "writers"),
        ("top", "left"),
        ("top", "right"),
        ("long", "left"),
        ("top", "long"),
    ):
        world = after(world, "nest", outer_id=f"group_{outer}", inner_id=f"group_{inner}")
    eve = ("membership", "om_eve")
    assert naive.chain(world, eve, "group_top") == ("group_writers", "group_left")
    judge = {
        ("group_writers", "group_left"): True,
        ("group_writers", "group_right"): True,
        ("group_writers", "group_left", "group_long"): False,
        ("group_left",): False,
        ("group_left", "group_writers"): False,
        ("group_writers", "group_staff"): False,
        (): False,
    }
    for chain, right in judge.items():
        assert naive.is_valid_chain(world, eve, "group_top", chain) is right, chain
    assert naive.is_valid_chain(world, eve, "group_writers", ())
    assert naive.is_valid_chain(world, eve, "group_everyone", ())
    assert not naive.is_valid_chain(world, eve, "group_everyone", ("group_writers",))
    assert not naive.is_valid_chain(world, eve, "group_lonely", ())
    # A group's chain begins with the group that contains it.
    assert naive.chain(world, ("group", "group_writers"), "group_top") == ("group_left",)


def test_m24_own_type_and_descendants(world):
    def names(name, place, descendants=False):
        subject = example.subject(name)
        return naive.list_permissions(world, subject, example.resource(place), NOW, descendants)

    assert names("dan", "api") == ["project:view"]
    assert names("cat", "api") == ["project:edit", "project:view"]
    assert names("cat", "api", True) == ["document:read", "project:edit", "project:view"]
    assert names("bob", "acme", True) == sorted(example.ROLES["admin"][2])
    assert names("key_ci", "acme") == []
    assert names("key_ci", "acme", True) == ["document:read"]
    assert names("key_dan", "eng", True) == []
    assert names("writers", "web", True) == [
        *("document:edit", "document:read", "project:edit", "project:view")
    ]


def test_m25_empty_answers(world):
    world["api_keys"]["api_key_ci"]["revoked"] = True
    world["api_keys"]["api_key_dan"]["expires_at"] = NOW
    for name, permission in (
        ("gus", "project:view"),
        ("hal", "members:manage"),
        ("key_ci", "document:read"),
        ("key_dan", "project:view"),
    ):
        assert listed(world, name, [permission]) == []
        for place in ("acme", "api"):
            subject = example.subject(name)
            resource = example.resource(place)
            assert naive.list_permissions(world, subject, resource, NOW, True) == []
    rows = naive.list_members(world, example.resource("api"), "project:edit", NOW)
    assert "gus" not in members(rows)


# --- M27 to M29


def test_m28_reasons_of_keys_in_order(world):
    key = world["api_keys"]["api_key_dan"]
    key.update(expires_at=NOW, revoked=True, permission_slugs=[])
    found = []
    for change in (
        {"expires_at": None},
        {"revoked": False},
        {"permission_slugs": ["project:edit"]},
    ):
        found.append(why(world, "key_dan", "project:edit", "api")["reason"])
        key.update(change)
    found.append(why(world, "key_dan", "project:edit", "api")["reason"])
    world = assign(world, "dan", "project-editor", "api")
    found.append(why(world, "key_dan", "project:edit", "api")["reason"])
    assert found == [
        "API_KEY_EXPIRED",
        "API_KEY_REVOKED",
        "API_KEY_PERMISSION_MISSING",
        "API_KEY_OWNER_DENIED",
        "GRANTED",
    ]


def test_m28_status_comes_before_grants_and_not_for_owners_of_keys(world):
    world["memberships"]["om_fay"]["status"] = "INACTIVE"
    assert why(world, "fay", "document:read", "spec", END)["reason"] == "MEMBERSHIP_INACTIVE"
    world = after(world, "deactivate", id="om_dan")
    assert why(world, "dan", "project:view", "api")["reason"] == "MEMBERSHIP_INACTIVE"
    answer = why(world, "key_dan", "project:view", "api")
    assert answer["reason"] == "API_KEY_OWNER_DENIED"
    assert grants(answer["blocked_grants"]) == [
        ("project-viewer", "api", None, example.assigned("dan", "api"))
    ]
    assert answer["remedies"] == [(("REACTIVATE_MEMBERSHIP",),)]


def test_m28_an_expired_grant_of_a_group(world):
    world["role_assignments"]["role_assignment_staff_crm"]["expires_at"] = END
    for name in ("staff", "writers", "eve"):
        assert why(world, name, "project:view", "crm", END - 1)["reason"] == "GRANTED"
        assert why(world, name, "project:view", "crm", END)["reason"] == "GRANT_EXPIRED"
    assert why(world, "dan", "project:view", "crm", END)["reason"] == "NO_GRANT"


def test_m27_blocked_beside_allowing_grants(world):
    world = assign(world, "everyone", "document-reader", "spec")
    answer = why(world, "fay", "document:read", "spec", END)
    assert answer["reason"] == "GRANTED"
    assert [grant[0:3] for grant in grants(answer["grants"])] == [("document-reader", "spec", None)]
    assert [grant[0:3] for grant in grants(answer["blocked_grants"])] == [
        ("document-reader", "spec", END)
    ]
    assert answer["remedies"] == []


def test_m27_grants_of_keys(world):
    world["api_keys"]["api_key_ci"]["expires_at"] = END
    grant = (None, "acme", END, ("api_key", "api_key_ci"))
    answer = why(world, "key_ci", "document:read", "spec", END - 1)
    assert (grants(answer["grants"]), answer["blocked_grants"]) == ([grant], [])
    answer = why(world, "key_ci", "document:read", "spec", END)
    assert (answer["grants"], grants(answer["blocked_grants"])) == ([], [grant])
    assert answer["remedies"] == [(("REPLACE_API_KEY",),)]
    owners = [("project-viewer", "api", None, example.assigned("dan", "api"))]
    assert grants(why(world, "key_dan", "project:view", "api")["grants"]) == owners
    world["api_keys"]["api_key_dan"]["revoked"] = True
    assert grants(why(world, "key_dan", "project:view", "api")["blocked_grants"]) == owners
    world["api_keys"]["api_key_dan"]["permission_slugs"] = []
    assert why(world, "key_dan", "project:view", "api")["blocked_grants"] == []


def test_m27_at_most_a_thousand_grants(world):
    rows = world["role_assignments"]
    for number in range(1001):
        world["groups"][f"group_{number}"] = {
            **world["groups"]["group_writers"],
            "membership_ids": ["om_eve"],
        }
        rows[f"role_assignment_{number}"] = {
            **rows["role_assignment_writers_web"],
            "subject": ("group", f"group_{number}"),
            "expires_at": NOW if number % 2 else None,
        }
    answer = why(world, "eve", "project:edit", "web")
    assert (len(answer["grants"]), len(answer["blocked_grants"])) == (502, 500)
    assert not answer["grants_truncated"]
    for row in rows.values():
        row["expires_at"] = None
    answer = why(world, "eve", "project:edit", "web")
    assert (len(answer["grants"]), answer["grants_truncated"]) == (1000, True)
    # That were 1,002, with the one to writers; exactly 1,000 are not cut.
    del rows["role_assignment_0"], rows["role_assignment_1"]
    answer = why(world, "eve", "project:edit", "web")
    assert (len(answer["grants"]), answer["grants_truncated"]) == (1000, False)
    rows["role_assignment_0"] = {**rows["role_assignment_2"], "subject": ("group", "group_0")}
    for row in rows.values():
        row["expires_at"] = NOW
    answer = why(world, "eve", "project:edit", "web")
    assert (len(answer["blocked_grants"]), answer["grants_truncated"]) == (1000, True)


def steps(world, name, permission, place, now=NOW):
    """The last steps of the remedies, which all have the same steps before."""
    remedies = why(world, name, permission, place, now)["remedies"]
    assert len({remedy[:-1] for remedy in remedies}) <= 1
    return [remedy[-1] for remedy in remedies]


def test_m29_extensions_first_then_nearest_then_role_then_assignment(world):
    expired = {"expires_at": END}
    world["role_assignments"]["role_assignment_writers_web"].update(expired)
    world["role_assignments"]["role_assignment_staff_crm"].update(expired)
    for name, role, place, id in (
        ("everyone", "project-editor", "web", "role_assignment_0"),
        ("staff", "workspace-admin", "eng", "role_assignment_1"),
        ("eve", "workspace-admin", "eng", "role_assignment_2"),
        ("eve", "project-viewer", "web", "role_assignment_3"),
    ):
        world = assign(world, name, role, place, END, id)
    assert steps(world, "eve", "project:edit", "web", END) == [
        ("EXTEND_ASSIGNMENT", "role_assignment_0"),
        ("EXTEND_ASSIGNMENT", "role_assignment_writers_web"),
        ("EXTEND_ASSIGNMENT", "role_assignment_1"),
        ("EXTEND_ASSIGNMENT", "role_assignment_2"),
        # A group's role is offered beside its extension, the own workspace-admin is not.
        ("ASSIGN_ROLE", "role_project-editor", "resource_web"),
    ]


def test_m29_a_groups_own_and_outer_assignments(world):
    for name in ("writers", "staff"):
        world = assign(world, name, "admin", "acme", END)
    assert steps(world, "writers", "members:manage", "acme", END) == [
        ("EXTEND_ASSIGNMENT", "role_assignment_staff_admin_acme"),
        ("EXTEND_ASSIGNMENT", "role_assignment_writers_admin_acme"),
        ("ASSIGN_ROLE", "role_owner", "resource_acme"),
    ]
    world = after(world, "unassign", id="role_assignment_writers_admin_acme")
    assert steps(world, "writers", "members:manage", "acme", END) == [
        ("EXTEND_ASSIGNMENT", "role_assignment_staff_admin_acme"),
        ("ASSIGN_ROLE", "role_owner", "resource_acme"),
        ("ASSIGN_ROLE", "role_admin", "resource_acme"),
    ]


def test_m29_roles_of_a_membership_instead_of_an_assignment_on_the_organization(world):
    assert steps(world, "dan", "members:manage", "acme") == [
        ("UPDATE_MEMBERSHIP_ROLES", "role_owner"),
        ("UPDATE_MEMBERSHIP_ROLES", "role_admin"),
    ]
    assert steps(world, "writers", "members:manage", "acme") == [
        ("ASSIGN_ROLE", "role_owner", "resource_acme"),
        ("ASSIGN_ROLE", "role_admin", "resource_acme"),
    ]


def test_m29_define_role_if_no_usable_role_contains_it(world):
    world = after(
        world,
        "remove_role_permissions",
        id="role_project-editor",
        permission_slugs=["document:edit"],
    )
    assert steps(world, "dan", "document:edit", "spec") == [("DEFINE_ROLE",)]
    assert why(world, "gus", "document:edit", "spec")["remedies"] == [
        (("REACTIVATE_MEMBERSHIP",), ("DEFINE_ROLE",))
    ]


def test_m29_roles_of_other_organizations_are_no_remedy(world):
    assert ("UPDATE_MEMBERSHIP_ROLES", "role_org-auditor") in steps(
        world, "dan", "document:read", "spec"
    )
    world["roles"]["role_org-auditor"]["organization_id"] = "org_globex"
    world["memberships"]["om_ivy"]["direct_role_ids"] = ["role_member"]
    assert ("UPDATE_MEMBERSHIP_ROLES", "role_org-auditor") not in steps(
        world, "dan", "document:read", "spec"
    )


def test_m29_steps_of_a_key_and_of_its_owner_together(world):
    world = after(world, "deactivate", id="om_dan")
    key = world["api_keys"]["api_key_dan"]
    key.update(revoked=True, permission_slugs=[])
    assert why(world, "key_dan", "project:edit", "web")["remedies"] == [
        (
            ("REPLACE_API_KEY",),
            ("ADD_API_KEY_PERMISSION",),
            ("REACTIVATE_MEMBERSHIP",),
            ("ASSIGN_ROLE", f"role_{role}", f"resource_{place}"),
        )
        for role, place in (("project-editor", "web"), ("workspace-admin", "eng"))
    ]
    assert why(world, "key_dan", "members:view", "acme")["remedies"] == []


def test_m29_at_most_twenty(world):
    reader = world["roles"]["role_document-reader"]
    for number in range(30):
        world["roles"][f"role_{number:02}"] = {**reader, "slug": f"reader-{number}"}
    answer = why(world, "dan", "document:read", "spec")
    assert len(answer["remedies"]) == 20
    assert answer["remedies"][-1][-1] == ("ASSIGN_ROLE", "role_19", "resource_spec")


# --- 3.3, RO4, LO1


def test_33_roles_with_sources_in_priority_order(world):
    world = assign(world, "writers", "admin", "acme", END)
    world = assign(world, "staff", "admin", "acme")
    world = assign(world, "everyone", "guest", "acme")
    world = assign(world, "everyone", "member", "acme", NOW + 1)
    world["memberships"]["om_eve"]["directory_role_ids"] = ["role_guest", "role_member"]
    both, everyone = ["group_staff", "group_writers"], ["group_everyone"]

    def rows(now):
        return [
            (row["slug"], row["sources"], row["group_ids"])
            for row in naive.membership_roles(world, "om_eve", now)
        ]

    assert rows(NOW) == [
        ("admin", ["GROUP"], both),
        ("member", ["DIRECT", "DIRECTORY", "GROUP"], everyone),
        ("guest", ["DIRECTORY", "GROUP"], everyone),
    ]
    assert rows(END) == [
        ("admin", ["GROUP"], ["group_staff"]),
        ("member", ["DIRECT", "DIRECTORY"], []),
        ("guest", ["DIRECTORY", "GROUP"], everyone),
    ]
    assert naive.membership_role(world, "om_eve", NOW) == "admin"
    assert naive.membership_role(world, "om_dan", NOW) == "member"
    world["memberships"]["om_eve"]["status"] = "INACTIVE"
    assert naive.membership_role(world, "om_eve", NOW) == "admin"


def test_ro4_priority_of_an_organization(world):
    environment = ["role_owner", "role_admin", "role_member", "role_guest"]
    world["roles"]["role_0"] = {**world["roles"]["role_org-auditor"], "slug": "org-0"}
    assert naive.role_priority(world) == environment
    assert naive.role_priority(world, "org_globex") == environment
    derived = [*environment, "role_0", "role_org-auditor"]
    assert naive.role_priority(world, "org_acme") == derived
    world = after(world, "set_priority", organization_id="org_acme", role_ids=derived[::-1])
    assert naive.role_priority(world, "org_acme") == derived[::-1]
    assert naive.role_priority(world) == environment
    assert naive.membership_role(world, "om_ivy", NOW) == "org-auditor"
    assert naive.roles_in_order(world, "org_acme") == [
        *derived[::-1],
        *("role_document-reader", "role_project-editor", "role_project-viewer"),
        "role_workspace-admin",
    ]
    world = after(world, "set_priority", organization_id="org_acme", role_ids=[])
    assert naive.role_priority(world, "org_acme") == derived
    assert naive.membership_role(world, "om_ivy", NOW) == "member"


def test_ro4_new_roles_go_last(world):
    order = ["role_guest", "role_org-auditor", "role_owner", "role_admin", "role_member"]
    world = after(world, "set_priority", organization_id="org_acme", role_ids=order)
    fields = {"name": "new", "resource_type_slug": "organization", "permission_slugs": []}
    world = after(world, "create_role", id="role_1", organization_id=None, slug="new", **fields)
    world = after(
        world, "create_role", id="role_0", organization_id="org_globex", slug="org-new", **fields
    )
    assert naive.role_priority(world, "org_acme") == [*order, "role_1"]
    assert naive.role_priority(world)[-1] == "role_1"
    assert naive.role_priority(world, "org_globex")[-2:] == ["role_1", "role_0"]


LAST_OWNER = ("FAILED_PRECONDITION", "LAST_OWNER")


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("set_own_roles", {"id": "om_ann", "role_ids": ["role_admin"]}),
        ("deactivate", {"id": "om_ann"}),
        ("delete_membership", {"id": "om_ann"}),
        ("delete_user", {"id": "user_ann"}),
        ("delete_role", {"id": "role_owner", "replacement_role_id": "role_admin"}),
    ],
)
def test_lo1_the_last_owner_stays(world, op, fields):
    assert naive.owners(world, "org_acme") == {"om_ann"}
    assert refusal(world, op, **fields) == LAST_OWNER
    # A pending or inactive owner, or one through a group, is none.
    world = after(world, "set_own_roles", id="om_gus", role_ids=["role_owner"])
    world = after(world, "set_own_roles", id="om_hal", role_ids=["role_owner"])
    world = assign(world, "everyone", "owner", "acme")
    assert refusal(world, op, **fields) == LAST_OWNER
    world["configuration"]["last_owner_guard_enabled"] = False
    assert naive.owners(after(world, op, **fields), "org_acme") == set()
    world["configuration"]["last_owner_guard_enabled"] = True
    if op != "delete_role":
        world = after(world, "set_own_roles", id="om_bob", role_ids=["role_owner"])
        assert naive.owners(after(world, op, **fields), "org_acme") == {"om_bob"}


def test_lo1_deleting_the_organization_is_exempt(world):
    world = after(world, "delete_organization", id="org_acme")
    assert not world["memberships"]
    assert list(world["resources"]) == ["resource_globex", "resource_hq"]
    assert list(world["groups"]) == ["group_globex_everyone"]
    assert not world["role_assignments"]
    assert not world["api_keys"]
    assert "role_org-auditor" not in world["roles"]
    assert worlds.problems(worlds.rename(world, shaped_ids(world))) == []


# --- Effects of writes that the properties below do not reach by themselves


def test_ro7_replacing_a_role_merges_and_the_later_end_wins(world):
    world = assign(world, "cat", "project-viewer", "web", END + 5)
    world = assign(world, "cat", "project-editor", "web", END)
    world = assign(world, "dan", "project-editor", "api", END)
    world = assign(world, "bob", "project-viewer", "web", NOW + 1)
    use = {"id": "role_project-viewer", "replacement_role_id": None}
    assert refusal(world, "delete_role", **use) == ("FAILED_PRECONDITION", "ROLE_IN_USE")
    use["replacement_role_id"] = "role_project-editor"
    world["role_assignments"]["role_assignment_bob_project-viewer_web"]["expires_at"] = NOW
    world = after(world, "delete_role", **use)
    ends = {
        (row["subject"][1], row["resource_id"]): row["expires_at"]
        for row in world["role_assignments"].values()
        if row["role_id"] == "role_project-editor"
    }
    assert ends == {
        ("om_cat", "resource_web"): END + 5,
        ("om_dan", "resource_api"): None,
        ("om_gus", "resource_api"): None,
        ("group_writers", "resource_web"): None,
        ("group_staff", "resource_crm"): None,
    }


def test_ro7_replacements_that_do_not_fit(world):
    world = assign(world, "eve", "document-reader", "style")
    for replacement in ("role_project-viewer", "role_document-reader", "role_nothing"):
        use = {"id": "role_document-reader", "replacement_role_id": replacement}
        error = ("INVALID_ARGUMENT", "REPLACEMENT_ROLE_INVALID")
        assert refusal(world, "delete_role", **use) == error
    default = {"id": "role_member", "replacement_role_id": "role_guest"}
    assert refusal(world, "delete_role", **default) == ("FAILED_PRECONDITION", "ROLE_IS_DEFAULT")
    own = {"id": "role_admin", "replacement_role_id": "role_org-auditor"}
    assert refusal(world, "delete_role", **own)[1] == "REPLACEMENT_ROLE_INVALID"
    own = {"id": "role_org-auditor", "replacement_role_id": "role_member"}
    world = after(world, "delete_role", **own)
    assert world["memberships"]["om_ivy"]["direct_role_ids"] == ["role_member"]
    assert "role_org-auditor" in world["ghosts"]


def test_ra1_ra2_an_expired_assignment_makes_room(world):
    again = ("fay", "document-reader", "spec")
    fields = {
        "id": "role_assignment_again",
        "subject": ("membership", "om_fay"),
        "role_id": "role_document-reader",
        "resource_id": "resource_spec",
        "expires_at": None,
    }
    assert refusal(world, "assign", **fields) == ("ALREADY_EXISTS", "ROLE_ASSIGNMENT_EXISTS")
    world["role_assignments"]["role_assignment_fay_spec"]["expires_at"] = NOW
    world = assign(world, *again, id="role_assignment_again")
    assert "role_assignment_fay_spec" not in world["role_assignments"]
    assert until(world, "fay", "document:read", "spec") is None


@pytest.mark.parametrize(
    ("name", "role", "place", "error"),
    [
        ("dan", "admin", "acme", ("INVALID_ARGUMENT", "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY")),
        ("dan", "project-viewer", "eng", ("INVALID_ARGUMENT", "ROLE_RESOURCE_TYPE_MISMATCH")),
        ("dan", "workspace-admin", "hq", ("NOT_FOUND", "RESOURCE_NOT_FOUND")),
        ("globex_everyone", "org-auditor", "globex", ("NOT_FOUND", "ROLE_NOT_FOUND")),
        ("nobody", "project-viewer", "api", ("NOT_FOUND", "MEMBERSHIP_NOT_FOUND")),
    ],
)
def test_assignments_that_are_refused(world, name, role, place, error):
    with pytest.raises(worlds.Refused) as caught:
        assign(world, name, role, place)
    assert caught.value.error == error


def test_rs7_cascades_of_a_user(world):
    world = after(world, "delete_user", id="user_dan")
    assert "om_dan" not in world["memberships"]
    assert "role_assignment_dan_api" not in world["role_assignments"]
    assert list(world["api_keys"]) == ["api_key_ci"]
    question = ("project:view", example.resource("api"), NOW)
    assert naive.check(world, example.subject("key_dan"), *question) == naive.NO_API_KEY
    assert naive.check(world, example.pair("dan"), *question) == naive.NO_MEMBERSHIP


def test_gr2_groups_make_no_cycle_and_no_more_than_eight_levels(world):
    cycle = {"outer_id": "group_writers", "inner_id": "group_staff"}
    assert refusal(world, "nest", **cycle) == ("FAILED_PRECONDITION", "GROUP_CYCLE")
    itself = {"outer_id": "group_writers", "inner_id": "group_writers"}
    assert refusal(world, "nest", **itself) == ("FAILED_PRECONDITION", "GROUP_CYCLE")
    built_in = {"outer_id": "group_everyone", "inner_id": "group_staff"}
    assert refusal(world, "nest", **built_in) == ("FAILED_PRECONDITION", "GROUP_BUILT_IN")
    outer = "group_staff"
    for number in range(3, 9):
        id = f"group_{number}"
        world = after(world, "create_group", id=id, organization_id="org_acme", name="level")
        world = after(world, "nest", outer_id=id, inner_id=outer)
        outer = id
    world = after(world, "create_group", id="group_9", organization_id="org_acme", name="level")
    too_deep = ("FAILED_PRECONDITION", "GROUP_DEPTH_EXCEEDED")
    assert refusal(world, "nest", outer_id="group_9", inner_id=outer) == too_deep
    assert refusal(world, "nest", outer_id="group_writers", inner_id="group_9") == too_deep
    assert naive.groups_of(world, ("membership", "om_eve")) >= {"group_8", "group_writers"}


def test_rs4_moves_that_are_refused(world):
    world["resource_types"]["workspace"]["parent_type_slugs"].append("workspace")
    under = {"id": "resource_eng", "parent_id": "resource_sales"}
    moved = after(world, "move_resource", **under)
    back = {"id": "resource_sales", "parent_id": "resource_eng"}
    assert refusal(moved, "move_resource", **back) == ("FAILED_PRECONDITION", "RESOURCE_CYCLE")
    world["configuration"]["resource_depth_max"] = 3
    too_deep = ("FAILED_PRECONDITION", "RESOURCE_DEPTH_EXCEEDED")
    assert refusal(world, "move_resource", **under) == too_deep
    document = {"id": "resource_spec", "parent_id": "resource_acme"}
    assert refusal(world, "move_resource", **document)[1] == "RESOURCE_PARENT_TYPE_NOT_ALLOWED"
    foreign = {"id": "resource_api", "parent_id": "resource_hq"}
    assert refusal(world, "move_resource", **foreign) == ("NOT_FOUND", "RESOURCE_NOT_FOUND")
    root = {"id": "resource_acme", "parent_id": "resource_eng"}
    assert refusal(world, "move_resource", **root)[1] == "ORGANIZATION_RESOURCE_IMMUTABLE"


# --- Properties on random worlds

quick = settings(
    # The same worlds every day; other ones every night.
    derandomize=not is_nightly(),
    database=None,
    deadline=None,
    max_examples=how_many("oracle"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _allowed(world, subject, permission, resource, now=worlds.NOW):
    answer = naive.check(world, subject, permission, resource, now)
    return not naive.is_error(answer) and answer["allowed"]


@quick
@given(worlds.worlds(directory_roles=True))
def test_m21_lists_agree_with_check(world):
    subjects = worlds.subjects(world, every_form=False)
    slugs = list(world["permissions"])
    for slug in slugs:
        for resource_id in world["resources"]:
            resource = ("id", resource_id)
            rows = naive.list_members(world, resource, slug, worlds.NOW)
            if naive.is_error(rows):
                assert rows == naive.TYPE_MISMATCH
                continue
            passes = {
                id
                for id in world["memberships"]
                if _allowed(world, ("membership", id), slug, resource)
            }
            assert {row["membership_id"] for row in rows} == passes
            direct = naive.list_members(world, resource, slug, worlds.NOW, True)
            assert {row["membership_id"] for row in direct} <= passes
    for subject in subjects:
        resources = [("id", id) for id in world["resources"]]
        matrix = naive.check_matrix(world, subject, slugs, resources, worlds.NOW)
        listed = dict(naive.list_resources(world, subject, slugs[:10], worlds.NOW))
        for (_, id), row in zip(resources, matrix, strict=True):
            if naive.is_error(row):
                assert row == naive.NO_RESOURCE
                continue
            has = [slug for slug in slugs if _allowed(world, subject, slug, ("id", id))]
            assert [slug for slug, yes in zip(slugs, row, strict=True) if yes] == has
            assert naive.list_permissions(world, subject, ("id", id), worlds.NOW) == sorted(has)
            if world["resources"][id]["parent_id"] is not None:
                assert listed.get(id, []) == has


@quick
@given(worlds.worlds(), st.data())
def test_m18_nothing_changes_before_allowed_until_and_then_it_does(world, data):
    for question in worlds.all_questions(world):
        answer = naive.check(world, *question, worlds.NOW)
        if naive.is_error(answer) or not answer["allowed"]:
            continue
        end = answer["allowed_until"]
        for now in worlds.instants(world):
            if now >= worlds.NOW and (end is None or now < end):
                assert _allowed(world, *question, now)
        if end is not None:
            assert not _allowed(world, *question, end)


def _do(world, subject, permission, step):
    """The world after one step of a remedy."""
    kind, *what = step
    tables = {
        table: {id: dict(row) for id, row in world[table].items()}
        for table in ("memberships", "role_assignments", "api_keys")
    }
    world = {**world, **tables}
    membership_id = subject[1]
    if subject[0] == "api_key":
        key = world["api_keys"][subject[1]]
        membership_id = naive.find_membership(world, key["user_id"], key["organization_id"])
    if kind in ("REACTIVATE_MEMBERSHIP", "ACCEPT_INVITATION"):
        world["memberships"][membership_id]["status"] = "ACTIVE"
    elif kind == "EXTEND_ASSIGNMENT":
        world["role_assignments"][what[0]]["expires_at"] = None
    elif kind == "ASSIGN_ROLE":
        holder = ("group" if subject[0] == "group" else "membership", membership_id)
        assert worlds._assignment_id(world, holder, *what) is None
        world["role_assignments"]["role_assignment_new"] = {
            "organization_id": world["resources"][what[1]]["organization_id"],
            "subject": holder,
            "role_id": what[0],
            "resource_id": what[1],
            "expires_at": None,
        }
        # What is offered can be written: M11, RA1 and RA3 hold afterwards.
        home = world["resources"][what[1]]["organization_id"]
        assert tuple(what) in worlds._grantable(world, home)
        assert holder[0] == "group" or not worlds._is_root(world, what[1])
    elif kind == "UPDATE_MEMBERSHIP_ROLES":
        world["memberships"][membership_id]["direct_role_ids"] = [what[0]]
    elif kind == "ADD_API_KEY_PERMISSION":
        key["permission_slugs"] = [*key["permission_slugs"], permission]
    elif kind == "REPLACE_API_KEY":
        key.update(expires_at=None, revoked=False)
    return world


@quick
@given(worlds.worlds())
def test_m29_all_steps_of_a_remedy_allow_and_none_can_be_left_out(world):
    for subject, permission, resource in list(worlds.all_questions(world))[::3]:
        answer = naive.explain(world, subject, permission, resource, worlds.NOW)
        if naive.is_error(answer) or answer["allowed"]:
            continue
        assert len(answer["remedies"]) == len(set(answer["remedies"]))
        for remedy in answer["remedies"]:
            if ("DEFINE_ROLE",) in remedy:
                continue
            for left_out in (None, *remedy):
                changed = world
                for step in remedy:
                    if step != left_out:
                        changed = _do(changed, subject, permission, step)
                assert _allowed(changed, subject, permission, resource) == (left_out is None)


@quick
@given(worlds.worlds())
def test_m27_grants_of_explain_are_those_of_list_members(world):
    for resource_id in world["resources"]:
        for slug in world["permissions"]:
            rows = naive.list_members(world, ("id", resource_id), slug, worlds.NOW)
            for row in [] if naive.is_error(rows) else rows:
                subject = ("membership", row["membership_id"])
                told = naive.explain(world, subject, slug, ("id", resource_id), worlds.NOW)
                assert told["reason"] == "GRANTED"
                assert told["grants"][:50] == row["grants"]
                for grant in told["grants"]:
                    if grant["holder"][0] == "group":
                        _, group_id, _, chain = grant["holder"]
                        assert naive.is_valid_chain(world, subject, group_id, chain)


@quick
@given(worlds.worlds(), st.randoms(use_true_random=False))
def test_other_ids_give_the_same_answers(world, rng):
    old = worlds.ids(world)
    new = old.copy()
    rng.shuffle(new)
    renamed = worlds.rename(world, dict(zip(old, new, strict=True)))
    for question in list(worlds.all_questions(world))[::5]:
        other = worlds.rename(question, dict(zip(old, new, strict=True)))
        assert naive.check(world, *question, worlds.NOW) == naive.check(renamed, *other, worlds.NOW)


# --- The worlds themselves


@quick
@given(st.one_of(worlds.worlds(), worlds.worlds(directory_roles=True, expired=False)))
def test_worlds_keep_every_invariant(world):
    assert worlds.problems(world) == []


def test_problems_are_found(world):
    """The judge of worlds is not blind: each of these breaks one rule."""
    mapping = shaped_ids(world)
    world = worlds.rename(world, mapping)
    assert worlds.problems(world) == []

    def broken(table, id, **fields):
        id = mapping.get(id, id)
        row = {**world[table][id], **worlds.rename(fields, mapping)}
        return {**world, table: {**world[table], id: row}}

    for worse in (
        broken("memberships", "om_ann", direct_role_ids=[]),
        broken("memberships", "om_ann", user_id="user_bob"),
        broken("memberships", "om_ann", direct_role_ids=["role_project-viewer"]),
        broken("groups", "group_writers", group_ids=["group_staff"]),
        broken("groups", "group_everyone", membership_ids=["om_ann"]),
        broken("groups", "group_globex_everyone", kind="STANDARD"),
        broken("resources", "resource_web", parent_id="resource_hq"),
        broken("resources", "resource_web", parent_id="resource_spec"),
        broken("resources", "resource_web", external_id="api"),
        broken("resources", "resource_acme", name="other"),
        broken("role_assignments", "role_assignment_dan_api", resource_id="resource_eng"),
        broken("role_assignments", "role_assignment_dan_api", subject=("membership", "om_x")),
        broken(
            "role_assignments",
            "role_assignment_dan_api",
            role_id="role_admin",
            resource_id="resource_acme",
        ),
        broken("roles", "role_project-viewer", permission_slugs=["workspace:view"]),
        broken("roles", "role_project-viewer", slug="project-editor"),
        broken("roles", "role_project-viewer", slug="org-viewer"),
        broken("api_keys", "api_key_dan", user_id="user_nobody"),
        broken("resource_types", "workspace", parent_type_slugs=["document"]),
        broken("users", "user_ann", email="bob@example.com"),
        broken("organizations", "org_acme", role_priority=["role_owner"]),
    ):
        assert worlds.problems(worse)


def test_worlds_have_everything_that_matters():
    """What the differential tests are meant to meet does occur."""
    seen = collections.Counter()

    @settings(quick, max_examples=how_many("worlds"))
    @given(worlds.worlds())
    def look(world):
        homes = {
            (role["slug"], role["organization_id"])
            for role in world["roles"].values()
            if role["organization_id"]
        }
        features = {
            "three organizations": len(world["organizations"]) == 3,
            "twelve memberships": len(world["memberships"]) == 12,
            "six groups": len(world["groups"]) - len(world["organizations"]) == 6,
            "twenty resources": len(world["resources"]) - len(world["organizations"]) == 20,
            "eight roles": len(world["roles"]) == 8,
            "equal slugs": len(homes) > len({slug for slug, _ in homes}),
            "own priority": any(o["role_priority"] for o in world["organizations"].values()),
            "three levels of groups": any(
                worlds._levels(world, id, "up") == 3 for id in world["groups"]
            ),
            "deepest": any(naive.depth(world, id) == 8 for id in world["resources"]),
            "twins": any(ghost["twin"] for ghost in world["ghosts"].values()),
            "user in two organizations": len({m["user_id"] for m in world["memberships"].values()})
            < len(world["memberships"]),
        }
        seen.update(name for name, there in features.items() if there)
        seen.update({row["status"] for row in world["memberships"].values()})
        for table in ("role_assignments", "api_keys"):
            for row in world[table].values():
                end = row["expires_at"]
                state = "no end" if end is None else "over" if end <= worlds.NOW else "ends"
                seen[f"{table} {state}"] += 1
        for row in world["role_assignments"].values():
            kind, id = row["subject"]
            everyone = kind == "group" and world["groups"][id]["kind"] == "EVERYONE"
            seen["everyone" if everyone else kind] += 1
        seen.update("user key" if k["user_id"] else "org key" for k in world["api_keys"].values())
        for question in list(worlds.all_questions(world, every_form=True))[::97]:
            answer = naive.check(world, *question, worlds.NOW)
            seen[answer[1] if naive.is_error(answer) else answer["allowed"]] += 1

    look()
    rare = [
        name
        for name in (
            *("three organizations", "twelve memberships", "six groups", "twenty resources"),
            *("eight roles", "equal slugs", "own priority", "three levels of groups", "deepest"),
            *("twins", "user in two organizations", "ACTIVE", "INACTIVE", "PENDING"),
            *("role_assignments no end", "role_assignments over", "role_assignments ends"),
            *("api_keys no end", "api_keys over", "api_keys ends", "user key", "org key"),
            *("everyone", "group", "membership", True, False),
            *("MEMBERSHIP_NOT_FOUND", "GROUP_NOT_FOUND", "API_KEY_NOT_FOUND"),
            *("PERMISSION_NOT_FOUND", "RESOURCE_NOT_FOUND", "PERMISSION_RESOURCE_TYPE_MISMATCH"),
        )
        if seen[name] < 3
    ]
    assert not rare, seen


@settings(quick, max_examples=how_many("oracle writes"))
@given(worlds.worlds(), st.data())
def test_writes_keep_every_invariant_and_the_world_before(world, data):
    for _ in range(5):
        write = data.draw(worlds.writes(world))
        before = worlds.rename(world, {})
        changed = worlds.apply(world, write)
        assert world == before
        assert changed != world
        assert worlds.problems(changed) == [], write
        assert worlds.apply(world, write) == changed
        world = changed


def test_every_operation_is_drawn_accepted_and_refused():
    """No operation is one that the strategies never come up with."""
    accepted, refused = collections.Counter(), collections.Counter()

    @settings(quick, max_examples=how_many("attempts"))
    @given(worlds.worlds().flatmap(lambda w: st.tuples(st.just(w), *[worlds.attempts(w)] * 8)))
    def look(drawn):
        world, *writes = drawn
        for write in writes:
            try:
                changed = worlds.apply(world, write)
            except worlds.Refused as error:
                refused[error.error[1]] += 1
            else:
                accepted[write["op"]] += changed is not world

    look()
    assert {op for op in worlds._APPLY if not accepted[op]} == set()
    assert {"LAST_OWNER", "GROUP_CYCLE", "ROLE_ASSIGNMENT_EXISTS", "ROLE_IN_USE"} <= set(refused)


def test_without_api_keys(world):
    @quick
    @given(
        worlds.worlds(api_keys=False).flatmap(
            lambda w: st.tuples(st.just(w), worlds.writes(w, api_keys=False))
        )
    )
    def look(drawn):
        world, write = drawn
        assert not world["api_keys"]
        assert "key" not in write["op"]

    look()

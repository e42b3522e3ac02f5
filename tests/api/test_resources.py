"""ResourceService over the hall."""

from typing import Any, NamedTuple

import pytest
from sqlalchemy import delete, func, select, update

from authz_service.base.clock import to_datetime
from authz_service.config import Config
from authz_service.server import Worker
from authz_service.storage.tables import (
    Configuration,
    Resource,
    ResourceAncestor,
    ResourceCount,
    RoleAssignment,
)
from tests.callers import Caller, Refused
from tests.conftest import ManualClock
from tests.directories import Directory, Recorded

IMMUTABLE = ("FAILED_PRECONDITION", "ORGANIZATION_RESOURCE_IMMUTABLE", {})


class Tree(NamedTuple):
    """acme: eng (api: spec; web; handbook), sales. The names are the keys."""

    organization: Any
    root: Any
    eng: Any
    sales: Any
    api: Any
    web: Any
    spec: Any
    handbook: Any


@pytest.fixture
def settings() -> dict[str, str]:
    return {"AUTHZ_LIMIT_RESOURCES": "4"}


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    made = Directory(api, worker, config)
    made.types(
        workspace=["organization"],
        project=["workspace"],
        document=["project", "workspace"],
        folder=["workspace", "folder"],
    )
    return made


@pytest.fixture
def tree(directory: Directory) -> Tree:
    acme = directory.organization()
    eng = directory.resource(acme, "workspace", "eng")
    sales = directory.resource(acme, "workspace", "sales")
    api = directory.resource(acme, "project", "api", eng)
    web = directory.resource(acme, "project", "web", eng)
    spec = directory.resource(acme, "document", "spec", api)
    handbook = directory.resource(acme, "document", "handbook", eng)
    root = directory.api.ResourceService.GetResource(
        resource={"key": key(acme, "organization", acme.id)}
    ).resource
    return Tree(acme, root, eng, sales, api, web, spec, handbook)


def key(organization: Any, type_slug: str, external_id: str) -> dict[str, str]:
    return {
        "organization_id": organization.id,
        "resource_type_slug": type_slug,
        "external_id": external_id,
    }


def by_id(resource: Any) -> dict[str, str]:
    return {"resource_id": resource.id}


def refusal(call: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(**fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def unknown(**metadata: str) -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "RESOURCE_NOT_FOUND", metadata


def stored_tree(directory: Directory) -> dict[str, tuple[str, int, list[str]]]:
    """Checks depth, path, closure and counts against the parents; external id to (parent, …)."""

    def work(tx: Any) -> dict[str, tuple[str, int, list[str]]]:
        rows = {row.id: row for row in tx.connection.execute(select(*Resource.__table__.columns))}
        closure = {
            (row.ancestor_id, row.resource_id): (row.organization_id, row.resource_type_slug)
            for row in tx.connection.execute(select(*ResourceAncestor.__table__.columns))
        }
        expected = {}
        seen = {}
        for id, row in rows.items():
            path = [id]
            while rows[path[0]].parent_id:
                path.insert(0, rows[path[0]].parent_id)
            assert (row.depth, row.path) == (len(path) - 1, "/".join(path))
            for ancestor_id in path:
                expected[ancestor_id, id] = (row.organization_id, row.resource_type_slug)
            seen[row.external_id] = (
                rows[row.parent_id].external_id if row.parent_id else "",
                row.depth,
                [rows[node].external_id for node in path],
            )
        assert closure == expected
        counts = {
            (row.organization_id, row.resource_type_slug): row.count
            for row in tx.connection.execute(select(*ResourceCount.__table__.columns))
            if row.count
        }
        counted = tx.connection.execute(
            select(Resource.organization_id, Resource.resource_type_slug, func.count())
            .where(Resource.resource_type_slug != "organization")
            .group_by(Resource.organization_id, Resource.resource_type_slug)
        )
        assert counts == {(row[0], row[1]): row[2] for row in counted}
        return seen

    return directory.write(work)


# --- create ----------------------------------------------------------------------------------


def test_created_resource_is_read_by_id_and_by_key(directory: Directory, tree: Tree) -> None:
    service = directory.api.ResourceService
    before = len(directory.events(tree.organization))
    made = service.CreateResource(
        **key(tree.organization, "document", "plan 1"),
        name="  Plan ",
        description=" what we do ",
        parent={"key": key(tree.organization, "project", "web")},
    ).resource
    assert (made.name, made.description) == ("Plan", "what we do")
    assert (made.parent_resource_id, made.depth) == (tree.web.id, 3)
    assert made.id.startswith("resource_")
    assert service.GetResource(resource=by_id(made)).resource == made
    named = service.GetResource(resource={"key": key(tree.organization, "document", "plan 1")})
    assert named.resource == made
    assert directory.recorded(tree.organization, before) == [
        Recorded("resource.created", made.id, True)
    ]
    data, previous = directory.data(tree.organization)
    assert previous == {}
    assert data["parent_resource_id"] == tree.web.id
    assert data["etag"] == made.etag
    assert stored_tree(directory)["plan 1"][2] == [tree.organization.id, "eng", "web", "plan 1"]


def test_without_a_parent_it_lies_below_the_organization(directory: Directory, tree: Tree) -> None:
    assert (tree.eng.parent_resource_id, tree.eng.depth) == (tree.root.id, 1)
    assert (tree.root.parent_resource_id, tree.root.depth) == ("", 0)
    assert (tree.root.external_id, tree.root.name) == (tree.organization.id, "Acme")


def test_create_refuses(directory: Directory, tree: Tree) -> None:
    create = directory.api.ResourceService.CreateResource
    acme, globex = tree.organization, directory.organization("Globex")
    hq = directory.resource(globex, "workspace", "hq")
    before = len(directory.events(acme))
    project = {**key(acme, "project", "new"), "name": "New"}
    absent = "resource_00000000000000000000000000"
    assert refusal(create, **{**project, "organization_id": "org_x"}) == (
        "NOT_FOUND",
        "ORGANIZATION_NOT_FOUND",
        {"organization_id": "org_x"},
    )
    assert refusal(create, **{**project, "resource_type_slug": "planet"}) == (
        "NOT_FOUND",
        "RESOURCE_TYPE_NOT_FOUND",
        {"resource_type_slug": "planet"},
    )
    assert refusal(create, **project, parent={"resource_id": absent}) == unknown(resource_id=absent)
    assert refusal(create, **project, parent=by_id(hq)) == unknown(resource_id=hq.id)
    foreign = key(globex, "workspace", "hq")
    assert refusal(create, **project, parent={"key": foreign}) == unknown(**foreign)
    assert refusal(create, **project) == (
        "INVALID_ARGUMENT",
        "RESOURCE_PARENT_REQUIRED",
        {"resource_type": "project", "parent_type": "organization"},
    )
    assert refusal(create, **project, parent=by_id(tree.api)) == (
        "INVALID_ARGUMENT",
        "RESOURCE_PARENT_TYPE_NOT_ALLOWED",
        {"resource_type": "project", "parent_type": "project"},
    )
    assert refusal(create, **key(acme, "organization", "second"), name="Second") == IMMUTABLE
    taken = {**project, "external_id": "api"}
    assert refusal(create, **taken, parent=by_id(tree.sales)) == (
        "ALREADY_EXISTS",
        "EXTERNAL_ID_TAKEN",
        {"field": "external_id"},
    )
    assert directory.recorded(acme, before) == []


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"external_id": " x"}, "FIELD_INVALID", "external_id"),
        ({"external_id": "ä"}, "FIELD_INVALID", "external_id"),
        ({"external_id": "x" * 129}, "FIELD_INVALID", "external_id"),
        ({"name": "x" * 257}, "FIELD_INVALID", "name"),
        ({"name": "   "}, "FIELD_REQUIRED", "name"),
        ({"description": "x" * 151}, "FIELD_INVALID", "description"),
        ({"parent": {}}, "FIELD_REQUIRED", "parent"),
        ({"parent": {"key": {"organization_id": "o"}}}, "FIELD_REQUIRED", None),
        ({"organization_id": ""}, "FIELD_REQUIRED", "organization_id"),
    ],
)
def test_shapes_are_refused_before_anything_is_looked_up(
    directory: Directory, fields: dict[str, Any], reason: str, field: str | None
) -> None:
    request = {
        "organization_id": "org_x",
        "resource_type_slug": "planet",
        "external_id": "e",
        "name": "N",
        **fields,
    }
    for name in ("CreateResource", "UpsertResource"):
        code, given, metadata = refusal(getattr(directory.api.ResourceService, name), **request)
        assert (code, given) == ("INVALID_ARGUMENT", reason)
        assert field is None or metadata["field"] == field


def test_keys_are_compared_byte_for_byte_within_organization_and_type(
    directory: Directory, tree: Tree
) -> None:
    upper = directory.resource(tree.organization, "workspace", "ENG")
    same = directory.resource(tree.organization, "project", "eng", tree.eng)
    globex = directory.organization("Globex")
    other = directory.resource(globex, "workspace", "eng")
    assert len({upper.id, same.id, other.id, tree.eng.id}) == 4


def test_depth_is_limited_by_the_setting(directory: Directory) -> None:
    acme = directory.organization()
    eng = directory.resource(acme, "workspace", "eng")
    directory.write(
        lambda tx: tx.connection.execute(update(Configuration).values(resource_depth_max=3))
    )
    outer = directory.resource(acme, "folder", "1", eng)
    inner = directory.resource(acme, "folder", "2", outer)
    assert inner.depth == 3
    too_deep = ("FAILED_PRECONDITION", "RESOURCE_DEPTH_EXCEEDED", {"maximum": "3", "actual": "4"})
    create = directory.api.ResourceService.CreateResource
    fields = {**key(acme, "folder", "3"), "name": "3", "parent": by_id(inner)}
    assert refusal(create, **fields) == too_deep
    assert refusal(directory.api.ResourceService.UpsertResource, **fields) == too_deep


def test_resources_of_one_type_are_limited_in_each_organization(directory: Directory) -> None:
    acme = directory.organization()
    made = [directory.resource(acme, "workspace", f"w{i}") for i in range(4)]
    above = ("RESOURCE_EXHAUSTED", "LIMIT_REACHED", {"limit": "resources", "maximum": "4"})
    service = directory.api.ResourceService
    fifth = {**key(acme, "workspace", "w5"), "name": "w5"}
    assert refusal(service.CreateResource, **fifth) == above
    assert refusal(service.UpsertResource, **fifth) == above
    directory.resource(acme, "project", "p", made[0])
    directory.resource(directory.organization("Globex"), "workspace", "w")
    service.DeleteResource(resource=by_id(made[0]), cascade=True)
    assert service.CreateResource(**fifth).resource.external_id == "w5"
    assert refusal(service.CreateResource, **{**fifth, "external_id": "w6"}) == above
    assert stored_tree(directory)


def test_repeat_with_an_idempotency_key_creates_once(directory: Directory, tree: Tree) -> None:
    repeating = directory.api.with_metadata(idempotency_key="one")
    fields = {**key(tree.organization, "workspace", "once"), "name": "Once"}
    first = repeating.ResourceService.CreateResource(**fields)
    assert repeating.ResourceService.CreateResource(**fields).resource == first.resource


# --- read ------------------------------------------------------------------------------------


def test_get_tells_what_it_does_not_find(directory: Directory, tree: Tree) -> None:
    get = directory.api.ResourceService.GetResource
    assert refusal(get, resource={"resource_id": "resource_x"}) == unknown(resource_id="resource_x")
    absent = key(tree.organization, "project", "eng")
    assert refusal(get, resource={"key": absent}) == unknown(**absent)
    assert refusal(get, resource={}) == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
        {"field": "resource"},
    )


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "handbook spec web api sales eng Acme"),
        ({"resource_type_slug": "workspace"}, "sales eng"),
        ({"resource_type_slug": "organization"}, "Acme"),
        ({"resource_type_slug": "folder"}, ""),
        ({"parent": "eng"}, "handbook spec web api"),
        ({"parent": "Acme"}, "handbook spec web api sales eng"),
        ({"parent": "Acme", "resource_type_slug": "organization"}, ""),
        ({"parent": "eng", "resource_type_slug": "document"}, "handbook spec"),
        ({"parent": "api", "resource_type_slug": "project"}, ""),
        ({"parent": "eng", "children_only": True}, "handbook web api"),
        ({"parent": "eng", "children_only": True, "resource_type_slug": "document"}, "handbook"),
        ({"children_only": True}, "sales eng"),
        ({"children_only": True, "resource_type_slug": "project"}, ""),
        ({"parent": "Acme", "children_only": True}, "sales eng"),
        ({"parent": "spec"}, ""),
        ({"query": "  EC "}, "spec"),
        ({"query": "cm"}, "Acme"),
        ({"query": "e_"}, ""),
        ({"query": "%%"}, ""),
        ({"query": "api", "parent": "eng"}, "api"),
        ({"query": "ap", "parent": "sales"}, ""),
        ({"query": "eb", "parent": "eng", "children_only": True}, "web"),
        ({"query": "en", "children_only": True}, "eng"),
        ({"query": "pe", "parent": "eng", "resource_type_slug": "document"}, "spec"),
    ],
)
def test_lists_hold_what_the_filters_say_on_pages_of_every_size(
    directory: Directory, tree: Tree, filters: dict[str, Any], expected: str
) -> None:
    by_name = {resource.name: resource for resource in tree[1:]}
    globex = directory.organization("Globex")
    directory.resource(globex, "workspace", "eng")
    if "parent" in filters:
        filters = {**filters, "parent": by_id(by_name[filters["parent"]])}
    names = expected.split()
    for size in range(1, len(names) + 2):
        listed = list(
            directory.api.pages(
                "ResourceService",
                "ListResources",
                "resources",
                organization_id=tree.organization.id,
                page_size=size,
                **filters,
            )
        )
        assert [row.name for row in listed] == names
        assert listed == [by_name[name] for name in names]


def test_query_ignores_the_case_of_all_letters_and_means_itself(directory: Directory) -> None:
    acme = directory.organization()
    for i, name in enumerate(("Ärger", "50% off", "a_b", "a\\b")):
        directory.api.ResourceService.CreateResource(**key(acme, "workspace", str(i)), name=name)

    def found(query: str) -> list[str]:
        listed = directory.api.ResourceService.ListResources(organization_id=acme.id, query=query)
        return [row.name for row in listed.resources]

    assert found("äR") == ["Ärger"]
    assert found("0%") == ["50% off"]
    assert found("a_") == ["a_b"]
    assert found("a\\") == ["a\\b"]


def test_list_refuses(directory: Directory, tree: Tree) -> None:
    acme = tree.organization
    hq = directory.resource(directory.organization("Globex"), "workspace", "hq")
    ask = directory.api.ResourceService.ListResources
    assert refusal(ask, organization_id="org_x", resource_type_slug="x")[1] == (
        "ORGANIZATION_NOT_FOUND"
    )
    assert refusal(ask, organization_id=acme.id, resource_type_slug="planet", parent=by_id(hq)) == (
        "NOT_FOUND",
        "RESOURCE_TYPE_NOT_FOUND",
        {"resource_type_slug": "planet"},
    )
    assert refusal(ask, organization_id=acme.id, parent=by_id(hq)) == unknown(resource_id=hq.id)
    assert refusal(ask, organization_id=acme.id, query="x")[2]["field"] == "query"
    assert refusal(ask, organization_id=acme.id, page_size=-1)[2]["field"] == "page_size"
    token = ask(organization_id=acme.id, page_size=1).next_page_token
    assert ask(organization_id=acme.id, page_size=2, page_token=token).resources[0] == tree.spec
    assert refusal(ask, organization_id=acme.id, query="ab", page_token=token) == (
        "INVALID_ARGUMENT",
        "PAGE_TOKEN_MISMATCH",
        {},
    )
    assert refusal(ask, organization_id=acme.id, page_token="x" + token)[1] == (
        "PAGE_TOKEN_INVALID"
    )


# --- update ----------------------------------------------------------------------------------


def test_update_changes_what_is_named(directory: Directory, tree: Tree) -> None:
    update_resource = directory.api.ResourceService.UpdateResource
    before = len(directory.events(tree.organization))
    changed = update_resource(
        resource={"key": key(tree.organization, "project", "api")},
        name=" API ",
        description="not named, not changed",
        etag=tree.api.etag,
        update_mask={"paths": ["name"]},
    ).resource
    assert (changed.name, changed.description) == ("API", "")
    assert changed.etag != tree.api.etag
    assert directory.recorded(tree.organization, before) == [
        Recorded("resource.updated", tree.api.id, True)
    ]
    assert directory.data(tree.organization)[1] == {"name": "api"}
    described = update_resource(
        resource=by_id(tree.api),
        description="d",
        update_mask={"paths": ["description", "name", "description"]},
        name="API",
    ).resource
    assert (described.name, described.description) == ("API", "d")
    cleared = update_resource(
        resource=by_id(tree.api), update_mask={"paths": ["description"]}
    ).resource
    assert cleared.description == ""
    same = update_resource(
        resource=by_id(tree.api), name="API", update_mask={"paths": ["name"]}
    ).resource
    assert same == cleared
    assert len(directory.events(tree.organization)) == before + 3


def test_update_refuses(directory: Directory, tree: Tree) -> None:
    call = directory.api.ResourceService.UpdateResource
    before = len(directory.events(tree.organization))
    mask = {"paths": ["name"]}
    assert refusal(call, resource=by_id(tree.api), name="x") == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
        {"field": "update_mask"},
    )
    for path in ("resource", "etag", "update_mask", "external_id", "parent_resource_id", "x"):
        assert refusal(call, resource=by_id(tree.api), name="x", update_mask={"paths": [path]}) == (
            "INVALID_ARGUMENT",
            "UPDATE_MASK_INVALID",
            {"path": path},
        )
    for name in ("", "  ", "x" * 257):
        code, reason, metadata = refusal(
            call, resource=by_id(tree.api), name=name, update_mask=mask
        )
        assert (code, reason, metadata["field"]) == ("INVALID_ARGUMENT", "FIELD_INVALID", "name")
    assert refusal(call, resource={"resource_id": "resource_x"}, name="x", update_mask=mask) == (
        unknown(resource_id="resource_x")
    )
    assert refusal(call, resource=by_id(tree.root), name="x", update_mask=mask) == IMMUTABLE
    assert refusal(call, resource=by_id(tree.api), name="x", etag="0", update_mask=mask)[:2] == (
        "ABORTED",
        "ETAG_MISMATCH",
    )
    assert directory.recorded(tree.organization, before) == []


# --- move ------------------------------------------------------------------------------------


def test_move_takes_the_whole_subtree_along(directory: Directory, tree: Tree) -> None:
    move = directory.api.ResourceService.MoveResource
    acme = tree.organization
    before = len(directory.events(acme))
    moved = move(
        resource=by_id(tree.api),
        parent={"key": key(acme, "workspace", "sales")},
        etag=tree.api.etag,
    ).resource
    assert (moved.parent_resource_id, moved.depth) == (tree.sales.id, 2)
    assert moved.etag != tree.api.etag
    assert directory.recorded(acme, before) == [Recorded("resource.moved", tree.api.id, True)]
    data, previous = directory.data(acme)
    assert previous == {"parent_resource_id": tree.eng.id}
    assert data["parent_resource_id"] == tree.sales.id
    stored = stored_tree(directory)
    assert stored["spec"][2] == [acme.id, "sales", "api", "spec"]
    # What lies below keeps its own fields, hence its etag.
    spec = directory.api.ResourceService.GetResource(resource=by_id(tree.spec)).resource
    assert spec == tree.spec
    higher = move(resource=by_id(tree.spec), parent=by_id(tree.sales)).resource
    assert higher.depth == 2
    assert stored_tree(directory)["spec"][2] == [acme.id, "sales", "spec"]


def test_a_moved_subtree_gets_deeper_and_higher(directory: Directory) -> None:
    acme = directory.organization()
    eng = directory.resource(acme, "workspace", "eng")
    first = directory.resource(acme, "folder", "1", eng)
    second = directory.resource(acme, "folder", "2", first)
    third = directory.resource(acme, "folder", "3", eng)
    move = directory.api.ResourceService.MoveResource
    assert move(resource=by_id(third), parent=by_id(second)).resource.depth == 4
    assert stored_tree(directory)["3"][2] == [acme.id, "eng", "1", "2", "3"]
    assert move(resource=by_id(second), parent=by_id(eng)).resource.depth == 2
    assert stored_tree(directory)["3"][2] == [acme.id, "eng", "2", "3"]
    assert move(resource=by_id(first), parent=by_id(third)).resource.depth == 4
    assert stored_tree(directory)["1"][2] == [acme.id, "eng", "2", "3", "1"]


def test_move_under_the_same_parent_has_no_effect(directory: Directory, tree: Tree) -> None:
    before = len(directory.events(tree.organization))
    # Nothing is placed anew, so that a limit which was lowered since does not matter.
    directory.write(
        lambda tx: tx.connection.execute(update(Configuration).values(resource_depth_max=1))
    )
    answer = directory.api.ResourceService.MoveResource(
        resource=by_id(tree.api), parent=by_id(tree.eng)
    )
    assert answer.resource == tree.api
    assert answer.consistency_token
    same = directory.api.ResourceService.UpsertResource(
        **key(tree.organization, "project", "api"), name="api", parent=by_id(tree.eng)
    )
    assert (same.resource, same.is_new) == (tree.api, False)
    assert directory.recorded(tree.organization, before) == []


def test_move_refuses(directory: Directory, tree: Tree) -> None:
    move = directory.api.ResourceService.MoveResource
    acme = tree.organization
    hq = directory.resource(directory.organization("Globex"), "workspace", "hq")
    outer = directory.resource(acme, "folder", "outer", tree.eng)
    inner = directory.resource(acme, "folder", "inner", outer)
    before = len(directory.events(acme))
    gone = {"resource_id": "resource_x"}
    assert refusal(move, resource=gone, parent=by_id(hq)) == unknown(resource_id="resource_x")
    assert refusal(move, resource=by_id(tree.api), parent=gone) == unknown(resource_id="resource_x")
    assert refusal(move, resource=by_id(tree.api), parent=by_id(hq)) == unknown(resource_id=hq.id)
    assert refusal(move, resource=by_id(tree.root), parent=by_id(tree.eng)) == IMMUTABLE
    assert refusal(move, resource=by_id(tree.api), parent={}) == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
        {"field": "parent"},
    )
    assert refusal(move, resource=by_id(tree.api), parent=by_id(tree.root)) == (
        "INVALID_ARGUMENT",
        "RESOURCE_PARENT_TYPE_NOT_ALLOWED",
        {"resource_type": "project", "parent_type": "organization"},
    )
    for below in (outer, inner):
        assert refusal(move, resource=by_id(outer), parent=by_id(below)) == (
            "FAILED_PRECONDITION",
            "RESOURCE_CYCLE",
            {},
        )
    stale = {"resource": by_id(tree.api), "parent": by_id(tree.sales), "etag": "0"}
    assert refusal(move, **stale)[:2] == ("ABORTED", "ETAG_MISMATCH")
    assert directory.recorded(acme, before) == []


def test_move_leaves_the_deepest_descendant_within_the_limit(directory: Directory) -> None:
    acme = directory.organization()
    eng = directory.resource(acme, "workspace", "eng")
    outer = directory.resource(acme, "folder", "outer", eng)
    directory.resource(acme, "folder", "inner", outer)
    other = directory.resource(acme, "folder", "other", eng)
    move = directory.api.ResourceService.MoveResource

    def limit(depth: int) -> None:
        directory.write(
            lambda tx: tx.connection.execute(update(Configuration).values(resource_depth_max=depth))
        )

    limit(3)
    assert refusal(move, resource=by_id(outer), parent=by_id(other)) == (
        "FAILED_PRECONDITION",
        "RESOURCE_DEPTH_EXCEEDED",
        {"maximum": "3", "actual": "4"},
    )
    limit(4)
    assert move(resource=by_id(outer), parent=by_id(other)).resource.depth == 3


# --- upsert ----------------------------------------------------------------------------------


def test_upsert_creates_what_is_absent(directory: Directory, tree: Tree) -> None:
    before = len(directory.events(tree.organization))
    answer = directory.api.ResourceService.UpsertResource(
        **key(tree.organization, "project", "new"), name="New", parent=by_id(tree.sales)
    )
    assert answer.is_new
    assert answer.resource.parent_resource_id == tree.sales.id
    assert directory.recorded(tree.organization, before) == [
        Recorded("resource.created", answer.resource.id, True)
    ]


def test_upsert_applies_what_is_given_in_one_event(directory: Directory, tree: Tree) -> None:
    upsert = directory.api.ResourceService.UpsertResource
    acme = tree.organization
    before = len(directory.events(acme))
    api = key(acme, "project", "api")
    named = upsert(**api, name="API", description="the API")
    assert not named.is_new
    assert named.resource.parent_resource_id == tree.eng.id
    moved = upsert(**api, name="Api", parent=by_id(tree.sales)).resource
    assert (moved.description, moved.depth) == ("the API", 2)
    data, previous = directory.data(acme)
    assert previous == {"name": "API", "parent_resource_id": tree.eng.id}
    assert data["name"] == "Api"
    assert stored_tree(directory)["spec"][2] == [acme.id, "sales", "api", "spec"]
    # Equal values, whether the parent is given or not, change nothing.
    assert upsert(**api, name=" Api", parent=by_id(tree.sales)).resource == moved
    assert upsert(**api, name="Api", description="the API").resource == moved
    cleared = upsert(**api, name="Api", description="").resource
    assert cleared.description == ""
    assert directory.recorded(acme, before) == [
        Recorded("resource.updated", tree.api.id, True),
        Recorded("resource.moved", tree.api.id, True),
        Recorded("resource.updated", tree.api.id, True),
    ]


def test_upsert_refuses_as_create_and_move_do(directory: Directory, tree: Tree) -> None:
    upsert = directory.api.ResourceService.UpsertResource
    acme = tree.organization
    outer = directory.resource(acme, "folder", "outer", tree.eng)
    inner = directory.resource(acme, "folder", "inner", outer)
    hq = directory.resource(directory.organization("Globex"), "workspace", "hq")
    before = len(directory.events(acme))
    folder = {**key(acme, "folder", "outer"), "name": "outer"}
    assert refusal(upsert, **folder, parent=by_id(inner))[1] == "RESOURCE_CYCLE"
    assert refusal(upsert, **folder, parent=by_id(hq)) == unknown(resource_id=hq.id)
    assert refusal(upsert, **folder, parent=by_id(tree.api)) == (
        "INVALID_ARGUMENT",
        "RESOURCE_PARENT_TYPE_NOT_ALLOWED",
        {"resource_type": "folder", "parent_type": "project"},
    )
    new = {**key(acme, "folder", "new"), "name": "new"}
    assert refusal(upsert, **new)[1] == "RESOURCE_PARENT_REQUIRED"
    assert refusal(upsert, **key(acme, "organization", acme.id), name="Acme") == IMMUTABLE
    assert refusal(upsert, **key(acme, "planet", "mars"), name="Mars")[1] == (
        "RESOURCE_TYPE_NOT_FOUND"
    )
    absent = {**new, "organization_id": "org_x"}
    assert refusal(upsert, **absent)[1] == "ORGANIZATION_NOT_FOUND"
    directory.write(
        lambda tx: tx.connection.execute(update(Configuration).values(resource_depth_max=2))
    )
    other = directory.resource(acme, "folder", "other", tree.sales)
    assert refusal(upsert, **folder, parent=by_id(other))[1] == "RESOURCE_DEPTH_EXCEEDED"
    assert len(directory.recorded(acme, before)) == 1


# --- delete ----------------------------------------------------------------------------------


def test_delete_of_a_leaf(directory: Directory, tree: Tree) -> None:
    before = len(directory.events(tree.organization))
    service = directory.api.ResourceService
    answer = service.DeleteResource(resource=by_id(tree.spec), etag=tree.spec.etag)
    assert answer.deleted_resource_count == 1
    assert answer.deleted_role_assignment_count == 0
    assert directory.recorded(tree.organization, before) == [
        Recorded("resource.deleted", tree.spec.id, True)
    ]
    assert directory.data(tree.organization)[0]["external_id"] == "spec"
    assert refusal(service.GetResource, resource=by_id(tree.spec)) == unknown(
        resource_id=tree.spec.id
    )
    again = directory.resource(tree.organization, "document", "spec", tree.api)
    assert again.id != tree.spec.id
    assert stored_tree(directory)


def test_delete_refuses_while_something_depends_on_it(directory: Directory, tree: Tree) -> None:
    delete_resource = directory.api.ResourceService.DeleteResource
    acme = tree.organization
    viewer = directory.role("viewer", "document")
    anna = directory.membership(acme)
    assignment_id = directory.assignment(viewer, tree.spec, anna)
    editor = directory.role("editor", "project")
    directory.assignment(editor, tree.api, anna)
    before = len(directory.events(acme))

    def dependents(**counts: str) -> tuple[str, str, dict[str, str]]:
        return "FAILED_PRECONDITION", "RESOURCE_HAS_DEPENDENTS", counts

    assert refusal(delete_resource, resource=by_id(tree.eng)) == dependents(resources="3")
    assert refusal(delete_resource, resource=by_id(tree.spec)) == dependents(role_assignments="1")
    assert refusal(delete_resource, resource=by_id(tree.api)) == dependents(
        resources="1", role_assignments="1"
    )
    assert directory.recorded(acme, before) == []
    directory.write(
        lambda tx: tx.connection.execute(
            delete(RoleAssignment).where(RoleAssignment.id == assignment_id)
        )
    )
    assert delete_resource(resource=by_id(tree.spec)).deleted_resource_count == 1


def test_cascade_deletes_the_subtree_and_what_is_held_on_it(
    directory: Directory, tree: Tree
) -> None:
    acme = tree.organization
    anna = directory.membership(acme)
    staff = directory.group(acme, "staff")
    viewer, editor = directory.role("viewer", "document"), directory.role("editor", "workspace")
    kept = directory.assignment(editor, tree.sales, anna)
    on_eng = directory.assignment(editor, tree.eng, staff)
    on_spec = directory.assignment(viewer, tree.spec, anna)
    before = len(directory.events(acme))
    answer = directory.api.ResourceService.DeleteResource(
        resource={"key": key(acme, "workspace", "eng")}, cascade=True
    )
    assert answer.deleted_resource_count == 5
    assert answer.deleted_role_assignment_count == 2
    recorded = directory.recorded(acme, before)
    assert recorded[0] == Recorded("resource.deleted", tree.eng.id, True)
    assert set(recorded[1:]) == {
        Recorded("resource.deleted", resource.id, False)
        for resource in (tree.api, tree.web, tree.spec, tree.handbook)
    } | {Recorded("role_assignment.deleted", id, False) for id in (on_eng, on_spec)}
    assert len(recorded) == 7
    data, _ = directory.data(acme)
    assert (data["role_slug"], data["organization_membership_id"]) == ("viewer", anna.id)
    assert data["resource"] == {
        "id": tree.spec.id,
        "resource_type_slug": "document",
        "external_id": "spec",
        "name": "spec",
    }
    assert set(stored_tree(directory)) == {acme.id, "sales"}
    left = directory.write(lambda tx: tx.connection.execute(select(RoleAssignment.id)).scalars())
    assert list(left) == [kept]


def test_expired_assignments_neither_hinder_nor_are_told(
    directory: Directory, tree: Tree, clock: ManualClock
) -> None:
    acme = tree.organization
    anna, viewer = directory.membership(acme), directory.role("viewer", "document")
    clock.stop_at(to_datetime(2_000_000_000_000_000))
    directory.assignment(viewer, tree.spec, anna, expires_at=2_000_000_000_000_001)
    delete_resource = directory.api.ResourceService.DeleteResource
    assert refusal(delete_resource, resource=by_id(tree.spec))[1] == "RESOURCE_HAS_DEPENDENTS"
    clock.stop_at(to_datetime(2_000_000_000_000_001))
    before = len(directory.events(acme))
    answer = delete_resource(resource=by_id(tree.spec))
    assert answer.deleted_role_assignment_count == 0
    assert directory.recorded(acme, before) == [Recorded("resource.deleted", tree.spec.id, True)]
    assert not list(
        directory.write(lambda tx: tx.connection.execute(select(RoleAssignment.id)).scalars())
    )


def test_delete_refuses_and_may_miss(directory: Directory, tree: Tree) -> None:
    delete_resource = directory.api.ResourceService.DeleteResource
    before = len(directory.events(tree.organization))
    absent = {"resource_id": "resource_x"}
    assert refusal(delete_resource, resource=absent) == unknown(resource_id="resource_x")
    missed = delete_resource(resource=absent, allow_missing=True)
    assert (missed.deleted_resource_count, bool(missed.consistency_token)) == (0, True)
    for cascade in (False, True):
        assert refusal(delete_resource, resource=by_id(tree.root), cascade=cascade) == IMMUTABLE
    stale = refusal(delete_resource, resource=by_id(tree.spec), etag="0", allow_missing=True)
    assert stale[:2] == ("ABORTED", "ETAG_MISMATCH")
    assert directory.recorded(tree.organization, before) == []


# --- restricted credentials ------------------------------------------------------------------


def test_what_a_restricted_credential_may_not_see_does_not_exist(
    directory: Directory, tree: Tree
) -> None:
    acme, globex = tree.organization, directory.organization("Globex")
    hq = directory.resource(globex, "workspace", "hq")
    service = directory.restricted_to(globex).ResourceService
    before = len(directory.events(acme))
    hidden = unknown(resource_id=tree.spec.id)
    resource = by_id(tree.spec)
    assert refusal(service.GetResource, resource=resource) == hidden
    spec = key(acme, "document", "spec")
    assert refusal(service.GetResource, resource={"key": spec}) == unknown(**spec)
    mask = {"paths": ["name"]}
    assert refusal(service.UpdateResource, resource=resource, name="x", update_mask=mask) == hidden
    assert refusal(service.MoveResource, resource=resource, parent=by_id(hq)) == hidden
    assert refusal(service.DeleteResource, resource=resource) == hidden
    assert service.DeleteResource(resource=resource, allow_missing=True).consistency_token
    no_acme = ("NOT_FOUND", "ORGANIZATION_NOT_FOUND", {"organization_id": acme.id})
    for name in ("CreateResource", "UpsertResource"):
        fields = {**key(acme, "workspace", "eng"), "name": "Eng"}
        assert refusal(getattr(service, name), **fields) == no_acme
    assert refusal(service.ListResources, organization_id=acme.id) == no_acme
    assert len(service.ListResources(organization_id=globex.id).resources) == 2
    moved = {"resource": by_id(hq), "parent": by_id(tree.root)}
    assert refusal(service.MoveResource, **moved) == unknown(resource_id=tree.root.id)
    assert directory.recorded(acme, before) == []

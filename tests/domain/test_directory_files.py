"""Directory files: applied whole or refused whole, the same twice, and back out again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import InvalidArgument, Refusal
from authz_service.domain.directory_files import exporting, importing, parse
from authz_service.domain.directory_files.findings import Findings
from authz_service.engine.limits import DIRECTORY_FINDINGS_MAX
from authz_service.storage.database import Database, Transaction
from authz_service.storage.tables import Base

DATA = Path(__file__).parents[1] / "data"
KUBERNETES = (DATA / "kubernetes.json").read_bytes()
EXAMPLE = (Path(__file__).parents[2] / "examples" / "acme.yaml").read_bytes()


def apply(
    database: Database, data: bytes, kind: str = parse.JSON, *, validate_only: bool = False
) -> importing.Counts:
    """Imports a file."""
    findings = Findings()
    content = parse.parse(data, kind, findings)

    def work(tx: Transaction) -> importing.Counts:
        return importing.apply(tx, content, findings, validate_only=validate_only)

    return database.write(work, actor=SYSTEM, patient=True).result


def dump(database: Database) -> dict[str, list[Any]]:
    """Everything that is stored."""
    with database.snapshot(SYSTEM) as snapshot:
        return {
            table.name: sorted(
                repr(tuple(row)) for row in snapshot.connection.execute(select(table))
            )
            for table in Base.metadata.sorted_tables
        }


def written(counts: importing.Counts) -> int:
    """How many objects an import created or changed."""
    return sum(each["created"] + each["updated"] for each in counts.values())


def exported(database: Database, kind: str = parse.JSON) -> bytes:
    """A file of everything."""
    with database.snapshot(SYSTEM) as snapshot:
        return exporting.export(snapshot, [], kind)


def test_real_organizations_are_imported_once(database: Database) -> None:
    counts = apply(database, KUBERNETES)
    assert counts["user"]["created"] == 1_311
    assert counts["group"]["created"] == 361
    assert counts["resource"]["created"] == 126
    assert counts["role_assignment"]["created"] == 246
    # The seeded roles that the file names are changed, not made again.
    assert counts["role"] == {"created": 5, "updated": 2, "unchanged": 0}
    before = dump(database)
    assert written(apply(database, KUBERNETES)) == 0
    assert dump(database) == before


def test_import_records_what_changed_in_each_realm(database: Database) -> None:
    apply(database, EXAMPLE, parse.YAML)
    with database.snapshot(SYSTEM) as snapshot:
        events = snapshot.connection.execute(select(Base.metadata.tables["events"])).all()
    imported = [event for event in events if event.kind.endswith(".imported")]
    assert sorted(event.kind for event in imported) == [
        "directory.imported",
        "organization.imported",
        "organization.imported",
    ]
    (primary,) = [event for event in imported if event.is_primary]
    assert primary.kind == "directory.imported"
    assert all(e.cause_event_id == primary.id for e in imported if not e.is_primary)


@pytest.mark.parametrize("kind", [parse.JSON, parse.YAML])
def test_export_imports_to_nothing_new_and_elsewhere_to_the_same(
    database: Database, kind: str
) -> None:
    apply(database, EXAMPLE, parse.YAML)
    data = exported(database, kind)
    assert written(apply(database, data, kind)) == 0
    first = json.loads(exported(database))
    assert {each["external_id"] for each in first["organizations"]} == {"acme", "globex"}
    assert exported(database, kind) == data


def test_validate_only_counts_and_writes_nothing(database: Database) -> None:
    before = dump(database)
    counts = apply(database, EXAMPLE, parse.YAML, validate_only=True)
    assert counts["organization"]["created"] == 2
    assert dump(database) == before


def test_changes_of_a_file_are_applied(database: Database) -> None:
    apply(database, EXAMPLE, parse.YAML)
    content = json.loads(exported(database))
    (acme,) = [each for each in content["organizations"] if each["external_id"] == "acme"]
    acme["name"] = "Acme & Sons"
    (writers,) = [group for group in acme["groups"] if group["name"] == "writers"]
    writers["members"] = ["dan"]
    (web,) = [each for each in acme["resources"] if each["external_id"] == "web"]
    web["parent"] = {"type": "workspace", "external_id": "sales"}
    counts = apply(database, json.dumps(content).encode())
    assert counts["organization"]["updated"] == 1
    assert counts["group"]["updated"] == 1
    assert counts["resource"]["updated"] == 1
    after = json.loads(exported(database))
    (acme,) = [each for each in after["organizations"] if each["external_id"] == "acme"]
    assert acme["name"] == "Acme & Sons"
    (web,) = [each for each in acme["resources"] if each["external_id"] == "web"]
    assert web["parent"]["external_id"] == "sales"
    with database.snapshot(SYSTEM) as snapshot:
        resources = Base.metadata.tables["resources"].c
        paths = {
            row.external_id: row.path
            for row in snapshot.connection.execute(select(resources.external_id, resources.path))
        }
        ancestors = Base.metadata.tables["resource_ancestors"].c
        closure = {
            tuple(row)
            for row in snapshot.connection.execute(
                select(ancestors.ancestor_id, ancestors.resource_id)
            )
        }
    # What lies below moved along.
    assert paths["style"].startswith(paths["web"] + "/")
    assert paths["web"].startswith(paths["sales"] + "/")
    for path in paths.values():
        nodes = path.split("/")
        assert {(node, nodes[-1]) for node in nodes} <= closure
    assert len(closure) == sum(len(path.split("/")) for path in paths.values())


Break = Callable[[dict[str, Any]], None]


def _first(content: dict[str, Any]) -> dict[str, Any]:
    organization: dict[str, Any] = content["organizations"][0]
    return organization


def _unknown_role(content: dict[str, Any]) -> None:
    _first(content)["memberships"][3]["roles"] = ["nobody"]


def _cycle_of_groups(content: dict[str, Any]) -> None:
    groups = _first(content)["groups"]
    groups[0]["groups"] = [groups[1]["name"]]
    groups[1]["groups"] = [groups[0]["name"]]


def _deep_groups(content: dict[str, Any]) -> None:
    groups = [{"name": f"level {level}", "groups": [f"level {level + 1}"]} for level in range(9)]
    groups[-1]["groups"] = []
    _first(content)["groups"] = groups
    _first(content)["role_assignments"] = []


def _same_user(content: dict[str, Any]) -> None:
    content["users"][1]["external_id"] = content["users"][0]["external_id"]


def _same_email(content: dict[str, Any]) -> None:
    content["users"][1]["email"] = content["users"][0]["email"].upper()


def _wrong_type(content: dict[str, Any]) -> None:
    content["users"][0]["email"] = 7


def _unknown_field(content: dict[str, Any]) -> None:
    content["users"][0]["nickname"] = "x"


def _missing_field(content: dict[str, Any]) -> None:
    del _first(content)["name"]


def _unknown_user(content: dict[str, Any]) -> None:
    _first(content)["groups"][0]["members"] = ["who"]


def _unknown_permission(content: dict[str, Any]) -> None:
    content["roles"][0]["permissions"].append("nothing:at-all")


def _cycle_of_resources(content: dict[str, Any]) -> None:
    content["resource_types"][0]["parent_type_slugs"] = ["organization", "repo"]
    first, second = _first(content)["resources"][:2]
    first["parent"] = {"type": "repo", "external_id": second["external_id"]}
    second["parent"] = {"type": "repo", "external_id": first["external_id"]}


def _deep_resources(content: dict[str, Any]) -> None:
    content["resource_types"][0]["parent_type_slugs"] = ["organization", "repo"]
    resources = _first(content)["resources"]
    for inner, outer in zip(resources[1:10], resources[:9], strict=True):
        inner["parent"] = {"type": "repo", "external_id": outer["external_id"]}


def _cycle_of_types(content: dict[str, Any]) -> None:
    content["resource_types"] += [
        {"slug": "a", "name": "A", "parent_type_slugs": ["b"]},
        {"slug": "b", "name": "B", "parent_type_slugs": ["a"]},
    ]


def _built_in_group(content: dict[str, Any]) -> None:
    _first(content)["groups"][0]["name"] = "everyone"


def _role_of_another_type(content: dict[str, Any]) -> None:
    _first(content)["role_assignments"][0]["role"] = "member"


def _out_of_scope(content: dict[str, Any]) -> None:
    content["roles"][-1]["permissions"].append("organization:view")


def _custom_role_without_prefix(content: dict[str, Any]) -> None:
    _first(content)["roles"] = [{"slug": "auditor", "name": "Auditor", "permissions": []}]


def _bad_end(content: dict[str, Any]) -> None:
    _first(content)["role_assignments"][0]["expires_at"] = "tomorrow"


BROKEN: list[tuple[Break, str, str]] = [
    (_unknown_role, "organizations[0].memberships[3].roles[0]", "ROLE_NOT_FOUND"),
    (_cycle_of_groups, "organizations[0].groups[", "GROUP_CYCLE"),
    (_deep_groups, "organizations[0].groups[0].groups", "GROUP_DEPTH_EXCEEDED"),
    (_same_user, "users[1].external_id", "EXTERNAL_ID_TAKEN"),
    (_same_email, "users[1].email", "EMAIL_TAKEN"),
    (_wrong_type, "users[0].email", "FIELD_INVALID"),
    (_unknown_field, "users[0].nickname", "FIELD_INVALID"),
    (_missing_field, "organizations[0].name", "FIELD_REQUIRED"),
    (_unknown_user, "organizations[0].groups[0].members[0]", "MEMBERSHIP_NOT_FOUND"),
    (_unknown_permission, "roles[0].permissions[", "PERMISSION_NOT_FOUND"),
    (_cycle_of_resources, "organizations[0].resources[", "RESOURCE_CYCLE"),
    (_deep_resources, "organizations[0].resources[", "RESOURCE_DEPTH_EXCEEDED"),
    (_cycle_of_types, "resource_types (", "RESOURCE_TYPE_CYCLE"),
    (_built_in_group, "organizations[0].groups[0].name", "GROUP_BUILT_IN"),
    (
        _role_of_another_type,
        "organizations[0].role_assignments[0].role",
        "ROLE_RESOURCE_TYPE_MISMATCH",
    ),
    (_out_of_scope, "roles[6].permissions[", "PERMISSION_OUT_OF_SCOPE"),
    (_custom_role_without_prefix, "organizations[0].roles[0].slug", "FIELD_INVALID"),
    (_bad_end, "organizations[0].role_assignments[0].expires_at", "FIELD_INVALID"),
]


@pytest.mark.parametrize(("broken", "path", "reason"), BROKEN)
def test_broken_file_is_refused_whole(
    database: Database, broken: Break, path: str, reason: str
) -> None:
    content = copy.deepcopy(json.loads(KUBERNETES))
    broken(content)
    before = dump(database)
    with pytest.raises(InvalidArgument) as refused:
        apply(database, json.dumps(content).encode())
    assert refused.value.reason == "DIRECTORY_FILE_INVALID"
    found = [(place, text.partition(":")[0]) for place, text in refused.value.fields]
    assert any(place.startswith(path) and rule == reason for place, rule in found), found
    assert dump(database) == before


@pytest.mark.parametrize(
    ("data", "kind", "place"),
    [
        (KUBERNETES[:10_000], parse.JSON, "line 1"),
        (b'{"format": "authz-directory/1",\n "users": [}', parse.JSON, "line 2"),
        (b'{"format": "authz-directory/1", "format": "authz-directory/1"}', parse.JSON, "file"),
        (b'{"format": "authz-directory/2"}', parse.JSON, "format"),
        (b"[]", parse.JSON, "file"),
        (b"\xff\xfe", parse.JSON, "byte 0"),
        (b"[" * 100_000, parse.JSON, "line 1"),
        (b"format: authz-directory/1\nusers: [", parse.YAML, "line "),
        (b"format: authz-directory/1\nformat: authz-directory/1\n", parse.YAML, "line 2"),
        (b"a: &a [x]\nb: [*a, *a]\n", parse.YAML, "line 2"),
        (b"format: !!python/object/apply:os.system [id]\n", parse.YAML, "line 1"),
        (b"", parse.YAML, "file"),
    ],
)
def test_unreadable_file_is_refused_with_its_place(
    database: Database, data: bytes, kind: str, place: str
) -> None:
    before = dump(database)
    with pytest.raises(InvalidArgument) as refused:
        apply(database, data, kind)
    assert refused.value.fields[0][0].startswith(place), refused.value.fields
    assert dump(database) == before


def test_at_most_a_hundred_findings_are_told(database: Database) -> None:
    content = json.loads(KUBERNETES)
    for user in content["users"]:
        user["nickname"] = "x"
    with pytest.raises(InvalidArgument) as refused:
        apply(database, json.dumps(content).encode())
    assert len(refused.value.fields) == DIRECTORY_FINDINGS_MAX
    assert refused.value.metadata["findings"] == str(DIRECTORY_FINDINGS_MAX)


def test_last_owner_cannot_be_taken_away_by_a_file(database: Database) -> None:
    apply(database, EXAMPLE, parse.YAML)
    content = json.loads(exported(database))
    (acme,) = [each for each in content["organizations"] if each["external_id"] == "acme"]
    acme["memberships"][0]["status"] = "inactive"
    with pytest.raises(Refusal) as refused:
        apply(database, json.dumps(content).encode())
    assert "LAST_OWNER" in refused.value.fields[0][1]

"""Broken copies of a real directory file: refused whole, with the place, and nothing changes.

What each rule says is shown in tests/domain/test_directory_files.py, on an empty database. Here the
database is full, every broken copy also changes much that is right, and nothing of it may stay.
"""

import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.pb.authz.v1 import directory_files_pb2 as pb
from authz_service.rpc.call import Call
from authz_service.server import Worker
from authz_service.storage.feed import Feed
from authz_service.storage.tables import Base
from tests.callers import Caller, Refused

pytestmark = pytest.mark.both_databases

ROOT = Path(__file__).parents[2]
KUBERNETES = json.loads((ROOT / "tests" / "data" / "kubernetes.json").read_bytes())
JSON, YAML = pb.DIRECTORY_FILE_FORMAT_JSON, pb.DIRECTORY_FILE_FORMAT_YAML
# Not a multiple of anything: chunks end in the middle of everything.
CHUNK_BYTES = 7_919
# Written by every call that is let in.
UNTOLD = {"last_used_at"}
KEPT = ("kubernetes-client", "kubernetes-csi", "kubernetes-nightly")

Content = dict[str, Any]
Break = Callable[[Content], Any]


def part() -> Content:
    """Three of the organizations, with the people in them."""
    content = copy.deepcopy(KUBERNETES)
    content.pop("assertions")
    content["organizations"] = [
        each for each in content["organizations"] if each["external_id"] in KEPT
    ]
    people = {
        membership["user"]
        for each in content["organizations"]
        for membership in each["memberships"]
    }
    content["users"] = [user for user in content["users"] if user["external_id"] in people]
    return content  # type: ignore[no-any-return]


def changed() -> Content:
    """A sound copy that would create, update, and take away in every table."""
    content = part()
    for number, each in enumerate(content["organizations"]):
        each["name"] += " changed"
        each["metadata"] = {"changed": str(number)}
        each["groups"][0]["members"] = each["groups"][0].get("members", [])[:1]
        each["groups"].append({"name": "new group", "groups": [each["groups"][0]["name"]]})
        each["resources"].append({"type": "repo", "external_id": "new", "name": "New"})
        each["roles"] = [{"slug": "org-new", "name": "New", "permissions": ["organization:view"]}]
        each["role_assignments"].append(
            {
                "role": "repo-maintain",
                "resource": {"type": "repo", "external_id": "new"},
                "group": "new group",
            }
        )
    content["users"].append({"external_id": "new", "email": "new@example.com"})
    content["users"][0]["name"] = "Changed"
    content["roles"][0]["permissions"] = content["roles"][0]["permissions"][:-1]
    content["permissions"].append({"slug": "new:one", "name": "New"})
    return content


def rows(worker: Worker) -> str:
    """The SHA-256 of every row of every table."""
    hashed = hashlib.sha256()
    with worker.database.snapshot(SYSTEM) as snapshot:
        for table in Base.metadata.sorted_tables:
            columns = [column for column in table.c if column.name not in UNTOLD]
            found = snapshot.connection.execute(select(*columns))
            hashed.update(repr((table.name, sorted(repr(tuple(row)) for row in found))).encode())
    return hashed.hexdigest()


def send(
    worker: Worker, api: Caller, data: bytes, kind: int = JSON, *, validate_only: bool = False
) -> pb.ImportDirectoryResponse:
    """Imports a file in small chunks."""
    header = pb.ImportDirectoryHeader(format=kind, validate_only=validate_only)  # type: ignore[arg-type]
    parts = [pb.ImportDirectoryRequest(header=header).SerializeToString()]
    parts += [
        pb.ImportDirectoryRequest(chunk=data[start : start + CHUNK_BYTES]).SerializeToString()
        for start in range(0, len(data), CHUNK_BYTES)
    ]
    call = Call(
        "/authz.v1.DirectoryFileService/ImportDirectory",
        (("authorization", f"Bearer {api._bearer}"),),
    )
    reply = worker.hall.collect(call, iter(parts), lambda: False)
    if reply.status is not None and reply.status.code:
        raise Refused(reply.status)
    return pb.ImportDirectoryResponse.FromString(reply.payload)


def refusal(worker: Worker, api: Caller, data: bytes, kind: int = JSON) -> tuple[Refused, str]:
    """How a file is refused, and everything that its findings say."""
    with pytest.raises(Refused) as refused:
        send(worker, api, data, kind)
    said = str(refused.value.status)
    assert (refused.value.code, refused.value.reason) == (
        "INVALID_ARGUMENT",
        "DIRECTORY_FILE_INVALID",
    ), said
    return refused.value, said


def organization(content: Content, number: int = 1) -> Content:
    """One of the organizations, not the first."""
    found: Content = content["organizations"][number]
    return found


def put(*path: Any) -> Break:
    """A break that puts a value at a place: ``put("users", 0, "email", 7)``."""
    *outer, last, value = path

    def spoil(content: Content) -> None:
        target: Any = content
        for each in outer:
            target = target[each]
        target[last] = value

    return spoil


def put_in(*path: Any) -> Break:
    """The same inside the second organization."""
    return put("organizations", 1, *path)


def twice(name: str) -> Break:
    """A break that repeats the first entry of a list of the second organization."""
    return lambda content: organization(content)[name].append(
        copy.deepcopy(organization(content)[name][0])
    )


def without(*path: Any) -> Break:
    """A break that takes away what is at a place."""
    *outer, last = path

    def spoil(content: Content) -> None:
        target: Any = content
        for each in outer:
            target = target[each]
        del target[last]

    return spoil


def _ring_of_three(content: Content) -> None:
    groups = organization(content)["groups"]
    for number in range(3):
        groups[number]["groups"] = [groups[(number + 1) % 3]["name"]]


def _assignment(**fields: Any) -> Break:
    assignment = {
        "role": "repo-maintain",
        "resource": {"type": "repo", "external_id": "new"},
        "group": "new group",
    }

    def spoil(content: Content) -> None:
        made = {**assignment, **fields}
        organization(content)["role_assignments"].append(
            {key: value for key, value in made.items() if value is not None}
        )

    return spoil


def _reader_of_organization(content: Content) -> None:
    user = organization(content)["memberships"][0]["user"]
    resource = {"type": "organization", "external_id": organization(content)["external_id"]}
    _assignment(role="member", resource=resource, user=user, group=None)(content)


SURROGATE, DIRECTION, MARK = "a\ud800b", "a\u202eb", "\ufeffa"
IN = "organizations[1]."
# What is spoiled: (how, where a finding says it is, the reason it gives).
BROKEN: dict[str, tuple[Break, str, str]] = {
    "unknown role": (put_in("memberships", 2, "roles", ["nobody"]), IN, "ROLE_NOT_FOUND"),
    "role of a repository": (
        put_in("memberships", 2, "roles", ["repo-maintain"]),
        IN,
        "ROLE_RESOURCE_TYPE_MISMATCH",
    ),
    "unknown user": (put_in("memberships", 2, "user", "who"), IN, "USER_NOT_FOUND"),
    "member twice": (twice("memberships"), IN, "MEMBERSHIP_EXISTS"),
    "group twice": (twice("groups"), IN, "FIELD_INVALID"),
    "repository twice": (twice("resources"), IN, "EXTERNAL_ID_TAKEN"),
    "assignment twice": (twice("role_assignments"), IN, "ROLE_ASSIGNMENT_EXISTS"),
    "group in itself": (
        lambda content: organization(content)["groups"][0].update(
            groups=[organization(content)["groups"][0]["name"]]
        ),
        IN,
        "GROUP_CYCLE",
    ),
    "groups in a ring": (_ring_of_three, IN, "GROUP_CYCLE"),
    "unknown group in a group": (put_in("groups", 0, "groups", ["who"]), IN, "GROUP_NOT_FOUND"),
    "stranger in a group": (put_in("groups", 0, "members", ["new"]), IN, "MEMBERSHIP_NOT_FOUND"),
    "everyone": (put_in("groups", 0, "name", "everyone"), IN, "GROUP_BUILT_IN"),
    "long group name": (put_in("groups", 0, "name", "n" * 257), IN, "FIELD_INVALID"),
    "long description": (put_in("groups", 0, "description", "d" * 151), IN, "FIELD_INVALID"),
    "unknown type": (put_in("resources", 0, "type", "wiki"), IN, "RESOURCE_TYPE_NOT_FOUND"),
    "unknown parent": (
        put_in("resources", 0, "parent", {"type": "repo", "external_id": "who"}),
        IN,
        "RESOURCE_NOT_FOUND",
    ),
    "parent of a wrong type": (
        put_in("resources", 0, "parent", {"type": "repo", "external_id": "new"}),
        IN,
        "RESOURCE_PARENT_TYPE_NOT_ALLOWED",
    ),
    "external id with a space": (put_in("resources", 0, "external_id", " x"), IN, "FIELD_INVALID"),
    "external id too long": (put_in("external_id", "x" * 129), IN, "FIELD_INVALID"),
    "organization twice": (
        lambda content: content["organizations"].append(copy.deepcopy(organization(content))),
        "organizations[3].",
        "EXTERNAL_ID_TAKEN",
    ),
    "assigned to nobody": (_assignment(group=None), IN, "FIELD_REQUIRED"),
    "assigned to two": (_assignment(user="new"), IN, "FIELDS_EXCLUSIVE"),
    "assigned to a stranger": (_assignment(group=None, user="new"), IN, "MEMBERSHIP_NOT_FOUND"),
    "assigned to no group": (_assignment(group="who"), IN, "GROUP_NOT_FOUND"),
    "assigned on nothing": (
        _assignment(resource={"type": "repo", "external_id": "who"}),
        IN,
        "RESOURCE_NOT_FOUND",
    ),
    "assigned in another organization": (
        _assignment(resource={"type": "organization", "external_id": KEPT[0]}),
        IN,
        "RESOURCE_NOT_FOUND",
    ),
    "unknown role assigned": (_assignment(role="nobody"), IN, "ROLE_NOT_FOUND"),
    "role of another type assigned": (
        _assignment(role="member"),
        IN,
        "ROLE_RESOURCE_TYPE_MISMATCH",
    ),
    "organization role assigned to a member": (
        _reader_of_organization,
        IN,
        "ORGANIZATION_ROLE_ON_MEMBERSHIP_ONLY",
    ),
    "an end that is none": (_assignment(expires_at="soon"), IN, "FIELD_INVALID"),
    "pending": (put_in("memberships", 2, "status", "pending"), IN, "FIELD_INVALID"),
    "role without prefix": (put_in("roles", 0, "slug", "new"), IN, "FIELD_INVALID"),
    "role twice": (twice("roles"), IN, "SLUG_TAKEN"),
    "role with an unknown permission": (
        put_in("roles", 0, "permissions", ["no:thing"]),
        IN,
        "PERMISSION_NOT_FOUND",
    ),
    "role out of scope": (
        put("roles", -1, "permissions", ["organization:view"]),
        "roles[",
        "PERMISSION_OUT_OF_SCOPE",
    ),
    "environment role with the prefix": (put("roles", -1, "slug", "org-x"), "roles[", "FIELD_"),
    "bad permission slug": (put("permissions", -1, "slug", "No!"), "permissions[", "FIELD_INVALID"),
    "permission twice": (
        lambda content: content["permissions"].append(content["permissions"][0]),
        "permissions[",
        "SLUG_TAKEN",
    ),
    "permission of an unknown type": (
        put("permissions", -1, "resource_type_slug", "wiki"),
        "permissions[",
        "RESOURCE_TYPE_NOT_FOUND",
    ),
    "type without a parent": (
        put("resource_types", 0, "parent_type_slugs", []),
        "resource_types[0]",
        "FIELD_INVALID",
    ),
    "type in itself alone": (
        put("resource_types", 0, "parent_type_slugs", ["repo"]),
        "resource_types",
        "RESOURCE_TYPE_CYCLE",
    ),
    "user twice": (
        lambda content: content["users"].append(content["users"][0]),
        "users[",
        "EXTERNAL_ID_TAKEN",
    ),
    "address twice": (
        lambda content: content["users"][-1].update(email=content["users"][0]["email"].upper()),
        "users[",
        "EMAIL_TAKEN",
    ),
    "no address": (put("users", 3, "email", "nobody"), "users[3]", "FIELD_INVALID"),
    "too much metadata": (
        put("users", 3, "metadata", {f"k{number}": "v" for number in range(51)}),
        "users[3]",
        "METADATA_INVALID",
    ),
    "a number for a text": (put("users", 3, "name", 7), "users[3].name", "FIELD_INVALID"),
    "a text for a list": (put_in("groups", "x"), IN + "groups", "FIELD_INVALID"),
    "a list for an object": (put_in("groups", 0, []), IN + "groups[0]", "FIELD_INVALID"),
    "nothing for a text": (put("users", 3, "email", None), "users[3].email", "FIELD_INVALID"),
    "a flag as text": (put("users", 3, "email_verified", "yes"), "users[3].email_v", "FIELD_"),
    "unknown field": (put_in("groups", 0, "colour", "x"), IN + "groups[0].colour", "FIELD_INVALID"),
    "unknown part": (put("groups", []), "groups", "FIELD_INVALID"),
    "missing name": (without("organizations", 1, "name"), IN + "name", "FIELD_REQUIRED"),
    "missing format": (without("format"), "format", "FIELD_REQUIRED"),
    "another format": (put("format", "authz-directory/2"), "format", "FIELD_INVALID"),
    **{
        f"{name} in {field}": (put(*path, value), place, "FIELD_INVALID")
        for name, value in (
            ("half a pair", SURROGATE),
            ("direction mark", DIRECTION),
            ("byte order mark", MARK),
            ("NUL", "a\x00b"),
            ("a line break", "a\nb"),
        )
        for field, path, place in (
            ("a name of a user", ("users", 3, "name"), "users[3].name"),
            ("metadata", ("users", 3, "metadata", "k"), "users[3].metadata"),
            ("a name", ("organizations", 1, "name"), IN + "name"),
            ("a member", ("organizations", 1, "memberships", 2, "user"), IN + "memberships[2]"),
            ("a role", ("organizations", 1, "role_assignments", 0, "role"), IN + "role_assig"),
        )
    },
    "half a pair as a field": (put("users", 3, SURROGATE, "x"), "users[3].", "FIELD_INVALID"),
    "a long field": (put("users", 3, "x" * 100_000, "x"), "users[3].xxx", "FIELD_INVALID"),
}


def prepared(worker: Worker, api: Caller) -> str:
    """Imports the sound file, and returns what is stored then."""
    sound = part()
    sound["users"][3]["metadata"] = {"k": "v"}
    send(worker, api, json.dumps(sound).encode())
    return rows(worker)


def broken_copy(spoil: Break) -> Content:
    """A copy that changes much and is broken in one place."""
    content = changed()
    content["users"][3]["metadata"] = {"k": "v"}
    spoil(content)
    return content


def test_broken_copies_are_refused_with_the_place_and_change_nothing(
    worker: Worker, api: Caller
) -> None:
    before = prepared(worker, api)
    for name, (spoil, path, reason) in BROKEN.items():
        refused, said = refusal(worker, api, json.dumps(broken_copy(spoil)).encode())
        assert any(field.startswith(path) for field in refused.fields), f"{name}: {said}"
        assert f"{reason}" in said, f"{name}: {said}"
        assert refused.metadata["path"].startswith(path), f"{name}: {said}"
        assert refused.status.ByteSize() < 4_200, name
        assert rows(worker) == before, name
    # The copy without a break would have changed much, so that all this was worth something.
    counts = send(worker, api, json.dumps(changed()).encode()).counts
    assert sum(each.created for each in counts) > 10
    assert sum(each.updated for each in counts) > 5
    assert rows(worker) != before


def test_cut_and_damaged_files_are_refused_and_change_nothing(worker: Worker, api: Caller) -> None:
    before = prepared(worker, api)
    data = json.dumps(changed(), indent=1).encode()
    lines = data.count(b"\n")
    for length in (0, 1, 100, len(data) // 3, len(data) // 2, len(data) - 20, len(data) - 1):
        refused, said = refusal(worker, api, data[:length])
        assert refused.metadata["path"].startswith("line "), said
        assert 1 <= int(refused.metadata["path"].split()[1]) <= lines + 1
    for damaged, path in (
        (data + b"}", "line "),
        (data + data, "line "),
        (b"\xef\xbb\xbf" + data, "line 1"),
        (data.replace(b'"users"', b'"users', 1), "line "),
        (data[:5_000] + b"\xff" + data[5_000:], "byte 5000"),
        (data.decode().encode("utf-16"), "byte 0"),
        (b"null", "file"),
        (b"[]", "file"),
        (b'"text"', "file"),
        (b"[" * 200_000, "line 1"),
        (b'{"format": "authz-directory/1", "users": ' + b"9" * 5_000 + b"}", "line 1"),
    ):
        refused, said = refusal(worker, api, damaged)
        assert refused.metadata["path"].startswith(path), said
    assert rows(worker) == before


def test_yaml_that_is_more_than_json_is_refused(worker: Worker, api: Caller) -> None:
    before = rows(worker)
    head = "format: authz-directory/1\n"
    for text, path, words in (
        ("? [a]\n: b\n", "line 2", "a key must be text"),
        ("? {a: b}\n: b\n", "line 2", "a key must be text"),
        ("users: &x []\norganizations: *x\n", "line 3", "aliases"),
        ("users: !!set {a, b}\n", "line 2", "tags"),
        ("users: !!python/name:os.system\n", "line 2", "tags"),
        ("users: !!bool z\n", "line 2", "tags"),
        ("users: !!binary aGVsbG8=\n", "line 2", "tags"),
        ("users: ! []\n", "line 2", "tags"),
        ("<<: {users: []}\n", "<<", "no field"),
        ("=: x\n", "=", "no field"),
        ("7: x\n", "7", "no field"),
        ("users: []\nusers: []\n", "line 3", "twice"),
        ("--- \nusers: []\n", "line 2", ""),
        ("users: [\n", "line ", ""),
        ("\tusers: []\n", "line 2", ""),
        ('users: [{external_id: "a", email: "a@example.com", name: "\\uD800"}]\n', "users[0]", ""),
        ("users: [{external_id: 2030-01-01, email: a@example.com, name: yes}]\n", "users[0]", ""),
        ("- " * 20_000, "line ", ""),
    ):
        refused, said = refusal(worker, api, (head + text).encode(), YAML)
        assert refused.metadata["path"].startswith(path), f"{text[:60]}: {said}"
        assert words in said, f"{text[:60]}: {said}"
    assert rows(worker) == before
    sound = yaml.safe_dump(part(), allow_unicode=True, sort_keys=False).encode()
    assert send(worker, api, sound, YAML).counts


def test_asking_first_says_the_same_and_writes_nothing(worker: Worker, api: Caller) -> None:
    before = prepared(worker, api)
    send(worker, api, json.dumps(changed()).encode(), validate_only=True)
    assert rows(worker) == before
    for name in ("groups in a ring", "unknown role", "address twice"):
        data = json.dumps(broken_copy(BROKEN[name][0])).encode()
        refused, _ = refusal(worker, api, data)
        with pytest.raises(Refused) as asked:
            send(worker, api, data, validate_only=True)
        assert asked.value.status == refused.status
    assert rows(worker) == before


def test_the_command_says_where_a_file_is_broken_and_ends_with_2(
    worker: Worker, api: Caller, tmp_path: Path
) -> None:
    prepared(worker, api)
    # What a running worker does anyway with new events.
    Feed(worker.database).catch_up()
    before = rows(worker)
    worker.start()
    (address,) = worker.addresses
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("AUTHZ_")},
        "PYTHONPATH": str(ROOT),
        "AUTHZ_ADDRESS": str(address),
        "AUTHZ_CREDENTIAL": str(api._bearer),
    }

    def run(file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "authz_service", "import", str(file)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    for name, path in (
        ("groups in a ring", IN + "groups["),
        ("unknown role", IN + "memberships[2]"),
    ):
        file = tmp_path / "broken.json"
        file.write_text(json.dumps(broken_copy(BROKEN[name][0])))
        done = run(file)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert "DIRECTORY_FILE_INVALID" in done.stderr, done
        assert path in done.stderr, done
        assert "Traceback" not in done.stderr
        assert rows(worker) == before, name
    cut = tmp_path / "cut.yaml"
    cut.write_text("format: authz-directory/1\nusers: [\n")
    done = run(cut)
    assert done.returncode == 2, done
    assert "line 3" in done.stderr, done
    assert rows(worker) == before

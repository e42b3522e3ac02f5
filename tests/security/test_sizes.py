"""Sizes at their limits are taken, and one more is refused with the field that has it (section 6).

What can be long is read from the descriptors: a new text or list without a row here fails.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from authz_service.base import ids
from authz_service.domain.service_credentials import SCOPES
from authz_service.server import Worker
from tests.callers import Caller, Refused, method
from tests.security import sound
from tests.security.sound import Place, Saved
from tests.security.test_bad_input import is_ignored

NAME, SHORT_NAME, DESCRIPTION, SLUG = 256, 48, 150, 48
SHORT_NAMED = {"Role", "Permission", "ResourceType"}
# Characters of one, two, three and four bytes: limits count characters.
WIDE = "aé名\U00010400"
# Filters that are compared as they are: what is not there is an empty list.
FILTERS = {
    ("ListEvents", "target_id"),
    ("ListEvents", "actor_id"),
    ("ListOrganizationMemberships", "role_slugs"),
    ("ListRoles", "resource_type_slug"),
}


class World(NamedTuple):
    """One organization, and the rows to go back to."""

    place: Place
    saved: Saved


@pytest.fixture
def world(api: Caller, worker: Worker, database_url: str) -> Iterator[World]:
    sound.prepare(api)
    place = sound.build(api, 0)
    with contextlib.closing(Saved(worker, database_url)) as saved:
        yield World(place, saved)


def refusal_of(worker: Worker, api: Caller, service: str, name: str, request: Message) -> Any:
    """How an admin is refused, None if not."""
    return sound.refusal(sound.ask(worker, [f"Bearer {api._bearer}"], service, name, request))


def kind_of(service: str, name: str) -> str:
    """What a creating or changing method is about: ``Role`` of ``CreateRole``."""
    for verb in ("Create", "Update", "Upsert"):
        if name.startswith(verb):
            return name.removeprefix(verb)
    return ""


def padded(text: str, length: int, filling: str = WIDE) -> str:
    """A text of that length that begins with another one."""
    return text + "".join(itertools.islice(itertools.cycle(filling), length - len(text)))


def limited(service: str, name: str, path: str) -> tuple[int, Callable[[int], str]] | None:
    """The limit of a text and how to make one of any length; None if it only names something."""
    kind, field = kind_of(service, name), path.rpartition(".")[2]
    if not kind:
        limits: dict[str, tuple[int, Callable[[int], str]]] = {}
    else:
        names = SHORT_NAME if kind in SHORT_NAMED else NAME
        limits = {
            "name": (names, lambda n: padded("", n)),
            "first_name": (NAME, lambda n: padded("", n)),
            "last_name": (NAME, lambda n: padded("", n)),
            "description": (DESCRIPTION, lambda n: padded("", n)),
            "external_id": (128, lambda n: padded("x", n, "xY ~")[: n - 1] + "z"),
            "email": (254, _address),
            "profile_picture_url": (2_048, lambda n: padded("https://example.com/", n, "x")),
            "phone_number": (16, lambda n: padded("+49", n, "1")),
            "locale": (64, lambda n: padded("de", n, "-abcdefgh")[: n - 1] + "x"),
        }
        if name.startswith("Create"):
            limits["slug"] = (SLUG, lambda n: padded("org-" if kind == "Role" else "s", n, "x"))
        if name in ("UpdateRole", "UpdatePermission", "UpdateResourceType"):
            limits.pop("external_id")
    limits["query"] = (100, lambda n: padded("", n))
    return limits.get(field) if path.count(".") < 2 and not path.startswith("parent") else None


def _address(length: int) -> str:
    """An address of that length with a local part of 64 and labels of at most 63."""
    rest = length - 64 - 1 - len(".example.com")
    labels = []
    while rest > 0:
        labels.append("d" * min(rest, 60))
        rest -= len(labels[-1]) + 1
    return f"{'l' * 64}@{'.'.join(labels)}.example.com"


def rows(world: World) -> Iterator[tuple[str, str, Message, int]]:
    """Every text of every sound request: method, request, which text."""
    for service, name, request in sound.requests(world.place):
        if not sound.is_sound(request):
            continue
        for number, _ in enumerate(sound.leaves(request)):
            yield service, name, request, number


def replaced(request: Message, number: int, text: str) -> tuple[str, Message]:
    """The path of one text of a request, and the request with another one there."""
    made = type(request)()
    made.CopyFrom(request)
    leaf = list(sound.leaves(made))[number]
    leaf.replace(text)
    return leaf.path, made


def test_texts_may_be_as_long_as_said_and_no_longer(
    world: World, worker: Worker, api: Caller
) -> None:
    seen = set()
    for service, name, request, number in rows(world):
        path, _ = replaced(request, number, "x")
        found = limited(service, name, path)
        if found is None or (service, name, path) in seen:
            continue
        seen.add((service, name, path))
        maximum, make = found
        text = make(maximum)
        assert len(text) == maximum, path
        refused = refusal_of(worker, api, service, name, replaced(request, number, text)[1])
        assert refused is None, f"{service}.{name} {path}: {refused}"
        if sound.everything(worker) != world.saved.rows:
            world.saved.restore()
        for length in (maximum + 1, maximum + 2, 2 * maximum, 100_000):
            spoiled = replaced(request, number, make(length))[1]
            refused = refusal_of(worker, api, service, name, spoiled)
            assert refused is not None, f"{service}.{name} took {length} of {path}"
            got = (refused.code, refused.reason)
            assert got == ("INVALID_ARGUMENT", "FIELD_INVALID"), f"{name} {path}: {refused}"
            field = path.rpartition(".")[2]
            assert refused.metadata["field"].rpartition(".")[2] == field, f"{name}: {refused}"
            assert len(str(refused)) < 500
        assert sound.everything(worker) == world.saved.rows, f"{name} {path}"
    assert len(seen) > 40


def test_overlong_names_of_things_are_refused_shortly(
    world: World, worker: Worker, api: Caller
) -> None:
    for service, name, request, number in rows(world):
        for length in (600, 200_000):
            path, spoiled = replaced(request, number, "x" * length)
            if limited(service, name, path) is not None:
                continue
            refused = refusal_of(worker, api, service, name, spoiled)
            if (name, path) in FILTERS or name == "BatchCheck" or path.startswith("resources."):
                assert refused is None, f"{name} {path}: {refused}"
            elif refused is None:
                # Deletions of what may be missing.
                assert "allow_missing: true" in str(spoiled), f"{service}.{name} took {path}"
            else:
                allowed = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION")
                assert refused.code in allowed, f"{name} {path}: {refused}"
                assert refused.status.ByteSize() < 2_000, f"{name} {path}"
            assert sound.everything(worker) == world.saved.rows, f"{name} {path}"


def test_white_space_around_a_name_is_not_counted(
    world: World, worker: Worker, api: Caller
) -> None:
    made = api.GroupService.CreateGroup(
        organization_id=world.place.organization,
        name=" " * 300 + "n" * NAME + "  ",
        description="\u3000" * 10 + "d" * DESCRIPTION,
    ).group
    assert (made.name, made.description) == ("n" * NAME, "d" * DESCRIPTION)


def metadata_of(api: Caller, world: World, entries: dict[str, str], *, create: bool) -> Any:
    """Writes a metadata map and returns what is stored."""
    if create:
        return api.OrganizationService.CreateOrganization(
            name="New", metadata=entries
        ).organization.metadata
    return api.UserService.UpdateUser(
        user={"id": world.place.user, "metadata": entries}, update_mask={"paths": ["metadata"]}
    ).user.metadata


@pytest.mark.parametrize("create", [True, False])
def test_metadata_has_its_three_limits(
    world: World, worker: Worker, api: Caller, create: bool
) -> None:
    full = {f"{number:02d}{'k' * 38}": padded("", 600) for number in range(50)}
    assert dict(metadata_of(api, world, full, create=create)) == full
    before = sound.everything(worker)
    for spoiled, key in (
        ({"k" * 41: "v"}, "k" * 40),
        ({"k": padded("", 601)}, "k"),
        ({**full, "k": "v"}, ""),
        ({**full, **{f"more-{number}": "v" for number in range(5_000)}}, ""),
        ({"": "v"}, ""),
        ({"é": "v"}, ""),
        ({"a\nb": "v"}, ""),
    ):
        with pytest.raises(Refused) as refused:
            metadata_of(api, world, spoiled, create=create)
        assert (refused.value.code, refused.value.reason) == (
            "INVALID_ARGUMENT",
            "METADATA_INVALID",
        )
        assert refused.value.metadata["key"] == key
        assert refused.value.metadata["rule"]
        assert sound.everything(worker) == before


def test_metadata_limits_count_the_result(world: World, worker: Worker, api: Caller) -> None:
    full = {f"key-{number}": "v" for number in range(50)}
    metadata_of(api, world, full, create=False)
    with pytest.raises(Refused) as refused:
        metadata_of(api, world, {"one-more": "v"}, create=False)
    assert refused.value.reason == "METADATA_INVALID"
    swapped = metadata_of(api, world, {"one-more": "v", "key-0": ""}, create=False)
    assert len(swapped) == 50
    assert "key-0" not in swapped


# --- lists ---------------------------------------------------------------------------------------

Entries = Callable[[Place, int], list[Any]]


class Listed(NamedTuple):
    """A list with a limit.

    Attributes:
        maximum: Entries that are taken; None if only what exists bounds it.
        entries: So many entries, no two alike.
    """

    maximum: int | None
    entries: Entries


def _slugs(place: Place, count: int) -> list[str]:
    return [f"org-{number}" for number in range(count)]


def _ids(prefix: str) -> Entries:
    return lambda place, count: [ids.new(prefix) for _ in range(count)]


def _members(place: Place, count: int) -> list[Any]:
    return [{"organization_membership_id": ids.new(ids.MEMBERSHIP)} for _ in range(count)]


def _refs(place: Place, count: int) -> list[Any]:
    return [{"resource_id": ids.new(ids.RESOURCE)} for _ in range(count)]


def _entries(place: Place, count: int) -> list[Any]:
    return [
        {"group_id": place.group, "role_slug": place.editor_slug, "resource": ref}
        for ref in _refs(place, count)
    ]


def _items(place: Place, count: int) -> list[Any]:
    subject = {"organization_membership_id": place.membership}
    resource = {"resource_id": place.document}
    return [{"subject": subject, "permission_slug": "document:read", "resource": resource}] * count


def _roles(place: Place, count: int) -> list[Any]:
    return [{"role_slug": slug} for slug in _slugs(place, count)]


def _every_state(place: Place, count: int) -> list[int]:
    return [1] * count


LISTS: dict[tuple[str, str], Listed] = {
    ("BatchCheck", "items"): Listed(10_000, _items),
    ("CheckMatrix", "permission_slugs"): Listed(50, _slugs),
    ("CheckMatrix", "resources"): Listed(1_000, _refs),
    ("ListResources", "permission_slugs"): Listed(10, _slugs),
    ("ListResources", "resource_type_slugs"): Listed(10, _slugs),
    ("ModifyGroupMembers", "add"): Listed(100, _members),
    ("ModifyGroupMembers", "remove"): Listed(100, _members),
    ("SetRoleAssignments", "roles"): Listed(50, _roles),
    ("ModifyRoleAssignments", "add"): Listed(100, _entries),
    ("ModifyRoleAssignments", "remove"): Listed(100, _entries),
    ("CreateOrganizationMembership", "role_slugs"): Listed(50, _slugs),
    ("UpdateOrganizationMembership", "role_slugs"): Listed(50, _slugs),
    ("CreateResourceType", "parent_type_slugs"): Listed(10, _slugs),
    ("UpdateResourceType", "resource_type.parent_type_slugs"): Listed(10, _slugs),
    ("CreateRole", "permission_slugs"): Listed(500, _slugs),
    ("SetRolePermissions", "permission_slugs"): Listed(500, _slugs),
    ("AddRolePermissions", "permission_slugs"): Listed(500, _slugs),
    ("RemoveRolePermissions", "permission_slugs"): Listed(500, _slugs),
    ("CreateServiceCredential", "scopes"): Listed(20, lambda p, n: (SCOPES * 2)[:n]),
    ("UpdateServiceCredential", "service_credential.scopes"): Listed(
        20, lambda p, n: (SCOPES * 2)[:n]
    ),
    ("CreateServiceCredential", "organization_ids"): Listed(1_000, _ids(ids.ORGANIZATION)),
    ("UpdateServiceCredential", "service_credential.organization_ids"): Listed(
        1_000, _ids(ids.ORGANIZATION)
    ),
    # Without a limit of their own: bounded by the message, and by what exists.
    ("SetRolePriority", "role_slugs"): Listed(None, _slugs),
    ("ListOrganizationMemberships", "role_slugs"): Listed(None, _slugs),
    ("ListOrganizationMemberships", "statuses"): Listed(None, _every_state),
    ("ListGroupMembers", "statuses"): Listed(None, _every_state),
    ("ListServiceCredentials", "states"): Listed(None, _every_state),
    ("ListEvents", "kinds"): Listed(None, lambda p, n: ["role.created"] * n),
    ("Watch", "kinds"): Listed(None, lambda p, n: ["role.created"] * n),
    ("ExportDirectory", "organization_ids"): Listed(None, _ids(ids.ORGANIZATION)),
}


def repeated(descriptor: Descriptor, prefix: str = "") -> Iterator[str]:
    """Paths of all lists of a request but those of masks and of list entries."""
    for field in descriptor.fields:
        inner = field.message_type
        is_map = inner is not None and inner.GetOptions().map_entry
        if is_ignored(field) or is_map:
            continue
        if field.is_repeated:
            yield prefix + field.name
        elif inner is not None and inner.file.package == "authz.v1":
            yield from repeated(inner, f"{prefix}{field.name}.")


def test_every_list_has_a_row(worker: Worker) -> None:
    found = set()
    for each in worker.hall.methods.values():
        descriptor = method(each.service.rpartition(".")[2], each.name).input_type
        found |= {(each.name, path) for path in repeated(descriptor)}
    assert set(LISTS) == found


def with_list(world: World, service: str, name: str, path: str, entries: list[Any]) -> Message:
    """A sound request with these entries in one of its lists; other lists of entries are empty."""
    fields = sound.ROWS[service, name](world.place)[0]
    *outer, last = path.split(".")
    target = fields
    for part in outer:
        target = target[part]
    target[last] = entries
    for twin in {"add", "remove"} - {last}:
        if last in ("add", "remove"):
            target.pop(twin, None)
    if name.endswith("OrganizationMembership"):
        target.pop("role_slug", None)
    made: Message = message_factory.GetMessageClass(method(service, name).input_type)(**fields)
    return made


def test_lists_may_be_as_long_as_said_and_no_longer(
    world: World, worker: Worker, api: Caller
) -> None:
    for each in worker.hall.methods.values():
        service, name = each.service.rpartition(".")[2], each.name
        for path in repeated(method(service, name).input_type):
            if service == "ResourceService":
                continue  # no lists
            maximum, entries = LISTS[name, path]
            counts = [10_000] if maximum is None else [maximum, maximum + 1, 3 * maximum]
            for count in counts:
                given = entries(world.place, count)
                request = with_list(world, service, name, path, given)
                refused = refusal_of(worker, api, service, name, request)
                if maximum is None or count <= maximum:
                    reason = refused.reason if refused else ""
                    assert reason not in ("REQUEST_TOO_LARGE", "INTERNAL"), f"{name} {path}"
                    assert refused is None or refused.status.ByteSize() < 8_000, f"{name} {path}"
                    if sound.everything(worker) != world.saved.rows:
                        world.saved.restore()
                    continue
                assert refused is not None, f"{service}.{name} took {len(given)} {path}"
                got = (refused.code, refused.reason)
                assert got == ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE"), f"{path}: {refused}"
                assert refused.metadata == {
                    "field": refused.metadata["field"],
                    "maximum": str(maximum),
                    "actual": str(len(given)),
                }, refused
                assert refused.metadata["field"].rpartition(".")[2] == path.rpartition(".")[2]
                assert sound.everything(worker) == world.saved.rows


def test_add_and_remove_are_counted_together(world: World, worker: Worker, api: Caller) -> None:
    place = world.place
    for count, too_many in ((50, False), (51, True)):
        for call, make in (
            (api.GroupService.ModifyGroupMembers, _members),
            (api.RoleAssignmentService.ModifyRoleAssignments, _entries),
        ):
            named = (
                {"group_id": place.group}
                if make is _members
                else {"organization_id": place.organization}
            )
            with pytest.raises(Refused) as refused:
                call(add=make(place, count), remove=make(place, 50), **named)
            assert (refused.value.reason == "REQUEST_TOO_LARGE") == too_many, refused.value
    assert sound.everything(worker) == world.saved.rows


def test_batch_of_exactly_the_limit_answers_every_item(world: World, api: Caller) -> None:
    place = world.place
    items = _items(place, 10_000)
    items[0] = {**items[0], "permission_slug": "nothing"}
    items[-1] = {**items[-1], "resource": {"resource_id": ids.new(ids.RESOURCE)}}
    results = api.AuthorizationService.BatchCheck(items=items).results
    assert len(results) == 10_000
    errors = [place for place, result in enumerate(results) if result.HasField("error")]
    assert errors == [0, 9_999]
    assert all(result.decision.allowed for result in results[1:-1])


def test_pages_are_never_larger_than_the_maximum(world: World, api: Caller) -> None:
    for size in (1_001, 1_000_000, 2**31 - 1):
        assert api.GroupService.ListGroups(
            organization_id=world.place.organization, page_size=size
        ).groups
    for size in (-1, -(2**31)):
        with pytest.raises(Refused) as refused:
            api.GroupService.ListGroups(organization_id=world.place.organization, page_size=size)
        assert (refused.value.reason, refused.value.fields) == ("FIELD_INVALID", ["page_size"])


def test_a_message_is_as_large_as_the_limit_says(world: World, worker: Worker, api: Caller) -> None:
    """Counted before anything is decoded; unknown fields fill it up."""
    maximum = worker.hall.message_bytes_max
    assert maximum == 4 * 1024 * 1024
    for service, name, request in sound.requests(world.place):
        streaming = worker.hall.methods[f"/authz.v1.{service}/{name}"].streaming
        if streaming != "unary" or not name.startswith(("Get", "Check")):
            continue
        if not sound.is_sound(request):
            continue
        payload = request.SerializeToString()
        # Field 2047, bytes, with a length of four bytes.
        for missing in (0, 1):
            size = maximum - len(payload) - 6 + missing
            length = bytes(
                [(size & 127) | 128, (size >> 7 & 127) | 128, (size >> 14 & 127) | 128, size >> 21]
            )
            large = payload + b"\xfa\x7f" + length + b"\x00" * size
            assert len(large) == maximum + missing
            try:
                api.call(service, name, large)
            except Refused as refused:
                assert missing, f"{name}: {refused}"
                assert refused.reason == "REQUEST_TOO_LARGE"
                assert refused.metadata == {
                    "field": "",
                    "maximum": str(maximum),
                    "actual": str(maximum + 1),
                }
            else:
                assert not missing, name

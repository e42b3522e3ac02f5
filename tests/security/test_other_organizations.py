"""What belongs to another organization answers as what never existed, whatever names it (C16, C17).

Every text of every request that names something of an organization is replaced by the name of the
same thing of another one, and by a name of nothing; the two answers must not differ.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message

from authz_service.rpc.call import Reply
from authz_service.server import Worker
from tests.callers import Caller, method
from tests.security import sound
from tests.security.sound import Place, Saved


class Spoiled(NamedTuple):
    """Two requests that differ in one name.

    Attributes:
        foreign: Names something of the other organization there.
        nothing: Names what never existed there.
        bound: How many other names of the request are of the own organization.
    """

    service: str
    name: str
    path: str
    kind: str
    foreign: Message
    nothing: Message
    bound: int

    def __str__(self) -> str:
        return f"{self.service}.{self.name} {self.path} = {self.kind}"


class World(NamedTuple):
    """Two organizations, the names of nothing, and who asks."""

    own: Place
    other: Place
    nothing: Place
    admin: str
    restricted: str
    saved: Saved


@pytest.fixture
def world(api: Caller, worker: Worker, database_url: str) -> Iterator[World]:
    sound.prepare(api)
    own, other = sound.build(api, 1), sound.build(api, 2)
    restricted = api.ConfigurationService.CreateServiceCredential(
        name="Of one", scopes=["admin"], organization_ids=[own.organization]
    ).secret
    with contextlib.closing(Saved(worker, database_url)) as saved:
        nothing = sound.nowhere(own)
        yield World(own, other, nothing, f"Bearer {api._bearer}", f"Bearer {restricted}", saved)


def spoiled(world: World) -> Iterator[Spoiled]:
    """Every request with every name in it replaced."""
    kinds = world.own.values
    for service, name, request in sound.requests(world.own):
        named = [leaf for leaf in sound.leaves(request) if leaf.value in kinds]
        for number, leaf in enumerate(named):
            kind = kinds[leaf.value]
            made = []
            for place in (world.other, world.nothing):
                message = type(request)()
                message.CopyFrom(request)
                target = [each for each in sound.leaves(message) if each.value in kinds][number]
                target.replace(getattr(place, kind))
                made.append(message)
            yield Spoiled(service, name, leaf.path, kind, *made, bound=len(named) - 1)


# What two answers to one request differ in, and what is new in them: ids, times, tokens.
VARIES = re.compile(r"_[0-7][0-9A-Z]{25}\b|(?<=seconds: )\d+|(?<=nanos: )\d+|(?<=etag: ).*")


def shown(world: World, case: Spoiled, reply: Reply) -> tuple[Any, ...]:
    """All that a caller sees of an answer, with the names and tokens in it blanked."""
    refused = sound.refusal(reply)
    if refused is None:
        response = answer(case, reply)
        for field in ("consistency_token", "secret", "cursor"):
            if field in response.DESCRIPTOR.fields_by_name:
                response.ClearField(field)
        return "answered", VARIES.sub("?", blanked(world, str(response)))
    return (
        refused.code,
        refused.reason,
        {key: blanked(world, value) for key, value in refused.metadata.items()},
        refused.fields,
        blanked(world, refused.status.message),
        len(refused.status.message),
    )


def answer(case: Spoiled, reply: Reply) -> Any:
    """The response of an answered call."""
    descriptor = method(case.service, case.name).output_type
    return message_factory.GetMessageClass(descriptor).FromString(reply.payload)


def blanked(world: World, text: str) -> str:
    """The text without what must differ: the names that were asked for."""
    for place in (world.other, world.nothing):
        for value in place.values:
            text = text.replace(value, "?" * len(value))
    return text


def is_unchanged(world: World, worker: Worker) -> bool:
    """True if every row is what it was; puts it back if not."""
    if sound.everything(worker) == world.saved.rows:
        return True
    world.saved.restore()
    return False


def of(world: World, worker: Worker, place: Place) -> list[str]:
    """All rows that name an organization, of all tables."""
    return sorted(
        row for rows in sound.everything(worker).values() for row in rows
        if place.organization in row
    )  # fmt: skip


# A unique value of the whole deployment: who may set one learns that it is taken (3.1, 3.2).
UNIQUE = {
    ("UpdateOrganization", "organization.id"),
    ("UpdateOrganization", "organization.external_id"),
    ("UpdateUser", "user.id"),
    ("UpdateUser", "user.email"),
    ("UpdateUser", "user.external_id"),
}
# Names nothing of the other organization there: a user may be in any number of them, a credential
# is the deployment's, and a key that is not found is a new one.
FREE = {
    ("CreateOrganizationMembership", "user_id"),
    ("UpdateServiceCredential", "service_credential.id"),
    ("UpdateServiceCredential", "service_credential.organization_ids"),
    ("UpsertResource", "external_id"),
}


def test_foreign_names_answer_a_restricted_credential_like_names_of_nothing(
    world: World, worker: Worker
) -> None:
    asked = 0
    differing = []
    foreign_rows = of(world, worker, world.other)
    for case in spoiled(world):
        if case.path == "organization.external_id":
            continue
        answers = []
        for request in (case.foreign, case.nothing):
            reply = sound.ask(worker, [world.restricted], case.service, case.name, request)
            answers.append(shown(world, case, reply))
            if answers[-1][0] != "answered":
                assert is_unchanged(world, worker), str(case)
            elif sound.everything(worker) != world.saved.rows:
                # Made something of its own under that name; nothing of the other one changed.
                assert of(world, worker, world.other) == foreign_rows, str(case)
                world.saved.restore()
        asked += 1
        if answers[0] != answers[1]:
            differing.append((str(case), *answers))
    assert differing == []
    assert asked > 250


def test_taken_external_id_of_an_organization_tells_nothing_but_that(
    world: World, worker: Worker
) -> None:
    (case,) = [each for each in spoiled(world) if each.path == "organization.external_id"]
    reply = sound.ask(worker, [world.restricted], case.service, case.name, case.foreign)
    refused = sound.refusal(reply)
    assert refused is not None
    assert (refused.reason, refused.metadata) == (
        "EXTERNAL_ID_TAKEN",
        {"field": "external_id"},
    )
    assert world.other.organization not in str(refused)
    assert is_unchanged(world, worker)


def test_admin_cannot_join_objects_of_two_organizations(world: World, worker: Worker) -> None:
    asked = 0
    for case in spoiled(world):
        if not case.bound or (case.name, case.path) in FREE:
            continue
        reply = sound.ask(worker, [world.admin], case.service, case.name, case.foreign)
        refused = sound.refusal(reply)
        assert is_unchanged(world, worker), str(case)
        asked += 1
        if refused is None:
            assert says_nothing(answer(case, reply)), str(case)
        elif (case.name, case.path) in UNIQUE:
            assert refused.reason in ("EXTERNAL_ID_TAKEN", "EMAIL_TAKEN"), str(case)
        else:
            assert refused.code == "NOT_FOUND", f"{case}: {refused}"
    assert asked > 150


def says_nothing(response: Any) -> bool:
    """True for an empty list, a batch with an error in it, and a deletion that found nothing."""
    for name in ("results", "rows"):
        if hasattr(response, name):
            return any(row.HasField("error") for row in getattr(response, name))
    return not any(
        value
        for field, value in response.ListFields()
        if field.name not in ("consistency_token", "total_size")
    )


def test_admin_may_name_what_belongs_to_no_organization(world: World, worker: Worker) -> None:
    seen = set()
    foreign_rows = of(world, worker, world.other)
    for case in spoiled(world):
        if (case.name, case.path) not in FREE:
            continue
        seen.add((case.name, case.path))
        reply = sound.ask(worker, [world.admin], case.service, case.name, case.foreign)
        assert sound.refusal(reply) is None, str(case)
        if case.service != "ConfigurationService":
            assert of(world, worker, world.other) == foreign_rows, str(case)
        world.saved.restore()
    assert seen == FREE

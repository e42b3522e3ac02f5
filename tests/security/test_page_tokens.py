"""A page token opens the next page of its own question, and nothing else (C3, T11).

Which methods are lists is read from the descriptors: a new one without a second page here fails.
"""

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from authz_service.base.sealed import Sealer
from authz_service.config import Config, dev_environment
from authz_service.server import Worker
from tests.callers import Caller, Refused, method
from tests.conftest import ManualClock
from tests.security import sound
from tests.security.sound import Place

DAMAGED = ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
MISMATCH = ("INVALID_ARGUMENT", "PAGE_TOKEN_MISMATCH")
# What may change between two pages.
PAGING = {"page_token", "page_size", "include_total_size"}
BASE_64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Question(NamedTuple):
    """A list whose first page is not its last, and the token of the second."""

    service: str
    name: str
    request: Message
    token: str

    def __str__(self) -> str:
        return f"{self.service}.{self.name} {self.request}"


class World(NamedTuple):
    """Two organizations with everything twice, and every list of the first one."""

    place: Place
    other: Place
    questions: list[Question]


def twice(api: Caller, place: Place) -> None:
    """Adds what the lists about one object need for a second page."""
    groups = api.GroupService
    groups.AddGroupMember(group_id=place.group, member_group_id=place.spare)
    for outer in ("Outer", "Outermost"):
        made = groups.CreateGroup(organization_id=place.organization, name=outer).group
        groups.AddGroupMember(group_id=made.id, member_group_id=place.group)
        groups.AddGroupMember(group_id=made.id, member_group_id=place.inner)
        groups.AddGroupMember(group_id=made.id, organization_membership_id=place.membership)
    for membership in (place.other, place.former):
        groups.AddGroupMember(group_id=place.group, organization_membership_id=membership)
    spare = api.OrganizationMembershipService.CreateOrganizationMembership(
        user_id=api.UserService.CreateUser(
            email=f"second-{place.organization}@example.com"
        ).user.id,
        organization_id=place.organization,
    ).organization_membership
    api.OrganizationMembershipService.DeactivateOrganizationMembership(
        organization_membership_id=spare.id
    )
    groups.AddGroupMember(group_id=place.group, organization_membership_id=spare.id)
    for number in range(2):
        api.ResourceService.CreateResource(
            organization_id=place.organization,
            resource_type_slug="document",
            external_id=f"more-{number}",
            name="document",
            parent={"resource_id": place.workspace},
        )
    for holder in ({"group_id": place.group}, {"organization_membership_id": place.membership}):
        for resource in (place.workspace, place.desk):
            with contextlib.suppress(Refused):  # one of the four is there already
                api.RoleAssignmentService.CreateRoleAssignment(
                    role_slug=place.editor_slug, resource={"resource_id": resource}, **holder
                )
    elsewhere = api.OrganizationService.CreateOrganization(name="Acme").organization
    api.OrganizationMembershipService.CreateOrganizationMembership(
        user_id=place.user, organization_id=elsewhere.id
    )


@pytest.fixture
def world(api: Caller, worker: Worker) -> World:
    sound.prepare(api)
    api.RoleService.AddRolePermissions(
        role_id=api.RoleService.GetRole(key={"slug": "member"}).role.id,
        permission_slugs=["document:read", "document:edit"],
    )
    place, other = sound.build(api, 1), sound.build(api, 2)
    for each in (place, other):
        api.RoleService.SetRolePermissions(
            role_id=each.editor, permission_slugs=["document:read", "document:edit"]
        )
        twice(api, each)
    return World(place, other, list(questions(worker, bearer_of(api), place)))


def bearer_of(api: Caller) -> str:
    """What the caller's ``authorization`` says."""
    return f"Bearer {api._bearer}"


def with_page(request: Message, **fields: Any) -> Message:
    """The request for another page."""
    made = type(request)()
    made.CopyFrom(request)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def second_page(worker: Worker, bearer: str, service: str, name: str, request: Message) -> str:
    """The token of the second page, empty if there is none."""
    reply = sound.ask(worker, [bearer], service, name, with_page(request, page_size=1))
    assert sound.refusal(reply) is None, f"{name}: {sound.refusal(reply)}"
    response: Any = message_factory.GetMessageClass(method(service, name).output_type)()
    response.ParseFromString(reply.payload)
    return str(response.next_page_token)


def questions(worker: Worker, bearer: str, place: Place) -> Iterator[Question]:
    """Every list about a place that has a second page."""
    for service, name, request in sound.requests(place):
        if not is_list(service, name) or not sound.is_sound(request):
            continue
        if token := second_page(worker, bearer, service, name, request):
            yield Question(service, name, request, token)


def is_list(service: str, name: str) -> bool:
    """True for methods with pages."""
    return "page_token" in method(service, name).input_type.fields_by_name


def outcome(
    worker: Worker, bearer: str, question: Question, token: str, **fields: Any
) -> tuple[str, str]:
    """Code and reason of a question with a token; empty if it is answered."""
    request = with_page(question.request, page_token=token, **fields)
    refused = sound.refusal(sound.ask(worker, [bearer], question.service, question.name, request))
    if refused is None:
        return "", ""
    assert refused.metadata == {}, refused
    assert len(token) < 24 or token not in str(refused)
    return refused.code, refused.reason


def one_of_each(world: World) -> list[Question]:
    """One question of each method."""
    return list({(each.service, each.name): each for each in world.questions}.values())


def test_every_list_has_a_second_page_here(world: World, worker: Worker) -> None:
    lists = {
        (each.service.rpartition(".")[2], each.name)
        for each in worker.hall.methods.values()
        if is_list(each.service.rpartition(".")[2], each.name)
    }
    assert {(each.service, each.name) for each in world.questions} == lists
    assert len(lists) > 15


def test_a_token_opens_its_own_page_at_any_size(world: World, worker: Worker, api: Caller) -> None:
    for each in world.questions:
        for fields in ({}, {"page_size": 1}, {"page_size": 1_000}):
            assert outcome(worker, bearer_of(api), each, each.token, **fields) == ("", "")
        assert len(each.token) <= 1_024
        assert each.token.isascii()


def test_a_token_of_another_question_is_refused(world: World, worker: Worker, api: Caller) -> None:
    bearer = bearer_of(api)
    asked = 0
    for each in world.questions:
        for other in world.questions:
            if (each.service, each.name, each.request) == (
                other.service,
                other.name,
                other.request,
            ):
                continue
            assert outcome(worker, bearer, each, other.token) == MISMATCH, f"{each} {other}"
            asked += 1
    assert asked > 900


def changed(question: Question) -> Iterator[Message]:
    """The question with each of its filters different, one at a time."""
    for field in question.request.DESCRIPTOR.fields:
        if field.name in PAGING or field.name in ("consistency", "after_cursor"):
            continue
        made: Any = with_page(question.request)
        if field.type == FieldDescriptor.TYPE_BOOL:
            setattr(made, field.name, not getattr(made, field.name))
        elif field.enum_type is not None:
            getattr(made, field.name).append(field.enum_type.values[-1].number)
        elif field.name == "query":
            made.query += "xy"
        elif field.is_repeated and getattr(made, field.name):
            getattr(made, field.name).append(getattr(made, field.name)[0])
        else:
            continue
        yield made


def test_a_token_is_refused_with_any_other_filter(
    world: World, worker: Worker, api: Caller
) -> None:
    seen = set()
    for each in world.questions:
        for request in changed(each):
            seen.add((each.name, str(request)))
            spoiled = each._replace(request=request)
            assert outcome(worker, bearer_of(api), spoiled, each.token) == MISMATCH, spoiled
    assert len(seen) > 25


def test_a_token_of_another_organization_is_refused(
    world: World, worker: Worker, api: Caller
) -> None:
    bearer = bearer_of(api)
    others = {
        (name, number): request
        for number, (_, name, request) in enumerate(sound.requests(world.other))
    }
    own = {
        (name, number): request
        for number, (_, name, request) in enumerate(sound.requests(world.place))
    }
    asked = 0
    for each in world.questions:
        (key,) = {
            key for key, request in own.items()
            if request is each.request or (key[0], request) == (each.name, each.request)
        }  # fmt: skip
        if others[key] == each.request:
            continue  # about no organization
        spoiled = each._replace(request=others[key])
        assert outcome(worker, bearer, spoiled, each.token) == MISMATCH, spoiled
        asked += 1
    assert asked > 25


def test_a_token_of_another_caller_is_refused(world: World, worker: Worker, api: Caller) -> None:
    create = api.ConfigurationService.CreateServiceCredential
    callers = [
        create(name="Other", scopes=["admin"]).secret,
        create(name="Other", scopes=["admin"]).secret,
        create(
            name="Restricted", scopes=["admin"], organization_ids=[world.place.organization]
        ).secret,
    ]
    for each in one_of_each(world):
        for caller in callers:
            got = outcome(worker, f"Bearer {caller}", each, each.token)
            assert got == MISMATCH, f"{each} {got}"


def test_a_token_with_any_bit_flipped_is_refused(world: World, worker: Worker, api: Caller) -> None:
    bearer = bearer_of(api)
    for number, each in enumerate(one_of_each(world)):
        raw = base64.urlsafe_b64decode(each.token + "=" * (-len(each.token) % 4))
        # All bits of one, then of each other one a bit in every byte, another one each time.
        bits = [
            (place, bit)
            for place in range(len(raw))
            for bit in (range(8) if number == 0 else [(place + number) % 8])
        ]
        for place, bit in bits:
            flipped = bytearray(raw)
            flipped[place] ^= 1 << bit
            token = base64.urlsafe_b64encode(bytes(flipped)).rstrip(b"=").decode()
            assert outcome(worker, bearer, each, token) == DAMAGED, (place, bit)


def test_a_token_with_any_character_changed_is_refused(
    world: World, worker: Worker, api: Caller
) -> None:
    bearer = bearer_of(api)
    for number, each in enumerate(one_of_each(world)):
        for place, character in enumerate(each.token):
            following = BASE_64[(BASE_64.index(character) + 1 + number) % len(BASE_64)]
            token = each.token[:place] + following + each.token[place + 1 :]
            assert outcome(worker, bearer, each, token) == DAMAGED, (str(each), place)


def test_a_token_of_another_length_is_refused(world: World, worker: Worker, api: Caller) -> None:
    bearer = bearer_of(api)
    for number, each in enumerate(one_of_each(world)):
        token = each.token
        lengths = range(1, len(token)) if number == 0 else (1, 2, 24, 32, len(token) - 1)
        wrong = [token[:length] for length in lengths]
        wrong += [token[1:], token + "A", token + "=", token * 2, f" {token}", f"{token} "]
        wrong += ["A", "=", "ü" * 10, "\U0001f600", "A" * 1_024, "A" * 1_025, "A" * 1_000_000]
        wrong += [token.replace("-", "+").replace("_", "/") + "==", f"{token}\u00a0"]
        for each_wrong in wrong:
            assert outcome(worker, bearer, each, each_wrong) == DAMAGED, each_wrong[:80]


def test_a_token_ends_after_a_day(
    world: World, worker: Worker, api: Caller, config: Config
) -> None:
    bearer = bearer_of(api)
    sealer = Sealer(config.security.root_key_bytes(), "page")
    now = time.time()
    for each in one_of_each(world):
        payload = sealer.open(each.token)
        assert payload is not None
        digest, until, *after = json.loads(payload)
        assert abs(until - now - 24 * 3_600) < 60
        for seconds, expected in ((60, ("", "")), (0, DAMAGED), (-1, DAMAGED), (-now, DAMAGED)):
            ends = json.dumps([digest, int(now + seconds), *after]).encode()
            assert outcome(worker, bearer, each, sealer.seal(ends)) == expected, (each, seconds)


def with_keys(config: Config, clock: ManualClock, keys: str) -> Worker:
    """A worker on the same database with other root keys and the same first credential."""
    first = config.security.first_credential
    assert first is not None
    environment, _ = dev_environment(
        {
            "AUTHZ_DATABASE_URL": str(config.database.url.reveal()),
            "AUTHZ_LISTEN": "127.0.0.1:0",
            "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            "AUTHZ_RATE_PER_SECOND": "0",
            "AUTHZ_ROOT_KEYS": keys,
            "AUTHZ_FIRST_CREDENTIAL": first.reveal(),
        }
    )
    return Worker(Config.from_environment(environment), clock=clock)


def test_a_token_lives_as_long_as_its_key(
    world: World, worker: Worker, api: Caller, config: Config, clock: ManualClock
) -> None:
    worker.stop()
    old = base64.b64encode(config.security.root_key_bytes()[0]).decode()
    new = base64.b64encode(b"another key of at least 32 bytes").decode()
    for keys, expected in ((f"{new},{old}", ("", "")), (new, DAMAGED)):
        other = with_keys(config, clock, keys)
        try:
            for each in one_of_each(world):
                assert outcome(other, bearer_of(api), each, each.token) == expected, each
        finally:
            other.stop()


def test_content_of_a_token_is_bound_not_spelled_out(
    world: World, worker: Worker, api: Caller, config: Config
) -> None:
    """Even who could sign would gain nothing: texts in a cursor stay values."""
    bearer = bearer_of(api)
    sealer = Sealer(config.security.root_key_bytes(), "page")
    before = sound.everything(worker)
    for each in one_of_each(world):
        payload = sealer.open(each.token)
        assert payload is not None
        digest, until, *after = json.loads(payload)
        for text in ("' OR '1'='1", "'; DROP TABLE events; --", '"', "%", "\x00", "\\"):
            spoiled = [text if isinstance(value, str) else value for value in after]
            if spoiled == after:
                continue
            token = sealer.seal(json.dumps([digest, until, *spoiled]).encode())
            request = with_page(each.request, page_token=token, page_size=1_000)
            reply = sound.ask(worker, [bearer], each.service, each.name, request)
            refused = sound.refusal(reply)
            assert refused is None or refused.code == "INVALID_ARGUMENT", f"{each}: {refused}"
    assert sound.everything(worker) == before

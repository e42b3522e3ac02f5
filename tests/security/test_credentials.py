"""No method, unary or streaming, does anything for a bearer that is not exactly right (C11, C12).

Every method is asked what it would do at once for an admin. That methods are closed without any
credential is in tests/architecture/test_scopes.py; here are the bearers that come close.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from google.protobuf.message import Message

from authz_service.domain.service_credentials import SCOPES
from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.server import Worker
from tests.callers import Caller, Refused, method
from tests.conftest import ManualClock
from tests.security import sound
from tests.security.sound import Saved

SECONDS = 600
ADMIN = "admin"


class Bearers(NamedTuple):
    """Secrets of credentials with all scopes."""

    good: str
    other: str
    revoked: str
    expired: str
    rotated: str


class World(NamedTuple):
    """What every method is asked, by whom, and what it leaves as it was."""

    requests: dict[tuple[str, str], Message]
    bearers: Bearers
    saved: Saved


@pytest.fixture
def world(api: Caller, worker: Worker, database_url: str, clock: ManualClock) -> Iterator[World]:
    sound.prepare(api)
    place = sound.build(api, 0)
    service = api.ConfigurationService

    def made(name: str, **fields: object) -> tuple[str, str]:
        answer = service.CreateServiceCredential(name=name, scopes=[ADMIN], **fields)
        return answer.service_credential.id, answer.secret

    end = {"seconds": int(clock().timestamp()) + SECONDS}
    made_ones = [made(name) for name in ("good", "other", "revoked", "rotated")]
    made_ones.insert(3, made("expired", expires_at=end))
    ids, secrets = zip(*made_ones, strict=True)
    service.RevokeServiceCredential(service_credential_id=ids[2])
    service.RotateServiceCredential(service_credential_id=ids[4])
    clock.advance(seconds=SECONDS)
    requests: dict[tuple[str, str], Message] = {}
    for service_name, name, request in sound.requests(place):
        requests.setdefault((service_name, name), request)
    with contextlib.closing(Saved(worker, database_url)) as saved:
        yield World(requests, Bearers(*secrets), saved)


def refusals(world: World, worker: Worker, *headers: str) -> Iterator[tuple[str, Refused]]:
    """How every method refuses a call with these ``authorization`` headers."""
    for (service, name), request in world.requests.items():
        refused = sound.refusal(sound.ask(worker, list(headers), service, name, request))
        assert refused is not None, f"{service}.{name} answered"
        yield f"{service}.{name}", refused
    assert sound.everything(worker) == world.saved.rows


def near(bearers: Bearers) -> dict[str, tuple[str, ...]]:
    """Headers that are nearly those of a credential with all scopes."""
    good, other = bearers.good, bearers.other
    head, _, tail = good.rpartition("_")
    other_head, _, other_tail = other.rpartition("_")
    last = "A" if tail[-1] != "A" else "B"
    return {
        "no scheme": (good,),
        "another scheme": (f"Basic {good}",),
        "scheme alone": ("Bearer",),
        "nothing after the scheme": ("Bearer ",),
        "two blanks": (f"Bearer  {good}",),
        "a tab": (f"Bearer\t{good}",),
        "a blank after it": (f"Bearer {good} ",),
        "a line after it": (f"Bearer {good}\n",),
        "one character more": (f"Bearer {good}A",),
        "one character less": (f"Bearer {good[:-1]}",),
        "the last character changed": (f"Bearer {good[:-1]}{last}",),
        "the case changed": (f"Bearer {head}_{tail.swapcase()}",),
        "the id alone": (f"Bearer {head}",),
        "the secret of another one": (f"Bearer {head}_{other_tail}",),
        "the id of another one": (f"Bearer {other_head}_{tail}",),
        "another kind of secret": (f"Bearer sk{good.removeprefix('azc')}",),
        "quoted": (f'Bearer "{good}"',),
        "joined with a wrong one": (f"Bearer {good}, Bearer {good}A",),
        "joined with itself": (f"Bearer {good}, Bearer {good}",),
        "joined without scheme": (f"Bearer {good},{other}",),
        "twice": (f"Bearer {good}", f"Bearer {good}"),
        "good, then another good one": (f"Bearer {good}", f"Bearer {other}"),
        "good, then wrong": (f"Bearer {good}", f"Bearer {good}A"),
        "wrong, then good": (f"Bearer {good}A", f"Bearer {good}"),
        "good, then empty": (f"Bearer {good}", ""),
        "empty, then good": ("", f"Bearer {good}"),
        "revoked": (f"Bearer {bearers.revoked}",),
        "the secret before a rotation": (f"Bearer {bearers.rotated}",),
        "expired and wrong": (f"Bearer {bearers.expired[:-1]}{last}A",),
    }


def test_every_method_lets_the_good_ones_in(world: World, worker: Worker) -> None:
    for bearer in (world.bearers.good, world.bearers.other):
        for scheme in ("Bearer", "bearer", "BEARER"):
            for (service, name), request in world.requests.items():
                header = f"{scheme} {bearer}"
                refused = sound.refusal(sound.ask(worker, [header], service, name, request))
                assert refused is None, f"{service}.{name}: {refused}"
                if worker.hall.methods[f"/authz.v1.{service}/{name}"].is_mutating:
                    world.saved.restore()


def test_no_method_answers_what_is_nearly_a_credential(world: World, worker: Worker) -> None:
    for what, headers in near(world.bearers).items():
        for name, refused in refusals(world, worker, *headers):
            got = (refused.code, refused.reason, refused.metadata)
            assert got == ("UNAUTHENTICATED", "CREDENTIAL_INVALID", {}), f"{what}: {name}"
            for secret in world.bearers:
                assert secret not in str(refused), f"{what}: {name}"


def test_no_method_answers_an_expired_credential(world: World, worker: Worker) -> None:
    for name, refused in refusals(world, worker, f"Bearer {world.bearers.expired}"):
        assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "CREDENTIAL_EXPIRED"), name


def test_no_method_answers_a_second_way_to_say_who_calls(world: World, worker: Worker) -> None:
    good = f"Bearer {world.bearers.good}"
    for key in ("authorization-bin", "proxy-authorization"):
        for (service, name), request in world.requests.items():
            refused = sound.refusal(
                sound.ask(worker, [good], service, name, request, more=((key, good),))
            )
            assert refused is not None, f"{service}.{name} answered"
            assert refused.reason == "CREDENTIAL_INVALID", name
    assert sound.everything(worker) == world.saved.rows


def test_every_method_needs_exactly_its_scope(
    world: World, worker: Worker, api: Caller, database_url: str
) -> None:
    create = api.ConfigurationService.CreateServiceCredential
    single = {scope: create(name=scope, scopes=[scope]).secret for scope in SCOPES}
    without = {
        scope: create(
            name="Others", scopes=[each for each in SCOPES if each not in (scope, ADMIN)]
        ).secret
        for scope in SCOPES
    }
    with contextlib.closing(Saved(worker, database_url)) as saved:
        for (service, name), request in world.requests.items():
            needed = str(method(service, name).GetOptions().Extensions[required_scope])
            bearers = [single[each] for each in SCOPES if each not in (needed, ADMIN)]
            for bearer in [*bearers, without[needed]]:
                reply = sound.ask(worker, [f"Bearer {bearer}"], service, name, request)
                refused = sound.refusal(reply)
                assert refused is not None, f"{service}.{name} answered"
                got = (refused.code, refused.reason, refused.metadata)
                assert got == ("PERMISSION_DENIED", "SCOPE_MISSING", {"scope": needed}), name
            assert sound.everything(worker) == saved.rows, f"{service}.{name}"
            reply = sound.ask(worker, [f"Bearer {single[needed]}"], service, name, request)
            assert sound.refusal(reply) is None, f"{service}.{name}: {sound.refusal(reply)}"
            saved.restore()


def test_organization_in_metadata_says_nothing(world: World, worker: Worker, api: Caller) -> None:
    """Who is restricted stays so whatever the metadata says (T24)."""
    restricted = api.ConfigurationService.CreateServiceCredential(
        name="Restricted", scopes=[ADMIN], organization_ids=[place_of(api)]
    ).secret
    foreign = api.OrganizationService.CreateOrganization(name="Other").organization
    for key in ("x-organization-id", "organization-id", "authz-organization-id", "tenant"):
        caller = api.with_bearer(restricted).with_metadata(**{key: foreign.id})
        with pytest.raises(Refused) as refused:
            caller.OrganizationService.GetOrganization(organization_id=foreign.id)
        assert refused.value.reason == "ORGANIZATION_NOT_FOUND"


def place_of(api: Caller) -> str:
    """The organization that is there."""
    (organization,) = api.OrganizationService.ListOrganizations().organizations
    return str(organization.id)

"""Service credentials over the hall, with the authenticator that serves real calls."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from authz_service.base.actor import SYSTEM, Actor
from authz_service.base.errors import PermissionDenied
from authz_service.domain import service_credentials as domain
from authz_service.domain.service_credentials import SCOPES
from authz_service.pb.authz.v1 import configuration_pb2 as pb
from authz_service.server import Worker
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Event, ServiceCredential
from tests.architecture.test_protos import SCOPES as DECLARED_SCOPES
from tests.callers import Caller, Refused
from tests.conftest import ManualClock

ACTIVE, EXPIRED, REVOKED = (
    pb.SERVICE_CREDENTIAL_STATE_ACTIVE,
    pb.SERVICE_CREDENTIAL_STATE_EXPIRED,
    pb.SERVICE_CREDENTIAL_STATE_REVOKED,
)
MISSING = "credential_01HZZZZZZZZZZZZZZZZZZZZZZZ"


@pytest.fixture
def settings() -> dict[str, str]:
    return {"AUTHZ_LIMIT_SERVICE_CREDENTIALS": "4"}


def create(api: Caller, **fields: Any) -> Any:
    return api.ConfigurationService.CreateServiceCredential(
        **{"name": "caller", "scopes": ["read"], **fields}
    )


def update(api: Caller, paths: list[str], **fields: Any) -> Any:
    return api.ConfigurationService.UpdateServiceCredential(
        service_credential=fields, update_mask={"paths": paths}
    ).service_credential


def listed(api: Caller, *states: int) -> list[str]:
    response = api.ConfigurationService.ListServiceCredentials(states=states)
    return [row.name for row in response.service_credentials]


def events(worker: Worker) -> list[Any]:
    """Returns the events about credentials, in order."""
    with worker.database.snapshot(SYSTEM) as snapshot:
        return list(
            snapshot.connection.execute(
                select(*Event.__table__.columns)
                .where(Event.target_type == "service_credential")
                .order_by(Event.sequence)
            )
        )


def works(api: Caller, secret: str) -> str:
    """Returns the reason for which a read with that secret is refused, empty if it is not."""
    try:
        api.with_bearer(secret).OrganizationService.ListOrganizations()
    except Refused as refused:
        return refused.reason
    return ""


# --- create --------------------------------------------------------------------------------------


def test_created_credential_is_shown_with_its_secret_once_and_works(
    api: Caller, worker: Worker
) -> None:
    organization = api.OrganizationService.CreateOrganization(name="Acme").organization
    made = create(
        api,
        name=" Billing ",
        scopes=["list", "read", "list"],
        organization_ids=[organization.id, organization.id],
    )
    credential = made.service_credential
    assert credential.name == "Billing"
    assert list(credential.scopes) == ["list", "read"]
    assert list(credential.organization_ids) == [organization.id]
    assert credential.state == ACTIVE
    assert not credential.HasField("expires_at")
    assert not credential.HasField("last_used_at")
    assert made.secret.startswith("azc_")
    assert credential.obfuscated_secret == f"azc_…{made.secret[-4:]}"
    assert works(api, made.secret) == ""
    (found,) = api.ConfigurationService.ListServiceCredentials().service_credentials
    assert found == credential
    (event,) = events(worker)
    assert (event.kind, event.is_primary, event.realm) == ("service_credential.created", True, "*")
    assert event.target_id == credential.id
    assert json.loads(event.data)["etag"] == credential.etag


def test_secret_is_in_no_event_and_stored_as_a_hash_only(api: Caller, worker: Worker) -> None:
    made = create(api)
    rotated = api.ConfigurationService.RotateServiceCredential(
        service_credential_id=made.service_credential.id, overlap={"seconds": 60}
    )
    with worker.database.snapshot(SYSTEM) as snapshot:
        stored = [
            *snapshot.connection.execute(select(*ServiceCredential.__table__.columns)).one(),
            *(text for event in events(worker) for text in (event.data, event.previous)),
        ]
    for secret in (made.secret, rotated.secret):
        random_part = secret.rpartition("_")[2]
        assert not any(random_part in str(value) for value in stored)


def test_replayed_creation_shows_no_secret(api: Caller) -> None:
    repeating = api.with_metadata(idempotency_key="deploy-1")
    first, again = create(repeating), create(repeating)
    assert again.service_credential == first.service_credential
    assert first.secret
    assert again.secret == ""
    assert len(listed(api)) == 1


@pytest.mark.parametrize(
    ("fields", "reason", "metadata"),
    [
        ({"name": " "}, "FIELD_REQUIRED", {"field": "name"}),
        ({"name": "n" * 257}, "FIELD_INVALID", {"field": "name", "rule": "at most 256 characters"}),
        ({"scopes": []}, "FIELD_REQUIRED", {"field": "scopes"}),
        ({"scopes": ["read", "write"]}, "FIELD_INVALID", {"field": "scopes[1]"}),
        ({"scopes": ["read"] * 21}, "REQUEST_TOO_LARGE", {"field": "scopes", "actual": "21"}),
        ({"organization_ids": [""]}, "FIELD_REQUIRED", {"field": "organization_ids[0]"}),
        (
            {"organization_ids": ["org"] * 1_001},
            "REQUEST_TOO_LARGE",
            {"field": "organization_ids", "maximum": "1000", "actual": "1001"},
        ),
        (
            {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
            "FIELD_INVALID",
            {"field": "expires_at"},
        ),
    ],
)
def test_creation_with_a_bad_value_is_refused(
    api: Caller, worker: Worker, fields: dict[str, Any], reason: str, metadata: dict[str, str]
) -> None:
    with pytest.raises(Refused) as refused:
        create(api, **fields)
    assert (refused.value.code, refused.value.reason) == ("INVALID_ARGUMENT", reason)
    assert metadata.items() <= refused.value.metadata.items()
    assert events(worker) == []


def test_creation_for_an_organization_that_is_not_there_is_refused(
    api: Caller, worker: Worker
) -> None:
    organization = api.OrganizationService.CreateOrganization(name="Acme").organization
    with pytest.raises(Refused) as refused:
        create(api, organization_ids=[organization.id, "org_x", "org_y"])
    assert (refused.value.code, refused.value.reason) == ("NOT_FOUND", "ORGANIZATION_NOT_FOUND")
    assert refused.value.metadata == {"organization_id": "org_x"}
    assert events(worker) == []


def test_scopes_are_those_that_rpcs_declare() -> None:
    assert set(SCOPES) == DECLARED_SCOPES
    assert len(SCOPES) == 20


def test_limit_counts_the_credentials_that_are_active(api: Caller, clock: ManualClock) -> None:
    clock.stop_at(datetime(2030, 1, 1, tzinfo=UTC))
    create(api, name="ends", expires_at=datetime(2030, 1, 2, tzinfo=UTC))
    made = [create(api, name=f"c{i}").service_credential for i in range(3)]
    with pytest.raises(Refused) as refused:
        create(api)
    assert (refused.value.code, refused.value.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    assert refused.value.metadata == {"limit": "service_credentials", "maximum": "4"}
    api.ConfigurationService.RevokeServiceCredential(service_credential_id=made[0].id)
    create(api)
    clock.advance(days=1)
    create(api)


# --- what counts from the next call on -----------------------------------------------------------


def test_revoked_credential_is_refused_on_its_next_call(api: Caller, worker: Worker) -> None:
    made = create(api)
    assert works(api, made.secret) == ""
    revoked = api.ConfigurationService.RevokeServiceCredential(
        service_credential_id=made.service_credential.id, etag=made.service_credential.etag
    ).service_credential
    assert revoked.state == REVOKED
    assert works(api, made.secret) == "CREDENTIAL_INVALID"
    again = api.ConfigurationService.RevokeServiceCredential(
        service_credential_id=made.service_credential.id
    )
    assert again.service_credential == revoked
    assert [event.kind for event in events(worker)] == [
        "service_credential.created",
        "service_credential.revoked",
    ]


def test_revocation_counts_for_decisions_that_remember_the_credential(api: Caller) -> None:
    made = create(api, scopes=["check"])
    checking = api.with_bearer(made.secret).AuthorizationService

    def check() -> str:
        with pytest.raises(Refused) as refused:
            checking.Check(
                subject={"organization_membership_id": "om_x"},
                permission_slug="organization:view",
                resource={"resource_id": "resource_x"},
            )
        return refused.value.reason

    assert [check(), check()] == ["MEMBERSHIP_NOT_FOUND", "MEMBERSHIP_NOT_FOUND"]
    api.ConfigurationService.RevokeServiceCredential(
        service_credential_id=made.service_credential.id
    )
    assert check() == "CREDENTIAL_INVALID"


def test_credential_ends_at_its_end(api: Caller, clock: ManualClock) -> None:
    clock.stop_at(datetime(2030, 1, 1, tzinfo=UTC))
    made = create(api, expires_at=datetime(2030, 1, 1, 0, 1, tzinfo=UTC))
    clock.advance(seconds=59)
    assert works(api, made.secret) == ""
    clock.advance(seconds=1)
    assert works(api, made.secret) == "CREDENTIAL_EXPIRED"
    assert listed(api, EXPIRED) == ["caller"]


def test_scopes_and_organizations_count_as_changed(api: Caller) -> None:
    acme = api.OrganizationService.CreateOrganization(name="Acme").organization
    globex = api.OrganizationService.CreateOrganization(name="Globex").organization
    made = create(api, scopes=["check"])
    caller = api.with_bearer(made.secret)
    with pytest.raises(Refused) as refused:
        caller.OrganizationService.ListOrganizations()
    assert (refused.value.code, refused.value.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
    assert refused.value.metadata == {"scope": "read"}
    update(
        api,
        ["scopes", "organization_ids"],
        id=made.service_credential.id,
        scopes=["read", "write:organizations"],
        organization_ids=[acme.id],
    )
    assert caller.OrganizationService.ListOrganizations().organizations == [acme]
    with pytest.raises(Refused) as refused:
        caller.OrganizationService.GetOrganization(organization_id=globex.id)
    assert refused.value.reason == "ORGANIZATION_NOT_FOUND"
    with pytest.raises(Refused) as refused:
        caller.OrganizationService.CreateOrganization(name="Initech")
    assert refused.value.reason == "ORGANIZATION_RESTRICTED"


def test_rotated_secret_works_and_the_former_one_for_the_overlap(
    api: Caller, worker: Worker, clock: ManualClock
) -> None:
    clock.stop_at(datetime(2030, 1, 1, tzinfo=UTC))
    made = create(api)
    rotated = api.ConfigurationService.RotateServiceCredential(
        service_credential_id=made.service_credential.id, overlap={"seconds": 3_600}
    )
    assert rotated.secret != made.secret
    clock.advance(seconds=3_599)
    assert [works(api, made.secret), works(api, rotated.secret)] == ["", ""]
    clock.advance(seconds=1)
    assert works(api, made.secret) == "CREDENTIAL_EXPIRED"
    assert works(api, rotated.secret) == ""
    event = events(worker)[-1]
    assert (event.kind, event.is_primary) == ("service_credential.rotated", True)
    assert json.loads(event.previous) == {
        "obfuscated_secret": made.service_credential.obfuscated_secret
    }


def test_rotation_without_overlap_ends_every_former_secret(api: Caller) -> None:
    made = create(api)
    rotate = api.ConfigurationService.RotateServiceCredential
    first = rotate(
        service_credential_id=made.service_credential.id, overlap={"seconds": 7 * 24 * 3_600}
    )
    assert [works(api, made.secret), works(api, first.secret)] == ["", ""]
    second = rotate(service_credential_id=made.service_credential.id)
    assert [works(api, secret) for secret in (made.secret, first.secret, second.secret)] == [
        "CREDENTIAL_INVALID",
        "CREDENTIAL_INVALID",
        "",
    ]


@pytest.mark.parametrize("overlap", [{"seconds": 7 * 24 * 3_600 + 1}, {"nanos": -1}])
def test_rotation_with_a_bad_overlap_is_refused(api: Caller, overlap: dict[str, int]) -> None:
    made = create(api)
    with pytest.raises(Refused) as refused:
        api.ConfigurationService.RotateServiceCredential(
            service_credential_id=made.service_credential.id, overlap=overlap
        )
    assert refused.value.reason == "FIELD_INVALID"
    assert refused.value.metadata == {"field": "overlap", "rule": "0 to 7 days"}
    assert works(api, made.secret) == ""


# --- update --------------------------------------------------------------------------------------


def test_update_changes_what_the_mask_names_and_equal_values_nothing(
    api: Caller, worker: Worker
) -> None:
    end = datetime.now(UTC) + timedelta(days=1)
    made = create(api, expires_at=end).service_credential
    changed = update(api, ["name", "expires_at"], id=made.id, name="other", scopes=["admin"])
    assert (changed.name, list(changed.scopes)) == ("other", ["read"])
    assert not changed.HasField("expires_at")
    assert changed.etag != made.etag
    assert update(api, ["name"], id=made.id, name="other", etag=changed.etag) == changed
    first, second = events(worker)
    assert second.kind == "service_credential.updated"
    assert second.sequence == first.sequence + 1
    previous = json.loads(second.previous)
    assert previous.pop("expires_at").startswith(end.date().isoformat())
    assert previous == {"name": "caller"}


@pytest.mark.parametrize(
    ("paths", "fields", "reason", "metadata"),
    [
        (["name"], {}, "FIELD_INVALID", {"field": "service_credential.name"}),
        (["scopes"], {}, "FIELD_INVALID", {"field": "service_credential.scopes"}),
        (["scopes"], {"scopes": ["x"]}, "FIELD_INVALID", {"field": "service_credential.scopes[0]"}),
        (
            ["expires_at"],
            {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
            "FIELD_INVALID",
            {"field": "service_credential.expires_at"},
        ),
        (["state"], {}, "UPDATE_MASK_INVALID", {"path": "state"}),
        ([], {}, "FIELD_REQUIRED", {"field": "update_mask"}),
        (
            ["organization_ids"],
            {"organization_ids": ["org_x"]},
            "ORGANIZATION_NOT_FOUND",
            {"organization_id": "org_x"},
        ),
        (["name"], {"name": "n", "etag": "0"}, "ETAG_MISMATCH", {}),
    ],
)
def test_bad_update_is_refused(
    api: Caller,
    worker: Worker,
    paths: list[str],
    fields: dict[str, Any],
    reason: str,
    metadata: dict[str, str],
) -> None:
    made = create(api).service_credential
    with pytest.raises(Refused) as refused:
        update(api, paths, id=made.id, **fields)
    assert refused.value.reason == reason
    assert metadata.items() <= refused.value.metadata.items()
    assert len(events(worker)) == 1


def test_ended_credentials_stay_as_they_are(
    api: Caller, worker: Worker, clock: ManualClock
) -> None:
    clock.stop_at(datetime(2030, 1, 1, tzinfo=UTC))
    revoked = create(api, name="revoked").service_credential
    api.ConfigurationService.RevokeServiceCredential(service_credential_id=revoked.id)
    expired = create(api, name="x", expires_at=datetime(2030, 1, 2, tzinfo=UTC)).service_credential
    clock.advance(days=1)
    before = len(events(worker))
    for credential, state in ((revoked, "REVOKED"), (expired, "EXPIRED")):
        for call in (
            lambda: update(api, ["expires_at"], id=credential.id),  # noqa: B023
            lambda: api.ConfigurationService.RotateServiceCredential(
                service_credential_id=credential.id  # noqa: B023
            ),
        ):
            with pytest.raises(Refused) as refused:
                call()
            assert refused.value.code == "FAILED_PRECONDITION"
            assert refused.value.reason == "SERVICE_CREDENTIAL_NOT_ACTIVE"
            assert refused.value.metadata == {"state": state}
    assert len(events(worker)) == before
    api.ConfigurationService.RevokeServiceCredential(service_credential_id=expired.id)
    assert listed(api, REVOKED) == ["x", "revoked"]


def test_unknown_credential_is_not_found(api: Caller) -> None:
    service = api.ConfigurationService
    for call in (
        lambda: update(api, ["name"], id=MISSING, name="n"),
        lambda: service.RotateServiceCredential(service_credential_id=MISSING),
        lambda: service.RevokeServiceCredential(service_credential_id=MISSING),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.code, refused.value.reason) == (
            "NOT_FOUND",
            "SERVICE_CREDENTIAL_NOT_FOUND",
        )
        assert refused.value.metadata == {"service_credential_id": MISSING}
    with pytest.raises(Refused) as refused:
        update(api, ["name"], name="n")
    assert refused.value.metadata == {"field": "service_credential.id"}


def test_revocation_with_a_stale_etag_is_refused(api: Caller) -> None:
    made = create(api)
    with pytest.raises(Refused) as refused:
        api.ConfigurationService.RevokeServiceCredential(
            service_credential_id=made.service_credential.id, etag="0"
        )
    assert (refused.value.code, refused.value.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert works(api, made.secret) == ""


# --- list ----------------------------------------------------------------------------------------


def test_list_is_paged_and_filtered_by_state(api: Caller, clock: ManualClock) -> None:
    clock.stop_at(datetime(2030, 1, 1, tzinfo=UTC))
    create(api, name="ends", expires_at=datetime(2030, 1, 2, tzinfo=UTC))
    create(api, name="stays")
    gone = create(api, name="gone").service_credential
    api.ConfigurationService.RevokeServiceCredential(service_credential_id=gone.id)
    clock.advance(days=1)
    assert listed(api) == ["gone", "stays", "ends"]
    assert listed(api, ACTIVE) == ["stays"]
    assert listed(api, EXPIRED, REVOKED) == ["gone", "ends"]
    for size in (1, 2, 3, 4):
        walked = api.pages(
            "ConfigurationService", "ListServiceCredentials", "service_credentials", page_size=size
        )
        assert [row.name for row in walked] == ["gone", "stays", "ends"]
    token = api.ConfigurationService.ListServiceCredentials(page_size=1).next_page_token
    with pytest.raises(Refused) as refused:
        api.ConfigurationService.ListServiceCredentials(states=[ACTIVE], page_token=token)
    assert refused.value.reason == "PAGE_TOKEN_MISMATCH"
    with pytest.raises(Refused) as refused:
        api.ConfigurationService.ListServiceCredentials(states=[0])
    assert refused.value.reason == "FIELD_INVALID"


# --- restricted callers --------------------------------------------------------------------------


def test_restricted_admin_neither_sees_nor_makes_credentials(api: Caller, worker: Worker) -> None:
    organization = api.OrganizationService.CreateOrganization(name="Acme").organization
    made = create(api, scopes=["admin"], organization_ids=[organization.id])
    restricted = api.with_bearer(made.secret)
    assert listed(restricted) == []
    service = restricted.ConfigurationService
    own_id = made.service_credential.id
    for call in (
        lambda: create(restricted, organization_ids=[organization.id]),
        lambda: update(restricted, ["organization_ids"], id=own_id),
        lambda: service.RotateServiceCredential(service_credential_id=own_id),
        lambda: service.RevokeServiceCredential(service_credential_id=MISSING),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert (refused.value.code, refused.value.reason) == (
            "PERMISSION_DENIED",
            "ORGANIZATION_RESTRICTED",
        )
    assert len(events(worker)) == 1


# --- last use ------------------------------------------------------------------------------------


def test_last_use_is_told_to_the_minute_without_event_or_new_etag(
    api: Caller, worker: Worker, clock: ManualClock
) -> None:
    clock.stop_at(datetime(2030, 1, 1, tzinfo=UTC))
    made = create(api)
    create(api, name="unused")
    clock.advance(minutes=5)
    assert works(api, made.secret) == ""
    works(api, made.secret[:-1] + ("a" if made.secret[-1] != "a" else "b"))
    clock.advance(seconds=20)
    worker.credential_uses.write()
    unused, used = api.ConfigurationService.ListServiceCredentials().service_credentials
    assert not unused.HasField("last_used_at")
    told = used.last_used_at.ToDatetime(UTC)
    assert told == datetime(2030, 1, 1, 0, 5, 20, tzinfo=UTC)
    assert used.etag == made.service_credential.etag
    assert len(events(worker)) == 2
    clock.advance(minutes=5)
    worker.credential_uses.write()
    again = api.ConfigurationService.ListServiceCredentials().service_credentials[1]
    assert again.last_used_at == used.last_used_at


def test_wrong_secret_of_a_known_credential_is_no_use(api: Caller, worker: Worker) -> None:
    made = create(api)
    wrong = made.secret[:-1] + ("a" if made.secret[-1] != "a" else "b")
    assert works(api, wrong) == "CREDENTIAL_INVALID"
    worker.credential_uses.write()
    (row,) = api.ConfigurationService.ListServiceCredentials().service_credentials
    assert not row.HasField("last_used_at")


def test_last_uses_are_written_when_the_worker_stops(
    api: Caller, worker: Worker, database: Any
) -> None:
    made = create(api)
    works(api, made.secret)
    worker.stop()
    with database.snapshot(SYSTEM) as snapshot:
        (last_used_at,) = snapshot.connection.execute(select(ServiceCredential.last_used_at)).one()
    assert last_used_at is not None


# --- no climbing ---------------------------------------------------------------------------------


def test_nobody_hands_out_a_scope_beyond_their_own(api: Caller, worker: Worker) -> None:
    admin = create(api, scopes=["admin"]).service_credential
    lesser = Actor("SERVICE_CREDENTIAL", "lesser", frozenset({"read", "check"}))
    key = b"k" * 32

    def refused(work: Callable[[Transaction], object]) -> PermissionDenied:
        with pytest.raises(PermissionDenied) as refusal:
            worker.database.write(work, actor=lesser)
        return refusal.value

    for refusal in (
        refused(lambda tx: domain.create(tx, key=key, name="n", scopes=["read", "list"])),
        refused(lambda tx: domain.update(tx, admin.id, {"scopes": ("list",)})),
    ):
        assert (refusal.reason, refusal.metadata) == ("SCOPE_MISSING", {"scope": "list"})
    refusal = refused(lambda tx: domain.rotate(tx, admin.id, key=key, overlap=0))
    assert (refusal.reason, refusal.metadata) == ("SCOPE_MISSING", {"scope": "admin"})
    worker.database.write(
        lambda tx: domain.create(tx, key=key, name="n", scopes=["check"]), actor=lesser
    )

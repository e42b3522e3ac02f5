"""OrganizationService over the hall."""

import pytest

from tests.callers import Caller, Refused


def test_created_organization_can_be_read_by_id_and_by_key(api: Caller) -> None:
    made = api.OrganizationService.CreateOrganization(
        name=" Acme ", external_id="acme", metadata={"tier": "gold", "empty": ""}
    )
    assert made.organization.name == "Acme"
    assert dict(made.organization.metadata) == {"tier": "gold"}
    by_id = api.OrganizationService.GetOrganization(organization_id=made.organization.id)
    by_key = api.OrganizationService.GetOrganization(external_id="acme")
    assert by_id.organization == by_key.organization == made.organization


def test_taken_external_id_is_refused_and_leaves_nothing(api: Caller) -> None:
    api.OrganizationService.CreateOrganization(name="A", external_id="same")
    with pytest.raises(Refused) as refused:
        api.OrganizationService.CreateOrganization(name="B", external_id="same")
    assert (refused.value.code, refused.value.reason) == ("ALREADY_EXISTS", "EXTERNAL_ID_TAKEN")
    assert refused.value.metadata == {"field": "external_id"}
    assert len(api.OrganizationService.ListOrganizations().organizations) == 1


def test_repeat_with_an_idempotency_key_creates_once(api: Caller) -> None:
    repeating = api.with_metadata(idempotency_key="sign-up-1")
    first = repeating.OrganizationService.CreateOrganization(name="Acme")
    again = repeating.OrganizationService.CreateOrganization(name="Acme")
    assert again.organization == first.organization
    with pytest.raises(Refused) as refused:
        repeating.OrganizationService.CreateOrganization(name="Other")
    assert refused.value.reason == "IDEMPOTENCY_KEY_REUSED"


def test_update_with_a_stale_etag_is_refused(api: Caller) -> None:
    made = api.OrganizationService.CreateOrganization(name="Acme").organization
    changed = api.OrganizationService.UpdateOrganization(
        organization={"id": made.id, "name": "Acme 2", "etag": made.etag},
        update_mask={"paths": ["name"]},
    ).organization
    assert changed.name == "Acme 2"
    assert changed.etag != made.etag
    with pytest.raises(Refused) as refused:
        api.OrganizationService.UpdateOrganization(
            organization={"id": made.id, "name": "Acme 3", "etag": made.etag},
            update_mask={"paths": ["name"]},
        )
    assert (refused.value.code, refused.value.reason) == ("ABORTED", "ETAG_MISMATCH")


def test_pages_cover_every_organization_once_newest_first(api: Caller) -> None:
    made = [
        api.OrganizationService.CreateOrganization(name=f"Org {i}").organization.id
        for i in range(5)
    ]
    for size in (1, 2, 5, 6):
        listed = api.pages(
            "OrganizationService", "ListOrganizations", "organizations", page_size=size
        )
        assert [row.id for row in listed] == made[::-1]


def test_deleted_organization_is_gone_and_absent_ones_are_told(api: Caller) -> None:
    made = api.OrganizationService.CreateOrganization(name="Acme").organization
    deleted = api.OrganizationService.DeleteOrganization(organization_id=made.id)
    assert dict(deleted.deleted_counts) == {"organization": 1, "group": 1, "resource": 1}
    for name in ("GetOrganization", "DeleteOrganization"):
        with pytest.raises(Refused) as refused:
            getattr(api.OrganizationService, name)(organization_id=made.id)
        assert refused.value.reason == "ORGANIZATION_NOT_FOUND"
        assert refused.value.metadata == {"organization_id": made.id}
    again = api.OrganizationService.DeleteOrganization(organization_id=made.id, allow_missing=True)
    assert dict(again.deleted_counts) == {}

"""UserService over the hall."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from authz_service.base.actor import SYSTEM
from authz_service.config import Config
from authz_service.pb.authz.v1 import users_pb2 as pb
from authz_service.server import Worker
from authz_service.storage.tables import Event, RoleAssignment, User
from tests.callers import Caller, Refused
from tests.directories import Directory, Recorded

NONE, CALLER = pb.EMAIL_VERIFICATION_SOURCE_NONE, pb.EMAIL_VERIFICATION_SOURCE_CALLER
ENVIRONMENT = SimpleNamespace(id="*")
MISSING = "user_01HZZZZZZZZZZZZZZZZZZZZZZZ"
RESTRICTED = ("PERMISSION_DENIED", "ORGANIZATION_RESTRICTED", {})


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    return Directory(api, worker, config)


def create(api: Caller, email: str, **fields: Any) -> Any:
    return api.UserService.CreateUser(email=email, **fields).user


def changed(api: Caller, user: Any, **fields: Any) -> Any:
    """Updates the named fields and returns the user."""
    return api.UserService.UpdateUser(
        user={"id": user.id, **fields}, update_mask={"paths": [*fields]}
    ).user


def joined(api: Caller, user: Any, organization: Any, *role_slugs: str) -> Any:
    return api.OrganizationMembershipService.CreateOrganizationMembership(
        user_id=user.id, organization_id=organization.id, role_slugs=role_slugs
    ).organization_membership


def refusal(call: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(**fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def invalid(field: str, call: Any, **fields: Any) -> None:
    """Checks that a value is refused for its shape."""
    code, reason, metadata = refusal(call, **fields)
    assert (code, reason, metadata["field"]) == ("INVALID_ARGUMENT", "FIELD_INVALID", field)
    assert metadata["rule"]


def unknown(**metadata: str) -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "USER_NOT_FOUND", metadata


def count(directory: Directory) -> int:
    """Returns how many events the environment has."""
    return len(directory.events(ENVIRONMENT))


# --- create and get ------------------------------------------------------------------------------


def test_created_user_is_found_by_id_by_key_and_by_address(
    api: Caller, directory: Directory
) -> None:
    before = count(directory)
    made = create(
        api,
        " Ann.Lee@Example.com ",
        email_verified=True,
        first_name=" Ann ",
        last_name="Lee",
        name="Ann Lee",
        profile_picture_url="https://pictures.example.com/ann.png?size=2",
        phone_number="+4930123456",
        locale="de-AT",
        external_id="ann",
        metadata={"team": "blue", "empty": ""},
    )
    assert made.email == "Ann.Lee@Example.com"
    assert (made.first_name, made.last_name, made.name) == ("Ann", "Lee", "Ann Lee")
    assert (made.email_verified, made.email_verification_source) == (True, CALLER)
    assert made.locale == "de-AT"
    assert made.phone_number == "+4930123456"
    assert made.profile_picture_url == "https://pictures.example.com/ann.png?size=2"
    assert dict(made.metadata) == {"team": "blue"}
    assert made.id.startswith("user_")
    assert made.created_at == made.updated_at
    for named in (
        {"user_id": made.id},
        {"external_id": "ann"},
        {"email": "ANN.LEE@EXAMPLE.COM"},
    ):
        assert api.UserService.GetUser(**named).user == made
    assert directory.recorded(ENVIRONMENT, before) == [Recorded("user.created", made.id, True)]
    data, previous = directory.data(ENVIRONMENT)
    assert (data["email"], data["metadata"], previous) == (made.email, {"team": "blue"}, {})


def test_user_with_an_address_alone_has_empty_fields(api: Caller) -> None:
    made = create(api, "ann@example.com")
    assert (made.email_verified, made.email_verification_source) == (False, NONE)
    for name in ("name", "locale", "external_id", "phone_number", "profile_picture_url"):
        assert getattr(made, name) == ""
    assert not made.metadata


@pytest.mark.parametrize(
    ("stored", "others"),
    [
        ("Ann@Example.COM", ["ann@example.com", "ANN@EXAMPLE.COM"]),
        ("ann@bücher.example", ["ann@BÜCHER.example", "ann@xn--bcher-kva.example"]),
        # One letter in two encodings: composed, and a base letter with a combining mark.
        ("zo\u00e9@example.com", ["ZOE\u0301@example.com"]),
        # The Kelvin sign is a K.
        ("\u212aim@example.com", ["kim@example.com"]),
    ],
)
def test_an_address_is_one_users_in_every_spelling(
    api: Caller, directory: Directory, stored: str, others: list[str]
) -> None:
    made = create(api, stored)
    assert made.email == stored
    before = count(directory)
    for spelling in [stored, *others]:
        assert refusal(api.UserService.CreateUser, email=spelling) == (
            "ALREADY_EXISTS",
            "EMAIL_TAKEN",
            {"field": "email"},
        )
        assert api.UserService.GetUser(email=spelling).user == made
        assert [user.id for user in api.UserService.ListUsers(email=spelling).users] == [made.id]
    assert count(directory) == before


def test_nothing_else_is_folded_in_an_address(api: Caller) -> None:
    for email in ("ann.lee@example.com", "annlee@example.com", "ann+x@example.com"):
        create(api, email)
    assert len(api.UserService.ListUsers().users) == 3


@pytest.mark.parametrize("email", ["ann@office.local", "ann@team.test", "o'hara+tag@a-b.example"])
def test_addresses_of_private_networks_are_addresses(api: Caller, email: str) -> None:
    assert create(api, email).email == email


@pytest.mark.parametrize(
    "email",
    [
        "ann",
        "ann@",
        "@example.com",
        "ann@localhost",
        "ann@example..com",
        "ann@exa mple.com",
        "Ann <ann@example.com>",
        "ann@example.com, bob@example.com",
        '"ann lee"@example.com',
        "ann@[192.0.2.1]",
        f"{'a' * 243}@example.com",
    ],
)
def test_what_is_no_address_is_refused_everywhere(api: Caller, email: str) -> None:
    user = create(api, "bob@example.com")
    for call in (api.UserService.CreateUser, api.UserService.GetUser, api.UserService.ListUsers):
        invalid("email", call, email=email)
    invalid(
        "user.email",
        api.UserService.UpdateUser,
        user={"id": user.id, "email": email},
        update_mask={"paths": ["email"]},
    )


def test_address_of_254_characters_is_stored_and_one_more_is_refused(api: Caller) -> None:
    # An address has at most 63 octets between two dots of its domain.
    domain = ".".join(["d" * 60] * 3) + ".example"
    local = "a" * (254 - len(domain) - 1)
    assert create(api, f"{local}@{domain}").email == f"{local}@{domain}"
    invalid("email", api.UserService.CreateUser, email=f"a{local}@{domain}")


GOOD = {
    "first_name": ["a" * 256],
    "name": ["Ann \u200d Lee", "ann"],
    "profile_picture_url": [
        "https://example.com",
        "https://example.com:8443/a?b=c#d",
        f"https://example.com/{'a' * 2028}",
    ],
    "phone_number": ["+12", "+491512345678901"[:16]],
    "locale": ["de", "de-AT", "zh-Hant-TW", "sl-rozaj-biske", "es-419", "en-u-ca-gregory", "x-own"],
}
BAD = {
    "first_name": ["a" * 257],
    "last_name": ["a" * 257],
    "name": ["a" * 257],
    "profile_picture_url": [
        "http://example.com/a.png",
        "javascript:alert(1)",
        "https://",
        "https:///a.png",
        "https://example.com/a b",
        "https://example.com:x/",
        "https://exämple.com/",
        f"https://example.com/{'a' * 2029}",
    ],
    "phone_number": ["4930123456", "+", "+0301234567", "+49 30 123456", "+1234567890123456"],
    "locale": ["d", "de_AT", "de-", "de-AT-AT-AT", "en-u", "deutsch-land-", "a" * 65],
    "external_id": ["é", " ", "a" * 129, "a\u2009"],
}


@pytest.mark.parametrize("field", GOOD)
def test_describing_fields_are_stored_as_given(api: Caller, field: str) -> None:
    user = create(api, "ann@example.com")
    for number, value in enumerate(GOOD[field]):
        made = create(api, f"user{number}@example.com", **{field: value})
        assert getattr(made, field) == value
        assert getattr(changed(api, user, **{field: value}), field) == value
    assert getattr(changed(api, user, **{field: ""}), field) == ""


@pytest.mark.parametrize("field", BAD)
def test_describing_fields_of_a_wrong_shape_are_refused(
    api: Caller, directory: Directory, field: str
) -> None:
    user = create(api, "ann@example.com")
    before = count(directory)
    for value in BAD[field]:
        invalid(field, api.UserService.CreateUser, email="bob@example.com", **{field: value})
        invalid(
            f"user.{field}",
            api.UserService.UpdateUser,
            user={"id": user.id, field: value},
            update_mask={"paths": [field]},
        )
    assert count(directory) == before


def test_missing_fields_are_told(api: Caller) -> None:
    def required(field: str) -> tuple[str, str, dict[str, str]]:
        return "INVALID_ARGUMENT", "FIELD_REQUIRED", {"field": field}

    user = create(api, "ann@example.com")
    service = api.UserService
    assert refusal(service.CreateUser) == required("email")
    assert refusal(service.CreateUser, email="  ") == required("email")
    assert refusal(service.GetUser) == required("user")
    assert refusal(service.GetUser, email="") == required("email")
    assert refusal(service.UpdateUser) == required("user")
    assert refusal(
        service.UpdateUser, user={"name": "x"}, update_mask={"paths": ["name"]}
    ) == required("user.id")
    assert refusal(service.UpdateUser, user={"id": user.id}, update_mask={}) == required(
        "update_mask"
    )
    assert refusal(service.DeleteUser) == required("user_id")


def test_taken_external_id_is_refused_at_creation_and_change(
    api: Caller, directory: Directory
) -> None:
    create(api, "ann@example.com", external_id="ann")
    bob = create(api, "bob@example.com")
    before = count(directory)
    taken = ("ALREADY_EXISTS", "EXTERNAL_ID_TAKEN", {"field": "external_id"})
    service = api.UserService
    assert refusal(service.CreateUser, email="eve@example.com", external_id="ann") == taken
    assert (
        refusal(
            service.UpdateUser,
            user={"id": bob.id, "external_id": "ann"},
            update_mask={"paths": ["external_id"]},
        )
        == taken
    )
    assert count(directory) == before
    assert len(service.ListUsers().users) == 2


def test_bad_metadata_is_refused_with_key_and_rule(api: Caller) -> None:
    code, reason, metadata = refusal(
        api.UserService.CreateUser, email="ann@example.com", metadata={"k": "v" * 601}
    )
    assert (code, reason, metadata["key"]) == ("INVALID_ARGUMENT", "METADATA_INVALID", "k")
    assert metadata["rule"]


def test_unknown_users_are_told_by_the_name_given(api: Caller) -> None:
    service = api.UserService
    assert refusal(service.GetUser, user_id=MISSING) == unknown(user_id=MISSING)
    assert refusal(service.GetUser, external_id="no") == unknown(external_id="no")
    assert refusal(service.GetUser, email="No@example.com") == unknown(email="No@example.com")
    assert refusal(service.DeleteUser, user_id=MISSING) == unknown(user_id=MISSING)
    assert refusal(
        service.UpdateUser, user={"id": MISSING, "name": "x"}, update_mask={"paths": ["name"]}
    ) == unknown(user_id=MISSING)


def test_repeat_with_an_idempotency_key_creates_once(api: Caller) -> None:
    repeating = api.with_metadata(idempotency_key="sign-up-1")
    assert create(repeating, "ann@example.com") == create(repeating, "ann@example.com")
    assert refusal(repeating.UserService.CreateUser, email="bob@example.com")[1] == (
        "IDEMPOTENCY_KEY_REUSED"
    )
    assert len(api.UserService.ListUsers().users) == 1


# --- update --------------------------------------------------------------------------------------


def test_changed_fields_and_no_others_change_in_one_event(
    api: Caller, directory: Directory
) -> None:
    made = create(api, "ann@example.com", name="Ann", locale="de", metadata={"a": "1", "b": "2"})
    before = count(directory)
    now = changed(api, made, name="Ann Lee", external_id="ann", metadata={"b": "", "c": "3"})
    assert (now.name, now.external_id, now.locale) == ("Ann Lee", "ann", "de")
    assert dict(now.metadata) == {"a": "1", "c": "3"}
    assert now.etag != made.etag
    assert api.UserService.GetUser(user_id=made.id).user == now
    assert directory.recorded(ENVIRONMENT, before) == [Recorded("user.updated", made.id, True)]
    _, previous = directory.data(ENVIRONMENT)
    assert previous == {"name": "Ann", "external_id": "", "metadata": {"a": "1", "b": "2"}}
    cleared = changed(api, now, external_id="", metadata={})
    assert (cleared.external_id, dict(cleared.metadata)) == ("", {})
    assert refusal(api.UserService.GetUser, external_id="ann") == unknown(external_id="ann")


def test_equal_values_change_nothing(api: Caller, directory: Directory) -> None:
    made = create(api, "ann@example.com", name="Ann", email_verified=True, metadata={"a": "1"})
    before = count(directory)
    same = changed(
        api, made, email=" ann@example.com", email_verified=True, name="Ann", metadata={"a": "1"}
    )
    assert same == made
    assert count(directory) == before


def test_stale_etag_is_refused(api: Caller, directory: Directory) -> None:
    made = create(api, "ann@example.com")
    now = changed(api, made, name="Ann")
    before = count(directory)
    stale = ("ABORTED", "ETAG_MISMATCH", {})
    assert (
        refusal(
            api.UserService.UpdateUser,
            user={"id": made.id, "name": "Bob", "etag": made.etag},
            update_mask={"paths": ["name"]},
        )
        == stale
    )
    assert refusal(api.UserService.DeleteUser, user_id=made.id, etag=made.etag) == stale
    assert count(directory) == before
    assert changed(api, made, name="Bob").name == "Bob"
    assert refusal(api.UserService.DeleteUser, user_id=made.id, etag=now.etag) == stale


@pytest.mark.parametrize(
    "path", ["id", "etag", "created_at", "email_verification_source", "password", "metadata.a"]
)
def test_paths_that_cannot_change_are_refused(api: Caller, path: str) -> None:
    made = create(api, "ann@example.com")
    assert refusal(
        api.UserService.UpdateUser, user={"id": made.id}, update_mask={"paths": [path]}
    ) == ("INVALID_ARGUMENT", "UPDATE_MASK_INVALID", {"path": path})


def test_an_address_may_not_be_cleared(api: Caller) -> None:
    made = create(api, "ann@example.com")
    for empty in ("", "  "):
        invalid(
            "user.email",
            api.UserService.UpdateUser,
            user={"id": made.id, "email": empty},
            update_mask={"paths": ["email"]},
        )


def test_changed_address_becomes_unverified_unless_the_same_update_says(api: Caller) -> None:
    made = create(api, "ann@example.com", email_verified=True)
    moved = changed(api, made, email="lee@example.com")
    assert (moved.email_verified, moved.email_verification_source) == (False, NONE)
    vouched = changed(api, made, email="ann.lee@example.com", email_verified=True)
    assert (vouched.email_verified, vouched.email_verification_source) == (True, CALLER)
    # The order of the paths does not matter.
    vouched = api.UserService.UpdateUser(
        user={"id": made.id, "email": "a@example.com", "email_verified": True},
        update_mask={"paths": ["email_verified", "email"]},
    ).user
    assert (vouched.email_verified, vouched.email_verification_source) == (True, CALLER)
    withdrawn = changed(api, made, email_verified=False)
    assert (withdrawn.email_verified, withdrawn.email_verification_source) == (False, NONE)
    assert refusal(api.UserService.GetUser, email="ann@example.com")[1] == "USER_NOT_FOUND"
    create(api, "ann@example.com")


def test_another_spelling_of_the_same_address_stays_verified(
    api: Caller, directory: Directory
) -> None:
    made = create(api, "ann@example.com", email_verified=True)
    spelled = changed(api, made, email="Ann@Example.com")
    assert (spelled.email, spelled.email_verified) == ("Ann@Example.com", True)
    assert directory.data(ENVIRONMENT)[1] == {"email": "ann@example.com"}


def test_repeating_that_an_address_is_verified_keeps_its_source(
    api: Caller, directory: Directory
) -> None:
    made = create(api, "ann@example.com", email_verified=True)
    directory.write(
        lambda tx: tx.connection.execute(
            update(User).where(User.id == made.id).values(email_verification_source="CODE")
        )
    )
    same = changed(api, made, email_verified=True)
    assert same.email_verification_source == pb.EMAIL_VERIFICATION_SOURCE_CODE
    # A new address has not been proven by the code that was sent to the old one.
    moved = changed(api, made, email="lee@example.com", email_verified=True)
    assert moved.email_verification_source == CALLER


def test_taken_address_is_refused_at_change(api: Caller, directory: Directory) -> None:
    create(api, "ann@example.com")
    bob = create(api, "bob@example.com")
    before = count(directory)
    assert refusal(
        api.UserService.UpdateUser,
        user={"id": bob.id, "email": "ANN@example.com", "name": "Bob"},
        update_mask={"paths": ["email", "name"]},
    ) == ("ALREADY_EXISTS", "EMAIL_TAKEN", {"field": "email"})
    assert api.UserService.GetUser(user_id=bob.id).user == bob
    assert count(directory) == before


# --- list ----------------------------------------------------------------------------------------


def listed(api: Caller, **filters: Any) -> list[str]:
    return [user.email for user in api.UserService.ListUsers(**filters).users]


def test_filters_are_joined_by_and(api: Caller, directory: Directory) -> None:
    acme, other = directory.organization(), directory.organization("Other")
    ann = create(api, "ann@example.com", first_name="Anna", last_name="Lee")
    bob = create(api, "bob@example.com", name="Bob O%_'Hara")
    eve = create(api, "Eve@Example.com", last_name="Annan")
    joined(api, ann, acme)
    joined(api, bob, acme)
    joined(api, eve, other)
    joined(api, ann, other)
    assert listed(api) == [eve.email, bob.email, ann.email]
    assert listed(api, query="ANN") == [eve.email, ann.email]
    assert listed(api, query="example.com") == [eve.email, bob.email, ann.email]
    assert listed(api, query="lee") == [ann.email]
    assert listed(api, query="%_") == [bob.email]
    assert listed(api, query="o%h") == []
    assert listed(api, organization_id=acme.id) == [bob.email, ann.email]
    assert listed(api, organization_id=acme.id, query="O%_'h") == [bob.email]
    assert listed(api, organization_id=other.id, query="ann") == [eve.email, ann.email]
    assert listed(api, organization_id=acme.id, email="ANN@example.com") == [ann.email]
    assert listed(api, organization_id=acme.id, email="eve@example.com") == []
    assert listed(api, email="eve@example.com", query="annan") == [eve.email]
    assert listed(api, email="eve@example.com", query="bob") == []
    assert listed(api, email="nobody@example.com") == []


def test_members_of_any_status_are_listed_with_their_organization(
    api: Caller, directory: Directory
) -> None:
    acme = directory.organization()
    for status in ("ACTIVE", "PENDING", "INACTIVE"):
        directory.membership(acme, status)
    assert len(listed(api, organization_id=acme.id)) == 3


def test_pages_cover_every_user_once_newest_first(api: Caller, directory: Directory) -> None:
    acme, other = directory.organization(), directory.organization("Other")
    made = [create(api, f"user{number}@example.com") for number in range(5)]
    for user in made:
        joined(api, user, acme)
    joined(api, made[1], other)
    newest = [user.id for user in made[::-1]]
    restricted = directory.restricted_to(acme, other)
    for size in range(1, 7):
        for caller, filters in (
            (api, {}),
            (api, {"query": "user"}),
            (api, {"organization_id": acme.id}),
            (api, {"organization_id": acme.id, "query": "user"}),
            (restricted, {}),
            (restricted, {"query": "user"}),
        ):
            pages = caller.pages("UserService", "ListUsers", "users", page_size=size, **filters)
            assert [user.id for user in pages] == newest, (size, filters)


def test_page_token_belongs_to_its_question_and_caller(api: Caller, directory: Directory) -> None:
    acme = directory.organization()
    for number in range(3):
        joined(api, create(api, f"user{number}@example.com"), acme)
    service = api.UserService
    token = service.ListUsers(page_size=1).next_page_token
    assert len(service.ListUsers(page_size=5, page_token=token).users) == 2
    foreign = ("INVALID_ARGUMENT", "PAGE_TOKEN_MISMATCH", {})
    for filters in ({"query": "user"}, {"organization_id": acme.id}, {"email": "a@example.com"}):
        assert refusal(service.ListUsers, page_token=token, **filters) == foreign
    restricted = directory.restricted_to(acme).UserService
    assert refusal(restricted.ListUsers, page_token=token) == foreign
    assert refusal(api.OrganizationService.ListOrganizations, page_token=token) == foreign
    assert refusal(service.ListUsers, page_token=f"x{token}")[1] == "PAGE_TOKEN_INVALID"


def test_bad_filters_are_refused(api: Caller) -> None:
    service = api.UserService
    for query in ("a", "a" * 101):
        invalid("query", service.ListUsers, query=query)
    invalid("page_size", service.ListUsers, page_size=-1)
    missing = "org_01HZZZZZZZZZZZZZZZZZZZZZZZ"
    assert refusal(service.ListUsers, organization_id=missing) == (
        "NOT_FOUND",
        "ORGANIZATION_NOT_FOUND",
        {"organization_id": missing},
    )


# --- delete --------------------------------------------------------------------------------------


def test_deleted_user_is_gone_and_the_address_is_free(api: Caller, directory: Directory) -> None:
    made = create(api, "ann@example.com", external_id="ann")
    before = count(directory)
    assert api.UserService.DeleteUser(user_id=made.id).deleted_membership_count == 0
    assert directory.recorded(ENVIRONMENT, before) == [Recorded("user.deleted", made.id, True)]
    assert directory.data(ENVIRONMENT)[0]["email"] == "ann@example.com"
    assert refusal(api.UserService.GetUser, user_id=made.id) == unknown(user_id=made.id)
    again = api.UserService.DeleteUser(user_id=made.id, allow_missing=True)
    assert again.deleted_membership_count == 0
    assert again.consistency_token
    assert count(directory) == before + 1
    assert create(api, "ann@example.com", external_id="ann").id != made.id


def test_memberships_and_what_they_hold_go_with_the_user(
    api: Caller, directory: Directory, worker: Worker
) -> None:
    directory.types(project=["organization"])
    editor = directory.role("editor", "project")
    acme, other = directory.organization(), directory.organization("Other")
    ann, bob = create(api, "ann@example.com"), create(api, "bob@example.com")
    there, here = joined(api, ann, other), joined(api, ann, acme)
    stays = joined(api, bob, acme)
    project = directory.resource(acme, "project", "api")
    held = directory.assignment(editor, project, here)
    ended = directory.assignment(directory.role("viewer", "project"), project, here, expires_at=1)
    kept = directory.assignment(editor, project, stays)
    group = directory.group(acme, "Team", here, stays)
    marks = {organization.id: len(directory.events(organization)) for organization in (acme, other)}
    before = count(directory)
    answer = api.UserService.DeleteUser(user_id=ann.id)
    assert answer.deleted_membership_count == 2
    (primary,) = directory.events(ENVIRONMENT)[before:]
    assert (primary.kind, primary.is_primary, primary.target_id) == ("user.deleted", True, ann.id)
    secondary = {
        organization.id: directory.events(organization)[marks[organization.id] :]
        for organization in (acme, other)
    }
    assert [(row.kind, row.target_id) for row in secondary[acme.id]] == [
        ("organization_membership.deleted", here.id),
        ("role_assignment.deleted", held),
    ]
    assert [(row.kind, row.target_id) for row in secondary[other.id]] == [
        ("organization_membership.deleted", there.id)
    ]
    for row in [*secondary[acme.id], *secondary[other.id]]:
        assert (row.is_primary, row.cause_event_id) == (False, primary.id)
    data = json.loads(secondary[other.id][0].data)
    assert (data["user"]["email"], data["organization_name"]) == ("ann@example.com", "Other")
    for membership in (here, there):
        assert (
            refusal(
                api.OrganizationMembershipService.GetOrganizationMembership,
                organization_membership_id=membership.id,
            )[1]
            == "MEMBERSHIP_NOT_FOUND"
        )
    members = api.GroupService.ListGroupMembers(group_id=group.id).organization_memberships
    assert [member.id for member in members] == [stays.id]
    with worker.database.snapshot(SYSTEM) as snapshot:
        left = snapshot.connection.execute(select(RoleAssignment.id)).scalars().all()
    assert left == [kept]
    assert ended not in left
    # The resource belongs to the organization (RS2).
    assert api.ResourceService.GetResource(resource={"resource_id": project.id}).resource == project


def test_last_owner_of_any_organization_stays(
    api: Caller, directory: Directory, worker: Worker
) -> None:
    acme, other = directory.organization(), directory.organization("Other")
    ann, bob = create(api, "ann@example.com"), create(api, "bob@example.com")
    joined(api, ann, acme, "owner", "member")
    joined(api, bob, acme, "owner")
    joined(api, ann, other, "owner")
    with worker.database.snapshot(SYSTEM) as snapshot:
        before = snapshot.connection.execute(select(Event.id)).scalars().all()
    assert refusal(api.UserService.DeleteUser, user_id=ann.id) == (
        "FAILED_PRECONDITION",
        "LAST_OWNER",
        {"organization_id": other.id},
    )
    with worker.database.snapshot(SYSTEM) as snapshot:
        assert snapshot.connection.execute(select(Event.id)).scalars().all() == before
    assert api.UserService.GetUser(user_id=ann.id).user == ann
    joined(api, bob, other, "owner")
    assert api.UserService.DeleteUser(user_id=ann.id).deleted_membership_count == 2


# --- a restricted credential ---------------------------------------------------------------------


def test_restricted_credential_sees_users_with_a_membership_in_its_organizations(
    api: Caller, directory: Directory
) -> None:
    acme, other = directory.organization(), directory.organization("Other")
    inside = create(api, "in@example.com", external_id="in")
    outside = create(api, "out@example.com", external_id="out")
    both = create(api, "both@example.com")
    nowhere = create(api, "nowhere@example.com")
    joined(api, inside, acme)
    joined(api, outside, other)
    joined(api, both, other)
    membership = joined(api, both, acme)
    api.OrganizationMembershipService.DeactivateOrganizationMembership(
        organization_membership_id=membership.id
    )
    restricted = directory.restricted_to(acme)
    service = restricted.UserService
    assert listed(restricted) == [both.email, inside.email]
    assert listed(restricted, query="example") == [both.email, inside.email]
    assert listed(restricted, organization_id=acme.id) == [both.email, inside.email]
    assert listed(restricted, email="out@example.com") == []
    assert listed(restricted, email="in@example.com") == [inside.email]
    assert refusal(service.ListUsers, organization_id=other.id)[1] == "ORGANIZATION_NOT_FOUND"
    assert service.GetUser(email="in@example.com").user == inside
    assert service.GetUser(user_id=both.id).user == both
    for user in (outside, nowhere):
        assert refusal(service.GetUser, user_id=user.id) == unknown(user_id=user.id)
        assert refusal(service.GetUser, email=user.email) == unknown(email=user.email)
    assert refusal(service.GetUser, external_id="out") == unknown(external_id="out")


def test_restricted_credential_writes_no_user(api: Caller, directory: Directory) -> None:
    acme = directory.organization()
    user = create(api, "ann@example.com")
    joined(api, user, acme)
    service = directory.restricted_to(acme).UserService
    before = count(directory)
    assert refusal(service.CreateUser, email="bob@example.com") == RESTRICTED
    for user_id in (user.id, MISSING):
        assert (
            refusal(
                service.UpdateUser,
                user={"id": user_id, "name": "x"},
                update_mask={"paths": ["name"]},
            )
            == RESTRICTED
        )
        assert refusal(service.DeleteUser, user_id=user_id, allow_missing=True) == RESTRICTED
    assert count(directory) == before

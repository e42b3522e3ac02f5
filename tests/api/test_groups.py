"""GroupService over the hall."""

from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select

from authz_service.base.clock import to_datetime
from authz_service.config import Config
from authz_service.pb.authz.v1.groups_pb2 import GroupKind
from authz_service.pb.authz.v1.memberships_pb2 import MembershipStatus
from authz_service.server import Worker
from authz_service.storage.tables import GroupMember, GroupNesting, RoleAssignment
from tests.callers import Caller, Refused
from tests.conftest import ManualClock
from tests.directories import Directory, Recorded, named

BUILT_IN = ("FAILED_PRECONDITION", "GROUP_BUILT_IN", {})
CYCLE = ("FAILED_PRECONDITION", "GROUP_CYCLE", {})
ALL = [
    MembershipStatus.MEMBERSHIP_STATUS_PENDING,
    MembershipStatus.MEMBERSHIP_STATUS_ACTIVE,
    MembershipStatus.MEMBERSHIP_STATUS_INACTIVE,
]


class Company(NamedTuple):
    """acme: all (eng (backend: ann, bob; bob), ops: bob, cat, dan pending), board: ann; eve."""

    organization: Any
    everyone: Any
    ann: Any
    bob: Any
    cat: Any
    dan: Any
    eve: Any
    backend: Any
    eng: Any
    ops: Any
    all: Any
    board: Any


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    return Directory(api, worker, config)


@pytest.fixture
def company(directory: Directory) -> Company:
    acme = directory.organization()
    ann, bob, cat, eve = (directory.membership(acme) for _ in range(4))
    dan = directory.membership(acme, "PENDING")
    backend = directory.group(acme, "backend", ann, bob)
    eng = directory.group(acme, "eng", backend, bob)
    ops = directory.group(acme, "ops", bob, cat, dan)
    everybody = directory.group(acme, "all", eng, ops)
    board = directory.group(acme, "board", ann)
    everyone = directory.api.GroupService.GetGroup(group_id=acme.everyone_group_id).group
    return Company(acme, everyone, ann, bob, cat, dan, eve, backend, eng, ops, everybody, board)


def refusal(call: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(**fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def no_group(group_id: str, key: str = "group_id") -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "GROUP_NOT_FOUND", {key: group_id}


def no_membership(membership_id: str) -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "MEMBERSHIP_NOT_FOUND", {"organization_membership_id": membership_id}


def inside(directory: Directory, group: Any) -> set[str]:
    """Returns the ids of what is directly in a group, as stored."""

    def work(tx: Any) -> set[str]:
        members = select(GroupMember.membership_id).where(GroupMember.group_id == group.id)
        groups = select(GroupNesting.member_group_id).where(GroupNesting.group_id == group.id)
        return {*tx.connection.execute(members).scalars(), *tx.connection.execute(groups).scalars()}

    return directory.write(work)


# --- the group itself ------------------------------------------------------------------------


def test_created_group_is_empty_and_can_be_read(directory: Directory) -> None:
    acme = directory.organization()
    before = len(directory.events(acme))
    made = directory.api.GroupService.CreateGroup(
        organization_id=acme.id, name=" Staff ", description=" all of us "
    ).group
    assert (made.name, made.description) == ("Staff", "all of us")
    assert made.kind == GroupKind.GROUP_KIND_STANDARD
    assert made.HasField("member_count")
    assert (made.member_count, made.member_group_count) == (0, 0)
    assert directory.api.GroupService.GetGroup(group_id=made.id).group == made
    assert directory.recorded(acme, before) == [Recorded("group.created", made.id, True)]
    assert directory.data(acme)[0]["etag"] == made.etag
    same = directory.api.GroupService.CreateGroup(organization_id=acme.id, name="Staff").group
    assert same.id != made.id


def test_everyone_is_there_without_counts(company: Company) -> None:
    assert company.everyone.kind == GroupKind.GROUP_KIND_EVERYONE
    assert company.everyone.name == "everyone"
    assert not company.everyone.HasField("member_count")
    assert not company.everyone.HasField("member_group_count")


def test_create_and_get_refuse(directory: Directory) -> None:
    service = directory.api.GroupService
    assert refusal(service.CreateGroup, organization_id="org_x", name="g") == (
        "NOT_FOUND",
        "ORGANIZATION_NOT_FOUND",
        {"organization_id": "org_x"},
    )
    for fields, reason, field in (
        ({"name": " "}, "FIELD_REQUIRED", "name"),
        ({"name": "x" * 257}, "FIELD_INVALID", "name"),
        ({"name": "g", "description": "x" * 151}, "FIELD_INVALID", "description"),
    ):
        code, given, metadata = refusal(service.CreateGroup, organization_id="org_x", **fields)
        assert (code, given, metadata["field"]) == ("INVALID_ARGUMENT", reason, field)
    assert refusal(service.GetGroup, group_id="group_x") == no_group("group_x")


def test_groups_are_listed_newest_first_with_their_counts(
    directory: Directory, company: Company
) -> None:
    directory.group(directory.organization("Globex"), "foreign")
    names = ["board", "all", "ops", "eng", "backend", "everyone"]
    counts = [(1, 0), (0, 2), (3, 0), (1, 1), (2, 0), (0, 0)]
    for size in range(1, 8):
        listed = list(
            directory.api.pages(
                "GroupService",
                "ListGroups",
                "groups",
                organization_id=company.organization.id,
                page_size=size,
            )
        )
        assert [row.name for row in listed] == names
        assert [(row.member_count, row.member_group_count) for row in listed] == counts
    ask = directory.api.GroupService.ListGroups
    found = ask(organization_id=company.organization.id, query=" NG ").groups
    assert [row.name for row in found] == ["eng"]
    token = ask(organization_id=company.organization.id, page_size=1).next_page_token
    assert (
        refusal(ask, organization_id=company.organization.id, query="en", page_token=token)[1]
        == "PAGE_TOKEN_MISMATCH"
    )
    assert refusal(ask, organization_id="org_x")[1] == "ORGANIZATION_NOT_FOUND"
    assert refusal(ask, organization_id="org_x", query="x")[2]["field"] == "query"


def test_update_changes_what_is_named(directory: Directory, company: Company) -> None:
    call = directory.api.GroupService.UpdateGroup
    acme, group_id = company.organization, company.eng.id
    before = len(directory.events(acme))
    changed = call(
        group={"id": group_id, "name": " Engineers ", "description": "x", "etag": company.eng.etag},
        update_mask={"paths": ["name"]},
    ).group
    assert (changed.name, changed.description) == ("Engineers", "")
    assert (changed.member_count, changed.member_group_count) == (1, 1)
    assert changed.etag != company.eng.etag
    assert directory.recorded(acme, before) == [Recorded("group.updated", group_id, True)]
    assert directory.data(acme)[1] == {"name": "eng"}
    paths = {"paths": ["name", "description"]}
    described = call(group={"id": group_id, "name": "E", "description": "d"}, update_mask=paths)
    assert described.group.description == "d"
    cleared = call(group={"id": group_id, "name": "E"}, update_mask=paths).group
    assert cleared.description == ""
    assert call(group={"id": group_id, "name": "E"}, update_mask=paths).group == cleared
    assert len(directory.events(acme)) == before + 3


def test_update_refuses(directory: Directory, company: Company) -> None:
    call = directory.api.GroupService.UpdateGroup
    before = len(directory.events(company.organization))
    mask = {"paths": ["name"]}
    assert refusal(call, group={"name": "x"}, update_mask=mask)[:2] == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
    )
    assert refusal(call, group={"id": company.eng.id, "name": "x"})[2] == {"field": "update_mask"}
    for path in ("id", "kind", "member_count", "organization_id", "etag", "x"):
        assert refusal(
            call, group={"id": company.eng.id, "name": "x"}, update_mask={"paths": [path]}
        ) == ("INVALID_ARGUMENT", "UPDATE_MASK_INVALID", {"path": path})
    for name in ("", " ", "x" * 257):
        code, reason, metadata = refusal(
            call, group={"id": company.eng.id, "name": name}, update_mask=mask
        )
        assert (code, reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert metadata["field"] == "group.name"
    assert refusal(call, group={"id": "group_x", "name": "x"}, update_mask=mask) == no_group(
        "group_x"
    )
    assert refusal(call, group={"id": company.everyone.id, "name": "x"}, update_mask=mask) == (
        BUILT_IN
    )
    stale = {"id": company.eng.id, "name": "x", "etag": "0"}
    assert refusal(call, group=stale, update_mask=mask)[:2] == ("ABORTED", "ETAG_MISMATCH")
    assert directory.recorded(company.organization, before) == []


def test_delete_takes_places_and_assignments_along(
    directory: Directory, company: Company, clock: ManualClock
) -> None:
    acme, service = company.organization, directory.api.GroupService
    directory.types(workspace=["organization"])
    desk = directory.resource(acme, "workspace", "desk")
    role = directory.role("editor", "workspace")
    clock.stop_at(to_datetime(2_000_000_000_000_000))
    held = directory.assignment(role, desk, company.eng)
    kept = directory.assignment(role, desk, company.ops)
    other = directory.role("viewer", "workspace")
    directory.assignment(other, desk, company.eng, expires_at=2_000_000_000_000_000)
    before = len(directory.events(acme))
    answer = service.DeleteGroup(group_id=company.eng.id, etag=company.eng.etag)
    assert answer.deleted_role_assignment_count == 1
    assert directory.recorded(acme, before) == [
        Recorded("group.deleted", company.eng.id, True),
        Recorded("role_assignment.deleted", held, False),
    ]
    data, _ = directory.data(acme)
    assert (data["group_id"], data["role_slug"]) == (company.eng.id, "editor")
    assert refusal(service.GetGroup, group_id=company.eng.id) == no_group(company.eng.id)
    assert inside(directory, company.all) == {company.ops.id}
    assert inside(directory, company.eng) == set()
    assert inside(directory, company.backend) == {company.ann.id, company.bob.id}
    left = directory.write(lambda tx: tx.connection.execute(select(RoleAssignment.id)).scalars())
    assert list(left) == [kept]


def test_delete_refuses_and_may_miss(directory: Directory, company: Company) -> None:
    call = directory.api.GroupService.DeleteGroup
    before = len(directory.events(company.organization))
    assert refusal(call, group_id="group_x") == no_group("group_x")
    assert call(group_id="group_x", allow_missing=True).consistency_token
    assert refusal(call, group_id=company.everyone.id, allow_missing=True) == BUILT_IN
    stale = refusal(call, group_id=company.eng.id, etag="0", allow_missing=True)
    assert stale[:2] == ("ABORTED", "ETAG_MISMATCH")
    assert directory.recorded(company.organization, before) == []


# --- what is in it ---------------------------------------------------------------------------


def test_members_go_in_and_out_once(directory: Directory, company: Company) -> None:
    service, acme = directory.api.GroupService, company.organization
    before = len(directory.events(acme))
    for member, counts in ((company.cat, (2, 0)), (company.ops, (2, 1))):
        for _ in range(2):
            group = service.AddGroupMember(group_id=company.board.id, **named(member)).group
            assert (group.member_count, group.member_group_count) == counts
        data, previous = directory.data(acme)
        assert named(member).items() <= data.items()
        assert (data["name"], previous) == ("board", {})
    assert group.etag == company.board.etag
    assert inside(directory, company.board) == {company.ann.id, company.cat.id, company.ops.id}
    for member in (company.cat, company.ops):
        for _ in range(2):
            service.RemoveGroupMember(group_id=company.board.id, **named(member))
        assert named(member).items() <= directory.data(acme)[0].items()
    assert inside(directory, company.board) == {company.ann.id}
    assert directory.recorded(acme, before) == [
        Recorded("group.member_added", company.board.id, True),
        Recorded("group.member_added", company.board.id, True),
        Recorded("group.member_removed", company.board.id, True),
        Recorded("group.member_removed", company.board.id, True),
    ]


def test_adding_and_removing_refuse(directory: Directory, company: Company) -> None:
    service, acme = directory.api.GroupService, company.organization
    globex = directory.organization("Globex")
    foreign, stranger = directory.group(globex, "foreign"), directory.membership(globex)
    before = len(directory.events(acme))
    for call in (service.AddGroupMember, service.RemoveGroupMember):
        assert refusal(call, group_id="group_x", **named(company.ann)) == no_group("group_x")
        assert refusal(call, group_id=company.board.id) == (
            "INVALID_ARGUMENT",
            "FIELD_REQUIRED",
            {"field": "member"},
        )
        assert refusal(call, group_id=company.board.id, member_group_id="") == (
            "INVALID_ARGUMENT",
            "FIELD_REQUIRED",
            {"field": "member_group_id"},
        )
        for unknown in ("group_x", foreign.id):
            assert refusal(call, group_id=company.board.id, member_group_id=unknown) == no_group(
                unknown, "member_group_id"
            )
        for unknown in ("om_x", stranger.id):
            assert refusal(
                call, group_id=company.board.id, organization_membership_id=unknown
            ) == no_membership(unknown)
        assert refusal(call, group_id=company.everyone.id, **named(company.ann)) == BUILT_IN
        assert refusal(call, group_id=company.everyone.id, **named(company.eng)) == BUILT_IN
    assert (
        refusal(service.AddGroupMember, group_id=company.eng.id, **named(company.everyone))
        == BUILT_IN
    )
    # What can never be in it is not in it: removing it has no effect.
    service.RemoveGroupMember(group_id=company.eng.id, **named(company.everyone))
    for group, member in (
        (company.eng, company.eng),
        (company.backend, company.eng),
        (company.backend, company.all),
    ):
        assert refusal(service.AddGroupMember, group_id=group.id, **named(member)) == CYCLE
    assert directory.recorded(acme, before) == []


def test_chains_have_at_most_eight_groups(directory: Directory) -> None:
    acme = directory.organization()
    service = directory.api.GroupService
    chain = [directory.group(acme, str(i)) for i in range(9)]
    for outer, inner in (*pairwise(chain[:4]), *pairwise(chain[4:])):
        service.AddGroupMember(group_id=outer.id, **named(inner))
    # 0 > 1 > 2 > 3 and 4 > 5 > 6 > 7 > 8: four and five groups.
    too_deep = ("FAILED_PRECONDITION", "GROUP_DEPTH_EXCEEDED", {"maximum": "8", "actual": "9"})
    fields = {"group_id": chain[3].id, **named(chain[4])}
    assert refusal(service.AddGroupMember, **fields) == too_deep
    assert (
        refusal(
            service.ModifyGroupMembers,
            group_id=chain[3].id,
            add=[named(chain[8]), named(chain[4])],
        )
        == too_deep
    )
    service.AddGroupMember(group_id=chain[3].id, **named(chain[5]))
    assert refusal(service.AddGroupMember, group_id=chain[8].id, **named(chain[4]))[1] == (
        "GROUP_CYCLE"
    )
    # A short way to the same group does not hide the long one.
    service.AddGroupMember(group_id=chain[0].id, **named(chain[3]))
    top = directory.group(acme, "top")
    assert refusal(service.AddGroupMember, group_id=top.id, **named(chain[0])) == too_deep


def test_modify_is_one_change(directory: Directory, company: Company) -> None:
    service, acme = directory.api.GroupService, company.organization
    before = len(directory.events(acme))
    changed = service.ModifyGroupMembers(
        group_id=company.ops.id,
        add=[named(m) for m in (company.ann, company.bob, company.ann, company.backend)],
        remove=[named(m) for m in (company.cat, company.eve, company.eng, company.cat)],
    ).group
    assert (changed.member_count, changed.member_group_count) == (3, 1)
    assert inside(directory, company.ops) == {
        member.id for member in (company.ann, company.bob, company.dan, company.backend)
    }
    assert directory.recorded(acme, before) == [
        Recorded("group.members_changed", company.ops.id, True)
    ]
    data, previous = directory.data(acme)
    assert data["added"] == [named(company.ann), named(company.backend)]
    assert data["removed"] == [named(company.cat)]
    assert previous == {}
    same = service.ModifyGroupMembers(
        group_id=company.ops.id, add=[named(company.ann)], remove=[named(company.eve)]
    )
    assert same.group == changed
    assert len(directory.events(acme)) == before + 1


def test_modify_refuses_as_a_whole(directory: Directory, company: Company) -> None:
    modify, acme = directory.api.GroupService.ModifyGroupMembers, company.organization
    before, stored = len(directory.events(acme)), inside(directory, company.ops)
    ops = {"group_id": company.ops.id}
    ann, cat = named(company.ann), named(company.cat)
    assert refusal(modify, **ops) == ("INVALID_ARGUMENT", "FIELD_REQUIRED", {"field": "add"})
    code, reason, metadata = refusal(modify, **ops, add=[ann, cat], remove=[cat])
    assert (code, reason) == ("INVALID_ARGUMENT", "FIELDS_EXCLUSIVE")
    assert metadata["fields"] == "add[1],remove[0]"
    assert refusal(modify, **ops, add=[ann, {}]) == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
        {"field": "add[1].member"},
    )
    assert refusal(modify, **ops, remove=[{"organization_membership_id": ""}]) == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
        {"field": "remove[0].organization_membership_id"},
    )
    assert refusal(modify, group_id="group_x", add=[ann]) == no_group("group_x")
    assert refusal(
        modify, **ops, add=[ann, {"member_group_id": "group_x"}, {"member_group_id": "group_y"}]
    ) == no_group("group_x", "member_group_id")
    gone = [{"member_group_id": "group_x"}, {"organization_membership_id": "om_x"}]
    assert refusal(modify, **ops, remove=gone[::-1]) == no_membership("om_x")
    assert refusal(modify, **ops, remove=gone) == no_group("group_x", "member_group_id")
    assert refusal(modify, group_id=company.everyone.id, remove=[ann]) == BUILT_IN
    assert refusal(modify, **ops, add=[ann, named(company.everyone)]) == BUILT_IN
    backend = {"group_id": company.backend.id}
    assert refusal(modify, **backend, add=[cat, named(company.all)]) == CYCLE
    assert inside(directory, company.ops) == stored
    assert directory.recorded(acme, before) == []


def test_modify_takes_up_to_a_hundred_entries(directory: Directory) -> None:
    acme = directory.organization()
    group = directory.group(acme, "g")
    modify = directory.api.GroupService.ModifyGroupMembers
    add = [{"member_group_id": f"group_{i}"} for i in range(60)]
    remove = [{"organization_membership_id": f"om_{i}"} for i in range(41)]
    too_many = ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
    assert refusal(modify, group_id=group.id, add=add, remove=remove) == (
        *too_many,
        {"field": "add", "maximum": "100", "actual": "101"},
    )
    assert refusal(modify, group_id=group.id, remove=remove * 3)[2]["field"] == "remove"
    assert refusal(modify, group_id=group.id, add=add, remove=remove[1:])[1] == "GROUP_NOT_FOUND"


class TestLimits:
    """Each limit at it and above it."""

    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {
            "AUTHZ_LIMIT_GROUPS": "6",
            "AUTHZ_LIMIT_GROUP_MEMBERS": "2",
            "AUTHZ_LIMIT_GROUP_GROUPS": "2",
            "AUTHZ_LIMIT_MEMBERSHIP_GROUPS": "2",
        }

    def test_stored_totals(self, directory: Directory) -> None:
        acme = directory.organization()
        service = directory.api.GroupService
        ann, bob, cat = (directory.membership(acme) for _ in range(3))
        a, b, c, d, e = (directory.group(acme, name) for name in "abcde")

        def above(limit: str, maximum: int = 2) -> tuple[str, str, dict[str, str]]:
            return (
                "RESOURCE_EXHAUSTED",
                "LIMIT_REACHED",
                {"limit": limit, "maximum": str(maximum)},
            )

        assert refusal(service.CreateGroup, organization_id=acme.id, name="f") == above("groups", 6)
        directory.group(directory.organization("Globex"), "f")
        for member in (ann, bob, b, c):
            service.AddGroupMember(group_id=a.id, **named(member))
        add = service.AddGroupMember
        assert refusal(add, group_id=a.id, **named(cat)) == above("group_members")
        assert refusal(add, group_id=a.id, **named(d)) == above("group_groups")
        # Members that are there already are no more than before.
        add(group_id=a.id, **named(ann))
        modify = service.ModifyGroupMembers
        two = {"add": [named(cat), named(d)], "remove": [named(ann)]}
        assert refusal(modify, group_id=a.id, **two) == above("group_groups")
        # The result counts: as many go as come.
        two["remove"].append(named(c))
        assert modify(group_id=a.id, **two).group.member_count == 2
        assert inside(directory, a) == {bob.id, cat.id, b.id, d.id}
        add(group_id=b.id, **named(bob))
        assert refusal(add, group_id=e.id, **named(bob)) == above("membership_groups")
        assert refusal(modify, group_id=e.id, add=[named(ann), named(bob)]) == above(
            "membership_groups"
        )
        add(group_id=e.id, **named(ann))


# --- lists -----------------------------------------------------------------------------------


def test_members_are_listed_each_once_newest_first(directory: Directory, company: Company) -> None:
    # Made in this order: ann, bob, cat, eve, dan.
    cases: list[tuple[Any, dict[str, Any], list[Any]]] = [
        (company.backend, {}, [company.bob, company.ann]),
        (company.eng, {}, [company.bob]),
        (company.eng, {"recursive": True}, [company.bob, company.ann]),
        (company.all, {}, []),
        (company.all, {"recursive": True}, [company.cat, company.bob, company.ann]),
        (
            company.all,
            {"recursive": True, "statuses": ALL},
            [company.dan, company.cat, company.bob, company.ann],
        ),
        (company.ops, {"statuses": [ALL[0]]}, [company.dan]),
        (company.ops, {"statuses": [ALL[2]]}, []),
        (company.ops, {"statuses": [ALL[1], ALL[2], ALL[1]]}, [company.cat, company.bob]),
        (company.everyone, {}, [company.eve, company.cat, company.bob, company.ann]),
        (company.everyone, {"recursive": True, "statuses": [ALL[0]]}, [company.dan]),
        (
            company.everyone,
            {"statuses": ALL},
            [company.dan, company.eve, company.cat, company.bob, company.ann],
        ),
    ]
    directory.membership(directory.organization("Globex"))
    service = directory.api.GroupService
    for group, filters, expected in cases:
        for size in range(1, len(expected) + 2):
            listed = list(
                directory.api.pages(
                    "GroupService",
                    "ListGroupMembers",
                    "organization_memberships",
                    group_id=group.id,
                    page_size=size,
                    **filters,
                )
            )
            assert [row.id for row in listed] == [member.id for member in expected]
        counted = service.ListGroupMembers(group_id=group.id, include_total_size=True, **filters)
        assert counted.total_size == len(expected)
    uncounted = service.ListGroupMembers(group_id=company.all.id)
    assert not uncounted.HasField("total_size")
    (bob,) = service.ListGroupMembers(group_id=company.eng.id).organization_memberships
    assert (
        bob
        == directory.api.OrganizationMembershipService.GetOrganizationMembership(
            organization_membership_id=company.bob.id
        ).organization_membership
    )


class TestTotals:
    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"AUTHZ_LIMIT_TOTAL_SIZE": "3"}

    def test_totals_are_counted_up_to_their_limit(
        self, directory: Directory, company: Company
    ) -> None:
        ask = directory.api.GroupService.ListGroupMembers
        fields = {"group_id": company.all.id, "recursive": True, "include_total_size": True}
        assert ask(**fields).total_size == 3
        assert not ask(**fields, statuses=ALL).HasField("total_size")
        everyone = ask(group_id=company.everyone.id, include_total_size=True)
        assert not everyone.HasField("total_size")


def test_groups_of_groups_and_memberships_are_listed(
    directory: Directory, company: Company
) -> None:
    # Made in this order: everyone, backend, eng, ops, all, board.
    directory.group(company.organization, "empty")
    cases: list[tuple[str, dict[str, Any], list[Any]]] = [
        ("ListMemberGroups", {"group_id": company.all.id}, [company.ops, company.eng]),
        ("ListMemberGroups", {"group_id": company.backend.id}, []),
        ("ListMemberGroups", {"group_id": company.everyone.id}, []),
        ("ListContainingGroups", {"group_id": company.backend.id}, [company.eng]),
        (
            "ListContainingGroups",
            {"group_id": company.backend.id, "recursive": True},
            [company.all, company.eng],
        ),
        ("ListContainingGroups", {"group_id": company.all.id, "recursive": True}, []),
        ("ListContainingGroups", {"group_id": company.everyone.id, "recursive": True}, []),
        ("ListMembershipGroups", named(company.ann), [company.board, company.backend]),
        (
            "ListMembershipGroups",
            {**named(company.ann), "recursive": True},
            [company.board, company.all, company.eng, company.backend, company.everyone],
        ),
        (
            "ListMembershipGroups",
            {**named(company.bob), "recursive": True},
            [company.all, company.ops, company.eng, company.backend, company.everyone],
        ),
        ("ListMembershipGroups", named(company.eve), []),
        (
            "ListMembershipGroups",
            {**named(company.eve), "recursive": True},
            [company.everyone],
        ),
        (
            "ListMembershipGroups",
            {**named(company.dan), "recursive": True},
            [company.all, company.ops, company.everyone],
        ),
    ]
    for name, filters, expected in cases:
        present = [
            directory.api.GroupService.GetGroup(group_id=group.id).group for group in expected
        ]
        for size in range(1, len(expected) + 2):
            listed = directory.api.pages("GroupService", name, "groups", page_size=size, **filters)
            assert list(listed) == present, (name, size)


def test_lists_refuse(directory: Directory, company: Company) -> None:
    service = directory.api.GroupService
    for name in ("ListGroupMembers", "ListMemberGroups", "ListContainingGroups"):
        call = getattr(service, name)
        assert refusal(call, group_id="group_x") == no_group("group_x")
        assert refusal(call, group_id=company.all.id, page_size=-1)[2]["field"] == "page_size"
    call = service.ListMembershipGroups
    assert refusal(call, organization_membership_id="om_x") == no_membership("om_x")
    assert refusal(service.ListGroupMembers, group_id="group_x", statuses=[0])[2]["field"] == (
        "statuses[0]"
    )
    for name, fields in (
        ("ListGroupMembers", {"group_id": company.ops.id}),
        ("ListMemberGroups", {"group_id": company.all.id}),
        ("ListContainingGroups", {"group_id": company.backend.id, "recursive": True}),
        ("ListMembershipGroups", {**named(company.bob)}),
    ):
        call = getattr(service, name)
        token = call(**fields, page_size=1).next_page_token
        assert token
        if "group_id" in fields:
            fields = {**fields, "group_id": company.everyone.id}
        else:
            fields = named(company.ann)
        assert refusal(call, **fields, page_token=token)[1] == "PAGE_TOKEN_MISMATCH"
        assert refusal(call, **fields, page_token=token[:-2])[1] == "PAGE_TOKEN_INVALID"


# --- around it -------------------------------------------------------------------------------


def test_repeat_with_an_idempotency_key_changes_once(
    directory: Directory, company: Company
) -> None:
    before = len(directory.events(company.organization))
    repeating = directory.api.with_metadata(idempotency_key="one")
    fields = {"group_id": company.board.id, **named(company.cat)}
    first = repeating.GroupService.AddGroupMember(**fields)
    directory.api.GroupService.RemoveGroupMember(**fields)
    assert repeating.GroupService.AddGroupMember(**fields).group == first.group
    assert inside(directory, company.board) == {company.ann.id}
    assert len(directory.recorded(company.organization, before)) == 2


def test_what_a_restricted_credential_may_not_see_does_not_exist(
    directory: Directory, company: Company
) -> None:
    globex = directory.organization("Globex")
    own, stranger = directory.group(globex, "own"), directory.membership(globex)
    service = directory.restricted_to(globex).GroupService
    before = len(directory.events(company.organization))
    hidden = no_group(company.eng.id)
    group = {"group_id": company.eng.id}
    for name, fields in (
        ("GetGroup", {}),
        ("DeleteGroup", {}),
        ("AddGroupMember", named(stranger)),
        ("RemoveGroupMember", named(company.bob)),
        ("ModifyGroupMembers", {"add": [named(stranger)]}),
        ("ListGroupMembers", {}),
        ("ListMemberGroups", {}),
        ("ListContainingGroups", {}),
    ):
        assert refusal(getattr(service, name), **group, **fields) == hidden
    assert service.DeleteGroup(**group, allow_missing=True).consistency_token
    changed = {"id": company.eng.id, "name": "x"}
    assert refusal(service.UpdateGroup, group=changed, update_mask={"paths": ["name"]}) == hidden
    assert refusal(service.CreateGroup, organization_id=company.organization.id, name="g")[1] == (
        "ORGANIZATION_NOT_FOUND"
    )
    assert refusal(service.ListGroups, organization_id=company.organization.id)[1] == (
        "ORGANIZATION_NOT_FOUND"
    )
    assert refusal(service.ListMembershipGroups, **named(company.bob)) == no_membership(
        company.bob.id
    )
    assert refusal(service.AddGroupMember, group_id=own.id, **named(company.bob)) == no_membership(
        company.bob.id
    )
    assert refusal(service.AddGroupMember, group_id=own.id, **named(company.eng)) == no_group(
        company.eng.id, "member_group_id"
    )
    assert service.AddGroupMember(group_id=own.id, **named(stranger)).group.member_count == 1
    assert [row.name for row in service.ListGroups(organization_id=globex.id).groups] == [
        "own",
        "everyone",
    ]
    assert directory.recorded(company.organization, before) == []

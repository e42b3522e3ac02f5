"""What the writers of a run do: each story is a cycle of writes to registers of its own.

All stories meet on the same few members, groups and resources, so that they void each other's
facts; each has permissions of its own, so that no other story changes what its reads show.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.callers import Caller
from tests.consistency.history import Register, Value

# How many permissions tell the version of a role: half of them the number, half its complement, so
# that a mixture of two versions is a value that never was.
DIGITS = 3
# Tokens that are remembered of each register: the newest, and some that a later write has outdone.
TOKENS_MAX = 4

Change = tuple[str, str, dict[str, Any]]


class Item(NamedTuple):
    """One question of a read, as ``BatchCheckItem``."""

    subject: dict[str, Any]
    permission_slug: str
    resource: dict[str, Any]


class Token(NamedTuple):
    """What an acknowledged write gave its caller.

    Attributes:
        process: That acknowledged it.
        version: Of the register, after the write.
    """

    process: int
    text: str
    version: int


@dataclass(slots=True)
class Watched:
    """A register and how to ask for its value.

    Attributes:
        organization: In which all its items are; a batch asks about one instant of it.
        bearer: The credential that asks; empty = the admin's.
        tokens: Of its latest writes.
    """

    register: Register
    organization: str
    items: Sequence[Item]
    bearer: str = ""
    tokens: deque[Token] = field(default_factory=lambda: deque(maxlen=TOKENS_MAX))


class Step(NamedTuple):
    """A write: what to call, and the values of the story's registers after it."""

    change: Change
    values: Sequence[Value]


@dataclass(slots=True)
class Story:
    """A cycle of writes.

    Attributes:
        watched: What readers may ask about now.
        steps: Endless; each is taken once the one before is acknowledged.
        seconds_min: Between two of its writes, for those that void the facts of everybody.
        past: Registers that are over.
    """

    kind: str
    watched: list[Watched]
    steps: Iterator[Step]
    seconds_min: float = 0.0
    past: list[Register] = field(default_factory=list)


def _cycle(*steps: Step) -> Iterator[Step]:
    while True:
        yield from steps


def _watched(kind: str, organization: str, initial: Value, *items: Item, name: str = "") -> Watched:
    return Watched(Register(f"{kind} {name}".strip(), kind, initial), organization, items)


def _member(id: str) -> dict[str, Any]:
    return {"organization_membership_id": id}


def _resource(id: str) -> dict[str, Any]:
    return {"resource_id": id}


@dataclass(slots=True)
class Place:
    """An organization of the world: six hot members, two folders, four documents.

    Attributes:
        quiet: A member that only the story of statuses uses, for it takes away everything.
    """

    id: str
    members: list[str]
    quiet: str
    folders: list[str]
    documents: list[str]


class World:
    """Makes the world over the API, and the stories in it.

    Args:
        api: An unrestricted admin.
    """

    def __init__(self, api: Caller) -> None:
        self._api = api
        self._slugs = 0
        self._users = 0
        for slug, parents in (
            ("folder", ["organization", "folder"]),
            ("section", ["folder"]),
            ("document", ["organization", "folder", "section"]),
        ):
            api.ResourceTypeService.CreateResourceType(
                slug=slug,
                name=slug,
                parent_type_slugs=[each for each in parents if each != slug],
            )
        self.places = [self._place(name) for name in ("first", "second")]

    def _place(self, name: str) -> Place:
        api = self._api
        id = api.OrganizationService.CreateOrganization(name=name).organization.id
        members = [self._membership(id) for _ in range(6)]

        def resource(kind: str, number: int, parent: str = "") -> str:
            return api.ResourceService.CreateResource(
                organization_id=id,
                resource_type_slug=kind,
                external_id=f"{kind}-{number}",
                name=f"{kind}-{number}",
                parent=_resource(parent) if parent else None,
            ).resource.id

        folders = [resource("folder", number) for number in range(2)]
        documents = [resource("document", number, folders[0]) for number in range(4)]
        return Place(id, members, self._membership(id), folders, documents)

    def _user(self) -> str:
        self._users += 1
        return self._api.UserService.CreateUser(email=f"user{self._users}@example.com").user.id

    def _membership(self, organization_id: str) -> str:
        return self._api.OrganizationMembershipService.CreateOrganizationMembership(
            user_id=self._user(), organization_id=organization_id
        ).organization_membership.id

    # --- definitions ---------------------------------------------------------------------------

    def _permission(self, kind: str = "document") -> str:
        self._slugs += 1
        slug = f"{kind}:p{self._slugs}"
        self._api.PermissionService.CreatePermission(slug=slug, name=slug, resource_type_slug=kind)
        return slug

    def _role(
        self, type_slug: str, permission_slugs: Sequence[str], organization_id: str = ""
    ) -> Any:
        self._slugs += 1
        slug = f"role-{self._slugs}" if not organization_id else f"org-role-{self._slugs}"
        return self._api.RoleService.CreateRole(
            organization_id=organization_id,
            slug=slug,
            name=slug,
            resource_type_slug=type_slug,
            permission_slugs=permission_slugs,
        ).role

    def _assign(self, role: Any, resource: str, **subject: str) -> None:
        self._api.RoleAssignmentService.CreateRoleAssignment(
            role_slug=role.slug, resource=_resource(resource), **subject
        )

    def _group(self, place: Place, *members: str) -> str:
        self._slugs += 1
        group = self._api.GroupService.CreateGroup(
            organization_id=place.id, name=f"group-{self._slugs}"
        ).group.id
        for member in members:
            self._api.GroupService.AddGroupMember(group_id=group, organization_membership_id=member)
        return group

    # --- stories -------------------------------------------------------------------------------

    def assignments(self) -> list[Story]:
        """Returns stories of roles assigned to members alone: the smallest load there is."""
        return [
            self._assignment(place, {"organization_membership_id": member}, member, document)
            for place in self.places
            for member, document in zip(place.members, place.documents, strict=False)
        ]

    def stories(self) -> list[Story]:
        """Returns one or more stories of every kind."""
        made = []
        for place in self.places:
            first, second, third, fourth, fifth, sixth = place.members
            one, two, three, four = place.documents
            group = self._group(place, first, second, third)
            made += [
                self._assignment(place, _member(first), first, one),
                self._assignment(place, _member(second), second, two),
                self._assignment(place, {"group_id": group}, third, one, "group assignment"),
                self._member(place, fourth, two),
                self._nesting(place, fifth, one),
                self._status(place, place.quiet, two),
                self._move(place, sixth, three),
                self._subtree(place, sixth),
                self._roles_on(place, first, two),
                self._own_role(place, second, one),
                self._role_permissions([(place, third, two)], "organization role", seconds_min=0.2),
                self._handover(place, first, fourth, one),
                self._new_enemy(place, fifth, four),
            ]
        both = [(place, place.members[0], place.documents[0]) for place in self.places]
        made += [
            self._role_permissions(both, "environment role", seconds_min=0.5),
            self._user_in_both(),
            self._organization(),
            self._credential(),
        ]
        return made

    def _assignment(
        self,
        place: Place,
        subject: dict[str, str],
        member: str,
        document: str,
        kind: str = "assignment",
    ) -> Story:
        permission = self._permission()
        role = self._role("document", [permission])
        key = {"role_slug": role.slug, "resource": _resource(document), **subject}
        watched = _watched(
            kind, place.id, (False,), Item(_member(member), permission, _resource(document)),
            name=role.slug,
        )  # fmt: skip
        service = "RoleAssignmentService"
        return Story(
            kind,
            [watched],
            _cycle(
                Step((service, "CreateRoleAssignment", key), [(True,)]),
                Step((service, "DeleteRoleAssignment", {"key": key}), [(False,)]),
            ),
        )

    def _member(self, place: Place, member: str, document: str) -> Story:
        permission = self._permission()
        role = self._role("folder", [permission])
        group = self._group(place)
        self._assign(role, place.folders[0], group_id=group)
        item = Item(_member(member), permission, _resource(document))
        change = {"group_id": group, "organization_membership_id": member}
        return Story(
            "member",
            [_watched("member", place.id, (False,), item, name=group)],
            _cycle(
                Step(("GroupService", "AddGroupMember", change), [(True,)]),
                Step(("GroupService", "RemoveGroupMember", change), [(False,)]),
            ),
        )

    def _nesting(self, place: Place, member: str, document: str) -> Story:
        permission = self._permission()
        role = self._role("document", [permission])
        outer, inner = self._group(place), self._group(place, member)
        self._assign(role, document, group_id=outer)
        item = Item(_member(member), permission, _resource(document))
        change = {"group_id": outer, "member_group_id": inner}
        return Story(
            "nesting",
            [_watched("nesting", place.id, (False,), item, name=outer)],
            _cycle(
                Step(("GroupService", "AddGroupMember", change), [(True,)]),
                Step(("GroupService", "RemoveGroupMember", change), [(False,)]),
            ),
        )

    def _status(self, place: Place, member: str, document: str) -> Story:
        permission = self._permission()
        self._assign(
            self._role("document", [permission]), document, organization_membership_id=member
        )
        item = Item(_member(member), permission, _resource(document))
        service = "OrganizationMembershipService"
        return Story(
            "status",
            [_watched("status", place.id, (True,), item, name=member)],
            _cycle(
                Step((service, "DeactivateOrganizationMembership", _member(member)), [(False,)]),
                Step((service, "ReactivateOrganizationMembership", _member(member)), [(True,)]),
            ),
        )

    def _move(self, place: Place, member: str, document: str) -> Story:
        permission = self._permission()
        role = self._role("folder", [permission])
        self._assign(role, place.folders[1], organization_membership_id=member)
        item = Item(_member(member), permission, _resource(document))

        def move(folder: str) -> Change:
            return (
                "ResourceService",
                "MoveResource",
                {"resource": _resource(document), "parent": _resource(folder)},
            )

        return Story(
            "move",
            [_watched("move", place.id, (False,), item, name=document)],
            _cycle(
                Step(move(place.folders[1]), [(True,)]),
                Step(move(place.folders[0]), [(False,)]),
            ),
        )

    def _subtree(self, place: Place, member: str) -> Story:
        """Moves a section to and fro, with a document in it."""
        permission = self._permission()
        role = self._role("folder", [permission])
        self._assign(role, place.folders[1], organization_membership_id=member)
        section = self._inside(place, place.folders[0], "section")
        item = Item(_member(member), permission, _resource(self._inside(place, section)))

        def move(folder: str) -> Change:
            return (
                "ResourceService",
                "MoveResource",
                {"resource": _resource(section), "parent": _resource(folder)},
            )

        return Story(
            "subtree",
            [_watched("subtree", place.id, (False,), item, name=section)],
            _cycle(
                Step(move(place.folders[1]), [(True,)]),
                Step(move(place.folders[0]), [(False,)]),
            ),
        )

    def _new_enemy(self, place: Place, member: str, document: str) -> Story:
        """Takes a role on a folder away, then moves the document into it: it is never reached."""
        permission = self._permission()
        role = self._role("folder", [permission])
        folder = place.folders[1]
        self._assign(role, folder, organization_membership_id=member)
        items = [
            Item(_member(member), permission, _resource(document)),
            # In the folder, the role shows; a second document that is always there.
            Item(_member(member), permission, _resource(self._inside(place, folder))),
        ]
        key = {"role_slug": role.slug, "resource": _resource(folder), **_member(member)}

        def move(to: str) -> Change:
            return (
                "ResourceService",
                "MoveResource",
                {"resource": _resource(document), "parent": _resource(to)},
            )

        service = "RoleAssignmentService"
        return Story(
            "new enemy",
            [_watched("new enemy", place.id, (False, True), *items, name=document)],
            _cycle(
                Step((service, "DeleteRoleAssignment", {"key": key}), [(False, False)]),
                Step(move(folder), [(False, False)]),
                Step(move(place.folders[0]), [(False, False)]),
                Step((service, "CreateRoleAssignment", key), [(False, True)]),
            ),
        )

    def _inside(self, place: Place, folder: str, type_slug: str = "document") -> str:
        self._slugs += 1
        return self._api.ResourceService.CreateResource(
            organization_id=place.id,
            resource_type_slug=type_slug,
            external_id=f"inside-{self._slugs}",
            name="inside",
            parent=_resource(folder),
        ).resource.id

    def _numbered(self) -> tuple[list[str], list[tuple[bool, ...]]]:
        """Returns permissions, and which of them are held at each number that they tell."""
        slugs = [self._permission() for _ in range(2 * DIGITS)]
        values = []
        for number in range(2**DIGITS):
            digits = tuple(bool(number >> place & 1) for place in range(DIGITS))
            values.append(digits + tuple(not digit for digit in digits))
        return slugs, values

    def _roles_on(self, place: Place, member: str, document: str) -> Story:
        """Sets all roles of a member on a document at once."""
        slugs, values = self._numbered()
        roles = [self._role("document", [slug]).slug for slug in slugs]
        items = [Item(_member(member), slug, _resource(document)) for slug in slugs]

        def put(value: tuple[bool, ...]) -> Step:
            held = [
                {"role_slug": role} for role, is_held in zip(roles, value, strict=True) if is_held
            ]
            request = {**_member(member), "resource": _resource(document), "roles": held}
            return Step(("RoleAssignmentService", "SetRoleAssignments", request), [value])

        none = (False,) * len(slugs)
        watched = _watched("set of roles", place.id, none, *items, name=member)
        return Story("set of roles", [watched], _cycle(*map(put, values)))

    def _own_role(self, place: Place, member: str, document: str) -> Story:
        permission = self._permission()
        role = self._role("organization", [permission])
        item = Item(_member(member), permission, _resource(document))

        def put(*slugs: str) -> Change:
            request = {**_member(member), "role_slugs": slugs}
            return ("OrganizationMembershipService", "UpdateOrganizationMembership", request)

        return Story(
            "own role",
            [_watched("own role", place.id, (False,), item, name=member)],
            _cycle(Step(put("member", role.slug), [(True,)]), Step(put("member"), [(False,)])),
        )

    def _role_permissions(
        self, where: Sequence[tuple[Place, str, str]], kind: str, seconds_min: float
    ) -> Story:
        slugs, values = self._numbered()
        organization_id = where[0][0].id if kind == "organization role" else ""
        role = self._role("document", [], organization_id)
        watched = []
        for place, member, document in where:
            self._assign(role, document, organization_membership_id=member)
            items = [Item(_member(member), slug, _resource(document)) for slug in slugs]
            none = (False,) * len(slugs)
            watched.append(_watched(kind, place.id, none, *items, name=f"{role.slug} {place.id}"))

        def put(value: tuple[bool, ...]) -> Step:
            held = [slug for slug, is_held in zip(slugs, value, strict=True) if is_held]
            request = {"role_id": role.id, "permission_slugs": held}
            return Step(("RoleService", "SetRolePermissions", request), [value] * len(where))

        return Story(kind, watched, _cycle(*map(put, values)), seconds_min)

    def _handover(self, place: Place, one: str, other: str, document: str) -> Story:
        """Takes a role from one member and gives it to another, in one write."""
        permission = self._permission()
        role = self._role("document", [permission])
        self._assign(role, document, organization_membership_id=one)
        items = [Item(_member(each), permission, _resource(document)) for each in (one, other)]

        def hand(giver: str, taker: str) -> Change:
            about = {"role_slug": role.slug, "resource": _resource(document)}
            return (
                "RoleAssignmentService",
                "ModifyRoleAssignments",
                {
                    "organization_id": place.id,
                    "add": [{**about, **_member(taker)}],
                    "remove": [{**about, **_member(giver)}],
                },
            )

        return Story(
            "handover",
            [_watched("handover", place.id, (True, False), *items, name=role.slug)],
            _cycle(
                Step(hand(one, other), [(False, True)]), Step(hand(other, one), [(True, False)])
            ),
        )

    def _user_in_both(self) -> Story:
        """Deletes users who are members of both organizations: one write in two control sets."""
        permission = self._permission()
        role = self._role("document", [permission])
        story = Story("user in both", [], iter(()), seconds_min=0.1)

        def steps() -> Iterator[Step]:
            api = self._api
            while True:
                user = self._user()
                watched = []
                for place in self.places:
                    document = place.documents[0]
                    member = api.OrganizationMembershipService.CreateOrganizationMembership(
                        user_id=user, organization_id=place.id
                    ).organization_membership.id
                    self._assign(role, document, organization_membership_id=member)
                    pair = {"user": {"user_id": user, "organization_id": place.id}}
                    item = Item(pair, permission, _resource(document))
                    watched.append(
                        _watched(story.kind, place.id, (True,), item, name=f"{user} {place.id}")
                    )
                _publish(story, watched)
                yield Step(("UserService", "DeleteUser", {"user_id": user}), [(False,)] * 2)

        story.steps = steps()
        return story

    def _organization(self) -> Story:
        """Deletes an organization and makes it again, with the same names for all in it.

        What the one before held is asked about as long as the next one lives: neither may answer
        for the other.
        """
        permission = self._permission()
        role = self._role("document", [permission])
        user = self._user()
        story = Story("organization", [], iter(()), seconds_min=0.3)

        def make() -> tuple[Watched, dict[str, Any]]:
            api = self._api
            id = api.OrganizationService.CreateOrganization(
                name="again", external_id="again"
            ).organization.id
            member = api.OrganizationMembershipService.CreateOrganizationMembership(
                user_id=user, organization_id=id
            ).organization_membership.id
            key = {
                "organization_id": id,
                "resource_type_slug": "document",
                "external_id": "again",
            }
            api.ResourceService.CreateResource(
                organization_id=id,
                resource_type_slug="document",
                external_id="again",
                name="again",
            )
            pair = {"user": {"user_id": user, "organization_id": id}}
            watched = _watched(
                story.kind, id, (False,), Item(pair, permission, {"key": key}), name=id
            )
            return watched, {"role_slug": role.slug, "resource": {"key": key}, **_member(member)}

        def steps() -> Iterator[Step]:
            before: list[Watched] = []
            service = "RoleAssignmentService"
            while True:
                present, grant = make()
                gone: list[Value] = [(False,) for _ in before]
                _publish(story, [*before, present])
                yield Step((service, "CreateRoleAssignment", grant), [*gone, (True,)])
                id = present.organization
                delete = ("OrganizationService", "DeleteOrganization", {"organization_id": id})
                yield Step(delete, [*gone, (False,)])
                before = [_watched(story.kind, id, (False,), *present.items, name=f"{id} gone")]

        story.steps = steps()
        return story

    def _credential(self) -> Story:
        """Revokes service credentials: writes of ``*`` that are no definitions."""
        place = self.places[0]
        permission = self._permission()
        self._assign(
            self._role("document", [permission]),
            place.documents[0],
            organization_membership_id=place.members[0],
        )
        item = Item(_member(place.members[0]), permission, _resource(place.documents[0]))
        story = Story("credential", [], iter(()), seconds_min=0.3)

        def steps() -> Iterator[Step]:
            while True:
                made = self._api.ConfigurationService.CreateServiceCredential(
                    name="hot", scopes=["check"]
                )
                if not made.secret:
                    # Told once: the first answer was lost, and this is that of a repeat.
                    continue
                id = made.service_credential.id
                watched = _watched(story.kind, place.id, (True,), item, name=id)
                watched.bearer = made.secret
                _publish(story, [watched])
                revoke = ("ConfigurationService", "RevokeServiceCredential")
                yield Step((*revoke, {"service_credential_id": id}), [(False,)])

        story.steps = steps()
        return story


def _publish(story: Story, watched: list[Watched]) -> None:
    """Gives readers new registers in the place of those that are over."""
    story.past += [each.register for each in story.watched]
    story.watched = watched

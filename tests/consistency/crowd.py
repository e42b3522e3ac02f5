"""A world whose answers are arithmetic, and very many callers of the decision front at once.

They write and read frames by hand. A client of gRPC would match answers with questions by itself;
here a question is remembered by the stream that it was sent on, and by nothing else.
"""

import contextlib
import itertools
import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hpack

from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.pb.authz.v1 import core_pb2
from tests.callers import PACKAGE, Caller
from tests.consistency.sizes import Crowd
from tests.rpc.fronts.h2.peer import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    block,
    data,
    frame,
    frames_of,
    headers,
    number,
    settings,
)

CONNECTIONS, CALLS_EACH = 16, 64
# Then a connection is left for a new one: others begin and end beside those that ask.
CALLS_MAX = 20_000
# Of all connections together, before the run is given up.
SILENCE_SECONDS = 60.0
_HEADER_TABLE_SIZE = 1
# Without a table a block means the same wherever it stands; the window is never full.
_HELLO = (
    PREFACE
    + settings((_HEADER_TABLE_SIZE, 0))
    + frame(WINDOW_UPDATE, 0, 0, number((1 << 31) - 1 - 65_535))
)
_PIECE = 1 << 18

# What a question is told by, and its message.
Question = tuple[int, bytes]
# By the number of a question: "allowed", "denied", or what came instead of an answer.
Answers = dict[int, str]


class Line:
    """A connection that always has as many calls under way as it may.

    Args:
        address: ``unix:`` and a path.
        head: The header block of all calls.
        questions: Shared with the other connections; taken until it ends.
        told: Called with the number of each question and what it was answered.
    """

    def __init__(
        self,
        address: str,
        head: bytes,
        questions: Iterator[Question],
        told: Callable[[int, str], None],
    ) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SILENCE_SECONDS)
        self.socket.connect(address.removeprefix("unix:"))
        self._head = head
        self._questions = questions
        self._told = told
        self._decoder = hpack.Decoder()
        self._codes: dict[bytes, str | None] = {}
        self._rest = b""
        self._under_way: dict[int, int] = {}
        self._bodies: dict[int, bytes] = {}
        self._next = 1
        self.socket.sendall(_HELLO + self._calls())

    @property
    def is_done(self) -> bool:
        """Whether everything it asked was answered, and it asks no more."""
        return not self._under_way

    def _calls(self) -> bytes:
        """Returns as many new calls as there is room for."""
        sent = []
        while len(self._under_way) < CALLS_EACH and self._next < 2 * CALLS_MAX:
            question = next(self._questions, None)
            if question is None:
                break
            told_by, message = question
            stream, self._next = self._next, self._next + 2
            self._under_way[stream] = told_by
            sent.append(headers(stream, END_HEADERS, self._head) + data(stream, message))
        return b"".join(sent)

    def read(self) -> None:
        """Takes what has come, and asks the next questions.

        Raises:
            AssertionError: It is nothing that may come.
        """
        got = self.socket.recv(_PIECE)
        assert got, "the connection ended"
        whole = self._rest + got
        at = 0
        while len(whole) - at >= 9:
            end = at + 9 + int.from_bytes(whole[at : at + 3], "big")
            if end > len(whole):
                break
            at = end
        self._rest = whole[at:]
        replies = [self._take(each) for each in frames_of(whole[:at])]
        self.socket.sendall(b"".join(replies) + self._calls())

    def _take(self, each: Frame) -> bytes:
        """Takes a frame; returns what must be said to it."""
        if each.kind in (SETTINGS, PING):
            payload = each.payload if each.kind == PING else b""
            return b"" if each.flags & ACK else frame(each.kind, ACK, 0, payload)
        if each.kind == WINDOW_UPDATE:
            return b""
        assert each.kind in (HEADERS, DATA), each
        # An answer to what was not asked, or a second one, is no less wrong than another's.
        assert each.stream in self._under_way, each
        if each.kind == DATA:
            assert each.stream not in self._bodies, "an answer in two parts"
            self._bodies[each.stream] = each.payload
        elif each.flags & END_STREAM:
            code = self._code(each.payload)
            body = self._bodies.pop(each.stream, b"")
            told = f"status {code}"
            if code == "0":
                assert body[0] == 0, "compressed"
                assert int.from_bytes(body[1:5], "big") == len(body) - 5
                allowed = pb.CheckResponse.FromString(body[5:]).allowed
                told = "allowed" if allowed else "denied"
            self._told(self._under_way.pop(each.stream), told)
        return b""

    def _code(self, payload: bytes) -> str | None:
        """Returns the status of gRPC in a header block."""
        if payload not in self._codes:
            pairs: Any = self._decoder.decode(payload, raw=True)
            value = dict(pairs).get(b"grpc-status")
            self._codes[payload] = None if value is None else bytes(value).decode()
        return self._codes[payload]


def asked_at_once(address: str, bearer: str, questions: Iterator[Question]) -> tuple[Answers, int]:
    """Asks all questions, about a thousand of them at any time.

    Returns:
        The answers, and how many connections there were.

    Raises:
        AssertionError: An answer is to no question, a question has several, or nothing comes.
    """
    head = block(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", f"/{PACKAGE}.AuthorizationService/Check".encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"authorization", f"Bearer {bearer}".encode()),
        ]
    )
    answers: Answers = {}

    def told(number: int, answer: str) -> None:
        assert number not in answers, f"question {number} was answered twice"
        answers[number] = answer

    made = 0
    with contextlib.ExitStack() as exits:
        selector = exits.enter_context(selectors.DefaultSelector())

        def connect() -> None:
            nonlocal made
            line = Line(address, head, questions, told)
            exits.callback(line.socket.close)
            if line.is_done:
                return
            made += 1
            selector.register(line.socket, selectors.EVENT_READ, line)

        for _ in range(CONNECTIONS):
            connect()
        while selector.get_map():
            ready = selector.select(SILENCE_SECONDS)
            assert ready, f"nothing comes after {len(answers)} answers"
            for key, _ in ready:
                line: Line = key.data
                line.read()
                if line.is_done:
                    selector.unregister(line.socket)
                    line.socket.close()
                    connect()
    return answers, made


# --- what is asked about ------------------------------------------------------------------------


class World(NamedTuple):
    """Members, permissions and documents by their numbers, each as a part of a question.

    Member m may do p to document d if m + d + p is even. So half of all is allowed, and a question
    that differs in one place by one has the other answer.

    Parts of a message put together are the message.
    """

    members: list[bytes]
    permissions: list[bytes]
    documents: list[bytes]

    def question(self, number: int) -> Question:
        """Returns one of all questions."""
        member, permission, document = self.places(number)
        parts = self.members[member], self.permissions[permission], self.documents[document]
        return number, b"".join(parts)

    def places(self, number: int) -> tuple[int, int, int]:
        """Returns which member, permission and document a question is about."""
        rest, document = divmod(number, len(self.documents))
        return *divmod(rest, len(self.permissions)), document

    def expected(self, number: int) -> str:
        """Returns the answer to a question."""
        return "denied" if sum(self.places(number)) % 2 else "allowed"


def world(api: Caller, size: Crowd) -> World:
    """Makes members in two groups, documents in two folders, and a role for each second permission.

    Each group has one role in one folder, and the other one in the other folder.
    """
    for slug, parent in (("folder", "organization"), ("document", "folder")):
        api.ResourceTypeService.CreateResourceType(slug=slug, name=slug, parent_type_slugs=[parent])
    organization = api.OrganizationService.CreateOrganization(name="crowd").organization.id
    slugs = [f"document:p{number}" for number in range(size.permissions)]
    for slug in slugs:
        api.PermissionService.CreatePermission(slug=slug, name=slug, resource_type_slug="document")

    def resource(kind: str, name: str, parent: str = "") -> str:
        id: str = api.ResourceService.CreateResource(
            organization_id=organization,
            resource_type_slug=kind,
            external_id=name,
            name=name,
            parent={"resource_id": parent} if parent else None,
        ).resource.id
        return id

    folders = [resource("folder", f"folder-{half}") for half in range(2)]
    groups = []
    for half in range(2):
        api.RoleService.CreateRole(
            slug=f"role-{half}",
            name=f"role-{half}",
            resource_type_slug="folder",
            permission_slugs=slugs[half::2],
        )
        group = api.GroupService.CreateGroup(organization_id=organization, name=f"group-{half}")
        groups.append(group.group.id)
    for group, folder in itertools.product(range(2), range(2)):
        api.RoleAssignmentService.CreateRoleAssignment(
            role_slug=f"role-{(group + folder) % 2}",
            resource={"resource_id": folders[folder]},
            group_id=groups[group],
        )
    members = []
    for place in range(size.members):
        user = api.UserService.CreateUser(email=f"user{place}@example.com").user.id
        made = api.OrganizationMembershipService.CreateOrganizationMembership(
            user_id=user, organization_id=organization
        )
        members.append(made.organization_membership.id)
        api.GroupService.AddGroupMember(
            group_id=groups[place % 2], organization_membership_id=members[-1]
        )
    documents = [
        resource("document", f"document-{number}", folders[number % 2])
        for number in range(size.documents)
    ]
    return World(
        [_subject(each) for each in members],
        [pb.CheckRequest(permission_slug=slug).SerializeToString() for slug in slugs],
        [
            pb.CheckRequest(resource=core_pb2.ResourceRef(resource_id=each)).SerializeToString()
            for each in documents
        ],
    )


def _subject(id: str) -> bytes:
    subject = core_pb2.Subject(organization_membership_id=id)
    return pb.CheckRequest(subject=subject).SerializeToString()

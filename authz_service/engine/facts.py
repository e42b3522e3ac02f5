"""The values that decisions are made of, and who can provide them. Pure: no I/O, no clock."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from authz_service.base.consistency import Position

# An end that never comes: later than any instant that can be stored or asked.
NO_END = 2**63 - 1

MEMBERSHIP, USER, GROUP, API_KEY = "membership", "user", "group", "api_key"


class Subject(NamedTuple):
    """Who is asked about. A tuple, for it is the key of every look-up of a batch.

    Attributes:
        kind: MEMBERSHIP, USER (the pair form), GROUP or API_KEY.
        id: Of the membership, user, group or API key.
        organization_id: For USER only, else empty.
    """

    kind: str
    id: str
    organization_id: str = ""


class ResourceRef(NamedTuple):
    """A resource by its id, or by the application's key.

    Attributes:
        id: Empty in the key form.
        organization_id, resource_type_slug, external_id: Empty in the id form.
    """

    id: str
    organization_id: str = ""
    resource_type_slug: str = ""
    external_id: str = ""


class Ask(NamedTuple):
    """One question: may this subject do this to that?"""

    subject: Subject
    permission_slug: str
    resource: ResourceRef


Ends = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Grants:
    """The fact ``grants(subject)``.

    Attributes:
        organization_id: Of the subject.
        is_active: False for a pending or inactive membership.
        holders: One map for each holder the subject's grants come from, or one flattened map:
            resource id -> permission slug -> the first instant at which no grant of this holder
            on this resource contains it any more (NO_END without one). Resources and permissions
            that were not asked for may be missing.
    """

    organization_id: str
    is_active: bool
    holders: tuple[Ends, ...]


@dataclass(frozen=True, slots=True)
class Path:
    """The fact ``path(resource)``.

    Attributes:
        resource_ids: The resource and its ancestors, in any order.
    """

    organization_id: str
    resource_type_slug: str
    resource_ids: tuple[str, ...]


class MayBe(NamedTuple):
    """How old the state of an answer may be, so that it needs no look at what happened since.

    Attributes:
        seconds: The age of what is remembered.
        positions: At least these must have been seen, by realm; None = nothing in particular.
    """

    seconds: float
    positions: Mapping[str, Position] | None = None


# A value that nobody changes; `frozen` would triple what making one costs.
@dataclass(slots=True)
class Facts:
    """All facts of a request, valid at one instant per organization.

    Attributes:
        grants, paths: What was asked for and exists; what is missing is unknown.
        permission_types: Permission slug to resource type slug, of those asked for that exist.
        now: The instant at which ends are judged, in microseconds since 1970.
        revisions: Realm to revision: the state the facts come from, for the token.
        credential_revision: The present revision of the credential that was to be confirmed, None
            if it is gone or none was named.
        positions: Realm to the place of its control set, if the facts are remembered ones.
    """

    grants: Mapping[Subject, Grants]
    paths: Mapping[ResourceRef, Path]
    permission_types: Mapping[str, str]
    now: int
    revisions: Mapping[str, int]
    credential_revision: int | None = None
    positions: Mapping[str, Position] | None = None


class Question(NamedTuple):
    """What one call needs facts for: the arguments of ``FactSource.load``."""

    subjects: Collection[Subject]
    permission_slugs: Collection[str]
    resources: Collection[ResourceRef]
    credential_id: str = ""
    may_be: MayBe | None = None


class FactSource(Protocol):
    """Provides all facts of a request at once, so that nobody combines facts by hand."""

    def load(
        self,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        *,
        credential_id: str = "",
        may_be: MayBe | None = None,
    ) -> Facts:
        """Returns the facts that answer every combination of the arguments, of one instant.

        Args:
            may_be: A remembered state that is old enough; None = one of now.
        """
        ...

    def at_once(
        self, questions: Sequence[Question], then: Callable[[Sequence[Facts | None]], None]
    ) -> None:
        """Gives the facts of several questions as far as they are known without waiting.

        For the one thread of an event loop, in which ``then`` is called, now or later.

        Args:
            then: Told the facts of each question, in order; None for those that ``load`` must be
                asked about.
        """
        ...

    def revisions(self, realms: Collection[str]) -> Mapping[str, int]:
        """Returns the present revisions of realms: the state that the database is in."""
        ...

"""AuthorizationService: Check, BatchCheck and CheckMatrix; the reverse questions are Discovery."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from google.protobuf.message import Message

from authz_service.api import render
from authz_service.api.consistency import Freshness, Wanted
from authz_service.api.discovery import Discovery
from authz_service.api.listing import Listings
from authz_service.base import errors
from authz_service.base.actor import Actor
from authz_service.engine import limits
from authz_service.engine.check import decide, permission_not_found, subject_not_found
from authz_service.engine.facts import Ask, Facts, FactSource, Question, ResourceRef, Subject
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.rpc.call import Context, CredentialChanged, MustWait
from authz_service.rpc.status import status_of
from authz_service.storage.database import Database
from authz_service.telemetry.metrics import Metrics


class AuthorizationServicer(Discovery):
    """Decides, lists and explains.

    Args:
        facts: What decisions are made of.
        database: What lists and explanations read.
        freshness: Reads ``consistency``, makes tokens.
        metrics: Counts answers, and what could not be answered for want of its object.
        batch_items_max: Items of one BatchCheck.
    """

    def __init__(
        self,
        facts: FactSource,
        database: Database,
        freshness: Freshness,
        listings: Listings,
        metrics: Metrics,
        batch_items_max: int,
    ) -> None:
        super().__init__(database, freshness, listings)
        self._facts = facts
        self._decisions = metrics.decisions
        self._unknown = metrics.unknown
        self._batch_items_max = batch_items_max
        self._asking: dict[str, Callable[[Any], _Asked]] = {
            "Check": self._ask_check,
            "BatchCheck": self._ask_batch,
            "CheckMatrix": self._ask_matrix,
        }

    def Check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:
        return self._answer(self._ask_check(request), context)  # type: ignore[return-value]

    def BatchCheck(self, request: pb.BatchCheckRequest, context: Context) -> pb.BatchCheckResponse:
        return self._answer(self._ask_batch(request), context)  # type: ignore[return-value]

    def CheckMatrix(
        self, request: pb.CheckMatrixRequest, context: Context
    ) -> pb.CheckMatrixResponse:
        return self._answer(self._ask_matrix(request), context)  # type: ignore[return-value]

    def ask(self, name: str, request: Any) -> "_Asked":
        """Returns what a request asks (``rpc.hall.AtOnce``).

        Raises:
            InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, REQUEST_TOO_LARGE,
                CONSISTENCY_TOKEN_INVALID.
        """
        return self._asking[name](request)

    def at_once(
        self,
        calls: Sequence[tuple["_Asked", Context]],
        then: Callable[[Sequence[Message | Exception | None]], None],
    ) -> None:
        """Answers decisions from memory, all of them together (``rpc.hall.AtOnce``)."""

        def loaded(known: Sequence[Facts | None]) -> None:
            outcomes: list[Message | Exception | None] = []
            for (asked, context), facts in zip(calls, known, strict=True):
                outcome: Message | Exception | None = None
                if facts is not None:
                    try:
                        outcome = self._concluded(asked, facts, context, _must_wait)
                    except MustWait:
                        pass
                    except errors.Refusal as refusal:
                        # Without its frames: this one knows it, and that would be a circle.
                        outcome = refusal.with_traceback(None)
                    except Exception as error:
                        # Whatever it is, it ends this call and no other.
                        outcome = error
                outcomes.append(outcome)
            then(outcomes)

        self._facts.at_once([_question(asked, context) for asked, context in calls], loaded)

    def _answer(self, asked: "_Asked", context: Context) -> Message:
        facts = _load(self._facts, _question(asked, context))
        return self._concluded(asked, facts, context, self._facts.revisions)

    def _concluded(
        self,
        asked: "_Asked",
        facts: Facts,
        context: Context,
        present: Callable[[Collection[str]], Mapping[str, int]],
    ) -> Message:
        """Returns the answer, once the remembered credential that admitted the call is confirmed.

        Raises:
            CredentialChanged: It is not what it was.
        """
        credential = context.provisional_credential
        if credential is not None and facts.credential_revision != credential[1]:
            raise CredentialChanged
        self._freshness.check(asked.wanted, facts.revisions, facts.positions, present)
        return asked.answer(_visible(facts, context.actor), self._token(facts))

    # --- what each method asks, and answers ------------------------------------------------------

    def _ask_check(self, request: pb.CheckRequest) -> "_Asked":
        ask = Ask(
            render.subject(request.subject),
            request.permission_slug,
            render.resource_ref(request.resource),
        )
        return _Asked(
            (ask.subject,),
            (ask.permission_slug,),
            (ask.resource,),
            self._freshness.wanted(request.consistency),
            partial(self._answer_check, ask),
        )

    def _answer_check(self, ask: Ask, facts: Facts, token: str) -> pb.CheckResponse:
        try:
            decision = decide(facts, ask)
        except errors.NotFound as refusal:
            self._unknown.add(refusal.reason)
            raise
        self._decisions.add("true" if decision.allowed else "false")
        response = pb.CheckResponse(allowed=decision.allowed, consistency_token=token)
        if decision.allowed_until is not None:
            response.allowed_until.CopyFrom(render.timestamp(decision.allowed_until))
        return response

    def _ask_batch(self, request: pb.BatchCheckRequest) -> "_Asked":
        if len(request.items) > self._batch_items_max:
            raise errors.request_too_large(
                "items", maximum=self._batch_items_max, actual=len(request.items)
            )
        wanted = self._freshness.wanted(request.consistency)
        asks = [_ask(item) for item in request.items]
        answerable = [ask for ask in asks if isinstance(ask, Ask)]
        return _Asked(
            {ask.subject for ask in answerable},
            {ask.permission_slug for ask in answerable},
            {ask.resource for ask in answerable},
            wanted,
            partial(self._answer_batch, asks),
        )

    def _answer_batch(
        self, asks: Sequence[Ask | errors.Refusal], facts: Facts, token: str
    ) -> pb.BatchCheckResponse:
        response = pb.BatchCheckResponse(consistency_token=token)
        add = response.results.add
        answers = allowed = 0
        for ask in asks:
            if isinstance(ask, errors.Refusal):
                add().error.CopyFrom(status_of(ask))
                continue
            try:
                decision = decide(facts, ask)
            except errors.Refusal as refusal:
                if isinstance(refusal, errors.NotFound):
                    self._unknown.add(refusal.reason)
                add().error.CopyFrom(status_of(refusal))
                continue
            answers += 1
            answer = add().decision
            # A decision that says no must still be there: an empty message counts as absent.
            answer.SetInParent()
            if decision.allowed:
                allowed += 1
                answer.allowed = True
                if decision.allowed_until is not None:
                    answer.allowed_until.CopyFrom(render.timestamp(decision.allowed_until))
        self._count(answers, allowed)
        return response

    def _ask_matrix(self, request: pb.CheckMatrixRequest) -> "_Asked":
        for field, maximum in (
            ("permission_slugs", limits.MATRIX_PERMISSIONS_MAX),
            ("resources", limits.MATRIX_RESOURCES_MAX),
        ):
            actual = len(getattr(request, field))
            if actual > maximum:
                raise errors.request_too_large(field, maximum=maximum, actual=actual)
        subject = render.subject(request.subject)
        slugs = tuple(request.permission_slugs)
        resources = [
            render.resource_ref(resource, f"resources[{i}]")
            for i, resource in enumerate(request.resources)
        ]
        return _Asked(
            (subject,),
            set(slugs),
            set(resources),
            self._freshness.wanted(request.consistency),
            partial(self._answer_matrix, subject, slugs, resources),
        )

    def _answer_matrix(
        self,
        subject: Subject,
        slugs: tuple[str, ...],
        resources: Sequence[ResourceRef],
        facts: Facts,
        token: str,
    ) -> pb.CheckMatrixResponse:
        try:
            _require(facts, subject, slugs)
        except errors.NotFound as refusal:
            self._unknown.add(refusal.reason)
            raise
        response = pb.CheckMatrixResponse(consistency_token=token)
        for resource in resources:
            row = response.rows.add()
            unknown = _fill_row(row, facts, subject, slugs, resource)
            if unknown is None:
                self._count(len(slugs), sum(row.allowed))
            else:
                self._unknown.add(unknown.reason)
                row.error.CopyFrom(status_of(unknown))
        return response

    def _count(self, answers: int, allowed: int) -> None:
        """Counts the answers of one call at once."""
        if allowed:
            self._decisions.add("true", amount=allowed)
        if allowed < answers:
            self._decisions.add("false", amount=answers - allowed)

    def _token(self, facts: Facts) -> str:
        return self._freshness.token(facts.revisions, facts.positions)


class _Asked(NamedTuple):
    """What a call asks.

    Attributes:
        answer: Makes the response from the facts that the caller may see, and their token.
    """

    subjects: Collection[Subject]
    permission_slugs: Collection[str]
    resources: Collection[ResourceRef]
    wanted: Wanted
    answer: Callable[[Facts, str], Message]


def _question(asked: _Asked, context: Context) -> Question:
    """Returns what is needed for a call, and to confirm the credential that admitted it."""
    credential = context.provisional_credential
    subjects, permission_slugs, resources, wanted, _ = asked
    if credential is None:
        return Question(subjects, permission_slugs, resources, "", wanted.may_be)
    return Question(subjects, permission_slugs, resources, credential[0])


def _load(source: FactSource, question: Question) -> Facts:
    subjects, permission_slugs, resources, credential_id, may_be = question
    return source.load(
        subjects, permission_slugs, resources, credential_id=credential_id, may_be=may_be
    )


def _must_wait(realms: Collection[str]) -> NoReturn:
    raise MustWait


def _ask(item: pb.BatchCheckItem) -> Ask | errors.Refusal:
    try:
        subject = render.subject(item.subject)
        slug = render.required("permission_slug", item.permission_slug)
        return Ask(subject, slug, render.resource_ref(item.resource))
    except errors.Refusal as refusal:
        # What is asked is remembered; with its frames, so would be all the calls below them.
        return refusal.with_traceback(None)


def _require(facts: Facts, subject: Subject, slugs: tuple[str, ...]) -> None:
    """Refuses a matrix about a subject or a permission that does not exist."""
    if subject not in facts.grants:
        raise subject_not_found(subject)
    for slug in slugs:
        if slug not in facts.permission_types:
            raise permission_not_found(slug)


def _fill_row(
    row: pb.CheckMatrixRow,
    facts: Facts,
    subject: Subject,
    slugs: tuple[str, ...],
    resource: ResourceRef,
) -> errors.NotFound | None:
    allowed = []
    for slug in slugs:
        try:
            allowed.append(decide(facts, Ask(subject, slug, resource)).allowed)
        except errors.NotFound as refusal:
            return refusal
        except errors.InvalidArgument:
            # A permission of another type than the resource's is simply not allowed there (M20a).
            allowed.append(False)
    row.allowed.extend(allowed)
    return None


def _visible(facts: Facts, actor: Actor) -> Facts:
    """Returns the facts without subjects that a restricted credential may not see (C16)."""
    if not actor.organization_ids:
        return facts
    grants = {
        subject: held
        for subject, held in facts.grants.items()
        if held.organization_id in actor.organization_ids
    }
    return Facts(
        grants,
        facts.paths,
        facts.permission_types,
        facts.now,
        facts.revisions,
        facts.credential_revision,
        facts.positions,
    )

"""AuthorizationService: Check, BatchCheck and CheckMatrix; the reverse questions are Discovery."""

from collections.abc import Collection

from authz_service.api import render
from authz_service.api.consistency import Freshness
from authz_service.api.discovery import Discovery
from authz_service.api.listing import Listings
from authz_service.base import errors
from authz_service.base.actor import Actor
from authz_service.engine import limits
from authz_service.engine.check import decide, permission_not_found, subject_not_found
from authz_service.engine.facts import Ask, Facts, FactSource, MayBe, ResourceRef, Subject
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.rpc.call import Context, CredentialChanged
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

    def Check(self, request: pb.CheckRequest, context: Context) -> pb.CheckResponse:
        ask = Ask(
            render.subject(request.subject),
            request.permission_slug,
            render.resource_ref(request.resource),
        )
        wanted = self._freshness.wanted(request.consistency)
        facts = self._load(
            context, (ask.subject,), (ask.permission_slug,), (ask.resource,), wanted.may_be
        )
        self._freshness.check(wanted, facts.revisions, facts.positions, self._facts.revisions)
        try:
            decision = decide(_visible(facts, context.actor), ask)
        except errors.NotFound as refusal:
            self._unknown.add(refusal.reason)
            raise
        self._decisions.add("true" if decision.allowed else "false")
        response = pb.CheckResponse(
            allowed=decision.allowed,
            consistency_token=self._token(facts),
        )
        if decision.allowed_until is not None:
            response.allowed_until.CopyFrom(render.timestamp(decision.allowed_until))
        return response

    def BatchCheck(self, request: pb.BatchCheckRequest, context: Context) -> pb.BatchCheckResponse:
        if len(request.items) > self._batch_items_max:
            raise errors.request_too_large(
                "items", maximum=self._batch_items_max, actual=len(request.items)
            )
        wanted = self._freshness.wanted(request.consistency)
        asks = [_ask(item) for item in request.items]
        answerable = [ask for ask in asks if isinstance(ask, Ask)]
        facts = self._load(
            context,
            {ask.subject for ask in answerable},
            {ask.permission_slug for ask in answerable},
            {ask.resource for ask in answerable},
            wanted.may_be,
        )
        self._freshness.check(wanted, facts.revisions, facts.positions, self._facts.revisions)
        visible = _visible(facts, context.actor)
        response = pb.BatchCheckResponse(consistency_token=self._token(facts))
        add = response.results.add
        answers = allowed = 0
        for ask in asks:
            if isinstance(ask, errors.Refusal):
                add().error.CopyFrom(status_of(ask))
                continue
            try:
                decision = decide(visible, ask)
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

    def CheckMatrix(
        self, request: pb.CheckMatrixRequest, context: Context
    ) -> pb.CheckMatrixResponse:
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
        wanted = self._freshness.wanted(request.consistency)
        facts = self._load(context, (subject,), set(slugs), set(resources), wanted.may_be)
        self._freshness.check(wanted, facts.revisions, facts.positions, self._facts.revisions)
        visible = _visible(facts, context.actor)
        try:
            _require(visible, subject, slugs)
        except errors.NotFound as refusal:
            self._unknown.add(refusal.reason)
            raise
        response = pb.CheckMatrixResponse(consistency_token=self._token(facts))
        for resource in resources:
            row = response.rows.add()
            unknown = _fill_row(row, visible, subject, slugs, resource)
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

    def _load(
        self,
        context: Context,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        may_be: MayBe | None,
    ) -> Facts:
        """Returns the facts of a call, and confirms the remembered credential that admitted it."""
        credential = context.provisional_credential
        if credential is None:
            return self._facts.load(subjects, permission_slugs, resources, may_be=may_be)
        credential_id, revision = credential
        facts = self._facts.load(subjects, permission_slugs, resources, credential_id=credential_id)
        if facts.credential_revision != revision:
            raise CredentialChanged
        return facts


def _ask(item: pb.BatchCheckItem) -> Ask | errors.Refusal:
    try:
        subject = render.subject(item.subject)
        slug = render.required("permission_slug", item.permission_slug)
        return Ask(subject, slug, render.resource_ref(item.resource))
    except errors.Refusal as refusal:
        return refusal


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

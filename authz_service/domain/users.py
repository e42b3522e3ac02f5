"""Users: people known by one email address, whatever organizations they are in."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import email_validator
from sqlalchemy import ColumnElement, Row, or_, select

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import Cursor, Page
from authz_service.domain import events, organizations
from authz_service.storage import members, paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import Membership, User

EMAIL_MAX = 254
PROFILE_NAME_MAX = 256
URL_MAX = 2_048
# BCP 47 sets no limit; every registered tag with script, region and variants is far shorter.
LOCALE_MAX = 64

# Where email_verification_source comes from in this release.
NONE, CALLER = "NONE", "CALLER"

# Source: ITU-T E.164, at most 15 digits, the country code without a leading zero.
_PHONE_NUMBER = re.compile(r"\+[1-9][0-9]{1,14}")
# Source: RFC 5646 section 2.1, without the irregular tags, which it keeps for old data only.
_LOCALE = re.compile(
    r"(?:(?:[a-z]{2,3}(?:-[a-z]{3}){0,3}|[a-z]{4,8})"  # language
    r"(?:-[a-z]{4})?"  # script
    r"(?:-(?:[a-z]{2}|[0-9]{3}))?"  # region
    r"(?:-(?:[a-z0-9]{5,8}|[0-9][a-z0-9]{3}))*"  # variants
    r"(?:-[0-9a-wyz](?:-[a-z0-9]{2,8})+)*"  # extensions
    r"(?:-x(?:-[a-z0-9]{1,8})+)?"  # private use
    r"|x(?:-[a-z0-9]{1,8})+)",
    re.IGNORECASE | re.ASCII,
)

# The library refuses domains that no mail from elsewhere reaches (.local, .test). Directories of
# private networks are full of them, and this service sends no mail.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()


def view(row: User | Row[Any]) -> dict[str, Any]:
    """Returns the user as callers and events see it."""
    return {
        "id": row.id,
        "email": row.email,
        "email_verified": row.email_verified,
        "email_verification_source": f"EMAIL_VERIFICATION_SOURCE_{row.email_verification_source}",
        "first_name": row.first_name,
        "last_name": row.last_name,
        "name": row.name,
        "profile_picture_url": row.profile_picture_url,
        "phone_number": row.phone_number,
        "locale": row.locale,
        "external_id": row.external_id or "",
        "metadata": dict(row.metadata_json),
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def not_found(key: str, value: str) -> errors.NotFound:
    """USER_NOT_FOUND, with the id or key as it was given."""
    return errors.NotFound("USER_NOT_FOUND", "no such user", metadata={key: value})


def require(snapshot: Snapshot, user_id: str) -> None:
    """Refuses a user who does not exist or whom the caller may not see.

    Raises:
        NotFound: USER_NOT_FOUND.
    """
    statement = select(User.id).where(User.id == user_id, *_visible(snapshot))
    if snapshot.connection.execute(statement).one_or_none() is None:
        raise not_found("user_id", user_id)


def email(field: str, value: str) -> tuple[str, str]:
    """Returns an address as it is stored and in the canonical form that names its user (US1).

    Raises:
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID.

    Source: RFC 6531 and RFC 5891 as ``email_validator`` reads them.
    """
    value = slugs.text(field, value, minimum=1, maximum=EMAIL_MAX)
    try:
        parts = email_validator.validate_email(value, check_deliverability=False)
    except email_validator.EmailNotValidError:
        raise errors.field_invalid(field, "an email address") from None
    # One spelling has many encodings; after lower() once more, so that a canonical address is its
    # own canonical form.
    local = unicodedata.normalize("NFC", parts.local_part.lower())
    return value, f"{local}@{parts.ascii_domain.lower()}"


def profile(values: Mapping[str, str], *, prefix: str = "") -> dict[str, str]:
    """Returns the describing fields among names, picture, phone number and locale, as stored.

    Args:
        values: Field to value; an empty value is no value.
        prefix: Of the fields' paths in the request.

    Raises:
        InvalidArgument: FIELD_INVALID.
    """
    return {name: _PROFILE[name](f"{prefix}{name}", value) for name, value in values.items()}


def _profile_name(field: str, value: str) -> str:
    return slugs.text(field, value, maximum=PROFILE_NAME_MAX)


def _picture_url(field: str, value: str) -> str:
    value = slugs.text(field, value, maximum=URL_MAX)
    if not value:
        return ""
    try:
        parts = urlsplit(value)
        is_url = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not value.isascii() or " " in value:
        raise errors.field_invalid(field, "an https URL")
    return value


def _phone_number(field: str, value: str) -> str:
    value = value.strip()
    if value and not _PHONE_NUMBER.fullmatch(value):
        raise errors.field_invalid(field, "a telephone number in E.164 form")
    return value


def _locale(field: str, value: str) -> str:
    value = slugs.text(field, value, maximum=LOCALE_MAX)
    if value and not _LOCALE.fullmatch(value):
        raise errors.field_invalid(field, "a BCP 47 language tag")
    return value


_PROFILE = {
    "first_name": _profile_name,
    "last_name": _profile_name,
    "name": _profile_name,
    "profile_picture_url": _picture_url,
    "phone_number": _phone_number,
    "locale": _locale,
}


def create(
    tx: Transaction,
    *,
    email: str,
    email_verified: bool = False,
    first_name: str = "",
    last_name: str = "",
    name: str = "",
    profile_picture_url: str = "",
    phone_number: str = "",
    locale: str = "",
    external_id: str = "",
    metadata: Mapping[str, str] | None = None,
) -> User:
    """Creates a user, who belongs to no organization yet.

    Args:
        email_verified: The caller vouches for the address (US3).

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        AlreadyExists: EMAIL_TAKEN, EXTERNAL_ID_TAKEN.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, METADATA_INVALID.
    """
    tx.actor.require_unrestricted()
    stored_email, canonical = _email("email", email)
    described = profile(
        {
            "first_name": first_name,
            "last_name": last_name,
            "name": name,
            "profile_picture_url": profile_picture_url,
            "phone_number": phone_number,
            "locale": locale,
        }
    )
    external_id = slugs.external_id("external_id", external_id) if external_id else ""
    stored_metadata = slugs.metadata({}, metadata or {})
    realms.lock(tx, environment=True)
    _refuse_taken_email(tx, canonical)
    _refuse_taken_external_id(tx, external_id)
    row = tx.add(
        User(
            id=ids.new(ids.USER),
            email=stored_email,
            canonical_email=canonical,
            email_verified=email_verified,
            email_verification_source=CALLER if email_verified else NONE,
            **described,
            external_id=external_id or None,
            metadata_json=stored_metadata,
            **events.stamp(tx, ENVIRONMENT),
        )
    )
    _record(tx, "user.created", row)
    return row


def get(
    snapshot: Snapshot, *, user_id: str = "", external_id: str = "", email: str = ""
) -> Row[Any]:
    """Returns one user, by id, by the caller's key or by address.

    Raises:
        NotFound: USER_NOT_FOUND.
        InvalidArgument: FIELD_INVALID for what is no address.
    """
    if user_id:
        named, missing = User.id == user_id, not_found("user_id", user_id)
    elif external_id:
        named, missing = User.external_id == external_id, not_found("external_id", external_id)
    else:
        _, canonical = _email("email", email)
        named, missing = User.canonical_email == canonical, not_found("email", email)
    row = snapshot.connection.execute(
        select(*User.__table__.columns).where(named, *_visible(snapshot))
    ).one_or_none()
    if row is None:
        raise missing
    return row


def page(
    snapshot: Snapshot,
    *,
    email: str = "",
    organization_id: str = "",
    query: str = "",
    page: Page,
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of the visible users, newest first.

    Args:
        email: Only the user with this address, in any spelling; empty = all.
        organization_id: Only users with a membership there, of any status; empty = all.
        query: Part of the address or of a name, whatever the case; empty = all.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
        InvalidArgument: FIELD_INVALID.
    """
    canonical = _email("email", email)[1] if email else ""
    query = slugs.query("query", query)
    if organization_id:
        organizations.require(snapshot, organization_id)
    within = [organization_id] if organization_id else sorted(snapshot.actor.organization_ids)
    if within and not canonical:
        before = None if page.after is None else str(page.after[0])
        rows = members.users_page(
            snapshot,
            organization_ids=within,
            query=query,
            before=before,
            limit=page.size + 1,
        )
        return paging.cut(rows, page)
    statement = select(*User.__table__.columns)
    if canonical:
        statement = statement.where(User.canonical_email == canonical)
    if within:
        statement = statement.where(_in_any(snapshot, within))
    if query:
        statement = statement.where(
            or_(*(column.icontains(query, autoescape=True) for column in _SEARCHED))
        )
    return paging.newest_first(snapshot, statement, User.id, page)


_SEARCHED = (User.email, User.first_name, User.last_name, User.name)


def for_update(tx: Transaction, user_id: str) -> User:
    """Locks the environment and returns the row of a user.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: USER_NOT_FOUND.
    """
    tx.actor.require_unrestricted()
    realms.lock(tx, environment=True)
    row = tx.session.get(User, user_id)
    if row is None:
        raise not_found("user_id", user_id)
    return row


def update(tx: Transaction, user_id: str, changes: Mapping[str, Any], *, etag: str = "") -> User:
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: Field to new value; ``metadata`` follows C15. A changed address becomes
            unverified unless ``email_verified`` is among them (US5).

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: USER_NOT_FOUND.
        AlreadyExists: EMAIL_TAKEN, EXTERNAL_ID_TAKEN.
        InvalidArgument: FIELD_INVALID, METADATA_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    described = profile(
        {name: changes[name] for name in _PROFILE if name in changes}, prefix="user."
    )
    stored_email = canonical = ""
    if "email" in changes:
        given = slugs.not_cleared("user.email", changes["email"])
        stored_email, canonical = _email("user.email", given)
    external_id = changes.get("external_id", "")
    if external_id:
        slugs.external_id("user.external_id", external_id)
    row = for_update(tx, user_id)
    events.check_etag(row, etag)
    before = view(row)
    verified = changes.get("email_verified", row.email_verified)
    is_new_address = bool(canonical) and canonical != row.canonical_email
    if is_new_address:
        _refuse_taken_email(tx, canonical)
        verified = changes.get("email_verified", False)
    if is_new_address or verified != row.email_verified:
        # An address that was verified otherwise keeps its source when a caller repeats it.
        row.email_verified = verified
        row.email_verification_source = CALLER if verified else NONE
    if canonical:
        row.email, row.canonical_email = stored_email, canonical
    for name, value in described.items():
        setattr(row, name, value)
    if external_id != before["external_id"] and "external_id" in changes:
        _refuse_taken_external_id(tx, external_id)
        row.external_id = external_id or None
    if "metadata" in changes:
        row.metadata_json = slugs.metadata(row.metadata_json, changes["metadata"])
    if view(row) == before:
        return row
    events.touch(tx, ENVIRONMENT, row)
    _record(tx, "user.updated", row, before=before)
    return row


def delete(tx: Transaction, row: User) -> None:
    """Deletes a user who has no memberships; ``lifecycles.users.delete`` does the rest.

    Args:
        row: From ``for_update``.
    """
    _record(tx, "user.deleted", row)
    tx.session.delete(row)


# Functions above have an argument of that name.
_email = email


def _visible(snapshot: Snapshot) -> list[ColumnElement[bool]]:
    """Returns the condition under which the caller sees a user: none for most callers (C16)."""
    if not snapshot.actor.organization_ids:
        return []
    return [_in_any(snapshot, sorted(snapshot.actor.organization_ids))]


def _in_any(snapshot: Snapshot, organization_ids: Sequence[str]) -> ColumnElement[bool]:
    return (
        select(Membership.id)
        .where(
            Membership.user_id == User.id,
            snapshot.dialect.among(Membership.organization_id, organization_ids),
        )
        .exists()
    )


def _refuse_taken_email(tx: Transaction, canonical: str) -> None:
    taken = tx.connection.execute(
        select(User.id).where(User.canonical_email == canonical)
    ).one_or_none()
    if taken is not None:
        raise errors.AlreadyExists(
            "EMAIL_TAKEN", "the address is another user's", metadata={"field": "email"}
        )


def _refuse_taken_external_id(tx: Transaction, external_id: str) -> None:
    if not external_id:
        return
    taken = tx.connection.execute(
        select(User.id).where(User.external_id == external_id)
    ).one_or_none()
    if taken is not None:
        raise errors.AlreadyExists(
            "EXTERNAL_ID_TAKEN", "the external id is in use", metadata={"field": "external_id"}
        )


def _record(tx: Transaction, kind: str, row: User, *, before: dict[str, Any] | None = None) -> None:
    after = view(row)
    # No fact reads users: subjects are memberships, and theirs go with their own tags.
    events.record(
        tx,
        kind,
        realm=ENVIRONMENT,
        target_type="user",
        target_id=row.id,
        data=after,
        previous=events.changes(before, after) if before else None,
        tags=(),
    )

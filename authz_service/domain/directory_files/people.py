"""Users of a directory file against the stored ones."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from authz_service.base import errors, ids, slugs
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import users
from authz_service.domain.directory_files.changes import (
    CREATED,
    UNCHANGED,
    UPDATED,
    Changes,
    touched,
)
from authz_service.domain.directory_files.findings import Findings
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import User

_TEXTS = ("first_name", "last_name", "name", "profile_picture_url", "phone_number", "locale")


class People:
    """The users of a file.

    Attributes:
        ids: The name a user has in the file (external id, or id) to its id.
    """

    def __init__(self, snapshot: Snapshot, changes: Changes, findings: Findings) -> None:
        self._snapshot = snapshot
        self._changes = changes
        self._findings = findings
        self.ids: dict[str, str] = {}

    def judge(self, entries: list[dict[str, Any]], stamp: Mapping[str, int]) -> None:
        """Compares the file's users with the stored ones."""
        judged = [
            (f"users[{number}]", entry, values)
            for number, entry in enumerate(entries)
            if (values := self._values(f"users[{number}]", entry)) is not None
        ]
        stored = self._stored(judged)
        emails: dict[str, str] = {row.canonical_email: row.id for row in stored.values()}
        by_name = {row.external_id: row for row in stored.values() if row.external_id}
        by_name.update(stored)
        seen_names: set[str] = set()
        seen_emails: set[str] = set()
        for path, entry, values in judged:
            name = entry["external_id"]
            canonical = values["canonical_email"]
            if name in seen_names:
                self._findings.add(
                    f"{path}.external_id", "EXTERNAL_ID_TAKEN", f"{name} stands in the file twice"
                )
                continue
            seen_names.add(name)
            if canonical in seen_emails:
                self._findings.add(
                    f"{path}.email", "EMAIL_TAKEN", "the address stands in the file twice"
                )
                continue
            seen_emails.add(canonical)
            row = by_name.get(name)
            holder = emails.get(canonical)
            if row is None and holder is not None and stored[holder].external_id is None:
                # The address is somebody's who has no external id yet: that is this user.
                row = stored[holder]
            if holder is not None and (row is None or holder != row.id):
                self._findings.add(f"{path}.email", "EMAIL_TAKEN", "the address is another user's")
                continue
            self._judge(path, name, entry, values, row, stamp)

    def find(self, name: str) -> str | None:
        """Returns the id of a user by the name it has in the file."""
        return self.ids.get(name)

    def load(self, names: set[str]) -> None:
        """Looks up users that memberships name and the file's list of users does not."""
        missing = names - self.ids.keys()
        if not missing:
            return
        for row in self._rows(list(missing), []):
            for name in (row.id, row.external_id):
                if name in missing:
                    self.ids[name] = row.id

    def _values(self, path: str, entry: dict[str, Any]) -> dict[str, Any] | None:
        try:
            external_id = slugs.external_id("external_id", entry["external_id"])
            email, canonical = users.email("email", entry["email"])
            values: dict[str, Any] = {
                "external_id": external_id,
                "email": email,
                "canonical_email": canonical,
            }
            values.update(users.profile({name: entry[name] for name in _TEXTS if name in entry}))
            if "email_verified" in entry:
                values["email_verified"] = entry["email_verified"]
            if "metadata" in entry:
                values["metadata_json"] = slugs.metadata({}, entry["metadata"])
        except errors.Refusal as refusal:
            field = refusal.fields[0][0] if refusal.fields else ""
            self._findings.refused(f"{path}.{field}" if field else path, refusal)
            return None
        return values

    def _stored(self, judged: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
        names = [entry["external_id"] for _, entry, _ in judged]
        emails = [values["canonical_email"] for _, _, values in judged]
        return {row.id: row for row in self._rows(names, emails)}

    def _rows(self, names: list[str], emails: list[str]) -> list[Any]:
        table = User.__table__.c
        found: dict[str, Any] = {}
        for column, values in (
            (table.external_id, names),
            (table.id, [name for name in names if ids.is_id(name, ids.USER)]),
            (table.canonical_email, emails),
        ):
            if not values:
                continue
            statement = select(*table).where(self._snapshot.dialect.among(column, values))
            for row in self._snapshot.connection.execute(statement):
                found[row.id] = row
        return list(found.values())

    def _judge(
        self,
        path: str,
        name: str,
        entry: dict[str, Any],
        values: dict[str, Any],
        row: Any | None,
        stamp: Mapping[str, int],
    ) -> None:
        if row is None:
            user_id = ids.new(ids.USER)
            self.ids[name] = user_id
            self._changes.insert(
                User,
                **{
                    **dict.fromkeys(_TEXTS, ""),
                    "metadata_json": {},
                    "email_verified": False,
                    **values,
                },
                id=user_id,
                email_verification_source="CALLER" if values.get("email_verified") else "NONE",
                **stamp,
            )
            self._changes.count("user", CREATED, ENVIRONMENT)
            return
        self.ids[name] = row.id
        if name == row.id:
            # The file writes the id where there is no external id: the user keeps having none.
            values = {field: value for field, value in values.items() if field != "external_id"}
        if "email_verified" not in values and values["canonical_email"] != row.canonical_email:
            values["email_verified"] = False
        if "email_verified" in values and values["email_verified"] != row.email_verified:
            values["email_verification_source"] = "CALLER" if values["email_verified"] else "NONE"
        if all(getattr(row, field) == value for field, value in values.items()):
            self._changes.count("user", UNCHANGED, ENVIRONMENT)
            return
        self._changes.update(User, {"id": row.id}, **values, **touched(stamp))
        self._changes.count("user", UPDATED, ENVIRONMENT)

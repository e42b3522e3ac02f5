"""What a caller is told of a write that committed."""

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import Position
from authz_service.base.errors import Aborted, Unavailable
from authz_service.storage.database import Database
from authz_service.storage.tables import User
from authz_service.telemetry.metrics import Metrics

ROW = {"canonical_email": "a@example.com", "email": "a@example.com", "email_verified": False}


class Unheard:
    """Marks that cannot be lifted, because leaving the cache loses against others."""

    def bump(self, *, committed: bool) -> Mapping[str, Position]:
        raise Aborted("CONFLICT", "a concurrent change won; repeat the call", retry_seconds=0.1)


class Marking:
    """Marks every write."""

    def mark(self, connection: Any, tags: Any) -> Unheard:
        return Unheard()


def test_a_committed_write_is_never_said_to_have_lost(database_url: str) -> None:
    metrics = Metrics()
    database = Database(database_url, marking=Marking(), metrics=metrics)
    runs = []

    def work(tx: Any) -> None:
        runs.append(tx)
        empty = dict.fromkeys(
            (
                "email_verification_source", "first_name", "last_name", "name",
                "profile_picture_url", "phone_number", "locale",
            ),
            "",
        )  # fmt: skip
        stamps = {"created_at": 1, "updated_at": 1, "revision": 1}
        tx.add(User(id="user_1", metadata_json={}, **ROW, **empty, **stamps))

    try:
        with pytest.raises(Unavailable) as refused:
            database.write(work, actor=SYSTEM)
        assert refused.value.reason == "DATABASE_UNAVAILABLE"
        assert len(runs) == 1
        assert metrics.write_attempts.value("unknown") == 1
        with database.snapshot(SYSTEM) as snapshot:
            assert snapshot.connection.execute(select(User.id)).scalars().all() == ["user_1"]
    finally:
        database.close()

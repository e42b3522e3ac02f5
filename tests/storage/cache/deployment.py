"""A worker with its cache in Redis, as an operator has it: its answers, metrics and log."""

import contextlib
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from authz_service import server
from authz_service.config import Config, dev_environment
from authz_service.server import Worker
from authz_service.telemetry.logs import Line
from tests.callers import Caller, Refused, through_hall
from tests.directories import Directory
from tests.storage.cache.lives import eventually

READ = "doc:read"


class Log:
    """Takes the lines of a worker in place of standard error."""

    def __init__(self, **_: Any) -> None:
        self._lines: list[str] = []

    def write(self, line: Line, count: int = 1) -> None:
        """Keeps a line."""
        self._lines.append(line if isinstance(line, str) else line())

    def close(self) -> None:
        """Nothing waits."""

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self._lines)

    def told(self, event: str, **fields: Any) -> bool:
        """True if a line says that this happened."""
        for line in list(self._lines):
            said = json.loads(line)
            if said.get("event") == event and fields.items() <= said.items():
                return True
        return False


class Deployment:
    """One worker, and a document that ann may or may not read.

    Args:
        like: Another one on the same database.

    Attributes:
        log: The worker's.
    """

    def __init__(
        self, worker: Worker, config: Config, log: Log, like: "Deployment | None" = None
    ) -> None:
        self.worker, self.log = worker, log
        self.metrics = worker.metrics
        first = config.security.first_credential
        assert first is not None
        self.api = Caller(through_hall(worker.hall), first.reveal())
        if like is not None:
            self.ann, self.paper = like.ann, like.paper
            return
        directory = Directory(self.api, worker, config)
        directory.types(doc=["organization"])
        self.api.PermissionService.CreatePermission(
            slug=READ, name="Read", resource_type_slug="doc"
        )
        role = directory.role("reader", "doc")
        self.api.RoleService.SetRolePermissions(role_id=role.id, permission_slugs=[READ])
        acme = directory.organization()
        self.ann = directory.membership(acme).id
        self.paper = directory.resource(acme, "doc", "paper").id

    @property
    def question(self) -> dict[str, Any]:
        """Whether ann may read the document."""
        return {
            "subject": {"organization_membership_id": self.ann},
            "permission_slug": READ,
            "resource": {"resource_id": self.paper},
        }

    @property
    def is_allowed(self) -> bool:
        """The answer."""
        return bool(self.api.AuthorizationService.Check(**self.question).allowed)

    def is_right(self) -> bool:
        """True if what is granted is allowed at once, and what is taken away denied at once."""
        answers = []
        for _ in range(2):
            made = self._write(
                "CreateRoleAssignment",
                organization_membership_id=self.ann,
                role_slug="reader",
                resource={"resource_id": self.paper},
            )
            answers += [self.is_allowed, self.is_allowed]
            self._write("DeleteRoleAssignment", role_assignment_id=made.role_assignment.id)
            answers += [not self.is_allowed, not self.is_allowed]
        return all(answers)

    def _write(self, name: str, **fields: Any) -> Any:
        """Makes a write as a caller should: again, with its key, if its outcome is unknown."""
        api = self.api.with_metadata(idempotency_key=secrets.token_hex(8))

        def attempt() -> Any:
            try:
                return [getattr(api.RoleAssignmentService, name)(**fields)]
            except Refused as refused:
                if refused.code != "UNAVAILABLE":
                    raise
                return None

        (response,) = eventually(attempt)
        return response

    def caches(self) -> None:
        """Waits until the cache is on, and sees that answers come from it."""
        eventually(lambda: self.worker.is_caching)
        assert self.metrics.cache_mode.value() == 1
        before = self.metrics.cache_answers.value("view")
        eventually(lambda: self.is_allowed or self.metrics.cache_answers.value("view") > before)

    def is_told(self, event: str, **fields: Any) -> None:
        """Waits for a line of the log."""
        eventually(lambda: self.log.told(event, **fields))


@contextlib.contextmanager
def deployed(
    database_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    like: Deployment | None = None,
    **settings: str,
) -> Iterator[Deployment]:
    """Starts a worker on a database and a Redis; its lease is short."""
    log = Log()
    monkeypatch.setattr(server, "Lines", lambda **_: log)
    environment, _ = dev_environment(
        {
            "AUTHZ_DATABASE_URL": database_url,
            "AUTHZ_REDIS_URL": redis_url,
            "AUTHZ_LISTEN": "127.0.0.1:0",
            "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            "AUTHZ_RATE_PER_SECOND": "0",
            "AUTHZ_CACHE_LEASE_SECONDS": "0.5",
            **settings,
        }
    )
    config = Config.from_environment(environment)
    worker = Worker(config)
    try:
        yield Deployment(worker, config, log, like)
        assert worker.metrics.cache_inconsistency.value() == 0
    finally:
        worker.stop()

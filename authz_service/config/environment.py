"""From environment variables to a checked ``Config``; nothing else reads the environment."""

import base64
import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from authz_service.base import ids, secrets
from authz_service.config import conflicts
from authz_service.config.conflicts import Problem
from authz_service.config.groups import Cache, Client, Database, Limits, Security, Server
from authz_service.config.kinds import Setting
from authz_service.config.values import ROOT_KEY_BYTES_MIN, Bad, shown_text

PREFIX = "AUTHZ_"
GroupT = TypeVar("GroupT")
# A file with a secret is a line or two; anything larger is another file.
SECRET_FILE_BYTES_MAX = 64 * 1024
GROUPS: dict[str, type] = {
    "server": Server,
    "security": Security,
    "database": Database,
    "cache": Cache,
    "limits": Limits,
    "client": Client,
}
# Kubernetes puts these beside ours when a Service in the same namespace is called "authz...".
_OF_KUBERNETES = re.compile(
    r"AUTHZ_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)"
)


class ConfigError(Exception):
    """Settings that cannot be used: all of them at once.

    Attributes:
        problems: At least one.
    """

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(f"{name}: {wrong}; {right}" for name, wrong, right in self.problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings; ``from_environment`` makes one that was checked."""

    server: Server
    security: Security
    database: Database
    cache: Cache
    limits: Limits
    client: Client

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Config":
        """Reads and checks all settings.

        Args:
            environment: Variables by name; None = those of this process. An empty value counts
                as not set.

        Raises:
            ConfigError: With every bad value, not only the first.
        """
        given = _given(environment)
        problems = list(_unknown(given))
        groups: dict[str, Any] = {
            group: _parsed(kind, given, problems) for group, kind in GROUPS.items()
        }
        config = cls(**groups)
        if config.database.pool is None:
            # Two more than threads: the poller and health must not wait behind the calls.
            database = dataclasses.replace(config.database, pool=config.server.threads + 2)
            config = dataclasses.replace(config, database=database)
        bad = {problem.setting for problem in problems}
        problems += [
            problem
            for problem, follows_from in conflicts.find(config)
            if bad.isdisjoint({problem.setting, *follows_from})
        ]
        if problems:
            raise ConfigError(tuple(problems))
        return config

    def redacted(self) -> dict[str, str]:
        """Returns what may be printed of each setting, by variable, in order; empty = not set."""
        return {
            setting.variable: setting.show(value) if value is not None else ""
            for group, kind in GROUPS.items()
            for field, setting in _settings_of(kind)
            for value in (getattr(getattr(self, group), field),)
        }


def client_settings(environment: Mapping[str, str] | None = None) -> Client:
    """Reads what a command needs that calls a running service, and nothing else.

    Raises:
        ConfigError: With every bad value among these settings.
    """
    given = _given(environment)
    problems: list[Problem] = []
    client = _parsed(Client, given, problems)
    if client.credential is None:
        first = _parsed(Security, given, []).first_credential
        client = dataclasses.replace(client, credential=first)
    if problems:
        raise ConfigError(tuple(problems))
    return client


def _given(environment: Mapping[str, str] | None) -> dict[str, str]:
    found = os.environ if environment is None else environment
    return {name: text for name, text in found.items() if text}


def _parsed(kind: type[GroupT], given: Mapping[str, str], problems: list[Problem]) -> GroupT:
    found: dict[str, Any] = {}
    for field, setting in _settings_of(kind):
        try:
            text = _text_of(setting, given)
            if text is not None:
                found[field] = setting.parse(text)
        except Bad as error:
            problems.append(Problem(setting.variable, str(error), f"must be {setting.range}"))
    return kind(**found)


def settings() -> Iterator[tuple[str, str, Setting]]:
    """Yields (group, field, setting) for each setting, in order."""
    for group, kind in GROUPS.items():
        for field, setting in _settings_of(kind):
            yield group, field, setting


def dev_environment(
    environment: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Makes up what ``serve --dev`` may make up, for this process and its workers alike.

    Returns:
        The environment, with a root key and a first credential where none was set, and a line to
        print for each of them: whoever starts it must see that this is no production set-up.
    """
    completed = dict(os.environ if environment is None else environment)
    lines = []
    if not _is_given(completed, "AUTHZ_ROOT_KEYS"):
        key = base64.b64encode(os.urandom(ROOT_KEY_BYTES_MIN)).decode()
        completed["AUTHZ_ROOT_KEYS"] = key
        lines.append(
            "AUTHZ_ROOT_KEYS: made up; what is signed or hashed with it ends with this run"
        )
    if not _is_given(completed, "AUTHZ_FIRST_CREDENTIAL"):
        id = ids.new(ids.CREDENTIAL)
        credential = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, id).reveal()
        completed["AUTHZ_FIRST_CREDENTIAL"] = credential
        lines.append(f"AUTHZ_FIRST_CREDENTIAL: made up, with scope admin: {credential}")
    return completed, lines


def foreign_environment(
    environment: Mapping[str, str] | None = None, *, kept: Collection[str] = ()
) -> dict[str, str]:
    """Returns the variables that are no settings of ours, for a process with its own settings.

    Args:
        kept: Settings of ours that it takes over as they are.
    """
    found = os.environ if environment is None else environment
    return {
        name: text for name, text in found.items() if name in kept or not name.startswith(PREFIX)
    }


def _is_given(environment: Mapping[str, str], variable: str) -> bool:
    return bool(environment.get(variable) or environment.get(f"{variable}_FILE"))


def _settings_of(kind: type) -> Iterator[tuple[str, Setting]]:
    for field in dataclasses.fields(kind):
        yield field.name, field.metadata["setting"]


def _text_of(setting: Setting, given: Mapping[str, str]) -> str | None:
    """Returns what was given for a setting, by its variable or its file; None for nothing."""
    text = given.get(setting.variable)
    path = given.get(f"{setting.variable}_FILE")
    if path is None:
        return text
    if text is not None:
        raise Bad(f"is set together with {setting.variable}_FILE, of which only one may be")
    try:
        with open(path, "rb") as file:
            raw = file.read(SECRET_FILE_BYTES_MAX + 1)
        # The end of line that an editor or `echo` adds is not part of the secret.
        text = raw.decode().strip()
    except OSError as error:
        raise Bad(f"its file {shown_text(path)} cannot be read: {error.strerror}") from None
    except ValueError:
        raise Bad(f"its file {shown_text(path)} cannot be read: no path, or no text") from None
    if len(raw) > SECRET_FILE_BYTES_MAX:
        raise Bad(f"its file {shown_text(path)} is larger than {SECRET_FILE_BYTES_MAX} bytes")
    if not text:
        raise Bad(f"its file {shown_text(path)} is empty")
    return text


def _unknown(given: Mapping[str, str]) -> Iterator[Problem]:
    """Finds variables that look like ours and are not: a misspelt setting must not be ignored."""
    known = set()
    for _, _, setting in settings():
        known.add(setting.variable)
        if setting.is_secret:
            known.add(f"{setting.variable}_FILE")
    for name in sorted(given):
        if name.startswith(PREFIX) and name not in known and not _OF_KUBERNETES.fullmatch(name):
            similar = get_close_matches(name, sorted(known), n=1, cutoff=0.8)
            hint = f"did you mean {similar[0]}?" if similar else "see docs/configuration.md"
            yield Problem(name, "is no setting of this version", hint)

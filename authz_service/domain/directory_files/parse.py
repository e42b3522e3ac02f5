"""From the bytes of a directory file to plain dicts and lists of the documented shape.

After this every required field is there, every value has its type and nothing unknown is left.
"""

import json
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import yaml

from authz_service.base import slugs
from authz_service.domain.directory_files.findings import Findings

FORMAT = "authz-directory/1"
JSON, YAML = "JSON", "YAML"
KEY_SHOWN_MAX = 64

# Stands for a key that an object has twice; no key of a file can be this object.
_TWICE = "\x00twice"

Check = Callable[[Any, str, Findings], None]


def parse(data: bytes, kind: str, findings: Findings) -> dict[str, Any]:
    """Returns the file's content; empty if it has no readable content at all.

    Args:
        kind: JSON or YAML.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        findings.add(f"byte {error.start}", "FIELD_INVALID", "the file is not UTF-8")
        return {}
    try:
        content = _json(text) if kind == JSON else _yaml(text)
    except _Unreadable as error:
        findings.add(error.place, "FIELD_INVALID", error.text)
        return {}
    _FILE(content, "", findings)
    return content if isinstance(content, dict) else {}


class _Unreadable(Exception):
    def __init__(self, place: str, text: str) -> None:
        super().__init__(place, text)
        self.place, self.text = place, text


def _json(text: str) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            names = [key for key, _ in found]
            made[_TWICE] = next(key for key in names if names.count(key) > 1)
        return made

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"line {error.lineno}", f"{error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise _Unreadable("line 1", str(error)) from None


class _Loader(yaml.SafeLoader):
    """YAML without aliases, duplicate keys, dates and tags: the same values that JSON has."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            # An alias of an alias of an alias: a few lines can stand for gigabytes.
            raise _Unreadable(f"line {event.start_mark.line + 1}", "aliases are not allowed")
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.tag is not None:
            raise _Unreadable(f"line {event.start_mark.line + 1}", "tags are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Unreadable(f"line {key.start_mark.line + 1}", "a key must be text")
            if key.value in seen:
                raise _Unreadable(
                    f"line {key.start_mark.line + 1}",
                    f"the key {_shown(key.value)} stands here twice",
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# What plain text may mean in YAML and not in JSON: an instant, another mapping's keys, a default.
_NOT_IN_JSON = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, shape) for tag, shape in found if tag not in _NOT_IN_JSON]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}" if mark else "line 1"
        raise _Unreadable(place, error.problem or "no YAML") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _Unreadable("line 1", str(error)) from None


# --- shapes ----------------------------------------------------------------------------------


def _text(value: Any, path: str, findings: Findings) -> None:
    if not isinstance(value, str):
        findings.add(path, "FIELD_INVALID", "must be text")
    elif slugs.CONTROL.search(value.strip()):
        # As the validation of requests does, for all text and before anything is looked up.
        # White space around a text is cut off later.
        findings.add(path, "FIELD_INVALID", slugs.CONTROL_RULE)


def _shown(key: Any) -> str:
    """Returns a key as a path shows it: whatever the file says, it is one short line."""
    text = str(key)[:KEY_SHOWN_MAX]
    return text if text.isprintable() else ascii(text)


def _flag(value: Any, path: str, findings: Findings) -> None:
    if not isinstance(value, bool):
        findings.add(path, "FIELD_INVALID", "must be true or false")


def _status(value: Any, path: str, findings: Findings) -> None:
    if value not in ("active", "inactive"):
        findings.add(path, "FIELD_INVALID", "must be active or inactive")


def _format(value: Any, path: str, findings: Findings) -> None:
    if value != FORMAT:
        findings.add(path, "FIELD_INVALID", f"must be {FORMAT}")


def _list(check: Check) -> Check:
    def judge(value: Any, path: str, findings: Findings) -> None:
        if not isinstance(value, list):
            findings.add(path, "FIELD_INVALID", "must be a list")
            return
        for number, item in enumerate(value):
            check(item, f"{path}[{number}]", findings)

    return judge


def _texts_by_text(value: Any, path: str, findings: Findings) -> None:
    if not isinstance(value, dict):
        findings.add(path, "FIELD_INVALID", "must be an object")
        return
    if _TWICE in value:
        findings.add(
            path, "FIELD_INVALID", f"the key {_shown(value.pop(_TWICE))} stands here twice"
        )
    for key, item in value.items():
        if not isinstance(key, str):
            findings.add(path, "FIELD_INVALID", "keys must be text")
        _text(item, f"{path}.{_shown(key)}", findings)


def _object(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    known = {**required, **optional}

    def judge(value: Any, path: str, findings: Findings) -> None:
        if not isinstance(value, dict):
            findings.add(path or "file", "FIELD_INVALID", "must be an object")
            return
        if _TWICE in value:
            twice = value.pop(_TWICE)
            findings.add(
                path or "file", "FIELD_INVALID", f"the key {_shown(twice)} stands here twice"
            )
        start = f"{path}." if path else ""
        for key, item in value.items():
            check = known.get(key) if isinstance(key, str) else None
            if check is None:
                shown = f"{start}{_shown(key)}"
                findings.add(shown, "FIELD_INVALID", "is no field of this object")
            else:
                check(item, f"{start}{key}", findings)
        for key in required:
            if key not in value:
                findings.add(f"{start}{key}", "FIELD_REQUIRED", "is required")

    return judge


_RESOURCE_KEY = _object({"type": _text, "external_id": _text}, {})
_ROLE = _object(
    {"slug": _text, "name": _text},
    {"description": _text, "resource_type_slug": _text, "permissions": _list(_text)},
)
_ORGANIZATION = _object(
    {"external_id": _text, "name": _text},
    {
        "metadata": _texts_by_text,
        "roles": _list(_ROLE),
        "memberships": _list(_object({"user": _text}, {"status": _status, "roles": _list(_text)})),
        "groups": _list(
            _object(
                {"name": _text},
                {"description": _text, "members": _list(_text), "groups": _list(_text)},
            )
        ),
        "resources": _list(
            _object(
                {"type": _text, "external_id": _text, "name": _text},
                {"description": _text, "parent": _RESOURCE_KEY},
            )
        ),
        "role_assignments": _list(
            _object(
                {"role": _text, "resource": _RESOURCE_KEY},
                {"group": _text, "user": _text, "expires_at": _text},
            )
        ),
    },
)
_ASSERTION = _object(
    {"organization": _text, "permission": _text},
    {
        "user": _text,
        "resource": _RESOURCE_KEY,
        "allowed": _flag,
        "members": _list(_text),
        "type": _text,
        "resources": _list(_text),
    },
)
_FILE = _object(
    {"format": _format},
    {
        "resource_types": _list(
            _object(
                {"slug": _text, "name": _text, "parent_type_slugs": _list(_text)},
                {"description": _text},
            )
        ),
        "permissions": _list(
            _object(
                {"slug": _text, "name": _text},
                {
                    "description": _text,
                    "resource_type_slug": _text,
                    "assignable_to_api_keys": _flag,
                },
            )
        ),
        "roles": _list(_ROLE),
        "users": _list(
            _object(
                {"external_id": _text, "email": _text},
                {
                    "email_verified": _flag,
                    "first_name": _text,
                    "last_name": _text,
                    "name": _text,
                    "profile_picture_url": _text,
                    "phone_number": _text,
                    "locale": _text,
                    "metadata": _texts_by_text,
                },
            )
        ),
        "organizations": _list(_ORGANIZATION),
        "assertions": _list(_ASSERTION),
    },
)

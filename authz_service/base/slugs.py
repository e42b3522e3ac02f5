"""Shapes of the values callers choose: names, slugs, external ids, metadata maps, addresses.

Each function returns the value to store, or raises the documented refusal with the field's path.
"""

import re
from collections.abc import Mapping

from authz_service.base import errors

SLUG_MAX = 48
DISPLAY_NAME_MAX = 256
SHORT_NAME_MAX = 48
DESCRIPTION_MAX = 150
EXTERNAL_ID_MAX = 128
METADATA_KEYS_MAX = 50
METADATA_KEY_MAX = 40
METADATA_VALUE_MAX = 600
QUERY_MIN, QUERY_MAX = 2, 100

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
_TYPE_SLUG = re.compile(r"[a-z][a-z0-9_-]{0,47}")
_PERMISSION_SLUG = re.compile(r"[a-z0-9][a-z0-9_:.*-]{0,47}")
_PRINTABLE_ASCII = re.compile(r"[\x20-\x7e]+")
# Control characters of product.md section 3: C0, DEL, C1, the separators that break a line, halves
# of a pair, which are no characters, and what is invisible but changes how the text around it
# reads: byte order mark and direction marks (quality.md T22). Joiners are not among them: names in
# several languages need them.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
CONTROL_RULE = "no control characters"


def text(field: str, value: str, *, minimum: int = 0, maximum: int) -> str:
    """Returns the value without surrounding white space, of ``minimum`` to ``maximum`` characters.

    Raises:
        InvalidArgument: FIELD_REQUIRED if it is empty and must not be, FIELD_INVALID for a bad
            length or a control character.
    """
    value = value.strip()
    if not value and minimum:
        raise errors.field_required(field)
    if len(value) > maximum:
        raise errors.field_invalid(field, f"at most {maximum} characters")
    if len(value) < minimum:
        raise errors.field_invalid(field, f"at least {minimum} characters")
    if CONTROL.search(value):
        raise errors.field_invalid(field, CONTROL_RULE)
    return value


def display_name(field: str, value: str) -> str:
    """Returns the name of an organization, group, resource or credential: 1 to 256 characters."""
    return text(field, value, minimum=1, maximum=DISPLAY_NAME_MAX)


def short_name(field: str, value: str) -> str:
    """Returns the name of a role, permission or resource type: 1 to 48 characters."""
    return text(field, value, minimum=1, maximum=SHORT_NAME_MAX)


def description(field: str, value: str) -> str:
    """Returns a description: at most 150 characters."""
    return text(field, value, maximum=DESCRIPTION_MAX)


def not_cleared(field: str, value: str) -> str:
    """Returns the new value of a masked field that may not be cleared (product.md C4).

    Raises:
        InvalidArgument: FIELD_INVALID if it is empty.
    """
    if not value.strip():
        raise errors.field_invalid(field, "may not be empty")
    return value


def query(field: str, value: str) -> str:
    """Returns a search text: empty (no filter), or 2 to 100 characters."""
    value = value.strip()
    if not value:
        return ""
    return text(field, value, minimum=QUERY_MIN, maximum=QUERY_MAX)


def _shaped(field: str, value: str, shape: re.Pattern[str]) -> str:
    if not value:
        raise errors.field_required(field)
    if not shape.fullmatch(value):
        raise errors.field_invalid(field, f"must match {shape.pattern}")
    return value


def role_slug(field: str, value: str) -> str:
    """Returns a role's slug: 1 to 48 of a-z, 0-9, ``_``, ``-``."""
    return _shaped(field, value, _SLUG)


def type_slug(field: str, value: str) -> str:
    """Returns a resource type's slug: as a role's, starting with a letter."""
    return _shaped(field, value, _TYPE_SLUG)


def permission_slug(field: str, value: str) -> str:
    """Returns a permission's slug: as a role's, also with ``:``, ``.`` and ``*``."""
    return _shaped(field, value, _PERMISSION_SLUG)


def external_id(field: str, value: str) -> str:
    """Returns the application's own id, compared byte for byte (product.md C14)."""
    if not value:
        raise errors.field_required(field)
    if (
        len(value) > EXTERNAL_ID_MAX
        or not _PRINTABLE_ASCII.fullmatch(value)
        or value.strip(" ") != value
    ):
        raise errors.field_invalid(
            field, f"1 to {EXTERNAL_ID_MAX} printable ASCII characters, no space at either end"
        )
    return value


def _metadata_invalid(key: str, rule: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        "METADATA_INVALID",
        f"metadata: {rule}",
        metadata={"key": key[:METADATA_KEY_MAX], "rule": rule},
    )


def metadata(current: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Returns the map that results from an update (product.md C15).

    Args:
        current: What is stored; empty at creation.
        given: Named keys overwrite, a key with an empty value is removed, an empty map removes all.

    Raises:
        InvalidArgument: METADATA_INVALID with the key and the rule.
    """
    if not given:
        return {}
    result = {**current}
    for key, value in given.items():
        if not 1 <= len(key) <= METADATA_KEY_MAX or not _PRINTABLE_ASCII.fullmatch(key):
            raise _metadata_invalid(
                key if key.isprintable() and key.isascii() else "",
                f"keys are 1 to {METADATA_KEY_MAX} printable ASCII characters",
            )
        if len(value) > METADATA_VALUE_MAX:
            raise _metadata_invalid(key, f"values have at most {METADATA_VALUE_MAX} characters")
        if CONTROL.search(value):
            raise _metadata_invalid(key, "values have no control characters")
        if value:
            result[key] = value
        else:
            result.pop(key, None)
    if len(result) > METADATA_KEYS_MAX:
        raise _metadata_invalid("", f"at most {METADATA_KEYS_MAX} keys")
    return result

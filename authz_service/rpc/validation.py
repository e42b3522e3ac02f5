"""What can be refused by looking at a request alone, read from the annotations of its messages.

Each message type is compiled once into a fast answer (is anything wrong?) and a slow one (what?).
Shapes of single values (slugs, lengths) are not here: `base/slugs.py` and `domain` know them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, cast

from google.api.field_behavior_pb2 import FieldBehavior, field_behavior
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from authz_service.base.errors import InvalidArgument, field_required
from authz_service.base.slugs import CONTROL, CONTROL_RULE

# Repeated messages that are not looked into: a bad entry is that entry's own error (product.md
# M20) and must not end the call, so their servicer checks each entry.
NOT_ENTERED = frozenset({"authz.v1.BatchCheckRequest.items"})

# Maps whose keys have their own rule and reason (product.md C15, METADATA_INVALID).
_METADATA_MAP = "metadata"

REQUIRED_RULE = "is required"
ENUM_RULE = "not one of the values of its enum"
FINITE_RULE = "must be a finite number"
TIMESTAMP_RULE = "a time from year 1 to year 9999, with 0 to 999,999,999 nanoseconds"
DURATION_RULE = "a span of at most 10,000 years, with nanoseconds of the same sign"

# A request can break rules a million times; nobody reads more of it than this.
PROBLEMS_MAX = 50

_Problem = tuple[str, str]
_Quick = Callable[[Any], bool]
_Report = Callable[[Any, str], Iterator[_Problem]]

_FLOATS = frozenset({FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT})
_TEXTLESS = frozenset({"google.protobuf.Any", "google.protobuf.FieldMask"})


class Validator:
    """Checks requests; keeps what it compiled per message type.

    Args:
        not_entered: Full names of repeated fields whose entries are left to the servicer.
    """

    def __init__(self, not_entered: frozenset[str] = NOT_ENTERED) -> None:
        self._not_entered = not_entered
        self._compiled: dict[str, _Checker] = {}

    def check(self, request: Message) -> None:
        """Refuses a request that breaks a rule of its annotations.

        Raises:
            InvalidArgument: FIELD_REQUIRED if a required field is missing, else FIELD_INVALID for
                control characters, values outside of their enum, numbers that are none, times out
                of range. All problems are in the fields, the first one in the metadata.
        """
        checker = self.checker(cast(Descriptor, request.DESCRIPTOR))
        if not checker.quick(request):
            raise _refusal(checker.report(request, ""))

    def checker(self, descriptor: Descriptor) -> "_Checker":
        """Returns the compiled rules of a message type; compiling twice at once does no harm."""
        checker = self._compiled.get(descriptor.full_name)
        if checker is None:
            # Stored before its fields are compiled: a message may contain itself.
            checker = _Checker()
            self._compiled[descriptor.full_name] = checker
            checker.compile(descriptor, self)
        return checker

    def enters(self, field: FieldDescriptor) -> bool:
        """True if the entries of a repeated message are looked into."""
        return field.full_name not in self._not_entered


def _refusal(problems: Iterator[_Problem]) -> InvalidArgument:
    found = []
    for problem in problems:
        found.append(problem)
        if len(found) == PROBLEMS_MAX:
            break
    missing = [problem for problem in found if problem[1] == REQUIRED_RULE]
    field, rule = (missing or found)[0]
    metadata = {"field": field} if missing else {"field": field, "rule": rule}
    return InvalidArgument(
        "FIELD_REQUIRED" if missing else "FIELD_INVALID",
        f"{field} {rule}" if missing else f"{field}: {rule}",
        metadata=metadata,
        fields=found,
    )


class _Checker:
    """The rules of one message type."""

    def __init__(self) -> None:
        self.quick: _Quick = lambda message: True
        self.report: _Report = lambda message, prefix: iter(())

    def compile(self, descriptor: Descriptor, validator: Validator) -> None:
        """Reads the annotations into ``quick`` and ``report``."""
        if descriptor.full_name in _WELL_KNOWN:
            is_right, rule = _WELL_KNOWN[descriptor.full_name]
            self.quick = is_right
            self.report = lambda message, prefix: (
                iter(()) if is_right(message) else iter([(prefix.rstrip("."), rule)])
            )
            return
        if descriptor.full_name in _TEXTLESS:
            return
        texts: list[str] = []
        required_texts: list[str] = []
        others: list[_Quick] = []
        reports: list[_Report] = []
        for field in descriptor.fields:
            behaviors = field.GetOptions().Extensions[field_behavior]
            if FieldBehavior.OUTPUT_ONLY in behaviors:
                # Callers send back what they read; it is ignored, so it is not judged either.
                continue
            required = FieldBehavior.REQUIRED in behaviors
            is_text = field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
            if is_text:
                (required_texts if required else texts).append(field.name)
                reports.append(_report_text(field, required))
                continue
            quick, report = _rules_of(field, required, validator)
            if report is not None:
                others.append(quick)
                reports.append(report)
        self.quick = _joined(texts, required_texts, others)
        if reports:

            def report_all(message: Any, prefix: str) -> Iterator[_Problem]:
                for report in reports:
                    yield from report(message, prefix)

            self.report = report_all


def _is_clean(text: str) -> bool:
    # isprintable() is many times faster than the expression and right for nearly every text; it
    # also says no to some text that is fine.
    return text.isprintable() or not CONTROL.search(text)


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[str, ...]]:
    """Returns a function that reads several fields at once, always as a tuple."""
    if len(names) == 1:
        single = attrgetter(names[0])
        return lambda message: (single(message),)
    return attrgetter(*names)


def _joined(texts: list[str], required_texts: list[str], others: list[_Quick]) -> _Quick:
    """Returns one function for all fields; the texts of a message are judged as one text."""
    required = _getter(required_texts) if required_texts else None
    optional = _getter(texts) if texts else None
    rest = tuple(others)

    def quick(message: Any) -> bool:
        if required is not None:
            values = required(message)
            if not all(values):
                return False
            if not _is_clean("".join(values)):
                return False
        if optional is not None and not _is_clean("".join(optional(message))):
            return False
        for check in rest:  # noqa: SIM110 - a loop is faster than all() over a generator here
            if not check(message):
                return False
        return True

    return quick


def _report_text(field: FieldDescriptor, required: bool) -> _Report:
    name = field.name

    def report(message: Any, prefix: str) -> Iterator[_Problem]:
        value = getattr(message, name)
        if required and not value:
            yield prefix + name, REQUIRED_RULE
        elif not _is_clean(value):
            yield prefix + name, CONTROL_RULE

    return report


def _rules_of(
    field: FieldDescriptor, required: bool, validator: Validator
) -> tuple[_Quick, _Report | None]:
    """Returns the rules of a field that is no single text; no report if there are none."""
    if field.is_repeated:
        if field.message_type and field.message_type.GetOptions().map_entry:
            return _rules_of_map(field, field.message_type, required, validator)
        return _rules_of_repeated(field, required, validator)
    name = field.name
    if field.message_type:
        checker = validator.checker(field.message_type)

        def quick(message: Any) -> bool:
            if not message.HasField(name):
                return not required
            return checker.quick(getattr(message, name))

        def report(message: Any, prefix: str) -> Iterator[_Problem]:
            if message.HasField(name):
                yield from checker.report(getattr(message, name), f"{prefix}{name}.")
            elif required:
                yield prefix + name, REQUIRED_RULE

        return quick, report
    is_right = _rule_of_value(field)
    if is_right is None and not required:
        return (lambda message: True), None
    judge, rule = is_right or ((lambda value: True), "")

    def is_missing(message: Any) -> bool:
        if not required:
            return False
        if field.has_presence:
            return not message.HasField(name)
        # Without presence false and zero cannot be told from absent; false is a value.
        return field.type != FieldDescriptor.TYPE_BOOL and not getattr(message, name)

    def quick_value(message: Any) -> bool:
        return not is_missing(message) and judge(getattr(message, name))

    def report_value(message: Any, prefix: str) -> Iterator[_Problem]:
        if is_missing(message):
            yield prefix + name, REQUIRED_RULE
        elif not judge(getattr(message, name)):
            yield prefix + name, rule

    return quick_value, report_value


def _rules_of_repeated(
    field: FieldDescriptor, required: bool, validator: Validator
) -> tuple[_Quick, _Report | None]:
    name = field.name
    if field.message_type:
        if not validator.enters(field):
            return _rules_of_length(name, required)
        checker = validator.checker(field.message_type)

        def quick_messages(message: Any) -> bool:
            values = getattr(message, name)
            if not values:
                return not required
            judge = checker.quick
            for value in values:  # noqa: SIM110 - as in _joined
                if not judge(value):
                    return False
            return True

        def report_messages(message: Any, prefix: str) -> Iterator[_Problem]:
            values = getattr(message, name)
            if required and not values:
                yield prefix + name, REQUIRED_RULE
            for i, value in enumerate(values):
                yield from checker.report(value, f"{prefix}{name}[{i}].")

        return quick_messages, report_messages
    if field.type == FieldDescriptor.TYPE_STRING:

        def quick_texts(message: Any) -> bool:
            values = getattr(message, name)
            if not values:
                return not required
            return _is_clean("".join(values))

        def report_texts(message: Any, prefix: str) -> Iterator[_Problem]:
            values = getattr(message, name)
            if required and not values:
                yield prefix + name, REQUIRED_RULE
            for i, value in enumerate(values):
                if not _is_clean(value):
                    yield f"{prefix}{name}[{i}]", CONTROL_RULE

        return quick_texts, report_texts
    rule_of_value = _rule_of_value(field, in_list=True)
    if rule_of_value is None:
        return _rules_of_length(name, required)
    is_right, rule = rule_of_value

    def quick(message: Any) -> bool:
        values = getattr(message, name)
        if required and not values:
            return False
        return all(map(is_right, values))

    def report(message: Any, prefix: str) -> Iterator[_Problem]:
        values = getattr(message, name)
        if required and not values:
            yield prefix + name, REQUIRED_RULE
        for i, value in enumerate(values):
            if not is_right(value):
                yield f"{prefix}{name}[{i}]", rule

    return quick, report


def _rules_of_length(name: str, required: bool) -> tuple[_Quick, _Report | None]:
    if not required:
        return (lambda message: True), None

    def report(message: Any, prefix: str) -> Iterator[_Problem]:
        if not getattr(message, name):
            yield prefix + name, REQUIRED_RULE

    return (lambda message: bool(getattr(message, name))), report


def _rules_of_map(
    field: FieldDescriptor, entry: Descriptor, required: bool, validator: Validator
) -> tuple[_Quick, _Report | None]:
    name = field.name
    fields = entry.fields_by_name
    judges_keys = fields["key"].type == FieldDescriptor.TYPE_STRING and name != _METADATA_MAP
    judges_texts = fields["value"].type == FieldDescriptor.TYPE_STRING
    message_type = fields["value"].message_type
    checker = validator.checker(message_type) if message_type else None

    def report(message: Any, prefix: str) -> Iterator[_Problem]:
        values = getattr(message, name)
        if required and not values:
            yield prefix + name, REQUIRED_RULE
        for key in values:
            # The key is the caller's text: the path names the map alone.
            if judges_keys and not _is_clean(key):
                yield prefix + name, CONTROL_RULE
            if judges_texts and not _is_clean(values[key]):
                yield prefix + name, CONTROL_RULE
            if checker is not None:
                yield from checker.report(values[key], f"{prefix}{name}[].")

    def quick(message: Any) -> bool:
        if not getattr(message, name):
            return not required
        return next(report(message, ""), None) is None

    return quick, report


def _rule_of_value(
    field: FieldDescriptor, *, in_list: bool = False
) -> tuple[Callable[[Any], bool], str] | None:
    if field.enum_type:
        # Enums of proto3 are open: any number arrives. Zero means "not given" for a single field
        # (REQUIRED refuses it elsewhere); in a list it says nothing and is refused.
        known = frozenset(value.number for value in field.enum_type.values)
        if in_list:
            known -= {0}
        return known.__contains__, ENUM_RULE
    if field.type in _FLOATS:
        return math.isfinite, FINITE_RULE
    return None


def _is_timestamp(value: Timestamp) -> bool:
    return -62_135_596_800 <= value.seconds <= 253_402_300_799 and 0 <= value.nanos <= 999_999_999


def _is_duration(value: Duration) -> bool:
    seconds, nanos = value.seconds, value.nanos
    return (
        -315_576_000_000 <= seconds <= 315_576_000_000
        and -999_999_999 <= nanos <= 999_999_999
        and not (seconds > 0 > nanos or seconds < 0 < nanos)
    )


_WELL_KNOWN: dict[str, tuple[_Quick, str]] = {
    "google.protobuf.Timestamp": (_is_timestamp, TIMESTAMP_RULE),
    "google.protobuf.Duration": (_is_duration, DURATION_RULE),
}


_FIXED = frozenset({FieldBehavior.OUTPUT_ONLY, FieldBehavior.IMMUTABLE, FieldBehavior.IDENTIFIER})
# Fields that name an object or its version, whatever their annotation says.
_NAMING = frozenset({"id", "etag"})


def update_paths(
    mask: FieldMask, descriptor: Descriptor, *, field: str = "update_mask"
) -> tuple[str, ...]:
    """Returns the paths of an update mask, each once, in the order given.

    Args:
        descriptor: Of the object that is updated (``request.role.DESCRIPTOR``).
        field: Path of the mask in the request.

    Raises:
        InvalidArgument: FIELD_REQUIRED for an empty mask; UPDATE_MASK_INVALID for a path that is
            unknown, or that no update may change (output, immutable, id, etag).
    """
    if not mask.paths:
        raise field_required(field)
    for path in mask.paths:
        if not _may_change(path, descriptor):
            shown = path[:128] if path.isprintable() else ""
            raise InvalidArgument(
                "UPDATE_MASK_INVALID",
                f"{field}: {shown or 'a path'} is unknown or cannot be changed",
                metadata={"path": shown},
                fields=[(field, "unknown or not changeable")],
            )
    return tuple(dict.fromkeys(mask.paths))


def _may_change(path: str, descriptor: Descriptor) -> bool:
    current: Descriptor | None = descriptor
    for name in path.split("."):
        if current is None:
            return False
        found = current.fields_by_name.get(name)
        if found is None or name in _NAMING:
            return False
        if not _FIXED.isdisjoint(found.GetOptions().Extensions[field_behavior]):
            return False
        # A mask cannot reach into the entries of a list, a map, or a time.
        inner = None if found.is_repeated else found.message_type
        is_time = inner is not None and inner.full_name.startswith("google.protobuf.")
        current = None if is_time else inner
    return True

"""A small service of our own for the tests of the rpc floor, which knows no concern.

Its descriptors are built here, in the default pool, so that the floor reads them as it reads real
ones: scope, side effects, required fields, streaming.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from google.api.field_behavior_pb2 import FieldBehavior, field_behavior
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodOptions,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.rpc.call import Context

PACKAGE = "test.v1"
SERVICE = "test.v1.WidgetService"

_TYPES = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
}


def field(
    message: DescriptorProto, kind: str, name: str, *marks: str, repeated: bool = False
) -> None:
    """Adds a field. Marks are names of field behaviors, or ``optional``."""
    made = message.field.add(name=name, number=len(message.field) + 1)
    made.label = (
        FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    )
    if kind in _TYPES:
        made.type = _TYPES[kind]
    elif kind.startswith("enum "):
        made.type = FieldDescriptorProto.TYPE_ENUM
        made.type_name = "." + kind.removeprefix("enum ")
    else:
        made.type = FieldDescriptorProto.TYPE_MESSAGE
        made.type_name = "." + kind
    for mark in marks:
        if mark == "optional":
            made.proto3_optional = True
            made.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{name}")
        else:
            made.options.Extensions[field_behavior].append(FieldBehavior.Value(mark))


def text_map(message: DescriptorProto, name: str) -> None:
    """Adds a map of text to text."""
    entry = message.nested_type.add(name=name.title() + "Entry")
    entry.options.map_entry = True
    field(entry, "string", "key")
    field(entry, "string", "value")
    field(message, f"{PACKAGE}.{message.name}.{entry.name}", name, repeated=True)


def add_method(
    file: FileDescriptorProto, name: str, scope: str, *, reads: bool = True,
    request: str = "", response: str = "", streams_in: bool = False, streams_out: bool = False,
) -> None:  # fmt: skip
    """Adds a method to the file's first service."""
    method = file.service[0].method.add(
        name=name,
        input_type=f".{PACKAGE}.{request or name + 'Request'}",
        output_type=f".{PACKAGE}.{response or name + 'Response'}",
        client_streaming=streams_in,
        server_streaming=streams_out,
    )
    if scope:
        method.options.Extensions[required_scope] = scope
    if reads:
        method.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS


def build() -> FileDescriptorProto:
    """Returns the test service's file."""
    file = FileDescriptorProto(
        name="test/v1/widgets.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[
            "authz/v1/options.proto",
            "google/api/field_behavior.proto",
            "google/protobuf/timestamp.proto",
            "google/protobuf/duration.proto",
            "google/protobuf/field_mask.proto",
        ],
    )
    color = file.enum_type.add(name="Color")
    color.value.add(name="COLOR_UNSPECIFIED", number=0)
    color.value.add(name="COLOR_RED", number=1)
    color.value.add(name="COLOR_BLUE", number=7)

    part = file.message_type.add(name="Part")
    field(part, "string", "slug", "REQUIRED")
    field(part, "string", "note")
    field(part, f"{PACKAGE}.Part", "inner")

    widget = file.message_type.add(name="Widget")
    field(widget, "string", "id", "OUTPUT_ONLY")
    field(widget, "string", "slug", "IMMUTABLE")
    field(widget, "string", "name")
    field(widget, "string", "etag")
    field(widget, "google.protobuf.Timestamp", "made_at")
    field(widget, f"{PACKAGE}.Part", "part")
    field(widget, "string", "code", "IDENTIFIER")

    create = file.message_type.add(name="CreateWidgetRequest")
    field(create, "string", "organization_id", "REQUIRED")
    field(create, "string", "name", "REQUIRED")
    field(create, "string", "description")
    field(create, f"enum {PACKAGE}.Color", "color", "REQUIRED")
    field(create, f"{PACKAGE}.Part", "part")
    field(create, f"{PACKAGE}.Part", "parts", repeated=True)
    field(create, "string", "tags", repeated=True)
    field(create, f"enum {PACKAGE}.Color", "colors", repeated=True)
    field(create, "google.protobuf.Timestamp", "starts_at")
    field(create, "google.protobuf.Duration", "lasts")
    field(create, "double", "weight")
    text_map(create, "metadata")
    text_map(create, "labels")
    field(create, "bool", "is_new", "REQUIRED")
    field(create, "int32", "count", "optional", "REQUIRED")
    field(create, f"{PACKAGE}.Widget", "widget")
    field(create, "google.protobuf.FieldMask", "update_mask")
    field(create, "bytes", "picture")
    created = file.message_type.add(name="CreateWidgetResponse")
    field(created, f"{PACKAGE}.Widget", "widget")

    for name, scope in (("GetWidget", "read"), ("GetKeys", "open")):
        get = file.message_type.add(name=f"{name}Request")
        field(get, "string", "id")
        got = file.message_type.add(name=f"{name}Response")
        field(got, "string", "text")
        field(got, "bytes", "data")
        del scope

    check = file.message_type.add(name="CheckRequest")
    field(check, "string", "subject", "REQUIRED")
    checked = file.message_type.add(name="CheckResponse")
    field(checked, "bool", "allowed")

    batch = file.message_type.add(name="BatchCheckRequest")
    field(batch, f"{PACKAGE}.Part", "items", "REQUIRED", repeated=True)
    field(file.message_type.add(name="BatchCheckResponse"), "int32", "count")

    listing = file.message_type.add(name="ListWidgetsRequest")
    field(listing, "int32", "page_size")
    field(file.message_type.add(name="ListWidgetsResponse"), "string", "ids", repeated=True)

    watch = file.message_type.add(name="WatchRequest")
    field(watch, "string", "organization_id")
    field(watch, "int32", "count")
    field(watch, "int32", "size")
    seen = file.message_type.add(name="WatchResponse")
    field(seen, "bytes", "data")

    chunk = file.message_type.add(name="ImportRequest")
    field(chunk, "string", "text", "REQUIRED")
    field(file.message_type.add(name="ImportResponse"), "string", "text")

    file.service.add(name="WidgetService")
    add_method(file, "GetWidget", "read")
    add_method(file, "GetKeys", "open")
    add_method(file, "CreateWidget", "write:roles", reads=False)
    add_method(file, "Check", "check")
    add_method(file, "BatchCheck", "check")
    add_method(file, "ListWidgets", "list")
    add_method(file, "Explain", "explain", request="CheckRequest", response="CheckResponse")
    add_method(file, "Watch", "watch", streams_out=True)
    add_method(
        file, "Export", "admin", request="WatchRequest", response="WatchResponse", streams_out=True
    )
    add_method(file, "Import", "admin", reads=False, streams_in=True)
    return file


FILE = descriptor_pool.Default().Add(build()) or descriptor_pool.Default().FindFileByName(
    "test/v1/widgets.proto"
)


def service() -> ServiceDescriptor:
    """Returns the test service's descriptor."""
    return descriptor_pool.Default().FindServiceByName(SERVICE)


def message(name: str, /, **fields: Any) -> Any:
    """Returns a message of the test service."""
    made: Message = GetMessageClass(
        descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{name}")
    )(**fields)
    return made


def path(name: str) -> str:
    """Returns the path of a method of the test service."""
    return f"/{SERVICE}/{name}"


def created(**changes: Any) -> Any:
    """Returns a CreateWidgetRequest that breaks no rule, with changes."""
    fields: dict[str, Any] = {
        "organization_id": "org_1", "name": "gear", "color": 1, "count": 0,
    }  # fmt: skip
    return message("CreateWidgetRequest", **{**fields, **changes})


#: A request that each unary method takes.
REQUESTS: dict[str, Callable[[], Any]] = {
    "GetWidget": lambda: message("GetWidgetRequest"),
    "GetKeys": lambda: message("GetKeysRequest"),
    "CreateWidget": created,
    "Check": lambda: message("CheckRequest", subject="om_1"),
    "BatchCheck": lambda: message("BatchCheckRequest", items=[message("Part", slug="a")]),
    "ListWidgets": lambda: message("ListWidgetsRequest"),
    "Explain": lambda: message("CheckRequest", subject="om_1"),
    "Watch": lambda: message("WatchRequest"),
    "Export": lambda: message("WatchRequest"),
    "Import": lambda: message("ImportRequest", text="a"),
}


class WidgetServicer:
    """Answers the test service; what a test needs to see or steer is an attribute.

    Attributes:
        contexts: The contexts of all calls that reached a handler, in order.
        on_get: Called by GetWidget first; may wait or raise.
    """

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.requests: list[Any] = []
        self.on_get: Callable[[Any, Context], None] = lambda request, context: None
        self.on_check: Callable[[Any, Context], bool] = lambda request, context: True
        self.on_import: Callable[[], None] = lambda: None
        self.ended = threading.Event()

    def _seen(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        self.contexts.append(context)

    def GetWidget(self, request: Any, context: Context) -> Any:
        """Answers with as many bytes as the id says, if it is a number."""
        self._seen(request, context)
        self.on_get(request, context)
        is_size = request.id.isascii() and request.id.isdigit() and len(request.id) < 8
        size = int(request.id) if is_size else 0
        return message("GetWidgetResponse", text=request.id, data=b"x" * size)

    def GetKeys(self, request: Any, context: Context) -> Any:
        """Needs no credential."""
        self._seen(request, context)
        return message("GetKeysResponse", text="keys")

    def CreateWidget(self, request: Any, context: Context) -> Any:
        """Changes nothing, but says that it may."""
        self._seen(request, context)
        context.trailing.append(("idempotency-replayed", "true"))
        return message("CreateWidgetResponse", widget=message("Widget", name=request.name))

    def Check(self, request: Any, context: Context) -> Any:
        """Answers as ``on_check`` says."""
        self._seen(request, context)
        return message("CheckResponse", allowed=self.on_check(request, context))

    def BatchCheck(self, request: Any, context: Context) -> Any:
        """Counts the items."""
        self._seen(request, context)
        return message("BatchCheckResponse", count=len(request.items))

    def ListWidgets(self, request: Any, context: Context) -> Any:
        """Lists nothing."""
        self._seen(request, context)
        return message("ListWidgetsResponse")

    def Explain(self, request: Any, context: Context) -> Any:
        """Answers yes."""
        self._seen(request, context)
        return message("CheckResponse", allowed=True)

    def Watch(self, request: Any, context: Context) -> Iterator[Any]:
        """Yields ``count`` messages of ``size`` bytes, then waits until it is cancelled."""
        self._seen(request, context)
        try:
            for _ in range(request.count):
                yield message("WatchResponse", data=b"x" * request.size)
            pause = threading.Event()
            while not context.is_cancelled():
                pause.wait(0.01)
        finally:
            self.ended.set()

    def Export(self, request: Any, context: Context) -> Iterator[Any]:
        """Yields ``count`` messages of ``size`` bytes."""
        self._seen(request, context)
        self.on_get(request, context)
        for _ in range(request.count):
            yield message("WatchResponse", data=b"x" * request.size)

    def Import(self, requests: Iterator[Any], context: Context) -> Any:
        """Joins the texts."""
        self._seen(None, context)
        self.on_import()
        return message("ImportResponse", text="".join(request.text for request in requests))

"""What is known of each method before it is called, read from its descriptor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from authz_service.pb.authz.v1.options_pb2 import required_scope

DECISION = "decision"
LIST = "list"
READ = "read"
WRITE = "write"
WATCH = "watch"
WORKS = (DECISION, LIST, READ, WRITE, WATCH)

UNARY = "unary"
SERVER_STREAM = "server_stream"
CLIENT_STREAM = "client_stream"

# The scope of methods that need no credential (product.md C11: the key set of access tokens).
OPEN = "open"

# Costs in units of AUTHZ_RATE_PER_SECOND (quality.md section 6, "rate").
COST_ONE = 1.0
COST_WRITE = 5.0
COST_EXPLAIN = 5.0
ROWS_PER_UNIT = 20
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1000

_WORK_OF_SCOPE = {"check": DECISION, "list": LIST, "explain": LIST}


@dataclass(frozen=True, slots=True)
class Rule:
    """The scope and class of work of a service that is not ours and so carries no option."""

    scope: str
    work: str


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC.

    Attributes:
        path: ``/package.Service/Name``, as it is called on the wire.
        service: Full name of the service, as it is called on the wire.
        name: The RPC's own name, and the servicer's attribute.
        scope: What a credential must carry; OPEN if none is needed.
        work: One of WORKS: which cap of admission it falls under.
        streaming: UNARY, SERVER_STREAM or CLIENT_STREAM.
        is_mutating: False for NO_SIDE_EFFECTS.
        cost: Cost units of one decoded request, at least 1.
        is_short: It is about one thing, so that it computes for well under a millisecond.
        answers_allowed: The response has a field ``allowed`` of its own.
        names_organization: The request has a field ``organization_id`` of its own.
    """

    path: str
    service: str
    name: str
    request_class: type[Message]
    response_class: type[Message]
    scope: str
    work: str
    streaming: str
    is_mutating: bool
    cost: Callable[[Message], float]
    is_short: bool
    answers_allowed: bool
    names_organization: bool


def methods_of(
    service: ServiceDescriptor, *, known_as: str = "", rule: Rule | None = None
) -> dict[str, Method]:
    """Returns the methods of a service by path.

    Args:
        known_as: The service's name on the wire where it differs from the descriptor's own: a
            wire-compatible copy of somebody else's service.
        rule: For services that are not ours; ours declare it in the descriptor.

    Raises:
        ValueError: A method without a scope, or streaming in both directions.
    """
    name = known_as or service.full_name
    return {
        method.path: method
        for method in (_method_of(descriptor, name, rule) for descriptor in service.methods)
    }


def _method_of(descriptor: MethodDescriptor, service: str, rule: Rule | None) -> Method:
    path = f"/{service}/{descriptor.name}"
    options = descriptor.GetOptions()
    is_mutating = options.idempotency_level != MethodOptions.NO_SIDE_EFFECTS
    scope = rule.scope if rule else options.Extensions[required_scope]
    if not scope:
        raise ValueError(f"{path} declares no authz.v1.required_scope")
    if descriptor.client_streaming and descriptor.server_streaming:
        raise ValueError(f"{path} streams in both directions: the hall has no path for that")
    streaming = UNARY
    if descriptor.server_streaming:
        streaming = SERVER_STREAM
    elif descriptor.client_streaming:
        streaming = CLIENT_STREAM
    if rule:
        work = rule.work
        is_mutating = work == WRITE
    elif is_mutating:
        work = WRITE
    elif streaming == SERVER_STREAM and scope == "watch":
        work = WATCH
    else:
        work = _WORK_OF_SCOPE.get(scope, READ)
    request = descriptor.input_type
    cost = _cost_of(request.fields_by_name, scope, work)
    allowed = descriptor.output_type.fields_by_name.get("allowed")
    organization = request.fields_by_name.get("organization_id")
    return Method(
        path=path,
        service=service,
        name=descriptor.name,
        request_class=GetMessageClass(request),
        response_class=GetMessageClass(descriptor.output_type),
        scope=scope,
        work=work,
        streaming=streaming,
        is_mutating=is_mutating,
        cost=cost,
        is_short=streaming == UNARY and cost is _cost_of_one,
        answers_allowed=allowed is not None and allowed.type == FieldDescriptor.TYPE_BOOL,
        names_organization=organization is not None
        and organization.type == FieldDescriptor.TYPE_STRING
        and not organization.is_repeated,
    )


def _cost_of(
    fields: Mapping[str, FieldDescriptor], scope: str, work: str
) -> Callable[[Message], float]:
    """Returns the function that prices a request.

    A decision costs 1 for each of its questions: for each entry of its repeated messages (items
    of a batch, resources of a matrix, whose permissions come out of the same facts), 1 without
    any. A list costs 1 for each ROWS_PER_UNIT rows asked for.
    """
    if work == WRITE:
        return lambda request: COST_WRITE
    if work == DECISION:
        questions = tuple(
            name for name, field in fields.items() if field.is_repeated and field.message_type
        )
        if questions:
            return lambda request: max(
                COST_ONE, sum(len(getattr(request, name)) for name in questions)
            )
        return _cost_of_one
    page_size = fields.get("page_size")
    if page_size is not None and page_size.type == FieldDescriptor.TYPE_INT32:
        return _cost_of_page
    if scope == "explain":
        return lambda request: COST_EXPLAIN
    return _cost_of_one


def _cost_of_one(request: Message) -> float:
    return COST_ONE


def _cost_of_page(request: Message) -> float:
    asked = getattr(request, "page_size") or PAGE_SIZE_DEFAULT  # noqa: B009 - no Message has it
    return max(COST_ONE, min(asked, PAGE_SIZE_MAX) / ROWS_PER_UNIT)

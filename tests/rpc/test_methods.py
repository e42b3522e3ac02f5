"""Methods are what their descriptors say, and a method without a scope is none."""

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto

from authz_service.rpc import methods
from authz_service.rpc.methods import Rule, methods_of
from tests.rpc import widgets

ALL = methods_of(widgets.service())


@pytest.mark.parametrize(
    ("name", "scope", "work", "streaming", "is_mutating"),
    [
        ("GetWidget", "read", "read", "unary", False),
        ("GetKeys", "open", "read", "unary", False),
        ("CreateWidget", "write:roles", "write", "unary", True),
        ("Check", "check", "decision", "unary", False),
        ("BatchCheck", "check", "decision", "unary", False),
        ("ListWidgets", "list", "list", "unary", False),
        ("Explain", "explain", "list", "unary", False),
        ("Watch", "watch", "watch", "server_stream", False),
        ("Export", "admin", "read", "server_stream", False),
        ("Import", "admin", "write", "client_stream", True),
    ],
)
def test_a_method_is_what_its_descriptor_says(
    name: str, scope: str, work: str, streaming: str, is_mutating: bool
) -> None:
    method = ALL[widgets.path(name)]
    found = (method.scope, method.work, method.streaming, method.is_mutating)
    assert found == (scope, work, streaming, is_mutating)
    assert method.name == name
    assert method.service == widgets.SERVICE
    assert type(widgets.REQUESTS[name]()) is method.request_class


def test_answers_and_organizations_are_seen() -> None:
    assert ALL[widgets.path("Check")].answers_allowed
    assert not ALL[widgets.path("BatchCheck")].answers_allowed
    assert ALL[widgets.path("CreateWidget")].names_organization
    assert not ALL[widgets.path("Check")].names_organization


def test_what_is_about_one_thing_is_short() -> None:
    short = {method.name for method in ALL.values() if method.is_short}
    assert {"GetWidget", "GetKeys", "Check"} <= short
    others = {"BatchCheck", "CreateWidget", "ListWidgets", "Explain", "Watch", "Export", "Import"}
    assert not others & short


def parts(count: int) -> list[object]:
    return [widgets.message("Part", slug="a")] * count


@pytest.mark.parametrize(
    ("name", "request_", "cost"),
    [
        ("Check", widgets.message("CheckRequest"), 1),
        ("BatchCheck", widgets.message("BatchCheckRequest"), 1),
        ("BatchCheck", widgets.message("BatchCheckRequest", items=parts(1)), 1),
        ("BatchCheck", widgets.message("BatchCheckRequest", items=parts(10_000)), 10_000),
        ("CreateWidget", widgets.created(), 5),
        ("Explain", widgets.message("CheckRequest"), 5),
        ("GetWidget", widgets.message("GetWidgetRequest"), 1),
        ("ListWidgets", widgets.message("ListWidgetsRequest"), 2.5),
        ("ListWidgets", widgets.message("ListWidgetsRequest", page_size=1), 1),
        ("ListWidgets", widgets.message("ListWidgetsRequest", page_size=-1), 1),
        ("ListWidgets", widgets.message("ListWidgetsRequest", page_size=1_000), 50),
        ("ListWidgets", widgets.message("ListWidgetsRequest", page_size=2_000_000), 50),
    ],
)
def test_a_request_costs_what_it_asks_for(name: str, request_: object, cost: float) -> None:
    assert ALL[widgets.path(name)].cost(request_) == cost  # type: ignore[arg-type]


def other_service(name: str, scope: str, **streams: bool) -> str:
    """Adds a file with one service of one method; returns the service's name."""
    file = widgets.build()
    file.name = f"test/{name}.proto"
    file.package = f"test.{name}"
    del file.message_type[:], file.enum_type[:], file.service[0].method[:]
    file.dependency.append("test/v1/widgets.proto")
    file.message_type.append(DescriptorProto(name="Nothing"))
    widgets.add_method(
        file, "Get", scope, request="GetWidgetRequest", response="GetWidgetResponse", **streams
    )
    descriptor_pool.Default().Add(file)
    return f"test.{name}.WidgetService"


def test_a_method_without_a_scope_is_refused() -> None:
    name = other_service("unscoped", "")
    service = descriptor_pool.Default().FindServiceByName(name)
    with pytest.raises(ValueError, match=r"/test.unscoped.WidgetService/Get declares no"):
        methods_of(service)


def test_a_service_that_is_not_ours_has_its_rule_and_its_name_from_outside() -> None:
    service = descriptor_pool.Default().FindServiceByName("test.unscoped.WidgetService")
    (method,) = methods_of(
        service, known_as="other.v3.Authorization", rule=Rule("check", methods.DECISION)
    ).values()
    assert method.path == "/other.v3.Authorization/Get"
    assert (method.scope, method.work, method.is_mutating) == ("check", "decision", False)


def test_streaming_in_both_directions_is_refused() -> None:
    name = other_service("both", "read", streams_in=True, streams_out=True)
    with pytest.raises(ValueError, match="both directions"):
        methods_of(descriptor_pool.Default().FindServiceByName(name))

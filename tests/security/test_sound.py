"""The requests of ``sound.py`` are sound, and leave out no RPC and nothing that one can name."""

import contextlib
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from authz_service.server import Worker
from tests.callers import Caller, method
from tests.security import sound
from tests.security.test_bad_input import is_ignored

# Names of fields that hold the id, slug or key of something, or a text of the caller's.
NEVER_FILLED = {"page_token", "after_cursor", "etag", "at_least_as_fresh"}


def texts(descriptor: Descriptor, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Paths of all texts that a caller may set, also in lists and in messages in messages."""
    for field in descriptor.fields:
        inner = field.message_type
        if is_ignored(field) or field.name in NEVER_FILLED or "IMMUTABLE" in fixed(field):
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            yield prefix + field.name
        elif inner is not None and inner.file.package == "authz.v1" and depth < 5:
            is_map = inner.GetOptions().map_entry
            yield from () if is_map else texts(inner, f"{prefix}{field.name}.", depth + 1)


def fixed(field: FieldDescriptor) -> str:
    """What is annotated at the field."""
    return str(field.GetOptions())


def test_every_method_has_a_row(worker: Worker) -> None:
    served = {(each.service.rpartition(".")[2], each.name) for each in worker.hall.methods.values()}
    assert set(sound.ROWS) == served


def test_rows_fill_every_text_that_a_method_takes(api: Caller) -> None:
    sound.prepare(api)
    filled: dict[tuple[str, str], set[str]] = {row: set() for row in sound.ROWS}
    for service, name, request in sound.requests(sound.build(api, 0)):
        filled[service, name] |= {leaf.path for leaf in sound.leaves(request)}
    missing = {
        f"{service}.{name}": found
        for (service, name), paths in filled.items()
        if (found := set(texts(method(service, name).input_type)) - paths)
    }
    assert missing == {}


def test_every_row_is_answered_and_every_write_writes(
    api: Caller, worker: Worker, database_url: str
) -> None:
    sound.prepare(api)
    place = sound.build(api, 0)
    with contextlib.closing(sound.Saved(worker, database_url)) as saved:
        for service, name, request in sound.requests(place):
            reply = sound.ask(worker, [f"Bearer {api._bearer}"], service, name, request)
            refused = sound.refusal(reply)
            if not sound.is_sound(request):
                assert refused is not None, name
                assert refused.reason == "API_KEY_NOT_FOUND", name
                continue
            assert refused is None, f"{service}.{name}: {refused} {request}"
            is_mutating = worker.hall.methods[f"/authz.v1.{service}/{name}"].is_mutating
            assert (sound.everything(worker) != saved.rows) == is_mutating, f"{name} {request}"
            if is_mutating:
                saved.restore()
                assert sound.everything(worker) == saved.rows

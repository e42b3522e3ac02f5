"""``authz import``, ``export`` and ``verify``: directory files, and the answers they promise."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from authz_service.cli import app
from authz_service.cli.output import EXIT_DENIED, fail, line, note, progress

CHUNK_BYTES = 256 * 1024
# A whole directory is one transaction; it may take longer than a call otherwise does.
IMPORT_SECONDS = 600.0
EXPORT_SECONDS = 600.0
FILE = typer.Argument(help="a directory file, .json or .yaml", exists=True, dir_okay=False)


def _format_of(path: Path) -> Any:
    from authz_service.pb.authz.v1 import directory_files_pb2 as pb

    if path.suffix == ".json":
        return pb.DIRECTORY_FILE_FORMAT_JSON
    if path.suffix in (".yaml", ".yml"):
        return pb.DIRECTORY_FILE_FORMAT_YAML
    return fail(f"{path}: the name of a directory file ends with .json or .yaml")


def import_into(running: Any, path: Path, *, validate_only: bool = False) -> Any:
    """Sends a directory file to a service and returns the response."""
    from authz_service.pb.authz.v1 import directory_files_pb2 as pb

    data = path.read_bytes()
    header = pb.ImportDirectoryHeader(format=_format_of(path), validate_only=validate_only)

    def parts() -> Iterator[Any]:
        yield pb.ImportDirectoryRequest(header=header)
        starts = range(0, len(data), CHUNK_BYTES)
        for start in progress(starts, "importing"):
            yield pb.ImportDirectoryRequest(chunk=data[start : start + CHUNK_BYTES])

    return running.directory_files.ImportDirectory(parts(), timeout=IMPORT_SECONDS)


@app.command("import")
def import_file(
    file: Annotated[Path, FILE],
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="say what it would do, and do nothing")
    ] = False,
) -> None:
    """Makes the directory hold what a file says: all of it, or nothing."""
    from authz_service.cli.service import service

    with service() as running:
        answer = import_into(running, file, validate_only=validate_only)
    for count in answer.counts:
        line(
            f"{count.kind}: {count.created} created, {count.updated} updated,"
            f" {count.unchanged} unchanged"
        )
    if validate_only:
        note("nothing was written")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="where to write it; .json or .yaml")],
    organization: Annotated[
        list[str] | None, typer.Option(help="id or external id; all without it")
    ] = None,
) -> None:
    """Writes a directory file of what the service holds."""
    from authz_service.cli.service import service
    from authz_service.pb.authz.v1 import directory_files_pb2 as pb

    kind = _format_of(file)
    with service() as running:
        wanted = [running.organization_id(name) for name in organization or ()]
        request = pb.ExportDirectoryRequest(organization_ids=wanted, format=kind)
        answers = running.directory_files.ExportDirectory(request, timeout=EXPORT_SECONDS)
        # Only a whole file may take the place of one that is there.
        data = b"".join(answer.chunk for answer in progress(answers, "exporting"))
    file.write_bytes(data)
    line(f"{len(data)} bytes in {file}")


@app.command()
def verify(
    file: Annotated[Path, FILE],
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="import into a throwaway service and ask that")
    ] = False,
    database: Annotated[
        str, typer.Option(help="of the throwaway service: sqlite or postgresql")
    ] = "sqlite",
) -> None:
    """Asks the assertions of a directory file; ends with 1 if one does not hold."""
    from authz_service.client.assertions import verify as ask_all

    assertions = _assertions(file)
    started = time.monotonic()
    failed = []
    with _service(ephemeral, database) as running:
        if ephemeral:
            import_into(running, file)
        asked = _Names(running)
        outcomes = ask_all(assertions, asked, shown=lambda work: progress(work, "verifying"))
        for outcome in outcomes:
            if outcome.difference:
                failed.append(outcome)
    for outcome in sorted(failed, key=lambda outcome: outcome.number):
        line(f"FAILED assertions[{outcome.number}] {_described(outcome.assertion)}")
        line(f"       {outcome.difference}")
    seconds = time.monotonic() - started
    line(f"{len(assertions) - len(failed)} passed, {len(failed)} failed in {seconds:.2f} s")
    if failed or not assertions:
        raise typer.Exit(EXIT_DENIED)


@contextlib.contextmanager
def _service(ephemeral: bool, database: str) -> Iterator[Any]:
    from authz_service.cli.service import Service, service, telling

    if not ephemeral:
        with service() as running:
            yield running
        return
    from authz_service.cli.throwaway import throwaway
    from authz_service.config import Address, Client

    with throwaway(database) as (address, credential):
        client = Client(address=Address.parse(address), credential=credential)
        with telling(Service(client)) as running:
            yield running


def _assertions(file: Path) -> list[Any]:
    """Returns what the file asserts; the service judges the rest of it when it is imported."""
    import json

    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        fail(f"{file}: {error}")
    assertions = content.get("assertions", []) if isinstance(content, dict) else None
    if not isinstance(assertions, list):
        fail(f"{file}: no directory file with a list of assertions")
    return assertions


def _described(assertion: Mapping[str, Any]) -> str:
    if not assertion.keys() >= {"organization", "permission"}:
        return str(dict(assertion))
    place = assertion.get("resource") or {"type": assertion.get("type", ""), "external_id": "*"}
    what = f"{assertion['permission']} on {place['type']}/{place['external_id']}"
    who = assertion.get("user", "who")
    expected = assertion.get("allowed")
    word = "" if expected is None else (": allowed" if expected else ": denied")
    return f"{who} in {assertion['organization']}, {what}{word}"


class _Names:
    """Asks a service by the names of a directory file."""

    def __init__(self, running: Any) -> None:
        self._running = running

    def checks(self, questions: Sequence[Mapping[str, Any]]) -> list[bool | str]:
        """Answers assertions about single checks with one BatchCheck."""
        from google.rpc.code_pb2 import Code

        from authz_service.pb.authz.v1 import authorization_pb2 as pb

        answers: list[bool | str] = [""] * len(questions)
        items, places = [], []
        for place, question in enumerate(questions):
            try:
                items.append(
                    pb.BatchCheckItem(
                        subject=self._subject(question),
                        permission_slug=question["permission"],
                        resource=self._resource(question, question["resource"]),
                    )
                )
                places.append(place)
            except LookupError as error:
                answers[place] = str(error)
        if items:
            request = pb.BatchCheckRequest(items=items)
            answer = self._running.ask(self._running.authorization.BatchCheck, request)
            for place, result in zip(places, answer.results, strict=True):
                if result.WhichOneof("result") == "decision":
                    answers[place] = result.decision.allowed
                else:
                    answers[place] = f"{Code.Name(result.error.code)}: {result.error.message}"
        return answers

    def members(self, question: Mapping[str, Any]) -> set[str] | str:
        """Returns who has a permission on a resource."""
        from authz_service.pb.authz.v1 import authorization_pb2 as pb

        try:
            request = pb.ListMembersRequest(
                resource=self._resource(question, question["resource"]),
                permission_slug=question["permission"],
                page_size=1_000,
            )
        except LookupError as error:
            return str(error)
        rows = self._running.pages(self._running.authorization.ListMembers, request, "members")
        users = [row.organization_membership.user for row in rows]
        return {user.external_id or user.id for user in users}

    def resources(self, question: Mapping[str, Any]) -> set[str] | str:
        """Returns the resources of a type on which a user has a permission."""
        from authz_service.pb.authz.v1 import authorization_pb2 as pb

        try:
            request = pb.AuthorizationServiceListResourcesRequest(
                subject=self._subject(question),
                permission_slugs=[question["permission"]],
                resource_type_slugs=[question["type"]],
                page_size=1_000,
            )
        except LookupError as error:
            return str(error)
        rows = self._running.pages(self._running.authorization.ListResources, request, "items")
        return {row.resource.external_id for row in rows}

    def _subject(self, question: Mapping[str, Any]) -> Any:
        from authz_service.pb.authz.v1 import core_pb2

        pair = core_pb2.UserInOrganization(
            user_id=self._named(self._running.user_id, question["user"], "user"),
            organization_id=self._organization(question),
        )
        return core_pb2.Subject(user=pair)

    def _organization(self, question: Mapping[str, Any]) -> str:
        name = question["organization"]
        return self._named(self._running.organization_id, name, "organization")

    def _resource(self, question: Mapping[str, Any], place: Mapping[str, str]) -> Any:
        from authz_service.pb.authz.v1 import core_pb2

        organization_id = self._organization(question)
        external_id = place["external_id"]
        if place["type"] == "organization" and external_id == question["organization"]:
            external_id = organization_id
        key = core_pb2.ResourceKey(
            organization_id=organization_id,
            resource_type_slug=place["type"],
            external_id=external_id,
        )
        return core_pb2.ResourceRef(key=key)

    @staticmethod
    def _named(find: Any, name: str, what: str) -> str:
        from authz_service.client.retry import CallFailed, refusal_of

        try:
            return str(find(name))
        except CallFailed as error:
            _, reason = refusal_of(error)
            if reason.endswith("_NOT_FOUND"):
                raise LookupError(f"{reason}: there is no {what} {name}") from None
            raise

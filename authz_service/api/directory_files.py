"""DirectoryFileService: a whole directory in and out, as one file."""

from collections.abc import Iterator

from authz_service.base import errors
from authz_service.base.consistency import ConsistencyTokens
from authz_service.domain.directory_files import exporting, importing, parse
from authz_service.domain.directory_files.findings import Findings
from authz_service.engine import limits
from authz_service.pb.authz.v1 import directory_files_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Transaction

_KINDS = {
    pb.DIRECTORY_FILE_FORMAT_JSON: parse.JSON,
    pb.DIRECTORY_FILE_FORMAT_YAML: parse.YAML,
}


class DirectoryFileServicer:
    """Imports and exports directory files.

    Args:
        file_bytes_max: The largest file.
    """

    def __init__(
        self, database: Database, tokens: ConsistencyTokens, *, file_bytes_max: int
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._file_bytes_max = file_bytes_max

    def ImportDirectory(
        self, requests: Iterator[pb.ImportDirectoryRequest], context: Context
    ) -> pb.ImportDirectoryResponse:
        # Before a byte is read: a stranger to the rules may not make us hold 64 MiB.
        context.actor.require_unrestricted()
        header, data = self._received(requests)
        findings = Findings()
        content = parse.parse(data, _KINDS[header.format], findings)

        def work(tx: Transaction) -> importing.Counts:
            # A new collection for each attempt, with what parsing found.
            found = Findings()
            found.all.extend(findings.all)
            return importing.apply(tx, content, found, validate_only=header.validate_only)

        written = self._database.write(
            work, actor=context.actor, deadline=context.deadline, patient=True
        )
        return pb.ImportDirectoryResponse(
            counts=[
                pb.ImportCount(kind=kind, **counts)
                for kind, counts in sorted(written.result.items())
            ],
            consistency_token=self._tokens.seal(written.revisions, written.positions),
        )

    def ExportDirectory(
        self, request: pb.ExportDirectoryRequest, context: Context
    ) -> Iterator[pb.ExportDirectoryResponse]:
        with self._database.snapshot(context.actor) as snapshot:
            data = exporting.export(snapshot, request.organization_ids, _KINDS[request.format])
        for start in range(0, len(data), limits.DIRECTORY_CHUNK_OUT_MAX):
            yield pb.ExportDirectoryResponse(
                chunk=data[start : start + limits.DIRECTORY_CHUNK_OUT_MAX]
            )

    def _received(
        self, requests: Iterator[pb.ImportDirectoryRequest]
    ) -> tuple[pb.ImportDirectoryHeader, bytes]:
        header: pb.ImportDirectoryHeader | None = None
        chunks: list[bytes] = []
        size = 0
        for request in requests:
            part = request.WhichOneof("part")
            if header is None:
                if part != "header":
                    raise errors.field_required("header")
                if request.header.format not in _KINDS:
                    raise errors.field_required("header.format")
                header = request.header
                continue
            if part != "chunk":
                raise errors.field_invalid("part", "one header, then chunks")
            length = len(request.chunk)
            if length > limits.DIRECTORY_CHUNK_IN_MAX:
                raise errors.request_too_large(
                    "chunk", maximum=limits.DIRECTORY_CHUNK_IN_MAX, actual=length
                )
            size += length
            if size > self._file_bytes_max:
                raise errors.request_too_large("chunk", maximum=self._file_bytes_max, actual=size)
            chunks.append(request.chunk)
        if header is None:
            raise errors.field_required("header")
        return header, b"".join(chunks)

"""What commands print: results to standard output, everything else to standard error."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, NoReturn, TypeVar

import typer

T = TypeVar("T")

EXIT_DENIED = 1
EXIT_FAILED = 2


def line(text: str = "") -> None:
    """Prints one line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """Tells the person at the terminal something that is not the result."""
    typer.echo(text, err=True)


def fail(text: str, code: int = EXIT_FAILED) -> NoReturn:
    """Ends the command with a message."""
    typer.echo(f"authz: {text}", err=True)
    raise typer.Exit(code)


def progress(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yields the items, with a bar on standard error while that is a terminal."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(
        items, description=title, total=total, console=Console(stderr=True), transient=True
    )


def as_json(message: Any) -> str:
    """Returns a response as JSON with the names of the protos."""
    from google.protobuf.json_format import MessageToJson

    return MessageToJson(message, preserving_proto_field_name=True)

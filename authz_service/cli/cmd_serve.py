"""``authz serve``: the service itself, in one process or several."""

import gc
import signal
import sys
import threading
from typing import Annotated

import typer

from authz_service.cli import app
from authz_service.cli.output import fail, line


@app.command()
def serve(
    dev: Annotated[
        bool, typer.Option("--dev", help="make up what is missing, migrate, print a credential")
    ] = False,
    metrics_socket: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    from authz_service.config import Config, ConfigError, dev_environment
    from authz_service.storage import schema

    environment = None
    if dev:
        environment, lines = dev_environment()
        for each in lines:
            line(each)
    try:
        config = Config.from_environment(environment)
    except ConfigError as error:
        _refuse(str(error))
    if metrics_socket:
        _work(config, metrics_socket)
        return
    if dev:
        from authz_service.server import prepare

        prepare(config.database.url.reveal())
    try:
        schema.check(config.database.url.reveal())
    except schema.SchemaError as error:
        _refuse(str(error))
    if config.server.workers == 1:
        _work(config, None)
    else:
        raise typer.Exit(_supervise(config, environment))


def _refuse(text: str) -> None:
    from authz_service.supervisor import EXIT_REFUSED

    fail(text, EXIT_REFUSED)


def _work(config: object, metrics_socket: str | None) -> None:
    from authz_service.config import Config
    from authz_service.server import Unlistenable, Worker
    from authz_service.storage.cache.alone import AlreadyServed
    from authz_service.storage.cache.generation import LeaseDiffers
    from authz_service.storage.schema import SchemaError
    from authz_service.supervisor import end_with_supervisor

    assert isinstance(config, Config)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if metrics_socket is not None:
        end_with_supervisor()
    try:
        worker = Worker(config, metrics_socket=metrics_socket)
        _collect_less_often()
        worker.start()
    except (AlreadyServed, LeaseDiffers, Unlistenable, SchemaError) as error:
        _refuse(str(error))
        return
    if metrics_socket is None:
        line(f"serving on {worker.addresses[0]}")
        sys.stdout.flush()
    stop.wait()
    worker.stop()


def _collect_less_often() -> None:
    """Keeps the collector of reference cycles from looking at a batch's thousands of tuples.

    What exists at the start is never looked at again, and a batch of 1,000 questions, which makes
    no cycles, ends before a collection is due: it costs half as much so.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _supervise(config: object, environment: dict[str, str] | None) -> int:
    from authz_service.config import Config
    from authz_service.supervisor import Supervisor
    from authz_service.telemetry.logs import Lines, logger

    assert isinstance(config, Config)
    lines = Lines()
    supervisor = Supervisor(
        lambda number, socket: [
            sys.executable, "-m", "authz_service", "serve", "--metrics-socket", socket,
        ],
        workers=config.server.workers,
        environment=environment,
        metrics_listen=config.server.metrics_listen,
        drain_seconds=config.server.drain_seconds,
        log=logger(lines),
    )  # fmt: skip
    line(f"serving on {config.server.listen} with {config.server.workers} workers")
    sys.stdout.flush()
    code = supervisor.run()
    lines.close()
    return code

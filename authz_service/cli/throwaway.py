"""A service that lives as long as a command, with a database, socket and credential of its own."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from authz_service.base.secrets import Secret
from authz_service.cli.output import fail
from authz_service.config import dev_environment, foreign_environment

START_SECONDS = 60.0
STOP_SECONDS = 30.0


@contextlib.contextmanager
def process(environment: dict[str, str], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs ``authz serve --dev`` with these settings, and ends it by its process id."""
    command = [sys.executable, "-m", "authz_service", "serve", "--dev"]
    with log.open("wb") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_until_serving(address: str, running: subprocess.Popen[bytes], *, log: Path) -> None:
    """Waits for health SERVING; ends the command with the service's last words if it dies."""
    from authz_service.client.health import is_serving_within

    if not is_serving_within(address, START_SECONDS, ended=running.wait):
        fail(f"the service did not start:\n{log.read_text(errors='replace')[-2_000:]}")


@contextlib.contextmanager
def throwaway(database: str) -> Iterator[tuple[str, Secret]]:
    """Starts a service on an empty database and a unix socket; both are gone afterwards.

    Args:
        database: ``sqlite`` or ``postgresql`` (needs the extra ``stack``).

    Yields:
        Its address and an admin's credential.
    """
    with contextlib.ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="authz-")))
        if database == "postgresql":
            from authz_service.stack.postgresql import postgresql
            from authz_service.stack.server import StackError

            try:
                url = exits.enter_context(postgresql()).url
            except StackError as error:
                fail(str(error))
        elif database == "sqlite":
            url = f"sqlite:///{folder / 'authz.db'}"
        else:
            fail("--database: say sqlite or postgresql")
        address = f"unix:{folder / 'authz.sock'}"
        environment, _ = dev_environment(
            {
                **foreign_environment(),
                "AUTHZ_DATABASE_URL": url,
                "AUTHZ_LISTEN": address,
                "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
                "AUTHZ_RATE_PER_SECOND": "0",
            }
        )
        log = folder / "service.log"
        running = exits.enter_context(process(environment, log=log))
        wait_until_serving(address, running, log=log)
        yield address, Secret(environment["AUTHZ_FIRST_CREDENTIAL"])

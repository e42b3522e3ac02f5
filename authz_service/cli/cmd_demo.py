"""``authz demo``: a service with an example organization, and real calls printed beside it."""

import contextlib
import os
import re
import signal
import threading
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from authz_service.cli import app
from authz_service.cli.output import fail, line

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "acme.yaml"
FOLDER = Path("var")
# Where it listens may be told; everything else is made up, so that the demo is always the same.
_CONNECTIONS = 8
_TOLD = ("AUTHZ_LISTEN", "AUTHZ_DECISIONS_LISTEN", "AUTHZ_METRICS_LISTEN")
_DECISIONS_LISTEN = "127.0.0.1:50052"


@app.command()
def demo(
    stack: Annotated[
        bool, typer.Option("--stack", help="PostgreSQL and Valkey from wheels, and two workers")
    ] = False,
) -> None:
    """Starts a service on an example, asks it three questions, and keeps serving."""
    from authz_service.base.secrets import Secret
    from authz_service.cli.cmd_files import import_into
    from authz_service.cli.service import Service, telling
    from authz_service.cli.throwaway import process, wait_until_serving
    from authz_service.config import Client, Config, ConfigError

    if not EXAMPLE.exists():
        fail("demo needs a checkout of the source, whose example it shows")
    FOLDER.mkdir(exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as exits:
        environment = _environment(stack, exits)
        try:
            config = Config.from_environment(
                {name: text for name, text in environment.items() if name.startswith("AUTHZ_")}
            )
        except ConfigError as error:
            fail(str(error))
        log = FOLDER / "demo.log"
        running = exits.enter_context(process(environment, log=log))
        wait_until_serving(str(config.server.listen), running, log=log)
        credential = environment["AUTHZ_FIRST_CREDENTIAL"]
        client = Client(
            address=config.server.listen,
            decisions_address=config.server.decisions_listen,
            credential=Secret(credential),
        )
        service = exits.enter_context(telling(Service(client)))
        import_into(service, EXAMPLE)
        _introduce(config, stack)
        _ask(service)
        if stack:
            _revoke(service, config, client, exits)
        line("Ask it yourself, from another terminal:\n")
        line(f"  export AUTHZ_CREDENTIAL={credential}")
        line("  .venv/bin/authz check cat@acme project:edit project/web")
        line("  .venv/bin/authz explain gus@acme document:edit document/spec")
        line("  .venv/bin/authz verify examples/acme.yaml\n")
        line(f"Serving until interrupted; its log is {log}.")
        threading.Thread(target=_set_after, args=(running.wait, stop), daemon=True).start()
        stop.wait()
        if running.poll() is not None:
            fail(f"the service ended by itself:\n{log.read_text(errors='replace')[-2_000:]}")


def _environment(stack: bool, exits: contextlib.ExitStack) -> dict[str, str]:
    """Returns the service's environment; its keys are kept, so that tokens outlive a restart."""
    from authz_service.config import dev_environment, foreign_environment

    kept = FOLDER / "demo.env"
    told = foreign_environment(kept=_TOLD)
    given = {}
    if kept.exists():
        given = dict(each.split("=", 1) for each in kept.read_text().splitlines() if each)
    if stack:
        from authz_service.stack.postgresql import postgresql
        from authz_service.stack.server import StackError
        from authz_service.stack.valkey import valkey

        # PostgreSQL does not run as root, and whom it runs as may not enter a folder of root's: its
        # data last as long as the demo then.
        folder = FOLDER / "postgresql" if os.geteuid() else None
        try:
            settings = {
                "AUTHZ_DATABASE_URL": exits.enter_context(postgresql(folder, durable=True)).url,
                "AUTHZ_REDIS_URL": exits.enter_context(valkey()).url,
                "AUTHZ_WORKERS": "2",
                "AUTHZ_DECISIONS_LISTEN": told.get("AUTHZ_DECISIONS_LISTEN", _DECISIONS_LISTEN),
            }
        except StackError as error:
            fail(str(error))
    else:
        settings = {"AUTHZ_DATABASE_URL": f"sqlite:///{FOLDER.resolve() / 'demo.db'}"}
    environment, _ = dev_environment({**told, **given, **settings})
    names = ("AUTHZ_ROOT_KEYS", "AUTHZ_FIRST_CREDENTIAL")
    with os.fdopen(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(f"{name}={environment[name]}\n" for name in names)
    return environment


def _introduce(config: Any, stack: bool) -> None:
    kind = "PostgreSQL, Valkey, two workers" if stack else "an embedded SQLite file"
    line(f"authz_service is serving on {config.server.listen} ({kind}).")
    if config.server.decisions_listen:
        line(f"Decisions alone are answered on {config.server.decisions_listen}, for less.")
    line("It holds Acme: eight people, two workspaces, three projects, five documents")
    line("(examples/acme.yaml).\n")


def _ask(service: Any) -> None:
    from authz_service.cli.cmd_ask import ask_check, ask_explain, ask_list_members

    line("May Cat edit the project Web?")
    line("  $ authz check cat@acme project:edit project/web")
    _show(ask_check(service, "cat@acme", "project:edit", "project/web"))
    line("Who may read the specification, and through what?")
    line("  $ authz list-members document/spec document:read --organization acme")
    _show(ask_list_members(service, "document/spec", "document:read", "acme"))
    line("Why may Dan not read it, and what would change that?")
    line("  $ authz explain dan@acme document:read document/spec")
    _show(ask_explain(service, "dan@acme", "document:read", "document/spec"))


def _revoke(service: Any, config: Any, client: Any, exits: contextlib.ExitStack) -> None:
    """Shows that what is taken away through one worker is gone in all, with the cache on."""
    from authz_service.cli.service import Service, telling
    from authz_service.pb.authz.v1 import authorization_pb2, role_assignments_pb2

    subject, organization_id = service.subject("eve@acme")
    resource = service.resource("document/leads", organization_id)
    question = authorization_pb2.CheckRequest(
        subject=subject, permission_slug="document:read", resource=resource
    )
    # The kernel spreads connections over the workers.
    others = [
        exits.enter_context(telling(Service(client, is_alone=True))) for _ in range(_CONNECTIONS)
    ]

    def allowed() -> int:
        return sum(other.ask(other.authorization.Check, question).allowed for other in others)

    line("Eve gets to read the leads, and it is taken away from her again:")
    line(
        f"(asked through {_CONNECTIONS} connections, spread over two workers,"
        " at the address of decisions)"
    )
    made = service.role_assignments.CreateRoleAssignment(
        role_assignments_pb2.CreateRoleAssignmentRequest(
            organization_membership_id=service.membership_id(subject),
            role_slug="document-reader",
            resource=resource,
        ),
        timeout=30,
    )
    for _ in range(3):
        granted = allowed()
    line(f"  granted: {granted} of {_CONNECTIONS} say allowed, three times over")
    service.role_assignments.DeleteRoleAssignment(
        role_assignments_pb2.DeleteRoleAssignmentRequest(
            role_assignment_id=made.role_assignment.id
        ),
        timeout=30,
    )
    line(f"  revoked: {allowed()} of {_CONNECTIONS} say allowed")
    for source, count in sorted(_answers(str(config.server.metrics_listen)).items()):
        line(f'  authz_cache_answers_total{{from="{source}"}} {count}')
    line()


def _answers(metrics_listen: str) -> dict[str, str]:
    """Returns how many decisions came from where, of all workers."""
    with urllib.request.urlopen(f"http://{metrics_listen}/metrics", timeout=10) as answer:
        told = answer.read().decode()
    pattern = r'^authz_cache_answers_total\{from="(\w+)"\} ([0-9.]+)$'
    return dict(re.findall(pattern, told, re.MULTILINE))


def _show(lines: list[str]) -> None:
    for each in lines:
        line(f"  {each}")
    line()


def _set_after(wait: Any, stop: threading.Event) -> None:
    wait()
    stop.set()

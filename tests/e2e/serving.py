"""``authz serve`` in a process of its own, as somebody runs it: its output, sockets and end."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.callers import Caller, through_channel

ROOT = Path(__file__).resolve().parents[2]
# For what must happen; nothing here takes nearly as long.
SECONDS = 30.0
COMMAND = (sys.executable, "-m", "authz_service", "serve", "--dev")
LOOPBACK = "127.0.0.1"
# States of /proc/net/tcp.
ESTABLISHED, LISTENING = "01", "0A"


def until(is_so: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Waits for something that another process does, and returns what tells that it did."""
    pause, end = threading.Event(), monotonic() + seconds
    while True:
        found = is_so()
        if found:
            return found
        assert monotonic() < end, f"it did not happen: {what}"
        pause.wait(0.01)


def environment(**settings: str) -> dict[str, str]:
    """What a shell hands on, with the given settings of ours and no others."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("AUTHZ_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **settings}


def free_port() -> int:
    """A port nobody listens on; another program could take it before we do."""
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        return int(one.getsockname()[1])


class Socket(NamedTuple):
    """Our end of a TCP socket."""

    host: str
    port: int


def sockets(pid: int, state: str) -> list[Socket]:
    """The TCP sockets of a process in one state, as the kernel lists them."""
    found = {}
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, now, *rest = line.split()
            host, _, port = local.rpartition(":")
            # Words of four bytes, each in the byte order of the machine.
            words = struct.unpack(f">{len(host) // 8}I", bytes.fromhex(host))
            packed = struct.pack(f"={len(words)}I", *words)
            if now == state:
                inode = f"socket:[{rest[5]}]"
                name = socket.inet_ntop(family, packed).removeprefix("::ffff:")
                found[inode] = Socket(name, int(port, 16))
    held = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed between the two looks.
        with contextlib.suppress(FileNotFoundError):
            held.append(os.readlink(descriptor))
    return [found[inode] for inode in held if inode in found]


class Serving:
    """A service that was started, and ways to look at it from outside.

    Args:
        log: What it prints, both streams.
        settings: Those it was given.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, settings: Mapping[str, str]
    ) -> None:
        self.process = process
        self._log = log
        self.metrics_port = int(settings["AUTHZ_METRICS_LISTEN"].rpartition(":")[2])
        self._channels: list[grpc.Channel] = []
        self.address = self._said("serving on ").partition(" ")[0]

    @property
    def said(self) -> str:
        """Everything it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def credential(self) -> str:
        """The first credential, as it prints it."""
        return self._said("AUTHZ_FIRST_CREDENTIAL: made up, with scope admin: ")

    def _said(self, beginning: str) -> str:
        def found() -> str:
            # The last line may not be whole yet.
            for line in self.said.splitlines(keepends=True):
                if line.startswith(beginning) and line.endswith("\n"):
                    return line.removeprefix(beginning).strip()
            assert self.process.poll() is None, self.said
            return ""

        return str(until(found, f"{beginning!r} was printed"))

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines about one kind of event, in order."""
        lines = self.said.splitlines(keepends=True)
        whole = (line for line in lines if line.startswith("{") and line.endswith("\n"))
        return [entry for entry in map(json.loads, whole) if entry.get("event") == name]

    def channel(self, **changes: Any) -> grpc.Channel:
        """Opens a connection of its own.

        Args:
            changes: ``address``, ``trust`` (credentials of a TLS client).
        """
        address = changes.get("address", self.address)
        # Failures are shown at once, and no two channels share a connection.
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        if "trust" in changes:
            channel = grpc.secure_channel(address, changes["trust"], options)
        else:
            channel = grpc.insecure_channel(address, options)
        self._channels.append(channel)
        return channel

    def caller(self, channel: grpc.Channel | None = None, **changes: Any) -> Caller:
        """An unrestricted admin."""
        way = through_channel(channel or self.channel(**changes), seconds=SECONDS)
        return Caller(way, self.credential)

    def get(self, path: str) -> tuple[int, str]:
        """Asks the metrics listener; returns status and text."""
        connection = HTTPConnection(LOOPBACK, self.metrics_port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def sample(self, name: str, **labels: str) -> float:
        """The value of a sample; 0 while there is none."""
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for found in family.samples:
                if found.name == name and found.labels == labels:
                    return float(found.value)
        return 0.0

    def workers(self) -> list[int]:
        """Process ids of its workers that live, in the order of their starts."""
        started = [event["pid"] for event in self.events("worker_started")]
        ended = {event["pid"] for event in self.events("worker_ended")}
        return [pid for pid in started if pid not in ended]

    def connections(self, pid: int) -> int:
        """How many connections to the gRPC address a process holds."""
        port = int(self.address.rpartition(":")[2])
        return [one.port for one in sockets(pid, ESTABLISHED)].count(port)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def code(self) -> int:
        """Waits for its end and returns its exit code."""
        # An idle client of grpcio looks at its connection every five seconds only, and until then
        # the server waits for its farewell.
        for channel in self._channels:
            channel.close()
        return self.process.wait(SECONDS)

    def close(self) -> None:
        """Ends the process, whatever state it is in."""
        if self.process.poll() is None:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.code()


@contextlib.contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Serving]:
    """Runs ``authz serve --dev`` with these settings, on ports of its own."""
    given = {
        "AUTHZ_DATABASE_URL": f"sqlite:///{folder / 'authz.db'}",
        "AUTHZ_LISTEN": f"{LOOPBACK}:0",
        "AUTHZ_METRICS_LISTEN": f"{LOOPBACK}:{free_port()}",
        "AUTHZ_RATE_PER_SECOND": "0",
        **settings,
    }
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            COMMAND,
            env=environment(**given),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    with contextlib.ExitStack() as exits:
        exits.callback(process.wait)
        exits.callback(process.kill)
        running = Serving(process, log, given)
        exits.callback(running.close)
        yield running

"""The clients that call a front, each behind the same few methods.

Two are grpcio's, in this process. Two are programs of ours with the libraries of Go and Node; they
read calls from a pipe and write what they saw of each.
"""

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from tests.conformance.fronts import echo
from tests.conformance.fronts.echo import SECONDS

FOLDER = Path(__file__).parent
DETAILS = "grpc-status-details-bin"
BEARER = (("authorization", f"Bearer {echo.BEARER}"),)
Pairs = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Ask:
    """One call.

    Attributes:
        seconds: The deadline, 0 for none.
    """

    payload: bytes = b""
    path: str = echo.PATH
    metadata: Pairs = BEARER
    seconds: float = SECONDS
    gzip: bool = False


@dataclass(frozen=True)
class Seen:
    """How a call ended, as its client tells it. ``details`` is the packed google.rpc.Status."""

    code: str
    message: str
    payload: bytes
    details: bytes
    initial: Mapping[str, list[bytes]] = field(default_factory=dict)
    trailing: Mapping[str, list[bytes]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trust:
    """Files of a TLS client, as paths."""

    authority: str
    certificate: str = ""
    key: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns grpcio's form of them."""
        read = [
            Path(path).read_bytes() if path else None
            for path in (self.authority, self.key, self.certificate)
        ]
        return grpc.ssl_channel_credentials(*read)


class Going(Protocol):
    """A call under way."""

    def seen(self) -> Seen:
        """Waits for its end."""

    def cancel(self) -> None:
        """Cancels it."""


class Client:
    """A client with a connection of its own."""

    def told(self, metadata: Mapping[str, list[bytes]]) -> dict[str, list[bytes]]:
        """Returns how it tells metadata that came with doubled keys: as they came."""
        return dict(metadata)

    def start(self, ask: Ask) -> Going:
        """Starts a call."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends it and its connection."""
        raise NotImplementedError


def see(client: Client, ask: Ask) -> Seen:
    """Makes a call and waits for its end."""
    return client.start(ask).seen()


def _listed(pairs: Any) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for key, value in pairs or ():
        found.setdefault(key, []).append(value.encode() if isinstance(value, str) else value)
    return found


def _options(more: Any) -> list[tuple[str, Any]]:
    return [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        *more,
    ]


def _channel(module: Any, address: str, trust: Trust | None, more: Any) -> Any:
    if trust is None:
        return module.insecure_channel(address, options=_options(more))
    return module.secure_channel(address, trust.credentials(), options=_options(more))


class Sync(Client):
    """grpcio with threads."""

    def __init__(self, address: str, trust: Trust | None = None, *options: Any) -> None:
        self.channel = _channel(grpc, address, trust, options)

    def start(self, ask: Ask) -> "_Synced":
        """Starts a call."""
        return _Synced(
            self.channel.unary_unary(ask.path).future(
                ask.payload,
                metadata=ask.metadata,
                timeout=ask.seconds or None,
                compression=grpc.Compression.Gzip if ask.gzip else None,
            )
        )

    def close(self) -> None:
        """Ends it and its connection."""
        self.channel.close()


class _Synced:
    def __init__(self, call: Any) -> None:
        self._call = call

    def seen(self) -> Seen:
        call = self._call
        try:
            payload = call.result(timeout=SECONDS * 2)
        except (grpc.RpcError, grpc.FutureCancelledError):
            payload = b""
        trailing = _listed(call.trailing_metadata())
        return Seen(
            call.code().name, call.details() or "", payload,
            trailing.get(DETAILS, [b""])[0], _listed(call.initial_metadata()), trailing,
        )  # fmt: skip

    def cancel(self) -> None:
        self._call.cancel()


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="aio", daemon=True)
        self._thread.start()

    def run(self, steps: Any) -> Any:
        """Runs a coroutine there and returns what it returns."""
        return asyncio.run_coroutine_threadsafe(steps, self.loop).result(SECONDS * 2)

    def close(self) -> None:
        """Ends the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Aio(Client):
    """grpcio with asyncio."""

    def __init__(self, loop: Loop, address: str, trust: Trust | None = None) -> None:
        self._loop = loop
        self._channel = loop.run(self._opened(address, trust))

    @staticmethod
    async def _opened(address: str, trust: Trust | None) -> Any:
        return _channel(grpc.aio, address, trust, ())

    def start(self, ask: Ask) -> "_Awaited":
        """Starts a call."""
        return _Awaited(self._loop, self._loop.run(self._started(ask)))

    async def _started(self, ask: Ask) -> Any:
        return self._channel.unary_unary(ask.path)(
            ask.payload,
            metadata=ask.metadata,
            timeout=ask.seconds or None,
            compression=grpc.Compression.Gzip if ask.gzip else None,
        )

    def close(self) -> None:
        """Ends it and its connection."""
        self._loop.run(self._channel.close())


class _Awaited:
    def __init__(self, loop: Loop, call: Any) -> None:
        self._loop, self._call = loop, call

    def seen(self) -> Seen:
        found: Seen = self._loop.run(self._seen())
        return found

    async def _seen(self) -> Seen:
        call = self._call
        try:
            payload = await call
        except (grpc.RpcError, asyncio.CancelledError):
            payload = b""
        trailing = _listed(await call.trailing_metadata())
        return Seen(
            (await call.code()).name, await call.details() or "", payload,
            trailing.get(DETAILS, [b""])[0], _listed(await call.initial_metadata()), trailing,
        )  # fmt: skip

    def cancel(self) -> None:
        self._loop.loop.call_soon_threadsafe(self._call.cancel)


class Program(Client):
    """A client in a process of its own."""

    def __init__(self, command: list[str], address: str, trust: Trust | None = None) -> None:
        files = [] if trust is None else [trust.authority, trust.certificate, trust.key]
        self._process = subprocess.Popen(
            [*command, address, *filter(None, files)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self._going: dict[int, Future[Seen]] = {}
        self._reader = threading.Thread(target=self._read, name="program", daemon=True)
        self._reader.start()

    def start(self, ask: Ask) -> "_Piped":
        """Starts a call."""
        with self._lock:
            id = len(self._going)
            self._going[id] = Future()
        pairs = [
            [key, value.hex() if isinstance(value, bytes) else value] for key, value in ask.metadata
        ]
        order = {
            "ID": id, "Path": ask.path, "Payload": ask.payload.hex(), "Metadata": pairs,
            "Seconds": ask.seconds, "Gzip": ask.gzip,
        }  # fmt: skip
        self.send(order)
        return _Piped(self, id, self._going[id])

    def send(self, order: dict[str, Any]) -> None:
        """Writes one line of the program's input."""
        pipe = self._process.stdin
        assert pipe is not None
        with self._lock:
            pipe.write(json.dumps(order) + "\n")
            pipe.flush()

    def close(self) -> None:
        """Ends it and its connection."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = json.loads(line)
            seen = Seen(
                found["Code"], found["Message"], bytes.fromhex(found["Payload"]),
                bytes.fromhex(found["Details"]), _unpacked(found["Initial"]),
                _unpacked(found["Trailing"]),
            )  # fmt: skip
            self._going[found["ID"]].set_result(seen)


class Joining(Program):
    """Such a client whose HTTP/2 joins doubled keys before anybody sees them: Node's."""

    def told(self, metadata: Mapping[str, list[bytes]]) -> dict[str, list[bytes]]:
        """Returns the values joined, but those of binary keys, which are taken apart again."""
        return {
            key: values if key.endswith("-bin") else [b", ".join(values)]
            for key, values in metadata.items()
        }


@dataclass(frozen=True)
class _Piped:
    program: Program
    id: int
    future: "Future[Seen]"

    def seen(self) -> Seen:
        return self.future.result(SECONDS * 2)

    def cancel(self) -> None:
        self.program.send({"ID": self.id, "Cancel": True})


def _unpacked(found: dict[str, list[str]]) -> dict[str, list[bytes]]:
    return {key: [bytes.fromhex(value) for value in values] for key, values in found.items()}


# Programs need toolchains, and their modules in the caches of these: nothing is fetched here.


def built_go(folder: Path) -> list[str]:
    """Builds the client in Go; returns its command. First: ``go mod download`` in its folder."""
    program = folder / "conformance_client"
    variables = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    _run([_tool("go"), "build", "-o", str(program), "."], FOLDER / "go", **variables)
    return [str(program)]


def built_js(folder: Path) -> list[str]:
    """Installs the client for Node; returns its command. First: ``npm ci`` in its folder."""
    place = folder / "js"
    shutil.copytree(FOLDER / "js", place, ignore=shutil.ignore_patterns("node_modules"))
    _run([_tool("npm"), "ci", "--offline", "--ignore-scripts"], place)
    return [_tool("node"), str(place / "client.js")]


def _tool(name: str) -> str:
    found = shutil.which(name)
    assert found, f"no {name} on PATH"
    return found


def _run(command: list[str], folder: Path, **variables: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

"""What an answer of the decision front costs, beside an empty RPC on a bare grpcio server (E0).

A client of grpc-go (benchmarks/load) asks both in turn, so that the machine's mood meets all. The
CPU time of the serving process and of Valkey is counted; the client compares every answer.
"""

import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.server import prepare
from authz_service.stack.postgresql import postgresql
from authz_service.stack.valkey import valkey
from benchmarks import cached, empty
from benchmarks.processes import Served, cpu_seconds, service
from benchmarks.world import World, build

CHECK = "/authz.v1.AuthorizationService/Check"
BATCH = "/authz.v1.AuthorizationService/BatchCheck"


@contextlib.contextmanager
def load_client() -> Iterator[Path]:
    """Builds the load client, which needs a Go toolchain."""
    with tempfile.TemporaryDirectory(prefix="authz-load-") as folder:
        program = Path(folder) / "load"
        subprocess.run(
            ["go", "build", "-o", str(program), "."],
            cwd=Path(__file__).parent / "load",
            check=True,
        )
        yield program


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked what.

    Attributes:
        pids: Processes whose time is the server's.
        answers: What each answer begins with; empty = not compared.
    """

    address: str
    method: str
    bearer: str
    pids: tuple[int, ...]
    requests: Sequence[bytes]
    answers: Sequence[bytes] = ()
    ca: str = ""


def ask(
    program: Path, target: Target, *, calls: int, in_flight: int = 1, **options: Any
) -> dict[str, Any]:
    """Lets the client ask, and returns what it tells, with the server's microseconds a call."""
    with tempfile.TemporaryDirectory(prefix="authz-load-") as folder:
        command = [
            str(program), "-address", target.address, "-method", target.method,
            "-calls", str(calls), "-in-flight", str(in_flight),
        ]  # fmt: skip
        for name, lines in (("requests", target.requests), ("answers", target.answers)):
            if lines:
                path = Path(folder) / name
                path.write_text("\n".join(line.hex() for line in lines) + "\n")
                command += [f"-{name}", str(path)]
        if target.ca:
            command += ["-ca", target.ca]
        for name, value in options.items():
            flag = "-" + name.replace("_", "-")
            command += [flag] if value is True else [flag, str(value)]
        before = [cpu_seconds(pid) for pid in target.pids]
        told = subprocess.run(
            command, env={**os.environ, "LOAD_BEARER": target.bearer}, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        spent = sum(cpu_seconds(pid) for pid in target.pids) - sum(before)
    found: dict[str, Any] = json.loads(told.stdout)
    found["server_us"] = spent / calls * 1e6
    return found

"""What an answer of the decision front costs, beside an empty RPC on a bare grpcio server (E0).

A client of grpc-go (benchmarks/load) asks both in turn, so that the machine's mood meets all. The
CPU time of the serving process and of Valkey is counted; the client compares every answer.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from authz_service.server import prepare
from authz_service.stack.postgresql import postgresql
from authz_service.stack.valkey import valkey
from benchmarks import cached, empty
from benchmarks.decisions import MEDIUM as WORLD
from benchmarks.processes import cpu_seconds, machine, service
from benchmarks.world import build

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


def run(*, rounds: int = 5, calls: int = 20_000) -> list[dict[str, Any]]:
    """Returns one row a question: medians, and the median of the ratios to E0 of its round."""
    with (
        load_client() as program,
        postgresql() as database,
        valkey() as redis,
        tempfile.TemporaryDirectory(prefix="authz-front-") as folder,
    ):
        url = database.url_of("postgres")
        prepare(url)
        asked = cached.questions(build(url, **WORLD), calls=calls)
        certificate, key = _certificate(Path(folder))
        port = _free_port()
        with (
            service(
                url, AUTHZ_REDIS_URL=redis.url, AUTHZ_DECISIONS_LISTEN=f"unix:{folder}/plain"
            ) as plain,
            service(
                url,
                AUTHZ_REDIS_URL=redis.url,
                AUTHZ_DECISIONS_LISTEN=f"127.0.0.1:{port}",
                AUTHZ_HEALTH_LISTEN=f"unix:{folder}/health",
                AUTHZ_TLS_CERTIFICATE=certificate,
                AUTHZ_TLS_KEY=key,
            ) as sealed,
        ):
            bare = empty._Server(empty._serve_bare)
            e0 = Target(bare.address, empty.PATH, "none", (bare.pid,), [b""])
            strict, stale, batch = (asked[place].requests for place in (0, 2, 4))
            at = Target(f"unix:{folder}/plain", CHECK, plain.bearer, (plain.pid,), strict)
            everything = replace(at, address=plain.address)
            tls = Target(
                f"127.0.0.1:{port}", CHECK, sealed.bearer, (sealed.pid,), strict, ca=certificate
            )
            rows = [
                _measured(program, e0, target, redis.pid, name, in_flight, rounds, calls, options)
                for name, target, in_flight, options in (
                    ("strict Check at AUTHZ_LISTEN", everything, 1, {}),
                    ("strict Check at AUTHZ_LISTEN", everything, 16, {}),
                    ("strict Check", at, 1, {}),
                    ("strict Check", at, 16, {}),
                    ("strict Check", at, 64, {}),
                    ("strict Check, TLS", tls, 16, {}),
                    ("strict Check, two new metadata values", at, 16, {"fresh_metadata": True}),
                    ("Check up to 60 s old", replace(at, requests=stale), 16, {}),
                )
            ]
            rows.append(
                _measured(
                    program, e0, replace(at, method=BATCH, requests=batch), redis.pid,
                    "BatchCheck of 1,000", 1, rounds, max(100, calls // 100), {},
                )
            )  # fmt: skip
            bare.close()
    return rows


def _measured(
    program: Path,
    e0: Target,
    target: Target,
    redis_pid: int,
    name: str,
    in_flight: int,
    rounds: int,
    calls: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    ask(program, target, calls=calls, in_flight=in_flight)
    found = []
    for _ in range(rounds):
        base = ask(program, e0, calls=4_000, in_flight=min(in_flight, 16))
        before = cpu_seconds(redis_pid)
        told = ask(program, target, calls=calls, in_flight=in_flight, **options)
        redis = (cpu_seconds(redis_pid) - before) / calls * 1e6
        if told["good"] != calls:
            raise RuntimeError(f"{name}: {told}")
        found.append(
            (base["server_us"], told["server_us"], redis, told["p50_us"], told["p99_us"],
             calls / told["seconds"])
        )  # fmt: skip
    e0_us, server, redis, p50, p99, rate = (
        statistics.median(column) for column in zip(*found, strict=True)
    )
    ratios = sorted(row[1] / row[0] for row in found)
    return {
        "question": name,
        "in_flight": in_flight,
        "e0_us": round(e0_us, 1),
        "server_us": round(server, 1),
        "redis_us": round(redis, 1),
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "p50_us": round(p50),
        "p99_us": round(p99),
        "per_second": round(rate),
    }


def _certificate(folder: Path) -> tuple[str, str]:
    """Makes a certificate for localhost that is its own authority."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return str(certificate), str(key)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    """Prints one JSON line of the machine and one for each question."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20_000)
    options = parser.parse_args()
    for row in (machine(), *run(rounds=options.rounds, calls=options.calls)):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

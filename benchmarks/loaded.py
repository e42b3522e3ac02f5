"""Decisions under load: at 70 % of the peak, beside misses and lists, in overload, by two workers.

Ratios are made within a round, and each row has their median and range. The load client writes
frames itself (`load -frames`, benchmarks/load/frames.go), for it shares the machine with server,
PostgreSQL and Valkey: with gRPC's library it takes as much CPU as the server, and the tail shows
the client. `load_*` tells how much of a core each took, `load_others` what ran besides. A round
begins when the machine is idle, or after waiting for that for a while; up to two in which others
took much are made again, and those with the least of it count, whatever they say. Answers to hits
are compared; `good` is the share of calls that were answered OK. In open loops times are counted
from when a call was due; `late_p99_us` is the client's part of them.

tail: The peak is a closed loop of 64 calls; the times are those of an open loop at 70 % of it, for
    each front, and for decisions at the rate of grpcio's (`same_rate`).
misses: Hits in an open loop at a fixed rate, alone and beside a second client whose questions, 5 %
    of all, name subjects and resources that nobody asked about before. Each client tells its own
    times.
list: Hits in the same open loop, alone and beside a client that lists 10,000 resources of a
    subject at AUTHZ_LISTEN, in pages of 1,000, again and again.
overload: An open loop of four times the peak, and one of twice, of calls with 100 ms of time, over
    so many connections that their limit of streams holds nothing back. Goodput is what was answered
    OK within its time, by the client's clock, as a share of the peak over as many connections.
workers: One worker and two, each with 64 calls in flight a worker, over 16 connections that the
    kernel spreads over them (`share` is the part of the CPU time that the busier one spent). With
    fewer cores than busy processes the raw ratio says what was left over for the second worker.
    `possible` is calls / (CPU seconds of all workers / their number): the rate if each worker had a
    core for itself, and all of it. So that ratio is 2 x (CPU a call of one worker) / (CPU a call of
    two). It counts what working side by side costs in CPU, the crowd on these cores included, and
    cannot count what waiting for each other, or for Valkey, would cost. The supervisor's time is
    left out; it sleeps.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.server import prepare
from authz_service.stack.postgresql import Server, postgresql
from authz_service.stack.valkey import valkey
from benchmarks import cached
from benchmarks.decisions import READ, SERVICE, _resource, _subject
from benchmarks.front import CHECK, Target, _free_port, load_client
from benchmarks.processes import (
    Served,
    cpu_seconds,
    cpu_seconds_of_children,
    machine,
    service,
)
from benchmarks.world import World, build

WORLD = {"organizations": 4, "members": 6_000, "documents": 10_000, "each": 4}
LIST = SERVICE + "ListResources"
IN_FLIGHT = 64
# Of the open loops beside misses and lists: about a tenth of the peak.
RATE = 2_000
MISSES = 0.05
DEADLINE = 0.1
# More calls than a closed loop makes in its seconds.
MANY = 1_000_000
# The machine is idle if less than this of a core is in use; it is waited for this long.
IDLE = 0.15
IDLE_SECONDS_MAX = 5.0
# Of a core, by others, in a round that counts; second clients of ours are among them.
OTHERS_MAX = 0.25
# Rounds that are made again, of a row.
AGAIN_MAX = 2
CONNECTIONS = 8
# Enough streams for all calls of an overload that are within their time.
OVERLOAD_CONNECTIONS = 96


@dataclass
class Bench:
    """What is measured with, and what it runs on.

    Attributes:
        targets: Hits, by front.
        pairs: Subjects and resources that nobody has asked about yet.
        pages: Requests of the pages of a long list.
        others: The most of a core that anybody else took since this was set to 0.
    """

    program: Path
    folder: Path
    targets: dict[str, Target]
    pairs: Iterator[tuple[str, str]]
    pages: Sequence[bytes]
    database: Server
    redis_pid: int
    seconds: float
    others: float = 0.0
    files: dict[tuple[bytes, ...], Path] = field(default_factory=dict)

    def start(
        self, target: Target, *, calls: int = MANY, frames: bool = True, **options: Any
    ) -> subprocess.Popen[str]:
        """Lets a client begin to ask."""
        command = [str(self.program), "-address", target.address, "-method", target.method,
                   "-calls", str(calls), "-requests", str(self._file(target.requests))]  # fmt: skip
        if frames:
            command.append("-frames")
        if target.answers:
            command += ["-answers", str(self._file(target.answers))]
        for name, value in options.items():
            command += ["-" + name.replace("_", "-"), str(value)]
        return subprocess.Popen(
            command, env={**os.environ, "LOAD_BEARER": target.bearer, "GOGC": "400"},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, target: Target, **options: Any) -> dict[str, Any]:
        """Lets a client ask; returns what it tells, and the CPU of everybody."""
        with self.counted(target.pids) as spent:
            found = ended(self.start(target, **options))
        spent["client"] = found["cpu_seconds"]
        known = sum(spent[name] for name in ("server", "client", "postgresql", "redis"))
        others = max(0.0, spent["machine"] - known)
        self.others = max(self.others, others / spent["wall"])
        return {**found, **spent, "others": others}

    @contextlib.contextmanager
    def counted(self, pids: Sequence[int]) -> Iterator[dict[str, float]]:
        """Counts CPU seconds and the time while it runs."""

        def now() -> dict[str, float]:
            return {
                "server": sum(map(cpu_seconds, pids)),
                "postgresql": cpu_seconds_of_children(self.database.pid),
                "redis": cpu_seconds(self.redis_pid),
                "machine": _busy_seconds(),
                "wall": time.monotonic(),
            }

        spent: dict[str, float] = {}
        before = now()
        yield spent
        spent.update({name: value - before[name] for name, value in now().items()})

    def _file(self, lines: Sequence[bytes]) -> Path:
        key = tuple(lines)
        if key not in self.files:
            self.files[key] = self.folder / f"lines-{len(self.files)}"
            self.files[key].write_text("".join(line.hex() + "\n" for line in lines))
        return self.files[key]


def ended(client: subprocess.Popen[str]) -> dict[str, Any]:
    """Waits for a client and returns what it tells.

    Raises:
        RuntimeError: It failed, or an answer was not what it should be.
    """
    text, _ = client.communicate()
    if client.returncode:
        raise RuntimeError(f"the load client ended with {client.returncode}")
    found: dict[str, Any] = json.loads(text)
    if found["wrong"]:
        raise RuntimeError(f"wrong answers: {found}")
    return found


def tail(bench: Bench) -> dict[str, float]:
    """Returns the peak of each front, and times at 70 % of it."""
    row: dict[str, float] = {}
    options = {"connections": CONNECTIONS, "timeout": 1}
    for front, target in bench.targets.items():
        peak = bench.ask(
            target, in_flight=IN_FLIGHT, seconds=bench.seconds / 2, connections=CONNECTIONS
        )
        rate = 0.7 * peak["good"] / peak["seconds"]
        found = bench.ask(target, rate=rate, calls=int(rate * bench.seconds), **options)
        row |= {
            f"{front}_peak_per_second": peak["good"] / peak["seconds"],
            f"{front}_peak_server_us": peak["server"] / peak["good"] * 1e6,
            f"{front}_server_us": found["server"] / found["good"] * 1e6,
            **_times(found, f"{front}_"),
            **_load(found, f"{front}_"),
        }
    # The rate is grpcio's now.
    same = bench.ask(
        bench.targets["decisions"], rate=rate, calls=int(rate * bench.seconds), **options
    )
    return {
        "p99_ratio": row["decisions_p99_us"] / row["grpcio_p99_us"],
        "same_rate_p99_ratio": same["p99_us"] / row["grpcio_p99_us"],
        **row,
        **_times(same, "same_rate_"),
    }


def misses(bench: Bench) -> dict[str, float]:
    """Returns times of hits at a fixed rate, alone and with questions that need SQL beside them."""
    target = bench.targets["decisions"]
    calls = int(RATE * (1 - MISSES) * bench.seconds)
    options = {"rate": RATE * (1 - MISSES), "calls": calls, "connections": CONNECTIONS}
    alone = bench.ask(target, **options)
    count = int(RATE * MISSES * bench.seconds)
    new = replace(target, requests=[_check(*next(bench.pairs)) for _ in range(count)], answers=())
    client = bench.start(new, rate=RATE * MISSES, calls=count)
    beside = bench.ask(target, **options)
    missed = ended(client)
    return {
        "p50_ratio": beside["p50_us"] / alone["p50_us"],
        "p99_ratio": beside["p99_us"] / alone["p99_us"],
        **_times(alone, "alone_"),
        **_times(beside, "beside_"),
        **_times(missed, "miss_"),
        **_load(beside),
    }


def lists(bench: Bench) -> dict[str, float]:
    """Returns times of hits at a fixed rate, alone and with a list of 10,000 rows beside them."""
    target = bench.targets["decisions"]
    calls = int(RATE * bench.seconds)
    options = {"rate": RATE, "calls": calls, "connections": CONNECTIONS}
    alone = bench.ask(target, **options)
    every = replace(bench.targets["grpcio"], method=LIST, requests=bench.pages, answers=())
    # Through gRPC's library, which opens the windows that large answers need.
    client = bench.start(every, frames=False, in_flight=1, seconds=bench.seconds)
    beside = bench.ask(target, **options)
    listed = ended(client)
    return {
        "p99_ratio": beside["p99_us"] / alone["p99_us"],
        **_times(alone, "alone_"),
        **_times(beside, "beside_"),
        "pages_per_second": listed["good"] / listed["seconds"],
        "page_p50_us": listed["p50_us"],
        **_load(beside),
    }


def overload(bench: Bench, front: str) -> dict[str, float]:
    """Returns what is answered in time at four times the peak, as a share of it."""
    target = bench.targets[front]
    peak = bench.ask(
        target, in_flight=IN_FLIGHT, seconds=bench.seconds / 2, connections=OVERLOAD_CONNECTIONS
    )
    highest = peak["good"] / peak["seconds"]
    row: dict[str, float] = {"peak_per_second": highest}
    for name, times in (("twice_", 2), ("", 4)):
        rate = times * highest
        found = bench.ask(
            target,
            rate=rate,
            calls=int(rate * bench.seconds),
            timeout=DEADLINE,
            connections=OVERLOAD_CONNECTIONS,
        )
        row |= {
            f"{name}goodput_of_peak": found["good"] / (found["calls"] / rate) / highest,
            **{f"{name}{code.lower()}": n / found["calls"] for code, n in found["codes"].items()},
            **_times(found, name),
        }
    return row | _load(found)


def workers(bench: Bench, one: Target, two: Target) -> dict[str, float]:
    """Returns what two workers give, and what their calls cost, beside one."""
    raw, possible = [], []
    loads: dict[str, float] = {}
    for number, target in ((1, one), (2, two)):
        before = [cpu_seconds(pid) for pid in target.pids]
        peak = bench.ask(
            target, in_flight=number * IN_FLIGHT, connections=16, seconds=bench.seconds / 2
        )
        spent = [cpu_seconds(pid) - t for pid, t in zip(target.pids, before, strict=True)]
        raw.append(peak["good"] / peak["seconds"])
        possible.append(number * peak["good"] / peak["server"])
        name = "two_" if target is two else "one_"
        loads |= {name + "good": peak["good"] / peak["calls"], **_load(peak, name)}
    return {
        "raw_ratio": raw[1] / raw[0],
        "share": max(spent) / sum(spent),
        "possible_ratio": possible[1] / possible[0],
        "one_per_second": raw[0],
        "two_per_second": raw[1],
        "one_possible_per_second": possible[0],
        "two_possible_per_second": possible[1],
        **loads,
    }


def run(
    scenes: Sequence[str], *, rounds: int = 5, seconds: float = 2.0
) -> Iterator[dict[str, Any]]:
    """Yields the rows, medians of all rounds, as soon as they are measured."""
    alone = {"tail": tail, "misses": misses, "list": lists}
    with (
        load_client() as program,
        postgresql() as database,
        valkey() as redis,
        tempfile.TemporaryDirectory(prefix="authz-loaded-") as folder,
    ):
        url = database.url_of("postgres")
        prepare(url)
        world = build(url, **WORLD)
        with _service(url, redis.url, folder) as (served, decisions):
            targets = _targets(world, served, decisions)
            bench = Bench(
                program, Path(folder), targets, _pairs(world),
                _pages(world, served), database, redis.pid, seconds,
            )  # fmt: skip
            for target in targets.values():
                bench.ask(target, in_flight=16, seconds=2)
            for name in scenes:
                if name == "overload":
                    for front in targets:
                        yield _row(
                            name, _rounds(bench, partial(overload, front=front), rounds), front
                        )
                elif name != "workers":
                    yield _row(name, _rounds(bench, alone[name], rounds))
            if "workers" in scenes:
                with _service(url, redis.url, folder, workers=2) as (both, address):
                    pids = _children(both.pid)
                    two = replace(
                        targets["decisions"], address=address, bearer=both.bearer, pids=pids
                    )
                    bench.ask(two, in_flight=16, connections=16, seconds=4)
                    measured = partial(workers, one=targets["decisions"], two=two)
                    yield _row("workers", _rounds(bench, measured, rounds))


@contextlib.contextmanager
def _service(
    url: str, redis_url: str, folder: str, *, workers: int = 1
) -> Iterator[tuple[Served, str]]:
    """Runs a service on TCP ports; yields it, and the address of its decision front."""
    everything, decisions, health = (f"127.0.0.1:{_free_port()}" for _ in range(3))
    with service(
        url,
        AUTHZ_REDIS_URL=redis_url,
        AUTHZ_WORKERS=str(workers),
        AUTHZ_LISTEN=everything,
        AUTHZ_DECISIONS_LISTEN=decisions,
        AUTHZ_HEALTH_LISTEN=health,
        # As configured by default: the benchmarks' own service lets calls wait for ten.
        AUTHZ_QUEUE_SECONDS_MAX="0.5",
    ) as served:
        yield replace(served, address=everything), decisions


def _targets(world: World, served: Served, decisions: str) -> dict[str, Target]:
    requests = cached.questions(world, calls=1)[0].requests
    with grpc.insecure_channel(served.address) as channel:
        answers = [
            pb.CheckResponse.FromString(_called(channel, CHECK, request, served.bearer))
            for request in requests
        ]
    for answer in answers:
        # The last field, and another one in every answer.
        answer.ClearField("consistency_token")
    expected = [answer.SerializeToString() for answer in answers]
    at = Target(decisions, CHECK, served.bearer, (served.pid,), requests, expected)
    return {"decisions": at, "grpcio": replace(at, address=served.address)}


def _pairs(world: World) -> Iterator[tuple[str, str]]:
    for organization in world.organizations:
        # Those before are asked about in hits.
        members = organization.members[cached.HOT :]
        yield from zip(members, organization.documents[cached.HOT :], strict=False)


def _check(member: str, document: str) -> bytes:
    return pb.CheckRequest(
        subject=_subject(member), permission_slug=READ, resource=_resource(document)
    ).SerializeToString()


def _pages(world: World, served: Served) -> list[bytes]:
    """Returns the requests of all pages of a list, and sees that it is long."""
    request = pb.AuthorizationServiceListResourcesRequest(
        subject=_subject(world.overseer), permission_slugs=[READ], page_size=1_000
    )
    made, rows = [], 0
    with grpc.insecure_channel(served.address) as channel:
        while True:
            made.append(request.SerializeToString())
            answer = pb.AuthorizationServiceListResourcesResponse.FromString(
                _called(channel, LIST, made[-1], served.bearer)
            )
            rows += len(answer.items)
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
    if rows < 10_000:
        raise RuntimeError(f"the list has {rows} rows only")
    return made


def _called(channel: grpc.Channel, path: str, request: bytes, bearer: str) -> bytes:
    metadata = (("authorization", f"Bearer {bearer}"),)
    answer: bytes = channel.unary_unary(path, None, None)(request, metadata=metadata, timeout=60)
    return answer


def _children(pid: int) -> tuple[int, ...]:
    return tuple(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid
    )


def _rounds(
    bench: Bench, scene: Callable[[Bench], dict[str, float]], rounds: int
) -> list[dict[str, float]]:
    """Returns rounds in which nobody else took much, as far as that can be had."""
    found: list[tuple[float, dict[str, float]]] = []
    for _ in range(rounds + AGAIN_MAX):
        _wait_for_idle()
        bench.others = 0.0
        row = scene(bench)
        found.append((bench.others, row))
        if sum(others <= OTHERS_MAX for others, _ in found) >= rounds:
            break
    found.sort(key=lambda each: each[0])
    return [row for _, row in found[:rounds]]


def _wait_for_idle() -> None:
    """Waits until nothing else runs, at most for a while."""
    until = time.monotonic() + IDLE_SECONDS_MAX
    while time.monotonic() < until:
        before = _busy_seconds()
        time.sleep(0.5)
        if _busy_seconds() - before < IDLE / 2:
            return


def _busy_seconds() -> float:
    """Returns the CPU seconds of the whole machine so far."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _times(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    names = ("p50_us", "p99_us", "p999_us", "late_p99_us")
    return {prefix + "good": found["good"] / found["calls"]} | {
        prefix + name: found[name] for name in names
    }


def _load(found: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """Returns the share of a core that each took."""
    names = ("server", "client", "postgresql", "redis", "others")
    return {f"{prefix}load_{name}": found[name] / found["wall"] for name in names}


def _row(scene: str, rounds: Sequence[Mapping[str, float]], front: str = "") -> dict[str, Any]:
    """Returns medians; of ratios and shares of the peak the range too."""
    row: dict[str, Any] = {"scene": scene, **({"front": front} if front else {})}
    row["rounds"] = len(rounds)
    for name in dict.fromkeys(name for one in rounds for name in one):
        values = sorted(one.get(name, 0.0) for one in rounds)
        middle = statistics.median(values)
        row[name] = round(middle) if middle >= 100 else round(middle, 3)
        if name.endswith(("_ratio", "_of_peak")):
            row[f"{name}_range"] = [round(values[0], 3), round(values[-1], 3)]
    return row


SCENES = ("tail", "misses", "list", "overload", "workers")


def main() -> None:
    """Prints one JSON line of the machine and one for each row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("scenes", nargs="*", metavar="scene", help=" ".join(SCENES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(machine()) + "\n")
    for row in run(options.scenes or SCENES, rounds=options.rounds, seconds=options.seconds):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What the hall adds to a call: an empty RPC through it, beside two that do not pass it.

E1 is an empty RPC through every step. E0 is a health check on the same server, which passes none;
*bare* is an empty RPC on a grpcio server without anything of ours, its switch interval included.
Rounds of the three alternate, so that the machine's mood meets all; what is compared is the CPU
time of the server processes per call. Run it as a program, or call `run`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from authz_service.base.secrets import Secret
from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.rpc.access_log import AccessLog
from authz_service.rpc.admission import Admission
from authz_service.rpc.auth import Authenticator
from authz_service.rpc.call import Context
from authz_service.rpc.fronts.grpcio import Front
from authz_service.rpc.fronts.listeners import Listener
from authz_service.rpc.hall import Hall
from authz_service.rpc.rate import Rate
from authz_service.telemetry import logs
from authz_service.telemetry.logs import Lines
from authz_service.telemetry.metrics import Metrics

PATH = "/authz.bench.EmptyService/Empty"
HEALTH = "/grpc.health.v1.Health/Check"
THREADS = 8
SECRET = "azc_of_the_benchmark_only"


def _service() -> Any:
    """Returns the descriptor of a service with one empty RPC."""
    file = FileDescriptorProto(name="authz/bench/empty.proto", package="authz.bench")
    file.syntax = "proto3"
    file.dependency.append("authz/v1/options.proto")
    file.message_type.add(name="EmptyRequest")
    file.message_type.add(name="EmptyResponse")
    method = file.service.add(name="EmptyService").method.add(name="Empty")
    method.input_type = ".authz.bench.EmptyRequest"
    method.output_type = ".authz.bench.EmptyResponse"
    method.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    method.options.Extensions[required_scope] = "check"
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindServiceByName("authz.bench.EmptyService")


class _Empty:
    """Answers with nothing."""

    def __init__(self, response: type[Message]) -> None:
        self._response = response()

    def Empty(self, request: Message, context: Context) -> Message:
        return self._response


def _serve_hall(control: Connection) -> None:
    metrics = Metrics()
    null = os.open(os.devnull, os.O_WRONLY)
    lines = Lines(null)
    hall = Hall(
        authenticator=Authenticator(
            find_credential=lambda id: None, keys=(b"k" * 32,), first_credential=Secret(SECRET)
        ),
        admission=Admission(threads=THREADS, watch_streams=1, metrics=metrics),
        rate=Rate(per_second=1e9, metrics=metrics),
        access_log=AccessLog(lines.write, metrics),
        logger=logs.logger(lines),
        metrics=metrics,
    )
    service = _service()
    response = GetMessageClass(service.methods_by_name["Empty"].output_type)
    hall.register(service, _Empty(response))
    front = Front(hall, [Listener("127.0.0.1:0")])
    front.start()
    control.send(front.addresses[0])
    _tell_times(control)
    front.stop(0)
    lines.close()


def _serve_bare(control: Connection) -> None:
    handlers = {"Empty": grpc.unary_unary_rpc_method_handler(lambda request, context: b"")}
    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("authz.bench.EmptyService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    control.send(f"127.0.0.1:{port}")
    _tell_times(control)
    server.stop(0).wait()


def _tell_times(control: Connection) -> None:
    """Tells the CPU seconds of this process whenever asked, until told to end."""
    while control.recv():
        times = os.times()
        control.send(times.user + times.system)


class _Server:
    """A server process and a channel to it."""

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        self.address: str = self._control.recv()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self._channel = grpc.insecure_channel(self.address)

    def microseconds_per_call(self, path: str, calls: int, in_flight: int) -> float:
        """Makes calls, all of which must succeed; returns the server's CPU time for each."""
        call = self._channel.unary_unary(path, None, None)
        metadata = (("authorization", f"Bearer {SECRET}"),)
        room = threading.Semaphore(in_flight)
        failed: list[Any] = []

        def done(future: Any) -> None:
            room.release()
            if future.code() is not grpc.StatusCode.OK:
                failed.append(future.code())

        before = self._seconds()
        for _ in range(calls):
            room.acquire()
            call.future(b"", metadata=metadata, timeout=10).add_done_callback(done)
        for _ in range(in_flight):
            room.acquire()
        if failed:
            raise RuntimeError(f"{len(failed)} calls failed, the first with {failed[0]}")
        return (self._seconds() - before) / calls * 1e6

    def _seconds(self) -> float:
        self._control.send(True)
        return float(self._control.recv())

    def close(self) -> None:
        self._channel.close()
        self._control.send(False)
        self._process.join(10)


def run(*, rounds: int = 7, calls: int = 3_000, in_flight: int = 16) -> dict[str, Any]:
    """Returns the CPU microseconds per call of all three and the medians of E1's ratios.

    Args:
        rounds: Times that each is measured; one more goes first and is not counted.
        calls: Calls of each measurement.
        in_flight: Calls under way at once.
    """
    bare, hall = _Server(_serve_bare), _Server(_serve_hall)
    try:
        measured = [
            (
                bare.microseconds_per_call(PATH, calls, in_flight),
                hall.microseconds_per_call(HEALTH, calls, in_flight),
                hall.microseconds_per_call(PATH, calls, in_flight),
            )
            for _ in range(rounds + 1)
        ][1:]
    finally:
        bare.close()
        hall.close()
    of_bare = sorted(e1 / theirs for theirs, _, e1 in measured)
    of_e0 = sorted(e1 / e0 for _, e0, e1 in measured)
    bare_us, e0_us, e1_us = (
        round(statistics.median(column), 1) for column in zip(*measured, strict=True)
    )
    return {
        "in_flight": in_flight,
        "bare_us": bare_us,
        "e0_us": e0_us,
        "e1_us": e1_us,
        "e1_of_e0": round(statistics.median(of_e0), 3),
        "e1_of_e0_range": [round(of_e0[0], 3), round(of_e0[-1], 3)],
        "e1_of_bare": round(statistics.median(of_bare), 3),
        "e1_of_bare_range": [round(of_bare[0], 3), round(of_bare[-1], 3)],
        "rounds": rounds,
        "calls": calls,
    }


def main() -> None:
    """Prints one JSON line for 1 and one for 16 calls in flight."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3_000)
    options = parser.parse_args()
    for in_flight in (1, 16):
        result = run(rounds=options.rounds, calls=options.calls, in_flight=in_flight)
        print(json.dumps(result))
        sys.stdout.flush()


if __name__ == "__main__":
    main()

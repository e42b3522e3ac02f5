"""A worker for the tests of the supervisor: a real process that behaves as it is told.

python tests/servers/worker.py BEHAVIOUR NUMBER METRICS_SOCKET; it says what it does in JSON.
"""

import contextlib
import json
import os
import signal
import sys

from authz_service.supervisor import EXIT_REFUSED, end_with_supervisor
from authz_service.telemetry.exposition import Teller

TEXT = b"""# HELP dummy_total Calls.
# TYPE dummy_total counter
dummy_total 5.0
# HELP dummy_open Calls under way.
# TYPE dummy_open gauge
dummy_open 1.0
"""


def say(what: str) -> None:
    """Writes what happened, in one system call, so that lines of workers do not mix."""
    line = json.dumps({"event": what, "worker": int(sys.argv[2]), "pid": os.getpid()})
    with contextlib.suppress(BrokenPipeError):  # the test is over
        os.write(1, f"{line}\n".encode())


def main() -> None:
    """Behaves: serve, silent (tells no metrics), stubborn, crash or refuse."""
    behaviour, _, metrics_socket = sys.argv[1:]
    if behaviour == "crash":
        sys.exit(3)
    if behaviour == "refuse" and sys.argv[2] == "1":
        sys.exit(EXIT_REFUSED)
    asked = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, asked)
    supervisor = os.getppid()
    end_with_supervisor()
    try:
        teller = None if behaviour == "silent" else Teller(metrics_socket, lambda: TEXT)
    except FileNotFoundError:  # the test is over, and its folder gone
        return
    say("up")
    while True:
        number = signal.sigwait(asked)
        say(f"asked to end by {signal.Signals(number).name}")
        # Nobody would kill a stubborn one that outlives its supervisor.
        if behaviour != "stubborn" or os.getppid() != supervisor:
            break
    if teller is not None:
        teller.close()


if __name__ == "__main__":
    main()

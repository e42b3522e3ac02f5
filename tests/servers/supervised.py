"""Runs a supervisor over workers that behave as told; prints its metrics port, then its log.

python tests/servers/supervised.py BEHAVIOUR WORKERS DRAIN_SECONDS
"""

import os
import signal
import sys
from pathlib import Path

from authz_service.config import Address
from authz_service.supervisor import Supervisor
from authz_service.telemetry.logs import Lines, logger

WORKER = str(Path(__file__).with_name("worker.py"))


def main() -> None:
    """Runs it and ends with its exit code."""
    # Whoever started the tests may ignore it (nohup), and that is inherited.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    behaviour, workers, drain_seconds = sys.argv[1:]
    python = "/nonexistent" if behaviour == "absent" else sys.executable
    lines = Lines(1)
    supervisor = Supervisor(
        lambda number, socket: [python, WORKER, behaviour, str(number), socket],
        workers=int(workers),
        metrics_listen=Address("127.0.0.1", 0),
        drain_seconds=float(drain_seconds),
        grace_seconds=0.2,
        log=logger(lines),
    )
    os.write(1, f"{supervisor.metrics_port}\n".encode())
    code = supervisor.run()
    lines.close()
    sys.exit(code)


if __name__ == "__main__":
    main()

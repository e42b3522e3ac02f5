"""How metrics get out: each worker tells its own over a local socket, one process shows the sum.

A worker serves its text on a unix socket (`Teller`), the supervisor reads all of them (`fetch`),
adds them up (`Totals`) and shows the result over HTTP (`Page`). One worker without a supervisor
shows its own text with the same `Page`.
"""

import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Render = Callable[[], bytes]

# A reader that does not read, or a worker that does not answer, is given up after this long.
SOCKET_SECONDS_MAX = 2.0
_PIECE_BYTES = 65_536
# More text than this comes from no worker of ours.
_TEXT_BYTES_MAX = 32 * 1024 * 1024


class Teller:
    """Tells a worker's metrics to whoever connects to a unix socket, and closes.

    Args:
        path: Of the socket; a file left there by an earlier process is replaced.
        render: Returns the text; called anew for each connection.
    """

    def __init__(self, path: str, render: Render) -> None:
        self._path = path
        if os.path.exists(path):
            os.unlink(path)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(SOCKET_SECONDS_MAX)
                self.request.sendall(render())

        class Server(socketserver.UnixStreamServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A reader that went away is its own business."""

        self._server = Server(path, Handler)
        os.chmod(path, 0o600)
        self._thread = _serving(self._server, "metrics-teller")

    def close(self) -> None:
        """Stops telling and removes the socket."""
        _close(self._server, self._thread)
        os.unlink(self._path)


def fetch(path: str) -> bytes | None:
    """Returns the text of the worker behind a unix socket, None if it does not answer."""
    pieces = []
    left = _TEXT_BYTES_MAX
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SOCKET_SECONDS_MAX)
            connection.connect(path)
            while left > 0 and (piece := connection.recv(_PIECE_BYTES)):
                pieces.append(piece)
                left -= len(piece)
    except OSError:
        return None
    return b"".join(pieces)


class Page:
    """Shows metrics over HTTP at ``/metrics``, in a thread of its own, one reader at a time.

    Args:
        host: Name or address; port 0 takes a free one.
    """

    def __init__(self, host: str, port: int, render: Render) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = SOCKET_SECONDS_MAX

            def do_GET(self) -> None:
                if self.path != "/metrics":
                    self.send_error(404)
                    return
                text = render()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE_LATEST)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def version_string(self) -> str:
                return "authz_service"

            def log_message(self, format: str, *args: Any) -> None:
                """Readings of metrics are no news."""

        class Server(HTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A reader that went away is its own business."""

        self._server = Server((host, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = _serving(self._server, "metrics-page")

    def close(self) -> None:
        """Stops serving."""
        _close(self._server, self._thread)


def _serving(server: socketserver.BaseServer, name: str) -> threading.Thread:
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name=name, daemon=True)
    thread.start()
    return thread


def _close(server: socketserver.BaseServer, thread: threading.Thread) -> None:
    server.shutdown()
    thread.join()
    server.server_close()


_Key = tuple[str, tuple[tuple[str, str], ...]]
_Samples = dict[_Key, float]


class Totals(Collector):
    """The metrics of several workers as one, right also when workers end and start again.

    Counters and histograms are added, and stay counted after their worker's end: a sum that fell
    would look like a restart of everything. Gauges are added, or the largest is taken, and end
    with their worker.

    Args:
        largest: Names of the gauges of which the largest is taken.
    """

    def __init__(self, largest: frozenset[str] = frozenset()) -> None:
        self._largest = largest
        self._families: dict[str, Metric] = {}
        self._present: dict[str, dict[str, _Samples]] = {}
        self._past: dict[str, _Samples] = {}
        self._lock = threading.Lock()

    def tell(self, worker: str, text: bytes) -> None:
        """Replaces what is known of a worker by its newest text."""
        told: dict[str, _Samples] = {}
        for family in text_string_to_metric_families(text.decode()):
            samples = told.setdefault(family.name, {})
            for sample in family.samples:
                samples[(sample.name, tuple(sorted(sample.labels.items())))] = sample.value
            self._families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
        with self._lock:
            self._present[worker] = told

    def retire(self, worker: str) -> None:
        """Says that a worker has ended: its counts stay, its gauges go."""
        with self._lock:
            for name, samples in self._present.pop(worker, {}).items():
                if self._families[name].type != "gauge":
                    _add(self._past.setdefault(name, {}), samples)

    def collect(self) -> Iterator[Metric]:
        """Yields the sums, for prometheus_client."""
        with self._lock:
            present, past = list(self._present.values()), dict(self._past)
            for name, described in self._families.items():
                samples = dict(past.get(name, {}))
                for told in present:
                    combine = _raise if name in self._largest else _add
                    combine(samples, told.get(name, {}))
                family = Metric(name, described.documentation, described.type)
                for (sample_name, labels), value in samples.items():
                    family.add_sample(sample_name, dict(labels), value)
                if samples:
                    yield family

    def render(self) -> bytes:
        """Returns the sums in the Prometheus text format."""
        return generate_latest(cast(CollectorRegistry, self))


def _add(into: _Samples, samples: _Samples) -> None:
    for key, value in samples.items():
        into[key] = into.get(key, 0.0) + value


def _raise(into: _Samples, samples: _Samples) -> None:
    for key, value in samples.items():
        into[key] = max(into.get(key, value), value)

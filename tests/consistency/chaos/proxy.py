"""A TCP proxy on loopback between one process and Redis: it can cut, and swallow.

One connection here is one connection there, and both end together, so that it hides no restart.
"""

import contextlib
import socket
import threading

_PIECE = 65_536


class Proxy:
    """Carries bytes between whoever connects and a port of loopback.

    Args:
        target: The port of the server.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._is_cut = False
        # Set while bytes flow; a swallowing proxy keeps them until it is mended.
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends all connections and refuses new ones."""
        with self._lock:
            self._is_cut = True
            pairs = list(self._pairs)
        for pair in pairs:
            _end(*pair)

    def swallow(self) -> None:
        """Takes connections and bytes, and passes nothing on."""
        self._flows.clear()

    def mend(self) -> None:
        """Carries bytes again, those that were kept first."""
        self._is_cut = False
        self._flows.set()

    def close(self) -> None:
        """Ends everything."""
        self.cut()
        self._flows.set()
        # Closing alone does not wake the thread that waits for a connection.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=self._carry, args=(source, sink, (near, far)), daemon=True
                ).start()

    def _carry(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        try:
            while piece := source.recv(_PIECE):
                self._flows.wait()
                sink.sendall(piece)
        except OSError:
            pass
        _end(*pair)
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
                return
        # The second of the two directions has ended.
        for each in pair:
            each.close()


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)

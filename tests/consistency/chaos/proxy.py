"""A TCP proxy on loopback between one process and a server: it can cut, swallow, delay and break.

One connection here is one connection there, and both end together, so that it hides no restart.
"""

import contextlib
import random
import socket
import struct
import threading
from dataclasses import dataclass

_PIECE = 65_536
# Closing sends a reset, and throws away what was not sent.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Manner:
    """How replies are passed on; requests always are.

    Attributes:
        seconds: The least and the longest time that a reply is held.
        hangs: The share of replies that are kept until the proxy is mended.
        resets: The share of replies of which half arrives, and then a reset.
        loses: Whether no reply arrives, on connections that stay open: what was asked was done.
    """

    seconds: tuple[float, float] = (0.0, 0.0)
    hangs: float = 0.0
    resets: float = 0.0
    loses: bool = False


AT_ONCE = Manner()
Target = int | str
Pair = tuple[socket.socket, socket.socket]


class Proxy:
    """Carries bytes between whoever connects and a server on this machine.

    Args:
        target: The server's port of loopback, or the path of its unix socket.
        seed: Of which replies hang or break.
    """

    def __init__(self, target: Target, seed: int = 0) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._pairs: set[Pair] = set()
        self._is_cut = False
        self._manner = AT_ONCE
        self._chance = random.Random(seed)
        # Set while bytes flow; a swallowing proxy keeps them until it is mended.
        self._flows = threading.Event()
        self._flows.set()
        # Set once what hangs may go on; a new one after each time.
        self._mended = threading.Event()
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

    def behave(self, manner: Manner) -> None:
        """Passes replies on in another manner from now on."""
        self._manner = manner

    def turn_to(self, target: Target) -> None:
        """Ends all connections; new ones go to another server."""
        self.cut()
        self._target = target
        self.mend()

    def mend(self) -> None:
        """Carries bytes again, those that were kept first."""
        self._manner = AT_ONCE
        self._mended.set()
        self._mended = threading.Event()
        self._is_cut = False
        self._flows.set()

    def close(self) -> None:
        """Ends everything."""
        self.cut()
        self._flows.set()
        self._mended.set()
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
                far = _connected(self._target)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for each in (near, far):
                if each.family != socket.AF_UNIX:
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=self._carry, args=(source, sink, (near, far)), daemon=True
                ).start()

    def _carry(self, source: socket.socket, sink: socket.socket, pair: Pair) -> None:
        is_reply = sink is pair[0]
        try:
            while piece := source.recv(_PIECE):
                self._flows.wait()
                if is_reply and self._manner is not AT_ONCE:
                    piece = self._delayed(piece, sink)
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

    def _delayed(self, piece: bytes, sink: socket.socket) -> bytes:
        """Holds a reply as the manner says, and returns what of it is to be sent."""
        manner, mended = self._manner, self._mended
        with self._lock:
            wait, drawn = self._chance.uniform(*manner.seconds), self._chance.random()
        if manner.loses:
            return b""
        if drawn < manner.resets:
            sink.sendall(piece[: len(piece) // 2])
            # For the close that follows; another thread still reads from it.
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise ConnectionResetError
        # Neither is waited for: the time itself is the fault.
        mended.wait(None if drawn < manner.resets + manner.hangs else wait)
        return piece


def _connected(target: Target) -> socket.socket:
    if isinstance(target, int):
        return socket.create_connection(("127.0.0.1", target), 5)
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(5)
    try:
        made.connect(target)
    except OSError:
        made.close()
        raise
    return made


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)

"""Sockets and time around the connections, on both event loops, with a stand-in for who answers."""

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from authz_service.base.clock import boot_seconds
from authz_service.rpc.fronts.h2 import listener
from authz_service.rpc.fronts.h2.limits import Limits
from authz_service.rpc.fronts.h2.listener import Link, Listening, new_loop
from authz_service.rpc.fronts.listeners import Listener, Tls, Unlistenable
from tests.rpc.fronts.conftest import Authority
from tests.rpc.fronts.h2.peer import (
    ACK,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    TRAILERS,
    WINDOW_SIZE,
    WINDOW_UPDATE,
    Frame,
    call,
    frame,
    frames_of,
    number,
    settings,
)

SECONDS_MAX = 20.0
HELLO = PREFACE + settings() + frame(SETTINGS, ACK)
# A client that lets everything come, and then does not read it.
GREEDY = (
    PREFACE
    + settings((WINDOW_SIZE, 2**31 - 1))
    + frame(SETTINGS, ACK)
    + frame(WINDOW_UPDATE, payload=number(2**31 - 1 - 65_535))
)


class Answerer:
    """Answers every call at once.

    Attributes:
        reply: The message.
        seen: Ids of the streams that asked.
        lost: Ids of those that were given up.
    """

    def __init__(self) -> None:
        self.reply = b"yes"
        self.seen: list[int] = []
        self.lost: list[int] = []
        self.names: list[tuple[str, ...]] = []
        self.breaks_at = self.breaks_when_lost = 0

    def requested(self, link: Link) -> None:
        """Answers."""
        requests, link.connection.requests = link.connection.requests, []
        for stream in requests:
            self.seen.append(stream.id)
            self.names.append(link.names)
            if stream.id == self.breaks_at:
                raise ValueError("a mistake of ours")
            link.connection.answer(stream, self.reply, TRAILERS)

    def left(self, link: Link) -> None:
        """Keeps who left."""
        gone, link.connection.gone = link.connection.gone, []
        self.lost += [stream.id for stream in gone]
        if self.breaks_when_lost in self.lost:
            raise ValueError("a mistake of ours")


class Client:
    """A socket and the frames that came from it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def next(self) -> Frame | None:
        """Returns the next frame, None at the end."""
        try:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return None
        return frames_of(head + payload)[0]

    async def until(self, kind: int) -> Frame:
        """Skips to a frame of a kind."""
        while True:
            found = await self.next()
            assert found is not None, "the connection ended"
            if found.kind == kind:
                return found

    async def rest(self) -> list[Frame]:
        """Returns everything up to the end of the connection."""
        found = []
        while (each := await self.next()) is not None:
            found.append(each)
        return found

    async def ask(self, stream: int = 1) -> bytes:
        """Makes a call; returns the body of its answer."""
        self.writer.write(call(stream, b"question"))
        return (await self.until(DATA)).payload


class House:
    """Sockets of the test, what they were told, and its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.answerer = Answerer()
        self.refused: list[str] = []
        self.mistakes: list[Any] = []
        self.listening: Listening | None = None
        self.writers: list[asyncio.StreamWriter] = []
        self.sockets: list[socket.socket] = []
        loop.set_exception_handler(lambda _, context: self.mistakes.append(context))

    def start(
        self,
        *listeners: Listener,
        age_seconds: float = 600.0,
        reuse_port: bool = False,
        send_bytes: int = 0,
        **limits: Any,
    ) -> str:
        """Starts to listen; returns the first address."""
        self.listening = Listening(
            self.loop,
            self.answerer,
            replace(Limits(), **limits),
            age_seconds=age_seconds,
            refused=self.refused.append,
        )
        addresses = [
            self.listening.listen(each, reuse_port=reuse_port)
            for each in listeners or (Listener("127.0.0.1:0"),)
        ]
        if send_bytes:
            # What is accepted here has it too.
            for each, _ in self.listening._sockets:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
        self.listening.start()
        return addresses[0]

    async def client(
        self, address: str, tls: ssl.SSLContext | None = None, hello: bytes = HELLO, **options: Any
    ) -> Client:
        """Connects and sends the beginning."""
        if address.startswith("unix:"):
            opened = asyncio.open_unix_connection(address.removeprefix("unix:"))
            reader, writer = await opened
        else:
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(
                host, int(port), ssl=tls, server_hostname=tls and "localhost", **options
            )
        self.writers.append(writer)
        writer.write(hello)
        return Client(reader, writer)

    async def deaf(self, address: str, hello: bytes = GREEDY) -> None:
        """Connects a client that sends something and never reads."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        host, _, port = address.rpartition(":")
        await self.loop.sock_connect(client, (host, int(port)))
        await self.loop.sock_sendall(client, hello)
        self.sockets.append(client)

    @property
    def links(self) -> set[Link]:
        """Connections that are there."""
        assert self.listening is not None
        return self.listening.links

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Lets the loop turn until something is so."""
        end = self.loop.time() + SECONDS_MAX
        while not is_so():
            assert self.loop.time() < end, "it did not happen"
            await asyncio.sleep(0.005)

    def run(self, story: Awaitable[None]) -> None:
        """Runs a test in the loop."""
        self.loop.run_until_complete(asyncio.wait_for(story, SECONDS_MAX))

    def end(self) -> None:
        """Ends everything."""

        async def closing() -> None:
            if self.listening is not None:
                self.listening.stop_accepting()
                self.listening.close()
            for each in self.sockets:
                each.close()
            for writer in self.writers:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await self.until(lambda: not self.links if self.listening else True)

        self.loop.run_until_complete(closing())
        self.loop.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """A house on each of the event loops."""
    loop: asyncio.AbstractEventLoop
    loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    house = House(loop)
    yield house
    house.end()


def test_the_fast_loop_is_taken_where_it_is_installed() -> None:
    loop = new_loop()
    assert isinstance(loop, uvloop.Loop)
    loop.close()


# Calls


def test_calls_are_answered_and_connections_let_go(house: House) -> None:
    async def story() -> None:
        client = await house.client(house.start())
        for stream in (1, 3):
            assert await client.ask(stream) == b"\0\0\0\0\3yes"
        assert len(house.links) == 1
        client.writer.close()
        await house.until(lambda: not house.links)
        assert (house.refused, house.answerer.lost) == ([], [])

    house.run(story())


def test_a_peer_that_goes_away_leaves_its_calls(house: House) -> None:
    async def story() -> None:
        house.answerer.reply = b"x" * 100_000
        client = await house.client(house.start())
        await client.ask()
        client.writer.transport.abort()
        await house.until(lambda: house.answerer.lost == [1])
        assert house.refused == []

    house.run(story())


def test_what_breaks_the_protocol_is_told_why_and_counted(house: House) -> None:
    async def story() -> None:
        address = house.start(budget=50.0)
        for sent, why in (
            (frame(PING, payload=b"x"), "protocol"),
            (frame(PING, payload=b"x" * 8) * 60, "flood"),
        ):
            house.refused.clear()
            client = await house.client(address)
            client.writer.write(sent)
            assert (await client.rest())[-1].kind == GOAWAY
            assert house.refused == [why]
        await house.until(lambda: not house.links)

    house.run(story())


def test_ends_are_counted_in_words_of_a_closed_set() -> None:
    told: list[str] = []
    loop = asyncio.new_event_loop()
    listening = Listening(loop, Answerer(), Limits(), age_seconds=1, refused=told.append)
    for why in (*listener._ORDINARY, *sorted(listener._REFUSALS), "whatever a peer did"):
        listening.ended(why)
    assert told == [*sorted(listener._REFUSALS), "protocol"]
    loop.close()


# Mistakes of ours


def test_a_mistake_over_one_connection_ends_that_connection_alone(house: House) -> None:
    async def story() -> None:
        address = house.start()
        house.answerer.breaks_at = 3
        spoiled, other = await house.client(address), await house.client(address)
        assert await spoiled.ask(1)
        assert await other.ask(1)
        spoiled.writer.write(call(3))
        await spoiled.rest()
        assert await other.ask(5)
        assert len(house.links) == 1
        assert len(house.mistakes) == 1

    house.run(story())


def test_a_mistake_over_time_ends_that_connection_alone_and_time_goes_on(house: House) -> None:
    async def story() -> None:
        address = house.start(body_seconds_max=0.2)
        house.answerer.breaks_when_lost = 101
        spoiled, other = await house.client(address), await house.client(address)
        spoiled.writer.write(frame(HEADERS, 4, 101, call(1)[9 : -len(frame(DATA, 0, 1, bytes(5)))]))
        await spoiled.rest()
        assert await other.ask(1)
        # Another one is still looked after.
        other.writer.write(frame(HEADERS, 4, 3, call(1)[9 : -len(frame(DATA, 0, 1, bytes(5)))]))
        await house.until(lambda: 3 in house.answerer.lost)
        assert house.mistakes

    house.run(story())


def test_a_flood_of_what_time_ends_does_not_stop_time(house: House) -> None:
    """Giving up many bodies costs a connection its budget while nothing of it is being read."""

    async def story() -> None:
        address = house.start(body_seconds_max=0.2, budget=100.0, budget_per_second=0.0)
        head = call(1)[9 : -len(frame(DATA, 0, 1, bytes(5)))]
        flood, other = await house.client(address), await house.client(address)
        flood.writer.write(b"".join(frame(HEADERS, 4, 1 + 2 * each, head) for each in range(120)))
        assert (await flood.rest())[-1].kind == GOAWAY
        other.writer.write(frame(HEADERS, 4, 1, head))
        await house.until(lambda: len(house.answerer.lost) == 121)
        assert (house.refused, house.mistakes) == (["flood"], [])

    house.run(story())


# Limits


@pytest.mark.parametrize("more", [0, 1])
def test_connections_above_the_limit_are_closed_at_once(house: House, more: int) -> None:
    async def story() -> None:
        address = house.start(connections_max=2)
        clients = [await house.client(address) for _ in range(2)]
        for client in clients:
            assert await client.ask()
        if more:
            extra = await house.client(address, hello=b"")
            assert await extra.rest() == []
            assert house.refused == ["connections"]
            clients[0].writer.close()
            await house.until(lambda: len(house.links) == 1)
        else:
            clients[0].writer.close()
            await house.until(lambda: len(house.links) == 1)
            assert house.refused == []
        assert await (await house.client(address)).ask()

    house.run(story())


def test_without_descriptors_nobody_is_taken_and_the_loop_does_other_things(house: House) -> None:
    async def story() -> None:
        address = house.start()
        known = await house.client(address)
        assert await known.ask(1)
        late = socket.socket()
        late.setblocking(False)
        present = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, present[1]))
        try:
            host, _, port = address.rpartition(":")
            await house.loop.sock_connect(late, (host, int(port)))
            await house.until(lambda: len(house.refused) >= 2)
            began, count = house.loop.time(), len(house.refused)
            for stream in range(3, 103, 2):
                assert await known.ask(stream)
            # Asked again ten times a second, not in each turn.
            assert len(house.refused) - count <= 2 + 10 * (house.loop.time() - began)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, present)
        assert set(house.refused) == {"descriptors"}
        await house.loop.sock_sendall(late, HELLO + call(1))
        await house.until(lambda: len(house.links) == 2 and house.answerer.seen[-1] == 1)
        late.close()

    house.run(story())


def test_replies_that_are_not_read_are_bounded_also_with_open_windows(house: House) -> None:
    async def story() -> None:
        house.answerer.reply = b"x" * 1_000_000
        address = house.start(unread_bytes_max=3_000_000, send_bytes=4_096)
        await house.deaf(address, GREEDY + b"".join(call(1 + 2 * each) for each in range(3)))
        await house.until(lambda: house.answerer.seen == [1, 3, 5])
        await house.deaf(address, GREEDY + b"".join(call(1 + 2 * each) for each in range(4)))
        await house.until(lambda: bool(house.refused))
        assert house.refused == ["unread"]
        await house.until(lambda: len(house.links) == 1)

    house.run(story())


def test_replies_up_to_the_limit_wait_for_a_slow_reader(house: House) -> None:
    async def story() -> None:
        house.answerer.reply = b"x" * 1_000_000
        address = house.start(unread_bytes_max=30_000_000)
        client = await house.client(address, hello=b"", limit=1)
        client.writer.write(GREEDY + b"".join(call(1 + 2 * each) for each in range(20)))
        total = 0
        while total < 20 * 1_000_005:
            total += len((await client.until(DATA)).payload)
        assert house.refused == []

    house.run(story())


def test_who_reads_nothing_is_let_go_after_a_while(house: House) -> None:
    async def story() -> None:
        house.answerer.reply = b"x" * 1_000_000
        address = house.start(unread_seconds_max=0.2, send_bytes=4_096)
        await house.deaf(address, GREEDY + call(1))
        await house.until(lambda: house.refused == ["unread"])
        await house.until(lambda: not house.links)

    house.run(story())


def test_who_reads_nothing_after_its_connection_was_ended_is_let_go_too(house: House) -> None:
    """What was written waits as long as the peer keeps its side open; it may not do so for ever."""

    async def story() -> None:
        # More than the sockets take, less than what holds up reading.
        house.answerer.reply = b"x" * 150_000
        address = house.start(unread_seconds_max=0.3, send_bytes=4_096)
        await house.deaf(address, GREEDY + call(1))
        await house.until(lambda: house.answerer.seen == [1])
        (link,) = house.links
        await house.loop.sock_sendall(house.sockets[0], frame(PING, payload=b"x"))
        await house.until(lambda: house.refused == ["protocol"])
        assert (house.links, link._paused_at) == ({link}, 0)
        await house.until(lambda: not house.links)
        assert house.refused == ["protocol", "unread"]

    house.run(story())


def test_who_never_begins_is_let_go(house: House) -> None:
    async def story() -> None:
        address = house.start(handshake_seconds_max=0.2)
        client = await house.client(address, hello=b"")
        assert (await client.rest())[-1].kind == GOAWAY
        assert house.refused == ["handshake"]

    house.run(story())


# Age and drain


def test_ages_are_spread(house: House) -> None:
    async def story() -> None:
        address = house.start(age_seconds=100.0)
        began = boot_seconds()
        clients = [await house.client(address) for _ in range(30)]
        for client in clients:
            assert await client.ask()
        ages = [link._age_at - began for link in house.links]
        assert 90 <= min(ages) < max(ages) <= 110 + SECONDS_MAX
        assert len(set(ages)) == 30

    house.run(story())


def test_a_connection_of_age_is_asked_to_go_and_goes(house: House) -> None:
    async def story() -> None:
        client = await house.client(house.start(age_seconds=0.1))
        farewells = [each for each in await client.rest() if each.kind == GOAWAY]
        assert [each.payload[:8] for each in farewells] == [
            number(2**31 - 1) + number(0), number(0) + number(0),
        ]  # fmt: skip
        assert house.refused == []
        await house.until(lambda: not house.links)

    house.run(story())


def test_a_drain_closes_what_listens_and_asks_all_to_go(house: House) -> None:
    async def story() -> None:
        address = house.start()
        client = await house.client(address)
        assert await client.ask(1)
        assert house.listening is not None
        house.listening.stop_accepting()
        with pytest.raises(OSError):
            await house.client(address)
        await client.until(GOAWAY)
        # Not yet told a last one: what was on its way is answered.
        assert await client.ask(3)
        await client.rest()
        assert house.refused == []

    house.run(story())


# Addresses


def test_a_unix_socket_is_open_to_its_group_only_and_removed_at_the_end(
    house: House, tmp_path: Path
) -> None:
    async def story() -> None:
        for address in (f"unix:{tmp_path}/a.sock", f"unix://{tmp_path}/b.sock"):
            assert house.start(Listener(address)) == address
            path = address.removeprefix("unix:").removeprefix("//")
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
            assert await (await house.client(f"unix:{path}")).ask()
            assert house.listening is not None
            house.listening.stop_accepting()
            assert not os.path.exists(path)

    house.run(story())


def test_a_unix_socket_of_a_successor_is_left_alone(house: House, tmp_path: Path) -> None:
    async def story() -> None:
        address = f"unix:{tmp_path}/a.sock"
        house.start(Listener(address))
        first = house.listening
        house.start(Listener(address))
        assert first is not None
        first.stop_accepting()
        first.close()
        assert await (await house.client(address)).ask()

    house.run(story())


def test_a_file_in_the_place_of_a_unix_socket_is_left_alone(house: House, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("mine")
    with pytest.raises(Unlistenable, match="cannot listen"):
        house.start(Listener(f"unix:{path}"))
    assert path.read_text() == "mine"
    house.listening = None


def test_a_taken_port_is_refused_unless_it_is_shared(house: House) -> None:
    async def story() -> None:
        address = house.start(reuse_port=True)
        first = house.listening
        with pytest.raises(Unlistenable, match="cannot listen"):
            house.start(Listener(address))
        assert house.start(Listener(address), reuse_port=True) == address
        assert await (await house.client(address)).ask()
        assert first is not None
        first.stop_accepting()
        first.close()
        await house.until(lambda: not first.links)

    house.run(story())


# TLS


def trusted(
    authority: Authority, *own: str, protocols: tuple[str, ...] = ("h2",)
) -> ssl.SSLContext:
    """What a client needs."""
    context = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
    context.set_alpn_protocols(list(protocols))
    if own:
        context.load_cert_chain(*own)
    return context


def test_tls_names_the_peer(house: House, authority: Authority) -> None:
    async def story() -> None:
        address = house.start(Listener("127.0.0.1:0", authority.tls("h2names", clients=True)))
        own = authority.issue("h2peer", "DNS:peer.test", "URI:spiffe://test/peer", "DNS:b.test")
        client = await house.client(address, trusted(authority, *own))
        assert await client.ask()
        assert house.answerer.names == [("spiffe://test/peer", "peer.test", "b.test")]

    house.run(story())


def test_who_has_no_certificate_that_is_asked_for_is_not_heard(
    house: House, authority: Authority
) -> None:
    async def story() -> None:
        address = house.start(Listener("127.0.0.1:0", authority.tls("h2asked", clients=True)))
        client = await house.client(address, trusted(authority))
        client.writer.write(call(1))
        assert await client.rest() == []
        assert house.answerer.seen == []
        await house.until(lambda: house.refused == ["tls"])

    house.run(story())


def test_who_does_not_speak_http_2_is_not_heard(house: House, authority: Authority) -> None:
    async def story() -> None:
        address = house.start(Listener("127.0.0.1:0", authority.tls("h2alpn")))
        context = ssl.create_default_context(cafile=str(authority.folder / "ca.pem"))
        client = await house.client(address, context)
        assert await client.rest() == []
        assert house.refused == ["alpn"]
        plain = await house.client(address)
        assert await plain.rest() == []
        await house.until(lambda: house.refused == ["alpn", "tls"])
        assert house.links == set()

    house.run(story())


def test_a_handshake_that_does_not_end_is_ended_and_counts_as_a_connection(
    house: House, authority: Authority
) -> None:
    async def story() -> None:
        address = house.start(
            Listener("127.0.0.1:0", authority.tls("h2slow")),
            handshake_seconds_max=0.5,
            connections_max=1,
        )
        silent = await house.client(address, hello=b"")
        await house.until(lambda: bool(house.listening and house.listening.coming))
        extra = await house.client(address, hello=b"")
        assert await extra.rest() == []
        assert house.refused == ["connections"]
        assert await silent.rest() == []
        await house.until(lambda: house.refused == ["connections", "tls"])

    house.run(story())


def test_new_files_are_served_and_broken_ones_leave_the_last_in_force(
    house: House, authority: Authority
) -> None:
    async def story() -> None:
        tls = authority.tls("h2rotated")
        address = house.start(Listener("127.0.0.1:0", tls))

        async def served() -> Any:
            client = await house.client(address, trusted(authority))
            assert await client.ask()
            return client.writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]

        first = await served()
        assert await served() == first
        Path(tls.certificate).write_text("half a file")
        assert await served() == first
        new = authority.tls("h2rotated2")
        for source, target in ((new.certificate, tls.certificate), (new.key, tls.key)):
            os.replace(source, target)
        assert await served() != first

    house.run(story())


def test_tls_is_of_version_1_2_at_least(authority: Authority) -> None:
    context = listener._Certificates(authority.tls("h2version")).context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    asked = listener._Certificates(authority.tls("h2version", clients=True)).context()
    assert asked.verify_mode == ssl.CERT_REQUIRED


def test_files_that_are_none_are_told_at_once(house: House, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.pem", "a.key")]
    for path in paths:
        path.write_text("none")
    with pytest.raises((ssl.SSLError, Unlistenable)):
        house.start(Listener("127.0.0.1:0", Tls(*map(str, paths))))
    house.listening = None

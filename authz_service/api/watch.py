"""WatchService."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from authz_service.api.events import RESERVED_BYTES, messages
from authz_service.base import errors
from authz_service.base.clock import boot_seconds
from authz_service.base.consistency import ConsistencyTokens
from authz_service.base.cursors import Cursors, Place
from authz_service.domain import history
from authz_service.pb.authz.v1 import watch_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database, Snapshot
from authz_service.storage.feed import Feed
from authz_service.storage.positions import Selection
from authz_service.telemetry.metrics import Metrics

# One message: what a client can work off before it answers for its cursor.
EVENTS_MAX = 500
EVENT_BYTES_MAX = 1024 * 1024
# Promised is one every 15 s (product.md EV4); a busy server may be a little late.
HEARTBEAT_SECONDS = 12.0
# A stream notices within this time that its caller has gone or the server drains.
NOTICE_SECONDS = 0.25
# Streams of this process that read at the same time. All wake at once when something happens;
# they must not take the connections that decisions need.
READERS_MAX = 2


@dataclass(frozen=True, slots=True)
class _Batch:
    """What a stream tells next.

    Attributes:
        is_end: Nothing that it selects comes after ``place`` so far.
    """

    message: pb.WatchResponse
    place: Place
    is_end: bool


class WatchServicer:
    """Streams what changes, as it changes.

    Args:
        feed: Gives events their positions and tells that there are new ones.
        message_bytes_max: Largest message.
        heartbeat_seconds: Longest silence.
    """

    def __init__(
        self,
        database: Database,
        tokens: ConsistencyTokens,
        feed: Feed,
        cursors: Cursors,
        metrics: Metrics,
        *,
        message_bytes_max: int,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._feed = feed
        self._cursors = cursors
        self._lag = metrics.watch_lag_seconds
        self._bytes_max = min(EVENT_BYTES_MAX, message_bytes_max - RESERVED_BYTES)
        self._heartbeat_seconds = heartbeat_seconds
        self._reading = threading.BoundedSemaphore(READERS_MAX)
        metrics.watch_streams.read_from(lambda: {(): feed.watchers})

    def Watch(self, request: pb.WatchRequest, context: Context) -> Iterator[pb.WatchResponse]:
        selection = history.select_events(
            context.actor,
            organization_id=request.organization_id,
            include_global_events=request.include_global_events,
            kinds=request.kinds,
        )
        place = self._cursors.open(request.after_cursor) if request.after_cursor else None
        with self._feed.watching():
            self._feed.catch_up(context.deadline)
            with self._snapshot(context) as snapshot:
                history.require(snapshot, request.organization_id)
                if place is None:
                    place = history.end(snapshot)
                else:
                    history.resume(snapshot, place)
                began = snapshot.now
            # The first message comes at once.
            due = boot_seconds()
            while not context.is_cancelled():
                batch = self._next(context, selection, place.position, began)
                place = batch.place
                if batch.message.events or boot_seconds() >= due:
                    # Nothing of the database is held while the caller takes its time.
                    yield batch.message
                    due = boot_seconds() + self._heartbeat_seconds
                if batch.is_end:
                    self._wait(context, place.position, due)

    def _next(self, context: Context, selection: Selection, after: int, began: int) -> _Batch:
        with self._snapshot(context) as snapshot:
            history.require_following(snapshot, after)
            place = history.end(snapshot)
            stretch = history.page(snapshot, selection, after=after, size=EVENTS_MAX)
            events = messages(stretch.rows, self._cursors, self._bytes_max)
            rows = stretch.rows[: len(events)]
            if len(rows) < len(stretch.rows):
                place = Place(rows[-1].position, rows[-1].created_at)
            elif stretch.position is not None:
                place = Place(stretch.position, stretch.instant)
            revisions = history.revisions(snapshot, selection, rows)
            # What happened before the stream began says nothing of how fast the feed is.
            live = next((row.created_at for row in rows if row.created_at >= began), None)
            if live is not None:
                self._lag.observe((snapshot.now - live) / 1_000_000)
        message = pb.WatchResponse(
            events=events,
            cursor=self._cursors.seal(place),
            consistency_token=self._tokens.seal(revisions),
        )
        is_end = stretch.position is None and len(rows) == len(stretch.rows)
        return _Batch(message, place, is_end)

    def _wait(self, context: Context, position: int, due: float) -> None:
        """Waits for events after a position, or until a heartbeat is due or the stream must end.

        Raises:
            DeadlineExceeded: The caller wanted no longer stream.
        """
        while not context.is_cancelled():
            left = due - boot_seconds()
            if left <= 0 or self._feed.wait(position, min(left, NOTICE_SECONDS)):
                return
            if not context.seconds_left():
                raise errors.DeadlineExceeded("DEADLINE_EXCEEDED", "the call's deadline passed")

    @contextlib.contextmanager
    def _snapshot(self, context: Context) -> Iterator[Snapshot]:
        with self._reading, self._database.snapshot(context.actor) as snapshot:
            yield snapshot

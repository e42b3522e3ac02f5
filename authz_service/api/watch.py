"""WatchService."""

from collections.abc import Callable, Iterator, Sequence

from authz_service.api.events import message
from authz_service.base.clock import boot_seconds
from authz_service.base.consistency import ConsistencyTokens
from authz_service.base.cursors import Cursors, Place
from authz_service.domain import history
from authz_service.pb.authz.v1 import watch_pb2 as pb
from authz_service.pb.authz.v1.events_pb2 import Event
from authz_service.rpc.call import Context
from authz_service.storage.database import Database
from authz_service.storage.feed import Feed

# Events in one message: at the largest ones still far below a client's 4 MiB.
EVENTS_MAX = 100
HEARTBEAT_SECONDS = 15.0
# A stream notices within this time that its caller has gone or the server drains.
_NOTICE_SECONDS = 0.5


class WatchServicer:
    """Streams what changes, as it changes.

    Args:
        heartbeat_seconds: Longest time between two messages; a second less is aimed at.
        seconds: The boot clock.
    """

    def __init__(
        self,
        database: Database,
        tokens: ConsistencyTokens,
        feed: Feed,
        cursors: Cursors,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        seconds: Callable[[], float] = boot_seconds,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._feed = feed
        self._cursors = cursors
        self._quiet_seconds = max(heartbeat_seconds - 1.0, 0.0)
        self._seconds = seconds

    def Watch(self, request: pb.WatchRequest, context: Context) -> Iterator[pb.WatchResponse]:
        selection = history.select_events(
            context.actor,
            organization_id=request.organization_id,
            include_global_events=request.include_global_events,
            kinds=request.kinds,
        )
        resumed = self._cursors.open(request.after_cursor) if request.after_cursor else None
        with self._feed.watching():
            self._feed.catch_up(context.deadline)
            with self._database.snapshot(context.actor) as snapshot:
                history.require(snapshot, request.organization_id)
                if resumed is None:
                    place = history.end(snapshot)
                else:
                    history.resume(snapshot, resumed)
                    place = resumed
                revisions = history.revisions(snapshot, selection, ())
            yield self._message((), place, revisions)
            sent = self._seconds()
            while not context.is_cancelled():
                # No connection is held while the caller takes its time, or while nothing happens.
                with self._database.snapshot(context.actor) as snapshot:
                    history.require_following(snapshot, place.position)
                    end = history.end(snapshot)
                    stretch = history.page(
                        snapshot, selection, after=place.position, size=EVENTS_MAX
                    )
                    revisions = history.revisions(snapshot, selection, stretch.rows)
                if stretch.position is not None:
                    place = Place(stretch.position, stretch.instant)
                else:
                    # Positions are given to what is committed: none will appear before the end.
                    place = end
                is_due = self._seconds() - sent >= self._quiet_seconds
                if stretch.rows or is_due:
                    yield self._message(
                        [message(row, self._cursors) for row in stretch.rows], place, revisions
                    )
                    sent = self._seconds()
                if stretch.position is None:
                    self._feed.wait(place.position, _NOTICE_SECONDS)

    def _message(
        self, events: Sequence[Event], place: Place, revisions: dict[str, int]
    ) -> pb.WatchResponse:
        return pb.WatchResponse(
            events=events,
            cursor=self._cursors.seal(place),
            consistency_token=self._tokens.seal(revisions),
        )

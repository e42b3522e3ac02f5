"""EventService."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct

from authz_service.api import render
from authz_service.api.listing import Listings
from authz_service.base import errors
from authz_service.base.cursors import Cursors, Place
from authz_service.domain import history
from authz_service.pb.authz.v1 import events_pb2 as pb
from authz_service.rpc.call import Context
from authz_service.storage.database import Database
from authz_service.storage.feed import Feed

# What a message holds beside its events: a cursor or page token, and a consistency token.
RESERVED_BYTES = 4_096
# Tag and length of one event in a message.
_FRAME_BYTES = 6


class EventServicer:
    """Shows what has changed.

    Args:
        feed: Numbers what was committed, so that a list holds all of it.
        cursors: For places in the one order of all events.
        message_bytes_max: Largest answer; a page that would be larger ends earlier.
    """

    def __init__(
        self,
        database: Database,
        listings: Listings,
        feed: Feed,
        cursors: Cursors,
        *,
        message_bytes_max: int,
    ) -> None:
        self._database = database
        self._listings = listings
        self._feed = feed
        self._cursors = cursors
        self._bytes_max = message_bytes_max - RESERVED_BYTES

    def GetEvent(self, request: pb.GetEventRequest, context: Context) -> pb.GetEventResponse:
        self._feed.catch_up(context.deadline)
        with self._database.snapshot(context.actor) as snapshot:
            row = history.get(snapshot, event_id=request.event_id)
        return pb.GetEventResponse(event=message(row, self._cursors))

    def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        listing = self._listings.open(request, context)
        times = [name for name in ("start_at", "end_at") if request.HasField(name)]
        if request.after_cursor and times:
            raise errors.fields_exclusive("after_cursor", *times)
        selection = history.select_events(
            context.actor,
            organization_id=request.organization_id,
            include_global_events=request.include_global_events,
            kinds=request.kinds,
            primary_only=request.primary_only,
            target_id=request.target_id,
            actor_id=request.actor_id,
            start_at=render.optional_instant(request, "start_at"),
            end_at=render.optional_instant(request, "end_at"),
        )
        place = self._cursors.open(request.after_cursor) if request.after_cursor else None
        self._feed.catch_up(context.deadline)
        with self._database.snapshot(context.actor) as snapshot:
            history.require(snapshot, request.organization_id)
            if listing.page.after is not None:
                after = history.next_page(snapshot, int(listing.page.after[0]))
            elif place is not None:
                after = history.resume(snapshot, place)
            else:
                after = history.beginning(snapshot, selection)
            stretch = history.page(snapshot, selection, after=after, size=listing.page.size)
        events = messages(stretch.rows, self._cursors, self._bytes_max)
        position = stretch.position
        if len(events) < len(stretch.rows):
            position = stretch.rows[len(events) - 1].position
        return pb.ListEventsResponse(
            events=events,
            next_page_token=listing.token(None if position is None else (position,)),
        )


def message(row: Any, cursors: Cursors) -> pb.Event:
    """Returns an event, read with its ``position``, as callers see it."""
    fields = history.view(row)
    for name in ("data", "previous"):
        struct = Struct()
        struct.update(fields[name])
        fields[name] = struct
    return pb.Event(cursor=cursors.seal(Place(row.position, row.created_at)), **fields)


def messages(rows: Sequence[Any], cursors: Cursors, bytes_max: int) -> list[pb.Event]:
    """Returns the first of these events, as many as the bytes allow and at least one."""
    found: list[pb.Event] = []
    size = 0
    for row in rows:
        event = message(row, cursors)
        size += event.ByteSize() + _FRAME_BYTES
        if found and size > bytes_max:
            break
        found.append(event)
    return found

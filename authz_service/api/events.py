"""EventService."""

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

_STRUCTS = ("data", "previous")


class EventServicer:
    """Shows what has changed.

    Args:
        feed: Numbers what was committed, so that a list holds all of it.
        cursors: For places in the one order of all events.
    """

    def __init__(
        self, database: Database, listings: Listings, feed: Feed, cursors: Cursors
    ) -> None:
        self._database = database
        self._listings = listings
        self._feed = feed
        self._cursors = cursors

    def GetEvent(self, request: pb.GetEventRequest, context: Context) -> pb.GetEventResponse:
        self._feed.catch_up(context.deadline)
        with self._database.snapshot(context.actor) as snapshot:
            row = history.get(snapshot, event_id=request.event_id)
        return pb.GetEventResponse(event=message(row, self._cursors))

    def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        listing = self._listings.open(request, context)
        start_at = render.optional_instant(request, "start_at")
        end_at = render.optional_instant(request, "end_at")
        if request.after_cursor and (start_at is not None or end_at is not None):
            raise errors.fields_exclusive("after_cursor", "start_at", "end_at")
        selection = history.select_events(
            context.actor,
            organization_id=request.organization_id,
            include_global_events=request.include_global_events,
            kinds=request.kinds,
            primary_only=request.primary_only,
            target_id=request.target_id,
            actor_id=request.actor_id,
            start_at=start_at,
            end_at=end_at,
        )
        place = self._cursors.open(request.after_cursor) if request.after_cursor else None
        self._feed.catch_up(context.deadline)
        with self._database.snapshot(context.actor) as snapshot:
            history.require(snapshot, request.organization_id)
            if listing.page.after is not None:
                after = int(listing.page.after[0])
                history.require_following(snapshot, after)
            elif place is not None:
                after = history.resume(snapshot, place)
            else:
                after = history.beginning(snapshot, selection)
            stretch = history.page(snapshot, selection, after=after, size=listing.page.size)
        return pb.ListEventsResponse(
            events=[message(row, self._cursors) for row in stretch.rows],
            next_page_token=listing.token(
                None if stretch.position is None else (stretch.position,)
            ),
        )


def message(row: Any, cursors: Cursors) -> pb.Event:
    """Returns an event, read with its ``position``, as callers see it."""
    fields = history.view(row)
    for name in _STRUCTS:
        struct = Struct()
        struct.update(fields[name])
        fields[name] = struct
    return pb.Event(cursor=cursors.seal(Place(row.position, row.created_at)), **fields)

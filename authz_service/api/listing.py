"""Pages of lists: from a request's page fields to a page, and from a cursor to the next token."""

from dataclasses import dataclass

from google.protobuf.message import Message

from authz_service.base.pages import Binding, Cursor, Page, Pages
from authz_service.rpc.call import Context

# Not part of the question: the size may change between pages, and so may the wish for a total.
_PAGE_FIELDS = ("page_size", "page_token", "include_total_size")


@dataclass(frozen=True, slots=True)
class Listing:
    """One page that a call asks for, bound to its RPC, filters and caller."""

    page: Page
    binding: Binding
    pages: Pages

    def token(self, after: Cursor | None) -> str:
        """Returns ``next_page_token``: empty after the last page."""
        return self.pages.seal(self.binding, after)


class Listings:
    """Opens the page of any list request."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def open(self, request: Message, context: Context) -> Listing:
        """Returns what page the request asks for.

        Raises:
            InvalidArgument: FIELD_INVALID, PAGE_TOKEN_INVALID, PAGE_TOKEN_MISMATCH.
        """
        question = type(request)()
        question.CopyFrom(request)
        for name in _PAGE_FIELDS:
            if name in question.DESCRIPTOR.fields_by_name:
                question.ClearField(name)
        binding = Binding.of(
            rpc=context.method,
            filters=question.SerializeToString(deterministic=True),
            caller=f"{context.actor.kind}:{context.actor.id}",
        )
        page = self._pages.open(
            binding,
            page_size=request.page_size,  # type: ignore[attr-defined]
            page_token=request.page_token,  # type: ignore[attr-defined]
        )
        return Listing(page, binding, self._pages)

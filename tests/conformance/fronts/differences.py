"""Where the two fronts answer differently, and why. Each line is asserted on both sides.

The cases are those of the tests that name them; ``test_differences.py`` sees that all are named.
"""

from typing import NamedTuple


class Difference(NamedTuple):
    """What each front answers: code and reason, or what comes instead of them.

    Of what comes instead: ``HTTP n`` is a status of HTTP without one of gRPC, ``reset n`` is
    RST_STREAM with that code, ``closed`` the end of the connection, with the code of GOAWAY if
    that is sure to arrive. What is a matter of chance has an ``or``.
    """

    h2: str
    grpcio: str
    why: str


_STRICT = "HTTP/2 calls it malformed (RFC 9113 section 8); grpcio does not look."
_NO_MESSAGE = "Documented for bytes that are no message; grpcio sees its caller go instead."

DIFFERENCES: dict[str, Difference] = {
    # What is served
    "no decision": Difference(
        h2="UNIMPLEMENTED",
        grpcio="OK",
        why="The decision front serves decisions and health; its text names the other port.",
    ),
    "content type of something else": Difference(
        h2="HTTP 415",
        grpcio="OK",
        why="The protocol document asks for 415; grpcio serves what looks like a call.",
    ),
    "method that it knows": Difference(
        h2="HTTP 405",
        grpcio="UNKNOWN",
        why="No gRPC client sends it, so the answer is one for HTTP.",
    ),
    "method that it does not know": Difference(
        h2="HTTP 405", grpcio="reset 2", why="As above; grpcio fails to read the head."
    ),
    # Heads
    "no te": Difference(
        h2="OK",
        grpcio="UNKNOWN",
        why="The header only tells of proxies that would lose trailers; none of them harms us.",
    ),
    "another te": Difference(
        h2="reset 1", grpcio="reset 2", why="Malformed; told by HTTP/2's code."
    ),
    "no authority": Difference(
        h2="OK", grpcio="UNKNOWN", why="HTTP/2 lets it be left out, and nothing of ours reads it."
    ),
    "another scheme": Difference(h2="OK", grpcio="reset 2", why="Nothing of ours reads it."),
    "no pseudo header": Difference(
        h2="reset 1", grpcio="UNKNOWN", why="Malformed; no call, so no status of one."
    ),
    "empty path": Difference(
        h2="reset 1", grpcio="CANCELLED", why="Malformed; no call, so no status of one."
    ),
    "doubled pseudo header": Difference(h2="reset 1", grpcio="OK", why=_STRICT),
    "late pseudo header": Difference(h2="reset 1", grpcio="OK", why=_STRICT),
    "pseudo header of an answer": Difference(h2="reset 1", grpcio="OK", why=_STRICT),
    "header of a connection": Difference(h2="reset 1", grpcio="OK", why=_STRICT),
    "value with a line end or NUL": Difference(h2="reset 1", grpcio="OK", why=_STRICT),
    "name that is none": Difference(
        h2="reset 1", grpcio="reset 2", why="Malformed; told by HTTP/2's code."
    ),
    "content length of another size": Difference(h2="reset 1", grpcio="OK", why=_STRICT),
    "message with a blank at an end": Difference(
        h2="%20a%20",
        grpcio=" a ",
        why="HTTP/2 allows no blank at the ends of a value; Node drops one that has it.",
    ),
    # Deadlines
    "timeout that is none": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID",
        grpcio="reset 2",
        why="A reason tells the caller more than the end of the stream.",
    ),
    "timeout of more than 8 digits": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID",
        grpcio="OK",
        why="The protocol document allows 8; grpcio reads on.",
    ),
    "timeout with a blank": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID", grpcio="OK", why="As above."
    ),
    "deadline that has passed": Difference(
        h2="DEADLINE_EXCEEDED DEADLINE_EXCEEDED",
        grpcio="DEADLINE_EXCEEDED",
        why="The hall says it, with details; grpcio's transport says it without.",
    ),
    "deadline that passes in the handler": Difference(
        h2="DEADLINE_EXCEEDED DEADLINE_EXCEEDED",
        grpcio="DEADLINE_EXCEEDED",
        why="As above.",
    ),
    "doubled timeout": Difference(
        h2="reset 1", grpcio="OK", why="Which one counts is not for us to guess; grpcio takes one."
    ),
    # Binary metadata
    "binary values joined by commas": Difference(
        h2="OK",
        grpcio="reset 2",
        why="The protocol document lets proxies join them; grpcio takes no comma.",
    ),
    "binary value that is no base64": Difference(
        h2="reset 1", grpcio="reset 2", why="Malformed; told by HTTP/2's code."
    ),
    # Messages
    "compressed without saying how": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID",
        grpcio="OK",
        why="The protocol document calls it an error; grpcio takes it as it is.",
    ),
    "flag that is none": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID",
        grpcio="OK or CANCELLED",
        why="The protocol document knows 0 and 1; grpcio's answer is a matter of chance.",
    ),
    "unknown encoding": Difference(
        h2="UNIMPLEMENTED",
        grpcio="reset 2",
        why="The protocol document asks for UNIMPLEMENTED; grpcio fails to read the head.",
    ),
    "deflate": Difference(
        h2="UNIMPLEMENTED", grpcio="OK", why="Nobody sends it unasked; gzip is enough."
    ),
    "broken compression": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID",
        grpcio="INTERNAL",
        why="It is the caller's fault, and nothing of ours is broken.",
    ),
    "compressed nothing": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID",
        grpcio="OK",
        why="No bytes are no gzip; grpcio does not look at them.",
    ),
    "no whole message": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID", grpcio="CANCELLED", why=_NO_MESSAGE
    ),
    "more than one message": Difference(
        h2="INVALID_ARGUMENT FIELD_INVALID",
        grpcio="OK",
        why="A unary call has exactly one; grpcio reads the first and answers.",
    ),
    "padding": Difference(
        h2="OK", grpcio="reset 1", why="HTTP/2 allows it; grpcio has never read it."
    ),
    # Limits
    "message far above the limit": Difference(
        h2="INVALID_ARGUMENT REQUEST_TOO_LARGE",
        grpcio="RESOURCE_EXHAUSTED",
        why="The documented reason also there; grpcio's transport has a code of its own.",
    ),
    "large message announced": Difference(
        h2="INVALID_ARGUMENT REQUEST_TOO_LARGE",
        grpcio="CANCELLED",
        why="Refused at its prefix; grpcio waits for it, until its time is over.",
    ),
    "unpacked far above the limit": Difference(
        h2="INVALID_ARGUMENT REQUEST_TOO_LARGE",
        grpcio="RESOURCE_EXHAUSTED",
        why="As for messages that are not compressed.",
    ),
    "head without an end": Difference(
        h2="closed",
        grpcio="open",
        why="Each piece costs a unit of the connection's budget; grpcio reads on, and keeps none.",
    ),
    "metadata above twice its limit": Difference(
        h2="INVALID_ARGUMENT REQUEST_TOO_LARGE",
        grpcio="RESOURCE_EXHAUSTED",
        why="The documented reason also there; grpcio's transport has a code of its own.",
    ),
    "header block far above the limit": Difference(
        h2="closed",
        grpcio="RESOURCE_EXHAUSTED",
        why="Not kept to be read, and unread it would spoil the connection's compression.",
    ),
    "a thousand calls at once": Difference(
        h2="OK",
        grpcio="OK or UNAVAILABLE",
        why="It counts calls that are just ending, and refuses others for them, to be repeated.",
    ),
    "stranger without a message": Difference(
        h2="reset 8",
        grpcio="UNAUTHENTICATED CREDENTIAL_MISSING",
        why="A call is looked at when it is whole; until then it holds few bytes and no thread.",
    ),
    "pings soon after each other": Difference(
        h2="OK",
        grpcio="closed 11",
        why="A ping costs one unit of a connection's budget; grpcio allows two early ones.",
    ),
}

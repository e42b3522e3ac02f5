"""A shared entry with a changed bit is no entry (I12, fault F5).

Found by the fault "altered": entries whose bits were changed in Redis decoded to other grants, and
were answered from.
"""

from authz_service.engine.facts import NO_END, Grants, Subject
from authz_service.storage.cache import keys
from authz_service.storage.cache.control import Control
from authz_service.storage.cache.sharing import Sharing
from authz_service.storage.tagged_facts import TaggedFact

SUBJECT = Subject("membership", "om_1")
FACT = TaggedFact(
    "org_1",
    Grants("org_1", True, ({"resource_1": {"document:read": NO_END}},)),
    frozenset({"m:om_1", "O", "R"}),
    uses_definitions=True,
)


class Kept(Control):
    """Keeps what is shared."""

    blob = b""

    def share(self, realm: str, key: str, entry: bytes, milliseconds: int) -> None:
        self.blob = entry


def test_no_changed_bit_gives_another_fact() -> None:
    sharing, kept = Sharing(b"k" * 32), Kept()
    assert keys.own_key(SUBJECT) is not None
    sharing.share(kept, "org_1", SUBJECT, FACT, now=0, since=7, nonce="n1", version="n2.3")
    whole = sharing.decode(kept.blob, SUBJECT, "org_1")
    assert whole is not None
    assert whole.fact.value == FACT.value
    wrong = []
    for place in range(len(kept.blob)):
        for bit in range(8):
            changed = bytearray(kept.blob)
            changed[place] ^= 1 << bit
            if sharing.decode(bytes(changed), SUBJECT, "org_1") is not None:
                wrong.append(bytes(changed))
    assert wrong == [], f"{len(wrong)} changed entries were believed, such as {wrong[0]!r}"

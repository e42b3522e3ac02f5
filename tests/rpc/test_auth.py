"""Who is calling is decided by one credential, which is read again whenever it matters."""

from datetime import UTC, datetime, timedelta

import pytest

from authz_service.base import ids, secrets
from authz_service.base.errors import Refusal, Unavailable
from authz_service.base.secrets import Secret
from authz_service.rpc import auth
from authz_service.rpc.auth import Authenticator, Caller, Client, Credential
from authz_service.rpc.call import Call
from authz_service.rpc.metadata import CallMetadata
from tests.rpc.conftest import FIRST, KEY, Credentials

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Door:
    """An authenticator with its credentials and its clock."""

    def __init__(self, **changes: object) -> None:
        self.credentials = Credentials()
        self.now = NOW
        self.authenticator = Authenticator(
            find_credential=self.credentials.find,
            keys=(KEY, b"o" * 32),
            first_credential=Secret(FIRST),
            clients={"app.test": Client("app", frozenset({"check"}), frozenset({"org_1"}))},
            now=lambda: self.now,
            **changes,  # type: ignore[arg-type]
        )

    def enter(
        self, bearer: str = "", scope: str = "check", work: str = "decision",
        names: tuple[str, ...] = (), from_source: bool = False,
    ) -> tuple[Caller, bool]:  # fmt: skip
        return self.authenticator.authenticate(
            Call("/a/b", (), certificate_names=names),
            CallMetadata(bearer),
            scope=scope,
            work=work,
            from_source=from_source,
        )

    def reason(self, *args: object, **changes: object) -> str:
        with pytest.raises(Refusal) as caught:
            self.enter(*args, **changes)  # type: ignore[arg-type]
        return caught.value.reason


def test_a_service_credential_is_its_scopes_and_organizations() -> None:
    door = Door()
    secret = door.credentials.add("check", "read", organization_ids=frozenset({"org_1"}))
    caller, is_provisional = door.enter(secret)
    (id,) = door.credentials.by_id
    assert (caller.kind, caller.id, is_provisional) == ("SERVICE_CREDENTIAL", id, False)
    assert caller.scopes == {"check", "read"}
    assert caller.organization_ids == {"org_1"}
    actor = auth.actor_of(caller, CallMetadata(on_behalf_of_user_id="user_1"), "r1")
    assert (actor.on_behalf_of_user_id, actor.request_id) == ("user_1", "r1")
    assert actor.organization_ids == {"org_1"}


def test_the_first_credential_may_do_all_without_a_look_up() -> None:
    door = Door()
    for scope in ("check", "write:roles", "admin", auth.ANY):
        caller, is_provisional = door.enter(FIRST, scope)
        assert (caller.id, is_provisional) == ("first", False)
    assert door.credentials.asked == []


def test_without_a_first_credential_nothing_is_one() -> None:
    door = Door()
    door.authenticator = Authenticator(find_credential=lambda id: None, keys=(KEY,))
    assert door.reason(FIRST) == "CREDENTIAL_INVALID"
    assert door.reason("x") == "CREDENTIAL_INVALID"


def test_no_credential_is_missing() -> None:
    assert Door().reason() == "CREDENTIAL_MISSING"


def test_open_methods_need_none() -> None:
    caller, is_provisional = Door().enter(scope="open")
    assert (caller, is_provisional) == (auth.NOBODY, False)


def test_unknown_damaged_and_revoked_credentials_are_one_answer() -> None:
    door = Door()
    secret = door.credentials.add("check")
    other = door.credentials.add("check")
    unknown = secrets.make("azc", ids.CREDENTIAL, ids.new(ids.CREDENTIAL)).reveal()
    revoked = door.credentials.add("check", is_revoked=True)
    crossed = secret[:31] + other[31:]
    texts = set()
    for bearer in (unknown, revoked, crossed, secret[:-1], "x", FIRST + "x", secret.lower()):
        with pytest.raises(Refusal) as caught:
            door.enter(bearer)
        assert caught.value.reason == "CREDENTIAL_INVALID"
        texts.add(caught.value.message)
    assert len(texts) == 1


def test_an_expired_credential_says_so_only_to_who_has_it() -> None:
    door = Door()
    secret = door.credentials.add("check", expires_at=NOW + SECOND)
    door.enter(secret, work="read")
    door.now = NOW + SECOND
    assert door.reason(secret, work="read") == "CREDENTIAL_EXPIRED"
    assert door.reason(secret[:-1] + ("a" if secret[-1] != "a" else "b")) == "CREDENTIAL_INVALID"


def test_revoked_comes_before_expired() -> None:
    door = Door()
    secret = door.credentials.add("check", expires_at=NOW, is_revoked=True)
    assert door.reason(secret) == "CREDENTIAL_INVALID"


def test_during_a_rotation_both_secrets_are_right_until_the_old_one_ends() -> None:
    door = Door()
    id = ids.new(ids.CREDENTIAL)
    old, new = (secrets.make("azc", ids.CREDENTIAL, id).reveal() for _ in range(2))
    door.credentials.by_id[id] = Credential(
        id,
        ((secrets.hashed(KEY, new), None), (secrets.hashed(KEY, old), NOW + SECOND)),
        frozenset({"check"}),
    )
    for work in ("read", "decision", "decision"):
        assert door.enter(old, work=work)[0].id == door.enter(new, work=work)[0].id == id
    door.now = NOW + SECOND
    for work in ("read", "decision"):
        assert door.reason(old, work=work) == "CREDENTIAL_EXPIRED"
        door.enter(new, work=work)


def test_a_secret_hashed_under_an_older_key_is_still_right() -> None:
    door = Door()
    secret = door.credentials.add("check")
    (id,) = door.credentials.by_id
    door.credentials.by_id[id] = Credential(
        id, ((secrets.hashed(b"o" * 32, secret), None),), frozenset({"check"})
    )
    door.enter(secret)


@pytest.mark.parametrize(
    ("scopes", "scope", "is_allowed"),
    [
        ({"check"}, "check", True),
        ({"check"}, "read", False),
        ({"check"}, "admin", False),
        ({"check"}, auth.ANY, True),
        ({"admin"}, "write:roles", True),
        ({"write"}, "write:roles", False),
        ({"write:roles"}, "write:role", False),
        (set(), auth.ANY, True),
    ],
)
def test_a_method_needs_exactly_its_scope(scopes: set[str], scope: str, is_allowed: bool) -> None:
    door = Door()
    secret = door.credentials.add(*scopes)
    if is_allowed:
        door.enter(secret, scope)
        return
    with pytest.raises(Refusal) as caught:
        door.enter(secret, scope)
    assert (caught.value.reason, caught.value.metadata) == ("SCOPE_MISSING", {"scope": scope})


def test_every_call_but_a_decision_reads_the_credential() -> None:
    door = Door()
    secret = door.credentials.add("check")
    for work in ("read", "list", "write", "watch"):
        for _ in range(2):
            assert door.enter(secret, work=work)[1] is False
    assert len(door.credentials.asked) == 8


def test_what_decisions_remember_admits_nothing_else() -> None:
    door = Door()
    secret = door.credentials.add("admin")
    door.enter(secret)
    assert door.enter(secret)[1] is True
    door.credentials.by_id.clear()
    for work in ("read", "list", "write", "watch"):
        assert door.reason(secret, work=work) == "CREDENTIAL_INVALID"


def test_a_decision_is_admitted_by_memory_and_says_so() -> None:
    door = Door()
    secret = door.credentials.add("check", revision=7)
    assert door.enter(secret)[1] is False
    caller, is_provisional = door.enter(secret)
    assert (is_provisional, caller.revision) == (True, 7)
    assert len(door.credentials.asked) == 1


def test_other_classes_of_work_remember_nothing_for_decisions() -> None:
    door = Door()
    secret = door.credentials.add("check")
    door.enter(secret, work="read")
    assert door.enter(secret)[1] is False


def test_which_classes_confirm_is_the_servers_choice() -> None:
    door = Door(confirming=frozenset({"decision", "list"}))
    secret = door.credentials.add("list")
    door.enter(secret, "list", "list")
    assert door.enter(secret, "list", "list")[1] is True
    door = Door(confirming=frozenset())
    secret = door.credentials.add("check")
    door.enter(secret)
    assert door.enter(secret)[1] is False


def test_from_source_forgets_and_reads_again() -> None:
    door = Door()
    secret = door.credentials.add("check")
    (id,) = door.credentials.by_id
    door.enter(secret)
    del door.credentials.by_id[id]
    assert door.enter(secret)[1] is True
    assert door.reason(secret, from_source=True) == "CREDENTIAL_INVALID"
    # And is not believed by the next call either.
    assert door.reason(secret) == "CREDENTIAL_INVALID"


def test_a_refused_bearer_is_not_remembered() -> None:
    door = Door()
    secret = door.credentials.add("check", is_revoked=True)
    for _ in range(2):
        assert door.reason(secret) == "CREDENTIAL_INVALID"
    assert len(door.credentials.asked) == 2


def test_a_remembered_credential_still_ends_on_time() -> None:
    door = Door()
    secret = door.credentials.add("check", expires_at=NOW + SECOND)
    door.enter(secret)
    door.now = NOW + SECOND
    assert door.reason(secret) == "CREDENTIAL_EXPIRED"


def test_a_remembered_credential_still_needs_the_scope() -> None:
    door = Door()
    secret = door.credentials.add("check")
    door.enter(secret)
    assert door.reason(secret, "read", "decision") == "SCOPE_MISSING"


def test_memory_is_bounded_and_drops_the_oldest() -> None:
    door = Door(remembered_max=2)
    first, second, third = (door.credentials.add("check") for _ in range(3))
    for secret in (first, second, third):
        door.enter(secret)
    assert [door.enter(secret)[1] for secret in (second, third)] == [True, True]
    assert door.enter(first)[1] is False


def test_a_certificate_is_the_client_it_is_mapped_to() -> None:
    door = Door()
    caller, is_provisional = door.enter(names=("other.test", "app.test"))
    assert (caller.kind, caller.id, is_provisional) == ("CERTIFICATE", "app", False)
    assert caller.organization_ids == {"org_1"}
    assert door.reason(names=("other.test", "xapp.test", "app.test.evil")) == "CREDENTIAL_MISSING"


def test_a_bearer_decides_also_beside_a_certificate() -> None:
    door = Door()
    secret = door.credentials.add("read")
    assert door.reason(secret, names=("app.test",)) == "SCOPE_MISSING"
    assert door.reason("x", names=("app.test",)) == "CREDENTIAL_INVALID"


def test_an_outage_of_the_source_is_its_own_refusal() -> None:
    def away(id: str) -> Credential | None:
        raise Unavailable("DATABASE_UNAVAILABLE")

    door = Door()
    secret = door.credentials.add("check")
    door.authenticator = Authenticator(find_credential=away, keys=(KEY,))
    assert door.reason(secret) == "DATABASE_UNAVAILABLE"
    # A bearer that cannot be one is told so without asking.
    assert door.reason("x") == "CREDENTIAL_INVALID"


def test_nothing_prints_a_secret() -> None:
    door = Door()
    secret = door.credentials.add("check")
    caller, _ = door.enter(secret)
    for shown in (repr(caller), repr(door.authenticator), repr(vars(door.authenticator))):
        assert secret.split("_")[2] not in shown
        assert FIRST not in shown

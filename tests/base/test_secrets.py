"""Secrets are found by id, compared by hash, and never printed."""

import json
import pickle

import pytest

from authz_service.base import ids, secrets
from authz_service.base.secrets import Secret

KEY, OLD_KEY = b"k" * 32, b"o" * 32


def made() -> tuple[str, str]:
    id = ids.new(ids.CREDENTIAL)
    return id, secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, id).reveal()


def test_a_secret_names_its_id_and_has_256_random_bits() -> None:
    id, secret = made()
    prefix, part, random = secret.split("_")
    assert (prefix, part) == ("azc", id.removeprefix("credential_"))
    assert len(random) == 43
    assert random.isalnum()
    assert 62**43 > 2**256
    assert secrets.id_of(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, secret) == id


def test_two_secrets_of_one_id_differ() -> None:
    id = ids.new(ids.API_KEY)
    first, second = (secrets.make(secrets.API_KEY, ids.API_KEY, id) for _ in range(2))
    assert first != second
    assert first.reveal().startswith("sk_")


def test_a_secret_for_an_id_of_another_kind_is_a_bug() -> None:
    with pytest.raises(ValueError, match="credential"):
        secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, ids.new(ids.USER))


def spoiled() -> list[str]:
    _, secret = made()
    return [
        "",
        "azc_",
        secret[:-1],
        secret + "a",
        secret + "\n",
        " " + secret,
        secret.replace("azc_", "sk_"),
        secret.replace("azc_", "AZC_"),
        secret.replace("azc_", "azc__"),
        secret[:4] + "8" + secret[5:],  # above the largest ULID
        secret[:4] + "I" + secret[5:],  # not a digit of its alphabet
        secret[:-1] + "é",
        secret[:-1] + "-",
        secret[:-1] + "\ud800",
        secret * 1000,
        "azc_" + "0" * 26 + "_" + "a" * 42,
    ]


# Made anew in every process: workers must agree on the names of tests.
@pytest.mark.parametrize("text", spoiled(), ids=lambda _: "text")
def test_a_malformed_secret_names_no_id(text: str) -> None:
    assert secrets.id_of(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, text) is None


def test_a_secret_matches_its_hash_under_any_key_in_force_and_no_other() -> None:
    _, secret = made()
    _, other = made()
    stored = secrets.hashed(OLD_KEY, secret)
    assert len(stored) == 32
    assert secrets.matches((KEY, OLD_KEY), secret, stored)
    assert not secrets.matches((KEY,), secret, stored)
    assert not secrets.matches((KEY, OLD_KEY), other, stored)
    assert not secrets.matches((KEY,), secret, b"")
    assert not secrets.matches((), secret, stored)


def test_moving_a_secret_to_another_id_breaks_it() -> None:
    _, secret = made()
    other, _ = made()
    moved = f"azc_{other.removeprefix('credential_')}_{secret.split('_')[2]}"
    assert not secrets.matches((KEY,), moved, secrets.hashed(KEY, secret))


def test_hashing_takes_text_that_is_no_unicode() -> None:
    assert len(secrets.hashed(KEY, "\ud800")) == 32


@pytest.mark.parametrize(
    "shown",
    [str, repr, "{}".format, "{:>40}".format, "%s".__mod__, lambda secret: f"{secret!r}"],
)
def test_a_secret_prints_as_stars(shown) -> None:  # type: ignore[no-untyped-def]
    assert shown(Secret("canary")) == "***"


def test_a_secret_hides_in_containers_and_is_not_json() -> None:
    assert "canary" not in repr({"a": [Secret("canary")]})
    with pytest.raises(TypeError):
        json.dumps(Secret("canary"))
    assert not hasattr(Secret("canary"), "__dict__")


def test_a_secret_reaches_another_process_whole() -> None:
    assert pickle.loads(pickle.dumps(Secret("canary"))).reveal() == "canary"


def test_secrets_compare_by_value_and_cannot_be_keys() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("a")
    assert not Secret("")
    with pytest.raises(TypeError):
        {Secret("a")}


def test_what_is_shown_later_is_the_prefix_and_four_characters() -> None:
    _, secret = made()
    assert secrets.obfuscated(secret) == f"azc_…{secret[-4:]}"

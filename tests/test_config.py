"""Settings: read once, refused all together, and never at the price of a secret."""

import base64
import json
from pathlib import Path

import pytest

from authz_service.base import ids, secrets
from authz_service.base.secrets import Secret
from authz_service.config import (
    EXAMPLE_ROOT_KEY,
    Address,
    Config,
    ConfigError,
    Problem,
    Setting,
    TlsClient,
    client_settings,
    dev_environment,
    foreign_environment,
    settings,
)

KEY = base64.b64encode(bytes(range(32))).decode()
ORGANIZATION = ids.new(ids.ORGANIZATION)
POSTGRESQL = "postgresql://app:word@db.internal:5432/authz"
ALL = list(settings())
NUMBERS = [setting for _, _, setting in ALL if " number from " in setting.range]


def read(**given: str) -> Config:
    """Reads a configuration that is right but for what the test says."""
    return Config.from_environment({"AUTHZ_ROOT_KEYS": KEY} | given)


def problems_of(**given: str) -> list[Problem]:
    """Returns what is wrong with a configuration."""
    with pytest.raises(ConfigError) as caught:
        read(**given)
    return list(caught.value.problems)


def wrong(**given: str) -> list[tuple[str, str]]:
    """Returns the settings that are wrong, and why."""
    return [(problem.setting, problem.wrong) for problem in problems_of(**given)]


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, str]:
    """Variables for a server certificate; what is in the files is not config's business."""
    (tmp_path / "pem").write_text("pem")
    path = str(tmp_path / "pem")
    return {"AUTHZ_TLS_CERTIFICATE": path, "AUTHZ_TLS_KEY": path}


def test_root_keys_are_all_that_must_be_set() -> None:
    config = read()

    assert str(config.server.listen) == "127.0.0.1:50051"
    assert config.database.url.reveal() == "sqlite:///var/authz.db"
    assert config.security.root_key_bytes() == (bytes(range(32)),)


def test_every_bad_value_is_reported_at_once() -> None:
    found = problems_of(
        AUTHZ_ROOT_KEYS="short", AUTHZ_WORKERS="many", AUTHZ_LISTEN="9", AUTHZ_LIMIT_GROUPS="0"
    )

    assert [problem.setting for problem in found] == [
        "AUTHZ_LISTEN",
        "AUTHZ_WORKERS",
        "AUTHZ_ROOT_KEYS",
        "AUTHZ_LIMIT_GROUPS",
    ]
    assert found[1] == (
        "AUTHZ_WORKERS",
        "'many' is not a whole number",
        "must be a whole number from 1 to 128",
    )


def test_the_error_has_a_line_for_each_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        read(AUTHZ_REFLECTION="yes", AUTHZ_LIMIT_GROUPS="0")

    assert str(caught.value).splitlines() == [
        "AUTHZ_REFLECTION: 'yes' is neither on nor off; must be on or off",
        "AUTHZ_LIMIT_GROUPS: 0 is out of range; must be a whole number from 1 to 100000",
    ]


def test_an_empty_variable_counts_as_not_set() -> None:
    assert read(AUTHZ_WORKERS="", AUTHZ_HEALTH_LISTEN="") == read()


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.variable)
def test_a_number_is_right_at_its_limits_and_refused_beyond(setting: Setting) -> None:
    *_, low, _, high = setting.range.split()
    step = 0.001 if "whole" not in setting.range else 1

    assert setting.parse(low) == float(low)
    assert setting.parse(high) == float(high)
    for beyond in (float(low) - step, float(high) + step):
        text = f"{beyond:.0f}" if step == 1 else f"{beyond:f}"
        assert (setting.variable, f"{text} is out of range") in [
            (name, why.replace("'", "")) for name, why in wrong(**{setting.variable: text})
        ]


@pytest.mark.parametrize("text", ["1.5", "1e3", "0x10", "1_000", "٣", "--1", "9" * 16, "1 2"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    assert wrong(AUTHZ_QUEUE_MAX=text) == [("AUTHZ_QUEUE_MAX", f"{text!r} is not a whole number")]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_a_number_is_finite(text: str) -> None:
    assert wrong(AUTHZ_DRAIN_SECONDS=text) == [("AUTHZ_DRAIN_SECONDS", f"{text!r} is out of range")]


@pytest.mark.parametrize("text", ["soon", "1,5"])
def test_what_is_no_number_is_refused(text: str) -> None:
    assert wrong(AUTHZ_DRAIN_SECONDS=text) == [("AUTHZ_DRAIN_SECONDS", f"{text!r} is not a number")]


def test_what_is_no_path_is_refused() -> None:
    assert [name for name, _ in wrong(AUTHZ_TLS_KEY="\0")] == ["AUTHZ_TLS_KEY"]


def test_a_misspelt_setting_is_not_ignored() -> None:
    assert problems_of(AUTHZ_WORKER="4", AUTHZ_MEMCACHED_URL="memcached://h") == [
        ("AUTHZ_MEMCACHED_URL", "is no setting of this version", "see docs/configuration.md"),
        ("AUTHZ_WORKER", "is no setting of this version", "did you mean AUTHZ_WORKERS?"),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "memcached://127.0.0.1", "redis://", "redis://a@b@c", "redis://:6379", "redis://h:x", "h:1",
        "redis://127.0.0.1:0",
    ],
)  # fmt: skip
def test_what_is_no_redis_is_refused(url: str) -> None:
    assert [name for name, _ in wrong(AUTHZ_REDIS_URL=url, AUTHZ_DATABASE_URL=POSTGRESQL)] == [
        "AUTHZ_REDIS_URL"
    ]


def test_redis_needs_postgresql() -> None:
    found = problems_of(AUTHZ_REDIS_URL="redis://127.0.0.1", AUTHZ_DATABASE_URL="sqlite:////a.db")
    assert [name for name, *_ in found] == ["AUTHZ_REDIS_URL"]


@pytest.mark.parametrize(
    ("url", "insecure", "is_refused"),
    [
        ("redis://127.0.0.1:6379/0", "", False),
        ("redis://:secret@localhost", "", False),
        ("redis://[::1]:6379", "", False),
        ("unix:///run/valkey.sock", "", False),
        ("rediss://cache.example.com", "", False),
        ("redis://cache.example.com", "", True),
        ("redis://10.0.0.7:6379", "", True),
        ("redis://10.0.0.7:6379", "on", False),
    ],
)
def test_redis_off_loopback_needs_tls(url: str, insecure: str, is_refused: bool) -> None:
    given = {
        "AUTHZ_REDIS_URL": url,
        "AUTHZ_INSECURE": insecure,
        "AUTHZ_DATABASE_URL": POSTGRESQL,
    }
    if is_refused:
        assert [name for name, _ in wrong(**given)] == ["AUTHZ_REDIS_URL"]
    else:
        read(**given)


def test_what_kubernetes_adds_for_a_service_called_authz_is_ignored() -> None:
    read(
        AUTHZ_SERVICE_HOST="10.0.0.1",
        AUTHZ_SERVICE_PORT="50051",
        AUTHZ_SERVICE_PORT_GRPC="50051",
        AUTHZ_PORT="tcp://10.0.0.1:50051",
        AUTHZ_PORT_50051_TCP="tcp://10.0.0.1:50051",
        AUTHZ_PORT_50051_TCP_ADDR="10.0.0.1",
        AUTHZ_METRICS_SERVICE_HOST="10.0.0.2",
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not set"),
        (" ", "key 1 has only 0 bytes"),
        (f"!{KEY}", "key 1 is not base 64"),
        (f"{KEY}, {base64.b64encode(bytes(31)).decode()}", "key 2 has only 31 bytes"),
        (EXAMPLE_ROOT_KEY, "key 1 is the documented example, which everybody knows"),
        (f"{KEY},{EXAMPLE_ROOT_KEY}", "key 2 is the documented example, which everybody knows"),
    ],
)
def test_t12_bad_root_keys_stop_the_start(text: str, why: str) -> None:
    assert wrong(AUTHZ_ROOT_KEYS=text) == [("AUTHZ_ROOT_KEYS", why)]


@pytest.mark.parametrize("between", [",", " ", "\n", ", "])
def test_root_keys_keep_their_order(between: str) -> None:
    second = base64.b64encode(bytes(range(40))).decode()

    config = read(AUTHZ_ROOT_KEYS=f"{KEY}{between}{second}")

    assert config.security.root_key_bytes() == (bytes(range(32)), bytes(range(40)))


def test_the_first_credential_has_the_form_of_a_service_credential() -> None:
    secret = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, ids.new(ids.CREDENTIAL))
    key = secrets.make(secrets.API_KEY, ids.API_KEY, ids.new(ids.API_KEY))

    assert read(AUTHZ_FIRST_CREDENTIAL=secret.reveal()).security.first_credential == secret
    for bad in (key.reveal(), secret.reveal()[:-1], "azc_password"):
        assert wrong(AUTHZ_FIRST_CREDENTIAL=bad) == [
            ("AUTHZ_FIRST_CREDENTIAL", "it does not have the form of a service credential")
        ]


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")

    config = Config.from_environment({"AUTHZ_ROOT_KEYS_FILE": str(tmp_path / "keys")})

    assert config == read()


def test_a_secret_in_two_places_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)

    assert wrong(AUTHZ_ROOT_KEYS_FILE=str(tmp_path / "keys")) == [
        ("AUTHZ_ROOT_KEYS", "is set together with AUTHZ_ROOT_KEYS_FILE, of which only one may be")
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "cannot be read: no path, or no text"),
        (b"x" * (64 * 1024 + 1), "is larger than 65536 bytes"),
    ],
)
def test_a_file_that_holds_no_secret_is_refused(
    content: bytes | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    if content is not None:
        path.write_bytes(content)

    ((name, found),) = wrong(AUTHZ_FIRST_CREDENTIAL_FILE=str(path))

    assert name == "AUTHZ_FIRST_CREDENTIAL"
    assert found.startswith("its file '") and found.endswith(why)


def test_a_secret_file_at_its_largest_is_read(tmp_path: Path) -> None:
    text = KEY + "\n" * (64 * 1024 - len(KEY))
    (tmp_path / "keys").write_text(text)

    assert Config.from_environment({"AUTHZ_ROOT_KEYS_FILE": str(tmp_path / "keys")}) == read()


def test_what_is_no_secret_does_not_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "workers").write_text("1")

    assert wrong(AUTHZ_WORKERS_FILE=str(tmp_path / "workers")) == [
        ("AUTHZ_WORKERS_FILE", "is no setting of this version")
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (POSTGRESQL, "postgresql+psycopg://app:word@db.internal:5432/authz"),
        (
            "postgresql+psycopg:///authz?host=%2Ftmp%2Fs",
            "postgresql+psycopg:///authz?host=%2Ftmp%2Fs",
        ),
        ("postgresql://a:p%40%3A%2F%3F%23@h/d", "postgresql+psycopg://a:p%40%3A%2F%3F%23@h/d"),
        ("sqlite:///relative.db", "sqlite:///relative.db"),
        ("sqlite:////var/lib/authz.db", "sqlite:////var/lib/authz.db"),
    ],
)
def test_database_urls(given: str, expected: str) -> None:
    assert read(AUTHZ_DATABASE_URL=given).database.url.reveal() == expected


@pytest.mark.parametrize(
    "bad",
    [
        "authz.db",
        "mysql://canary@h/d",
        "postgresql+asyncpg://u:canary@h/d",
        "postgresql://u:canary@h",
        "postgresql://u:canary@h:0/d",
        "postgresql://u:canary@h:x/d",
        "postgresql://u:can@ary@h/d",
        "postgresql://u:can/ary@h/d",
        "postgresql://u:5/canary@h/d",
        "postgresql://u:can?ary@h/d",
        "postgresql://u:can#ary@h/d",
        "postgresql://u@h/d#canary",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file:canary?mode=memory&uri=true",
        "sqlite:canary",
    ],
)
def test_t14_a_bad_database_url_is_refused_without_being_repeated(bad: str) -> None:
    (problem,) = problems_of(AUTHZ_DATABASE_URL=bad)

    assert problem.setting == "AUTHZ_DATABASE_URL"
    assert "can" not in problem.wrong.replace("cannot", "") and "ary" not in str(problem)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (POSTGRESQL, "postgresql+psycopg://***@db.internal:5432/authz"),
        (
            "postgresql://h/d?host=%2Ftmp%2Fs&sslmode=require&password=canary&sslkey=canary",
            "postgresql+psycopg://h/d?host=/tmp/s&sslmode=require&password=***&sslkey=***",
        ),
        ("sqlite:///authz.db", "sqlite:///authz.db"),
    ],
)
def test_what_may_be_shown_of_a_database_url(url: str, shown: str) -> None:
    assert read(AUTHZ_DATABASE_URL=url).redacted()["AUTHZ_DATABASE_URL"] == shown


def test_t14_no_secret_is_ever_printed() -> None:
    secret = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, ids.new(ids.CREDENTIAL))
    config = read(
        AUTHZ_DATABASE_URL="postgresql://u:canary@h/d", AUTHZ_FIRST_CREDENTIAL=secret.reveal()
    )

    for text in (repr(config), str(config), repr(config.redacted()), f"{config.database}"):
        for canary in ("canary", secret.reveal(), KEY):
            assert canary not in text


def test_redacted_has_every_setting_with_its_effective_value() -> None:
    shown = read(AUTHZ_SERVER_THREADS="20", AUTHZ_REFLECTION="on").redacted()

    assert list(shown) == [setting.variable for _, _, setting in ALL]
    assert shown["AUTHZ_DATABASE_POOL"] == "22"
    assert shown["AUTHZ_REFLECTION"] == "on"
    assert shown["AUTHZ_ROOT_KEYS"] == "***"
    assert shown["AUTHZ_FIRST_CREDENTIAL"] == shown["AUTHZ_HEALTH_LISTEN"] == ""


def test_the_pool_may_be_set_by_itself() -> None:
    assert read(AUTHZ_SERVER_THREADS="20", AUTHZ_DATABASE_POOL="3").database.pool == 3


@pytest.mark.parametrize(
    ("text", "address", "is_local"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0), True),
        ("127.8.9.1:65535", Address("127.8.9.1", 65_535), True),
        ("localhost:1", Address("localhost", 1), True),
        ("[::1]:9", Address("::1", 9), True),
        ("unix:/run/authz.sock", Address(path="/run/authz.sock"), True),
        ("0.0.0.0:1", Address("0.0.0.0", 1), False),
        ("[::]:1", Address("::", 1), False),
        ("localhost.example:1", Address("localhost.example", 1), False),
        ("10.0.0.1:1", Address("10.0.0.1", 1), False),
    ],
)
def test_addresses(text: str, address: Address, is_local: bool) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.is_local is is_local


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        ":1",
        "h:",
        "h:65536",
        "h:000001",
        "h:-1",
        "h:1x",
        "::1:9",
        "[h]:1",
        "[::1]",
        "unix:x",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


def test_metrics_are_for_readers_that_know_no_unix_socket() -> None:
    assert wrong(AUTHZ_METRICS_LISTEN="unix:/run/metrics.sock") == [
        ("AUTHZ_METRICS_LISTEN", "'unix:/run/metrics.sock' is a unix socket")
    ]


def test_sqlite_serves_one_process_only() -> None:
    assert wrong(AUTHZ_WORKERS="2") == [("AUTHZ_WORKERS", "SQLite serves one process only")]
    assert read(AUTHZ_WORKERS="2", AUTHZ_DATABASE_URL=POSTGRESQL).server.workers == 2


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:/run/authz.sock"])
def test_several_workers_need_an_address_they_can_share(address: str) -> None:
    found = wrong(AUTHZ_WORKERS="2", AUTHZ_DATABASE_URL=POSTGRESQL, AUTHZ_LISTEN=address)

    assert found == [("AUTHZ_LISTEN", "several workers cannot share it")]
    assert str(read(AUTHZ_LISTEN=address).server.listen) == address


@pytest.mark.parametrize("setting", ["LISTEN", "HEALTH_LISTEN", "METRICS_LISTEN"])
def test_others_reach_no_listener_without_tls_unless_told(setting: str) -> None:
    given = {f"AUTHZ_{setting}": "0.0.0.0:7000"}

    assert wrong(**given) == [
        (f"AUTHZ_{setting}", "others than this machine could reach it without TLS")
    ]
    read(**given, AUTHZ_INSECURE="on")


def test_tls_opens_the_api_to_others_but_not_the_plain_listeners(
    certificate: dict[str, str],
) -> None:
    read(**certificate, AUTHZ_LISTEN="0.0.0.0:7000")

    found = wrong(
        **certificate, AUTHZ_HEALTH_LISTEN="0.0.0.0:7001", AUTHZ_METRICS_LISTEN="0.0.0.0:7002"
    )

    assert [name for name, _ in found] == ["AUTHZ_HEALTH_LISTEN", "AUTHZ_METRICS_LISTEN"]


def test_beside_client_certificates_health_may_be_plain(certificate: dict[str, str]) -> None:
    authority = {"AUTHZ_TLS_CLIENT_CA": certificate["AUTHZ_TLS_KEY"]}

    read(**certificate, **authority, AUTHZ_HEALTH_LISTEN="0.0.0.0:7001")


@pytest.mark.parametrize("missing", ["CERTIFICATE", "KEY"])
def test_certificate_and_key_come_together(missing: str, certificate: dict[str, str]) -> None:
    del certificate[f"AUTHZ_TLS_{missing}"]

    assert wrong(**certificate) == [(f"AUTHZ_TLS_{missing}", "is not set")]


def test_client_certificates_need_the_rest_of_tls(certificate: dict[str, str]) -> None:
    clients = '{"orders.example": {"name": "orders", "scopes": ["check"]}}'

    assert [name for name, _ in wrong(AUTHZ_TLS_CLIENT_CA=certificate["AUTHZ_TLS_KEY"])] == [
        "AUTHZ_TLS_CLIENT_CA"
    ]
    assert [name for name, _ in wrong(**certificate, AUTHZ_TLS_CLIENTS=clients)] == [
        "AUTHZ_TLS_CLIENTS"
    ]


def test_a_file_that_cannot_be_read_is_named_and_blames_nothing_else(
    certificate: dict[str, str],
) -> None:
    certificate["AUTHZ_TLS_CERTIFICATE"] += "x"

    ((name, why),) = wrong(**certificate, AUTHZ_LISTEN="0.0.0.0:7000")

    assert name == "AUTHZ_TLS_CERTIFICATE"
    assert why.endswith("cannot be read: No such file or directory")


def test_two_listeners_do_not_share_an_address() -> None:
    assert wrong(AUTHZ_METRICS_LISTEN="127.0.0.1:50051") == [
        ("AUTHZ_METRICS_LISTEN", "is the address of AUTHZ_LISTEN")
    ]
    read(AUTHZ_LISTEN="127.0.0.1:0", AUTHZ_METRICS_LISTEN="127.0.0.1:0")


def test_tls_clients(certificate: dict[str, str]) -> None:
    orders = {"name": "orders", "scopes": ["check", "read"], "organization_ids": [ORGANIZATION]}
    text = json.dumps({"spiffe://a/b": orders, "b.example": {"name": "b", "scopes": ["admin"]}})
    authority = {"AUTHZ_TLS_CLIENT_CA": certificate["AUTHZ_TLS_KEY"]}

    config = read(**certificate, **authority, AUTHZ_TLS_CLIENTS=text)

    assert dict(config.security.tls_clients) == {
        "spiffe://a/b": TlsClient(
            "orders", frozenset({"check", "read"}), frozenset({ORGANIZATION})
        ),
        "b.example": TlsClient("b", frozenset({"admin"})),
    }


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"": {"name": "n", "scopes": ["check"]}}',
        '{"a": "check"}',
        '{"a": {"name": "n"}}',
        '{"a": {"scopes": ["check"]}}',
        '{"a": {"name": "", "scopes": ["check"]}}',
        f'{{"a": {{"name": "{"n" * 257}", "scopes": ["check"]}}}}',
        '{"a": {"name": "n", "scopes": []}}',
        '{"a": {"name": "n", "scopes": "check"}}',
        '{"a": {"name": "n", "scopes": ["Check"]}}',
        '{"a": {"name": "n", "scopes": [1]}}',
        '{"a": {"name": "n", "scopes": ["check"], "organization_ids": []}}',
        '{"a": {"name": "n", "scopes": ["check"], "organization_ids": ["org_1"]}}',
        '{"a": {"name": "n", "scopes": ["check"], "organizations": ["org_1"]}}',
        '{"a": {"name": "n", "scopes": ["check"]}, "a": {"name": "m", "scopes": ["admin"]}}',
    ],
)
def test_a_damaged_list_of_tls_clients_is_refused_whole(
    text: str, certificate: dict[str, str]
) -> None:
    authority = {"AUTHZ_TLS_CLIENT_CA": certificate["AUTHZ_TLS_KEY"]}

    ((name, _),) = wrong(**certificate, **authority, AUTHZ_TLS_CLIENTS=text)

    assert name == "AUTHZ_TLS_CLIENTS"


def test_a_tls_client_may_have_a_name_of_256_characters(certificate: dict[str, str]) -> None:
    text = f'{{"a": {{"name": "{"n" * 256}", "scopes": ["check"]}}}}'
    authority = {"AUTHZ_TLS_CLIENT_CA": certificate["AUTHZ_TLS_KEY"]}

    assert read(**certificate, **authority, AUTHZ_TLS_CLIENTS=text).security.tls_clients


def test_dev_makes_up_what_is_missing_and_says_so() -> None:
    completed, lines = dev_environment({"AUTHZ_WORKERS": "1"})

    config = Config.from_environment(completed)
    assert [line.partition(":")[0] for line in lines] == [
        "AUTHZ_ROOT_KEYS",
        "AUTHZ_FIRST_CREDENTIAL",
    ]
    assert config.security.first_credential is not None
    assert lines[1].endswith(config.security.first_credential.reveal())
    assert dev_environment(completed) == (completed, [])


def test_dev_makes_other_secrets_each_time() -> None:
    first, _ = dev_environment({})
    second, _ = dev_environment({})

    assert not set(first.values()) & set(second.values())


def test_dev_leaves_a_secret_file_alone(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)

    completed, lines = dev_environment({"AUTHZ_ROOT_KEYS_FILE": str(tmp_path / "keys")})

    assert len(lines) == 1
    assert Config.from_environment(completed).security.root_key_bytes() == (bytes(range(32)),)


def test_without_an_argument_the_process_environment_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTHZ_ROOT_KEYS", KEY)
    monkeypatch.setenv("AUTHZ_QUEUE_MAX", "7")

    assert Config.from_environment().server.queue_max == 7
    assert dev_environment()[0]["AUTHZ_QUEUE_MAX"] == "7"


def credential() -> str:
    """Returns a new service credential."""
    return secrets.make(
        secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, ids.new(ids.CREDENTIAL)
    ).reveal()


def test_a_client_reads_its_own_settings_and_no_others(certificate: dict[str, str]) -> None:
    own = credential()
    given = {"AUTHZ_ADDRESS": "authz.internal:443", "AUTHZ_CREDENTIAL": own, "AUTHZ_WORKERS": "?"}

    client = client_settings(given | {"AUTHZ_CA": certificate["AUTHZ_TLS_KEY"]})

    assert (str(client.address), client.credential) == ("authz.internal:443", Secret(own))
    assert client.ca == Path(certificate["AUTHZ_TLS_KEY"])


def test_a_client_falls_back_to_the_first_credential() -> None:
    first, own = credential(), credential()
    given = {"AUTHZ_FIRST_CREDENTIAL": first}

    assert client_settings(given).credential == Secret(first)
    assert client_settings(given | {"AUTHZ_CREDENTIAL": own}).credential == Secret(own)
    assert client_settings({}).credential is None


def test_all_bad_values_of_a_client_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        client_settings({"AUTHZ_ADDRESS": "here", "AUTHZ_CREDENTIAL": "canary"})

    assert [problem.setting for problem in caught.value.problems] == [
        "AUTHZ_ADDRESS",
        "AUTHZ_CREDENTIAL",
    ]
    assert "canary" not in str(caught.value)


def test_another_process_gets_none_of_our_settings() -> None:
    assert foreign_environment({"AUTHZ_ROOT_KEYS": KEY, "PATH": "/bin"}) == {"PATH": "/bin"}

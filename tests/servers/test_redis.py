"""The fixtures of the cache tests: both programs, empty each time, the Redis from packages."""

from pathlib import Path

import pytest
from redis import Redis

from authz_service.stack.server import StackError
from authz_service.stack.valkey import valkey
from tests.servers import debian


@pytest.mark.parametrize("turn", ["first", "second"])
def test_each_test_finds_an_empty_server(redis_url: str, turn: str) -> None:
    with Redis.from_url(redis_url) as client:
        before = client.dbsize(), client.info("memory")["number_of_cached_scripts"]
        client.set(turn, "1")
        client.eval("return 1", 0)

    assert before == (0, 0)


def test_the_packages_are_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = debian.packaged_redis_7()
    monkeypatch.setenv("PATH", "")  # nothing is left that could fetch them

    assert debian.packaged_redis_7() == program
    with valkey(program) as server, Redis.from_url(server.url) as client:
        assert client.info("server")["redis_version"] == "7.0.15"


def test_a_machine_that_has_no_packages_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(debian, "_KEPT", tmp_path)

    with pytest.raises(StackError, match=r"^no Redis 7: .*apt-get"):
        debian.redis_7()

    assert [path.name for path in tmp_path.iterdir()] == ["lock"]

"""How often a question waits for a Redis that does not answer (F7).

"p99 <= that of SQL + 60 ms" is asserted as what it comes from, which no busy machine changes: a
wait ends after the timeout of Redis, a question has few of them, and of many questions few wait.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest

from authz_service.base.clock import boot_seconds
from authz_service.pb.authz.v1 import authorization_pb2 as pb
from authz_service.storage.cache.breaker import FAILURES_MAX, OPEN_SECONDS
from tests.callers import PACKAGE, Caller, through_channel
from tests.consistency.chaos.proxy import Manner, Proxy
from tests.consistency.conftest import Told
from tests.consistency.crowd import World, world
from tests.consistency.run import ANSWERS, CACHED, Verdict, counts, grown
from tests.consistency.sizes import PATIENCE_SECONDS, SEED, Crowd
from tests.consistency.stack import Servers, Service, stack, within

# So patient that a busy machine is not taken for a slow Redis.
TIMEOUT_SECONDS = 0.25
SETTINGS = {"AUTHZ_REDIS_TIMEOUT_MS": str(round(1_000 * TIMEOUT_SECONDS))}
QUESTIONS = 24
# What a question asks of Redis; renewals and fills ask for themselves.
SCRIPTS = ("open", "validate", "read")
# The decision front asks in its loop; who is not answered there is asked about in a thread, which
# knows of no failure before its own.
WAITS_MAX = {"grpcio": 1, "decisions": 2}
# Manners in which no reply is in time, and those in which some are.
NEVER = {
    "lost": Manner(loses=True),
    "late": Manner(seconds=(2 * TIMEOUT_SECONDS, 4 * TIMEOUT_SECONDS)),
}
SOMETIMES = {"hangs": Manner(hangs=0.2), "broken": Manner(resets=0.2)}


def waits(service: Service) -> int:
    """Returns how often questions waited for Redis in vain."""
    return sum(
        int(count)
        for (name, *labels), count in service.metrics().items()
        if name == "authz_cache_redis_seconds_count"
        # Labels come in the order of their names.
        and labels[1] in SCRIPTS
        and labels[0] not in ("ok", "no_script")
    )


class Asked:
    """Questions to one front, one after the other, all with the right answer.

    Attributes:
        waits: How often each of them waited in vain.
        seconds: How long all took.
    """

    def __init__(self, service: Service, made: World, check: Callable[[bytes], bool]) -> None:
        self.waits: list[int] = []
        began = boot_seconds()
        before = waits(service)
        for each in range(QUESTIONS):
            number, message = made.question(each % 8)
            assert check(message) == (made.expected(number) == "allowed")
            after = waits(service)
            self.waits.append(after - before)
            before = after
        self.seconds = boot_seconds() - began


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["lost"], id="lost"),
        pytest.param([*NEVER, *SOMETIMES], id="long", marks=pytest.mark.long),
    ],
)
def test_few_questions_wait_for_a_redis_that_does_not_answer(
    under: Servers, told: Told, names: Sequence[str]
) -> None:
    proxy = Proxy(under.redis.port, SEED)
    url = under.redis.url.replace(f":{under.redis.port}/", f":{proxy.port}/")
    with contextlib.ExitStack() as exits:
        exits.callback(proxy.close)
        started = exits.enter_context(
            stack(
                under,
                f"slow_redis_{len(names)}",
                naive=False,
                seed=SEED,
                processes=1,
                redis_urls={0: url},
                settings=SETTINGS,
            )
        )
        (service,) = started.services
        channels: dict[str, Any] = {
            "grpcio": exits.enter_context(grpc.insecure_channel(service.address)),
            "decisions": exits.enter_context(grpc.insecure_channel(service.decisions_address)),
        }
        made = world(Caller(through_channel(channels["grpcio"]), started.bearer), Crowd(2, 2, 2))
        metadata = (("authorization", f"Bearer {started.bearer}"),)
        for front, name in itertools.product(channels, names):
            call = channels[front].unary_unary(f"/{PACKAGE}.AuthorizationService/Check")

            def check(message: bytes, call: Any = call) -> bool:
                return pb.CheckResponse.FromString(call(message, metadata=metadata)).allowed

            def is_cached(check: Callable[[bytes], bool] = check) -> bool:
                before = counts(started, ANSWERS)
                check(made.question(0)[1])
                answers = grown(before, counts(started, ANSWERS))
                return any(answers.get(source) for source in CACHED)

            def comes_back(is_cached: Callable[[], bool] = is_cached) -> None:
                assert within(PATIENCE_SECONDS, is_cached) is not None, "it does not come back"

            comes_back()
            generation = service.metrics()["authz_cache_generation",]
            proxy.behave((NEVER | SOMETIMES)[name])
            asked = Asked(service, made, check)
            proxy.mend()
            told(
                f"F7 {front} {name}",
                Verdict(calls=QUESTIONS),
                waits=asked.waits,
                seconds=round(asked.seconds, 1),
            )
            assert 0 < max(asked.waits) <= WAITS_MAX[front]
            if name in NEVER:
                # The breaker opens; then one of all that come in a second finds out.
                opens = FAILURES_MAX + WAITS_MAX[front] - 1
                assert sum(asked.waits) <= opens + 1 + asked.seconds // OPEN_SECONDS
            comes_back()
            # Questions leave no life of the cache: that would cost the other processes.
            assert service.metrics()["authz_cache_generation",] == generation

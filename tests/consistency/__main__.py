"""A long run of histories and faults that writes what it found as JSON lines.

    python -m tests.consistency --seconds 1800 --faults all --output results.jsonl

Each line is one half or one fault: judged reads, acknowledged writes, faults, stale, backwards,
mixed, lost; with machine, commit and seed. The last line is the sum. The exit code is 1 if the
product lied, lost something or crashed, or if the naive half was not caught.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.consistency.chaos.faults import ALL, BY_NAME, QUICK
from tests.consistency.chaos.naive import TROUBLE
from tests.consistency.chaos.proxy import Proxy
from tests.consistency.chaos.scene import BEHIND_PROXY, Fault, begin, play
from tests.consistency.sizes import LEASE_SECONDS, SEED
from tests.consistency.stack import Servers, commit, machine, pause, servers, stack

NOTHING = Fault("none", "no fault", lambda scene: pause(1.0))
SUMMED = (
    "calls",
    "reads",
    "values",
    "writes",
    "faults",
    "stale",
    "backwards",
    "mixed",
    "impossible",
)


class Lines:
    """Writes lines to a file as they come, and adds them up."""

    def __init__(self, path: Path, seed: int) -> None:
        self._file = path.open("a")
        self._constant = {"machine": machine(), "commit": commit(), "seed": seed}
        self.sum: Counter[str] = Counter()
        self.is_clean = True

    def write(self, **fields: Any) -> None:
        """Writes one line."""
        print(json.dumps(fields | self._constant), file=self._file, flush=True)

    def add(self, line: dict[str, Any]) -> None:
        """Adds a line of the product to the sum."""
        self.sum.update({name: line[name] for name in SUMMED})
        self.sum["lost"] += len(line["lost"])
        self.sum["crashes"] += len(line["crashes"])


def main(arguments: list[str]) -> int:
    """Runs as told and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.consistency", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1_800, help="of the protocol half")
    parser.add_argument("--naive-seconds", type=float, default=20)
    parser.add_argument(
        "--faults",
        default="none",
        help=f"none, quick, all, or names with commas: {', '.join(BY_NAME)}",
    )
    parser.add_argument("--redis", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    groups = {"none": [NOTHING], "quick": QUICK, "all": ALL}
    faults = groups.get(given.faults) or [BY_NAME[name] for name in given.faults.split(",")]
    lines = Lines(given.output, given.seed)
    with servers(given.redis) as under:
        naive = NOTHING if faults == [NOTHING] else TROUBLE
        caught = _run(under, "naive", [naive], given.naive_seconds, lines, given.seed)
        _run(under, "protocol", faults, given.seconds / len(faults), lines, given.seed)
    lines.write(run="sum", redis=given.redis, naive_stale=caught, **lines.sum)
    print(json.dumps({"naive_stale": caught, **lines.sum}))
    return 0 if lines.is_clean and caught else 1


def _run(
    under: Servers, name: str, faults: list[Fault], seconds: float, lines: Lines, seed: int
) -> int:
    """Plays faults in a random order on one stack and returns how many answers were stale."""
    proxy = Proxy(under.redis.port)
    behind = under.redis.url.replace(f":{under.redis.port}/", f":{proxy.port}/")
    is_naive = name == "naive"
    stale = 0
    order = list(faults)
    random.Random(seed).shuffle(order)
    with stack(
        under,
        name,
        naive=is_naive,
        seed=seed,
        lease_seconds=LEASE_SECONDS,
        redis_urls={BEHIND_PROXY: behind},
    ) as started:
        scene = begin(started, proxy, seed)
        for fault in order:
            try:
                line = play(scene, fault, seconds).line
            except AssertionError as error:
                lines.is_clean = is_naive and lines.is_clean
                lines.write(run=name, fault=fault.number, name=fault.name, failed=str(error))
                print(f"{fault.name}: {error}", flush=True)
                continue
            stale += line["stale"]
            lines.write(run=name, **line)
            shown = {key: line[key] for key in ("reads", "writes", "faults", "stale", "mixed")}
            print(f"{name} {fault.name}: {shown} {line['lost']} {line['crashes'][:3]}", flush=True)
            if not is_naive:
                lines.add(line)
                wrong = any(line[key] for key in ("stale", "backwards", "mixed", "impossible"))
                lines.is_clean &= not (wrong or line["lost"] or line["crashes"])
        scene.load.close()
    proxy.close()
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

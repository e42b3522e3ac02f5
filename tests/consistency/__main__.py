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

from tests.consistency.chaos import failover
from tests.consistency.chaos.faults import BY_NAME, QUICK
from tests.consistency.chaos.naive import TROUBLE
from tests.consistency.chaos.scene import Fault, Scene, play, played_on
from tests.consistency.sizes import SEED
from tests.consistency.stack import commit, machine, pause, servers

NOTHING = Fault("none", "no fault", lambda scene: pause(1.0))
FAULTS = BY_NAME | {NOTHING.name: NOTHING}
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
        self.sum["leaked"] += len(line["leaks"])
        self.sum["crashes"] += len(line["crashes"])


def main(arguments: list[str]) -> int:
    """Runs as told and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.consistency", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1_800, help="of the protocol half")
    parser.add_argument("--naive-seconds", type=float, default=20)
    parser.add_argument(
        "--faults",
        default="none",
        help=f"none, quick, all, or names with commas: {', '.join([*BY_NAME, *failover.NAMES])}",
    )
    parser.add_argument("--redis", choices=("valkey", "redis"), default="valkey")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    groups = {
        "none": [NOTHING.name],
        "quick": [fault.name for fault in QUICK],
        "all": [*BY_NAME, *failover.NAMES],
    }
    names = groups.get(given.faults) or given.faults.split(",")
    faults = [FAULTS[name] for name in names if name not in failover.NAMES]
    random.Random(given.seed).shuffle(faults)
    seconds = given.seconds / len(names)
    lines = Lines(given.output, given.seed)
    with servers(given.redis) as under:
        with played_on(under, "naive", naive=True, seed=given.seed) as scene:
            # A storm is trouble for the naive cache by itself.
            wild = [TROUBLE, *(fault for fault in faults if fault.name == "storm")]
            naive = [NOTHING] if faults == [NOTHING] else wild
            caught = _play(scene, naive, given.naive_seconds / len(naive), lines)
        if faults:
            with played_on(under, "protocol", naive=False, seed=given.seed) as scene:
                _play(scene, faults, seconds, lines)
    for name in names:
        if name in failover.NAMES:
            with failover.paired(given.seed, given.redis) as (scene, pair):
                _play(scene, [failover.fault(name, pair)], seconds, lines)
    lines.write(run="sum", redis=given.redis, naive_stale=caught, **lines.sum)
    print(json.dumps({"naive_stale": caught, **lines.sum}))
    return 0 if lines.is_clean and caught else 1


def _play(scene: Scene, faults: list[Fault], seconds: float, lines: Lines) -> int:
    """Plays faults one after the other and returns how many answers were stale."""
    is_naive = scene.stack.is_naive
    name = "naive" if is_naive else "protocol"
    stale = 0
    for fault in faults:
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
        wrong = [*line["lost"], *line["leaks"], *line["crashes"][:3]]
        print(f"{name} {fault.name}: {shown} {wrong}", flush=True)
        if not is_naive:
            lines.add(line)
            is_wrong = any(line[key] for key in ("stale", "backwards", "mixed", "impossible"))
            lines.is_clean &= not (is_wrong or line["lost"] or line["leaks"] or line["crashes"])
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

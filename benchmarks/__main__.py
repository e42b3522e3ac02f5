"""``make bench``: measures, writes results/latest.json and the table made from it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import cached, decisions, empty
from benchmarks.processes import machine

RESULTS = Path(__file__).parent / "results"


def table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    about = results["machine"]
    lines = [
        "# Measured",
        "",
        f"{about['time']}, commit {about['commit']}, {about['cores']} cores of {about['cpu']},"
        f" Python {about['python']}, grpcio {about['grpcio']}; command `make bench`. E0 is an empty"
        " RPC on a bare grpcio server in the same round. CPU microseconds for each item.",
        "",
        "| empty RPC | bare (E0) | health, same server | through the hall | hall / E0 | range |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['in_flight']} in flight | {row['bare_us']} | {row['e0_us']} | {row['e1_us']}"
        f" | {row['e1_of_bare']} | {' to '.join(map(str, row['e1_of_bare_range']))} |"
        for row in results["empty"]
    ]
    lines += [
        "",
        "| question | E0 | server | PostgreSQL | server / E0 | PostgreSQL / E0 | in all / E0 |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['question']} | {row['e0_us']} | {row['server_us']} | {row['postgresql_us']}"
        f" | {row['server_ratio']} | {row['postgresql_ratio']} | {row['in_all_ratio']} |"
        for row in results["decisions"]
    ]
    lines += [
        "",
        "From the cache, with PostgreSQL and Valkey; E1 is an empty RPC through the hall.",
        "",
        "| question | E1 | server | PostgreSQL | Valkey | server / E1 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['question']} | {row['e1_us']} | {row['server_us']} | {row['postgresql_us']}"
        f" | {row['redis_us']} | {row['server_ratio']} |"
        for row in results["cached"]
    ]
    if results.get("scale"):
        lines += [
            "",
            "| page of 100 | assignments | wall us | assignments | wall us | ratio |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['question']} | {row['small_assignments']} | {row['small_us']}"
            f" | {row['large_assignments']} | {row['large_us']} | {row['ratio']} |"
            for row in results["scale"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is asked for; everything without arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--no-scale", action="store_true", help="leave out the million assignments")
    options = parser.parse_args()
    results = {
        "machine": machine(),
        "empty": [
            empty.run(rounds=options.rounds, calls=options.calls, in_flight=number)
            for number in (1, 16)
        ],
        "decisions": decisions.run(rounds=options.rounds, calls=options.calls),
        "cached": cached.run(rounds=options.rounds, calls=options.calls),
        "scale": [] if options.no_scale else decisions.scale(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "latest.md").write_text(table(results))
    sys.stdout.write(table(results))


if __name__ == "__main__":
    main()

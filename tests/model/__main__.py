"""`python -m tests.model [NAME...]`: run configurations and print a table of what was found."""

import sys

from tests.model.configurations import CONFIGURATIONS
from tests.model.search import Search


def main(names: list[str]) -> int:
    """Run the configurations of these names, or all; 1 if a promise was broken."""
    failed = 0
    print("| configuration | covers | states | seconds | result |")
    print("|---|---|---|---|---|")
    for configuration in CONFIGURATIONS:
        if names and configuration.name not in names:
            continue
        result = Search(configuration).run()
        told = result.violation or "no violation"
        print(
            f"| {configuration.name} | {configuration.covers} | {result.states:,} "
            f"| {result.seconds:.1f} | {told} |",
            flush=True,
        )
        if result.violation:
            failed = 1
            print(result)
        missing = set(configuration.shows) - result.seen
        if missing:
            failed = 1
            print(f"never happened: {sorted(missing)}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

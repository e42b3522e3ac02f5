"""Writes the pages of docs/ that are made from the code, or says which of them are stale.

python docs/generate.py             writes the pages
python docs/generate.py --check     writes nothing; fails if a page differs
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from authz_service.config import EXAMPLE_ROOT_KEY, settings
from authz_service.config.environment import GROUPS

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Made by `make docs` from {source}; edit that instead. -->\n\n"


def configuration() -> str:
    """Returns the page with every setting."""
    lines = [
        NOTE.format(source="authz_service/config/groups.py"),
        "# Configuration\n\n",
        "Every setting is an environment variable. Those marked *secret* may come from a file"
        " instead: put its path into the variable with `_FILE` appended. An empty variable counts"
        " as not set; a variable that starts with `AUTHZ_` and is not listed here stops the start,"
        " so that no misspelt setting is ignored. All bad values are reported at once. `authz"
        " config` prints the effective values without secrets.\n\n",
        f"A root key looks like `{EXAMPLE_ROOT_KEY}`. This one is refused.\n",
    ]
    titles = {name: (kind.__doc__ or "").rstrip(".") for name, kind in GROUPS.items()}
    previous = ""
    for group, _, setting in settings():
        if group != previous:
            lines.append(f"\n## {group.capitalize()}\n\n{titles[group]}.\n\n")
            lines.append(
                "| setting | default | unit | must be | what for |\n|---|---|---|---|---|\n"
            )
            previous = group
        name = f"`{setting.variable}`" + (" (secret)" if setting.is_secret else "")
        default = f"`{setting.default}`" if setting.default else "not set"
        cells = (name, default, setting.unit, setting.range, setting.why)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(lines)


PAGES: dict[str, Callable[[], str]] = {"configuration.md": configuration}


def stale() -> list[str]:
    """Returns the names of the pages that differ from a new generation."""
    return [
        name
        for name, page in PAGES.items()
        if not (DOCS / name).exists() or (DOCS / name).read_text(encoding="utf-8") != page()
    ]


def main() -> None:
    """Reads the arguments and writes or compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if stale")
    if parser.parse_args().check:
        found = stale()
        sys.exit(f"stale: {', '.join(found)}; run `make docs`" if found else 0)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

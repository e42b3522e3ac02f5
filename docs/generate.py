"""Writes the pages of docs/ that are made from the code, or says which of them are stale.

python docs/generate.py             writes the pages
python docs/generate.py --check     writes nothing; fails if a page differs
"""

import argparse
import importlib
import pkgutil
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

import authz_service.pb.authz.v1 as contract
from authz_service.config import EXAMPLE_ROOT_KEY, settings
from authz_service.config.environment import GROUPS
from authz_service.pb.authz.v1.options_pb2 import required_scope
from authz_service.rpc.auth import RULES_OF_OTHERS
from authz_service.telemetry.metrics import Counter, Gauge, Histogram, Metrics

DOCS = Path(__file__).resolve().parent
REASONS = DOCS.parent / "protos/authz/v1/error_reason.proto"
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
        lines.append(_row(*cells))
    return "".join(lines)


_REASON = re.compile(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = [1-9]")
# What a gateway to HTTP answers; in brackets in product.md section 7.
_HTTP = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
}


def errors() -> str:
    """Returns the page with every reason of a refusal."""
    by_code: dict[str, list[str]] = {code: [] for code in _HTTP}
    for comment, reason in _REASON.findall(REASONS.read_text(encoding="utf-8")):
        said = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
        code, _, rest = said.partition(": ")
        when, _, metadata = rest.partition(" Metadata: ")
        metadata = metadata.rstrip(".").replace("none", "")
        by_code[code].append(_row(f"`{reason}`", when, metadata))
    lines = [
        NOTE.format(source="protos/authz/v1/error_reason.proto"),
        "# Errors\n\n",
        "Every error carries one `google.rpc.ErrorInfo` of the domain `authz_service` with a"
        " reason, and the metadata named here. Each reason has one code. Program against the"
        " reason; the text of a message may change. An error never means *allowed*.\n",
    ]
    for code, rows in by_code.items():
        lines.append(f"\n## {code}\n\nOver HTTP: {_HTTP[code]}.\n\n")
        lines.append("| reason | when | metadata |\n|---|---|---|\n")
        lines.extend(rows)
    return "".join(lines)


def metrics() -> str:
    """Returns the page with every metric."""
    lines = [
        NOTE.format(source="authz_service/telemetry/metrics.py"),
        "# Metrics\n\n",
        "In the Prometheus text format at `AUTHZ_METRICS_LISTEN`, over all workers together."
        " Values of labels come from fixed sets, never from a caller.\n",
    ]
    lines.append("\n| metric | kind | labels | what |\n|---|---|---|---|\n")
    lines.extend(_metric(metric) for metric in Metrics().all())
    return "".join(lines)


def _metric(metric: Counter | Gauge | Histogram) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return _row(f"`{metric.name}`", type(metric).__name__.lower(), labels, metric.help)


def scopes() -> str:
    """Returns the page with the scope of every RPC."""
    lines = [
        NOTE.format(source="protos/authz/v1"),
        "# Scopes\n\n",
        "A call needs a credential with the scope of its RPC. `admin` includes all scopes; no"
        " other scope includes another. A credential that is restricted to organizations sees and"
        " changes only these, whatever its scopes.\n",
    ]
    for service in _services():
        lines.append(f"\n## {service.name}\n\n| RPC | scope | |\n|---|---|---|\n")
        lines.extend(
            _row(method.name, f"`{method.GetOptions().Extensions[required_scope]}`", _does(method))
            for method in service.methods
        )
    lines.append(
        "\n## Services of others, where they are switched on\n\n| service | scope |\n|---|---|\n"
    )
    for name, rule in RULES_OF_OTHERS.items():
        lines.append(_row(f"`{name}`", _OF_OTHERS.get(rule.scope, f"`{rule.scope}`")))
    return "".join(lines)


def fronts() -> str:
    """Returns the page with what the two fronts answer differently."""
    source = "tests/conformance/fronts/differences.py"
    differences = runpy.run_path(str(DOCS.parent / source))["DIFFERENCES"]
    lines = [
        NOTE.format(source=source),
        "# Where the two fronts differ\n\n",
        "One suite of tests asks both with clients in three languages and byte by byte. Everything"
        " else is equal; each line here is a decision, and asserted on both sides. Codes stand with"
        " their reason; `reset n` is RST_STREAM, `closed n` GOAWAY, `HTTP n` a status of HTTP.\n\n",
        "| case | decision front | grpcio | why |\n|---|---|---|---|\n",
    ]
    lines.extend(
        _row(case, *(f"`{text}`" if text else "" for text in each[:2]), each.why)
        for case, each in differences.items()
    )
    return "".join(lines)


# Rules that are no scope.
_OF_OTHERS = {"any": "any credential", "open": "no credential"}


def _services() -> list[ServiceDescriptor]:
    """All services of the contract, by name."""
    found = []
    for module in pkgutil.iter_modules(contract.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"{contract.__name__}.{module.name}").DESCRIPTOR
            found += file.services_by_name.values()
    return sorted(found, key=lambda service: str(service.name))


def _does(method: MethodDescriptor) -> str:
    is_reading = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    return "reads" if is_reading else "writes"


def _row(*cells: str) -> str:
    """A row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "errors.md": errors,
    "fronts.md": fronts,
    "metrics.md": metrics,
    "scopes.md": scopes,
}


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

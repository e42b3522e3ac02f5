"""Commands start quickly, `make` tells of each target, and documented commands exist."""

import importlib
import importlib.metadata
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from authz_service import cli

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/**/*.md")])
# What `authz --help` must not wait for.
SLOW = {"alembic", "grpc", "prometheus_client", "psycopg", "sqlalchemy", "structlog", "yaml"}
# Makes any import of the modules in its first argument fail, then imports all of ours.
IMPORT_ALL_WITHOUT = """
import importlib, pkgutil, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
import authz_service
for module in pkgutil.walk_packages(authz_service.__path__, "authz_service."):
    if not module.name.endswith("__main__") and ".migrations" not in module.name:
        importlib.import_module(module.name)
"""
HELP_AND_TELL = """
import contextlib, sys
from authz_service.cli import main
sys.argv = ["authz", "--help"]
with contextlib.suppress(SystemExit):
    main()
print("LOADED", *{name.partition(".")[0] for name in sys.modules})
"""


def python(*arguments: str) -> str:
    """Runs Python on our code and returns what it printed."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if not name.startswith("AUTHZ_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def optional_modules() -> set[str]:
    """Top-level modules of the packages that only an extra installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
        for requirements in project["optional-dependencies"].values()
        for requirement in requirements
    }
    return {
        module
        for module, packages in importlib.metadata.packages_distributions().items()
        if extras & {package.lower().replace("_", "-") for package in packages}
    }


def targets() -> set[str]:
    """Every target of the Makefile that is no file."""
    rules = re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE)
    return set(rules)


def told() -> set[str]:
    """Every target that `make` tells of."""
    done = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return set(re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE))


def commands(document: Path) -> Iterator[str]:
    """Command lines of `make` and `authz` in code blocks and in code within text."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shell = "".join(block for language, block in blocks if language in ("", "bash", "sh"))
    lines = shell.replace("\\\n", " ").splitlines()
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`([^`]+)`", rest)
    for line in lines:
        words = " ".join(line.split()).removeprefix("$ ").removeprefix(".venv/bin/")
        if re.match(r"(make|authz) ", words):
            yield words


DOCUMENTED = sorted(
    {(str(path.relative_to(ROOT)), line) for path in DOCUMENTS for line in commands(path)}
)


@pytest.fixture(scope="module")
def authz() -> Any:
    """The command with all its subcommands."""
    for module in pkgutil.iter_modules(cli.__path__):
        if module.name.startswith("cmd_"):
            importlib.import_module(f"{cli.__name__}.{module.name}")
    return typer.main.get_command(cli.app)


def test_everything_can_be_imported_without_the_optional_packages() -> None:
    modules = optional_modules()
    assert modules
    python("-c", IMPORT_ALL_WITHOUT, ",".join(modules))


def test_help_imports_nothing_slow() -> None:
    said = python("-c", HELP_AND_TELL)
    loaded = set(said.rpartition("LOADED ")[2].split())
    assert "Usage" in said
    assert "authz_service" in loaded
    assert loaded & (SLOW | optional_modules()) == set()


def test_make_tells_of_every_target() -> None:
    assert told() == targets() - {"help"}


def test_every_target_is_phony() -> None:
    (names,) = re.findall(r"^\.PHONY: (.*)\Z", MAKEFILE, re.MULTILINE | re.DOTALL)
    assert set(names.replace("\\", " ").split()) == targets()


def test_commands_are_found_in_the_documents() -> None:
    assert {"make run", "make test"} <= {line for _, line in DOCUMENTED}
    assert sum(line.startswith("authz ") for _, line in DOCUMENTED) > 8


@pytest.mark.parametrize(("document", "line"), DOCUMENTED, ids=lambda text: text)
def test_a_documented_command_exists(
    authz: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, line: str
) -> None:
    program, name, *arguments = shlex.split(line, comments=True)
    if program == "make":
        assert {name, *arguments} <= targets()
        return
    assert name in authz.commands, f"authz has no command {name}"
    monkeypatch.chdir(tmp_path)
    for argument in arguments:
        if argument == "FILE" or argument.endswith(".yaml"):
            Path(argument).touch()
    bare = not arguments
    # Parses and does not run. In text a command may be named without its arguments.
    authz.commands[name].make_context(name, arguments, resilient_parsing=bare)


def test_a_command_file_has_commands_that_say_what_they_do(authz: Any) -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("cmd_*.py")}
    # A group, such as `authz cache`, has its commands in one file.
    every = [
        command
        for each in authz.commands.values()
        for command in (each, *getattr(each, "commands", {}).values())
    ]
    found = {each.callback.__module__.rpartition(".")[2] for each in every if each.callback}
    assert found == files
    assert all(each.get_short_help_str() for each in every)

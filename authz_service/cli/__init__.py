"""The command ``authz``: one file per command, found by name.

Command files import at their top only what is quick to import: ``authz --help`` must not wait for a
database driver.
"""

import importlib
import pkgutil

import typer

app = typer.Typer(
    name="authz",
    help="Runs the authorization service, and asks one that runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Runs the command line."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("cmd_"):
            importlib.import_module(f"{__name__}.{module.name}")
    app()

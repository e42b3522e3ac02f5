"""``authz cache``: the cache that the workers of a deployment share, seen and led from outside.

It works on the database and the Redis of the settings, whether a worker runs or not.
"""

from typing import Any

import typer

from authz_service.cli import app
from authz_service.cli.output import fail, line

cache = typer.Typer(
    no_args_is_help=True, help="Shows, leaves and begins the cache that workers share in Redis."
)
app.add_typer(cache, name="cache")


@cache.command()
def status() -> None:
    """Prints whether the cache is in use, its generation, and the leases on it."""
    with _generation() as generation:
        for name, value in generation.status().items():
            line(f"{name}={value}")


@cache.command()
def fence() -> None:
    """Leaves everything that is cached: after rows were changed past the service, or restored.

    Returns once no worker uses it any more; the workers begin anew by themselves.
    """
    with _generation() as generation:
        generation.leave()
        line(f"generation={generation.status()['generation']}")


@cache.command()
def enable() -> None:
    """Begins to use the Redis of the settings now, if it is fit; the workers do so by themselves
    within seconds."""
    with _generation() as generation:
        why_not = generation.enable_now()
        if why_not:
            fail(f"the cache cannot be used: {why_not}")
        line(f"mode={generation.status()['mode']}")


def _generation() -> Any:
    from authz_service.config import Config, ConfigError
    from authz_service.server import cache_of

    try:
        config = Config.from_environment()
    except ConfigError as error:
        fail(str(error))
    if config.database.is_sqlite:
        fail("an embedded database caches in its one process: to leave that, restart it")
    return cache_of(config)

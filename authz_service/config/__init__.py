"""Every setting of the service, and the only reader of the environment.

``groups`` declares them, ``kinds`` and ``values`` read them, ``conflicts`` compares them and
``environment`` puts a ``Config`` together. Only ``server``, ``supervisor``, ``sidecar`` and ``cli``
import this; all other parts receive plain values.
"""

from authz_service.config.conflicts import Problem
from authz_service.config.environment import (
    Config,
    ConfigError,
    client_settings,
    dev_environment,
    foreign_environment,
    settings,
)
from authz_service.config.groups import Client, Database, Limits, Security, Server
from authz_service.config.kinds import Setting
from authz_service.config.values import EXAMPLE_ROOT_KEY, Address, TlsClient

__all__ = [
    "EXAMPLE_ROOT_KEY",
    "Address",
    "Client",
    "Config",
    "ConfigError",
    "Database",
    "Limits",
    "Problem",
    "Security",
    "Server",
    "Setting",
    "TlsClient",
    "client_settings",
    "dev_environment",
    "foreign_environment",
    "settings",
]

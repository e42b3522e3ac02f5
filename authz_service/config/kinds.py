"""Kinds of settings. A field of a group is declared with one of them, and so says what it is once.

From that metadata its value is parsed, complaints are worded, and docs/configuration.md is made.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authz_service.config.values import Address, Bad, shown_text


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a setting beside its value.

    Attributes:
        variable: Its environment variable.
        unit: What a value counts or is.
        range: Which values are right, in words that follow "must be".
        default: The default as text; empty = not set.
        why: What it is for, and the reason for default and range.
        parse: From text to value; raises Bad.
        is_secret: May come from a file, and no complaint repeats it.
        show: From value to what may be printed of it.
    """

    variable: str
    unit: str
    range: str
    default: str
    why: str
    parse: Callable[[str], Any]
    is_secret: bool
    show: Callable[[Any], str]


def setting(
    default: Any,
    *,
    variable: str,
    unit: str,
    range: str,
    why: str,
    parse: Callable[[str], Any],
    is_secret: bool = False,
    show: Callable[[Any], str] = str,
    shown: str | None = None,
) -> Any:
    """Returns a dataclass field; what is not said here is as in Setting.

    Args:
        default: The value while nothing is set.
        shown: The default in words, where its value does not show it.
    """
    if shown is None:
        shown = "" if default is None else show(default)
    known = Setting(variable, unit, range, shown, why, parse, is_secret, show)
    # A factory, since a secret has no hash and dataclasses take that for "may change".
    return dataclasses.field(default_factory=lambda: default, metadata={"setting": known})


def number(
    variable: str,
    default: int | None,
    *,
    unit: str,
    low: int,
    high: int,
    why: str,
    shown: str | None = None,
) -> Any:
    """Declares a whole number, both ends of its range included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,15}", text):
            raise Bad(f"{shown_text(text)} is not a whole number")
        if not low <= int(text) <= high:
            raise Bad(f"{int(text)} is out of range")
        return int(text)

    range = f"a whole number from {low} to {high}"
    return setting(
        default, variable=variable, unit=unit, range=range, why=why, parse=parse, shown=shown
    )


def decimal(variable: str, default: float, *, unit: str, low: float, high: float, why: str) -> Any:
    """Declares a number that may have a fraction, both ends of its range included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise Bad(f"{shown_text(text)} is not a number") from None
        if not low <= value <= high:  # also for nan
            raise Bad(f"{shown_text(text)} is out of range")
        return value

    def show(value: float) -> str:
        return f"{value:g}"

    range = f"a number from {low:g} to {high:g}"
    return setting(
        default, variable=variable, unit=unit, range=range, why=why, parse=parse, show=show
    )


def switch(variable: str, *, why: str) -> Any:
    """Declares something that is off unless switched on."""

    def parse(text: str) -> bool:
        if text not in ("on", "off"):
            raise Bad(f"{shown_text(text)} is neither on nor off")
        return text == "on"

    def show(value: bool) -> str:
        return "on" if value else "off"

    return setting(
        False, variable=variable, unit="switch", range="on or off", why=why, parse=parse, show=show
    )


def listener(variable: str, default: Address | None, *, why: str, may_be_unix: bool = True) -> Any:
    """Declares where something listens."""

    def parse(text: str) -> Address:
        try:
            address = Address.parse(text)
        except ValueError as error:
            raise Bad(f"{shown_text(text)} is no address: {error}") from None
        if address.path and not may_be_unix:
            raise Bad(f"{shown_text(text)} is a unix socket")
        return address

    range = "host:port or [ipv6]:port" + (", or unix:/absolute/path" if may_be_unix else "")
    return setting(default, variable=variable, unit="address", range=range, why=why, parse=parse)


def file(variable: str, *, why: str) -> Any:
    """Declares a file that must be readable when the service starts."""

    def parse(text: str) -> Path:
        try:
            with open(text, "rb"):
                return Path(text)
        except OSError as error:
            raise Bad(f"{shown_text(text)} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise Bad(f"{shown_text(text)} is no path: {error}") from None

    range = "a file that the service can read"
    return setting(None, variable=variable, unit="path", range=range, why=why, parse=parse)

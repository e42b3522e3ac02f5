"""Every setting is explained, used, and shows no secret."""

import ast
import dataclasses
from pathlib import Path

import pytest

import authz_service.engine.limits as engine_limits
from authz_service.base.secrets import Secret
from authz_service.config import Limits, Setting, settings

PACKAGE = Path(__file__).resolve().parents[2] / "authz_service"
ALL = list(settings())
SECRETS = [setting for _, _, setting in ALL if setting.is_secret]
READERS = ("server.py", "supervisor.py", "cli", "sidecar")


def attributes(path: Path) -> set[str]:
    """Returns the names after a dot in a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("setting", [setting for _, _, setting in ALL], ids=lambda s: s.variable)
def test_a_setting_has_a_unit_a_range_and_a_reason(setting: Setting) -> None:
    assert setting.variable.startswith("AUTHZ_")
    assert setting.unit and setting.range
    assert setting.why.endswith(".")


def test_no_two_settings_have_one_name() -> None:
    variables = [setting.variable for _, _, setting in ALL]

    assert len(set(variables)) == len(variables)


@pytest.mark.skipif(not (PACKAGE / "server.py").exists(), reason="nothing is wired yet")
def test_every_setting_is_read() -> None:
    readers = [PACKAGE / "config" / "groups.py"]  # where a setting is read by a property
    for name in READERS:
        path = PACKAGE / name
        readers += sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.exists()
    # server.py hands these over as a whole, by name.
    limits = {field.name for field in dataclasses.fields(engine_limits.Limits)}
    used = limits.union(*map(attributes, readers))

    assert [setting.variable for _, field, setting in ALL if field not in used] == []


def test_a_limit_has_the_same_default_where_it_is_set_and_where_it_is_used() -> None:
    used = engine_limits.Limits()

    for field in dataclasses.fields(used):
        assert getattr(used, field.name) == getattr(Limits(), field.name)


@pytest.mark.parametrize("setting", SECRETS, ids=lambda setting: setting.variable)
def test_a_secret_prints_as_stars(setting: Setting) -> None:
    canary = Secret("postgresql://u:canary@h/d")
    value = (canary,) if setting.variable == "AUTHZ_ROOT_KEYS" else canary

    assert "canary" not in repr(value)
    assert "canary" not in setting.show(value)
    assert "***" in setting.show(value)

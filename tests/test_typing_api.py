"""The user's view type-checks with the package, under mypy --strict: ``tests/test_lint.py`` runs it on both."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_users_view_is_type_checked() -> None:
    """mypy checks typing_api.py, strictly; its ignores are needed, since an unused one is an error."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]
    assert "tests/typing_api.py" in settings["files"]
    assert settings["strict"] is True


def test_the_package_is_marked_as_typed() -> None:
    """Without py.typed users get no types."""
    assert (ROOT / "mqauth" / "py.typed").is_file()

"""The user's view type-checks under mypy --strict, with py.typed, and the mistakes in it do not."""

from __future__ import annotations

from pathlib import Path

from mypy import api

ROOT = Path(__file__).parent.parent


def test_the_users_view_type_checks() -> None:
    """typing_api.py is clean in strict mode; its ignores are needed, since an unused one is an error."""
    out, err, status = api.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--strict", "--cache-dir", str(ROOT / ".mypy_cache"),
         str(ROOT / "tests" / "typing_api.py")]
    )  # fmt: skip
    assert status == 0, out + err


def test_the_package_is_marked_as_typed() -> None:
    """Without py.typed users get no types."""
    assert (ROOT / "mqauth" / "py.typed").is_file()

"""The user's view type-checks under mypy --strict, with py.typed, and the mistakes in it do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_users_view_type_checks() -> None:
    """typing_api.py is clean in strict mode; its ignores are needed, since an unused one is an error."""
    # In a process of its own: mypy raises the recursion limit of the one it runs in, which other tests depend on.
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--strict",
         "--cache-dir", str(ROOT / ".mypy_cache"), str(ROOT / "tests" / "typing_api.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_package_is_marked_as_typed() -> None:
    """Without py.typed users get no types."""
    assert (ROOT / "mqauth" / "py.typed").is_file()

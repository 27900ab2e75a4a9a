"""The user's view type-checks with the package, under mypy --strict: ``tests/test_lint.py`` runs it on both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from integration.documentation import blocks

ROOT = Path(__file__).parent.parent
NEWCOMER = ROOT / "tests" / "typing_newcomer.py"
STRICT = {
    "typeCheckingMode": "strict", "pythonVersion": "3.11", "reportMissingTypeStubs": False,
    "extraPaths": [str(ROOT)],
}  # fmt: skip


def test_the_users_view_is_type_checked() -> None:
    """mypy checks typing_api.py and a newcomer's code, strictly; an ignore that is not needed is an error."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]
    assert {"tests/typing_api.py", "tests/typing_newcomer.py"} <= set(settings["files"])
    assert settings["strict"] is True


def test_a_newcomers_code_type_checks_under_pyright(tmp_path: Path) -> None:
    """typing_newcomer.py is clean under pyright's strict rules, and an exchanged type is not."""
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(STRICT))
    shutil.copy(NEWCOMER, tmp_path / "newcomer.py")
    wrong = NEWCOMER.read_text("utf-8").replace("verified.value.number + 1", "verified.value.upper()")
    (tmp_path / "wrong.py").write_text(wrong)
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    told = json.loads(ran.stdout)["generalDiagnostics"]
    found = [(Path(line["file"]).name, line["rule"], line["message"]) for line in told]
    assert {name for name, _, _ in found} == {"wrong.py"}, found
    assert any('Cannot access attribute "upper" for class "Order"' in message for _, _, message in found)


@pytest.mark.slow
def test_a_converted_services_code_type_checks(tmp_path: Path) -> None:
    """What the page about conversions has a service written like is clean under both checkers, without a cast."""
    found = [block for block in blocks("docs/how-to/convert-a-service.md") if block.language == "python"]
    # Dead letters are declared once; confluent-kafka exports the names of its admin client to no type checker.
    code = [block for block in found if not block.name.endswith("_letters.py")]
    assert len(code) == 4
    assert "cast" not in "".join(block.text for block in code)
    for block in code:
        (tmp_path / block.name).write_text(block.text)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(STRICT))
    names = [block.name for block in code]
    for checker in (["mypy", "--strict"], ["basedpyright", "--pythonpath", sys.executable]):
        command = [sys.executable, "-m", *checker, *names]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert ran.returncode == 0, ran.stdout


def test_the_package_is_marked_as_typed() -> None:
    """Without py.typed users get no types."""
    assert (ROOT / "mqauth" / "py.typed").is_file()

"""The user's view type-checks with the package, under mypy --strict: ``tests/test_lint.py`` runs it on both."""

from __future__ import annotations

import json
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


def converted() -> dict[str, str]:
    """Return the code of a converted service, as the page has it, by the names of its files."""
    found = [
        block
        for block in blocks("docs/how-to/convert-a-service.md")
        if block.language == "python"
    ]
    # Dead letters are declared once; confluent-kafka exports the names of its admin client to no type checker.
    return {
        block.name: block.text
        for block in found
        if not block.name.endswith("_letters.py")
    }


@pytest.mark.slow
def test_users_code_type_checks_under_pyright(tmp_path: Path) -> None:
    """A newcomer's code and a converted service's are clean under pyright, strictly; an exchanged type is not."""
    newcomer = NEWCOMER.read_text("utf-8")
    wrong = newcomer.replace("verified.value.number + 1", "verified.value.upper()")
    for name, text in {"newcomer.py": newcomer, "wrong.py": wrong, **converted()}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(STRICT))
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--pythonpath",
        sys.executable,
        "--outputjson",
    ]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    told = json.loads(ran.stdout)["generalDiagnostics"]
    found = [(Path(line["file"]).name, line["rule"], line["message"]) for line in told]
    assert {name for name, _, _ in found} == {"wrong.py"}, found
    assert any(
        'Cannot access attribute "upper" for class "Order"' in message
        for _, _, message in found
    )


@pytest.mark.slow
def test_a_converted_services_code_type_checks_under_mypy(tmp_path: Path) -> None:
    """What the page about conversions has a service written like is clean under mypy, without a cast."""
    code = converted()
    assert len(code) == 4
    assert "cast" not in "".join(code.values())
    for name, text in code.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", *code]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stdout


def test_the_package_is_marked_as_typed() -> None:
    """Without py.typed users get no types."""
    assert (ROOT / "mqauth" / "py.typed").is_file()

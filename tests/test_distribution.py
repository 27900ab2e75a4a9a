"""What is in the wheel and in the sdist: the library in both, and of its tests what runs without a checkout."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
WHEEL = {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE", "RECORD"}
TESTING = {
    "__init__", "attack_classes", "attack_probe", "attacks", "batchattacks", "batchforge",
    "claim_attacks", "clock", "contract", "forge", "identity", "loop_thread", "policy_contract", "sealed",
    "signing_contract", "stage", "stage_aiokafka", "stage_confluent", "stage_kafka", "stage_pika",
    "stage_rabbitmq", "store_blocking", "store_contract", "structure_attacks", "token_attacks",
}  # fmt: skip
"""Modules for users' tests; the stages are what ``mqauth demo --broker`` and the attack suite run on."""
OURS = (
    "bench",
    "victim",
    "mutation",
    "simulation",
    "stage",
    "test_",
    "chaos",
    "conftest",
)
"""Parts of names of what only our own tests need."""
SDIST = {
    ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "conftest.py", "docs", "integration",
    "mqauth", "pyproject.toml", "tests",
}  # fmt: skip
INTEGRATION = {
    "__init__", "ask_fork", "documentation", "forked", "kafka_batches", "pace", "scale", "settings",
    "settings_examples",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> set[str]:
    """The names in the wheel."""
    (path,) = built.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


@pytest.fixture(scope="module")
def sdist(built: Path) -> dict[PurePosixPath, str]:
    """The files of the sdist below its folder, with the text of those in Python."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {
            PurePosixPath(*PurePosixPath(member.name).parts[1:]): (
                archive.extractfile(member).read().decode()  # type: ignore[union-attr]
                if member.name.endswith(".py")
                else ""
            )
            for member in archive
        }


def known(folder: str) -> set[str]:
    """Return the files of a folder that git knows."""
    words = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
        folder,
    ]
    told = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {name for name in told.split("\0") if name and (ROOT / name).exists()}


def test_the_wheel_is_the_library(wheel: set[str]) -> None:
    """The wheel has each file of the library, what describes it, and nothing else."""
    described = {name for name in wheel if name.partition("/")[0].endswith(".dist-info")}
    assert {name.partition("/")[2] for name in described} == WHEEL
    assert wheel - described == known("mqauth")


def test_the_wheel_has_nothing_of_our_tests(wheel: set[str]) -> None:
    """No stage, benchmark or victim of ours is in the wheel; ``mqauth.testing`` is what users' tests need."""
    folder = "mqauth/testing/"
    assert {name.removeprefix(folder) for name in wheel if name.startswith(folder)} == {
        f"{n}.py" for n in TESTING
    }
    others = [name for name in wheel if not name.startswith(folder)]
    assert [name for name in others if any(part in name for part in OURS)] == []


def test_the_sdist_is_listed(sdist: dict[PurePosixPath, str], wheel: set[str]) -> None:
    """The sdist has the library, the pages, unit tests and nine modules that these are written with."""
    assert {path.parts[0] for path in sdist} == SDIST
    assert {path.stem for path in sdist if path.parts[0] == "integration"} == INTEGRATION
    assert {str(path) for path in sdist if path.parts[0] == "mqauth"} == {
        n for n in wheel if n.startswith("mqauth/")
    }


def imported(text: str) -> Iterator[str]:
    """Yield the modules that a text imports, and the names from them, which may be modules."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_tests_of_the_sdist_find_what_they_import(
    sdist: dict[PurePosixPath, str],
) -> None:
    """No module of the sdist imports one of the checkout that was left out."""
    missing = [
        (str(path), name)
        for path, text in sdist.items()
        for name in imported(text)
        if name.partition(".")[0] in ("integration", "tests", "mqauth")
        for file in (
            PurePosixPath(*name.split(".")).with_suffix(".py"),
            PurePosixPath(*name.split("."), "__init__.py"),
        )
        if (ROOT / file).exists() and file not in sdist
    ]
    assert missing == []

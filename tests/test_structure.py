"""The structure: few modules at the top, few folders, and a library that stays small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from mqauth.errors import Reason

PACKAGE = Path(__file__).parent.parent / "mqauth"
DOORS = frozenset(
    (
        "mqauth",
        "mqauth.brokers",
        "mqauth.integrations.faststream",
        "mqauth.integrations.celery",
        "mqauth.integrations.dramatiq",
        "mqauth.integrations.taskiq",
        "mqauth.keystore",
        "mqauth.logs",
        "mqauth.stores.redis",
        "mqauth.telemetry.prometheus",
        "mqauth.testing",
    )
)
"""What README and pages import from: whoever copies their code need not know how the rooms are furnished."""
PAGES = ("README.md", *(f"docs/{path.name}" for path in (PACKAGE.parent / "docs").glob("*.md")))
AT_THE_TOP = 9
FOLDERS = 31
LINES = 400
# These numbers only fall: a change that needs less lowers them, one that needs more takes away elsewhere.
OUTSIDE_TESTING = 21_986
"""Statements of the library without ``testing`` and ``ADAPTERS``."""
ADAPTERS = frozenset(
    PACKAGE / "integrations" / f"{name}.py"
    for name in ("task_queues", "taskiq", "dramatiq", "celery", "celery_kombu")
)
"""Modules of task queues, each by itself; who uses none reads none."""
ADAPTER = 400
TESTING = 1_887
CORE = 10_150
"""Statements of what ``CONSUMER`` imports: what stands between the wire and a handler."""
CONSUMER = """
import mqauth, mqauth.brokers.kafka, mqauth.brokers.rabbitmq, mqauth.stores.redis
from mqauth import JWKS, ActiveKey
"""
"""A consumer on RabbitMQ and Kafka with keys of an issuer and on the disk, and claims in Redis."""


def statements(source: str) -> int:
    """Return how many statements a module has; neither comments, docstrings nor white space count."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    return sum(not _is_text(node) for node in nodes)


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def test_few_modules_at_the_top() -> None:
    """Few modules stand in the package itself: who looks in sees rooms."""
    assert len(list(PACKAGE.glob("*.py"))) <= AT_THE_TOP


def test_few_folders() -> None:
    """There are few enough folders to know them by name."""
    assert len({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}) <= FOLDERS


def test_no_module_is_long() -> None:
    """A module is read in one go."""
    counts = {path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: count for path, count in counts.items() if count > LINES} == {}


def count(paths: Iterable[Path]) -> int:
    """Return how many statements some modules have together."""
    return sum(statements(path.read_text("utf-8")) for path in paths)


def test_the_library_is_small() -> None:
    """The library does not grow; packing lines gains nothing."""
    testing = [*(PACKAGE / "testing").rglob("*.py")]
    adapters = [path for path in ADAPTERS if path.exists()]
    assert count({*PACKAGE.rglob("*.py")} - {*testing, *adapters}) <= OUTSIDE_TESTING
    assert count(testing) <= TESTING
    assert max(count([path]) for path in adapters) <= ADAPTER


def test_the_core_is_small() -> None:
    """What a consumer loads is what a security team reads, and does not grow."""
    files = "(module.__file__ for name, module in sys.modules.items() if name.partition('.')[0] == 'mqauth')"
    words = [sys.executable, "-c", f"{CONSUMER}import sys; print(*{files}, sep='\\n')"]
    told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600).stdout
    assert 0 < count(map(Path, told.split())) <= CORE


def test_what_counts() -> None:
    """Two statements on a line are two, and a docstring is none."""
    assert statements('"""Doc."""\n\n# why\nx = 1; y = 2\n\n\ndef f():\n    """Doc."""\n    return x\n') == 4


def test_pages_import_from_doors() -> None:
    """Code in README and pages imports from the package and its rooms' doors alone."""
    texts = "\n".join((PACKAGE.parent / page).read_text("utf-8") for page in PAGES)
    found = set(re.findall(r"^\s*(?:from|import) (mqauth[\w.]*)", texts, re.MULTILINE))
    assert found <= DOORS
    assert {"mqauth", "mqauth.brokers"} <= found


def named(text: str) -> list[tuple[str, str]]:
    """Return the files that the page's table of questions names, each with a name in it that follows."""
    rows = text.partition("## Where to look")[2].partition("\n## ")[0]
    found, path = [], ""
    for word in re.findall(r"`([^`]+)`", rows):
        if word.endswith(".py"):
            path = word
        if path and not word.endswith(".py") and word not in set(Reason):
            found.append((path, word))
    return found


def test_the_page_answers_where() -> None:
    """The page says of every reason where it is decided, and each file it names has the function it names."""
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    rows = text.partition("## Where to look")[2].partition("\n## ")[0]
    assert {reason for reason in Reason if f"`{reason}`" not in rows} == set()
    assert len(named(text)) >= 30
    for path, name in named(text):
        tree = ast.parse((PACKAGE / path).read_text("utf-8"))
        has = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in has, f"{path} has no {name}"

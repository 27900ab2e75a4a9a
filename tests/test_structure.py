"""The structure: few modules at the top, few folders, and a library that stays small."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TypeGuard

import pytest

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
PAGES = (
    "README.md",
    *(f"docs/{path.name}" for path in (PACKAGE.parent / "docs").glob("*.md")),
)
AT_THE_TOP = 9
FOLDERS = 31
LINES = 600
GROUPS = {
    "from the wire to a handler": (
        "__init__ __main__ _version errors clock threads logs wire flow"
        " signer replay audit letters judging delivery"
    ),
    "brokers": "brokers http stores",
    "keys": "keystore authority policies",
    "review and console": "review console",
    "command and check": "cli check config telemetry",
    "integrations": "integrations",
    "testing": "testing",
}
"""Rooms, by what a reader looks for in them."""
TOKENS = {
    "from the wire to a handler": 89_400,
    "brokers": 75_500,
    "keys": 29_900,
    "review and console": 29_100,
    "command and check": 62_000,
    "integrations": 17_400,
    "testing": 30_600,
}
"""Lexical tokens that a group may have: plain code has about as many as packed code. A new capability raises its
group's number in its own commit, and says why there."""
LAYOUT = frozenset(
    (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
)


def tokens(source: str) -> int:
    """Return how many lexical tokens a module has, without layout, comments and docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if _is_docstring(node):
            docstrings.update(range(node.lineno, node.end_lineno + 1))

    count = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT:
            continue
        if token.type == tokenize.STRING and token.start[0] in docstrings:
            continue
        count += 1
    return count


def _is_docstring(node: ast.AST) -> TypeGuard[ast.Expr]:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def modules_of(group: str) -> list[Path]:
    """Return the modules of a group's rooms."""
    rooms = frozenset(GROUPS[group].split())
    return [
        path
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in rooms
    ]


def test_few_modules_at_the_top() -> None:
    """Few modules stand in the package itself: who looks in sees rooms."""
    assert len(list(PACKAGE.glob("*.py"))) <= AT_THE_TOP


def test_few_folders() -> None:
    """There are few enough folders to know them by name."""
    assert len({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}) <= FOLDERS


def test_no_module_is_long() -> None:
    """A module is read in one go."""
    counts = {
        path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {path.name: count for path, count in counts.items() if count > LINES} == {}


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_stays_small(group: str) -> None:
    """No group of rooms has more lexical tokens than it may; packing lines gains nothing."""
    count = sum(tokens(path.read_text("utf-8")) for path in modules_of(group))
    assert 0 < count <= TOKENS[group]


def test_every_module_is_in_one_group() -> None:
    """Each module of the library is counted, and once."""
    grouped = [path for group in GROUPS for path in modules_of(group)]
    assert sorted(grouped) == sorted(PACKAGE.rglob("*.py"))


def test_what_counts() -> None:
    """Names, operators and literals count, packed or not; docstrings, comments and layout do not."""
    packed = '"""Doc."""\n\n# why\nx = 1; y = 2\n'
    plain = "x = 1\n\ny = 2\n"
    assert tokens(packed) == tokens(plain) + 1 == 7


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
        has = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        assert name in has, f"{path} has no {name}"

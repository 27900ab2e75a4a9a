"""A leaf makes its client's calls and holds no rule: it decides nothing by a verdict or a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BROKERS = Path(__file__).parent.parent / "mqauth" / "brokers"
INTEGRATIONS = BROKERS.parent / "integrations"
LEAVES = sorted(
    path
    for path in (*BROKERS.rglob("*.py"), *INTEGRATIONS.glob("*.py"))
    if path.name not in ("memory.py", "task_queues.py")
)
RULED = frozenset(("Verdict", "Cause", "Step", "Reason"))
"""Enums that a leaf may pass on, and may not decide by."""
NOT_FOR_LEAVES = frozenset(
    (
        "judging.delivery",
        "judging.judge",
        "judging.policy",
        "judging.verifier",
        "replay",
        "replay.rules",
        "replay.memory",
        "delivery.log_work.EarlyClaims",
    )
)
DECIDES = (ast.Compare, ast.Match)


def rules(source: str) -> Iterator[str]:
    """Yield what a leaf's module does that is not a leaf's to do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                f"imports {each.name}" for each in node.names if _forbidden(each.name)
            )
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{each.name}" for each in node.names]
            yield from (
                f"imports {name}"
                for name in (node.module or "", *names)
                if _forbidden(name)
            )
        elif isinstance(node, DECIDES) and _named(node) & RULED:
            yield f"decides by {sorted(_named(node) & RULED)} in line {node.lineno}"
        elif isinstance(node, DECIDES) and _attributes(node) & {
            "verdict",
            "reason",
            "cause",
            "step",
        }:
            yield f"decides by {sorted(_attributes(node))} in line {node.lineno}"


def _forbidden(name: str) -> bool:
    """Tell whether a dotted name is of a module that only the engine may know."""
    return name.removeprefix("mqauth.") in NOT_FOR_LEAVES


def _named(node: ast.AST) -> set[str]:
    """Return the names an expression uses."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _attributes(node: ast.AST) -> set[str]:
    """Return the attributes an expression reads."""
    return {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


@pytest.mark.parametrize(
    "path", LEAVES, ids=lambda path: f"{path.parent.name}.{path.stem}"
)
def test_a_leaf_holds_no_rule(path: Path) -> None:
    """No module of a leaf decides anything by a verdict, cause, step or reason, or knows what reaches one."""
    assert list(rules(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "if outcome.verdict is Verdict.DEFERRED: pass",
        "if outcome.verdict == deferred: pass",
        "if cause in (Cause.KEYS_UNAVAILABLE,): pass",
        "while delivery.step is not Step.JUDGE: pass",
        "x = 1 if error.reason.value == 'expired' else 2",
        "match outcome.verdict:\n    case _: pass",
        "from mqauth.judging.judge import Judge",
        "from mqauth import replay",
        "import mqauth.judging.delivery as d\nfrom mqauth.judging import delivery",
        "def f():\n    from mqauth.delivery.log_work import EarlyClaims",
    ],
)
def test_a_rule_in_a_leaf_is_found(source: str) -> None:
    """A decision by a verdict, and an import of what reaches one, makes the test red."""
    assert len(list(rules(source))) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "from mqauth.errors import Cause, Unavailable\nraise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, 'x')",
        "def verdict(self) -> Verdict:\n    return self.outcome.verdict",
        "if offset == 7: pass",
    ],
)
def test_what_a_leaf_may_do(source: str) -> None:
    """A leaf may say why its client failed, and pass a verdict on."""
    assert list(rules(source)) == []

"""A leaf makes its client's calls and holds no rule: it is short, and decides nothing by a verdict or a reason."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

BROKERS = Path(__file__).parent.parent / "mqauth" / "brokers"
INTEGRATIONS = BROKERS.parent / "integrations"
LIMITS = {
    ("kafka/consumer:Consumer,Poller,Listener,listen", "kafka/client:check_client,session_of"): 143,
    (
        "confluent/consumer:Consumer",
        "confluent/poller",
        "confluent/positions",
        "confluent/client:check_consumer,membership_of",
    ): 290,
    ("aiokafka/consumer:Consumer,Poller,Listener",): 144,
    ("aiokafka/client",): 124,
    ("aiokafka/producer:Producer",): 80,
    ("aiokafka/confirmed:DeadLetters,AuditTopic,confirming",): 37,
    ("confluent/consumer:AIOConsumer,AIOPoller,AIOReplies",): 76,
    ("confluent/producer:Producer",): 112,
    ("confluent/confirmed:DeadLetters,AuditTopic,TooLargeError,Report,confirming,sent",): 62,
    ("confluent/client:from_native,translated,carries,heed",): 40,
    ("rabbitmq/consumer:Consumer,limit_of,Deliveries,Queue,round_trip,sender",): 115,
    ("kafka/producer:Producer",): 76,
    ("kafka/confirmed:DeadLetters,AuditTopic,confirming",): 28,
    ("kafka/client:from_native",): 7,
    ("rabbitmq/producer",): 214,
    ("pika/consumer",): 194,
    ("pika/producer:Producer",): 92,
    ("pika/confirmed:DeadLetters,_Sink",): 45,
    ("pika/confirmed:Publisher",): 56,
    ("pika/translate",): 78,
    ("rabbitmq/confirmed:DeadLetters,_Sink",): 49,
    ("rabbitmq/translate:from_native,failures_of,to_message,to_native,headers_out,carries,scalar_on_wire",): 58,
    ("../integrations/faststream", "../integrations/faststream_middleware", "../integrations/framework"): 405,
    ("../integrations/faststream_rabbitmq",): 57,
    ("../integrations/faststream_log", "../integrations/faststream_kafka"): 214,
    ("../integrations/faststream_confluent",): 129,
    ("../integrations/faststream_unverified",): 69,
}
"""Most lines of code of a leaf's parts, without blank lines, comments and docstrings. A part is a module, or
some of its classes and functions without the imports. Repairs and transactions stand apart. Dead letters and
audit records share how they are confirmed, which has a limit of its own."""
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
LAYOUT = frozenset(
    (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
)
DECIDES = (ast.Compare, ast.Match)


def lines_of_code(source: str) -> int:
    """Return how many lines of a module hold code."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for found in node.body:
                if isinstance(found, ast.Expr) and isinstance(found.value, ast.Constant):
                    told |= set(range(found.lineno, (found.end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - told)


def code_of(part: str) -> int:
    """Return how many lines of code a part has: a module, or what is named of it after a colon."""
    module, _, names = part.partition(":")
    source = (BROKERS / f"{module}.py").read_text("utf-8")
    if not names:
        return lines_of_code(source)
    lines = source.splitlines(keepends=True)
    spans = {getattr(node, "name", ""): (node.lineno - 1, node.end_lineno) for node in ast.parse(source).body}
    return sum(lines_of_code("".join(lines[slice(*spans[name])])) for name in names.split(","))


def rules(source: str) -> Iterator[str]:
    """Yield what a leaf's module does that is not a leaf's to do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"imports {each.name}" for each in node.names if _forbidden(each.name))
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{each.name}" for each in node.names]
            yield from (f"imports {name}" for name in (node.module or "", *names) if _forbidden(name))
        elif isinstance(node, DECIDES) and _named(node) & RULED:
            yield f"decides by {sorted(_named(node) & RULED)} in line {node.lineno}"
        elif isinstance(node, DECIDES) and _attributes(node) & {"verdict", "reason", "cause", "step"}:
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


@pytest.mark.parametrize(("parts", "most"), LIMITS.items(), ids=str)
def test_a_leaf_is_short(parts: tuple[str, ...], most: int) -> None:
    """What a leaf needs beside the engine stays within its limit."""
    counts = {part: code_of(part) for part in parts}
    assert sum(counts.values()) <= most, counts


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: f"{path.parent.name}.{path.stem}")
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


def test_what_counts() -> None:
    """Blank lines, comments and docstrings do not count."""
    source = '"""Doc.\n\nMore."""\n\n# why\nx = 1\n\n\ndef f(\n    a,\n):\n    """Doc."""\n    return a\n'
    assert lines_of_code(source) == 5

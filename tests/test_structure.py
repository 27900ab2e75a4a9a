"""The structure: few modules at the top, few folders, and a library that stays small."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mqauth.errors import Reason

PACKAGE = Path(__file__).parent.parent / "mqauth"
DOORS = frozenset(
    (
        "mqauth",
        "mqauth.brokers",
        "mqauth.integrations.faststream",
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
FOLDERS = 29
LINES = 400
# It had 14,894 before what further clients share with the first of their broker came to it.
STATEMENTS = (
    15_100
    # The command: one file, init, ids, times, tables that fit a terminal, check --online.
    + 910
    # Rollout: rungs, marks, exemptions, the judge below enforce, counts, records, detectors, commands.
    + 1160
    # Rollout: the broker asked for marks and lag, entries split, JSON, a sink that hangs, who signed, aliases,
    # letters without a proof sent back.
    + 343
    # A log in an event loop.
    + 190
    # Logs as records: one module, rate, details, health.
    + 420
    # Health as one shape, probes, and the metrics of dead letters, rungs and handlers.
    + 160
    # Headers that stand unsigned, and messages that arrive elsewhere than they were signed for.
    + 90
    # Console: search, sort, previous and next.
    + 45
    # The self-test: two halves, its report, its command, its setting and finding.
    + 235
    # Console: several queues, chosen rows, colours, the audit trail, strict JSON, errors with an id.
    + 256
    # dlq depth, the log of commands that stay, findings and the demo in a terminal and piped.
    + 93
    # Whose fault it is that RabbitMQ closed a channel, and what both its clients share of letters and answers.
    + 31
    # Blocking clients in an event loop: a thread that holds no process, transactions, verdicts.
    + 42
    # A rebalance that is asked for nothing; what a handler on a thread returns to be awaited.
    + 7
    # Characters without any form, and the scope of a letter as it is.
    + 3
    # The identity form: WITs and proofs, trust domains, cut-offs, memory, rules by claims, WITKey.
    + 510
    # Places of headers in a letter, without what brokers write.
    + 4
    # Requests to services: a room of their own, JSON posted, the statuses that are wanted.
    + 8
    # The identity form: until of a direct issuer, SPIFFE bundles, a forged WIT in the self-test, proofs like one
    # that was accepted.
    + 85
    # A producer's identity: proofs, credentials, requests, renewal, settings, findings, its command and metric.
    + 594
    # The demo with identities.
    + 156
    # The authority: credentials, proofs, grants, rates, records, its server, its command, its settings, cut-offs
    # on the disk, keys that end later, three detectors.
    + 887
    # Keystore entries that are references: adopted, checked, asked again; signatures on a thread.
    + 133
    # Keys in an HSM: their URIs, sessions of one process, one lock, forks, errors.
    + 205
    # Keys in the transit engine of OpenBao or Vault; each signature checked, and a line where none comes.
    + 129
    # Keys in AWS KMS: their references and aliases, signed requests, credentials on a thread, forks, codes, DER.
    + 219
    # OPA: what is asked, decisions in memory, pauses, the client, its settings, findings, probe, forks and metric.
    + 376
    # Keys for JWT-SVIDs of a SPIFFE bundle, for credentials; each reader refuses the use that is not its own.
    + 14
    # Credentials as Keycloak gives them: other members of cnf, schemes, whose refusal it was.
    + 12
    # What the records of a partition have in common, and classes of slots that are being filled.
    + 1
    # Operating an authority: the rules on it and on references, what is asked of it online, its metrics and their
    # port, its heads; the end of a direct issuer as a metric; the agent in the self-test; a short delay warned of.
    + 350
    # Connections that make room, handshakes with an end, warnings of uvicorn once a minute; what attacks on the
    # identity form found besides.
    + 67
    # What never comes back: the first error of a consumer, and later ones noted at it; key caches of a command
    # that ends; questions that nobody can ask; calls in a PKCS#11 library.
    + 47
    # A connection to a transit engine or to OPA that is kept.
    + 37
    # How many identities of a subject still live when it is cut off; what is no source of keys.
    + 11
    # What a newcomer is told: a mistyped reason, the command with the help, why nobody answers, where to go next;
    # the second Ctrl-C; a handler for what nothing proves in a first consumer that observes.
    + 17
    # A WIT that is no JWS comes before the type of its proof.
    + 3
)
"""Of the library without ``bench``, ``testing`` and ``CLIENTS``: statements of the syntax tree but docstrings."""
CLIENTS = ("brokers/aiokafka", "brokers/confluent", "brokers/pika", "integrations")
"""Clients beyond the first of each broker, each with a limit of its own."""
STATEMENTS_OF_A_CLIENT = 670
FURTHER_DOORS = {"brokers/confluent": 64, "brokers/pika": 19}
"""What else a client may take: the ``AIOConsumer`` of confluent-kafka, and the proof of append times by pika."""


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
    """There are few enough folders to know them by name, one for each further client aside."""
    further = {PACKAGE / client for client in CLIENTS}
    assert len({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE} - further) <= FOLDERS


def test_no_module_is_long() -> None:
    """A module is read in one go."""
    counts = {path: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: count for path, count in counts.items() if count > LINES} == {}


def count(*rooms: str) -> int:
    """Return how many statements all modules in some rooms have."""
    paths = (path for room in rooms for path in sorted((PACKAGE / room).rglob("*.py")))
    return sum(statements(path.read_text("utf-8")) for path in paths)


def test_the_library_is_small() -> None:
    """The library does not grow beyond its limit; packing lines gains nothing."""
    assert count("") - count("bench", "testing", *CLIENTS) <= STATEMENTS


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_is_small(client: str) -> None:
    """What a further client takes has a limit of its own."""
    assert 0 < count(client) <= STATEMENTS_OF_A_CLIENT + FURTHER_DOORS.get(client, 0)


def test_what_counts() -> None:
    """Two statements on a line are two, and a docstring is none."""
    assert statements('"""Doc."""\n\n# why\nx = 1; y = 2\n\n\ndef f():\n    """Doc."""\n    return x\n') == 4


def test_pages_import_from_doors() -> None:
    """Code in README and pages imports from the package and its rooms' doors alone."""
    texts = "\n".join((PACKAGE.parent / page).read_text("utf-8") for page in PAGES)
    found = set(re.findall(r"^\s*(?:from|import) (mqauth[\w.]*)", texts, re.MULTILINE))
    assert found <= DOORS
    assert {"mqauth", "mqauth.keystore"} <= found


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

"""The arrow: which room may import which, and what the core may not know. Read from the source, not by import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mqauth"
FLOORS = (
    (("errors", "_version", "clock", "threads"), ("logs",)),
    (("wire", "flow"),),
    (("signer", "replay", "audit"), ("letters",)),
    (("judging",),),
    (("delivery", "http"),),
    (("brokers", "stores", "keystore", "policies", "telemetry"),),
    (("authority",), ("config",)),
    (("check", "review", "testing", "integrations"),),
    (("console",), ("cli",), ("__main__",)),
)
"""The nine floors from the ground up, each of one or more steps of rooms.

What is in a room may import its own room and the steps below it."""
RANK = {
    room: rank
    for rank, step in enumerate(step for floor in FLOORS for step in floor)
    for room in step
}
CORE = frozenset(
    (
        "errors",
        "clock",
        "threads",
        "logs",
        "wire",
        "flow",
        "signer",
        "replay",
        "audit",
        "letters",
        "judging",
        "delivery",
    )
)
FORBIDDEN_IN_CORE = frozenset(
    ("aio_pika", "aiormq", "kafka", "redis", "typer", "click", "rich", "starlette", "uvicorn", "opentelemetry",
     "httpx", "requests", "urllib3", "asyncio", "time", "random", "secrets", "uuid", "socket", "subprocess")
)  # fmt: skip
ALONE = {
    "jwt": ("wire.jws",),
    "time": ("clock",),
    "tenacity": ("flow",),
    "inspect": ("flow",),
}
"""What only these modules of the core may import."""
CLIENTS = frozenset(
    (
        "aio_pika",
        "aiormq",
        "pamqp",
        "kafka",
        "pika",
        "aiokafka",
        "confluent_kafka",
        "faststream",
    )
)
LEAF = re.compile(r"(mqauth\.)?brokers\.(aiokafka|confluent|kafka|pika|rabbitmq)\b.*")
"""Rooms of ``brokers`` that know a client; the others serve every client of their broker."""
KNOWN_ELSEWHERE = FORBIDDEN_IN_CORE | ALONE.keys()
CLOCK_CALLS = frozenset(("now", "utcnow", "today"))


def sources() -> Iterator[tuple[str, str]]:
    """Yield every module's dotted name within the package, and its source."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            yield name, path.read_text("utf-8")


def imported(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names a module imports, relative ones resolved, wherever in it they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    part
                    for part in ("mqauth", *name.split(".")[: -node.level], base)
                    if part
                )
            named = base in {"mqauth", "mqauth.brokers"}
            yield from (
                (f"{base}.{alias.name}" for alias in node.names) if named else (base,)
            )


def offences(name: str, source: str) -> list[str]:
    """Return what a module does that the arrow forbids."""
    tree = ast.parse(source)
    own = name.partition(".")[0]
    if own not in RANK:
        return [f"{name}: has no place on the floors of this test"]
    found = [*_wrong_imports(name, own, tree), *_clients(name, tree)]
    if own in CORE and own != "clock":
        found += [f"{name}: reads {what}" for what in _machine_reads(tree)]
    return found


def _wrong_imports(name: str, own: str, tree: ast.AST) -> Iterator[str]:
    """Yield the imports of a module that are not its to make."""
    for target in imported(name, tree):
        root, _, rest = target.partition(".")
        if root == "mqauth":
            room = rest.partition(".")[0]
            if room not in RANK:
                if own not in ("cli", "__main__"):  # the command is a user like any other
                    yield f"{name}: imports the package itself ({target})"
            elif room != own and RANK[room] >= RANK[own]:
                yield f"{name}: imports {target}, which stands beside or above it"
        elif own in CORE and root in KNOWN_ELSEWHERE and name not in ALONE.get(root, ()):
            yield f"{name}: imports {root}"
        elif root == "jwt" and name != "wire.jws":
            yield f"{name}: imports jwt"


def _clients(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield the clients, and leaves of clients, that a module of ``brokers`` imports which is no leaf's."""
    if name.startswith("brokers.") and not LEAF.fullmatch(name):
        for target in imported(name, tree):
            if target.partition(".")[0] in CLIENTS or LEAF.match(target):
                yield f"{name}: imports {target}, and is to serve every client"


def _machine_reads(tree: ast.AST) -> Iterator[str]:
    """Yield reads of the machine's clock and randomness that need no import of their own."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if (node.value.id, node.attr) == ("os", "urandom"):
            yield "os.urandom"
        if node.value.id in ("datetime", "date") and node.attr in CLOCK_CALLS:
            yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize(
    ("name", "source"), [pytest.param(*found, id=found[0]) for found in sources()]
)
def test_module_follows_the_arrow(name: str, source: str) -> None:
    """Every module of the package imports only what stands below it, and the core nothing it must not know."""
    assert offences(name, source) == []


def test_every_room_exists() -> None:
    """The floors name rooms that are there, so that a renamed one cannot slip out of the test."""
    assert {name.partition(".")[0] for name, _ in sources()} == RANK.keys()


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("wire.claims", "import mqauth.judging.pipeline"),
        ("wire.claims", "from mqauth import judging"),
        ("wire.claims", "from mqauth.judging.verifier import Verifier"),
        ("wire.claims", "from ..judging.verifier import Verifier"),
        ("wire.claims", "from .. import judging"),
        ("wire.claims", "def late():\n    from mqauth.brokers import memory"),
        (
            "wire.claims",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mqauth.signer import Signer",
        ),
        ("wire.claims", "import mqauth"),
        ("wire.claims", "from mqauth import Signer"),
        ("audit.record", "from mqauth.judging.policy import Policy"),
        ("judging.pipeline", "import aio_pika"),
        ("judging.pipeline", "from kafka import KafkaConsumer"),
        ("judging.pipeline", "import asyncio"),
        ("judging.pipeline", "from time import monotonic"),
        ("judging.pipeline", "import inspect"),
        ("judging.pipeline", "from tenacity import retry"),
        ("judging.pipeline", "import os\nos.urandom(4)"),
        ("judging.pipeline", "from datetime import datetime\ndatetime.now()"),
        ("judging.verifier", "from jwt import decode"),
        ("brokers.kafka", "import jwt"),
        ("brokers.queue.acks", "import aio_pika"),
        ("brokers.queue.acks", "from mqauth.brokers import rabbitmq"),
        ("brokers.log.turns", "from mqauth.brokers.kafka.consumer import Poller"),
        ("brokers.kafka", "from mqauth.stores.redis import RedisReplayStore"),
        ("brokers.kafka", "from mqauth.cli import main"),
        ("keystore.disk.folder", "from mqauth.config import load"),
        ("cli.app", "import jwt.algorithms"),
        ("novelty", "import re"),
    ],
)
def test_forbidden_import_is_found(name: str, source: str) -> None:
    """A forbidden import, in any spelling and at any depth, makes the arrow test red."""
    assert len(offences(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("clock", "import os, time\nos.urandom(4)"),
        ("flow", "import inspect, tenacity"),
        ("wire.jws", "from jwt.algorithms import Algorithm"),
        ("judging.pipeline", "from mqauth import audit, wire"),
        (
            "brokers.kafka.consumer",
            "import time, asyncio, kafka\nfrom mqauth.brokers.kafka.client import Log",
        ),
        ("cli.sign", "import mqauth\nfrom mqauth.config import load"),
    ],
)
def test_allowed_import_passes(name: str, source: str) -> None:
    """What a module is there to know, it may import."""
    assert offences(name, source) == []

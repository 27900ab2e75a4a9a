"""Importing the package and printing the command's help are fast: neither imports what it does not need."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mqauth

HEAVY = (
    "aio_pika", "aiormq", "asyncio", "cryptography", "http.client", "jwt", "kafka", "redis", "rich.console",
    "sqlite3", "ssl", "starlette", "tenacity", "tomllib", "urllib.request", "uvicorn", "mqauth.config",
    "mqauth.judging", "mqauth.keystore", "mqauth.letters", "mqauth.review", "mqauth.signer", "mqauth.wire.jws",
)  # fmt: skip
"""Modules that take most of the time, some of them by what they import; the first use of a name may."""


def imported(program: str) -> set[str]:
    """Return the modules that a new process has imported when it has run a program."""
    script = f"import json, sys\n{program}\nprint(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    """``import mqauth`` imports none of the modules that take time."""
    assert imported("import mqauth") & {*HEAVY, "typer"} == set()


def test_help_imports_nothing_heavy() -> None:
    """``mqauth --help`` imports the command's parser and none of the modules that its verbs need."""
    found = imported("from mqauth.cli import main\nassert main(['--help']) == 0")
    assert found & set(HEAVY) == set()
    assert "typer" in found


def test_what_is_imported_late_is_still_found() -> None:
    """The check is not blind: the first use of a name imports its module, and what that one needs."""
    assert {"jwt", "cryptography", "mqauth.signer"} <= imported(
        "import mqauth\nmqauth.Signer"
    )


def names_for_type_checkers() -> dict[str, str]:
    """Return the names that the package imports for type checkers alone, each with its module."""
    tree = ast.parse(Path(mqauth.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_names_are_the_same_for_type_checkers() -> None:
    """What a type checker sees and what is imported on first use are the same names, all of them public."""
    assert names_for_type_checkers().keys() == set(mqauth.__all__) - {"__version__"}
    assert mqauth._MODULES.keys() == names_for_type_checkers().keys()


@pytest.mark.parametrize(("name", "module"), names_for_type_checkers().items())
def test_name_is_what_the_type_checker_sees(name: str, module: str) -> None:
    """Each public name is the very object that the module holds from which type checkers take it."""
    scope: dict[str, Any] = {}
    exec(f"from {module} import {name}", scope)  # noqa: S102 - our own package
    assert getattr(mqauth, name) is scope[name]
    assert name in dir(mqauth)


LIBRARIES = {
    "rabbitmq": ("aio_pika", "mqauth.brokers.rabbitmq"),
    "pika": ("pika", "mqauth.brokers.pika"),
    "kafka": ("kafka", "mqauth.brokers.kafka"),
    "confluent": ("confluent_kafka", "mqauth.brokers.confluent"),
    "aiokafka": ("aiokafka", "mqauth.brokers.aiokafka"),
    "redis": ("redis", "mqauth.stores.redis"),
    "otel": ("opentelemetry", "mqauth.telemetry"),
    "prometheus": ("prometheus_client", "mqauth.telemetry.prometheus"),
    "faststream": ("faststream", "mqauth.integrations.faststream"),
    "taskiq": ("taskiq", "mqauth.integrations.taskiq"),
    "dramatiq": ("dramatiq", "mqauth.integrations.dramatiq"),
    "celery": ("celery", "mqauth.integrations.celery"),
}


def test_a_missing_extra_is_named() -> None:
    """Who imports a module whose library is not installed is told what to install."""
    program = f"""
import importlib, sys
for library, module in {list(LIBRARIES.values())}:
    real = sys.modules.pop(library, None)
    sys.modules[library] = None
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(error)
    del sys.modules[library]
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"no module {library!r}: pip install 'mqauth[{extra}]'"
        for extra, (library, _) in LIBRARIES.items()
    ]

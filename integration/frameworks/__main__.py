"""``python -m integration.frameworks FRAMEWORK``: its own tests for RabbitMQ, with our adapter on.

The tests come from PyPI, in the version and with the hash of ``requirements.txt``. taskiq-aio-pika has none
there: name a checkout of its repository by ``--checkout``. ``--bare`` leaves the adapter out: what fails then,
too, is not the adapter's. Further words are pytest's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from integration.documentation import ROOT
from integration.frameworks.protected import LEFT_OUT
from integration.services import RabbitMQ, Redis

FOLDER: Final = Path(__file__).parent
CHOSEN: Final = {
    "dramatiq": ("dramatiq-2.2.1", ["tests/test_rabbitmq.py"]),
    "celery": (
        "celery-5.7.0",
        [f"t/integration/test_{name}.py" for name in ("tasks", "canvas", "group_chains")],
    ),
    "kombu": ("kombu-5.7.0", ["t/integration/test_py_amqp.py"]),
    "taskiq": ("", ["tests"]),
}
"""The source distribution, and its files that send and run tasks by RabbitMQ."""
_PYTEST: Final = ("-o", "addopts=", "-o", "asyncio_mode=auto")
COMMON = """
import pika
from contextlib import contextmanager
from dramatiq import Worker

RABBITMQ_USERNAME = RABBITMQ_PASSWORD = "guest"
RABBITMQ_CREDENTIALS = pika.credentials.PlainCredentials("guest", "guest")
skip_unless_rabbit_mq = lambda test: test


@contextmanager
def worker(*arguments, **options):
    worker = Worker(*arguments, **options)
    worker.start()
    yield worker
    worker.stop()
"""
"""What dramatiq's tests import, and its source distribution does not have."""


def fetched(name: str, folder: Path) -> Path:
    """Return the folder of a source distribution that pip has fetched, by its hash."""
    given = FOLDER / "requirements.txt"
    line = next(
        line
        for line in given.read_text("utf-8").splitlines()
        if line.startswith(name.replace("-", "=="))
    )
    wanted = folder / "wanted.txt"
    wanted.write_text(line, "utf-8")
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
    ]
    subprocess.run(
        [*download, "--require-hashes", "-r", str(wanted), "-d", str(folder)], check=True
    )
    with tarfile.open(folder / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def run(
    framework: str, tests: Path, files: Iterable[str], words: Iterable[str], *, bare: bool
) -> int:
    """Run the tests on a RabbitMQ and a Redis of their own, and return pytest's exit code."""
    with RabbitMQ.launch() as rabbitmq, Redis.launch() as redis:
        port = str(urlsplit(redis.url).port)
        settings = {
            "MQAUTH_FRAMEWORK": framework,
            "MQAUTH_FRAMEWORK_URL": rabbitmq.url,
            "MQAUTH_FRAMEWORK_BARE": "1" if bare else "",
            "PYTHONPATH": str(ROOT),
            "TEST_AMQP_URL": rabbitmq.url,
            "TEST_BROKER": f"py{rabbitmq.url}",
            "TEST_BACKEND": redis.url,
            "REDIS_PORT": port,
            "RABBITMQ_HOST": "127.0.0.1",
            "RABBITMQ_5672_TCP": str(urlsplit(rabbitmq.url).port),
            "C_FORCE_ROOT": "1",
        }
        plugins = [
            "-p",
            "integration.frameworks.protected",
            *(["-p", "celery.contrib.pytest"] * (framework == "celery")),
        ]
        command = [sys.executable, "-m", "pytest", *plugins, "-q", *_PYTEST, *files]
        left_out = [word for test in LEFT_OUT[framework] for word in ("--deselect", test)]
        environment = os.environ | settings
        return subprocess.run(
            [*command, *left_out, *words], check=False, cwd=tests, env=environment
        ).returncode


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.frameworks", description=main.__doc__
    )
    parser.add_argument("framework", choices=CHOSEN)
    parser.add_argument("--checkout", type=Path, help="of the framework's repository")
    parser.add_argument("--bare", action="store_true", help="without the adapter")
    options, words = parser.parse_known_args()
    name, files = CHOSEN[options.framework]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.checkout:
            tests = shutil.copytree(options.checkout, folder / "checkout")
        elif name:
            tests = fetched(name, folder)
        else:
            parser.error("taskiq-aio-pika brings no tests to PyPI: --checkout")
        # Their packages are the installed ones.
        for package in ("celery", "dramatiq", "kombu", "taskiq_aio_pika"):
            shutil.rmtree(tests / package, ignore_errors=True)
        if options.framework == "dramatiq":
            (tests / "tests" / "__init__.py").touch()
            (tests / "tests" / "common.py").write_text(COMMON, "utf-8")
        return run(options.framework, tests, files, words, bare=options.bare)


if __name__ == "__main__":
    sys.exit(main())

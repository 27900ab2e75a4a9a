"""The oldest and the newest releases of what mqauth uses, tried: `python -m integration versions`.

The lower bounds of `pyproject.toml` are a promise. So all of them at once are installed into an environment of the
oldest Python, with the oldest brokers, and the newest releases into one of the newest Python, with the newest
brokers. Both run the unit tests, what every client promises on real brokers, and the replay store on Redis and on
Valkey. A wheel and an sdist are installed as a stranger would, into an empty environment of each Python. A package
that many services have beside us must find a solution with us: pip is asked. What was seen is kept in
`versions.json`, and `docs/reference/supported-versions.md` is written from it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

from integration.pace import BESIDE_OTHERS
from integration.services.debian import SUITE_VARIABLE
from integration.services.kafka import VERSION_VARIABLE
from integration.services.machine import run as output_of
from integration.services.machine import say
from integration.services.redis import PACKAGE_VARIABLE

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = Path(__file__).with_name("versions.json")
PAGE: Final = ROOT / "docs" / "reference" / "supported-versions.md"
MARK: Final = "<!-- written by python -m integration versions -->\n"
PYTHONS: Final = ("3.11", "3.12", "3.13")
BESIDE: Final = {
    "aiobotocore": "aws",
    "quixstreams": "confluent",
    "arq": "redis",
    "opentelemetry-instrumentation-aio-pika": "rabbitmq",
    "opentelemetry-instrumentation-kafka-python": "kafka",
}
"""Packages that pin what an extra of ours needs, and the extra."""
TOO_OLD: Final = "redis<4"
DOUBLES: Final = {"confluent-kafka": "2.14.0"}
"""Releases that the unit tests need, whose doubles are made of the client's own classes, and that ``AIOConsumer``
needs; what does without then runs with the lower bound."""
BELOW: Final = "confluent and not aio and not faststream"
PROMISED: Final = ("integration/capabilities",)
CHECKERS: Final = ("tests/test_lint.py", "tests/test_typing_api.py")
STORE: Final = ("integration/test_redis_store.py",)
BROKERS: Final = {
    "lowest": {
        VERSION_VARIABLE: "4.0.0",
        "MQAUTH_KAFKA_IMAGE": "apache/kafka:4.0.0",
        "MQAUTH_RABBITMQ_IMAGE": "rabbitmq:4.0",
    },
    "highest": {SUITE_VARIABLE: "sid", "MQAUTH_RABBITMQ_IMAGE": "rabbitmq:4"},
}
"""Variables that choose releases of brokers: where these run without Docker, and with it."""
STORES: Final = {
    "lowest": {
        "Redis": {"MQAUTH_REDIS_IMAGE": "redis:7.0"},
        "Valkey": {
            PACKAGE_VARIABLE: "valkey-server",
            "MQAUTH_REDIS_IMAGE": "valkey/valkey:8.1",
        },
    },
    "highest": {
        "Redis": {PACKAGE_VARIABLE: "redis-server", "MQAUTH_REDIS_IMAGE": "redis:latest"},
        "Valkey": {
            PACKAGE_VARIABLE: "valkey-server",
            "MQAUTH_REDIS_IMAGE": "valkey/valkey:latest",
        },
    },
}
"""What the replay store runs on, likewise."""
_VERDICT: Final = {True: "passed", False: "**failed**"}
_RUNS: Final = {
    "units": "*unit tests*", "promises": "*what every client promises*", "stores": "*replay store*"
}  # fmt: skip
_BROKER: Final = re.compile(r"(RabbitMQ|Kafka|Redis) (\d[\d.]*) at .*")


def lower_bounds() -> dict[str, str]:
    """Return the oldest release of each package that a service may have beside us, by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [
        *project["dependencies"],
        *(line for name in extras if name not in ("all", "dev") for line in extras[name]),
    ]
    bounds = {}
    for line in listed:
        wanted = Requirement(line)
        # An extra may bring another one of ours.
        if wanted.name == project["name"]:
            continue
        bounds[wanted.name] = next(
            each.version for each in wanted.specifier if each.operator == ">="
        )
    return bounds


def interpreter(version: str) -> str:
    """Return a Python of a version, on the path or one of pyenv's.

    Raises:
        FileNotFoundError: there is none.
    """
    own = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, reversed(own))):
        # pyenv puts names on the path that may lead nowhere.
        if (
            found
            and not subprocess.run(
                [found, "--version"], check=False, capture_output=True
            ).returncode
        ):
            return found
    raise FileNotFoundError(
        f"no Python {version}: install it, or put it on the path as python{version}"
    )


class Environment:
    """An environment of its own, with pip alone.

    Args:
        folder: is made.
        version: of Python.
    """

    def __init__(self, folder: Path, version: str) -> None:
        self.folder, self.python = folder, str(folder / "bin" / "python")
        subprocess.run([interpreter(version), "-m", "venv", str(folder)], check=True)
        self.pip("install", "--upgrade", "pip")

    def pip(self, *arguments: str) -> None:
        """Run pip."""
        subprocess.run(
            [
                self.python,
                "-m",
                "pip",
                "--quiet",
                "--disable-pip-version-check",
                *arguments,
            ],
            check=True,
        )

    def constrain(self, releases: Mapping[str, str]) -> None:
        """Install this checkout with what its tests need: these releases, and of other packages the newest."""
        constraints = self.folder / "constraints.txt"
        constraints.write_text(
            "".join(f"{name}=={release}\n" for name, release in releases.items())
        )
        self.pip(
            "install",
            "--editable",
            f"{ROOT}[dev]",
            "hatchling",
            "httpx",
            "--constraint",
            str(constraints),
        )

    def releases(self, names: Iterable[str]) -> dict[str, str]:
        """Return the installed releases of packages, and of Python."""
        told = output_of(
            [self.python, "-m", "pip", "list", "--format", "json"],
            timeout=60,
            stderr=False,
        )
        installed = {
            each["name"].lower().replace("_", "-"): each["version"]
            for each in json.loads(told)
        }
        python = output_of([self.python, "--version"], timeout=60).split()[1]
        return {"Python": python, **{name: installed[name.lower()] for name in names}}

    def demo(self) -> bool:
        """Run the demo as the README says, and tell whether it ends well."""
        command = [str(Path(self.python).with_name("mqauth")), "demo"]
        return (
            subprocess.run(
                command, cwd=self.folder, check=False, stdout=subprocess.DEVNULL
            ).returncode
            == 0
        )

    def test(
        self,
        *arguments: str,
        cwd: Path = ROOT,
        variables: Mapping[str, str] | None = None,
    ) -> tuple[bool, dict[str, str]]:
        """Run tests; warnings of old releases about what is new beside them are no failure.

        Returns:
            whether they passed, and the version of each broker that they ran on.
        """
        say(f"{self.python} -m pytest {' '.join(arguments)}")
        command = [
            self.python,
            "-m",
            "pytest",
            "-o",
            "filterwarnings=default",
            "--disable-warnings",
            *arguments,
        ]
        # mypy has no cache in a new environment: the pace is that of the full command.
        environment = {
            **os.environ,
            "PYTHONPATH": str(cwd),
            BESIDE_OTHERS: "1",
            **(variables or {}),
        }
        brokers = {}
        with subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
        ) as tests:
            for line in tests.stdout or ():
                print(line, end="", flush=True)
                if told := _BROKER.match(line):
                    brokers[told[1]] = told[2]
        return tests.returncode == 0, brokers


def tried(kind: str, folder: Path, rest: list[str]) -> dict[str, Any]:
    """Run the tests on the lowest or the highest releases, and return what was seen."""
    bounds, lowest = lower_bounds(), kind == "lowest"
    parts = [each for each in _RUNS if each in rest] or list(_RUNS)
    rest = [each for each in rest if each not in _RUNS]
    environment = Environment(folder, PYTHONS[0] if lowest else PYTHONS[-1])
    environment.constrain(bounds | DOUBLES if lowest else {})
    seen: dict[str, Any] = {"brokers": results().get(kind, {}).get("brokers", {})}

    def test(what: str, *arguments: str, store: str = "") -> None:
        variables = BROKERS[kind] | STORES[kind].get(store, {})
        passed, brokers = environment.test(*arguments, *rest, variables=variables)
        seen[what] = passed and seen.get(what, True)
        seen["brokers"] |= {
            store if name == "Redis" else name: release
            for name, release in brokers.items()
        }

    if "promises" in parts:
        test("promises", *PROMISED)
    for store in STORES[kind] if "stores" in parts else ():
        test("stores", *STORE, store=store)
    # Type checkers read the clients' own annotations, which their old releases lack.
    left_out = [f"--ignore={file}" for file in CHECKERS if lowest]
    if "units" in parts:
        test("units", "tests", "-m", "not slow", *left_out)
    if lowest and "promises" in parts:
        environment.pip("install", *(f"{each}=={bounds[each]}" for each in DOUBLES))
        test("promises", *PROMISED, "-k", BELOW)
    below = {each: bounds[each] for each in DOUBLES if lowest}
    return seen | {"releases": environment.releases(bounds) | below}


def installed(folder: Path, rest: list[str]) -> dict[str, Any]:
    """Install the wheel and the sdist into empty environments, and return what they did."""
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT,
        check=True,
    )
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    seen: dict[str, Any] = {}
    for version in PYTHONS:
        for form in (wheel, sdist):
            environment = Environment(folder / f"{version}-{form.suffix[1:]}", version)
            environment.pip("install", f"{form}[cli,rabbitmq,kafka]")
            seen[f"{'wheel' if form is wheel else 'sdist'} {version}"] = (
                environment.demo()
            )
    # The tests that an sdist brings, in an environment that is made from it alone.
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    environment = Environment(folder / "sdist", PYTHONS[-1])
    environment.pip("install", f"{unpacked}[dev]")
    seen["sdist tests"], _ = environment.test(
        "tests", "-m", "not slow", *rest, cwd=unpacked
    )
    return seen


def is_solved(extra: str, neighbour: str, folder: Path) -> bool:
    """Tell whether pip finds releases of an extra of ours beside a package of others."""
    folder.mkdir()
    told = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "install", "--dry-run", "--ignore-installed", "--target",
         str(folder), f"{ROOT}[{extra}]", neighbour],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if told.returncode:
        say(told.stderr.strip()[-2000:])
    return told.returncode == 0


def beside(folder: Path, rest: list[str]) -> dict[str, Any]:
    """Ask pip for a solution beside each neighbour, and return what it said."""
    folder.mkdir()
    # Who asks must be able to hear no: nothing of ours goes with this one.
    seen = {f"{TOO_OLD} refused": not is_solved("redis", TOO_OLD, folder / "refused")}
    return seen | {
        each: is_solved(extra, each, folder / each) for each, extra in BESIDE.items()
    }


KINDS: Final = {
    "lowest": lambda folder, rest: tried("lowest", folder, rest),
    "highest": lambda folder, rest: tried("highest", folder, rest),
    "installed": installed,
    "beside": beside,
}


def run(arguments: list[str]) -> int:
    """Try releases, and write what was seen; return the exit code.

    Args:
        arguments: some of ``KINDS``, all by default, and of ``promises``, ``stores`` and ``units``, to try again
            what failed; any other is for pytest.
    """
    kinds = [each for each in KINDS if each in arguments] or list(KINDS)
    rest = [each for each in arguments if each not in KINDS]
    known = results()
    with tempfile.TemporaryDirectory(prefix="mqauth-versions-") as name:
        for kind in kinds:
            on = {"on": datetime.now(UTC).date().isoformat()}
            known[kind] = known.get(kind, {}) | on | KINDS[kind](Path(name, kind), rest)
            RESULTS.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
            PAGE.write_text(page(), "utf-8")
    failed = [
        f"{kind}: {what}"
        for kind in kinds
        for what, good in known[kind].items()
        if good is False
    ]
    for line in failed:
        say(f"failed: {line}")
    return 1 if failed else 0


def results() -> dict[str, Any]:
    """Return what was seen, by kind."""
    known: dict[str, Any] = (
        json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    )
    return known


def page() -> str:
    """Return the page as it is to be: its text up to the mark, and what was seen of each kind that was tried."""
    known = results()
    lines = [PAGE.read_text("utf-8").partition(MARK)[0] + MARK, *_table(known)]
    for kind, title in (("installed", "Into empty environments"), ("beside", "Beside")):
        if kind in known:
            lines.append(f"{title}, {known[kind]['on']}:")
            for passed, verdict in _VERDICT.items():
                told = ", ".join(
                    f"`{name}`" for name, value in known[kind].items() if value is passed
                )
                lines += [f"{verdict} {told}"] if told else []
            lines.append("")
    return "\n".join(lines)


def _table(known: dict[str, Any]) -> list[str]:
    """Return the lines of the table: each part, and the release of it in the lowest and in the highest column."""
    columns = [known[kind] for kind in ("lowest", "highest") if kind in known]
    if not columns:
        return []
    heads = [
        f"{kind}, {known[kind]['on']}" for kind in ("lowest", "highest") if kind in known
    ]
    rows = [["part", *heads], ["---"] * (len(columns) + 1)]
    for part in ("releases", "brokers"):
        rows += [
            [name, *(each[part].get(name, "") for each in columns)]
            for name in dict.fromkeys(name for each in columns for name in each[part])
        ]
    for what, words in _RUNS.items():
        rows.append([words, *(_VERDICT[each[what]] for each in columns)])
    return [*(f"|{'|'.join(row)}|" for row in rows), ""]

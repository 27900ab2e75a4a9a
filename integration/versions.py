"""The oldest and the newest releases of what mqauth uses, tried: `python -m integration versions`.

The lower bounds of `pyproject.toml` are a promise. So all of them at once are installed into an environment of the
oldest Python, the newest releases into one of the newest Python, and both run the unit tests and what every client
promises on real brokers. What is found is kept in `versions.json`, and `docs/reference/supported-versions.md` is
written from it. A package that many services have beside us must find a solution with us: pip is asked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

from integration.services.machine import say

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = Path(__file__).with_name("versions.json")
PAGE: Final = ROOT / "docs" / "reference" / "supported-versions.md"
MARK: Final = "<!-- written by python -m integration versions -->\n"
KINDS: Final = ("lowest", "highest", "beside")
OLDEST, NEWEST = "3.11", "3.13"
BESIDE: Final = {
    "aiobotocore": "aws",
    "quixstreams": "confluent",
    "arq": "redis",
    "opentelemetry-instrumentation-aio-pika": "rabbitmq",
    "opentelemetry-instrumentation-kafka-python": "kafka",
}
"""Packages that pin what an extra of ours needs, and the extra."""
DOUBLES: Final = {"confluent-kafka": "2.14.0"}
"""Releases that the unit tests need, whose doubles are made of the client's own classes, and that ``AIOConsumer``
needs; what does without then runs with the lower bound."""
BELOW: Final = "confluent and not aio and not faststream"
PROMISED: Final = ("integration/capabilities/test_promises.py",)


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
        bounds[wanted.name] = next(each.version for each in wanted.specifier if each.operator == ">=")
    return bounds


def interpreter(version: str) -> str:
    """Return a Python of a version, on the path or one of pyenv's.

    Raises:
        FileNotFoundError: there is none.
    """
    found = shutil.which(f"python{version}")
    own = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if found is None and not own:
        raise FileNotFoundError(f"no Python {version}: install it, or put it on the path as python{version}")
    return found or str(own[-1])


class Environment:
    """An environment of its own with this checkout and some releases.

    Args:
        folder: is made.
        version: of Python.
        constraints: what is installed of a package, by its name; of others the newest.
    """

    def __init__(self, folder: Path, version: str, constraints: dict[str, str]) -> None:
        self.python = str(folder / "bin" / "python")
        subprocess.run([interpreter(version), "-m", "venv", str(folder)], check=True)
        (folder / "constraints.txt").write_text(
            "".join(f"{name}=={release}\n" for name, release in constraints.items())
        )
        self.pip("install", "--upgrade", "pip")
        # The newest releases of tools, since they are no promise.
        self.pip("install", "--editable", f"{ROOT}[dev]", "httpx", "--constraint", str(folder / "constraints.txt"))

    def pip(self, *arguments: str) -> None:
        """Run pip."""
        subprocess.run(
            [self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True
        )

    def releases(self, names: Any) -> dict[str, str]:
        """Return the installed releases of packages."""
        told = subprocess.run(
            [self.python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
        )
        installed = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(told.stdout)}
        return {name: installed[name.lower()] for name in names}

    def test(self, *arguments: str) -> bool:
        """Run tests; warnings of old releases about what is new beside them are no failure."""
        say(f"{self.python} -m pytest {' '.join(arguments)}")
        told = subprocess.run(
            [self.python, "-m", "pytest", "-o", "filterwarnings=default", "--disable-warnings", *arguments],
            cwd=ROOT, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return told.returncode == 0


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


def run(arguments: list[str]) -> int:
    """Try releases, and write what was found; return the exit code.

    Args:
        arguments: ``lowest``, ``highest`` or ``beside``, all three by default; any other is for pytest.
    """
    kinds = [each for each in KINDS if each in arguments] or list(KINDS)
    rest, bounds = [each for each in arguments if each not in KINDS], lower_bounds()
    known = results()
    with tempfile.TemporaryDirectory(prefix="mqauth-versions-") as name:
        for kind in kinds:
            found: dict[str, Any] = {"on": datetime.now(UTC).date().isoformat()}
            if kind == "beside":
                found |= {each: is_solved(extra, each, Path(name, each)) for each, extra in BESIDE.items()}
            else:
                oldest = kind == "lowest"
                version = OLDEST if oldest else NEWEST
                environment = Environment(Path(name, kind), version, bounds | DOUBLES if oldest else {})
                found |= {"python": version, "units": environment.test("tests", "-m", "not slow", *rest)}
                found["promises"] = environment.test(*PROMISED, *rest)
                if oldest:
                    environment.pip("install", *(f"{each}=={bounds[each]}" for each in DOUBLES))
                    found["promises"] &= environment.test(*PROMISED, "-k", BELOW, *rest)
                found["releases"] = environment.releases(bounds)
            known[kind] = found
            RESULTS.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
            PAGE.write_text(page(), "utf-8")
    return 0 if all(value is not False for kind in kinds for value in known[kind].values()) else 1


def results() -> dict[str, Any]:
    """Return what was found, by kind."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return found


def page() -> str:
    """Return the page as it is to be: its text up to the mark, and a table of each kind that was tried."""
    known, words = results(), {True: "passed", False: "**failed**"}
    lines = [PAGE.read_text("utf-8").partition(MARK)[0] + MARK]
    for kind, title in (("lowest", "Oldest"), ("highest", "Newest")):
        if kind in known:
            found = known[kind]
            lines += [
                f"{title} releases, Python {found['python']}, {found['on']}: unit tests {words[found['units']]}, "
                f"what every client promises on real brokers {words[found['promises']]}.",
                "",
                ", ".join(f"{name} {release}" for name, release in found["releases"].items()), "",
            ]  # fmt: skip
    if "beside" in known:
        lines += [f"Beside others, {known['beside']['on']}:", ""]
        for each, extra in BESIDE.items():
            solved = "pip finds a solution" if known["beside"][each] else "**pip finds no solution**"
            lines.append(f"* `mqauth[{extra}]` and `{each}`: {solved}")
        lines.append("")
    return "\n".join(lines)

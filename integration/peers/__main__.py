"""The command ``python -m integration.peers``: run all trials, keep the outcomes, write the page's table."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Final

from integration.peers import ours
from integration.services.machine import cache_folder
from mqauth.testing.attack_classes import CLASSES

FOLDER: Final = Path(__file__).parent
RESULTS: Final = FOLDER / "results.json"
PAGE: Final = FOLDER.parents[1] / "docs" / "comparison.md"
BEGIN: Final = "<!-- peers: written by python -m integration.peers -->"
END: Final = "<!-- end of peers -->"
_FORGED: Final = "-1"


def trials(python: str) -> dict[str, Any]:
    """Return the outcomes of the peers that an interpreter has."""
    ran = subprocess.run(
        [python, str(FOLDER / "trials.py")], check=True, capture_output=True, cwd=FOLDER
    )
    return dict(json.loads(ran.stdout))


def installed() -> str:
    """Return the interpreter of an environment that has every peer, and make it where there is none."""
    place = cache_folder() / "peers"
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    wanted = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--requirement",
        str(FOLDER / "requirements.txt"),
    ]
    subprocess.run([str(python), *wanted], check=True)
    return str(python)


def table(peers: dict[str, Any], own: dict[str, str]) -> str:
    """Return the table: who accepted a class that any accepted; then the classes that all refused."""
    columns = {
        **{name: found["outcomes"] for name, found in peers.items()},
        "mqauth": own,
    }
    lines, refused = ["| class | accepted by |", "|---|---|"], []
    rows = [
        (_FORGED, "a stranger's signature"),
        *((str(each.number), each.story) for each in CLASSES),
    ]
    for number, story in rows:
        accepted = [
            name for name, found in columns.items() if found.get(number) == "accepted"
        ]
        if accepted:
            lines.append(f"| {number}: {story} | {'; '.join(accepted)} |")
        elif any(number in found["outcomes"] for found in peers.values()):
            refused.append(story if number == _FORGED else number)
    return "\n".join(
        [*lines, "", f"Refused by all that the class fits: {', '.join(refused)}."]
    )


def counts(peers: dict[str, Any], own: dict[str, str]) -> str:
    """Return a sentence for each column: how many classes it was tried with, and accepted."""
    versions = {
        f"{name} {found['version']}": found["outcomes"] for name, found in peers.items()
    }
    columns = {**versions, "mqauth": _tried(peers, own)}
    lines = []
    for name, found in columns.items():
        tried = [said for number, said in found.items() if number != "0"]
        lines.append(f"{name} {tried.count('accepted')} of {len(tried)}")
    return f"Accepted: {'; '.join(lines)}."


def _tried(peers: dict[str, Any], own: dict[str, str]) -> dict[str, str]:
    """Return our outcomes of those classes that any peer was tried with."""
    asked = {number for found in peers.values() for number in found["outcomes"]}
    return {number: said for number, said in own.items() if number in asked}


def written(page: str, results: dict[str, Any]) -> str:
    """Return a page with the table of these results."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    peers, own = results["peers"], results["mqauth"]
    return (
        f"{before}{BEGIN}\n\n{table(peers, own)}\n\n{counts(peers, own)}\n\n{END}{after}"
    )


def main() -> int:
    """Run the command."""
    peers = trials(installed())
    own = {
        _FORGED: ours.forged(),
        **{str(number): said for number, said in ours.outcomes().items()},
    }
    results = {"peers": peers, "mqauth": own}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(written(PAGE.read_text("utf-8"), results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

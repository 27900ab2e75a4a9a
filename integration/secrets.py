"""``python -m integration.secrets``: looks for secrets in files that git knows, with ``--history`` in commits.

Patterns are exact: private keys, and tokens whose issuer marks them. A search by entropy finds a thousand test
vectors here and nothing else. Prints where something was found and never what; exits with 1 if anything was.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PATTERNS: Final = {
    # with a line of the key behind it: a program may name the first line alone
    "private key": re.compile(
        rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+(?:\+|\\n)?[A-Za-z0-9+/=]{32}"
    ),
    "private key in a JWK": re.compile(rb'"d"\s*:\s*"[A-Za-z0-9_-]{40,}"'),
    "key of AWS": re.compile(rb"\bAKIA[0-9A-Z]{16}\b"),
    "token of GitHub": re.compile(
        rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,})\b"
    ),
    "token of GitLab": re.compile(rb"\bglpat-[A-Za-z0-9_-]{20,}"),
    "token of PyPI": re.compile(rb"\bpypi-AgE[A-Za-z0-9_-]{50,}"),
    "token of npm": re.compile(rb"\bnpm_[A-Za-z0-9]{36}\b"),
    "token of Slack": re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "key of Stripe": re.compile(rb"\b[rs]k_live_[A-Za-z0-9]{20,}"),
    "key of Google": re.compile(rb"\bAIza[0-9A-Za-z_-]{35}\b"),
}
"""What is looked for, by what it is."""


def found_in(raw: bytes) -> list[str]:
    """Return which kinds of secrets some bytes hold."""
    return [what for what, pattern in PATTERNS.items() if pattern.search(raw)]


def in_files(root: Path = ROOT) -> Iterator[str]:
    """Yield file and kind of each secret in the files that git knows."""
    for name in _git(root, "ls-files", "-z").split(b"\0"):
        path = root / name.decode()
        if name and path.is_file():
            yield from (
                f"{name.decode()}: {what}" for what in found_in(path.read_bytes())
            )


def in_history(root: Path = ROOT) -> Iterator[str]:
    """Yield commit and kind of each secret that a commit added, wherever a branch or tag leads."""
    for commit in _git(root, "rev-list", "--all").decode().split():
        added = _git(
            root, "show", "--format=", "--unified=0", "--no-textconv", "-m", commit
        )
        lines = b"\n".join(
            line[1:] for line in added.splitlines() if line.startswith(b"+")
        )
        yield from (f"{commit}: {what}" for what in found_in(lines))


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, check=True
    ).stdout


def main(arguments: list[str]) -> int:
    """Print where secrets were found."""
    found = [*in_files(), *(in_history() if "--history" in arguments else ())]
    print("\n".join(found) or "no secret found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

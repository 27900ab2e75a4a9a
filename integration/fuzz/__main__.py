"""The command ``python -m integration.fuzz TARGET --seconds N``: run one target, and tell what it covered."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from integration.fuzz import corpus, seeds

ROOT: Final = Path(__file__).parents[2]
_INSTALL: Final = (
    "atheris is not installed; it is no dependency of mqauth: pip install atheris"
)
LONGEST: Final = 4096
"""Most bytes of an input."""
KEPT: Final = 40
"""Most inputs that a target keeps of one run."""
SHORT: Final = 1024
"""Most bytes of an input that is kept."""
_LAST: Final = re.compile(r"#(\d+)\s.*?cov: (\d+) ft: (\d+) corp: (\d+)")
_UNITS: Final = re.compile(r"number_of_executed_units: (\d+)")


def fuzz(target: str, seconds: int, folder: Path) -> int:
    """Run a target, print its figures, and return libFuzzer's exit code.

    Args:
        target: its name in the table.
        seconds: how long.
        folder: gets the corpus as it grows, and an input at which an oracle did not hold.
    """
    from integration.fuzz.targets import TARGETS

    corpus.unpack(
        folder / "corpus", [*seeds.few(TARGETS[target].seeds), *corpus.kept(target)]
    )
    command = [
        sys.executable, "-m", "integration.fuzz.engine", target, str(folder), str(folder / "corpus"),
        f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-print_final_stats=1", "-timeout=120",
        "-rss_limit_mb=2048", f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, check=False)
    told = ran.stderr.decode("utf-8", "backslashreplace")
    (folder / "log.txt").write_text(told, encoding="utf-8")
    print(summary(target, told, seconds), flush=True)
    return ran.returncode


def summary(target: str, told: str, seconds: int) -> str:
    """Return one line about a run, from what libFuzzer printed."""
    last, units = _LAST.findall(told), _UNITS.findall(told)
    count, edges, features, inputs = last[-1] if last else ("0",) * 4
    done = int(units[-1] if units else count)
    return (
        f"{target}: {done:,} executions in {seconds} s, {int(edges):,} edges of mqauth, "
        f"{int(features):,} features, {int(inputs):,} inputs"
    )


def grow(target: str, folder: Path) -> None:
    """Keep inputs of a run beyond the seeds: libFuzzer wrote each because it covered something new."""
    from integration.fuzz.targets import TARGETS

    known = {*seeds.few(TARGETS[target].seeds), *corpus.kept(target)}
    found = sorted(
        {path.read_bytes() for path in (folder / "corpus").iterdir()} - known, key=len
    )
    short = [one for one in found if len(one) <= SHORT]
    corpus.keep(target, [*corpus.kept(target), *short[:: -(-len(short) // KEPT) or 1]])


def main() -> int:
    """Run the command."""
    from integration.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        prog="python -m integration.fuzz", description=__doc__
    )
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--folder", type=Path, help="keeps the grown corpus and what was found"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="add new inputs to the corpus in the repository",
    )
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    if importlib.util.find_spec("atheris") is None:
        parser.error(_INSTALL)
    code = fuzz(options.target, options.seconds, folder)
    if not code and options.keep:
        grow(options.target, folder)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Processor instructions of a message, counted by Valgrind: noise of the machine changes none of them.

``python -m integration.benchmarks.instructions`` prints them and ``--write`` writes them to
``instructions.json``. They are of one Python, one processor's architecture and the libraries of the lock file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from integration.services import valgrind
from mqauth.wire import base64url

FILE: Final = Path(__file__).with_suffix(".json")
MESSAGES: Final = 128
"""Messages of each count: two batches."""
WITHIN: Final = 0.02
"""The share by which a count may differ from the file's."""
NOTHING: Final = "nothing"
_PATIENCE: Final = 600


def versions() -> dict[str, str]:
    """Return what counts hold for."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "valgrind": valgrind.version(),
    }


def counted() -> dict[str, int]:
    """Return the instructions of a message, by what is done with it; a single one's without its signature.

    The interpreter's hashes are seeded, and callgrind counts nothing while the program starts.
    """
    valgrind.prepare()
    with tempfile.TemporaryDirectory(prefix="mqauth-instructions-") as folder:
        argv = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out",
            sys.executable, "-m", "integration.benchmarks.instructions", "--count",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            argv,
            check=False,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        texts = [path.read_text("utf-8") for path in Path(folder).iterdir()]
    sums: dict[str, int] = {}
    for text in texts:
        if name := re.search(r"^desc: Trigger: dump (\w+)$", text, re.MULTILINE):
            found = re.search(r"^summary: (\d+)$", text, re.MULTILINE)
            sums[name[1]] = int(found[1]) if found else 0
    nothing = sums.pop(NOTHING)
    each = {name: (count - nothing) // MESSAGES for name, count in sorted(sums.items())}
    # The library's part, which is four times ours, would hide a change.
    each["single_sign"] -= each["signature_sign"]
    each["single_verdict"] -= each["signature_verify"]
    return each


def differing(found: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """Return a line for each count that differs too much from the one that is wanted, also where it is less."""
    return [
        f"{name}: {found.get(name, 0):,} instructions a message, {wanted.get(name, 0):,} in {FILE.name}"
        for name in sorted({*found, *wanted})
        if abs(found.get(name, 0) - wanted.get(name, 0)) > WITHIN * wanted.get(name, 0)
    ]


def work() -> dict[str, Callable[[], object]]:
    """Return what is counted, by name; each was done once before, so that what is remembered is."""
    from integration.benchmarks.client.inprocess import (
        BATCH_NAME,
        Cell,
        Operations,
        primitives,
    )
    from mqauth.testing.forge import Forge

    forge = Forge(lifetime=3600)
    single, batch = (
        Operations(Cell(kind=kind), MESSAGES, forge) for kind in ("EdDSA", BATCH_NAME)
    )
    sign, verify = primitives(forge.key)
    # The very signatures of the messages: how long one takes to check depends on its bits.
    tokens: list[Any] = [message.headers[-1][1] for message in single.signed]
    signatures = [
        (base64url.decode(signature), data)
        for data, _, signature in (token.rpartition(b".") for token in tokens)
    ]
    done: dict[str, Callable[[], object]] = {
        NOTHING: lambda: None,
        "single_sign": single.sign,
        "single_verdict": single.verdict,
        "batch_sign": batch.sign,
        "batch_verdict": batch.verdict,
        "signature_sign": lambda: [sign(data) for _, data in signatures],
        "signature_verify": lambda: [verify(*each) for each in signatures],
    }
    for call in done.values():
        call()
    return done


def count() -> None:
    """Do the work inside callgrind, with a dump of its counters after each piece."""

    def control(option: str) -> None:
        argv = ["callgrind_control", option, str(os.getpid())]
        subprocess.run(argv, check=True, capture_output=True, timeout=_PATIENCE)

    pieces = work()
    gc.collect()
    gc.disable()
    control("--instr=on")
    for name, call in pieces.items():
        control("--zero")
        call()
        control(f"--dump={name}")
    control("--instr=off")


def main() -> None:
    """Print the counts, or write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write the file")
    given = parser.parse_args()
    if given.count:
        return count()
    found = {"versions": versions(), "instructions": counted()}
    if given.write:
        FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps(found, indent=1))
    return None


if __name__ == "__main__":
    main()

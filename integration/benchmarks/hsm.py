"""``python -m integration.benchmarks.hsm``: what a signature takes with a key in SoftHSM, and in a file.

Of one signature over 600 bytes, the size of a token's signing input, then of a batch of 64 messages. Real time,
and the CPU time of this process: that is all there is of a library, and other programs on the machine change it
least. Each is the median of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from integration.services.softhsm import SoftHSM
from mqauth import Message, Signer
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring
from mqauth.wire.keys import SigningKey

KINDS: Final = {"ES256": "EC:prime256v1", "EdDSA": "EC:edwards25519"}
DATA: Final = bytes(600)
BATCH: Final = 64


def keystores(folder: Path) -> dict[str, Path]:
    """Return keystores by name: a file and a key in the HSM of each algorithm."""
    found = {}
    for algorithm in KINDS:
        found[f"{algorithm}, file"] = file = folder / f"{algorithm}-file"
        Keystore(folder=file).create(algorithm=algorithm, subjects=["a"])
        found[f"{algorithm}, SoftHSM"] = hsm = folder / f"{algorithm}-hsm"
        store = Keystore(folder=hsm)
        store.adopt(
            f"pkcs11:token=prod;object={algorithm}", subjects=["a"], publish_delay=0
        )
        store.change(ring.rotate)
    return found


def cost(count: int, work: Callable[[], object]) -> tuple[float, float]:
    """Return the real time and the CPU time of a call, microseconds."""
    begun, used = time.perf_counter(), time.process_time()
    for _ in range(count):
        work()
    return (time.perf_counter() - begun) / count * 1e6, (
        time.process_time() - used
    ) / count * 1e6


def of_batch(path: Path) -> Callable[[], object]:
    """Return what signs a batch with the key of a keystore."""
    signer = Signer(key=ActiveKey(path), issuer="i", subject="a", audience="x")
    messages = [
        Message(destination="kafka:bench", body=b"%d" % number) for number in range(BATCH)
    ]
    return lambda: signer.sign_many(messages)


def measured(rounds: int, count: int) -> dict[str, list[float]]:
    """Return the medians by what was measured, microseconds."""
    with tempfile.TemporaryDirectory(prefix="mqauth-hsm-") as place:
        hsm = SoftHSM.launch(Path(place) / "hsm", "prod")
        for number, (name, kind) in enumerate(KINDS.items(), 1):
            hsm.generate(name, kind, id=f"{number:02}")
        os.environ.update(hsm.environment)
        keys, work = keystores(Path(place)), dict[str, Callable[[], object]]()
        for name, path in keys.items():
            work[name] = _signing(ActiveKey(path).signing_key())
            work[f"{name}, a batch of {BATCH}"] = of_batch(path)
        costs = {
            name: [cost(count, call) for _ in range(rounds)]
            for name, call in work.items()
        }
        found = {
            name: [median(one) for one in zip(*each, strict=True)]
            for name, each in costs.items()
        }
    return found


def _signing(key: SigningKey) -> Callable[[], object]:
    return lambda: key.sign(DATA)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.benchmarks.hsm", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=200, help="signatures a round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measured(options.rounds, options.count)
    if options.json:
        print(json.dumps(found))
        return
    for name, (real, cpu) in found.items():
        print(f"{name:<32} {real:8.0f} us, {cpu:6.0f} us of CPU")


if __name__ == "__main__":
    main()

"""``python -m integration.benchmarks.transit``: what a signature by a key in OpenBao takes, on loopback.

Each line has the median and the 99th of 100 of the times of a signature over 600 bytes, and the CPU time of this
process. *64 in one request* is what ``batch_input`` would give 64 single tokens, without any check.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from integration.held_key import MOUNT, Held, engine
from integration.services.openbao import OpenBao
from mqauth.keystore import ActiveKey

DATA: Final = bytes(600)
BATCH: Final = 64


def line(name: str, count: int, work: Callable[[], object]) -> str:
    """Return what work took, so many times."""
    work()
    times, cpu = [], time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    cpu = (time.process_time() - cpu) / count * 1e3
    return f"{name:<34} {median(times):6.2f} ms, p99 {quantiles(times, n=100)[-1]:6.2f} ms, {cpu:5.2f} ms of CPU"


def measure(openbao: OpenBao, folder: Path, count: int) -> None:
    """Print a line for each algorithm, by TLS and without, and one for a batch."""
    for algorithm in ("EdDSA", "ES256"):
        for server in ("", openbao.url):
            place = folder / f"{algorithm}-{'http' if server else 'https'}"
            place.mkdir()
            held = Held(openbao, place, algorithm)
            held.adopt(held.uri(server))
            key = ActiveKey(held.store.folder).signing_key()
            print(line(place.name, count, partial(key.sign, DATA)), flush=True)
        asked = {"batch_input": [{"input": base64.b64encode(DATA).decode()}] * BATCH}
        batch = partial(openbao.tell, "POST", f"{MOUNT}/sign/{held.name}", asked)
        print(line(f"{algorithm}, 64 in one request", count // 8, batch), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    given = parser.parse_args()
    with OpenBao.launch() as server, engine(server), tempfile.TemporaryDirectory() as scratch:
        print(f"OpenBao {server.version}")
        measure(server, Path(scratch), given.count)

"""Put every small fault into the named modules, or into all; print the scores and what nobody has explained."""

from __future__ import annotations

import argparse
import os
import sys
import time

from integration.mutation import MODULES
from integration.mutation.report import Report, explained
from integration.mutation.trial import SURVIVED, Trials, faults_of


def main() -> int:
    """Run the command; 1 where a survivor is not explained."""
    parser = argparse.ArgumentParser(prog="python -m integration.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="below mqauth, such as wire.claims")
    parser.add_argument("--all", action="store_true", help="print the vector that tells of each fault, too")
    chosen = parser.parse_args()
    os.nice(19)
    trials, report = Trials(), Report(explained())
    if not trials.sound():
        print("the vectors tell of a fault where there is none: run tests/test_vectors.py")
        return 2
    for module in chosen.modules or MODULES:
        begun = time.monotonic()
        for fault, told in trials.run(faults_of(module)):
            report.add(fault.key, told)
            if chosen.all or (told == SURVIVED and not report.is_explained(fault.key)):
                print(f"  {' | '.join(map(str, fault.key))}  <- {told or 'SURVIVED'}", flush=True)
        print(report.line(module), f"{time.monotonic() - begun:.0f} s", flush=True)
    print(report.line(None))
    return 1 if report.open else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kills at random moments: ``python -m integration.review --kills 20 --broker kafka --act redrive``.

On the brokers of the environment; exit code 1 where something was lost, handled twice or does not add up.
The scenario of thousands of letters is ``python -m integration.review.scenario``.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from integration.review.kills import ACTS, play_kills
from integration.review.scene import BROKERS, staged


def main(arguments: list[str]) -> int:
    """Kill, count and print."""
    parser = argparse.ArgumentParser(prog="python -m integration.review")
    parser.add_argument("--broker", choices=BROKERS, required=True)
    parser.add_argument("--act", choices=tuple(ACTS), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--letters", type=int, help="ten a kill unless told")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    wanted = parser.parse_args(arguments)
    letters, started = wanted.letters or 10 * wanted.kills, time.monotonic()
    tally = staged(wanted.broker, lambda scene: play_kills(scene, wanted.act, wanted.kills, letters, wanted.seed))
    seconds = time.monotonic() - started
    print(f"{wanted.broker} {wanted.act}, seed {wanted.seed}: {tally}; {seconds:.0f} s", flush=True)
    return 0 if tally.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

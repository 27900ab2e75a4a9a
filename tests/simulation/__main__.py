"""``python -m tests.simulation``: play seeds, print those that fail with their reduced plans, play plans again."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from tests.simulation import determinism


def main(arguments: list[str]) -> int:
    """Run the command; return how many seeds failed, at most 1."""
    wanted = _parser().parse_args(arguments)
    if not determinism.is_hashed():
        determinism.again_hashed()
    if wanted.code is not None:
        sys.path.insert(0, str(Path(wanted.code).resolve()))
    if wanted.engines:
        logging.disable(logging.CRITICAL)
        return _play_engines(wanted)
    if not wanted.kafka:
        determinism.install()
    import mqauth

    print(f"mqauth of {Path(mqauth.__file__).parent}", flush=True)
    if wanted.log is None:
        logging.disable(logging.CRITICAL)
    else:
        logging.basicConfig(
            level=wanted.log,
            stream=sys.stdout,
            format="%(levelname)s %(name)s %(message)s",
        )
    if wanted.kafka:
        return _play_kafka(wanted)
    return _play_plans(wanted) if wanted.plan else _play_seeds(wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument(
        "--engines",
        type=int,
        default=0,
        help="play so many schedules of the pure engines",
    )
    parser.add_argument("--engine", help="of this one alone")
    parser.add_argument(
        "--jobs",
        type=int,
        help="processes at a time that play engines, by default one a core",
    )
    parser.add_argument(
        "--kafka", action="store_true", help="play a whole Kafka leaf instead"
    )
    parser.add_argument(
        "--client",
        help="the leaf of this client; with --kafka one of a client of Kafka's",
    )
    parser.add_argument(
        "--from", type=int, default=0, dest="first", help="the first of them"
    )
    parser.add_argument(
        "--plan", type=Path, nargs="+", help="play the plans of these files"
    )
    parser.add_argument(
        "--code", type=Path, help="another checkout, whose mqauth is played"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], help="leave out faults of these kinds"
    )
    parser.add_argument(
        "--strict", action="store_true", help="want what the pages do not promise, too"
    )
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--log", help="print the log from this level on")
    parser.add_argument("--digests", action="store_true", help="print each seed's digest")
    parser.add_argument(
        "--no-shrink", action="store_true", help="print failing plans whole"
    )
    parser.add_argument("--save", type=Path, help="keep the failing plans in this folder")
    parser.add_argument(
        "--until", type=int, default=0, help="end after so many failing seeds"
    )
    return parser


def _play_engines(wanted: argparse.Namespace) -> int:
    """Play schedules of the pure engines, and tell of those that fail."""
    from tests.simulation import engines

    names = [wanted.engine] if wanted.engine else list(engines.ENGINES)
    if wanted.trace:
        for name in names:
            for seed in range(wanted.first, wanted.first + wanted.engines):
                print("\n".join(engines.traced(seed, engines.ENGINES[name])))
    found = [
        engines.play(name, wanted.first, wanted.engines, _say, jobs=wanted.jobs)
        for name in names
    ]
    return min(1, sum(found))


def _play_kafka(wanted: argparse.Namespace) -> int:
    """Play seeds of the whole Kafka leaf, and tell of those that fail."""
    from tests.simulation import kafka_play
    from tests.simulation.runner import reduced

    started, failed = time.perf_counter(), 0
    for seed in range(wanted.first, wanted.first + wanted.seeds):
        play = kafka_play.KafkaPlay.of(seed, wanted.client or "kafka-python")
        result = kafka_play.run(play, print if wanted.trace else None)
        if wanted.digests:
            print(f"{seed} {result.digest}", flush=True)
        if result.problems:
            failed += 1
            shown = result if wanted.no_shrink else reduced(result, kafka_play.run)
            print(
                f"seed {seed} fails, shown with {len(shown.play.faults)} of {len(result.play.faults)} faults"
            )
            _show(shown)
    took = time.perf_counter() - started
    print(
        f"{wanted.seeds} seeds, {failed} failed, {wanted.seeds / took:.2f} a second",
        flush=True,
    )
    return min(failed, 1)


def _say(line: str) -> None:
    print(line, flush=True)


def _play_seeds(wanted: argparse.Namespace) -> int:
    """Play seeds, and tell of each that fails."""
    from tests.simulation.runner import Play, run

    # The modules stay: each seed's garbage is found without looking through them.
    gc.freeze()
    started, failed, broken = time.perf_counter(), 0, Counter[str]()
    done = 0
    for seed in range(wanted.first, wanted.first + wanted.seeds):
        result = run(
            Play.of(seed, wanted.without, wanted.client or "aio-pika"),
            print if wanted.trace else None,
            strict=wanted.strict,
        )
        done += 1
        if wanted.digests:
            print(f"{seed} {result.digest}")
        if result.problems:
            failed += 1
            broken.update(result.broken)
            _tell(result, wanted)
        if wanted.until and failed >= wanted.until:
            break
    took = time.perf_counter() - started
    print(f"{done} seeds, {failed} failed, {done / took:.2f} a second; {dict(broken)}")
    return min(failed, 1)


def _play_plans(wanted: argparse.Namespace) -> int:
    """Play the plans of files, and tell what each came to."""
    from tests.simulation.runner import Play, run

    failed = 0
    for file in wanted.plan:
        play = Play.from_dict(json.loads(file.read_text()))
        result = run(play, print if wanted.trace else None, strict=wanted.strict)
        failed += bool(result.problems)
        print(f"{file.name}: {'fails' if result.problems else 'holds'}")
        _show(result)
    return min(failed, 1)


def _tell(result: object, wanted: argparse.Namespace) -> None:
    """Print a failing seed, reduced unless told otherwise, and keep its plan."""
    from tests.simulation.runner import Result, reduced, run

    assert isinstance(result, Result)
    shown = (
        result
        if wanted.no_shrink
        else reduced(result, partial(run, strict=wanted.strict))
    )
    print(
        f"seed {result.play.seed} fails with {len(result.play.faults)} faults, shown with {len(shown.play.faults)}"
    )
    _show(shown)
    if wanted.save:
        wanted.save.mkdir(parents=True, exist_ok=True)
        file = wanted.save / f"{result.play.seed}.json"
        file.write_text(json.dumps(shown.play.as_dict(), indent=1) + "\n")


def _show(result: object) -> None:
    from tests.simulation.runner import Result

    assert isinstance(result, Result)
    for fault in result.play.faults:
        print(f"    {fault}")
    print(f"    settings {result.play.settings}")
    for name, text in result.problems[:12]:
        print(f"  - {name}: {text}")
    if len(result.problems) > 12:
        print(f"  - and {len(result.problems) - 12} more")
    print(
        f"    {result.virtual:.1f} s in {result.real:.2f} s, digest {result.digest[:16]}",
        flush=True,
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(
        code
    )  # what is left of the last seed's processes must not run its clean-up here

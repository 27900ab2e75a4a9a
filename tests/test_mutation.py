"""The mutation run works: a fixed sample of faults is told of, or not, as it was; what survives is explained."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from integration.mutation import MODULES
from integration.mutation.faults import Key, faults
from integration.mutation.planted import path_of
from integration.mutation.report import WHY, entries

ROOT: Final = Path(__file__).parent.parent
SAMPLE: Final = (
    Key("wire.claims", "time_claim", "GtE to Gt", 1),
    Key("wire.claims", "_header_names", "returns None", 1),
    Key("wire.envelope", "_scalar", "condition negated", 4),
    Key("wire.strict_json", "_float", "removed", 1),
    Key("judging.token", "Times.check", "Gt to GtE", 1),
    Key("judging.verifier", "Verifier._believe", "NotEq to Eq", 1),
    Key("replay.rules", "judge", "NotEq to Eq", 1),
    Key("replay.rules", "batch_id", "2 to 3", 1),
    Key("wire.batch", "Proven.proves", "LtE to Lt", 2),
    Key("wire.jws", "", "3 to 4", 1),
    Key("wire.claims", "", "'nbf' to 'nbfn'", 1),
    Key("judging.token", "Times.evidence", "without operand 2", 1),
)
"""Faults that a vector tells of, in functions and at the top of a module."""
SILENT: Final = Key("replay.rules", "judge", "LtE to Lt", 1)
"""A fault that none tells of: a lease that ends this very moment."""
REPLAY: Final = """
import json, sys
from integration.mutation.faults import Key
from integration.mutation.trial import Trials, faults_of
wanted = [Key(*key) for key in json.load(sys.stdin)]
modules = sorted({key.module for key in wanted})
found = [fault for module in modules for fault in faults_of(module) if fault.key in wanted]
for fault, told in Trials(traced=False).run(found):
    print(json.dumps([fault.key, told]))
"""


@cache
def keys(module: str) -> frozenset[Key]:
    """Return the keys of every fault of a module."""
    return frozenset(
        fault.key for fault in faults(module, path_of(module).read_text("utf-8"))
    )


def test_the_sample_is_told_of_by_vectors_alone() -> None:
    """Each fault of the sample meets a vector that tells, and the silent one meets none."""
    asked = json.dumps([*SAMPLE, SILENT])
    run = subprocess.run(
        [sys.executable, "-c", REPLAY],
        input=asked,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=True,
    )
    told = {Key(*key): vector for key, vector in map(json.loads, run.stdout.splitlines())}
    assert told.pop(SILENT) == ""
    assert told.keys() == set(SAMPLE)
    assert all(
        ": " in vector and not vector.startswith("it does not")
        for vector in told.values()
    ), told


@pytest.mark.parametrize("module", MODULES)
def test_each_fault_has_a_key_of_its_own(module: str) -> None:
    """Two faults of a module never share a key, and there are some."""
    found = [fault.key for fault in faults(module, path_of(module).read_text("utf-8"))]
    assert found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "entry", entries(), ids=lambda entry: f"{entry['module']}:{entry['function']}"
)
def test_each_survivor_is_still_there(entry: dict[str, Any]) -> None:
    """What is explained is of a function with as many faults, and has a reason and a sentence or test."""
    assert entry["why"] in WHY
    assert entry["note"]
    assert (
        sum(key.function == entry["function"] for key in keys(entry["module"]))
        >= entry.get("faults", 1)
        > 0
    )


def test_the_tests_that_survivors_name_exist() -> None:
    """A note that names a file of tests names one that is there."""
    for entry in entries():
        for word in entry["note"].replace(",", " ").replace(";", " ").split():
            if word.endswith(".py"):
                assert (ROOT / word).exists(), word

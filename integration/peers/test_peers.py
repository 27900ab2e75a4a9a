"""The table of other software: written from what was measured, and measured again where that is installed."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from integration.peers import ours
from integration.peers.__main__ import PAGE, RESULTS, trials, written
from mqauth.testing.attack_classes import CLASSES

KEPT: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))


def test_the_page_has_the_table_of_the_outcomes() -> None:
    """Nobody wrote in it by hand."""
    page = PAGE.read_text("utf-8")
    assert written(page, KEPT) == page


def test_every_honest_message_is_accepted() -> None:
    """A peer that refuses everything would look good in the table."""
    assert {found["outcomes"]["0"] for found in KEPT["peers"].values()} == {"accepted"}
    assert set(KEPT["mqauth"]) >= {
        str(each.number) for each in CLASSES if {"body-changed"} & {*each.attacks}
    }


def test_our_own_column_is_measured() -> None:
    """Every class that can be mounted as a message or two is refused, now as when the table was written."""
    found = {str(number): said for number, said in ours.outcomes().items()} | {
        "-1": ours.forged()
    }
    assert found == KEPT["mqauth"]
    assert set(found.values()) == {"refused"}


def test_peers_that_are_installed_here_do_what_the_table_says() -> None:
    """Celery and PyJWT are among our own packages; of the same versions they have the same outcomes."""
    again = trials(sys.executable)
    same = {
        name
        for name, found in again.items()
        if found["version"] == KEPT["peers"][name]["version"]
    }
    if not same:
        pytest.skip("other versions are installed than the table is of")
    assert {name: again[name] for name in same} == {
        name: KEPT["peers"][name] for name in same
    }


def test_a_class_in_another_state_is_seen() -> None:
    """An outcome that changed changes the page."""
    changed = json.loads(json.dumps(KEPT))
    changed["peers"]["Celery `auth`"]["outcomes"]["40"] = "accepted"
    assert written(PAGE.read_text("utf-8"), changed) != PAGE.read_text("utf-8")

"""The threat model and the classes of attacks name tests and vectors that exist."""

from __future__ import annotations

import re
from typing import Final

from mqauth.testing.attack_classes import CLASSES
from tests import test_vectors
from tests.test_profile_musts import ROOT, functions, names

PAGE: Final = (ROOT / "docs" / "security.md").read_text("utf-8")
ROWS: Final = re.findall(r"^\| (.+) \| (.+) \|$", PAGE, re.MULTILINE)


def test_what_shows_each_promise_exists() -> None:
    """Each quoted vector and each test of the page is there, and each promise has one, or refers to other rows."""
    jwks = {vector["name"] for vector in test_vectors.JWKS["vectors"]}
    for promised, shown in ROWS:
        vectors, tests = (
            re.findall(r'"([^"]+)"', shown),
            re.findall(r"`(test_\w+)`", shown),
        )
        assert (
            shown == "shown by" or vectors or tests or shown.startswith("the rows of")
        ), promised
        assert set(vectors) <= names() | jwks, promised
        assert set(tests) <= functions(), promised


def test_what_holds_each_class_of_attacks_exists() -> None:
    """A class that the attack suite cannot send names a test in a file that has it."""
    named = [
        found.elsewhere.partition("::") for found in CLASSES if "::" in found.elsewhere
    ]
    assert named
    for path, _, test in named:
        assert f"def {test}(" in (ROOT / path).read_text("utf-8"), path


def test_each_adversary_has_promises_and_what_is_not_promised() -> None:
    """Ten kinds of adversary, each with a table and with what nobody promises against it."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:-2]
    assert len(sections) == 10
    assert all(
        "| promised | shown by |" in section and "\nNot promised: " in section
        for section in sections
    )

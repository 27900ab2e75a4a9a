"""Each MUST of the wire profile has vectors that show it, or tests where no message could show it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from tests import test_vectors

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = (ROOT / "docs" / "wire-profile.md").read_text("utf-8")
VECTORS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("It MUST NOT name what transports add, change or remove", ("on RabbitMQ", "bcc in lower case")),
    ("On Kafka it MUST NOT name the seven properties", ("on Kafka, without the seven properties",)),
    ("and a producer MUST refuse to sign it. So are two", (
        "two names that differ in case", "two names that differ in case on Kafka",
        "a property in another case on Kafka")),
    ("and a producer MUST refuse it: an integer", (
        "a time after 2106", "a time before 1970", "a decimal of 33 bits", "a negative zero",
        "a decimal of 256 places", "a time in a list in a table", "lists nested 32 deep", "the first time",
        "the least and the largest integer of AMQP")),
    ("A verifier that cannot reach what it needs MUST NOT accept", (
        "no keys at all", "an unknown key while none can be asked for", "no time at all", "no policy", "no store",
        "a full store takes no new claim and forgets none", "a release whose authority is out of reach")),
    ("A verifier MUST NOT accept by them", (
        "another message under an index that was handled, and under one that was not",)),
    ("and MUST NOT reject by them a message whose proof holds", (
        "twelve bytes that are wrong before a path that is right",)),
    ("Then it MUST still take steps 5, 6 and 8 to 13 anew for every message", (
        "a path altered in its tail after a sibling was proven", "each sibling once, in any order",
        "a sibling after its key was revoked", "a sibling after its end")),
    ("a verifier MUST check these itself", (
        "a claim twice", "a lone surrogate", "an integer beyond 2^53", "a padded signature",
        "bits that no canonical text has")),
    ("so it MUST NOT serve as an id", ("a message signed a second time",)),
    ("A verifier that is configured with no trust domain MUST refuse the form", (
        "single: without trust domain", "batch: without trust domain")),
    ("A verifier MUST judge a token in the form it has", (
        "single: a direct token of the trust domain", "single: a proof alone",
        "batch: a direct token behind a WIT")),
    ("and a producer MUST NOT write `iss` or `sub` into a proof", (
        "single: an iss in the proof", "batch: a sub in the proof")),
    ("The key of a WIT MUST NOT verify a WIT", ("single: a WIT that its own key signed", (
        "single: a WIT that its own key signed, under the kid of the authority"))),
    ("a verifier MUST NOT take a key of that use for anything else", (
        "SPIRE: its key signs a direct token", "single: SPIRE, the key of JWT-SVIDs signs a WIT")),
    ("Cut-offs that cannot be read MUST NOT cut anything off", (
        "single: cut-offs that cannot be read", "single: cut off, and then cut-offs that are an object",
        "batch: cut off, and then a cut-off too many")),
    ("It MUST take steps 5, 6 and 8 to 13 anew for every message of a remembered WIT", (
        "single: remembered, then cut off", "batch: remembered, then ended",
        "single: remembered, then another key of the authority under the kid")),
)  # fmt: skip
"""Where on the page a MUST stands, and the vectors that show it."""
TESTS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (
        "and it MUST send an integer in a field type that holds it",
        (
            "test_integers_are_pythons_own",
            "test_what_cannot_arrive_is_refused",
            "test_both_judge_alike_over_rabbitmq",
        ),
    ),
    (
        "An authority MUST NOT have the name of an issuer",
        ("test_an_authority_has_no_issuers_name",),
    ),
    (
        "It MUST bound what it remembers in bytes",
        (
            "test_what_a_sender_chooses_is_bounded_in_bytes",
            "test_tokens_with_other_claims_are_bounded_in_bytes",
            "test_large_forms_are_not_remembered",
            "test_copies_with_other_names_grow_nothing",
            "test_a_whole_batch_takes_what_is_counted",
            "test_what_is_not_accepted_is_not_remembered",
        ),
    ),
    (
        "A consumer MUST NOT show its handler an uncovered header",
        (
            "test_any_uncovered_value_is_hidden",
            "test_only_covered_headers_are_shown_and_required_ones_must_be",
        ),
    ),
    ("It MUST bound how many WITs it remembers", ("test_what_is_remembered_is_bounded",)),
    ("it MUST NOT become part of a URL", ("test_an_unknown_kid_is_in_no_request",)),
)
"""Where a MUST stands that no message can show, and the tests of it."""
BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    # the JSON form of a message has no such integer, and nests no deeper
    "and a producer MUST refuse it: an integer": (
        "test_what_no_broker_carries_is_malformed", "test_nesting_is_32_and_no_more",
    ),
}  # fmt: skip
"""What vectors show of a MUST in part only, and the tests of the rest."""


def plain() -> str:
    """Return the page as one line, without its code and without the sentence that says what MUST means."""
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    return " ".join(text.split()).replace("MUST, SHOULD and MAY are", "")


def names() -> set[str]:
    """Return the names of all vectors."""
    files = (
        test_vectors.TOKENS,
        test_vectors.ANSWERS,
        test_vectors.BATCH,
        test_vectors.SETTINGS,
        test_vectors.IDENTITY,
        test_vectors.HDS,
    )
    kinds = ("vectors", "sequences", "covers", "refused")
    return {
        vector["name"]
        for file in files
        for kind in kinds
        for vector in file.get(kind, ())
    }


@cache
def functions() -> set[str]:
    """Return the names of all tests."""
    found: set[str] = set()
    for path in [
        *(ROOT / "tests").glob("test_*.py"),
        *(ROOT / "integration").rglob("test_*.py"),
    ]:
        nodes: list[Any] = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        found |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return found


def test_each_must_is_counted_once() -> None:
    """As many as the page has stand in the two tables, each at one place of the page."""
    text, places = plain(), set()
    for snippet, shown in (*VECTORS, *TESTS):
        assert text.count(snippet) == 1, snippet
        assert shown, snippet
        assert snippet.count("MUST") == 1, snippet
        places.add(text.index(snippet) + snippet.index("MUST"))
    assert {found.start() for found in re.finditer("MUST", text)} == places


@pytest.mark.parametrize(("snippet", "shown"), VECTORS, ids=lambda found: str(found)[:40])
def test_the_vectors_of_each_must_exist(snippet: str, shown: tuple[str, ...]) -> None:
    """Each is in a file of vectors, under that name."""
    assert set(shown) <= names(), snippet


@pytest.mark.parametrize(
    ("snippet", "shown"), [*TESTS, *BESIDE.items()], ids=lambda found: str(found)[:40]
)
def test_the_tests_of_each_other_must_exist(snippet: str, shown: tuple[str, ...]) -> None:
    """Each is a test, and of a MUST that is on the page."""
    assert set(shown) <= functions(), snippet
    assert snippet in {place for place, _ in (*VECTORS, *TESTS)}

"""The manual is in plain English: no forbidden words, and no sentence that has to be read twice."""

from __future__ import annotations

import re

import pytest

from integration.documentation import ROOT, pages

LONGEST = 35
"""Words of a sentence, at most; 25 is what the pages aim at."""
FORBIDDEN = re.compile(
    r"\b(for ever|anew|begun|whoever|whatever reads|nobody's word|the world's fault|is said once|condemns?|dearest"
    r"|where it is not|of no colour|what is [\w ]{1,30} is)\b",
    re.IGNORECASE,
)
FENCE = re.compile(r"^(```|~~~).*?^\1[ ]*$", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"(?<!\\)\|")
END = re.compile(r"(?<=[.!?])[\"')\]*]*\s+|\s·\s|\n\s*\n|\n(?=\s*(?:[*#>-]|\d+\.)\s)")
SPECIFICATIONS = (
    "docs/architecture.md", "docs/decisions/", "docs/delivery.md", "docs/performance.md", "docs/wire-profile.md",
)  # fmt: skip
"""Pages for people who change mqauth or write another one: proofs, measurements and reasons."""


def manual() -> list[str]:
    """Return the pages for users."""
    return [page for page in pages() if not page.startswith(SPECIFICATIONS)]


def prose(page: str) -> str:
    """Return a page's text without code; a code span is one word."""
    text = FENCE.sub("\n\n", (ROOT / page).read_text("utf-8"))
    text = re.sub(r"`[^`\n]*(?:\n[^`\n]*)?`", "X", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return CELL.sub("\n\n", text)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; the end of a cell or of an item of a list ends one."""
    return [" ".join(part.split()) for part in END.split(text) if part and part.strip()]


@pytest.mark.parametrize("page", manual())
def test_no_sentence_is_long(page: str) -> None:
    """No sentence of a page has more than 35 words."""
    assert [said for said in sentences(prose(page)) if len(said.split()) > LONGEST] == []


@pytest.mark.parametrize("page", manual())
def test_no_forbidden_word(page: str) -> None:
    """No page has a word or turn of phrase that is not plain English."""
    assert FORBIDDEN.findall(prose(page)) == []


def test_what_a_sentence_is() -> None:
    """Code counts as a word, a cell of a table ends a sentence, and so does an item of a list."""
    assert sentences("One `a b` two. Three\nfour: five\n\n* six\n* seven · eight") == [
        "One `a b` two.", "Three four: five", "* six", "* seven", "eight",
    ]  # fmt: skip

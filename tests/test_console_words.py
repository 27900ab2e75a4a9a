"""The words of the console: the glossary is their one source, and the old ones are gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mqauth.console import display
from mqauth.console.backend import TITLES
from mqauth.console.glossary import OLD, TERMS

PAGES = Path(display.__file__).parent / "pages_html"


def shown(path: Path) -> str:
    """Return what a template shows, without its tags and its code."""
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", " ", path.read_text("utf-8"), flags=re.DOTALL)
    labels = re.findall(r'(?:aria-label|title|data-label)="([^"]*)"', text)
    return " ".join([re.sub(r"<[^>]*>", "\n", text), *labels])


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.html")), ids=lambda path: path.name)
def test_old_words_are_gone(path: Path) -> None:
    """No page shows a word that the glossary has replaced, also not where it is part of a sentence."""
    text = shown(path)
    assert [word for word in OLD if re.search(rf"(?<!dead )(?<!Dead )\b{re.escape(word)}(?!\w)", text)] == []


def test_old_words_are_gone_from_titles_and_advice() -> None:
    """Jobs and explanations of reasons speak as the pages do."""
    advice = [*display.EXPLANATIONS.values(), display.UNKNOWN]
    text = "\n".join([*TITLES.values(), *(f"{one.step}\n{one.meaning}\n{one.next}" for one in advice)])
    assert [word for word in (*OLD, "judge again") if re.search(rf"\b{re.escape(word)}(?!\w)", text)] == []


def test_each_term_is_used_and_each_use_is_a_term() -> None:
    """A template takes no word that the glossary lacks, and the glossary has none that no template takes."""
    used = {
        name for path in PAGES.glob("*.html") for name in re.findall(r"\bterm\.(\w+)", path.read_text("utf-8"))
    }
    assert used == TERMS.keys()


def test_the_check_sees_old_words(tmp_path: Path) -> None:
    """A page with an old word would be found: in text and in a label, and not in code."""
    page = tmp_path / "a.html"
    page.write_text('<p>Letters</p><i aria-label="Watch">{% if Today %}{{ Sound }}{% endif %}</i>')
    assert [word for word in OLD if re.search(rf"\b{re.escape(word)}(?!\w)", shown(page))] == ["Letters", "Watch"]


def test_a_batch_is_explained_as_it_is() -> None:
    """``proof_invalid`` is about the message's place in its batch."""
    found = display.explain("proof_invalid")
    assert "place in its batch" in found.step

"""Lines of a TOML file: found where ``tomllib`` sees each key."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mqauth.check.target import lines_of

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(".#\"'[]={}\\ "), max_size=6)
SHAPES: Any = st.just(0)
# As deep as any table of ours, and one more.
for _ in range(4):
    SHAPES = st.just(0) | st.lists(SHAPES, max_size=3) | st.dictionaries(NAMES, SHAPES, max_size=3)


def test_text_that_cannot_be_read_gives_what_was_found() -> None:
    """Of what is no TOML, or a newer one, the lines up to there are told."""
    assert lines_of("a = 1\n= 2\n") == {("a",): 1}

"""The benchmark's own arithmetic: turns, medians, ratios, shapes. Nothing depends on how long anything takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.benchmarks.client.rounds import (
    Measured,
    Rounds,
    Variant,
    alternate,
    quantile,
    rates,
)


def measured(rate: float, *, cpu: float = 0.5) -> Measured:
    return Measured(messages=100, wall=100 / rate, cpu=cpu)


def variant(name: str, log: list[str], figures: Iterator[float]) -> Variant:
    """Return a variant that logs its turns and has the rates of ``figures``."""

    def run() -> Measured:
        log.append(name)
        return measured(next(figures))

    return Variant(name, run)


def failing(error: Callable[[], Exception | None]) -> Variant:
    def run() -> Measured:
        raised = error()
        if raised is not None:
            raise raised
        return measured(1)

    return Variant("broken", run)


def test_variants_take_turns() -> None:
    """Every round has each variant once, in their order, and the rounds to warm up come first and do not count."""
    log: list[str] = []
    found = alternate([variant(name, log, count(1.0)) for name in "abc"], 2, warm_up=1)
    assert log == list("abcabcabc")
    assert {name: [round(one.rate) for one in rounds] for name, rounds in found.measured.items()} == {
        "a": [2, 3], "b": [2, 3], "c": [2, 3],
    }  # fmt: skip


def test_time_that_is_over_ends_the_rounds() -> None:
    """When time is over no round begins, yet every variant has one that counts."""
    log: list[str] = []
    alternate([variant(name, log, count(1.0)) for name in "ab"], 5, enough=lambda: True)
    assert log == list("abab")


def test_broken_variant_is_told_and_the_others_go_on() -> None:
    """A variant that raises twice in a row is out, with its reason; the others have all their rounds."""
    tried = count()
    found = alternate([failing(lambda: ValueError(str(next(tried)))), Variant("good", lambda: measured(3))], 2)
    assert found.failed == {"broken": "ValueError: 1"}
    assert len(found.measured["good"]) == 2
    assert found.rate("broken") is None
    assert found.ratio("good", "broken") is None
    assert found.summary("good")["broken"] == {"failed": "ValueError: 1"}


def test_ratio_is_taken_within_each_round() -> None:
    """A ratio is between neighbours in time: a machine that slows down between rounds moves rates, not ratios."""
    found = Rounds(
        {"base": [measured(rate) for rate in (100, 10, 1000)], "ours": [measured(rate) for rate in (90, 8, 100)]},
        {},
    )
    ratio = found.ratio("ours", "base")
    assert ratio is not None
    assert ratio.as_list() == pytest.approx([0.45, 0.8, 0.85])
    assert found.rate("ours") == pytest.approx(90)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_quantile_lies_among_the_figures(figures: list[float], share: float) -> None:
    """A quantile is no less than the least and no more than the most, and the ends are these."""
    ordered = sorted(figures)
    assert ordered[0] <= quantile(ordered, share) * (1 + 1e-12)
    assert quantile(ordered, share) <= ordered[-1] * (1 + 1e-12)
    assert (quantile(ordered, 0), quantile(ordered, 1)) == (ordered[0], ordered[-1])


def test_short_form_has_rates_and_all_ratios() -> None:
    """The short form has the named rates, all others' ratios to the base, further pairs, null for failures."""
    found = Rounds({"bare": [measured(100)], "a": [measured(50)], "b": [measured(25)]}, {"c": "broken"})
    assert rates(found, ("bare", "a", "c"), "bare", {"b/a": ("b", "a")}) == {
        "bare": 100.0, "a": 50.0, "c": None, "ratio": {"a": 0.5, "b": 0.25, "c": None, "b/a": 0.5},
    }  # fmt: skip

"""How far an accepted message walks through the code: no further than it does today."""

from __future__ import annotations

import pytest

from integration.benchmarks.walk import walked


@pytest.mark.parametrize(
    ("kind", "functions", "modules"), [("EdDSA", 42, 18), ("batch64", 36, 16)]
)
def test_an_accepted_message_enters_no_more_of_our_functions(
    kind: str, functions: int, modules: int
) -> None:
    """From receipt to settlement a message enters at most so many functions and modules of ours."""
    walk = walked(kind)
    assert (walk.functions <= functions, walk.modules <= modules) == (True, True), walk

"""The rivals of the benchmark do what they claim: they seal, open and refuse, so that their cost is a real one."""

from __future__ import annotations

import warnings

import pytest

from integration.benchmarks.client.contenders import Wrapper
from integration.benchmarks.client.inprocess import PLACE

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from integration.benchmarks.rivals import Celery, Handwritten, Joserfc, WrongMessageError

BODY = b'{"order": 1}'


@pytest.mark.parametrize(
    ("wrapper", "error"),
    [(Handwritten, "InvalidSignatureError"), (Joserfc, "BadSignatureError"), (Celery, "SecurityError")],
)
def test_wrapper_refuses_what_others_seal(wrapper: type[Wrapper], error: str) -> None:
    """A rival checks signatures: what another key sealed is refused, so that its cost is that of a real check."""
    with pytest.raises(Exception) as refused:  # noqa: PT011 - its own library's
        wrapper().opener(PLACE)(*wrapper().seal(PLACE, BODY))
    assert refused.type.__name__ == error


@pytest.mark.parametrize("wrapper", [Handwritten, Joserfc])
def test_hand_written_wrapper_is_a_competent_one(wrapper: type[Wrapper]) -> None:
    """A token of another body or destination, or seen before, is refused."""
    made = wrapper()
    body, token = made.seal(PLACE, BODY)
    with pytest.raises(WrongMessageError, match="another message"):
        made.opener(PLACE)(b"changed", token)
    with pytest.raises(WrongMessageError, match="another message"):
        made.opener("kafka:other")(body, token)
    open_ = made.opener(PLACE)
    open_(body, token)
    with pytest.raises(WrongMessageError, match="seen before"):
        open_(body, token)

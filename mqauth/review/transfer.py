"""Dead letters out of a queue and into one, as JSON lines in the message form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from mqauth.errors import MalformedMessage
from mqauth.flow import Flow, call
from mqauth.review.letter import Letter, read
from mqauth.review.letterbox import LetterBox
from mqauth.wire import json_form as jsonform
from mqauth.wire.message import NO_ORIGIN


def take_in(
    box: LetterBox, forms: Iterable[Any], *, progress: Callable[[int], None] = lambda count: None
) -> Flow[int]:
    """Publish letters to a letter box, each confirmed, and return how many.

    Args:
        box: where they go; of the same broker they came from.
        forms: letters in the message form, as an export gives them.
        progress: called with how many are published.

    Raises:
        MalformedMessage: one is no letter; those before it are published.
        Unavailable: the broker refused one, or could not be reached.
    """
    count = 0
    for form in forms:
        message = jsonform.from_form(form)
        if not read(Letter(message=message)).sound:
            raise MalformedMessage(f"letter {count + 1}: is no dead letter that holds")
        yield from call(box.publish, replace(message, destination=box.destination, origin=NO_ORIGIN))
        count += 1
        progress(count)
    return count

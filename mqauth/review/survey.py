"""One pass over a letter box into an index, which can be read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Unavailable
from mqauth.flow import Flow, call
from mqauth.review.index import Index
from mqauth.review.letterbox import BATCH, LetterBox


def survey(
    box: LetterBox, *, clock: Clock = SYSTEM_CLOCK, progress: Callable[[int], None] = lambda count: None
) -> Flow[Index]:
    """Look through a letter box once, removing nothing, and return its index.

    Args:
        box: the letter box.
        clock: says as of when.
        progress: called with the number of letters seen so far.

    Raises:
        Unavailable: the broker cannot be asked.
    """
    index = Index(clock.now())
    try:
        yield from fill(index, box, progress=progress)
    except BaseException:
        index.close()
        raise
    return index


def fill(
    index: Index,
    box: LetterBox,
    *,
    progress: Callable[[int], None] = lambda count: None,
    cancelled: threading.Event | None = None,
) -> Flow[None]:
    """Look through a letter box once, and add what is found to an index, which says when it is complete.

    Args:
        index: empty; others may read it meanwhile, and it stays as it is where the pass fails.
        box: the letter box.
        progress: called with the number of letters seen so far.
        cancelled: set, from any thread, to end the pass after the letters at hand.

    Raises:
        Unavailable: the broker cannot be asked.
    """
    try:
        while letters := (yield from call(box.browse, BATCH)):
            index.expected = box.expected
            index.add(letters)
            progress(index.size)
            whole = index.size == index.expected  # all but the end of the pass: not worth a cancel
            if cancelled is not None and cancelled.is_set() and not whole:
                yield from call(box.browse, 0)
                return
    except Unavailable:
        raise
    except Exception:
        yield from call(box.browse, 0)
        raise
    index.complete = True

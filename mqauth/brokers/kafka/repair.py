"""What kafka-python 3.0.12 needs done, around each ``poll()`` above all; its private attributes are touched here.

Each function names the fault it makes good; with a client that has not got these attributes it does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

JOIN_MS: Final = 1000
_WOKEN: Final = "_mqauth_woken"
_LOG: Final = logging.getLogger("mqauth.kafka")


def before_poll(client: Any) -> None:
    """Make good what would keep the next ``poll()`` from returning records, for ever or for a while."""
    _join(client)
    _unpark(client)
    _wake(client)


def held(client: Any) -> set[Any]:
    """Return what the client holds right now; nothing raises on the I/O thread, where it would break each poll."""
    try:
        return set(client.assignment())
    except Exception as error:
        _LOG.error("the assignment cannot be read: %s", type(error).__name__)
        return set()


def tell(listener: Any, method: str, partitions: Any) -> None:
    """Call a user's rebalance listener; what it raises would break every later ``poll()``."""
    try:
        if listener is not None:
            getattr(listener, method)(partitions)
    except Exception as error:
        _LOG.error("the client's own rebalance listener failed: %s", type(error).__name__)


def rejoins(client: Any) -> bool:
    """Tell whether the next ``poll()`` takes part in a rebalance, which kafka-python tells by no public name."""
    coordinator: Any = getattr(client, "_coordinator", None)
    return coordinator is not None and bool(coordinator.rejoining or coordinator.need_rejoin())


@contextmanager
def not_joining(client: Any) -> Iterator[None]:
    """Let a rebalance that becomes due meanwhile wait for a later ``poll()``: handlers run.

    kafka-python looks for one inside each ``poll()``, and begins it there at once.
    """
    coordinator: Any = getattr(client, "_coordinator", None)
    attributes: dict[str, Any] = getattr(coordinator, "__dict__", {})
    theirs = attributes.get("need_rejoin")
    attributes["need_rejoin"] = lambda: False
    try:
        yield
    finally:
        del attributes["need_rejoin"]
        attributes.update({} if theirs is None else {"need_rejoin": theirs})


def _join(client: Any) -> None:
    """Wait a second for a join that is due; short polls alone might never end it.

    kafka-python 3.0 throws away a join that ends between two calls of ``poll()`` and starts another: with short
    polls for ever. And a leader that joins again since it saw new partitions takes that join for unneeded once
    ``poll()`` has timed out in the middle: no assignment and no heartbeat from then on.
    """
    coordinator: Any = getattr(client, "_coordinator", None)
    if coordinator is None:
        return
    if coordinator.rejoining and not coordinator.rejoin_needed:
        coordinator.request_rejoin()
    if coordinator.need_rejoin():
        coordinator.poll(timeout_ms=JOIN_MS)


def _unpark(client: Any) -> None:
    """Let records that were fetched before a pause be delivered after it.

    kafka-python 3.0 puts them back only where no other iterator is in line, and takes an exhausted one for one
    in line: a resumed partition would neither be delivered nor fetched any more.
    """
    fetcher: Any = getattr(client, "_fetcher", None)
    current = getattr(fetcher, "_next_partition_records", None)
    if current is not None and not current:
        fetcher._next_partition_records = None


def _wake(client: Any) -> None:
    """Have a response that has just come delivered at once.

    kafka-python 3.0 takes one that comes between its two looks for nothing to wait for, and sleeps for
    ``retry_backoff_ms`` with records at hand.
    """
    fetcher: Any = getattr(client, "_fetcher", None)
    fetch, attributes = getattr(fetcher, "fetch_records", None), getattr(fetcher, "__dict__", {})
    if fetch is None or _WOKEN in attributes:
        return

    def fetch_records(*args: Any, **kwargs: Any) -> Any:
        found = fetch(*args, **kwargs)
        landed = type(found) is tuple and found[1:] == (True,) and getattr(fetcher, "_completed_fetches", None)
        return (found[0], False) if landed else found

    attributes[_WOKEN] = attributes.get("fetch_records")
    attributes["fetch_records"] = fetch_records


def hand_back(client: Any) -> None:
    """Leave nothing of ours in a client that its owner goes on with."""
    attributes = getattr(getattr(client, "_fetcher", None), "__dict__", {})
    if _WOKEN in attributes:
        theirs = attributes.pop(_WOKEN)
        del attributes["fetch_records"]
        attributes.update({} if theirs is None else {"fetch_records": theirs})


def postponed(client: Any) -> BaseException | None:
    """Take the exception that kafka-python keeps for its next ``poll()``, and would lose with a pause.

    It keeps one where the same fetch had records to deliver first.
    """
    fetcher: Any = getattr(client, "_fetcher", None)
    kept = getattr(fetcher, "_next_in_line_exception_metadata", None)
    if kept is None:
        return None
    fetcher._next_in_line_exception_metadata = None
    error: BaseException = kept.exception
    return error


def discard(client: Any, partition: Any) -> None:
    """Throw the dead iterator of a partition away, so that the next ``poll()`` fetches instead of spinning."""
    fetcher: Any = getattr(client, "_fetcher", None)
    current = getattr(fetcher, "_next_partition_records", None)
    if current is not None and current.topic_partition == partition:
        fetcher._next_partition_records = None
    getattr(fetcher, "_paused_partition_records", {}).pop(partition, None)


def close_producer(client: Any) -> None:
    """Close a producer within seconds, whatever its state.

    Where its records cannot be sent any more, kafka-python's ``close()`` raises and leaves its thread running.
    """
    try:
        client.close(timeout=1)
    except Exception as error:
        _LOG.info("a producer did not close: %s", type(error).__name__)
        sender = getattr(client, "_sender", None)
        if sender is not None:
            sender.force_close()

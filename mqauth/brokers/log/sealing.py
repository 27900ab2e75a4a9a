"""Records that wait to be sealed together, and go to a client in the order they came: for every client on threads.

A batch is closed when it is full, when its first record has waited long enough, on a flush, and at once while
nothing else is in flight. One thread at a time seals and sends; what it cannot seal fails, and is never sent.

A call a few milliseconds after it was asked for, on a thread that is there only while it is needed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from mqauth.errors import MalformedMessage
from mqauth.signer import Prepared, Signer

IDLE: Final = 1.0
"""Seconds after which a thread that has nothing to wait for ends."""


class LingerTimer(Protocol):
    """Rings once after it was last set."""

    def set(self, seconds: float, /) -> None:
        """Have it ring in so many seconds, in place of what was set before."""


class ThreadTimer:
    """Rings on a daemon thread of its own, which is started when it is set and ends after an idle second.

    Args:
        ring: called at the time; what it raises ends the thread, and the next ``set`` starts another.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._changed = threading.Condition(threading.Lock())
        self._due: float | None = None
        self._thread: threading.Thread | None = None

    def set(self, seconds: float, /) -> None:
        """Have it ring in so many seconds, in place of what was set before."""
        due = time.monotonic() + seconds
        with self._changed:
            sooner = self._due is None or due < self._due
            self._due = due
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="mqauth-linger", daemon=True)
                self._thread.start()
            elif sooner:  # a later time it sees by itself
                self._changed.notify()

    def _run(self) -> None:
        """Ring whenever it is due, until nothing has been for a while."""
        while self._wait():
            self._ring()

    def _wait(self) -> bool:
        """Wait until it is due; false where the thread is to end."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._due is not None, IDLE):
                self._thread = None
                return False
            while self._due is not None and (left := self._due - time.monotonic()) > 0:
                self._changed.wait(left)
            self._due = None
            return True


R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)
_LOG: Final = logging.getLogger("mqauth.kafka")


class Sender(Protocol[R_contra]):
    """What a leaf does with the records of one producer; ``R_contra`` is what it keeps of a record."""

    def begin(self) -> Any:
        """Return what the records of one batch have in common."""
        ...

    def idle(self) -> bool:
        """Tell whether nothing is in flight but the record that is being added."""
        ...

    def send(self, prepared: Prepared, record: R_contra, token: str, /) -> Any:
        """Give a record to the client; return what will hold its outcome, whatever the client says."""
        ...

    def failed(self, error: BaseException, /) -> Any:
        """Return what holds the outcome of a record that was not sent."""
        ...

    def handed(self, common: Any, records: Sequence[R_contra], outcomes: Sequence[Any], /) -> None:
        """Note what holds the outcomes of a batch; nothing is called from here that may send again."""
        ...

    def tell(self, common: Any, /) -> None:
        """Call who waits for a batch; what is called may send again."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting(Generic[R]):
    """The records of one batch."""

    common: Any
    prepared: list[Prepared] = field(default_factory=list)
    records: list[R] = field(default_factory=list)


class Batches(Generic[R]):
    """Seals the records of one producer, and has them sent.

    Args:
        signer: signs each batch.
        sender: the leaf's.
        batch: how many records are sealed together.
        linger: seconds a record waits at most for others.
        patience: seconds for which a sender waits while another thread sends.
        alarm: makes what rings when ``linger`` is over.
    """

    def __init__(
        self,
        signer: Signer,
        sender: Sender[R],
        *,
        batch: int,
        linger: float,
        patience: float,
        alarm: Callable[[Callable[[], None]], LingerTimer] = ThreadTimer,
    ) -> None:
        self._signer = signer
        self._sender = sender
        self._batch = batch
        self._linger = linger
        self._patience = patience
        self._alarm = alarm(self.release)
        self._lock = threading.Lock()  # of what waits; nothing that may wait is called under it
        self._order = threading.Lock()  # held while sealing and sending
        self._open: _Waiting[R] | None = None
        self._closed: deque[_Waiting[R]] = deque()
        self._ended = False

    def add(self, prepared: Prepared, make: Callable[[Any], R]) -> R | None:
        """Have a record sealed and sent.

        Args:
            prepared: the record's message.
            make: makes what is kept of the record, of what its batch has in common.

        Returns:
            What was made, ``None`` where no more records are taken.
        """
        with self._lock:
            if self._ended:
                return None
            waiting = self._open or _Waiting(self._sender.begin())
            record = make(waiting.common)
            waiting.prepared.append(prepared)
            waiting.records.append(record)
            complete = len(waiting.records) >= self._batch or self._sender.idle()
            self._open = None if complete else waiting
            if complete:
                self._closed.append(waiting)
            first = len(waiting.records) == 1
        if (complete and not self._send_all(self._patience)) or (first and not complete):
            self._alarm.set(self._linger)
        return record

    def release(self) -> None:
        """Seal and send what waits."""
        self.flush(None)

    def flush(self, timeout: float | None) -> bool:
        """Seal and send what waits; false where another thread is still sending after so many seconds."""
        with self._lock:
            if self._open is not None:
                self._closed.append(self._open)
                self._open = None
        return self._send_all(timeout)

    def end(self) -> None:
        """Take no more records."""
        with self._lock:
            self._ended = True

    def _send_all(self, timeout: float | None) -> bool:
        """Send every closed batch; false where another thread is at it for so long: it sends them then."""
        if not self._order.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            return False
        sent: list[Any] = []
        try:
            while self._closed:
                waiting = self._closed.popleft()
                sent.append(waiting.common)
                self._send(waiting)
        finally:
            self._order.release()
            for common in sent:  # by then what is called may send again
                self._sender.tell(common)
        return True

    def _send(self, waiting: _Waiting[R]) -> None:
        """Seal a batch and have its records sent; each has its outcome in the end."""
        sender, records = self._sender, waiting.records
        outcomes, error = list[Any](), None
        try:
            tokens = self._signer.tokens(waiting.prepared)
            for prepared, record, token in zip(waiting.prepared, records, tokens, strict=True):
                if isinstance(token, MalformedMessage):
                    outcomes.append(sender.failed(token))
                else:
                    outcomes.append(sender.send(prepared, record, token))
        except BaseException as caught:
            error = caught
            _LOG.error("%d of %d records not sent: %s", len(records) - len(outcomes), len(records), _named(error))
            if not isinstance(error, Exception):
                raise
        finally:
            if error is not None:
                outcomes += [sender.failed(error) for _ in records[len(outcomes) :]]
            sender.handed(waiting.common, records, outcomes)


def _named(error: BaseException) -> str:
    """Return an error as it may be logged."""
    return f"{type(error).__name__} {getattr(error, 'cause', '')}".strip()

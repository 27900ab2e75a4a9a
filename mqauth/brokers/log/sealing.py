"""Records that are sealed together and given to a client in their order, for every synchronous client.

A batch is closed when it is full, on a flush, at once while nothing else is in flight or few records came close
behind each other, and else before its client would have sent the records: it holds them for a while of its own.
Only ``linger`` makes records wait for longer.
One thread at a time seals and sends; a record that cannot be sealed fails, and is never sent.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias, cast

from mqauth.brokers.log.records import NativeHeaders
from mqauth.errors import MalformedMessage
from mqauth.logs import emit
from mqauth.signer import Prepared, Signer
from mqauth.wire.message import TOKEN_HEADER

IDLE: Final = 1.0
"""Seconds after which a thread that has nothing to wait for ends."""


CLOSE: Final = 0.0002
"""Seconds between two records that may share a signature, unless ``linger`` says that they wait."""
BURST: Final = 4
"""Records so close in a row, after which others wait: of fewer each is signed sooner than a thread wakes."""
SMALL: Final = 262_144
"""Bytes below which a client's buffer is small: signed records of 1 KiB fill 16,384 bytes eight at a time."""


class ClientBuffer:
    """Tells how long records may be held without a later arrival, since their client waits as well.

    A client sends what it was given once its first record has waited for so long.

    Args:
        wait: seconds, by the client's own settings.
        linger: seconds that a record may be held in any case.
        monotonic: tells seconds that only grow.
    """

    def __init__(
        self, wait: float, linger: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wait = wait
        self._linger = linger
        self._monotonic = monotonic
        self._sends_at, self._last, self._in_a_row = -math.inf, -math.inf, 0

    def came(self) -> bool:
        """Note that a record came; return whether it may wait for others, close behind some that came so, too."""
        before, self._last = self._last, self._monotonic()
        self._in_a_row = self._in_a_row + 1 if self._last - before < CLOSE else 0
        return self._linger > 0 or self._in_a_row > BURST

    def taken(self) -> None:
        """Note that a record was sealed and sent: the next one comes close behind it, however long that took."""
        self._last = self._monotonic()

    def filled(self) -> None:
        """Note that the client is given records."""
        if (now := self._monotonic()) >= self._sends_at:
            self._sends_at = now + self._wait

    def hold(self) -> float:
        """Return for how many seconds a record may be held from now on."""
        # The last quarter is left to seal the records and to give them to the client.
        return max(self._linger, self._sends_at - self._wait / 4 - self._monotonic())


class ThreadTimer:
    """Calls a function once after it was last set, on a daemon thread that is there only while it is needed.

    Args:
        ring: called at the time; what it raises ends the thread, and the next ``set`` starts another.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        self._ring = ring
        self._changed = threading.Condition(threading.Lock())
        self._due: float | None = None
        self._thread: threading.Thread | None = None

    def set(self, seconds: float, /) -> None:
        """Call the function in so many seconds, in place of the time that was set before."""
        due = time.monotonic() + seconds
        with self._changed:
            sooner = self._due is None or due < self._due
            self._due = due
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="mqauth-linger", daemon=True
                )
                self._thread.start()
            # A later time it sees by itself when it wakes.
            elif sooner:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                # Where nothing was set for a while the thread ends.
                if not self._changed.wait_for(lambda: self._due is not None, IDLE):
                    self._thread = None
                    return
                while (
                    self._due is not None and (left := self._due - time.monotonic()) > 0
                ):
                    self._changed.wait(left)
                self._due = None
            self._ring()


Batch: TypeAlias = list[tuple[Prepared, Any]]
"""Records that are sealed together, each prepared and in the leaf's own form."""


class RecordSealing(ABC):
    """Seals the records of one producer and has them sent; the leaf says how a record is given to its client.

    Args:
        signer: signs each batch.
        batch: how many records are sealed together.
        buffer: tells how long a record waits for others.
        patience: seconds for which a sender waits while another thread sends.

    Attributes:
        failure: why the first record failed that could not be sealed or sent, since this was last set to ``None``.
    """

    def __init__(
        self, signer: Signer, *, batch: int, buffer: ClientBuffer, patience: float
    ) -> None:
        self._signer = signer
        self._batch = batch
        self._buffer = buffer
        self._patience = patience
        self._timer = ThreadTimer(lambda: self.flush(None))
        # The first lock is of what waits, and nothing that may block is called under it. The second one is held
        # while sealing and sending, so that batches reach the client in the order in which they were closed.
        self._lock = threading.Lock()
        self._order = threading.Lock()
        self._open: Batch = []
        self._closed: deque[Batch] = deque()
        self._ended = False
        self.failure: BaseException | None = None

    # Calls of the leaf

    @abstractmethod
    def idle(self) -> bool:
        """Return whether nothing is in flight but the record that is being added."""

    @abstractmethod
    def send(self, prepared: Prepared, record: Any, token: str, /) -> Any:
        """Give a record to the client; return what will hold its outcome, whatever the client says."""

    @abstractmethod
    def handed(
        self, records: Sequence[Any], outcomes: Sequence[Any], /
    ) -> Iterable[Callable[[], object]]:
        """Note what holds the outcomes of a batch; return calls to those who wait for it: they may send again."""

    # What is the same for all

    def failed(self, error: BaseException, /) -> Any:
        """Note the error of a record that was not sent; return what holds its outcome."""
        self.failure = self.failure or error
        return error

    def enqueue(self, prepared: Prepared, record: Any) -> bool:
        """Have a record sealed and sent.

        Args:
            prepared: the record's message.
            record: our form of it.

        Returns:
            Whether it is; ``False`` where no more records are taken.
        """
        with self._lock:
            if self._ended:
                return False
            batch = self._open
            batch.append((prepared, record))
            first, busy = len(batch) == 1, self._buffer.came()
            # To wake a thread costs more than a signature: where records come slowly, each is sealed here.
            complete = len(batch) >= self._batch or self.idle() or (first and not busy)
            if complete:
                self._closed.append(batch)
                self._open = []
        if (complete and not self._send_all(self._patience)) or (first and not complete):
            self._timer.set(self._buffer.hold())
        if complete:
            self._buffer.taken()
        return True

    def flush(self, timeout: float | None) -> bool:
        """Seal and send what waits; return false where another thread still sends after ``timeout`` seconds."""
        with self._lock:
            if self._open:
                self._closed.append(self._open)
                self._open = []
        return self._send_all(timeout)

    def end(self) -> None:
        """Take no more records."""
        with self._lock:
            self._ended = True

    def _send_all(self, timeout: float | None) -> bool:
        # Where another thread sends for longer than the timeout, it sends these batches too.
        if not self._order.acquire(
            timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        ):
            return False
        told: list[Callable[[], object]] = []
        try:
            while self._closed:
                self._send(self._closed.popleft(), told)
        finally:
            self._order.release()
            # Only after the release, since what is called may send again.
            for tell in told:
                tell()
        return True

    def _send(self, batch: Batch, told: list[Callable[[], object]]) -> None:
        """Seal a batch and have its records sent; each one gets an outcome, and ``told`` the calls to make."""
        records = [record for _, record in batch]
        outcomes, error = list[Any](), None
        self._buffer.filled()
        try:
            tokens = self._signer.tokens([prepared for prepared, _ in batch])
            for (prepared, record), token in zip(batch, tokens, strict=True):
                if isinstance(token, MalformedMessage):
                    outcomes.append(self.failed(token))
                else:
                    outcomes.append(self.send(prepared, record, token))
        except BaseException as caught:
            error = caught
            cause = f"{type(error).__name__} {getattr(error, 'cause', '')}".strip()
            emit(
                "producer.unsent",
                "%d of %d records not sent: %s",
                len(records) - len(outcomes),
                len(records),
                cause,
            )
            if not isinstance(error, Exception):
                raise
        finally:
            if error is not None:
                outcomes += [self.failed(error) for _ in records[len(outcomes) :]]
            told += self.handed(records, outcomes)


def sealed_headers(prepared: Prepared, token: str) -> NativeHeaders:
    """Return the headers of a sealed record."""
    return [
        *cast(NativeHeaders, prepared.message.headers),
        (TOKEN_HEADER, token.encode("ascii")),
    ]

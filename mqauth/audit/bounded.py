"""A sink that nobody waits for longer than a limit, for what goes on without its records: below ``enforce``.

A file on a disk that hangs, or a function of one's own, never returns. Each record is written on a thread of its
own, and whoever wrote it goes on after the limit. The write goes on, too: when the same record comes again, what
became of it is the answer, so that nothing is written twice. An asynchronous sink has a limit of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Final

from mqauth.audit.record import AuditRecord, AuditSink
from mqauth.errors import Cause, Unavailable
from mqauth.flow import is_awaitable

LIMIT: Final = 1.0
"""Seconds for which a record is waited for."""


class BoundedSink:
    """Writes to another sink, and waits for it no longer than a limit.

    Args:
        sink: where records go.
        limit: seconds.
    """

    def __init__(self, sink: AuditSink, limit: float = LIMIT) -> None:
        self._sink: Any = sink
        self._limit = limit
        self._plain: bool | None = None
        self._late: _Writing | None = None

    def write(self, record: AuditRecord, /) -> Any:
        """Write one record.

        Raises:
            Unavailable: ``audit_unavailable``: it took longer than the limit, or an earlier one still does.
            Exception: what the sink raised.
        """
        return self._bounded(self._sink.write, record)

    def see(self, record: AuditRecord, /) -> Any:
        """Show a record to the detectors of a ``MisuseWatch``; raises as ``write`` does."""
        return self._bounded(self._sink.see, record)

    def _bounded(self, write: Callable[[AuditRecord], Any], record: AuditRecord) -> Any:
        if self._plain is None:
            # The record of the start, before anything is delivered, shows of which kind the sink is.
            found = write(record)
            self._plain = not is_awaitable(found)
            return found
        if not self._plain:
            return write(record)
        writing = self._late or _Writing(write, record)
        if not writing.done.wait(self._limit if self._late is None else 0):
            self._late = writing
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, f"the sink has not answered for {self._limit:g} s")
        self._late = None
        return writing.result() if writing.record.id == record.id else self._bounded(write, record)


class _Writing:
    """One record that is being written on a thread of its own."""

    def __init__(self, write: Callable[[AuditRecord], Any], record: AuditRecord) -> None:
        self.record = record
        self.done = threading.Event()
        self._write = write
        self._error: BaseException | None = None
        context = copy_context()
        threading.Thread(target=context.run, args=(self._run,), name="mqauth-audit", daemon=True).start()

    def _run(self) -> None:
        try:
            self._write(self.record)
        except BaseException as error:
            self._error = error
        finally:
            self.done.set()

    def result(self) -> None:
        """Raise what the sink raised."""
        if self._error is not None:
            raise self._error

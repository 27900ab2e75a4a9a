"""Logs without tokens: client libraries log message headers at DEBUG, and tokens travel in headers.

The broker wrappers and what asks AWS install this when they are imported, so that nobody can forget it. It looks
only at records of these libraries and of mqauth. A compact JWS is replaced wherever it stands in them. Of
botocore no DEBUG record is shown: there it writes the platform's token, and the credentials that it gets for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from mqauth.logs import REDACTED, redacted

LOGGERS: Final = (
    "mqauth",
    "aio_pika",
    "aiormq",
    "pamqp",
    "pika",
    "kafka",
    "redis",
    "asyncio",
)


class RedactTokens(logging.Filter):
    """Replaces tokens in every record it sees; for the handlers of libraries that are not in ``LOGGERS``."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact one record and let it pass."""
        redact(record)
        return True


class _Factory:
    """Makes log records with another factory, and redacts those of the watched loggers."""

    def __init__(self, inner: Callable[..., logging.LogRecord]) -> None:
        self._inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._inner(*args, **kwargs)
        # logging.makeLogRecord makes a record without a name, and names it afterwards
        library = (record.name or "").partition(".")[0]
        if library in LOGGERS:
            redact(record)
        elif library == "botocore" and record.levelno < logging.INFO:
            record.msg, record.args, record.exc_info = REDACTED, None, None
        return record


def redact_logging() -> None:
    """Redact the records of the watched loggers when they are made, for every handler; safe to repeat."""
    # A filter can be missing from one logger or handler. The record factory comes before all of them.
    current = logging.getLogRecordFactory()
    if not isinstance(current, _Factory):
        logging.setLogRecordFactory(_Factory(current))


def redact(record: logging.LogRecord) -> None:
    """Replace every token in a record's message, stack and traceback."""
    # A format that does not fit its arguments is a mistake of its author. logging reports it itself.
    try:
        text = record.getMessage()
    except Exception:
        return
    if (shown := redacted(text)) != text:
        record.msg, record.args = shown, None
    record.stack_info = redacted(record.stack_info or "") or None
    if record.exc_info and record.exc_info[1] is not None:
        traceback = logging.Formatter().formatException(record.exc_info)
        if (shown := redacted(traceback)) != traceback:
            record.exc_text, record.exc_info = shown, None

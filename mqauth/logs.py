"""The log: every line that mqauth writes, by ``logging``, with the closed list of its events.

The library installs no handler. Each line has a stable event name, a sentence that is readable by itself, and its
facts as fields of the record (``extra``). No line holds a token, a signature, a body, a record key, the value of
a header, or a key. A handler's exception is its service's own text: its type, its frames and its message, cut to
1 KiB and escaped, and no local variable.

Lines on messages are limited by ``Rate``: whoever may publish could flood the log, and hide in it what matters.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from mqauth.clock import Clock

__all__ = [
    "EVENTS",
    "FIELDS",
    "AddMessage",
    "JSONFormatter",
    "Rate",
    "emit",
    "error_id",
    "harmless",
]
MAX_TEXT: Final = 256
MAX_MESSAGE: Final = 1024
"""Characters of an exception's message."""
KINDS: Final = 128
"""Kinds of lines that each event may have at a time; all others are of the kind ``other``."""
EVERY: Final = 60.0
"""Seconds between two lines of one kind."""
_OTHER: Final = ("other",)
REDACTED: Final = "<token>"
_KID: Final = 43
"""Characters of a kid: a SHA-256 thumbprint."""
_TOKEN: Final = re.compile(r"eyJ[A-Za-z0-9_\-]{8,}((?:[.~][A-Za-z0-9_\-]*)*)")
# Printable ASCII, and of Unicode what is not a control, a mark of direction, a separator, for private use, or
# without any form to see: a name with a Hangul filler behind it would look like another one.
_UNPRINTABLE: Final = re.compile(
    r"[^\x20-\x7e\xa0-\xac\xae-\u034e\u0350-\u05ff\u0606-\u061b\u061d-\u06dc\u06de-\u070e\u0710-\u088f\u0892-\u08e1"
    r"\u08e3-\u115e\u1161-\u17b3\u17b6-\u180a\u1810-\u200a\u2010-\u2027\u2030-\u205f\u2070-\u3163\u3165-\ud7ff"
    r"\uf900-\ufdff\ufe10-\ufefe\uff00-\uff9f\uffa1-\uffef]"
)
# What runs a handler is no part of its fault.
_NOT_THEIRS: Final = frozenset(("mqauth", "tenacity")) | sys.stdlib_module_names
_TABLE: Final = (
    ("audit", logging.WARNING, "audit.torn"),
    (
        "audit",
        logging.ERROR,
        "audit.changed audit.head_unsigned audit.moved audit.record_lost misuse.alert misuse.alert_lost "
        "misuse.callback_failed misuse.detector_failed",
    ),
    ("audit", logging.CRITICAL, "audit.cut"),
    ("authority", logging.ERROR, "authority.unavailable"),
    ("console", logging.INFO, "console.login console.refused"),
    ("console", logging.WARNING, "console.login_failed"),
    ("console", logging.ERROR, "console.job_failed console.page_failed"),
    ("delivery", logging.INFO, "consumer.started consumer.stopped"),
    (
        "delivery",
        logging.WARNING,
        "connection.lost connection.unavailable consumer.backlog_expires consumer.full consumer.grace_over "
        "consumer.resumed consumer.sink_missing consumer.widened worker.loses_tasks",
    ),
    (
        "delivery",
        logging.ERROR,
        "claim.lost client.no_answer consumer.ended consumer.stalled",
    ),
    ("delivery", logging.CRITICAL, "consumer.failed consumer.narrowed message.left"),
    (
        "kafka",
        logging.INFO,
        "client.partitions_added client.producer_stopped producer.small_buffer",
    ),
    (
        "kafka",
        logging.WARNING,
        "client.cluster_unknown client.commit_failed client.handled_before client.offsets_latest "
        "client.offsets_unknown client.poll_failed client.transaction_failed producer.not_idempotent",
    ),
    (
        "kafka",
        logging.ERROR,
        "client.assignment_unknown client.listener_failed producer.unsent record.skipped reply.lost",
    ),
    (
        "kafka",
        logging.CRITICAL,
        "client.offset_out_of_range client.partitions_unmarked reply.failed",
    ),
    ("keys", logging.WARNING, "issuer.ending keys.changed"),
    ("keys", logging.ERROR, "keys.callback_failed keys.fetch_failed"),
    ("keys", logging.CRITICAL, "issuer.overdue"),
    ("keystore", logging.INFO, "identity.renewed keys.signing"),
    ("keystore", logging.WARNING, "identity.failed keys.skipped"),
    (
        "keystore",
        logging.ERROR,
        "identity.refused keys.kept serve.certificate_kept signer.unavailable",
    ),
    ("messages", logging.DEBUG, "message.accepted message.duplicate"),
    ("messages", logging.INFO, "message.resumed"),
    ("messages", logging.WARNING, "handler.retried message.deferred message.rejected"),
    ("messages", logging.ERROR, "handler.failed"),
    ("pipeline", logging.WARNING, "claim.not_renewed observer.failed"),
    ("policy", logging.WARNING, "policy.unreachable"),
    (
        "rollout",
        logging.WARNING,
        "rollout.alias rollout.ending rollout.not_awaited rollout.unenforced rollout.wired_in "
        "rollout.without_evidence",
    ),
    ("rollout", logging.ERROR, "rollout.unwritten"),
    ("rollout", logging.CRITICAL, "rollout.overdue"),
    (
        "rabbitmq",
        logging.WARNING,
        "client.append_unproved client.cancel_failed client.classic_queue client.settle_failed "
        "client.shared_connection producer.no_confirms",
    ),
    ("rabbitmq", logging.ERROR, "client.channel_failed"),
    ("replay", logging.WARNING, "replay.off"),
    ("replay", logging.ERROR, "store.unrecorded"),
    ("replay", logging.CRITICAL, "store.forgot"),
    ("selftest", logging.INFO, "selftest.passed"),
    ("selftest", logging.WARNING, "selftest.off"),
    ("selftest", logging.CRITICAL, "selftest.accepted"),
    ("stores.redis", logging.WARNING, "store.unchecked"),
    ("stores.redis", logging.ERROR, "store.unsafe"),
    ("telemetry", logging.WARNING, "telemetry.gauge_failed"),
)
EVENTS: Final[Mapping[str, tuple[str, int]]] = {
    event: (f"mqauth.{name}", level)
    for name, level, events in _TABLE
    for event in events.split()
}
"""All events: the logger of each, and its usual level."""
FIELDS: Final[Mapping[str, str]] = {
    "event": "event.name",
    "destination": "messaging.destination.name",
    "partition": "messaging.destination.partition.id",
    "offset": "messaging.kafka.offset",
    "exception_type": "exception.type",
    "exception_message": "exception.message",
    "exception_stacktrace": "exception.stacktrace",
}
"""The fields that have a name at OpenTelemetry; every other field of ours is ``mqauth.`` and its name in JSON."""
_STANDARD: Final = frozenset(
    (
        *vars(logging.makeLogRecord({})),
        "message",
        "asctime",
        "taskName",
        "color_message",
        *FIELDS,
    )
)
HANDLING: Final[ContextVar[Any]] = ContextVar("mqauth.handling", default=None)
"""The delivery whose handler runs in this context."""


def harmless(text: str, limit: int = MAX_TEXT) -> str:
    """Return text of at most ``limit`` characters, with those escaped that a terminal or viewer might act on."""
    # Cut before it is escaped too, so that a huge text costs no more than its beginning.
    escaped = _UNPRINTABLE.sub(
        lambda match: (
            match.group().encode("unicode_escape", "backslashreplace").decode("ascii")
        ),
        text[: limit + 1],
    )
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "\u2026"


def redacted(text: str) -> str:
    """Return a text in which each token is replaced."""
    # A kid is random, and one of some thousands holds "eyJ", too: it has no second part, but a sentence may end
    # behind it.
    return _TOKEN.sub(
        lambda match: (
            REDACTED
            if len(match[0].rstrip(".~")) > _KID or match[1].strip(".~")
            else match[0]
        ),
        text,
    )


def emit(
    event: str,
    text: str,
    *args: object,
    level: int | None = None,
    error: BaseException | None = None,
    messages: bool = True,
    **fields: object,
) -> None:
    """Write one line.

    Args:
        event: one of ``EVENTS``.
        text: a sentence, in the form of ``logging``.
        args: the values in it.
        level: in place of the event's usual level.
        error: the exception that the line is about; its traceback follows the line.
        messages: whether the messages of exceptions may be written.
        fields: what the line is about; the attributes of the record.
    """
    name, usual = EVENTS[event]
    logger, level = logging.getLogger(name), usual if level is None else level
    if not logger.isEnabledFor(level):
        return
    path, line, function, _ = logger.findCaller(stacklevel=2)
    trace = {} if error is None else error_fields(error, messages=messages)
    extra = {"event": event, "mqauth_fields": (*fields, *trace), **fields, **trace}
    record = logger.makeRecord(name, level, path, line, text, args, None, function, extra)
    # A formatter would write the bare text of the exception, of any length and with whatever it holds.
    record.exc_text = trace.get("exception_stacktrace")
    logger.handle(record)


def error_fields(error: BaseException, *, messages: bool = True) -> dict[str, str]:
    """Return type, message and traceback of an exception, bounded and escaped."""
    kind = _type_of(error)
    # The error and those it came from, the last one last, as Python writes it.
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 4:
        frames = traceback.StackSummary.extract(
            traceback.walk_tb(link.__traceback__), limit=-30
        )
        message = f": {_message(link)}" if messages else ""
        # The lines of source are the service's own; a token in one is a mistake all the same.
        lines = redacted("".join(frames.format()))
        chain.append(
            f"Traceback (most recent call last):\n{lines}{_type_of(link)}{message}"
        )
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    trace = "\n\nIt was raised while this was handled:\n\n".join(reversed(chain))
    fields = {"exception_type": kind, "exception_stacktrace": trace}
    return fields | ({"exception_message": _message(error)} if messages else {})


def error_id(error: BaseException) -> str:
    """Return 12 hex digits that are the same for the same fault, in the next release of a service too.

    They are of SHA-256 over the exception's type, and module and function of each frame that is neither of mqauth
    nor of the standard library: line numbers change with every release.
    """
    # Each once: a recursion has any depth, and an exception that is raised again and again grows its traceback.
    frames = dict.fromkeys(
        f"{module} {function}" for module, function, _ in _their_frames(error)
    )
    return sha256(
        "\n".join((_type_of(error), *frames)).encode("utf-8", "backslashreplace")
    ).hexdigest()[:12]


def place_of(error: BaseException) -> str:
    """Return where a handler's own code raised an exception or called what did: ``module.function (file:1)``."""
    places = [
        f"{module}.{function} ({where})"
        for module, function, where in _their_frames(error)
    ]
    return places[-1] if places else ""


def _their_frames(error: BaseException) -> Iterator[tuple[str, str, str]]:
    """Yield module, function, and file and line of the frames that belong to the handler, the innermost last."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", "?"))
        if module.partition(".")[0] not in _NOT_THEIRS:
            name = frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
            yield module, frame.f_code.co_qualname, f"{name}:{line}"


def _type_of(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _message(error: BaseException) -> str:
    try:
        text = str(error)[: 4 * MAX_MESSAGE]
    # A handler's own exception class may fail to say what it is.
    except Exception:
        return "?"
    return harmless(redacted(text), MAX_MESSAGE)


@dataclass(slots=True)
class _Limited:
    """The lines of one kind: until when the next waits, how many were left out, and what the last was about."""

    ends: float
    left_out: int = 0
    last: Mapping[str, Any] = field(default_factory=dict)


class Rate:
    """Writes the first line of each kind at once, and one a minute after that, which says how many were left out.

    An event has at most 128 kinds at a time, so that a flood writes at most 258 lines a minute, and the lines of
    one event take no room from another's.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, dict[tuple[object, ...], _Limited]] = {}
        self._due = math.inf

    def admits(
        self, event: str, kind: tuple[object, ...], last: Mapping[str, Any]
    ) -> bool:
        """Return whether a line is to be written now; else it is counted.

        Args:
            event: one of ``EVENTS``.
            kind: what lines of this event have in common.
            last: the ids that the line that stands for those left out names.
        """
        now = self._clock.monotonic()
        with self._lock:
            kinds = self._kinds.setdefault(event, {})
            counted = kinds.get(kind)
            if counted is None and len(kinds) >= KINDS:
                # The kinds that were silent for a minute are forgotten.
                for silent in [
                    name
                    for name, lines in kinds.items()
                    if now >= lines.ends and not lines.left_out
                ]:
                    del kinds[silent]
                if len(kinds) >= KINDS:
                    kind, counted = _OTHER, kinds.get(_OTHER)
            if counted is None or (now >= counted.ends and not counted.left_out):
                kinds[kind] = _Limited(now + EVERY)
                return True
            counted.left_out += 1
            counted.last = last
            self._due = min(self._due, counted.ends)
        self.tick()
        return False

    def tick(self, *, all_of_them: bool = False) -> None:
        """Write the lines that stand for those left out, where their minute is over; cheap where none is due."""
        if self._due == math.inf or not (
            all_of_them or self._clock.monotonic() >= self._due
        ):
            return
        now, over = (
            self._clock.monotonic(),
            list[tuple[str, tuple[object, ...], int, float, Mapping[str, Any]]](),
        )
        with self._lock:
            self._due = math.inf
            for event, kinds in self._kinds.items():
                for kind, lines in kinds.items():
                    if lines.left_out and (all_of_them or now >= lines.ends):
                        over.append(
                            (
                                event,
                                kind,
                                lines.left_out,
                                EVERY + now - lines.ends,
                                lines.last,
                            )
                        )
                        lines.ends, lines.left_out, lines.last = now + EVERY, 0, {}
                    elif lines.left_out:
                        self._due = min(self._due, lines.ends)
        # Written without the lock.
        for event, kind, left_out, seconds, last in over:
            emit(
                event,
                "%s: and %s more in %d s",
                ", ".join(map(str, kind)),
                f"{left_out:,}",
                seconds,
                left_out=left_out,
                **last,
            )


class AddMessage(logging.Filter):
    """A filter that adds destination, subject and jti to what a message's handler logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields of the message that is being handled, and let the record pass."""
        delivery = HANDLING.get()
        if delivery is not None and not hasattr(record, "event"):
            fields = {"destination": delivery.message.destination}
            if delivery.verified is not None:
                fields |= {
                    "subject": delivery.verified.subject,
                    "jti": delivery.verified.jti,
                }
            vars(record).update({name: harmless(text) for name, text in fields.items()})
            record.mqauth_fields = tuple(fields)
        return True


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time, level, logger, message, and its fields by their names.

    Fields have OpenTelemetry's names where it has one (``FIELDS``), and ``mqauth.`` before their own else. What
    others added to a record keeps its name.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        ours = getattr(record, "mqauth_fields", ())
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name in FIELDS:
                fields[FIELDS[name]] = value
            elif name not in _STANDARD and name != "mqauth_fields":
                fields[f"mqauth.{name}" if name in ours else name] = value
        if record.exc_info:
            fields["exception.stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(
            {name: value for name, value in fields.items() if value is not None},
            default=str,
        )

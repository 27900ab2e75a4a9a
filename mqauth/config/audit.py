"""``[audit]`` and ``[misuse]`` made into sinks: watch around flood gate around file, with its signed heads."""

from __future__ import annotations

from collections.abc import Callable

from mqauth.audit.file import AuditFile, HeadFile
from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.clock import Clock
from mqauth.config.file import secret_of
from mqauth.config.settings import AuditSettings
from mqauth.wire.keys import Key


def audit_sink(
    found: AuditSettings,
    thresholds: Thresholds,
    *,
    on_alert: Callable[[Alert], None] | None,
    clock: Clock,
) -> MisuseWatch:
    """Return the sinks of ``[audit]``, the file opened for this process alone.

    Args:
        found: the table.
        thresholds: of ``[misuse]``.
        on_alert: called with each alert.
        clock: given to what needs one.

    Raises:
        ConfigurationError: the file is another process's or no audit file, or the heads' key cannot be used.
    """
    heads = _heads(found, clock)
    with found.table.located("file"):
        file = AuditFile(found.file, fsync=not found.unsafe_no_fsync, max_bytes=found.max_bytes, heads=heads)
    return MisuseWatch(FloodGate(file, found.flood_after), Detector(thresholds), on_alert=on_alert, clock=clock)


def _heads(found: AuditSettings, clock: Clock) -> HeadFile | None:
    """Return where heads are signed, ``None`` where they are not."""
    if found.heads is None or found.heads_key is None:
        return None
    passphrase = secret_of(found, "heads_passphrase")
    with found.table.located("heads_key"):
        key = Key.load(found.heads_key, passphrase=passphrase)
    return HeadFile(found.heads, key, every=found.heads_every, seconds=found.heads_seconds, clock=clock)

"""``[audit]`` and ``[misuse]`` made into sinks: watch around flood gate around file, with its signed heads."""

from __future__ import annotations

from collections.abc import Callable

from mqauth.auditfile import AuditFile
from mqauth.audithead import HeadFile
from mqauth.clock import Clock
from mqauth.config_settings import AuditSettings, HeadSettings
from mqauth.errors import ConfigurationError
from mqauth.flood import FloodGate
from mqauth.keys import Key
from mqauth.misuse import Alert, Detector, Thresholds
from mqauth.sinks import MisuseWatch

Passphrase = Callable[..., bytes | None]


def audit_sink(
    found: AuditSettings,
    thresholds: Thresholds,
    *,
    on_alert: Callable[[Alert], None] | None,
    passphrase: Passphrase,
    clock: Clock,
) -> MisuseWatch:
    """Return the sinks of ``[audit]``, the file opened for this process alone.

    Args:
        found: the table.
        thresholds: of ``[misuse]``.
        on_alert: called with each alert.
        passphrase: returns what ``env=`` or ``file=`` names.
        clock: given to what needs one.

    Raises:
        ConfigurationError: the file is another process's or no audit file, or the heads' key cannot be used.
    """
    heads = None if found.heads is None else _heads(found.heads, passphrase, clock)
    try:
        file = AuditFile(found.file, fsync=not found.unsafe_no_fsync, max_bytes=found.max_bytes, heads=heads)
    except ConfigurationError as error:
        raise found.table.refuse("file", str(error)) from error
    return MisuseWatch(FloodGate(file, found.flood_after), Detector(thresholds), on_alert=on_alert, clock=clock)


def _heads(found: HeadSettings, passphrase: Passphrase, clock: Clock) -> HeadFile:
    """Return where heads are signed."""
    key = "heads_passphrase_env" if found.passphrase_env is not None else "heads_passphrase_file"
    try:
        secret = passphrase(env=found.passphrase_env, file=found.passphrase_file)
    except ConfigurationError as error:
        raise found.table.refuse(key, str(error)) from error
    try:
        signing = Key.load(found.key, passphrase=secret)
    except ConfigurationError as error:
        raise found.table.refuse("heads_key", str(error)) from error
    return HeadFile(found.file, signing, every=found.every, seconds=found.seconds, clock=clock)

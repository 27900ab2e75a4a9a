"""The reviewer's audit file, which a console and commands write in turns."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import tenacity

from mqauth.audit.file import AuditFile
from mqauth.audit.record import AuditRecord
from mqauth.errors import Cause, ConfigurationError, Unavailable, refusing


class SharedAuditFile:
    """Appends the records of acts to one file and one chain from several processes, which take turns.

    Each has the file for one record only, so a console that runs for weeks leaves it to the reviewer's commands.

    Args:
        path: as of ``AuditFile``.
        patience: seconds to wait for another writer.

    Raises:
        ConfigurationError: as for ``AuditFile``.
    """

    def __init__(self, path: Path, *, patience: float = 5.0) -> None:
        self._path, self._patience = path, patience
        self._opened().close()

    def write(self, record: AuditRecord, /) -> None:
        """Append one record and make it durable.

        Raises:
            Unavailable: ``audit_unavailable``: the disk refused, or another process keeps the file.
        """
        unavailable = partial(Unavailable, Cause.AUDIT_UNAVAILABLE)
        with refusing(ConfigurationError, str, unavailable), self._opened() as file:
            file.write(record)

    def _opened(self) -> AuditFile:
        # Again for as long as another writer has the lock.
        locked = tenacity.retry_if_exception(lambda error: isinstance(error.__cause__, BlockingIOError))
        until, often = tenacity.stop_after_delay(self._patience), tenacity.wait_fixed(0.01)
        return tenacity.Retrying(retry=locked, stop=until, wait=often, reraise=True)(AuditFile, self._path)

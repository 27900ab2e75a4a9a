"""The marks by which a store on Redis notices that the server has lost its memory.

Each scope has a mark that all processes share, and that never ends: after a FLUSHALL, or a restart without a file,
it is gone. Each process has one of its own besides, which it writes anew once a second: after a failover, or a
restart from an old file, it is older than the process knows, or gone. What is lost with the last second alone is not
noticed.

For example, a consumer knows the mark ``a1-1700`` and that it wrote ``1702`` a second ago. The server says
``a1-1700`` and ``1701``: a replica took over, which lacks what was written after 1701.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from typing import Any, Final

from mqauth.clock import SYSTEM_RANDOMNESS, Clock
from mqauth.errors import require
from mqauth.replay.rules import MemoryLost
from mqauth.threads import after_fork

MARK: Final = """
-- KEYS: the mark of all, the mark of this process. ARGV: what it knows of each, or ''; what it writes to each, and for
-- how many ms its own lives. Returns 'kept' or 'lost', and the two marks that were found.
local all, own = redis.call('GET', KEYS[1]) or '', redis.call('GET', KEYS[2]) or '0'
local older = ARGV[2] ~= '' and tonumber(own) < tonumber(ARGV[2])
if older or (ARGV[1] ~= '' and all ~= ARGV[1]) then return 'lost ' .. all .. ' ' .. own end
if all == '' then
  all = ARGV[3]
  redis.call('SET', KEYS[1], all)
end
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
return 'kept ' .. all .. ' ' .. ARGV[4]
"""
SHA: Final = hashlib.sha1(MARK.encode("ascii"), usedforsecurity=False).hexdigest()
EVERY: Final = 1.0
"""Seconds between two looks at the marks of a scope."""
_LIFE: Final = 3600.0
"""Seconds for which the mark of a process stays that looks no more."""


@dataclass(slots=True)
class _Known:
    """What a process knows of a scope: both marks, when it wrote its own, and when it is to look again."""

    shared: str = ""
    own: str = ""
    written: float = -math.inf
    due: float = -math.inf


class Marks:
    """The marks of one store; threads and event loops may share them, and a child after a fork has its own.

    Args:
        clock: tells when to look, and what the marks say.
        where: the server, for what is told of a loss.
    """

    def __init__(self, clock: Clock, where: str) -> None:
        self._clock = clock
        self._where = where
        self._known: dict[bytes, _Known] = {}
        self._lost: dict[bytes, str] = {}
        self.forked()
        after_fork(self)

    def forked(self) -> None:
        """Begin anew: the mark of the parent is not ours."""
        self._lock = threading.Lock()
        self._name = SYSTEM_RANDOMNESS(8).hex()
        self._last = 0
        for known in self._known.values():
            known.own = ""

    def due(self, prefix: bytes) -> tuple[Any, ...] | None:
        """Return what the script is given, if it is time to look at the marks of a scope; else ``None``."""
        now = self._clock.monotonic()
        known = self._known.get(prefix)
        if known is not None and now < known.due:
            return None

        with self._lock:
            known = self._known.setdefault(prefix, _Known())
            if now < known.due:
                return None
            known.due = now + EVERY
            # A mark that was written long ago may have ended by itself.
            own = known.own if now - known.written < _LIFE / 2 else ""
            # Each is greater than the one before, whatever the clock does.
            wall = int(self._clock.now() * 1000)
            self._last = max(self._last + 1, wall)
            fresh = f"{SYSTEM_RANDOMNESS(8).hex()}-{wall}"
            keys = prefix + b"mark", prefix + b"mark " + self._name.encode("ascii")
            return 2, *keys, known.shared, own, fresh, self._last, int(_LIFE * 1000)

    def look_again(self, prefix: bytes) -> None:
        """Look at the next claim, since nobody knows what became of the last look."""
        self._known[prefix].due = -math.inf

    def found(self, prefix: bytes, answer: Any) -> MemoryLost | None:
        """Take what the script says; return what was lost, if anything was.

        Raises:
            ValueError: the answer is not one of this script.
        """
        text = answer.decode("ascii") if isinstance(answer, bytes) else answer
        words = text.split(" ") if isinstance(text, str) else []
        require(len(words) == 3 and words[0] in ("kept", "lost"), "no mark", ValueError)
        verdict, shared, own = words
        known = self._known[prefix]
        if verdict == "kept":
            known.shared, known.own = shared, own
            known.written = self._clock.monotonic()
            return None

        # All is lost since the mark was made; or, where it is still there, what came after our own.
        self._lost[prefix] = shared
        since, why = known.shared.rpartition("-")[2], "it was emptied or exchanged"
        if shared == known.shared and own != "0":
            since, why = own, "it lacks what was written last"
        return MemoryLost(
            where=self._where,
            why=why,
            since=int(since) / 1000,
            until=self._clock.now(),
        )

    def begin_anew(self) -> None:
        """Believe what the server has by now: each loss that was noticed is on record."""
        with self._lock:
            while self._lost:
                prefix, shared = self._lost.popitem()
                self._known[prefix] = _Known(shared)

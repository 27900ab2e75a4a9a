"""Places packed into one int each: the log has a number, the offset stands before it."""

from __future__ import annotations

from typing import Final

from mqauth.message import Place

_LOG_BITS: Final = 16
_LOGS: Final = 1 << _LOG_BITS
NOWHERE: Final = 0
"""No place, packed."""

Packed = int | Place


class Places:
    """Packs places; what would not come back exactly stays as it is."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str, int], int] = {}
        self._logs: list[tuple[str, str, int]] = [("", "", 0)]  # 0 is for no place

    def pack(self, place: Place | None) -> Packed:
        """Return a place in its smallest form."""
        if place is None:
            return NOWHERE
        log, offset = place[:3], place[3]
        number = self._numbers.get(log)
        if number is None:
            if len(self._logs) >= _LOGS:
                return place
            number = self._numbers[log] = len(self._logs)
            self._logs.append(log)
        return offset << _LOG_BITS | number if offset >= 0 else place

    def unpack(self, packed: Packed) -> Place | None:
        """Return the place as it was."""
        if not isinstance(packed, int):
            return packed
        if packed == NOWHERE:
            return None
        return (*self._logs[packed & (_LOGS - 1)], packed >> _LOG_BITS)

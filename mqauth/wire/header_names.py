"""Names of headers, and beginnings of names, that stand without a signature: what tracing and transport add."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mqauth.errors import require
from mqauth.wire.message import PROTECTED_PROPERTIES, TOKEN_HEADER, fold

MIN_PREFIX: Final = 4
"""Fewest characters before the ``*``: ``x-*`` would be most names there are."""


class HeaderNames:
    """Names, or beginnings of names and a ``*``, in any case.

    Args:
        setting: what they are called, for refusals.
        names: exact, or at least 4 characters and a ``*``.
        required: names that may not be among them.

    Attributes:
        names: all of them, folded.

    Raises:
        ConfigurationError: one is neither; or it is a protected property, mqauth's own, or required.
    """

    def __init__(self, setting: str, names: Iterable[str], required: Iterable[str] = ()) -> None:
        require(not isinstance(names, str), f"{setting} is a list of names: a text would name its letters")
        folded = tuple(fold(name) for name in names)
        self.names = frozenset(folded)
        self._exact = frozenset(name for name in folded if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in folded if name.endswith("*"))
        require(
            all(self._exact) and not any("*" in name for name in (*self._exact, *self._prefixes)),
            f"{setting}: a name is not empty, and a * stands at its end alone",
        )
        require(
            all(len(prefix) >= MIN_PREFIX for prefix in self._prefixes),
            f"{setting}: at least {MIN_PREFIX} characters stand before a *",
        )
        own = any(name.startswith("mqauth-") for name in (*self._exact, *self._prefixes))
        for name in (*PROTECTED_PROPERTIES, TOKEN_HEADER, *required):
            require(name not in self and not own, f"{setting} may not hold {TOKEN_HEADER if own else name}")

    def __contains__(self, name: str) -> bool:
        folded = fold(name)
        return folded in self._exact or folded.startswith(self._prefixes)

    @property
    def broad(self) -> tuple[str, ...]:
        """The beginnings that end within a word, and so may be those of other names too."""
        return tuple(f"{prefix}*" for prefix in self._prefixes if not prefix.endswith(("-", "_", ".")))

    def without(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the names that are none of these."""
        return tuple(name for name in names if name not in self)

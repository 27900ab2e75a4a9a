"""What follows from the names of a message alone: where its token is, and how what a token covers is encoded.

The names are anybody's, and are remembered within a bound of bytes; of the values nothing is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from mqauth.errors import Reason, Rejection
from mqauth.letters.release import is_release
from mqauth.wire import envelope
from mqauth.wire.destination import is_kafka
from mqauth.wire.envelope import Cover
from mqauth.wire.message import Form, Message
from mqauth.wire.template import Reader

_CAPACITY: Final = 16 * 1024 * 1024
_SHARE: Final = 64
_EACH: Final = 1024
_NAME: Final = 192
_CHARACTER: Final = 4
"""Bytes that an entry takes, beside them those of each name and of each character: measured, and rounded up."""


class Shape:
    """What messages of one form have in common.

    Args:
        form: of the messages.
        charge: told the bytes of what is about to be kept here; returns whether it may be.

    Attributes:
        place: where among the headers the token is.
        fault: why there is no one token.
        on_kafka: the broker is Kafka.
        covers: how messages of this form are held against a token, by the names that it covers.
        readers: what reads a payload, by kid and length, where one was accepted with this form.
        released: one of the names is a release, in whatever spelling.
    """

    __slots__ = ("_charge", "_names", "covers", "fault", "on_kafka", "place", "readers", "released")

    def __init__(self, form: Form, charge: Callable[[int], bool]) -> None:
        self._charge = charge
        self._names = form[1]
        self.covers: dict[tuple[str, ...], Cover] = {}
        self.readers: dict[tuple[str, int], Reader] = {}
        self.on_kafka = is_kafka(form[0])
        self.place = 0
        self.fault: tuple[Reason, str] | None = None
        self.released = any(map(is_release, form[1]))
        try:
            self.place = envelope.place_of_token(form[1])
        except Rejection as rejection:
            self.fault = rejection.reason, rejection.detail

    def cover(self, message: Message, names: tuple[str, ...]) -> Cover:
        """Return how messages of this form are held against a token that covers these names.

        Args:
            message: one of them.
            names: the covered headers.
        """
        cover = self.covers.get(names)
        if cover is None:
            cover = envelope.cover(message, names)
            if self._charge(_size((*self._names, *names))):
                self.covers[names] = cover
        return cover

    def learn(self, kid: str, reader: Reader) -> None:
        """Remember what reads payloads like one that was accepted; the next of its key and length replaces it."""
        if (kid, reader.length) in self.readers or self._charge(_EACH + reader.size):
            self.readers[kid, reader.length] = reader


class Shapes:
    """Shapes by form; when they are full all of them are forgotten.

    Anybody may write what is remembered here, so that its bytes are what counts, and no entry takes more than a
    64th of them. Forgetting all costs no bookkeeping at each look: only a flood of names comes to it.

    Args:
        capacity: bytes that all of them may take, with what is kept in them.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._shapes: dict[Form, Shape] = {}
        self._held = 0
        self._lock = threading.Lock()
        self.get = self._shapes.get
        """Return the shape of a form, or ``None``."""

    def __len__(self) -> int:
        return len(self._shapes)

    def add(self, form: Form) -> Shape:
        """Return the shape of a form that is not known, and remember it."""
        shape = Shape(form, self._charge)
        if self._charge(_size((form[0], *form[1], *form[2]))):
            self._shapes[form] = shape
        return shape

    def _charge(self, size: int) -> bool:
        """Count bytes that are about to be kept, here or in a shape; make room where it is short.

        Returns:
            Whether they may be kept: one entry takes no more than its share.
        """
        if size > self._capacity // _SHARE:
            return False
        with self._lock:
            if self._held + size > self._capacity:
                self._shapes.clear()
                self._held = 0
            self._held += size
        return True


def _size(names: Iterable[str]) -> int:
    """Return the bytes that an entry with these names takes at most."""
    return _EACH + sum(_NAME + _CHARACTER * len(name) for name in names)

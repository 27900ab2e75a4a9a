"""What every target asks: that only the documented error comes out, and that what is kept is within its bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from mqauth.errors import Reason, Rejection

T = TypeVar("T")
MAX_DETAIL: Final = 300
"""Most characters of a rejection's sentence: what a sender wrote must not make it longer."""
TOKEN_REASONS: Final = frozenset(
    (
        Reason.TOKEN_MISSING,
        Reason.TOKEN_REPEATED,
        Reason.TOKEN_OVERSIZE,
        Reason.TOKEN_MALFORMED,
    )
)
JWS_REASONS: Final = frozenset(
    (
        Reason.TOKEN_OVERSIZE,
        Reason.TOKEN_MALFORMED,
        Reason.TOKEN_TYPE,
        Reason.HEADER_FORBIDDEN,
        Reason.ALGORITHM_FORBIDDEN,
    )
)
CLAIM_REASONS: Final = frozenset((Reason.CLAIMS_MALFORMED, Reason.CLAIM_MISSING))


def hold(condition: bool, refusal: str) -> None:
    """Raise ``AssertionError`` unless an oracle holds; for the handlers of errors."""
    assert condition, refusal


def strictly(raw: bytes) -> Any:
    """Return the value of a JSON text, in which no object may name a member twice."""
    return json.loads(raw, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a duplicate name was let through"
    return dict(pairs)


def judged(read: Callable[[], T], reasons: frozenset[Reason]) -> T | None:
    """Return what a reader returns, ``None`` where it rejects for one of its documented reasons.

    Raises:
        AssertionError: it rejects for another reason, or says too much.
    """
    try:
        return read()
    except Rejection as rejection:
        hold(rejection.reason in reasons, f"undocumented: {rejection.reason}")
        hold(len(str(rejection)) <= MAX_DETAIL, "a rejection quotes what it rejects")
        hold(str(rejection).isprintable(), "a rejection has a control character")
        return None


def held(*found: Any) -> int:
    """Return the bytes that values take, with all that hangs on them; what they share counts once."""
    seen, size, todo = set[int](), 0, [*found]
    while todo:
        value = todo.pop()
        if id(value) in seen or value is None or isinstance(value, type):
            continue
        seen.add(id(value))
        size += sys.getsizeof(value)
        todo += _within(value)
    return size


def _within(value: Any) -> list[Any]:
    if isinstance(value, str | bytes | int | float):
        return []
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, tuple | list | set | frozenset):
        return [*value]
    names = [
        name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())
    ]
    return [getattr(value, name, None) for name in names if not name.startswith("__")]


def plain(value: Any) -> str:
    """Return a text that is the same for the same values only: types, order and not-a-numbers told apart."""
    if isinstance(value, Mapping):
        return (
            "{"
            + ",".join(sorted(f"{name!r}:{plain(item)}" for name, item in value.items()))
            + "}"
        )
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({','.join(map(plain, value))})"
    return f"{type(value).__name__}:{value!r}"

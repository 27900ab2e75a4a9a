"""No object that users hold is false: ``store or MemoryReplayStore()`` must not make a second store."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator

import mqauth
from mqauth import MemoryReplayStore


def offered() -> Iterator[type]:
    """Yield every class that a module of the package offers in ``__all__``."""
    for found in pkgutil.walk_packages(mqauth.__path__, "mqauth."):
        with (
            warnings.catch_warnings()
        ):  # kafka-python reads its schemas by a deprecated function
            warnings.simplefilter("ignore", DeprecationWarning)
            module = (
                importlib.import_module(found.name)
                if not found.name.endswith("__main__")
                else mqauth
            )
        yield from (
            kind
            for name in getattr(module, "__all__", ())
            if inspect.isclass(kind := getattr(module, name))
        )


def may_be_false(kind: type) -> bool:
    """Tell whether an empty instance would be false; a tuple with names is never empty."""
    return (
        hasattr(kind, "__len__")
        and not hasattr(kind, "__bool__")
        and not hasattr(kind, "_fields")
    )


def test_whatever_is_offered_is_true() -> None:
    """No public class has a length alone, by which an instance that holds nothing would be false."""
    kinds = set(offered())
    assert MemoryReplayStore in kinds
    assert [
        kind for kind in kinds if may_be_false(kind) and not issubclass(kind, str)
    ] == []


def test_empty_is_not_false() -> None:
    """An empty store has the length 0, and is not replaced by ``or``."""
    empty = MemoryReplayStore()
    assert len(empty) == 0
    assert (empty or None) is empty

"""A fault in the living code: in a function, wherever that is referred to, or in a name, wherever it stands."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final

from integration.mutation.faults import Fault

ROOT: Final = Path(__file__).parent.parent.parent
OURS: Final = ROOT / "mqauth"
_MISSING: Final = object()


def forget() -> None:
    """Empty every memo: what was worked out with a fault must not outlive it."""
    memo = sys.modules["mqauth.wire.memo"].Memo
    for found in gc.get_objects():
        if type(found) is memo:
            dict.clear(found)


class Living:
    """The code that this process runs, into which one fault is put at a time."""

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str, int], list[FunctionType]] = {}
        self._inner: set[tuple[str, str]] = set()
        for function in gc.get_objects():
            if isinstance(
                function, FunctionType
            ) and function.__code__.co_filename.startswith(str(OURS)):
                code = function.__code__
                place = module_of(code.co_filename), code.co_qualname
                self._functions.setdefault((*place, code.co_firstlineno), []).append(
                    function
                )
                self._inner.add(
                    (
                        place[0],
                        place[1].partition(".<locals>.")[0]
                        if "<locals>" in place[1]
                        else "",
                    )
                )
        self._undo: list[tuple[Any, str, Any]] = []

    def plant(self, fault: Fault) -> bool:
        """Put a fault into the living code; it is not there if that cannot be done without importing all anew."""
        return self._function(fault) if fault.lineno else self._names(fault)

    def restore(self) -> None:
        """Take the fault out again, and forget what was worked out with it."""
        for owner, name, old in reversed(self._undo):
            if isinstance(owner, dict):
                owner[name] = old
            else:
                setattr(owner, name, old)
        self._undo.clear()
        forget()

    def _function(self, fault: Fault) -> bool:
        module, name = fault.key.module, fault.key.function
        found = self._functions.get((module, name, fault.lineno), [])
        # functions that it has made are alive already, with code of their own
        if len(found) != 1 or (module, name) in self._inner:
            return False
        _, code = fault.statement(str(path_of(module)))
        made = next(
            one
            for one in _codes(code)
            if (one.co_qualname, one.co_firstlineno) == (name, fault.lineno)
        )
        if made.co_freevars != found[0].__code__.co_freevars:
            return False
        self._undo.append((found[0], "__code__", found[0].__code__))
        found[0].__code__ = made
        return True

    def _names(self, fault: Fault) -> bool:
        """Give the names that a statement at the top sets what they would be, wherever they are imported."""
        scope = vars(sys.modules[f"mqauth.{fault.key.module}"])
        before = dict(scope)
        _, code = fault.statement(str(path_of(fault.key.module)))
        if fault.key.function or not any(name in code.co_names for name in before):
            return False
        try:
            exec(code, scope)  # noqa: S102
        finally:
            changed = {
                name for name in scope if scope[name] is not before.get(name, _MISSING)
            }
            self._undo += [
                (scope, name, before[name]) for name in changed if name in before
            ]
        for other in [
            found
            for name, found in sys.modules.items()
            if name.startswith(("mqauth", "tests.vectors"))
        ]:
            for name in changed & vars(other).keys():
                if vars(other) is not scope and vars(other)[name] is before.get(
                    name, _MISSING
                ):
                    self._undo.append((vars(other), name, before[name]))
                    vars(other)[name] = scope[name]
        return True


def path_of(module: str) -> Path:
    """Return the file of a module."""
    return OURS / f"{module.replace('.', '/')}.py"


def module_of(path: str) -> str:
    """Return the module of a file, below ``mqauth``."""
    return ".".join(Path(path).relative_to(OURS).with_suffix("").parts)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for found in code.co_consts:
        if isinstance(found, CodeType):
            yield from _codes(found)

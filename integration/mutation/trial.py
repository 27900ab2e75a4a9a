"""A trial: one fault in our code, and whether a vector tells, in a process of its own.

The process that makes trials has everything imported and has judged nothing: no memo remembers what the code did
without the fault. Each trial is a fork of it. There a fault in a function's body is put into the living function,
wherever that is referred to; for any other fault mqauth is imported anew, with the fault in it.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final, TypeAlias

from integration.mutation.faults import Fault, Key, faults

ROOT: Final = Path(__file__).parent.parent.parent
_OURS: Final = ("mqauth", "tests")
_SECONDS: Final = 20
"""Of processor time a trial may take; all vectors take about one and a half."""
_WAIT: Final = 600
_MEMORY: Final = 4 << 30
_FIRST: Final = 12
SURVIVED: Final = ""
Checks: TypeAlias = dict[str, Callable[[], None]]


class Trials:
    """Makes trials, and remembers for each function which vectors have told of its faults: they are asked first."""

    def __init__(self) -> None:
        from tests.vectors import checks  # noqa: PLC0415 - here for the first time, and in a trial anew

        self._files = checks.read()
        self._checks = _ordered(checks.checks(self._files))
        self._told: dict[tuple[str, str], list[str]] = {}
        self._functions = _living()

    def run(self, found: Iterable[Fault]) -> Iterator[tuple[Fault, str]]:
        """Yield each fault with the name of a vector that tells of it; ``SURVIVED`` if none does."""
        left = deque(found)
        while left:
            for answer in forked(partial(self._tell, tuple(left))):
                yield left.popleft(), answer

    def sound(self) -> bool:
        """Tell whether no vector tells of no fault, in the living code and in code that is imported anew."""

        def tell() -> Iterator[str]:
            yield self._asked(self._checks, [])
            yield self._asked(self._anew("none", compile("", "none", "exec")), [])

        return list(forked(tell)) == [SURVIVED, SURVIVED]

    def _tell(self, found: Sequence[Fault]) -> Iterator[str]:
        """Yield what tells of each fault, until one has to have a process of its own, and of that one."""
        for at, fault in enumerate(found):
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            signal.alarm(_WAIT)
            if not (fault.lineno and self._is_swapped(fault)):
                # mqauth is imported anew: what comes after needs the old one
                if at == 0:
                    yield self._told_anew(fault)
                return
            yield self._asked(self._checks, self._told.setdefault(fault.key[:2], []))
            self._restore()

    def _told_anew(self, fault: Fault) -> str:
        try:
            return self._asked(self._anew(fault.key.module, fault.compiled(str(path_of(fault.key.module)))), [])
        except Exception as error:
            return f"it does not start: {type(error).__name__}"

    @staticmethod
    def _asked(checks: Checks, told: list[str]) -> str:
        """Return the first check that tells; it is asked first from now on."""
        for name in (*told, *(name for name in checks if name not in told)):
            try:
                checks[name]()
            except BaseException as error:
                # a check of many vectors says which one tells
                single = f"{name.partition(': ')[0]}: {error}"
                name = single if single in checks else name
                told[:] = [name, *(other for other in told if other != name)][:_FIRST]
                return name
        return SURVIVED

    def _is_swapped(self, fault: Fault) -> bool:
        """Put a fault into the living functions; it is not there if they are not to be told apart."""
        living = self._functions.get(fault.key.module, [])
        outer = [found for found in living if found.__qualname__ == fault.key.function]
        inner = f"{fault.key.function}.<locals>."
        if len(outer) != 1 or outer[0].__code__.co_firstlineno != fault.lineno or any(found.__code__.co_qualname.startswith(inner) for found in living):
            return False
        code = fault.compiled(str(path_of(fault.key.module)))
        made = next(found for found in _codes(code) if (found.co_qualname, found.co_firstlineno) == (fault.key.function, fault.lineno))
        if len(made.co_freevars) != len(outer[0].__code__.co_freevars):
            return False
        self._old = outer[0], outer[0].__code__
        outer[0].__code__ = made
        return True

    def _restore(self) -> None:
        function, code = self._old
        function.__code__ = code
        # what is remembered of earlier messages would hide a fault, or outlive it
        memos = sys.modules["mqauth.wire.memo"].Memo
        for found in gc.get_objects():
            if type(found) is memos:
                dict.clear(found)

    def _anew(self, module: str, code: CodeType) -> Checks:
        logging.setLogRecordFactory(logging.LogRecord)
        for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Planted(f"mqauth.{module}", code))
        return _ordered(importlib.import_module("tests.vectors.checks").checks(self._files))


def _ordered(found: Iterable[Any]) -> Checks:
    """Return the checks by name, those of many vectors first, which take the least time for each."""
    return {check.name: check.run for check in sorted(found, key=lambda check: ": every vector, " not in check.name)}


class _Planted(SourceFileLoader, MetaPathFinder):
    """Loads one module with other code."""

    def __init__(self, name: str, code: CodeType) -> None:
        super().__init__(name, code.co_filename)
        self._code = code

    def find_spec(self, fullname: str, *_place: Any) -> ModuleSpec | None:
        """Return how to load the module."""
        return spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """Return the other code."""
        return self._code


def path_of(module: str) -> Path:
    """Return the file of a module."""
    return ROOT / "mqauth" / f"{module.replace('.', '/')}.py"


def faults_of(module: str) -> Iterator[Fault]:
    """Yield every fault of a module."""
    yield from faults(module, path_of(module).read_text("utf-8"))


def keys_of(module: str) -> set[Key]:
    """Return the keys of every fault of a module."""
    return {fault.key for fault in faults_of(module)}


def forked(call: Callable[[], Iterable[str]]) -> Iterator[str]:
    """Yield what a call yields in a fork of this process, and in the end what has ended that, if it was ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(call, writer)
    os.close(writer)
    with os.fdopen(reader, "r") as stream:
        for line in stream:
            yield str(json.loads(line))
    _, status = os.waitpid(child, 0)
    if status:
        yield f"it does not end: {status}"


def _answer(call: Callable[[], Iterable[str]], writer: int) -> None:
    """Write what a call yields, and end this process; the system ends it where one takes too long."""
    status = 1
    try:
        gc.disable()
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        for text in call():
            os.write(writer, json.dumps(text).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _living() -> dict[str, list[FunctionType]]:
    """Return the functions of our modules that are alive, by module."""
    found: dict[str, list[FunctionType]] = {}
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__code__.co_filename.startswith(str(ROOT / "mqauth")):
            module = Path(function.__code__.co_filename).relative_to(ROOT / "mqauth").with_suffix("")
            found.setdefault(".".join(module.parts), []).append(function)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for found in code.co_consts:
        if isinstance(found, CodeType):
            yield from _codes(found)

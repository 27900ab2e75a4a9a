"""A trial: one fault in our code, and whether a vector tells.

The process that makes trials has everything imported and has judged nothing: no memo remembers what the code did
without the fault. A fork of it puts one fault after the other into the living code. Where that cannot be done,
or no vector tells of what is set at the top of a module, mqauth is imported anew, with the fault in it.
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
from types import CodeType
from typing import Any, Final, TypeAlias

from integration.mutation import reached
from integration.mutation.faults import Fault, Key, faults
from integration.mutation.planted import Living, path_of
from integration.mutation.report import SURVIVED
from tests.vectors import checks

_OURS: Final = ("mqauth", "tests")
_SECONDS: Final = 20
"""Of processor time a trial may take; all vectors take about one and a half."""
_WAIT: Final = 600
_MEMORY: Final = 4 << 30
_FIRST: Final = 12
_ANEW: Final = "anew"
Checks: TypeAlias = dict[str, Callable[[], None]]


class Trials:
    """Makes trials, and remembers for each function which vectors have told of its faults: they are asked first.

    Args:
        traced: only vectors that reach a fault are asked; to find out which do takes some seconds, once.
    """

    def __init__(self, *, traced: bool = True) -> None:
        self._files = checks.read()
        self._checks = _ordered(checks.checks(self._files))
        self._names = list(self._checks)
        self._single = {
            f"{file}: {vector['name']}"
            for file in checks.AMONG_MANY
            for vector in checks.together(self._files[file])
        }
        self._told: dict[tuple[str, str], list[str]] = {}
        self._living = Living()
        self._lines = reached.cached(self._trace) if traced else None

    def run(self, found: Iterable[Fault]) -> Iterator[tuple[Fault, str]]:
        """Yield each fault with the name of a vector that tells of it; ``SURVIVED`` if none does."""
        left = deque(found)
        while left:
            for answer in forked(partial(self._tell, tuple(left))):
                fault = left.popleft()
                again = (
                    next(forked(lambda one=fault: iter([self._told_anew(one)])))
                    if answer == _ANEW
                    else answer
                )
                yield fault, again

    def sound(self) -> bool:
        """Tell whether no vector tells of no fault, in the living code and in code that is imported anew."""

        def tell() -> Iterator[str]:
            yield self._asked(self._checks, [], self._names)
            yield self._asked(
                self._anew("none", compile("", "none", "exec")), [], self._names
            )

        return list(forked(tell)) == [SURVIVED, SURVIVED]

    def _trace(self) -> reached.Lines:
        (text,) = forked(
            lambda: iter([json.dumps(reached.traced(self._checks, self._import))])
        )
        found: reached.Lines = json.loads(text)
        return found

    def _import(self) -> None:
        self._anew("none", compile("", "none", "exec"))

    def _tell(self, found: Sequence[Fault]) -> Iterator[str]:
        """Yield what tells of each fault; ``_ANEW`` where only code that is imported anew can show it."""
        for fault in found:
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            signal.alarm(_WAIT)
            yield self._told_of(fault)
            self._living.restore()

    def _told_of(self, fault: Fault) -> str:
        reaching = self._reaching(fault)
        if not reaching:
            return SURVIVED if reaching is None else _ANEW
        try:
            if not self._living.plant(fault):
                return _ANEW
        except Exception as error:
            return f"it does not start: {type(error).__name__}"
        answer = self._asked(
            self._checks, self._told.setdefault(fault.key[:2], []), reaching
        )
        # what else was worked out from a name at the top shows only in code that is imported anew
        return _ANEW if answer == SURVIVED and not fault.lineno else answer

    def _reaching(self, fault: Fault) -> list[str] | None:
        """Return the checks that run the statement of a fault; ``None`` where not even an import does."""
        if self._lines is None or not fault.lineno:
            return self._names
        lines = self._lines.get(fault.key.module, {})
        if lines.keys().isdisjoint(fault.lines):
            return None
        numbers = {number for line in fault.lines for number in lines.get(line, ())}
        return [self._names[number] for number in sorted(numbers)]

    def _told_anew(self, fault: Fault) -> str:
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        signal.alarm(_WAIT)
        try:
            given = self._anew(
                fault.key.module, fault.compiled(str(path_of(fault.key.module)))
            )
        except Exception as error:
            return f"it does not start: {type(error).__name__}"
        return self._asked(given, [], self._names)

    def _asked(self, given: Checks, told: list[str], reaching: Sequence[str]) -> str:
        """Return the first check that tells; it is asked first from now on."""
        may = set(reaching)
        # a vector that was judged among many is judged by itself only where it has told before
        asked = [name for name in reaching if name not in self._single]
        for name in (
            *(name for name in told if name in may),
            *(name for name in asked if name not in told),
        ):
            try:
                given[name]()
            except BaseException as error:
                # a check of many vectors says which one tells
                single = f"{name.partition(': ')[0]}: {error}"
                found = single if single in given else name
                told[:] = [found, *(other for other in told if other != found)][:_FIRST]
                return found
        return SURVIVED

    def _anew(self, module: str, code: CodeType) -> Checks:
        logging.setLogRecordFactory(logging.LogRecord)
        for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Planted(f"mqauth.{module}", code))
        return _ordered(
            importlib.import_module("tests.vectors.checks").checks(self._files)
        )


def _ordered(found: Iterable[Any]) -> Checks:
    """Return the checks by name, the cheapest first: without a consumer, of many vectors, of one."""

    def rank(check: Any) -> int:
        if check.name.partition(":")[0] not in checks.JUDGED:
            return 0
        return 1 if f": {checks.EVERY}" in check.name else 2

    return {check.name: check.run for check in sorted(found, key=rank)}


class _Planted(SourceFileLoader, MetaPathFinder):
    """Loads one module with other code."""

    def __init__(self, name: str, code: CodeType) -> None:
        super().__init__(name, code.co_filename)
        self._code = code

    def find_spec(self, fullname: str, *_place: Any) -> ModuleSpec | None:
        """Return how to load the module."""
        return (
            spec_from_file_location(fullname, self.path, loader=self)
            if fullname == self.name
            else None
        )

    def get_code(self, fullname: str) -> CodeType:
        """Return the other code."""
        return self._code


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

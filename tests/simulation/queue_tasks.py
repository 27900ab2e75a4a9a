"""The event loop of the queue engine's simulation: tasks that wait, and go on one at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from mqauth import flow
from mqauth.delivery.queue_work import INTERRUPTED
from mqauth.flow import Call, Flow
from mqauth.judging.pipeline import Delivery, Outcome
from tests.simulation.queue_facilities import Answer, Interrupted

R = TypeVar("R")
Until = Callable[[], bool]
"""What is waited for, which is true once it is there."""
Steps = Generator[Until, None, R]
"""What a coroutine is here: it says what it waits for, and goes on some time after that is there."""


class Cancelled(BaseException):
    """A task is to end."""


def at_once() -> bool:
    """Wait for nothing, but let other tasks go first."""
    return True


class Task:
    """A task.

    Args:
        steps: it.
        name: for people.
    """

    __slots__ = ("name", "steps", "until")

    def __init__(self, steps: Steps[None], name: str, until: Until = at_once) -> None:
        self.steps = steps
        self.name = name
        self.until = until


class Loop:
    """Tasks, and the answers that they wait for.

    Args:
        current: told whose delivery is carried on.
        look: called after each turn.
    """

    def __init__(self, current: Callable[[Delivery | None], None], look: Callable[[], None]) -> None:
        self.tasks: list[Task] = []
        self.answers: list[Answer] = []
        self._current = current
        self._look = look

    def run(self, steps: Steps[None], name: str) -> Task:
        """Let a task begin with its next turn."""
        task = Task(steps, name)
        self.tasks.append(task)
        return task

    def turn(self, number: int) -> bool:
        """Let one task go on; tell whether one could."""
        ready = [task for task in self.tasks if task.until()]
        if not ready:
            return False
        self.go_on(ready[number % len(ready)])
        return True

    def go_on(self, task: Task, error: BaseException | None = None) -> None:
        """Resume a task, or raise an error in it."""
        try:
            task.until = next(task.steps) if error is None else task.steps.throw(error)
        except StopIteration:
            self.tasks.remove(task)
        except Cancelled:
            self.tasks.remove(task)
        self._look()

    def answer(self, number: int) -> bool:
        """Let one answer come; tell whether one was awaited."""
        if not self.answers:
            return False
        self.answers.pop(number % len(self.answers)).come()
        return True

    def interrupt(self, of: str) -> None:
        """Cancel the tasks that wait for answers of a kind."""
        for each in [answer for answer in self.answers if answer.of == of]:
            self.answers.remove(each)
            each.interrupt()

    # What a runner of flows does

    def attempt(self, attempted: Flow[Outcome], delivery: Delivery) -> Steps[Outcome]:
        """Run a flow; defer if the client cancelled an awaited call."""
        try:
            return (yield from self.driven(attempted, delivery))
        except Interrupted:
            return INTERRUPTED

    def driven(self, driven: Flow[R], delivery: Delivery) -> Steps[R]:
        """Run a flow to its end."""
        result: Any = None
        error: Exception | None = None
        while True:
            self._current(delivery)
            try:
                wish = driven.send(result) if error is None else driven.throw(error)
            except StopIteration as stop:
                found: R = stop.value
                return found
            finally:
                self._current(None)
            result, error = None, None
            try:
                result = yield from self._made(wish, delivery)
            except Exception as raised:
                error = raised

    def _made(self, wish: Call, delivery: Delivery) -> Steps[Any]:
        """Make a call."""
        self._current(delivery)
        try:
            itself = wish.function is flow._itself
            result = wish.arguments[0] if itself else wish.function(*wish.arguments)
        finally:
            self._current(None)
        return (yield from self.awaited(result))

    def awaited(self, result: Any) -> Steps[Any]:
        """Return a result, awaited where it is an answer."""
        if not isinstance(result, Answer):
            return result
        if result.of != "channel":
            self.answers.append(result)
        try:
            yield lambda: result.came
        finally:
            if result in self.answers:
                self.answers.remove(result)
        if result.error is not None:
            raise result.error
        return result.result if result.then is None else result.then(result.result)

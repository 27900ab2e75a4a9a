"""Every small fault of a module, one at a time: where it stands, what it is, and the module with it."""

from __future__ import annotations
import __future__

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final, NamedTuple

_COMPARED: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_COMPUTED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitAnd,
}  # fmt: skip
_REMOVED: Final = (
    ast.Expr,
    ast.Raise,
    ast.AugAssign,
    ast.Delete,
    ast.Continue,
    ast.Break,
)
_TYPING: Final = ("Protocol", "TypedDict")


class Key(NamedTuple):
    """Which fault it is, whatever else changes in the module.

    Args:
        module: below ``mqauth``, with dots.
        function: the innermost one that the fault is in, with its class; empty at the top of the module.
        change: what the fault is.
        nth: counts the same change in one function, from 1.
    """

    module: str
    function: str
    change: str
    nth: int


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        key: which it is.
        text: of the first line that it stands in, for whoever reads the report.
        lineno: of the function whose code it is in, 0 where it is in none.
        lines: of the statement that it is in, without what is within that.
    """

    key: Key
    text: str
    lineno: int
    lines: range
    tree: ast.Module
    place: _Place
    other: ast.AST

    def compiled(self, name: str) -> CodeType:
        """Return the code of the module with the fault.

        Args:
            name: of the module's file.
        """
        self._put(self.other)
        try:
            return compile(self.tree, name, "exec")
        finally:
            self._put(self.place.node)

    def statement(self, name: str) -> tuple[ast.stmt, CodeType]:
        """Return the statement at the top of the module that holds the fault, and its code with the fault.

        Args:
            name: of the module's file.
        """
        at = self.place.top
        self._put(self.other)
        try:
            flags = __future__.annotations.compiler_flag
            return self.tree.body[at], compile(
                ast.Module([self.tree.body[at]], []), name, "exec", flags
            )
        finally:
            self._put(self.place.node)

    def _put(self, node: ast.AST) -> None:
        place = self.place
        if place.at is None:
            setattr(place.parent, place.field, node)
        else:
            getattr(place.parent, place.field)[place.at] = node


class _Place(NamedTuple):
    """A node, and where it stands: its parent's field, the function whose code it is in, and its statement."""

    node: ast.AST
    parent: ast.AST
    field: str
    at: int | None
    function: str
    lineno: int
    statement: ast.stmt
    top: int

    @property
    def lines(self) -> range:
        """The lines of the statement, without the statements within it."""
        inner = [
            found.lineno
            for found in ast.walk(self.statement)
            if isinstance(found, ast.stmt) and found is not self.statement
        ]
        last = min(inner) - 1 if inner else self.statement.end_lineno or 0
        return range(self.statement.lineno, max(last, self.statement.lineno) + 1)


def faults(module: str, source: str) -> Iterator[Fault]:
    """Yield every fault of a module's source."""
    tree, lines, seen = ast.parse(source), source.splitlines(), Counter[tuple[str, ...]]()
    places = [
        place
        for top, statement in enumerate(tree.body)
        for place in _walked(statement, tree, "body", top, "", 0, statement, top)
    ]
    for place in places:
        for change, other in _changes(place.node, place):
            seen[place.function, change] += 1
            key = Key(module, place.function, change, seen[place.function, change])
            yield Fault(
                key=key,
                text=lines[getattr(place.node, "lineno", 1) - 1].strip(),
                lineno=place.lineno,
                lines=place.lines,
                tree=tree,
                place=place,
                other=_located(other, place.node),
            )


def _located(other: ast.AST, node: ast.AST) -> ast.AST:
    """Return a node at the place of another."""
    return ast.fix_missing_locations(ast.copy_location(other, node))


def _walked(node: ast.AST, *where: Any) -> Iterator[_Place]:
    """Yield a node and all within it."""
    place = _Place(node, *where)
    if _is_prose(node):
        return
    yield place
    for field, value in ast.iter_fields(node):
        if _is_no_code(node, field):
            continue
        for at, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                statement = child if isinstance(child, ast.stmt) else place.statement
                function = _within(field, node, place.function, place.lineno)
                yield from _walked(
                    child, node, field, at, *function, statement, place.top
                )


def _within(field: str, node: ast.AST, function: str, lineno: int) -> tuple[str, int]:
    """Return in which function the parts of a node are; those of a default or a decorator in the outer one."""
    if isinstance(node, ast.FunctionDef):
        return (
            (f"{function}.{node.name}".lstrip("."), node.lineno)
            if field == "body"
            else (function, 0)
        )
    if isinstance(node, ast.ClassDef):
        return f"{function}.{node.name}".lstrip("."), 0
    return function, lineno


def _is_no_code(node: ast.AST, field: str) -> bool:
    """Tell whether a field holds types, which no verdict depends on."""
    types = isinstance(node, ast.ClassDef) and any(
        getattr(base, "id", "") in _TYPING for base in node.bases
    )
    return types or (
        field in ("annotation", "returns", "bases", "keywords")
        and isinstance(node, ast.arg | ast.ClassDef | ast.FunctionDef | ast.AnnAssign)
    )


def _is_prose(node: ast.AST) -> bool:
    """Tell whether a node is a docstring, the text of an error, or a type."""
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and " " in node.value
    ):
        return True
    return (
        isinstance(node, ast.AnnAssign)
        and getattr(node.annotation, "id", "") == "TypeAlias"
    )


def _changes(node: ast.AST, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    """Yield what a node is turned into, each with its name."""
    for kind, change in _CHANGES:
        if isinstance(node, kind):
            yield from change(node)
            break
    in_condition = place.field == "test" or (
        place.field == "ifs" and isinstance(place.parent, ast.comprehension)
    )
    if in_condition and not isinstance(node, ast.Compare | ast.UnaryOp):
        yield "condition negated", ast.UnaryOp(ast.Not(), node)


def _signed(node: ast.UnaryOp) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield f"without {type(node.op).__name__}", node.operand


def _computed(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    if type(node.op) in _COMPUTED:
        other = _COMPUTED[type(node.op)]
        yield (
            f"{type(node.op).__name__} to {other.__name__}",
            ast.BinOp(node.left, other(), node.right),
        )


def _replaced(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    for other in _constants(node.value):
        yield f"{node.value!r} to {other!r}", ast.Constant(other)


def _compared(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    for at, found in enumerate(node.ops):
        for other in _COMPARED[type(found)]:
            ops = [*node.ops[:at], other(), *node.ops[at + 1 :]]
            yield (
                f"{type(found).__name__} to {other.__name__}",
                ast.Compare(node.left, ops, node.comparators),
            )


def _joined(node: ast.BoolOp) -> Iterator[tuple[str, ast.AST]]:
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield (
        f"{type(node.op).__name__} to {type(other).__name__}",
        ast.BoolOp(other, node.values),
    )
    for at in range(len(node.values)):
        rest = [*node.values[:at], *node.values[at + 1 :]]
        yield (
            f"without operand {at + 1}",
            rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest),
        )


def _constants(value: object) -> tuple[object, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int | float):
        return value + 1, value - 1
    if isinstance(value, str | bytes):
        return (value + (value[:1] or (b"x" if isinstance(value, bytes) else "x")),)
    return ()


def _called(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    if len(node.args) >= 2 and not any(
        isinstance(found, ast.Starred) for found in node.args[:2]
    ):
        swapped = [node.args[1], node.args[0], *node.args[2:]]
        yield "arguments swapped", ast.Call(node.func, swapped, node.keywords)


def _stated(node: ast.stmt) -> Iterator[tuple[str, ast.AST]]:
    is_set = isinstance(node, ast.Assign) and not isinstance(
        node.targets[0], ast.Name | ast.Tuple
    )
    if isinstance(node, _REMOVED) or is_set:
        yield "removed", ast.Pass()
    elif isinstance(node, ast.Return) and not (
        node.value is None or getattr(node.value, "value", 0) is None
    ):
        yield "returns None", ast.Return(ast.Constant(None))


_CHANGES: Final[tuple[tuple[type[ast.AST], Callable[[Any], Iterator[tuple[str, ast.AST]]]], ...]] = (
    (ast.Compare, _compared), (ast.BoolOp, _joined), (ast.UnaryOp, _signed), (ast.BinOp, _computed),
    (ast.Constant, _replaced), (ast.Call, _called), (ast.stmt, _stated),
)  # fmt: skip

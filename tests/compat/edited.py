"""Converters with one thing edited: a reason left out, a comparison turned round, a number more, a field forgotten.

The functions of a module that declares converters are compiled again beside it, one of them edited; what is registered
stays as it is. Words are not edited: they may be corrected at any time.
"""

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from importlib import import_module
from inspect import getsource
from types import ModuleType
from typing import Any, NamedTuple

from tests.compat.conversions import Step, steps

TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
}  # fmt: skip
Edit = Callable[[], None]


class Edited(NamedTuple):
    """A converter's module with one edit: where it is, and the steps as they are then."""

    what: str
    steps: Callable[[], dict[str, Step]]


def modules() -> dict[str, list[str]]:
    """Return the modules that declare converters, each with the names of its steps."""
    found: dict[str, list[str]] = {}
    for name, step in steps().items():
        found.setdefault(step.run.__module__, []).append(name)
    return found


def edits_of(module_name: str) -> Iterator[Edited]:
    """Give every edit of the converters that one module declares."""
    module = import_module(module_name)
    functions = _functions(module)
    for number, function in enumerate(functions):
        for which, (what, _) in enumerate(_edits(function)):
            yield Edited(f"{function.name}: {what}", partial(_edited, module, functions, number, which))


def _edited(module: ModuleType, functions: list[ast.FunctionDef], number: int, which: int) -> dict[str, Step]:
    changed = [deepcopy(each) for each in functions]
    _what, edit = list(_edits(changed[number]))[which]
    edit()
    return _steps_with(module, changed)


def _steps_with(module: ModuleType, functions: list[ast.FunctionDef]) -> dict[str, Step]:
    space = dict(module.__dict__)
    body = ast.fix_missing_locations(ast.Module([*functions], []))
    exec(compile(body, module.__name__, "exec"), space)
    return {
        name: step._replace(run=space[step.run.__name__])
        for name, step in steps().items()
        if step.run.__module__ == module.__name__
    }


def _functions(module: ModuleType) -> list[ast.FunctionDef]:
    """Return the converters of *module* and all that they call there, without what registers them."""
    all_of = {node.name: node for node in ast.parse(getsource(module)).body if isinstance(node, ast.FunctionDef)}
    waiting = [step.run.__name__ for step in steps().values() if step.run.__module__ == module.__name__]
    reached: list[str] = []
    while waiting:
        name = waiting.pop()
        if name in all_of and name not in reached:
            reached.append(name)
            waiting += [node.id for node in ast.walk(all_of[name]) if isinstance(node, ast.Name)]
    for name in reached:
        all_of[name].decorator_list = []
    return [all_of[name] for name in all_of if name in reached]


def _edits(function: ast.FunctionDef) -> Iterator[tuple[str, Edit]]:
    for node in _nodes(function):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Return(value=value) if value is not None:
                yield f"line {line}, nothing returned", _set(node, "value", ast.Constant(None))
            case ast.Expr(value=ast.Call(func=ast.Name(id="refuse") | ast.Attribute(attr="append" | "pop"))):
                yield f"line {line}, left out: {ast.unparse(node)[:60]}", _set(node, "value", ast.Constant(None))
            case ast.Compare(ops=[op]):
                yield f"line {line}, turned: {ast.unparse(node)[:60]}", _set(node, "ops", [TURNED[type(op)]()])
            case ast.Constant(value=bool() as value):
                yield f"line {line}, {value} turned", _set(node, "value", not value)
            case ast.Constant(value=int() as value):
                yield f"line {line}, {value} and one", _set(node, "value", value + 1)
            case ast.Call(keywords=keywords):
                for number, keyword in enumerate(keywords):
                    rest = [*keywords[:number], *keywords[number + 1 :]]
                    yield (
                        f"line {line}, forgotten: {keyword.arg} of {ast.unparse(node.func)}",
                        _set(node, "keywords", rest),
                    )


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk *node*, but not into texts made for people and not into annotations."""
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns"}:
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST) and not isinstance(each, ast.JoinedStr):
                yield each
                yield from _nodes(each)


def _set(node: Any, name: str, value: Any) -> Edit:
    return lambda: setattr(node, name, value)

"""The shape of a State, read from its annotations once: what the JSON schema, inspect and the contract tests walk.

Only what has one spelling and a bound is a shape: integers with both ends, booleans, bounded bytes, text and lists, a
choice of fixed words, other States, and any of these or nothing. Everything else is refused with InternalError when the
shape is read: a bare ``int``, a float, a dict (its order would be a second spelling), a list without a maximum.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import msgspec
from msgspec import inspect

from snapkit.bits import Register
from snapkit.errors import InternalError
from snapkit.state.schema import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Base of shapes; *doc* says what the value means, where the declaration does."""

    name: ClassVar[str]
    doc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int(Shape):
    """An integer from *minimum* to *maximum*, both included; *register* names its bits, *names* its values."""

    name = "integer"
    minimum: int
    maximum: int
    register: type[Register] | None = None
    names: Mapping[int, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bool(Shape):
    """True or False."""

    name = "boolean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes(Shape):
    """A byte string of *min_len* to *max_len* bytes."""

    name = "bytes"
    min_len: int
    max_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Shape):
    """A text of *min_len* to *max_len* code points."""

    name = "text"
    min_len: int
    max_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Shape):
    """One of fixed *words*."""

    name = "choice"
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Items(Shape):
    """A list of *min_len* to *max_len* values of shape *item*."""

    name = "list"
    item: Shape
    min_len: int
    max_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Maybe(Shape):
    """*inner*, or nothing."""

    name = "optional"
    inner: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldShape:
    """A field of a State: its *shape*, and its default as JSON-able data unless it is *required* to construct one."""

    name: str
    shape: Shape
    required: bool
    default: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields(Shape):
    """A State: its fields in declared order."""

    name = "state"
    type: type[State]
    fields: tuple[FieldShape, ...]

    def field(self, name: str) -> FieldShape | None:
        """Return the field called *name*, or None."""
        return next((field for field in self.fields if field.name == name), None)


@cache
def shape_of(cls: type[State]) -> Fields:
    """Return the shape of the State class *cls*.

    Raises InternalError, naming the field, when a field is not bounded or not of a kind that States may hold.
    """
    shape = _read(inspect.type_info(cls), cls.__name__)
    assert isinstance(shape, Fields)
    return shape


def walk(shape: Shape, path: str = "") -> Iterator[tuple[str, Shape]]:
    """Give *shape* and every shape below it with its path; ``[]`` stands for the items of a list."""
    yield path, shape
    match shape:
        case Fields(fields=fields):
            for field in fields:
                yield from walk(field.shape, f"{path}.{field.name}".lstrip("."))
        case Items(item=item):
            yield from walk(item, f"{path}[]")
        case Maybe(inner=inner):
            yield from walk(inner, path)


def max_encoded_len(shape: Shape) -> int:
    """Return the length of the longest msgpack encoding of a value of *shape*, in bytes."""
    match shape:
        case Int():
            return 9
        case Bytes(max_len=length):
            return 5 + length
        case Text(max_len=length):
            return 5 + 4 * length
        case Choice(words=words):
            return 5 + max(len(word.encode()) for word in words)
        case Items(item=item, max_len=length):
            return 5 + length * max_encoded_len(item)
        case Maybe(inner=inner):
            return max_encoded_len(inner)
        case Fields(fields=fields):
            return 5 + sum(2 + len(field.name) + max_encoded_len(field.shape) for field in fields)
        case _:
            return 1


def _read(info: inspect.Type, path: str) -> Shape:
    extra: dict[str, Any] = {}
    beyond: dict[str, Any] = {}
    while isinstance(info, inspect.Metadata):
        beyond = {**(info.extra_json_schema or {}), **beyond}
        extra = {**(info.extra or {}), **extra}
        info = info.type
    doc = str(beyond.get("description", ""))
    match info:
        case inspect.IntType():
            return _read_int(info, beyond, extra, path, doc)
        case inspect.BoolType():
            return Bool(doc=doc)
        case inspect.BytesType():
            return Bytes(min_len=info.min_length or 0, max_len=_bound(info.max_length, path), doc=doc)
        case inspect.StrType(pattern=None):
            return Text(min_len=info.min_length or 0, max_len=_bound(info.max_length, path), doc=doc)
        case inspect.LiteralType():
            words = tuple(word for word in info.values if isinstance(word, str))
            if len(words) == len(info.values):
                return Choice(words=words, doc=doc)
        case inspect.ListType():
            item = _read(info.item_type, f"{path}[]")
            return Items(item=item, min_len=info.min_length or 0, max_len=_bound(info.max_length, path), doc=doc)
        case (
            inspect.UnionType(types=(inner, inspect.NoneType())) | inspect.UnionType(types=(inspect.NoneType(), inner))
        ):
            return Maybe(inner=_read(inner, path), doc=doc)
        case inspect.StructType():
            return _read_struct(info, path, doc)
    raise InternalError(f"{path} is of a type that a State cannot hold: {type(info).__name__.removesuffix('Type')}")


def _read_int(info: inspect.IntType, beyond: dict[str, Any], extra: dict[str, Any], path: str, doc: str) -> Int:
    minimum = info.ge
    maximum = info.le if info.le is not None else beyond.get("maximum")
    if minimum is None or maximum is None or any((info.gt, info.lt, info.multiple_of)):
        raise InternalError(f"{path} is an integer without a width, must be U8 to U64, I8 to I64 or have ge and le")
    return Int(minimum=minimum, maximum=maximum, register=extra.get("register"), names=extra.get("names"), doc=doc)


def _read_struct(info: inspect.StructType, path: str, doc: str) -> Fields:
    config = info.cls.__struct_config__
    if not issubclass(info.cls, State) or config.omit_defaults or config.tag is not None or info.array_like:
        raise InternalError(f"{path} is a {info.cls.__name__}, must be a State written with all its fields by name")
    fields = []
    for field in info.fields:
        below = f"{path}.{field.name}"
        if field.encode_name != field.name:
            raise InternalError(f"{below} is written as {field.encode_name}, must keep its name")
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        shape = _read(field.type, below)
        plain = None if default is msgspec.NODEFAULT else msgspec.to_builtins(default)
        fields.append(FieldShape(name=field.name, shape=shape, required=field.required, default=plain))
    return Fields(type=info.cls, fields=tuple(fields), doc=doc)


def _bound(max_length: int | None, path: str) -> int:
    if max_length is None:
        raise InternalError(f"{path} has no maximum length")
    return max_length

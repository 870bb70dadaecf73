"""Sections as plain data beside their shapes: dictionaries, lists and scalars, as msgpack gives them.

What a mutant says need not be a State: fields may be missing, integers too wide, texts where numbers belong. So mutants
are made of plain data, and the shape only tells what each place is for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from snapkit.state.shape import Fields, Items, Maybe, Shape


@dataclass(frozen=True)
class Place:
    """One value inside a section: ``holder[key]``, by its path, with the shape that it ought to have."""

    path: str
    holder: Any
    key: Any
    shape: Shape

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    def put(self, value: Any) -> None:
        """Have it be *value*."""
        self.holder[self.key] = value

    @property
    def family(self) -> str:
        """The path without its indices: what is said of one item of a list is as likely as what is said of one field."""
        return re.sub(r"\[\d+\]", "[]", self.path)


def places(holder: Any, key: Any, shape: Shape, path: str = "") -> Iterator[Place]:
    """Give the place ``holder[key]`` and every place below it; what is not of its shape has nothing below."""
    while isinstance(shape, Maybe) and holder[key] is not None:
        shape = shape.inner
    yield Place(path, holder, key, shape)
    value = holder[key]
    match shape:
        case Fields(fields=fields) if isinstance(value, dict):
            for field in fields:
                if field.name in value:
                    yield from places(value, field.name, field.shape, f"{path}.{field.name}".lstrip("."))
        case Items(item=item) if isinstance(value, list):
            for index in range(len(value)):
                yield from places(value, index, item, f"{path}[{index}]")


def leaves(data: Any) -> Iterator[tuple[Any, Any]]:
    """Give (holder, key) of every scalar in *data*."""
    items: Any = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from leaves(value)
        else:
            yield data, key

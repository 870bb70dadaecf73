"""Every place inside a State's data, and the same data with another value in one place."""

from collections.abc import Iterator
from typing import Any

from snapkit.state.shape import Fields, Items, Maybe, Shape

Path = tuple[str | int, ...]


def sites(shape: Shape, value: Any, path: Path = ()) -> Iterator[tuple[Path, Shape, Any]]:
    """Give every value inside plain data with its path and shape, containers included."""
    yield path, shape, value
    match shape:
        case Maybe(inner=inner) if value is not None:
            yield from ((below, kind, part) for below, kind, part in sites(inner, value, path) if below != path)
        case Items(item=item):
            for index, each in enumerate(value):
                yield from sites(item, each, (*path, index))
        case Fields(fields=fields):
            for field in fields:
                yield from sites(field.shape, value[field.name], (*path, field.name))


def replaced(data: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    copy: Any = dict(data) if isinstance(data, dict) else list(data)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


def spelled(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")

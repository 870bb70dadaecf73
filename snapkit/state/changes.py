"""What is different between two schema files, by field path, in the words of the law (``schemas/README.md``).

Compared is what a version promises: fields, their order, types, bounds, choices, defaults, descriptions, the bits of
registers, the longest payload. Not compared: names of the definitions, words about a State as a whole, words about a bit, and the names of
values (``x-names``), which grow with their documents.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

Node = dict[str, Any]
What = Literal["added", "dropped", "re-typed", "narrowed", "widened", "re-meant", "reordered", "defaulted"]
_BOUNDS = (("minimum", "maximum"), ("minItems", "maxItems"), ("minLength", "maxLength"), ("x-min-bytes", "x-max-bytes"))
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: *what* happened to the field at *path* (empty: the section as a whole), from *old* to *new*."""

    path: str
    what: What
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path or 'the section'} is {self.said}"

    @property
    def said(self) -> str:
        """What happened, without the place."""
        match self.what:
            case "added":
                return f"added: {self.new}"
            case "dropped":
                return f"dropped, was {self.old}"
            case _:
                return f"{self.what}, from {self.old} to {self.new}"


def names(paths: AbstractSet[str], change: Change) -> bool:
    """Return whether one of *paths* is where *change* is: the field, one that holds it, or one of those that moved."""
    if change.what == "reordered":
        return any(f"{change.path}.{field}".lstrip(".") in paths for field in change.old.split(", "))
    return not change.path or any(
        change.path == each or change.path.startswith((f"{each}.", f"{each}[")) for each in paths
    )


def compare(old: Node, new: Node) -> tuple[Change, ...]:
    """Return every difference between the schemas *old* and *new* (the content of schema files), in field order."""
    return tuple(_compare(old, new, "", old.get("$defs", {}), new.get("$defs", {})))


@dataclass(frozen=True, slots=True)
class Row:
    """One field as a schema file declares it: path, type with bounds, meaning, and the bits of a register in words."""

    path: str
    type: str
    doc: str
    bits: tuple[str, ...]


def rows_of(node: Node) -> Iterator[Row]:
    """Give every field of a schema file, ``[]`` standing for the items of a list."""
    yield from _rows(node, "", node.get("$defs", {}))


def _rows(node: Node, path: str, definitions: Node) -> Iterator[Row]:
    node = _resolved(node, definitions)
    if path:
        register = node.get("x-register", {})
        bits = tuple(
            f"[{field['msb']}:{field['lsb']}] {field['name']}: {field['doc']}"
            if field["msb"] != field["lsb"]
            else f"[{field['lsb']}] {field['name']}: {field['doc']}"
            for field in register.get("fields", [])
        )
        yield Row(path, _said(node), node.get("description") or register.get("ref", ""), bits)
    for name, below in node.get("properties", {}).items():
        yield from _rows(below, f"{path}.{name}".lstrip("."), definitions)
    if "items" in node:
        yield from _rows(node["items"], f"{path}[]", definitions)


def _resolved(node: Node, definitions: Node) -> Node:
    """Follow a reference, and see through ``anyOf [..., null]``, which `_type` says in words."""
    if "$ref" in node:
        outer = {key: value for key, value in node.items() if key != "$ref"}
        target: Node = definitions[node["$ref"].rpartition("/")[2]]
        # words about the State belong to the State; those beside the reference are the field's
        node = {**{key: value for key, value in target.items() if key != "description"}, **outer}
    if "anyOf" in node:
        outer = {key: value for key, value in node.items() if key != "anyOf"}
        node = {**_resolved(node["anyOf"][0], definitions), **outer, "optional": True}
    return node


def _type(node: Node) -> str:
    name = "bytes" if node.get("x-msgpack") == "bin" else str(node.get("type"))
    return f"{name} or null" if node.get("optional") else name


def _said(node: Node) -> str:
    """Write a type with its bounds, or its words."""
    if "enum" in node:
        return " | ".join(node["enum"])
    bounds = [(node[low], node[high]) for low, high in _BOUNDS if high in node]
    return " ".join(
        [
            _type(node),
            *(
                f"{low}" if low == high else f"{low}..{high:#x}" if high > 0xFFFF else f"{low}..{high}"
                for low, high in bounds
            ),
        ]
    )


def _compare(old: Node, new: Node, path: str, old_defs: Node, new_defs: Node) -> Iterator[Change]:
    old, new = _resolved(old, old_defs), _resolved(new, new_defs)
    if _type(old) != _type(new):
        yield Change(path, "re-typed", _said(old), _said(new))
        return
    yield from _compare_values(old, new, path)
    yield from _compare_meaning(old, new, path)
    if "properties" in old:
        yield from _compare_fields(old, new, path, old_defs, new_defs)
    if "items" in old:
        yield from _compare(old["items"], new["items"], f"{path}[]", old_defs, new_defs)


def _compare_values(old: Node, new: Node, path: str) -> Iterator[Change]:
    """Compare what a value may be: bounds, choices, the default."""
    for low, high in _BOUNDS:
        if high not in old or high not in new:
            continue
        before, after = (old.get(low, 0), old[high]), (new.get(low, 0), new[high])
        if before == after:
            continue
        narrowed = after[0] > before[0] or after[1] < before[1]
        yield Change(
            path, "narrowed" if narrowed else "widened", f"{before[0]}..{before[1]}", f"{after[0]}..{after[1]}"
        )
    words, now = old.get("enum", []), new.get("enum", [])
    if words != now:
        yield Change(path, "widened" if set(words) < set(now) else "narrowed", ", ".join(words), ", ".join(now))
    if old.get("default", _ABSENT) != new.get("default", _ABSENT):
        yield Change(path, "defaulted", str(old.get("default", "none")), str(new.get("default", "none")))
    if not path and old.get("x-required") != new.get("x-required"):
        yield Change(path, "re-meant", f"required {old.get('x-required')}", f"required {new.get('x-required')}")


def _compare_meaning(old: Node, new: Node, path: str) -> Iterator[Change]:
    """Compare what a value means: its description and its bits."""
    before, after = old.get("description", ""), new.get("description", "")
    if path and after and before.split() != after.split():
        yield Change(path, "re-meant", repr(before), repr(after))
    if "x-register" in old or "x-register" in new:
        bits, now = _bits(old), _bits(new)
        for name in [*bits, *(name for name in now if name not in bits)]:
            if bits.get(name) != now.get(name):
                what: What = "re-meant" if name in bits else "added"
                yield Change(f"{path}.{name}", what, bits.get(name, ""), now.get(name, "no such bits"))


def _bits(node: Node) -> dict[str, str]:
    fields = node.get("x-register", {}).get("fields", [])
    return {field["name"]: f"bits {field['msb']}:{field['lsb']}" for field in fields}


def _compare_fields(old: Node, new: Node, path: str, old_defs: Node, new_defs: Node) -> Iterator[Change]:
    before, after = old["properties"], new["properties"]
    for name in before:
        below = f"{path}.{name}".lstrip(".")
        if name in after:
            yield from _compare(before[name], after[name], below, old_defs, new_defs)
        else:
            yield Change(below, "dropped", _said(_resolved(before[name], old_defs)), "")
    for name in after:
        if name not in before:
            yield Change(f"{path}.{name}".lstrip("."), "added", "", _said(_resolved(after[name], new_defs)))
    common = [name for name in old["x-order"] if name in after], [name for name in new["x-order"] if name in before]
    if common[0] != common[1]:
        yield Change(path, "reordered", ", ".join(common[0]), ", ".join(common[1]))

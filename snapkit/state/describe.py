"""A State class as a JSON Schema file: what ``schemas/<kind>/<version>.json`` holds.

The files are for whoever has a snapshot and not the program that wrote it: with one of them and any msgpack library a
section can be read, every field named, bounded and, where it is a register, taken apart into its bits. JSON Schema
2020-12, with these additions:

- ``x-kind``, ``x-version``: which section; ``x-max-bytes``: the longest payload; ``x-required``: a reader that does not
  know this version must refuse the file;
- ``x-order`` in every object: its fields in the order in which they are written; all of them are always written;
- ``x-msgpack: bin`` marks a byte string, with ``x-min-bytes`` and ``x-max-bytes`` (JSON shows one as base64 text);
- ``x-register`` takes an integer apart: per field its name, its highest and lowest bit, its meaning;
- ``x-names`` names values of an integer, by the value in decimal.

A field is described by the `doc` in its annotation or by the text below its declaration. That text says what the field
means, so it is part of what a released version promises; the words about a State as a whole (its docstring) and about a
bit may be corrected later, and the released file keeps the old ones. `snapkit.state.changes` knows the difference.
"""

import ast
from collections.abc import Iterator
from inspect import cleandoc, getsource
from itertools import pairwise
from textwrap import dedent
from typing import Any

import msgspec

from snapkit.errors import InternalError
from snapkit.state.releases import releases, schema_file
from snapkit.state.schema import KINDS, Schema, State, current
from snapkit.state.shape import Bool, Bytes, Choice, Fields, Int, Items, Maybe, Shape, Text, shape_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Node = dict[str, Any]
Types = dict[str, type[State]]


def describe(schema: Schema) -> Node:
    """Return the JSON Schema of one version of a kind, as data."""
    types: Types = {}
    definitions: Node = {}
    top = _struct(shape_of(schema.type), definitions, types)
    return {
        "$schema": DIALECT,
        "title": f"{schema.kind} version {schema.version}",
        "x-kind": schema.kind,
        "x-version": schema.version,
        "x-required": schema.required,
        "x-max-bytes": schema.max_len,
        **top,
        "$defs": definitions,
    }


def render(schema: Schema) -> bytes:
    """Return the content of the schema file of one version of a kind; the same declaration gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(describe(schema)), indent=2) + b"\n"


def committed(schema: Schema) -> Node:
    """Return the JSON Schema of a version as its file has it, or from the declaration where there is no file."""
    content = schema_file(f"{schema.kind}/{schema.version}.json")
    if content is None:
        return describe(schema)
    node: Node = msgspec.json.decode(content)
    return node


def stale() -> Iterator[tuple[str, bytes]]:
    """Give path below ``schemas`` and wanted content of each file that is not what the declarations say.

    Only what the release being worked on writes: a released file is never rewritten.
    """
    for kind in KINDS:
        schema = current(kind)
        name, content = f"{kind}/{schema.version}.json", render(schema)
        if not released_with(schema) and schema_file(name) != content:
            yield name, content


def released_with(schema: Schema) -> str:
    """Return the first release that was released with this version of the kind, or an empty text."""
    wrote = (each.release for each in releases() if each.released and each.kinds.get(schema.kind) == schema.version)
    return next(wrote, "")


def _node(shape: Shape, definitions: Node, types: Types) -> Node:
    """Describe one value; a State below goes to *definitions* and is referred to."""
    node: Node
    match shape:
        case Int(minimum=minimum, maximum=maximum, register=register, names=names):
            node = {"type": "integer", "minimum": minimum, "maximum": maximum}
            if register is not None:
                node["x-register"] = register.describe()
            if names is not None:
                node["x-names"] = {str(value): name for value, name in sorted(names.items())}
        case Bool():
            node = {"type": "boolean"}
        case Bytes(min_len=low, max_len=high):
            node = {"type": "string", "contentEncoding": "base64", "x-msgpack": "bin"}
            node |= {"x-min-bytes": low, "x-max-bytes": high}
        case Text(min_len=low, max_len=high):
            node = {"type": "string", "minLength": low, "maxLength": high}
        case Choice(words=words):
            node = {"type": "string", "enum": list(words)}
        case Items(item=item, min_len=low, max_len=high):
            node = {"type": "array", "minItems": low, "maxItems": high, "items": _node(item, definitions, types)}
        case Maybe(inner=inner):
            node = {"anyOf": [_node(inner, definitions, types), {"type": "null"}]}
        case Fields():
            name = shape.type.__name__
            if types.setdefault(name, shape.type) is not shape.type:
                raise InternalError(f"two States of one schema are called {name}")
            if name not in definitions:
                definitions[name] = {}  # holds its place while its own parts are described
                definitions[name] = _struct(shape, definitions, types)
            node = {"$ref": f"#/$defs/{name}"}
        case _:
            raise AssertionError(shape)
    return {"description": shape.doc, **node} if shape.doc else node


def _struct(shape: Fields, definitions: Node, types: Types) -> Node:
    names = [field.name for field in shape.fields]
    docs = _texts_below(shape.type)
    properties = {}
    for field in shape.fields:
        node = _node(field.shape, definitions, types)
        if field.name in docs and "description" not in node:
            node = {"description": docs[field.name], **node}
        properties[field.name] = node if field.required else {**node, "default": field.default}
    return {
        "description": cleandoc(shape.type.__doc__ or ""),
        "type": "object",
        "x-order": names,
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }


def _texts_below(cls: type[State]) -> dict[str, str]:
    """Return the text below each field's declaration, which Python keeps only in the source."""
    try:
        declaration = ast.parse(dedent(getsource(cls))).body[0]
    except (OSError, TypeError):  # made at run time, or installed without its source
        return {}
    assert isinstance(declaration, ast.ClassDef)
    texts = {}
    for field, text in pairwise(declaration.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                texts[name] = cleandoc(words)
    return texts

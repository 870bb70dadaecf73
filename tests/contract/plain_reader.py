"""A reader of sections that knows nothing of snapkit: a schema file, and msgpack without types.

What somebody would write who finds a snapshot in twenty years. It serves to show that the files in ``schemas`` say enough:
it names every field, checks every bound, takes registers apart, and writes the same bytes again.

    python plain_reader.py SCHEMAS FILE...      {FILE: {"kind/instance": {path: value}}} as JSON, byte strings in hexadecimal

Where the manifest of a file lies is in the README's table of the preamble; it is JSON, and each of its entries says which
schema file describes the section.
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec.msgpack

KNOWN = {
    "$schema", "$ref", "$defs", "title", "description", "type", "properties", "required", "additionalProperties", "items",
    "minItems", "maxItems", "minimum", "maximum", "minLength", "maxLength", "enum", "anyOf", "default", "contentEncoding",
    "x-kind", "x-version", "x-required", "x-max-bytes", "x-min-bytes", "x-order", "x-msgpack", "x-register", "x-names",
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {"integer": (int,), "boolean": (bool,), "string": (str,), "array": (list,), "object": (dict,), "null": (type(None),)}  # fmt: skip


MANIFEST_AT = 200  # offset and length, 8 bytes each


class WrongPayloadError(Exception):
    """The payload is not what the schema file says."""


class Reader:
    """Reads payloads by one schema file."""

    def __init__(self, schema_file: bytes) -> None:
        self.schema = json.loads(schema_file)

    def read(self, payload: bytes) -> dict[str, Any]:
        """Return every leaf of *payload* by its path."""
        require(len(payload) <= self.schema["x-max-bytes"], "", "is too long")
        leaves: dict[str, Any] = {}
        self._read(self.schema, msgspec.msgpack.decode(payload), "", leaves)
        return leaves

    def write(self, leaves: dict[str, Any]) -> bytes:
        """Return the payload whose leaves `read` gave."""
        top: dict[str, Any] = {}
        for path, value in leaves.items():
            *parts, last = path.replace("[", ".[").lstrip(".").split(".")
            here: Any = top
            for part, following in zip(parts, [*parts, last][1:], strict=True):
                below: Any = [] if following.startswith("[") else {}
                here = put(here, part, below)
            put(here, last, value)
        return msgspec.msgpack.encode(top)

    def _read(self, node: dict[str, Any], value: Any, path: str, leaves: dict[str, Any]) -> None:
        require(set(node) <= KNOWN, path, "is described in words that no reader knows")
        if "$ref" in node:
            self._read(self.schema["$defs"][node["$ref"].removeprefix("#/$defs/")], value, path, leaves)
        elif "anyOf" in node:
            self._read(node["anyOf"][value is None], value, path, leaves)
        elif node.get("x-msgpack") == "bin":
            require(isinstance(value, bytes), path, "is no byte string")
            require(node["x-min-bytes"] <= len(value) <= node["x-max-bytes"], path, "has a wrong length")
            leaves[path] = value
        else:
            require(type(value) in TYPES[node["type"]], path, f"is no {node['type']}")
            getattr(self, f"_read_{node['type']}")(node, value, path, leaves)

    def _read_object(self, node: dict[str, Any], value: Any, path: str, leaves: dict[str, Any]) -> None:
        require(list(value) == node["x-order"], path, "has other fields, or in another order")
        require(set(node["required"]) == set(value) == set(node["properties"]), path, "has other fields")
        for name, below in node["properties"].items():
            self._read(below, value[name], f"{path}.{name}".lstrip("."), leaves)

    def _read_array(self, node: dict[str, Any], value: Any, path: str, leaves: dict[str, Any]) -> None:
        require(node["minItems"] <= len(value) <= node["maxItems"], path, "has a wrong number of items")
        if not value:
            leaves[path] = []
        for index, item in enumerate(value):
            self._read(node["items"], item, f"{path}[{index}]", leaves)

    def _read_integer(self, node: dict[str, Any], value: Any, path: str, leaves: dict[str, Any]) -> None:
        require(node["minimum"] <= value <= node["maximum"], path, "is out of bounds")
        for bits in node.get("x-register", {}).get("fields", []):
            mask = (1 << (bits["msb"] - bits["lsb"] + 1)) - 1
            require(bits["name"] and 0 <= value >> bits["lsb"] & mask <= mask, path, "has no such bits")
        leaves[path] = value

    def _read_string(self, node: dict[str, Any], value: Any, path: str, leaves: dict[str, Any]) -> None:
        if "enum" in node:
            require(value in node["enum"], path, "is no known word")
        else:
            require(node["minLength"] <= len(value) <= node["maxLength"], path, "has a wrong length")
        leaves[path] = value

    def _read_boolean(self, node: dict[str, Any], value: Any, path: str, leaves: dict[str, Any]) -> None:
        leaves[path] = value

    def _read_null(self, node: dict[str, Any], value: Any, path: str, leaves: dict[str, Any]) -> None:
        leaves[path] = None


def require(condition: object, path: str, what: str) -> None:
    if not condition:
        raise WrongPayloadError(f"{path or 'the section'} {what}")


def put(here: Any, part: str, value: Any) -> Any:
    """Put *value* under *part* unless something is there already; return what is there."""
    if part.startswith("["):
        if int(part[1:-1]) == len(here):
            here.append(value)
        return here[int(part[1:-1])]
    return here.setdefault(part, value)


def read_file(path: Path, schemas: Path) -> dict[str, dict[str, Any]]:
    """Return every leaf of every section of the snapshot file at *path*."""
    content = path.read_bytes()
    offset, length = struct.unpack_from("<QQ", content, MANIFEST_AT)
    sections: dict[str, dict[str, Any]] = {}
    for entry in json.loads(content[offset : offset + length])["sections"]:
        payload = content[entry["offset"] : entry["offset"] + entry["stored_length"]]
        if entry["codec"] == "zstd":
            import zstandard

            payload = zstandard.ZstdDecompressor().decompress(payload, max_output_size=entry["length"])
        reader = Reader((schemas / entry["kind"] / f"{entry['version']}.json").read_bytes())
        leaves = reader.read(payload)
        require(reader.write(leaves) == payload, entry["kind"], "is not written as it was read")
        sections[f"{entry['kind']}/{entry['instance']}"] = leaves
    return sections


if __name__ == "__main__":
    folder, *files = map(Path, sys.argv[1:])
    print(json.dumps({str(file): read_file(file, folder) for file in files}, default=bytes.hex))

"""A section as JSON, for people and scripts: `snapkit decode` gives it, `snapkit encode` takes it.

``{"kind": "pit", "instance": "0", "version": 1, "state": {...}}``; byte strings are base64 text. It says which schema it
is of, so that it can be read without the file that it came from.
"""

from typing import Any

import msgspec

from snapkit.errors import ConfigError, ImageError
from snapkit.state.codec import from_data, to_data
from snapkit.state.schema import KINDS, SectionId, State, schema_of, versions_of


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    kind: str
    instance: str
    version: int
    state: dict[str, Any]


def to_document(section: SectionId, state: State) -> dict[str, Any]:
    """Return *state* as JSON-able data that says what it is."""
    version = schema_of(state).version
    return {"kind": section.kind, "instance": section.instance, "version": version, "state": to_data(state)}


def from_document(content: bytes) -> tuple[SectionId, State]:
    """Read a section from JSON.

    Raises ConfigError, naming the field, for what is no such section: an operator wrote it.
    """
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"this is no section as `snapkit decode` gives it: {error}") from error
    versions = versions_of(document.kind) if document.kind in KINDS else {}
    schema = versions.get(document.version)
    if schema is None:
        known = f"versions {', '.join(map(str, versions))}" if versions else "no such kind"
        raise ConfigError(f"{document.kind} version {document.version} is unknown, there is {known}")
    section = SectionId(document.kind, document.instance)
    try:
        return section, from_data(schema, document.state, where=str(section))
    except ImageError as error:
        raise ConfigError(str(error.args[0]), findings=error.findings) from error

"""State to bytes and back: msgpack, canonical, strict; and JSON-able data to State, for people who edit.

`encode` gives a msgpack map keyed by field name, smallest encodings, declared order. `decode` accepts exactly what
`encode` gives: a payload that decodes but would encode differently is refused, so that a section has one spelling.

Surprises: msgspec names the place of a bad value (``$.queues[0].size``) but not the value, so the value is looked up
again, on the failing path only. An integer above 64 bits passes a U64 that comes from anywhere but msgpack, and is met
when it is encoded, where msgspec names no place: the place is searched for then.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from snapkit.errors import Finding, ImageError
from snapkit.state.schema import Schema, SectionId, State, schema_of

S = TypeVar("S", bound=State)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[State], msgspec.msgpack.Decoder[Any]] = {}  # making one walks the whole type
_handed_over: dict[int, State] = {}  # by identity; holding them keeps an identity from being used again
_PLAIN = (bool, bytes, bytearray, memoryview, str, type(None))


def decoder_of(cls: type[S]) -> Callable[[bytes], S]:
    """Return what decodes a payload that went through `decode` before, and asks nothing more of it."""
    return _decoder(cls).decode


def _decoder(cls: type[S]) -> msgspec.msgpack.Decoder[S]:
    made = _decoders.get(cls)
    if made is None:
        made = _decoders[cls] = msgspec.msgpack.Decoder(cls)
    return made


def encode(state: State) -> bytes:
    """Encode *state* as its section payload."""
    return _encoder.encode(state)


def decode(schema: Schema, payload: bytes, *, where: str | SectionId) -> State:
    """Decode the *payload* of the section *where*.

    Raises ImageError naming the section and the field when it is too long, not msgpack, out of bounds, or not
    in canonical form.
    """
    if len(payload) > schema.max_len:
        raise ImageError(f"section {where} has {len(payload)} bytes, {schema.kind} allows {schema.max_len}")
    try:
        state = _decoder(schema.type).decode(payload)
    except msgspec.ValidationError as error:
        raise _refused(error, str(where), f"section {where} version {schema.version}", _plain(payload)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImageError(f"section {where} version {schema.version}: {error}") from error
    if (encoded := _encoder.encode(state)) != payload:
        reason = _spelling(_plain(payload), _plain(encoded), str(where)) or "a value is spelled longer than needed"
        raise ImageError(f"section {where} version {schema.version} is not in canonical form: {reason}")
    return state


def checked(state: S, *, where: str = "") -> S:
    """Return a validated, detached copy of *state*; *where* names it in errors, by default its kind.

    Raises ImageError naming the kind (or *where*) and the field of the first value out of its bounds.
    """
    cls = type(state)
    try:
        payload = _encoder.encode(state)
    except (OverflowError, TypeError) as error:
        where = where or schema_of(state).kind
        path, value, expected = _unencodable(state, "") or ("", type(state).__name__, "plain data")
        finding = Finding(where, path, _shown(value), expected)
        raise ImageError(f"{where} cannot be encoded", findings=[finding]) from error
    try:
        return _decoder(cls).decode(payload)
    except msgspec.ValidationError as error:
        where = where or schema_of(state).kind
        raise _refused(error, where, where, _plain(payload)) from error


class HandingOver:
    """Let each of *states* be `adopted` as it is, once, inside the with block.

    For who decoded and checked them just now, and will not look at them again: whoever adopts a State changes it.
    """

    __slots__ = ("_states",)

    def __init__(self, states: Iterable[State]) -> None:
        self._states = {id(state): state for state in states}

    def __enter__(self) -> None:
        _handed_over.update(self._states)

    def __exit__(self, *_: object) -> None:
        for key in _handed_over.keys() & self._states.keys():
            _handed_over.pop(key, None)


def adopted(state: S, invariants: Callable[[S, str], list[Finding]] | None = None, *, where: str = "") -> S:
    """Return *state* for a part that is constructed from it: itself if it is handed over, else a `checked` copy.

    Raises ImageError naming the kind (or *where*) for a value out of bounds or against *invariants*; what is handed
    over has been through both.
    """
    if _handed_over.pop(id(state), None) is not None:
        return state
    kept = checked(state, where=where)
    if invariants is not None:
        where = where or schema_of(state).kind
        if findings := invariants(kept, where):
            raise ImageError(f"the state of {where} is refused", findings=findings)
    return kept


def to_data(state: State) -> Any:
    """Return *state* as JSON-able data, fields in declared order, byte strings as base64 text."""
    return msgspec.to_builtins(state)


def from_data(schema: Schema, fields: object, *, where: str) -> State:
    """Build a State from what `to_data` gives.

    Raises ImageError naming the section and the field, also for an integer wider than 64 bits.
    """
    try:
        state = msgspec.convert(fields, schema.type)
    except msgspec.ValidationError as error:
        raise _refused(error, where, f"{where} version {schema.version}", fields) from error
    return checked(state, where=where)


def _plain(payload: bytes) -> Any:
    """Decode without a type, to look up what an error is about; nothing where even that fails."""
    try:
        return msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return None


def _refused(error: msgspec.ValidationError, where: str, what: str, fields: Any) -> ImageError:
    """Turn msgspec's words into a finding with the path, and the value that stands there in *fields*."""
    text, _, place = str(error).partition(" - at `$")
    path = place.removesuffix("`").removeprefix(".")
    value = fields
    try:
        for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
            value = value[int(index)] if index else value[name]
    except (KeyError, IndexError, TypeError):
        value = "?"
    field = text.rpartition(" field ")[2].strip("`")
    below = f"{path}.{field}".lstrip(".")
    if text.startswith("Object missing"):
        finding = Finding(where, below, "missing", "present")
    elif text.startswith("Object contains unknown"):
        finding = Finding(where, below, "there", "absent: there is no such field")
    elif text.startswith("Expected "):
        wanted = text.removeprefix("Expected ").partition(", got ")[0].replace("`", "")
        finding = Finding(where, path, _shown(value), wanted)
    else:
        finding = Finding(where, path, _shown(value), f"valid: {text[:1].lower()}{text[1:]}")
    return ImageError(f"{what} is refused", findings=[finding])


def _shown(value: object) -> str:
    """Write *value* for an error message, short."""
    if isinstance(value, (list, tuple, dict, bytes, str)) and len(value) > 16:
        return f"{type(value).__name__} of length {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unencodable(value: object, path: str) -> tuple[str, object, str] | None:
    """Find the first part of *value* that msgpack cannot hold: its path, the value, and what it must be."""
    if isinstance(value, msgspec.Struct):
        below = [(f"{path}.{name}".lstrip("."), getattr(value, name)) for name in value.__struct_fields__]
    elif isinstance(value, (list, tuple)):
        below = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif type(value) is int:
        fits = -(1 << 63) <= value < 1 << 64
        return None if fits else (path, value, "an integer of 64 bits at most")
    elif isinstance(value, _PLAIN):
        return None
    else:
        return path, value, f"plain data, not {type(value).__name__}"
    return next((found for name, item in below if (found := _unencodable(item, name))), None)


def _spelling(there: Any, canonical: Any, path: str) -> str:
    """Say where a payload departs from its canonical form: a field left out, out of order, or spelled longer."""
    if isinstance(canonical, dict):
        if list(there) != list(canonical):
            missing = [name for name in canonical if name not in there]
            return f"{path} lacks {', '.join(missing)}" if missing else f"{path} has its fields out of order"
        pairs = [(there[name], canonical[name], f"{path}.{name}") for name in canonical]
    elif isinstance(canonical, list):
        pairs = [(*two, f"{path}[{index}]") for index, two in enumerate(zip(there, canonical, strict=False))]
    else:
        return ""
    return next((said for pair in pairs if (said := _spelling(*pair))), "")

"""What a machine's sections cost to encode, and to decode and check, against msgspec on the same content as plain dicts."""

import msgspec

from snapkit.restore.check import check
from snapkit.restore.image import Image
from snapkit.state import codec
from snapkit.state.schema import schema_of
from tests.bench.figures import Cell, Figures, medians, microseconds
from tests.bench.machines import Snapshots

ROUNDS = 300
MIB_OF_RAM = 128
DEVICES = 10


def test_encode_and_decode_with_check_against_plain_msgpack(snapshots: Snapshots, figures: Figures):
    with Image.open(snapshots.driven(MIB_OF_RAM, DEVICES)) as image:
        states, pages = image.sections().states, image.memory
        payloads = [(schema_of(state), codec.encode(state), str(section)) for section, state in states.items()]
        plain = {str(section): msgspec.to_builtins(state, builtin_types=(bytes,)) for section, state in states.items()}
        packed = msgspec.msgpack.encode(plain)
        assert sum(len(payload) for _, payload, _ in payloads) < len(packed)  # the same content, and the names

        def encode() -> None:
            for state in states.values():
                codec.encode(state)

        def decode() -> None:
            decoded = [codec.decode(schema, payload, where=where) for schema, payload, where in payloads]
            assert not check(dict(zip(states, decoded, strict=True)), pages)

        ours, plain_encode, decode_check, plain_decode = medians(
            ROUNDS,
            lambda: microseconds(encode),
            lambda: microseconds(lambda: msgspec.msgpack.encode(plain)),
            lambda: microseconds(decode),
            lambda: microseconds(lambda: msgspec.msgpack.decode(packed)),
        )
    rows: list[dict[str, Cell]] = [
        {"what": what, "us": took, "msgpack us": peer, "ratio": took / peer, "at most wanted": wanted}
        for what, took, peer, wanted in (
            ("encode", ours, plain_encode, 3.0),
            ("decode and check", decode_check, plain_decode, 10.0),
        )
    ]
    title = f"{len(states)} sections of a machine with {DEVICES} devices, {len(packed)} bytes; medians of {ROUNDS}"
    figures.show("codec", title, rows)

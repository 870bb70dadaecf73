"""What converting a machine costs against decoding it once."""

from itertools import pairwise

from snapkit.restore.image import Image
from snapkit.state import codec
from snapkit.state.converters import convert_sections
from snapkit.state.releases import main_line, releases
from snapkit.state.schema import schema_of
from tests.bench.figures import Cell, Figures, medians, microseconds
from tests.bench.machines import Snapshots

ROUNDS = 100
MIB_OF_RAM = 128
DEVICES = 10


def test_converting_through_all_releases_against_decoding_once(snapshots: Snapshots, figures: Figures):
    line = main_line(releases())
    every = [release.release for release in line]
    with Image.open(snapshots.driven(MIB_OF_RAM, DEVICES)) as image:
        states, newest = image.sections().states, image.preamble.release
        payloads = [(schema_of(state), codec.encode(state), section) for section, state in states.items()]
    # The first release has no devices: nothing can be carried there. Down to the oldest that can hold it, and up again.
    oldest = every[1]
    kept = {name: state for name, state in states.items() if name.kind in line[0].kinds}
    there = convert_sections(states, newest, oldest)
    assert {name: codec.encode(state) for name, state in convert_sections(there, oldest, newest).items()} == {
        name: codec.encode(state) for name, state in states.items()
    }

    def decode() -> None:
        for schema, payload, where in payloads:
            codec.decode(schema, payload, where=where)

    def down_and_up() -> None:
        convert_sections(convert_sections(states, newest, oldest), oldest, newest)

    once, whole, up_from_the_first = medians(
        ROUNDS,
        lambda: microseconds(decode),
        lambda: microseconds(down_and_up),
        lambda: microseconds(lambda: convert_sections(kept, every[0], newest)),
    )
    steps = len(list(pairwise(every[1:])))
    rows: list[dict[str, Cell]] = [
        {"what": "decode once", "us": once, "to decode": 1.0, "at most wanted": "-"},
        {"what": f"{newest} to {oldest} and back", "us": whole, "to decode": whole / once, "at most wanted": 5.0},
        {
            "what": f"{every[0]} to {newest}, no devices",
            "us": up_from_the_first,
            "to decode": up_from_the_first / once,
            "at most wanted": 5.0,
        },
    ]
    title = f"Converting {len(states)} sections of a machine with {DEVICES} devices, {steps} steps each way"
    figures.show("convert", f"{title}; medians of {ROUNDS}", rows)

"""The line virtio-pci-preview-1 to -5: up and down again is equal or refused, and what contradicts itself is refused."""

from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from snapkit.errors import ImageError
from snapkit.state.codec import checked, encode
from snapkit.state.converters import Refusal, Sections, convert_sections, kind_steps
from snapkit.state.interrupt_table import LineState, RouteState
from snapkit.state.preview_device_manager import TakenState
from snapkit.state.preview_msi import MsiVectorState, PreviewMsiState
from snapkit.state.preview_net import ParsedChainState, PreviewNetState1
from snapkit.state.releases import current_release, main_line, release_named, releases
from snapkit.state.schema import SectionId, State, current, schema_of, versions_of
from snapkit.state.shape import shape_of
from snapkit.state.virtio_net import VirtioNetState
from tests.contract.generate import random_value, strategy
from tests.restore.device_machine import States, busy_machine

LINE = [f"virtio-pci-preview-{number}" for number in range(1, 6)]
JOINED = "0.2.0"
WAY = [*LINE, JOINED]
CLAIMS, MANAGER, TABLE = (
    SectionId(kind, "0") for kind in ("resource-allocator", "preview-device-manager", "interrupt-table")
)
Seed = st.integers(0, 1 << 32)


def machine(release: str) -> States:
    """A machine at work as *release* of the line, or the one that it joins, writes it: no vsock, and no balloon."""
    states = {section: state for section, state in busy_machine("pci").items() if section.instance not in {"v0", "b"}}
    gone = ("pci-function/v0", "pci-msix/v0", "pci-function/b", "pci-msix/b")
    states[CLAIMS].claims = [claim for claim in states[CLAIMS].claims if claim.owner not in gone]
    states[TABLE].routes = [route for route in states[TABLE].routes if route.owner not in gone]
    return dict(convert_sections(states, JOINED, release))


def told(states: Sections, start: str, end: str) -> set[str]:
    """Return what is named when *states* are refused on their way from *start* to *end*."""
    with pytest.raises((Refusal, ImageError)) as caught:
        convert_sections(states, start, end)
    return {f"{finding.component}.{finding.path}".rstrip(".") for finding in caught.value.findings}


def encoded(states: Sections) -> dict[SectionId, bytes]:
    return {section: encode(state) for section, state in states.items()}


# The line


def test_line_is_five_releases_that_lead_to_the_main_one():
    line = [each for each in releases() if each not in main_line(releases())]
    assert [each.release for each in line] == LINE
    assert [each.joins for each in line] == [None, None, None, None, JOINED]
    assert all(each.released for each in line)


def test_a_machine_of_the_main_line_goes_down_the_whole_line_and_comes_back():
    before = machine(JOINED)
    down = convert_sections(before, JOINED, LINE[0])
    assert {section.kind for section in down} == set(release_named(LINE[0]).kinds)
    assert convert_sections(down, LINE[0], JOINED) == before
    assert convert_sections(down, LINE[0], current_release().release) == convert_sections(
        before, JOINED, current_release().release
    )


def test_a_machine_of_the_line_is_refused_by_a_release_before_the_one_that_it_joins():
    assert {"virtio-net/eth0", "pci-function/root"} <= told(machine(LINE[0]), LINE[0], "0.1.0")


# Up and down


@settings(max_examples=200, deadline=None)
@given(step=st.sampled_from(list(zip(LINE, WAY[1:], strict=True))), seed=Seed)
def test_up_after_down_is_equal_or_down_is_refused(step: tuple[str, str], seed: int):
    older, newer = step
    before, rng = machine(newer), Random(seed)
    for section in rng.sample(sorted(before), rng.randint(0, 3)):
        before[section] = random_value(shape_of(schema_of(before[section]).type), rng)
    try:
        down = convert_sections(before, newer, older)
    except Refusal:
        return
    assert encoded(convert_sections(down, older, newer)) == encoded(before)


@settings(max_examples=200, deadline=None)
@given(release=st.sampled_from(LINE), seed=Seed)
def test_any_sections_come_up_or_are_refused_by_name(release: str, seed: int):
    rng = Random(seed)
    before: dict[SectionId, State] = machine(release)
    kinds = release_named(release).kinds
    for kind in rng.sample(sorted(kinds), 4):
        section = SectionId(kind, rng.choice(["root", "eth0", "rng", "0", "7"]))
        before[section] = random_value(shape_of(versions_of(kind)[kinds[kind]].type), rng)
    kept = encoded(before)
    with suppress(ImageError):
        convert_sections(before, release, JOINED)
    assert encoded(before) == kept, "input is left alone"


@settings(max_examples=100, deadline=None)
@given(card=strategy(shape_of(current("virtio-net").type)), parsed=st.integers(0, 256))
def test_flushing_gives_back_exactly_what_was_parsed(card: Any, parsed: int):
    (flush,) = (step.run for step in kind_steps("preview-net") if step.from_version == 1)
    chains = [ParsedChainState(head=number, length=1528) for number in range(parsed)]
    after: Any = flush(PreviewNetState1(activated=True, device=card, parsed=chains))
    assert isinstance(after.device, VirtioNetState)
    assert (after.device.queues[0].next_avail + parsed) & 0xFFFF == card.queues[0].next_avail
    assert after.device.queues[1:] == card.queues[1:]
    assert replace(after.device, queues=card.queues) == card
    assert checked(after) == after


def test_flushing_rolls_back_over_the_end_of_the_index():
    (flush,) = (step.run for step in kind_steps("preview-net") if step.from_version == 1)
    card: Any = machine(JOINED)[SectionId("virtio-net", "eth0")]
    card.queues[0].next_avail = 2
    chains = [ParsedChainState(head=head, length=1528) for head in (7, 1, 4)]
    after: Any = flush(PreviewNetState1(activated=False, device=card, parsed=chains))
    assert after.device.queues[0].next_avail == 0xFFFF
    assert not after.activated


# What contradicts itself


def test_a_device_that_its_transport_did_not_activate_is_refused():
    states = machine(LINE[1])
    states[SectionId("preview-rng", "rng")].activated = False
    states[SectionId("virtio-pci", "eth0")].device_status = 0x0B  # without DRIVER_OK
    del states[SectionId("virtio-pci", "root")]
    assert told(states, LINE[1], LINE[2]) == {
        f"preview-{name}.activated" for name in ("rng/rng", "net/eth0", "block/root")
    }


def test_a_range_that_nobody_has_is_refused():
    states = machine(LINE[2])
    states[MANAGER].pools[1].taken.append(TakenState(start=4000, length=1))
    states[MANAGER].pools[3].taken[0].length += 0x1000
    assert told(states, LINE[2], LINE[3]) == {
        "preview-device-manager/0.pools[1].taken[7]",
        "preview-device-manager/0.pools[3].taken[0]",
    }


def test_a_claim_whose_owner_the_devices_do_not_tell_of_cannot_go_down():
    states = machine(LINE[3])
    states[CLAIMS].claims[0].owner = "vmgenid/1"
    states[CLAIMS].claims[1], states[CLAIMS].claims[2] = states[CLAIMS].claims[2], states[CLAIMS].claims[1]
    assert told(states, LINE[3], LINE[2]) == {"resource-allocator/0.claims[0].owner", "resource-allocator/0.claims[2]"}


@pytest.mark.parametrize("numbers", [(0, 0), (1, 2), (0, 2)])
def test_a_map_with_a_vector_missing_or_twice_is_refused(numbers: tuple[int, int]):
    states = machine(LINE[3])
    vectors = [
        MsiVectorState(vector=number, gsi=24 + place, address=0, data=0, masked=True, pending=False)
        for place, number in enumerate(numbers)
    ]
    states[SectionId("preview-msi", "rng")] = PreviewMsiState(vectors=vectors)
    assert told(states, LINE[3], LINE[4]) == {"preview-msi/rng.vectors"}


def test_a_register_in_a_file_that_has_none_is_refused():
    states = machine(LINE[3])
    function = states[SectionId("preview-function", "root")]
    function.config = function.config[:0x14] + b"\1" + function.config[0x15:]
    assert told(states, LINE[3], LINE[4]) == {"preview-function/root.config[16]"}


def test_a_move_or_a_probe_that_waits_cannot_go_down():
    states = machine(LINE[4])
    for instance, value in (("root", bytes.fromhex("0400e0c0")), ("rng", bytes.fromhex("0400f8ff"))):
        function = states[SectionId("pci-function", instance)]
        function.config = function.config[:0x10] + value + function.config[0x14:]
    states[SectionId("pci-msix", "eth0")].entries[2].control = 0x0001_0000
    assert told(states, LINE[4], LINE[3]) == {
        "pci-function/root.config[16]",
        "pci-function/rng.config[16]",
        "pci-msix/eth0.entries[2].control",
    }


def test_an_interrupt_table_that_is_not_what_the_devices_say_cannot_go_down():
    states = machine(JOINED)
    states[TABLE].lines.append(LineState(gsi=9, edge=True, owner="i8042/0"))
    states[TABLE].routes.append(RouteState(gsi=99, address=0, data=0, owner="pci-msix/rng"))
    assert told(states, JOINED, LINE[4]) == {"interrupt-table/0.lines", "interrupt-table/0.routes"}


def test_devices_that_the_line_never_had_cannot_go_down():
    assert {"virtio-vsock/v0", "virtio-balloon/b"} <= told(busy_machine("pci"), JOINED, LINE[3])
    assert {"virtio-vsock/v0", "virtio-mmio/root"} <= told(busy_machine("mmio"), JOINED, LINE[4])

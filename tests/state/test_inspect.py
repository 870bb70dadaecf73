"""Paths into States, and how a State is shown."""

from typing import Annotated

import pytest
from msgspec import Meta

from snapkit.bits import Register, bit, bits
from snapkit.errors import ConfigError
from snapkit.state.inspect import as_data, flat, look_up, split_path, tree
from snapkit.state.schema import U8, U16, U32, U64, SectionId, State, named, register


class Cr(Register, width=32, reset=0, ref="a manual"):
    """A register."""

    PE = bit(0, "protection")
    LEVEL = bits(7, 4, "a level")
    PG = bit(31, "paging")


class Msr(State):
    """A register by number."""

    index: Annotated[U32, named({0x10: "TSC", 0x1B: "APIC_BASE"})]
    data: U64


class Leaf(State):
    """A leaf."""

    function: U32
    index: U32 = 0


class Queue(State):
    """A queue."""

    size: U16
    ready: bool = True


class Cpu(State):
    """A processor."""

    id: U8
    cr: Annotated[U32, register(Cr)]
    segment: Leaf
    msrs: Annotated[list[Msr], Meta(max_length=99)]
    leaves: Annotated[list[Leaf], Meta(max_length=9)]
    queues: Annotated[list[Queue], Meta(max_length=9)]
    bitmap: Annotated[list[U64], Meta(max_length=99)]
    page: Annotated[bytes, Meta(max_length=4096)] = b""
    spare: Queue | None = None
    rate: U32 = 0


def cpu(**fields):
    made = {
        "id": 3,
        "cr": 0x8000_0051,
        "segment": Leaf(function=0x10, index=2),
        "msrs": [Msr(index=0x10, data=5), Msr(index=0x1B, data=0xFEE0_0000), Msr(index=0x99, data=0)],
        "leaves": [Leaf(function=1), Leaf(function=4), Leaf(function=4, index=1)],
        "queues": [Queue(size=256)],
        "bitmap": [0, 10],
        **fields,
    }
    return {
        SectionId("vcpu", "0"): Cpu(**made),
        SectionId("vcpu", "1"): Cpu(**made),
        SectionId("pit", "0"): Leaf(function=7),
    }


def value(path, **fields):
    return look_up(cpu(**fields), path).value


def mistake(path, **fields):
    with pytest.raises(ConfigError) as refused:
        look_up(cpu(**fields), path)
    return str(refused.value)


def shown(path, *, whole=False, **fields):
    return list(tree(look_up(cpu(**fields), path), whole=whole))


def test_path_splits_into_section_and_rest():
    assert split_path("virtio-block/root.queues[0].size") == (SectionId("virtio-block", "root"), ".queues[0].size")
    assert split_path("pit/0") == (SectionId("pit", "0"), "")


def test_paths_reach_fields_items_and_register_bits():
    assert value("vcpu/0.id") == 3
    assert value("vcpu/0.queues[0].size") == 256
    assert value("vcpu/0.msrs[1].data") == 0xFEE0_0000
    assert value("vcpu/0.bitmap[1]") == 10
    assert value("vcpu/0.cr.PG") == 1
    assert value("vcpu/0.cr.LEVEL") == 5
    assert value("vcpu/0.segment").function == 0x10
    assert value("vcpu/0.spare.size", spare=Queue(size=8)) == 8


def test_list_items_are_found_by_what_they_hold_and_reported_by_index():
    assert value("vcpu/0.msrs[index=0x1b].data") == 0xFEE0_0000
    assert value("vcpu/0.msrs[TSC].data") == 5
    assert value("vcpu/0.msrs[index=APIC_BASE].data") == 0xFEE0_0000
    assert value("vcpu/0.leaves[function=4,index=1]").index == 1
    assert look_up(cpu(), "vcpu/0.msrs[APIC_BASE].data").path == "vcpu/0.msrs[1].data"


def test_unknown_path_names_the_nearest_part_and_what_is_there():
    assert mistake("nonsense") == "path is 'nonsense', must begin with kind/instance, like vcpu-x86-64/0.sregs.cr3"
    assert mistake("gic/0.x") == "there is no gic/0: there are vcpu, pit"
    assert mistake("vcpu/7.id") == "there is no vcpu/7: vcpu has the instances 0, 1"
    assert mistake("vcpu/0.sregs") == (
        "vcpu/0 has no field sregs, it has id, cr, segment, msrs, leaves, queues, bitmap, page, spare, rate"
    )
    assert mistake("vcpu/0.segment.base") == "vcpu/0.segment has no field base, it has function, index"
    assert mistake("vcpu/0.queues[1].size") == "vcpu/0.queues has 1 items, there is no [1]"
    assert mistake("vcpu/0.id.x") == "vcpu/0.id is 3, it has no field x"
    assert mistake("vcpu/0.id[0]") == "vcpu/0.id is 3, it has no items"
    assert mistake("vcpu/0.queues.size") == "vcpu/0.queues is a list of 1, it has no field size"
    assert mistake("vcpu/0.cr.CET") == "vcpu/0.cr has no field CET, the register Cr has PE, LEVEL, PG"
    assert mistake("vcpu/0.spare.size") == "vcpu/0.spare is none, it has no field size"
    assert mistake("vcpu/0.msrs[EFER]") == "vcpu/0.msrs has no item for [EFER], of 3"
    assert mistake("vcpu/0.leaves[function=4]") == "vcpu/0.leaves has 2 items, like [1] and [2] for [function=4], of 3"
    assert mistake("vcpu/0.leaves[colour=4]") == "vcpu/0.leaves has no item for [colour=4], of 3"
    assert mistake("vcpu/0.id]") == "path vcpu/0.id] cannot be read from ']' on, must be .field or [index]"
    assert mistake("vcpu/0.bitmap[-1]") == "vcpu/0.bitmap has no item for [-1], of 2"


def test_tree_names_register_fields_and_shows_integers_as_people_read_them():
    assert shown("vcpu/0") == [
        "vcpu/0",
        "  id: 3",
        "  cr: 0x80000051 PE LEVEL=5 PG",
        "  segment: function=0x10 index=2",
        "  msrs: 3 items",
        "    [0]: index=0x10 TSC data=5",
        "    [1]: index=0x1b APIC_BASE data=0xfee00000",
        "    [2]: index=0x99 data=0",
        "  leaves: 3 items",
        "    [0]: function=1 index=0",
        "    [1]: function=4 index=0",
        "    [2]: function=4 index=1",
        "  queues: 1 item",
        "    [0]",
        "      size: 256 (0x100)",
        "      ready: True",
        "  bitmap: [0, 10 (0xa)]",
        "  page: 0 bytes",
        "  spare: none",
        "  rate: 0",
    ]


def test_tree_shows_one_value_with_its_whole_path():
    assert shown("vcpu/0.msrs[1].index") == ["vcpu/0.msrs[1].index: 27 (0x1b) APIC_BASE"]
    assert shown("vcpu/0.rate", rate=2_000_000) == ["vcpu/0.rate: 0x1e8480"]
    assert shown("vcpu/0.cr", cr=0x100) == ["vcpu/0.cr: 0x00000100 reserved=0x100"]
    assert shown("vcpu/0.cr.LEVEL") == ["vcpu/0.cr.LEVEL: 5"]


def test_tree_shortens_byte_strings_and_lists_unless_asked_for_the_whole():
    assert shown("vcpu/0.page", page=bytes(range(32))) == ["vcpu/0.page: 32 bytes: 000102030405060708090a0b0c0d0e0f..."]
    assert shown("vcpu/0.page", page=bytes(range(32)), whole=True)[0].endswith("1c1d1e1f")
    assert shown("vcpu/0.page", page=bytes(4096)) == ["vcpu/0.page: 4096 bytes: all zero"]
    many = [Msr(index=number, data=0) for number in range(50)]
    lines = shown("vcpu/0.msrs", msrs=many)
    assert len(lines) == 10
    assert lines[-1] == "  ... 42 more, up to [49]"
    assert len(shown("vcpu/0.msrs", msrs=many, whole=True)) == 51
    assert shown("vcpu/0.bitmap", bitmap=list(range(20))) == ["vcpu/0.bitmap: [0, 1, 2, 3, 4, 5, 6, 7, ... 12 more]"]
    assert shown("vcpu/0.bitmap", bitmap=[]) == ["vcpu/0.bitmap: empty"]


def test_data_gives_byte_strings_as_base64():
    assert as_data(look_up(cpu(page=b"\x00\xff"), "vcpu/0.page").value) == "AP8="
    assert as_data(look_up(cpu(), "vcpu/0.segment").value) == {"function": 16, "index": 2}


def test_flat_form_gives_every_value_once_by_path():
    leaves = dict(flat(cpu(bitmap=[], page=b"x")[SectionId("vcpu", "0")], "vcpu/0"))
    assert leaves["vcpu/0.msrs[1].data"] == 0xFEE0_0000
    assert leaves["vcpu/0.bitmap"] == []
    assert leaves["vcpu/0.spare"] is None
    assert leaves["vcpu/0.page"] == b"x"
    assert all(look_up(cpu(bitmap=[], page=b"x"), path).value == leaf for path, leaf in leaves.items())

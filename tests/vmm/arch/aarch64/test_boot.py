"""Loading arm64 kernels: tiny Image and ELF files written here, offsets declared anew from the documents."""

import gzip
import os
import struct
from functools import partial
from pathlib import Path
from typing import Any

import fdt as reader
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit.errors import ConfigError
from snapkit.state.spec.address_map import AARCH64
from snapkit.units import GIB, MIB, Gsi
from snapkit.vmm.arch.aarch64 import boot, fdt, layout
from snapkit.vmm.parts.fresh import fresh_sections
from snapkit.vmm.parts.part import Ground
from tests.vmm.arch import loading
from tests.vmm.arch.loading import CODE, SparseRam

RAM = 0x8000_0000
BOARD = fdt.Board(mpidrs=[0], seed=bytes(fdt.SEED_LEN), generation_gsi=Gsi(2))

# Without the time of day in it: packed contents are parameters of tests, and their ids are the same in every worker.
packed = partial(gzip.compress, mtime=0)
write_elf = partial(loading.write_elf, machine=183, entry=RAM + 0x1000, segments=((RAM + 0x1000, CODE, 0x4000),))


def ram(length: int) -> SparseRam:
    return SparseRam(layout.ram_regions(length))


def image(
    *, code: bytes = CODE, text_offset: int = 0, image_size: int = 4 * MIB, flags: int = 0b1010, **more: Any
) -> bytes:
    """Make an Image; the flags say little-endian, 4 KiB pages, placed anywhere."""
    header = struct.pack("<IIQQQ24x4sI", 0xFA40_5A4D, 0x1459_A356, text_offset, image_size, flags, b"ARM\x64", 0x40)
    assert len(header) == 64
    return header[: more.get("cut", 64)] + code


def written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def load_kernel(memory: SparseRam, kernel: str, *, initrd_path: str | None = None, **more: Any) -> boot.BootEntry:
    """Load a kernel and its ramdisk by their paths."""
    with boot.open_guest(kernel, initrd_path) as files:
        return boot.load_kernel(memory, files.kernel, initrd=files.initrd, **{"board": BOARD, **more})


def refused(memory: SparseRam, kernel: str, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_kernel(memory, kernel, **more)
    return str(caught.value)


def tree(memory: SparseRam, entry: boot.BootEntry) -> Any:
    length = int.from_bytes(memory.read(entry.x0 + 4, 4), "big")
    return reader.parse_dtb(memory.read(entry.x0, length))


# Image


@pytest.mark.parametrize("pack", [bytes, packed], ids=["plain", "gzip"])
@pytest.mark.parametrize("text_offset", [0, 0x8_0000])
def test_image_goes_to_its_offset_in_ram_and_is_entered_at_its_first_byte(tmp_path, pack, text_offset):
    content = image(text_offset=text_offset, code=CODE * 3000, image_size=8 * MIB)
    memory = ram(64 * MIB)
    entry = load_kernel(memory, written(tmp_path / "Image", pack(content)))
    assert entry.pc == RAM + text_offset
    assert memory.read(entry.pc, len(content)) == content


def test_boot_cpu_starts_in_el1_with_everything_masked_and_the_tree_in_x0(tmp_path):
    memory = ram(64 * MIB)
    entry = load_kernel(memory, written(tmp_path / "Image", image()))
    assert entry == (RAM, RAM + 64 * MIB - 0x1_0000, 0x3C5)
    assert memory.read(entry.x0, 4) == b"\xd0\x0d\xfe\xed"


@pytest.mark.parametrize("length", [8 * MIB, 2 * GIB, 6 * GIB])
def test_ramdisk_lies_below_the_generation_id_and_the_tree_tells_of_it(tmp_path, length):
    ramdisk = written(tmp_path / "initrd", b"module" * 1000)
    memory = ram(length)
    entry = load_kernel(memory, written(tmp_path / "Image", image()), initrd_path=ramdisk, cmdline="a=b")
    chosen = tree(memory, entry).get_node("/chosen")
    start, end = (chosen.get_property(f"linux,initrd-{which}").data[1] for which in ("start", "end"))
    assert start == RAM + min(length, 2 * GIB) - 0x1_0000 - 0x1000 - 0x2000
    assert memory.read(start, end - start) == b"module" * 1000
    assert chosen.get_property("bootargs").value == "a=b"


@pytest.mark.parametrize("pack", [bytes, packed], ids=["plain", "gzip"])
def test_what_lies_behind_the_kernel_is_not_loaded(tmp_path, pack):
    memory = ram(16 * MIB)
    load_kernel(memory, written(tmp_path / "Image", pack(image(code=b"x" * (5 * MIB), image_size=0x1000))))
    assert memory.read(RAM + 0xFFF, 3) == b"x\0\0"


def test_small_file_that_inflates_without_end_costs_no_more_than_the_kernel_may_have(tmp_path):
    bomb = packed(image(code=bytes(64 * MIB), image_size=5 * MIB))
    memory = ram(16 * MIB)
    load_kernel(memory, written(tmp_path / "bomb", bomb))
    assert len(bomb) < MIB
    assert max(len(payload) for _, payload in memory.writes) <= 4 * MIB
    assert max(gpa + len(payload) for gpa, payload in memory.writes if gpa < RAM + 8 * MIB) == RAM + 5 * MIB


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flags": 0b1011}, "is a big-endian kernel, must be a little-endian one"),
        ({"image_size": 0}, "does not say how much memory it needs, must be a kernel of Linux 3.17 or newer"),
        ({"text_offset": 2 * MIB}, "has text_offset 0x200000, must be one below 0x200000"),
        ({"text_offset": 1 << 63}, "has text_offset 0x8000000000000000"),
        ({"image_size": 65 * MIB}, "needs guest memory 0x80000000-0x84100000, which is not RAM in a machine of 64 MiB"),
        ({"image_size": (1 << 64) - 1}, "which is not RAM in a machine of 64 MiB"),
        ({"image_size": 64 * MIB}, "must be one that leaves 0x83fef000 and above to the device tree"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, packed], ids=["plain", "gzip"])
def test_image_that_cannot_run_is_refused_by_a_sentence(options, sentence, pack, tmp_path):
    memory = ram(64 * MIB)
    message = refused(memory, written(tmp_path / "k", pack(image(**options))))
    assert sentence in message
    assert f"kernel '{tmp_path}/k'" in message
    assert memory.writes == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"#!/bin/sh\n", "begins with 23 21 2f 62, must be an arm64 Image or an ELF kernel"),
        (b"MZ\0\0zimg" + bytes(100), "unpacks itself only under EFI (zboot), must be the Image inside it"),
        (packed(b"text"), "holds 4 bytes, must be a whole Image"),
        (packed(b""), "holds 0 bytes, must be a whole Image"),
        (packed(bytes(64)), "holds something with magic 00 00 00 00, must be an Image, magic 41 52 4d 64"),
        (b"\x1f\x8b" + bytes(64), "cannot be decompressed"),
        (packed(image())[:40], "ends inside its compressed kernel, must be a whole file"),
        (image(cut=60, code=b""), "holds 60 bytes"),
        (b"", "is empty"),
    ],
)
def test_file_that_is_no_kernel_is_refused(content, sentence, tmp_path):
    assert sentence in refused(ram(64 * MIB), written(tmp_path / "file", content))


def test_compressed_kernel_with_a_damaged_middle_is_refused(tmp_path):
    content = bytearray(packed(image(code=os.urandom(100_000))))
    content[-8] ^= 0xFF  # the checksum
    assert "cannot be decompressed" in refused(ram(64 * MIB), written(tmp_path / "file", bytes(content)))


def test_ramdisk_that_does_not_fit_above_the_kernel_is_refused(tmp_path):
    with open(tmp_path / "initrd", "wb") as sparse:
        sparse.truncate(4 * MIB)
    message = refused(ram(8 * MIB), written(tmp_path / "Image", image()), initrd_path=str(tmp_path / "initrd"))
    assert "to fit between the kernel's end 0x80400000 and 0x807ef000" in message


@pytest.mark.parametrize(("cmdline", "sentence"), [("a\0b", "has a NUL"), ("x" * 2048, "must be at most 2047")])
def test_command_line_that_linux_would_not_read_is_refused(tmp_path, cmdline, sentence):
    memory = ram(8 * MIB)
    assert sentence in refused(memory, written(tmp_path / "Image", image()), cmdline=cmdline)
    assert memory.writes == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.one_of(
        st.binary(min_size=1, max_size=200),
        st.builds(
            lambda head, changes: bytes(changes.get(at, byte) for at, byte in enumerate(head)),
            st.sampled_from([image(code=b"xy"), packed(image(code=b"xy"))]),
            st.dictionaries(st.integers(0, 70), st.integers(0, 255), max_size=4),
        ),
    )
)
def test_any_file_is_loaded_into_ram_or_refused_by_name(tmp_path, content):
    path = written(tmp_path / "any", content)
    memory = ram(8 * MIB)
    try:
        pc, complaint = int(load_kernel(memory, path).pc), ""
    except ConfigError as error:
        pc, complaint = 0, str(error)
    assert RAM <= pc < RAM + 2 * MIB or path in complaint


# ELF


def test_elf_goes_to_its_physical_addresses_and_is_entered_the_same_way(tmp_path):
    memory = ram(2 * MIB)
    entry = load_kernel(memory, write_elf(tmp_path / "k"))
    assert entry == (RAM + 0x1000, RAM + 2 * MIB - 0x1_0000, 0x3C5)
    assert memory.read(RAM + 0x1000, len(CODE)) == CODE


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"machine": 62}, "is an ELF file for EM_X86_64, must be one for aarch64"),
        ({"kind": 3}, "of type ET_DYN for an operating system, must be a kernel"),
        ({"entry": RAM}, "with entry 0x80000000, must be a 64-bit kernel with its entry at a physical address"),
        ({"bits": 32}, "must be a 64-bit kernel"),
        ({"segments": ((RAM + 0x1000, CODE, 64 * MIB),)}, "which is not RAM in a machine of 2 MiB"),
        ({"segments": ((RAM + 0x1000, CODE, 0x1F_0000),)}, "leaves 0x801ef000-0x80200000 to the device tree"),
    ],
)
def test_elf_that_cannot_run_is_refused_by_a_sentence(options, sentence, tmp_path):
    memory = ram(2 * MIB)
    assert sentence in refused(memory, write_elf(tmp_path / "k", **options))
    assert memory.writes == []


# A whole machine, and a real kernel, where the lab has fetched one


@pytest.mark.parametrize("transport", ["pci", "mmio", None])
def test_tree_of_a_machine_has_the_devices_that_were_laid_out(tmp_path, transport):
    memory = ram(8 * MIB)
    ground = Ground(AARCH64, layout.vmgenid_gpa(8 * MIB), {})
    fresh = fresh_sections([], transport, ground, bytes(16))
    with boot.open_guest(written(tmp_path / "Image", image()), None) as files:
        entry = boot.load_guest(memory, files, fresh, cmdline="quiet", vcpus=3)
    root = tree(memory, entry)
    assert len(root.get_node("/cpus").nodes) == 3
    assert root.exist_node("/pcie@70000000") == (transport == "pci")
    assert root.exist_node("/reserved-memory") == (transport is not None)
    assert root.get_node("/chosen").get_property("bootargs").value == "quiet"


CACHE = Path(os.environ.get("SNAPKIT_LAB_CACHE") or Path(__file__).parents[4] / ".cache" / "lab")


def test_debian_kernels_are_loaded_at_the_start_of_ram():
    # All in one test: the lab may fetch one between the moments when two processes collect tests, which must be the same.
    paths = sorted(str(path) for name in ("boot/vmlinuz-*", "Image.gz") for path in CACHE.glob(f"*-arm64_*/{name}"))
    if not paths:
        pytest.skip("no Debian kernel for arm64 in the lab's cache (the lab fetches one)")
    for path in paths:
        memory = ram(256 * MIB)
        entry = load_kernel(memory, path, cmdline="console=ttyAMA0")
        assert entry.pc == RAM, path
        assert memory.read(entry.pc + 0x38, 4) == b"ARM\x64", path
        assert sum(len(payload) for gpa, payload in memory.writes if gpa < entry.x0) > 16 * MIB, path

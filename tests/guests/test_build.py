import itertools
import os
import platform
import re
import struct
import subprocess

import pytest

from snapkit import guests
from snapkit.errors import ConfigError
from snapkit.guests import build, expected
from snapkit.guests.build import AARCH64, TARGETS, X86_64, Target
from tests.guests.build import NAMES, guest

MIB = 1 << 20
PT_LOAD, PT_NOTE = 1, 4
EM_386, EM_AARCH64 = 3, 183
XEN_ELFNOTE_PHYS32_ENTRY = 18
DEMO = guests.path("demo.elf", X86_64.name)
AARCH64_RAM, AARCH64_END = (
    0x8000_0000,
    0x801E_F000,
)  # of a machine of 2 MiB, below the device tree and the generation id
ALL = [(target, name) for target, names in NAMES.items() for name in names]
each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
# What KVM's emulator lacks in protected mode, what a golden guest must not read, and what an i386 does not have.
FORBIDDEN = re.compile(r"\t(iret\w*|int|int3|into|rdtsc\w*|rdmsr|cpuid|cmov\w*|sys\w+|f[a-z]+)\b|[xyz]mm\d|%mm\d")


def program_headers(image: bytes) -> list[tuple[int, int, int, int, int]]:
    """(type, offset, physical address, length in the file, length in memory) of each."""
    (first,) = struct.unpack_from("<I", image, 28)
    (count,) = struct.unpack_from("<H", image, 44)
    rows = [struct.unpack_from("<8I", image, first + 32 * index) for index in range(count)]
    return [(row[0], row[1], row[3], row[4], row[5]) for row in rows]


def assert_is_a_guest(path: str, target: Target) -> None:
    with open(path, "rb") as file:
        image = file.read()
    {X86_64: assert_enters_by_a_note, AARCH64: assert_is_loaded_at_the_start_of_ram}[target](image)


def assert_enters_by_a_note(image: bytes) -> None:
    assert image[:5] == b"\x7fELF\x01"
    assert struct.unpack_from("<H", image, 18) == (EM_386,)
    headers = program_headers(image)
    (loaded,) = [header for header in headers if header[0] == PT_LOAD]
    (note,) = [header for header in headers if header[0] == PT_NOTE]
    begin, end = loaded[2], loaded[2] + loaded[4]
    assert begin == MIB
    assert end <= 2 * MIB
    name_len, desc_len, kind = struct.unpack_from("<3I", image, note[1])
    assert (name_len, desc_len, kind) == (4, 4, XEN_ELFNOTE_PHYS32_ENTRY)
    assert image[note[1] + 12 : note[1] + 16] == b"Xen\0"
    (entry,) = struct.unpack_from("<I", image, note[1] + 16)
    assert begin <= entry < begin + loaded[3]


def assert_is_loaded_at_the_start_of_ram(image: bytes) -> None:
    assert image[:5] == b"\x7fELF\x02"
    machine, _version, entry, first = struct.unpack_from("<HIQQ", image, 18)
    assert (machine, struct.unpack_from("<H", image, 56)) == (EM_AARCH64, (1,))
    kind, _flags, _offset, _virtual, begin, in_file, in_memory = struct.unpack_from("<IIQQQQQ", image, first)
    assert (kind, begin) == (PT_LOAD, AARCH64_RAM)
    assert begin <= entry < begin + in_file
    assert begin + in_memory <= AARCH64_END


def disassembly(path: str) -> str:
    words = ["objdump", "-d", "--no-show-raw-insn", path]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout


@each_target
def test_the_committed_binary_and_its_sources_are_the_recorded_ones(target):
    assert build.stale_files(target) == []
    record = build.recorded(target)
    assert record["bytes"] == os.path.getsize(guests.path("demo.elf", target.name))
    assert record["command"] == build.command("demo.c", f"{target.name}/{build.BINARY}", target=target)


@each_target
def test_rebuilding_the_demo_guest_gives_the_committed_bytes(capsys, target):
    if reason := build.comparable(target):
        pytest.skip(reason)
    assert build.main(["--check", target.name]) == 0
    assert capsys.readouterr().out == ""


def test_a_binary_older_than_its_source_is_named(monkeypatch):
    records = {target: build.recorded(target) for target in TARGETS.values()}
    changed = {**records, X86_64: {**records[X86_64], "sources": {"x86_64/rt.h": "0" * 64}}}
    monkeypatch.setattr(build, "recorded", changed.get)
    assert build.stale_files() == ["demo.c", "text.h", "x86_64/start.S", "x86_64/rt.h", "x86_64/guest.lds"]
    changed = {**records, AARCH64: {**records[AARCH64], "sha256": "0" * 64}}
    monkeypatch.setattr(build, "recorded", changed.get)
    assert build.stale_files() == ["aarch64/demo.elf"]
    assert build.stale_files(X86_64) == []


def test_a_check_where_the_recorded_compiler_is_not_says_so(monkeypatch, capsys):
    record = build.recorded()
    monkeypatch.setattr(build, "missing_toolchain", lambda _target: "")
    monkeypatch.setattr(build, "toolchain", lambda _target: ("other 1", "other 2"))
    assert build.main(["--check"]) == ConfigError.exit_code
    message = capsys.readouterr().err
    assert str(record["compiler"]) in message
    assert "other 1" in message


def test_a_source_that_does_not_compile_is_a_config_error_with_the_compilers_words(tmp_path):
    if missing := build.missing_toolchain():
        pytest.skip(missing)
    source = tmp_path / "broken.c"
    source.write_text('#include "rt.h"\nno such thing\n')
    with pytest.raises(ConfigError, match="such"):
        build.compile_guest(str(source), str(tmp_path / "broken.elf"))


@each_target
def test_the_demo_guest_is_small_and_what_the_loader_takes(target):
    path = guests.path("demo.elf", target.name)
    assert_is_a_guest(path, target)
    assert os.path.getsize(path) < 2 * 4096


@pytest.mark.parametrize(("target", "name"), ALL, ids=lambda value: getattr(value, "name", value))
def test_every_guest_is_what_the_loader_takes_and_fits_into_2_mib(target, name):
    assert_is_a_guest(guest(name, target=target), target)


@pytest.mark.parametrize("name", [name for name in NAMES[X86_64] if name != "smp"])  # smp holds 16-bit code too
def test_no_guest_holds_an_instruction_that_the_emulator_lacks(name):
    listing = disassembly(guest(name))
    assert "\tlgdt" in listing
    assert FORBIDDEN.findall(listing) == []


def test_a_guest_is_built_once_and_again_for_other_defines():
    first = guest("page_cross")
    built = os.stat(first).st_mtime_ns
    assert guest("page_cross") == first
    assert os.stat(first).st_mtime_ns == built
    assert guest("page_cross", ADDRESS="0xd0001ffdu") != first


def test_path_knows_the_demo_guest_and_refuses_what_is_not_there():
    assert os.path.isabs(DEMO)
    assert guests.path("demo.elf") == guests.path("demo.elf", platform.machine())
    for name in ("absent.elf", "../errors.py", "", "."):
        with pytest.raises(ConfigError, match="no guest file"):
            guests.path(name)


def test_the_model_of_the_demo_guest_is_pinned_to_what_it_printed():
    # Recorded from demo.elf under KVM and, as a second opinion, under another hypervisor's software CPU.
    assert list(itertools.islice(expected.demo_lines(), 3)) == [
        "tick 10 work 6b5865ad sum 6b5865ad",
        "tick 20 work ea21379f sum 55799d4c",
        "tick 30 work e33e3d6b sum 38b7dab7",
    ]

import itertools
import os
import re
import struct
import subprocess

import pytest

from snapkit import guests
from snapkit.errors import ConfigError
from snapkit.guests import build, expected
from tests.guests.build import NAMES, guest

MIB = 1 << 20
PT_LOAD, PT_NOTE = 1, 4
EM_386 = 3
XEN_ELFNOTE_PHYS32_ENTRY = 18
DEMO = guests.path("demo.elf")
# What KVM's emulator lacks in protected mode, what a golden guest must not read, and what an i386 does not have.
FORBIDDEN = re.compile(r"\t(iret\w*|int|int3|into|rdtsc\w*|rdmsr|cpuid|cmov\w*|sys\w+|f[a-z]+)\b|[xyz]mm\d|%mm\d")


def program_headers(image: bytes) -> list[tuple[int, int, int, int, int]]:
    """(type, offset, physical address, length in the file, length in memory) of each."""
    (first,) = struct.unpack_from("<I", image, 28)
    (count,) = struct.unpack_from("<H", image, 44)
    rows = [struct.unpack_from("<8I", image, first + 32 * index) for index in range(count)]
    return [(row[0], row[1], row[3], row[4], row[5]) for row in rows]


def assert_is_a_guest(path: str) -> None:
    with open(path, "rb") as file:
        image = file.read()
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


def disassembly(path: str) -> str:
    words = ["objdump", "-d", "--no-show-raw-insn", path]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout


def test_the_committed_binary_and_its_sources_are_the_recorded_ones():
    assert build.stale_files() == []
    assert build.recorded()["bytes"] == os.path.getsize(DEMO)
    assert build.recorded()["command"] == build.command("demo.c", build.BINARY)


def test_rebuilding_the_demo_guest_gives_the_committed_bytes(capsys):
    if reason := build.comparable():
        pytest.skip(reason)
    assert build.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_a_binary_older_than_its_source_is_named(monkeypatch):
    record = build.recorded()
    monkeypatch.setattr(build, "recorded", lambda: {**record, "sources": {"rt.h": "0" * 64}})
    assert build.stale_files() == ["demo.c", "start.S", "rt.h", "guest.lds"]
    monkeypatch.setattr(build, "recorded", lambda: {**record, "sha256": "0" * 64})
    assert build.stale_files() == ["demo.elf"]


def test_a_check_where_the_recorded_compiler_is_not_says_so(monkeypatch, capsys):
    record = build.recorded()
    monkeypatch.setattr(build, "missing_toolchain", lambda: "")
    monkeypatch.setattr(build, "toolchain", lambda: ("other 1", "other 2"))
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


def test_the_demo_guest_enters_by_a_note_and_ends_below_2_mib():
    assert_is_a_guest(DEMO)
    assert os.path.getsize(DEMO) < 4096


@pytest.mark.parametrize("name", NAMES)
def test_every_guest_enters_by_a_note_and_ends_below_2_mib(name):
    assert_is_a_guest(guest(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "smp"])  # smp holds 16-bit code too
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

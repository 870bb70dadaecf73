"""A file is refused, with its cause, whatever is wrong with it; never a traceback, a hang, or memory for nothing."""

import os
import random
import socket
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit import host
from snapkit.errors import ConfigError, ImageError
from snapkit.restore.image import Image
from snapkit.state.codec import encode
from snapkit.state.schema import SectionId
from tests.restore.forge import CHUNK, PREAMBLE, Forge, Section, snapshot_parts
from tests.restore.machines import MIB, PAGE, ram, save, sections

MAX = (1 << 64) - 1
MACHINE = Section("machine", "0", encode(sections()[SectionId("machine", "0")]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.snap"


def _refused(path: Path | str, reason: str | None = None) -> str:
    """Open and read all of *path*, which must be refused; returns the words."""
    with pytest.raises(ImageError, match=reason) as caught:
        _read_all(path)
    text = str(caught.value)
    assert str(path) in text
    return text


def _read_all(path: Path | str) -> None:
    with Image.open(path) as image:
        image.sections()
        if findings := image.verify():
            raise ImageError(f"{path}: damaged", findings=findings)


def _flips(path: Path, offsets: range, masks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)) -> int:
    """Refuse *path* with every bit of *offsets* flipped, one at a time; returns how many there were."""
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for offset in offsets:
            for mask in masks:
                os.pwrite(file.fileno(), bytes([content[offset] ^ mask]), offset)
                with pytest.raises(ImageError), Image.open(path) as image:
                    image.sections()
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)
    with Image.open(path) as image:
        image.sections()
    return len(offsets) * len(masks)


def test_every_flipped_bit_of_the_preamble_is_refused(path):
    save(path)
    # Where nothing is defined one bit of each byte is enough: all 3752 are covered by one digest and one check.
    assert _flips(path, range(312)) + _flips(path, range(4064, 4096)) == 8 * (312 + 32)
    assert _flips(path, range(312, 4064), (1 << 3,)) == 3752


def test_every_flipped_bit_of_the_manifest_is_refused(path):
    save(path)
    assert _flips(path, range(4096, 4096 + snapshot_parts(path.read_bytes())["manifest_len"])) > 4000


def test_every_flipped_bit_of_sections_and_chunk_table_is_refused(path):
    save(path)
    parts = snapshot_parts(path.read_bytes())
    assert _flips(path, range(4096 + parts["manifest_len"], parts["chunks_offset"] + parts["chunks_len"])) > 1000


def test_a_flipped_bit_anywhere_in_padding_or_memory_is_refused(path):
    save(path, ram(4 * MIB, {PAGE: b"x" * PAGE}))
    content = path.read_bytes()
    parts = snapshot_parts(content)
    seeded = random.Random(7)
    start = parts["chunks_offset"] + parts["chunks_len"]
    places = [seeded.randrange(start, 65536) for _ in range(60)]
    places += [seeded.randrange(65536, len(content)) for _ in range(60)] + [start, 65535, 65536, len(content) - 1]
    for offset in places:
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), bytes([content[offset] ^ 1 << seeded.randrange(8)]), offset)
        _refused(path)
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)


def test_truncation_anywhere_is_refused(path):
    save(path, ram(2 * MIB, {0: b"x"}))
    length = path.stat().st_size
    parts = snapshot_parts(path.read_bytes())
    edges = [1, 7, 8, 63, 64, 4095, 4096, 4097, parts["chunks_offset"], parts["chunks_offset"] + 1, length - 1]
    for cut in sorted({*range(0, length, 4096), *edges}, reverse=True):
        os.truncate(path, cut)
        _refused(path, "empty" if cut == 0 else None)


def test_bytes_after_the_end_are_claimed_by_nothing(path):
    _refused(Forge(trailer=b"\0").write(path), "claimed by nothing")
    _refused(Forge(trailer=bytes(1 << 20)).write(path), "claimed by nothing")


FIELDS = ["manifest_offset", "manifest_len", "chunks_offset", "chunks_len", "memory_offset", "memory_len"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [0, 1, 48, 4095, 4097, 65535, 65536 + 1, CHUNK - 1, CHUNK + 1, 1 << 40, MAX - 1, MAX])
def test_every_place_and_length_of_the_preamble_must_be_right(path, field, value):
    text = _refused(Forge(preamble={field: value}).write(path))
    assert "digest" not in text or field in {"manifest_len", "manifest_offset", "chunks_len", "chunks_offset"}


@pytest.mark.parametrize("field", ["offset", "stored_length", "length"])
@pytest.mark.parametrize("value", [0, 1, 4096, 1 << 20, 1 << 40, (1 << 63) - 1, 1 << 63, MAX, -1])
def test_every_place_and_length_of_a_section_must_be_right(path, field, value):
    other = Section("memory-layout", "0", encode(sections()[SectionId("memory-layout", "0")]))
    _refused(Forge(sections=[MACHINE, Section(**{**vars(other), "says": {field: value}})]).write(path))


def test_sections_that_share_bytes_are_refused(path):
    forge = Forge(sections=[MACHINE, MACHINE])
    forge.sections[1] = Section("machine", "1", MACHINE.payload)

    def overlap(manifest):
        manifest["sections"][1]["offset"] = manifest["sections"][0]["offset"]

    forge.manifest = overlap
    _refused(forge.write(path), "section machine/1 starts at .* must be at or after")


def test_a_section_twice_is_refused(path):
    _refused(Forge(sections=[MACHINE, MACHINE]).write(path), "machine/0 is there twice")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"magic": b"QEVMQEVM"}, "begins with"),
        ({"version": 2}, "newer release: container version 2, must be 1"),
        ({"version": 0}, "container version 0, must be 1"),
        ({"length": 8192}, "preamble length is 8192"),
        ({"architecture": 22}, "ELF machine 22"),
        ({"page_shift": 16}, "page shift is 16"),
        ({"algorithm": 3}, "digest algorithm is 3"),
        ({"algorithm": 2}, "no key was given"),
        ({"flags": 2}, "flags are 0x2"),
        ({"flags": 1}, "disagree"),
        ({"zero": b"\0\0\1"}, "bytes 56 to 63"),
        ({"padding": bytes(100) + b"\1"}, "where nothing is defined"),
        ({"release": b"0.1.0\0x"}, "release is no ASCII text"),
        ({"producer": b"\xff"}, "producer is no ASCII text"),
        ({"kernel": b"6.1\n"}, "host kernel is no ASCII text"),
        ({"manifest_digest": bytes(32)}, "manifest does not match its digest"),
        ({"chunks_digest": bytes(32)}, "chunk table does not match its digest"),
    ],
)
def test_every_field_of_the_preamble_is_checked(path, change, reason):
    _refused(Forge(preamble=change).write(path), reason)


def test_padding_before_memory_must_be_zero(path):
    _refused(Forge(padding=1000).write(path), "padding before memory.*is not zero")


def _set(field, value):
    def change(manifest):
        *parents, last = field.split(".")
        for name in parents:
            manifest = manifest[int(name) if name.isdigit() else name]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("surprise", 1), "unknown field `surprise`"),
        (_set("machine.surprise", 1.5), "machine"),
        (_set("machine.nested", {"a": 1}), "machine"),
        (_set("memory.chunk_length", 4096), "chunk_length is 4096"),
        (_set("memory.regions", [{"gpa": 1, "length": CHUNK}]), "whole pages"),
        (_set("memory.regions", [{"gpa": 0, "length": 0}]), "whole pages"),
        (_set("memory.regions", [{"gpa": 0, "length": CHUNK}]), "chunk table has 96 bytes"),
        (_set("memory.regions", [{"gpa": 0, "length": 1 << 40}]), "chunk table has 96 bytes"),
        (_set("memory.regions", [{"gpa": 0, "length": 1 << 53}]), "must be at most"),
        (_set("memory.regions", [{"gpa": CHUNK, "length": CHUNK}, {"gpa": 0, "length": CHUNK}]), "at or above"),
        (_set("memory.regions", [{"gpa": 0, "length": CHUNK}, {"gpa": PAGE, "length": CHUNK}]), "at or above"),
        (_set("memory.regions", [{"gpa": 4096 * i, "length": 4096} for i in range(33)]), "length <= 32"),
        (_set("memory.separate", {"chunk_table_digest": "0" * 64, "length": 1, "path": "x"}), "disagree"),
        (_set("sections.0.kind", "Machine"), "kind"),
        (_set("sections.0.kind", "machine\n"), "kind"),
        (_set("sections.0.instance", "../0"), "instance"),
        (_set("sections.0.version", 0), "version"),
        (_set("sections.0.required", 1), "bool"),
        (_set("sections.0.codec", "lzma"), "codec"),
        (_set("sections.0.digest", "0" * 63), "digest"),
        (_set("sections.0.digest", "0" * 64), "does not match its digest"),
        (_set("sections.0.stored_length", 17 << 20), "at most"),
        (_set("sections", [{}] * 5000), "<= 4096|missing"),
    ],
)
def test_every_field_of_the_manifest_is_checked(path, change, reason):
    _refused(Forge(sections=[MACHINE], manifest=change).write(path), reason)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: text.replace(b":", b": ", 1),
        lambda text: text + b"\n",
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":1,"vcpus":1'),
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":1.0'),
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":1e0'),
        lambda text: text.replace(b"vcpus", b"\\u0076cpus"),
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":1,"a":1'),
        lambda text: text.replace(b',"separate":null', b""),
        lambda _text: b"",
        lambda _text: b"null",
        lambda _text: b"[" * 1_000_000,
        lambda _text: b'{"machine":' * 90_000,
        lambda _text: b'{"machine":{"a":' + b"[" * 1_000_000,
        lambda _text: b"\xff\xfe",
        lambda text: text.replace(b"vcpus", b"\xed\xb2\x80"),
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":' + b"9" * 5000),
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":' + b"9" * 4000),
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":18446744073709551616'),
        lambda text: text.replace(b'"vcpus":1', b'"vcpus":-0'),
    ],
)
def test_a_manifest_has_one_spelling_and_a_bounded_depth(path, spelling):
    assert spelling(b'{"a":1,"vcpus":1,"separate":null}') != b'{"a":1,"vcpus":1,"separate":null}'
    _refused(Forge(manifest_text=spelling).write(path), "manifest")


def test_a_manifest_of_two_megabytes_is_refused_unread(path):
    _refused(Forge(manifest_text=lambda text: text + b" " * (2 << 20)).write(path), "must be at most 1048576")


TABLE = 48


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (1, b"\1", "offset of chunk 0"),
        (7, b"\xff", "offset of chunk 0"),
        (8, b"\1", "stored length of chunk 0"),
        (11, b"\xff", "stored length of chunk 0"),
        (12, b"\2", r"chunk 0 has codec 2 \(zstd\)"),
        (12, b"\3", r"chunk 0 has codec 3 \(parent\)"),
        (12, b"\x80", r"chunk 0 has codec 128 \(unknown\)"),
        (12, b"\0", "chunk 0 is a hole"),
        (13, b"\1", "padding of chunk 0"),
        (TABLE, b"\1", "chunk 1 is a hole"),
        (TABLE + 12, b"\1", "offset of chunk 1"),
        (TABLE + 20, b"\1", "chunk 1 is a hole"),
    ],
)
def test_every_field_of_the_chunk_table_is_checked(path, at, value, reason):
    def change(table: bytearray) -> None:
        table[at : at + 1] = value

    _refused(Forge(table=change).write(path), reason)


@settings(max_examples=60, deadline=None)
@given(
    raw=st.lists(st.booleans(), min_size=1, max_size=40),
    chunk=st.integers(0, 39),
    byte=st.integers(0, 15),
    mask=st.integers(1, 255),
)
def test_no_other_chunk_table_is_taken_for_the_same_memory(raw, chunk, byte, mask):
    from snapkit.restore.chunks import HOLE_ENTRY, ChunkTable, pack_entry
    from snapkit.restore.manifest import Region

    rows, offset = [], 65536
    for stored in raw:
        rows.append(pack_entry(offset, CHUNK, 1, b"D" * 32) if stored else HOLE_ENTRY)
        offset += CHUNK if stored else 0
    table = bytearray(b"".join(rows))
    regions = [Region(0, CHUNK * len(raw))]
    place = {"memory_offset": 65536, "memory_len": offset - 65536}
    right = ChunkTable(bytes(table), regions, **place)
    assert right.raw_count == sum(raw)
    assert [one.number for one in right.chunks()] == [number for number, stored in enumerate(raw) if stored]
    table[chunk % len(raw) * 48 + byte] ^= mask
    with pytest.raises(ImageError, match="chunk"):
        ChunkTable(bytes(table), regions, **place)


def test_offsets_that_wrap_around_are_no_order():
    from snapkit.restore.chunks import ChunkTable, pack_entry
    from snapkit.restore.manifest import Region

    table = pack_entry(65536, CHUNK, 1, b"D" * 32) + struct.pack("<QIB3x32s", MAX - 5, CHUNK, 1, b"D" * 32)
    with pytest.raises(ImageError, match="offset of chunk 1"):
        ChunkTable(table, [Region(0, 2 * CHUNK)], memory_offset=65536, memory_len=2 * CHUNK)


def _compressed(payload: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(payload)


@pytest.mark.parametrize(
    ("stored", "length", "reason"),
    [
        (_compressed(bytes(64 << 20)), 100, "decompresses to 67108864 bytes, must be 100"),
        (_compressed(bytes(64 << 20)), 64 << 20, "at most"),
        (_compressed(bytes(16 << 20)), 16 << 20, "machine allows 4096"),
        (_compressed(MACHINE.payload, sized=False), len(MACHINE.payload), "decompress"),
        (_compressed(MACHINE.payload) + b"\0", len(MACHINE.payload), "decompress"),
        (_compressed(MACHINE.payload) * 2, len(MACHINE.payload), "decompress"),
        (_compressed(MACHINE.payload)[:-1], len(MACHINE.payload), "decompress"),
        (b"", len(MACHINE.payload), "decompress"),
        (b"not zstd", 8, "decompress"),
    ],
)
def test_compressed_sections_cannot_be_bombs(path, stored, length, reason):
    Forge(sections=[Section("machine", "0", stored, codec="zstd", length=length)]).write(path)
    tracemalloc.start()
    try:
        _refused(path, reason)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


def test_a_payload_in_a_second_spelling_is_refused(path):
    spelled = MACHINE.payload.replace(b"\xa7tsc_khz\x00", b"\xa7tsc_khz\xcc\x00")
    assert spelled != MACHINE.payload
    _refused(Forge(sections=[Section("machine", "0", spelled)]).write(path), "canonical")


def test_a_missing_path_is_the_operators_mistake(tmp_path):
    for name in ("none.snap", "none/guest.snap", "x" * 300, "a\0b"):
        with pytest.raises(ConfigError):
            Image.open(tmp_path / name)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "short").write_bytes(b"SNAPKIT\0")
    (tmp_path / "text").write_bytes(b"hello " * 1000)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        reasons = {
            "": "it is a directory",
            "fifo": "it is a FIFO",
            "socket": "socket",
            "empty": "it is empty",
            "short": "it has 8 bytes",
            "text": "it begins with",
        }
        for name, reason in reasons.items():
            _refused(tmp_path / name, reason)
    _refused("/dev/null", "character device")


def test_a_sparse_terabyte_is_refused_at_once(path):
    path.write_bytes(b"SNAPKIT\0")
    os.truncate(path, 1 << 40)
    _refused(path, "container version 0")
    Forge(preamble={"memory_len": 1 << 40}).write(path)
    os.truncate(path, 65536 + (1 << 40))
    _refused(path, "raw chunks end at")


def test_hostile_files_cost_no_memory(path):
    """The whole process may map little more than Python itself does; each file claims more than that."""
    claims = [
        Forge(preamble={"memory_len": 1 << 40}),
        Forge(preamble={"manifest_len": 1 << 40}),
        Forge(preamble={"chunks_len": 1 << 40}),
        Forge(manifest_text=lambda _text: b"[" * 1_000_000),
        Forge(sections=[Section("machine", "0", _compressed(bytes(1 << 30)), codec="zstd", length=1 << 30)]),
        Forge(sections=[Section("machine", "0", _compressed(bytes(1 << 30)), codec="zstd", length=4096)]),
        Forge(manifest=_set("memory.regions", [{"gpa": 0, "length": 1 << 51}])),
    ]
    files = [forge.write(path.with_suffix(f".{number}")) for number, forge in enumerate(claims)]
    code = (
        "import resource, sys, zstandard; from snapkit.errors import ImageError; from snapkit.restore.image import Image\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20),) * 2)\n"
        "for name in sys.argv[1:]:\n"
        "    try: Image.open(name).sections(); print('taken', name)\n"
        "    except ImageError as error: print('refused')\n"
    )
    command = [sys.executable, "-c", code, *map(str, files)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.stdout.splitlines() == ["refused"] * len(files), shown.stderr


def test_a_refused_file_leaves_no_descriptor_open(tmp_path):
    Forge(padding=9).write(tmp_path / "padding")
    Forge(preamble={"version": 9}).write(tmp_path / "version")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("padding", "version", "."):
        _refused(tmp_path / name)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("call", ["fstat", "pread"])
def test_a_host_that_fails_while_reading_is_no_fault_of_the_file(path, call):
    from snapkit.errors import HostError

    save(path)

    def fail(name: str, _arguments: object) -> None:
        if name == call:
            raise OSError(5, "injected")

    before = len(os.listdir("/proc/self/fd"))
    with host.inject(fail), pytest.raises(HostError):
        Image.open(path)
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(
        [name for name in PREAMBLE if name not in {"created_ns", "machine_id", "parent_id", "snapshot_id"}]
    ),
    data=st.data(),
)
def test_any_field_of_the_preamble_with_any_value_is_refused_or_harmless(path, name, data):
    code = PREAMBLE[name][1]
    size = struct.calcsize("<" + code)
    value = data.draw(st.binary(max_size=min(size, 64)) if code.endswith("s") else st.integers(0, (1 << 8 * size) - 1))
    Forge(chunks=[b"\x55" * CHUNK], preamble={name: value}).write(path)
    refused = ""
    try:
        with Image.open(path) as image:
            content = image.memory.read(0, 4)
    except ImageError as error:
        refused = str(error)
    assert str(path) in refused or content == b"\x55" * 4

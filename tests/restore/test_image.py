"""What a snapshot file gives back, and what it takes on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit import host, host_memory
from snapkit.errors import ConfigError, ImageError
from snapkit.restore.digest import key_from
from snapkit.restore.image import Image
from snapkit.restore.preamble import MEMORY_HEADER, PREAMBLE, describe_layout
from snapkit.restore.writer import memory_name
from snapkit.state.schema import SectionId
from tests.restore.forge import PREAMBLE as FORGED_PREAMBLE
from tests.restore.forge import Forge, Section, snapshot_parts
from tests.restore.machines import MACHINE_ID, MIB, PAGE, ram, save, sections

KEY = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.snap"


def test_what_is_saved_comes_back(path):
    content = ram(8 * MIB, {5 * PAGE: b"hello", 7 * MIB: os.urandom(MIB)})
    result = save(
        path, content, parent_id=b"P" * 16, created_ns=17, facts={"vcpus": 2, "kernel": "bzImage", "tsc": True}
    )
    with Image.open(path) as image:
        assert image.sections().states == sections(8 * MIB)
        assert image.sections().dropped == []
        assert image.memory.read(0, 8 * MIB) == content
        assert image.memory.regions == [(0, 8 * MIB)]
        assert image.preamble.snapshot_id == result.snapshot_id
        assert image.preamble.machine_id == MACHINE_ID
        assert image.preamble.parent_id == b"P" * 16
        assert image.preamble.created_ns == 17
        assert image.preamble.release == "0.1.0"
        assert image.preamble.host_kernel == os.uname().release
        assert image.manifest.machine == {"vcpus": 2, "kernel": "bzImage", "tsc": True}
        assert image.verify() == []
    assert result.length == path.stat().st_size


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 1100), min_size=0, max_size=3),
    holes=st.lists(st.integers(0, 9), max_size=2),
    pages=st.lists(st.tuples(st.integers(0, 3400), st.integers(0, PAGE - 1), st.integers(1, 255)), max_size=12),
)
def test_any_layout_of_ram_and_zeros_comes_back(path, lengths, holes, pages):
    memory, gpa = [], 0
    for index, length in enumerate(lengths):
        gpa += 3 * PAGE if index in holes else 0
        memory.append((gpa, ram(length * PAGE), length * PAGE))
        gpa += length * PAGE
    for number, offset, value in pages:
        for start, view, length in memory:
            if start <= number * PAGE < start + length:
                view[number * PAGE - start + offset] = value
    result = save(path, memory=memory)
    with Image.open(path) as image:
        assert image.memory.regions == [(start, length) for start, _view, length in memory]
        for start, view, length in memory:
            assert image.memory.read(start, length) == view
            assert image.memory.peek(start, length) == view
        assert image.verify() == []
        content = path.read_bytes()
        for run in image.memory.runs():
            start, view, _length = next(one for one in memory if one[0] <= run.gpa < one[0] + one[2])
            assert run.offset % 65536 == 0
            assert content[run.offset : run.offset + run.length] == view[run.gpa - start : run.gpa - start + run.length]
        covered = sum(run.length for run in image.memory.runs())
        nonzero = sum(bool(any(view[at : at + PAGE])) for _gpa, view, length in memory for at in range(0, length, PAGE))
        assert result.written == nonzero * PAGE <= covered


def test_zero_pages_are_holes_and_zero_chunks_are_not_in_the_file(path):
    result = save(path, ram(64 * MIB, {0: b"x", 32 * MIB + 5 * PAGE: b"y" * PAGE}))
    assert (result.chunks, result.raw_chunks, result.written) == (32, 2, 2 * PAGE)
    assert path.stat().st_size == 65536 + 4 * MIB
    assert path.stat().st_blocks * 512 <= 65536 + 4 * PAGE


def test_chunks_that_follow_each_other_are_one_run(path):
    save(path, ram(12 * MIB, dict.fromkeys((0, 2 * MIB, 4 * MIB, 8 * MIB, 10 * MIB), b"x")))
    with Image.open(path) as image:
        runs = [(run.gpa, run.length, run.offset) for run in image.memory.runs()]
    assert runs == [(0, 6 * MIB, 65536), (8 * MIB, 4 * MIB, 65536 + 6 * MIB)]


def test_memory_given_by_address_is_saved_like_a_view(path):
    length = 6 * MIB
    address = host_memory.mmap(
        length, host_memory.PROT_READ | host_memory.PROT_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS
    )
    try:
        host_memory.copy_in(address + 2 * MIB + 9, b"by address")
        save(path, memory=[(0, address, length)])
        with Image.open(path) as image:
            assert image.memory.read(2 * MIB + 9, 10) == b"by address"
            assert [run.gpa for run in image.memory.runs()] == [2 * MIB]
    finally:
        host_memory.munmap(address, length)


def test_load_copies_memory_and_leaves_holes_untouched(path):
    content = ram(8 * MIB, {PAGE: b"one", 6 * MIB: b"two", 8 * MIB - 4: b"last"})
    save(path, content)
    address = host_memory.mmap(
        8 * MIB, host_memory.PROT_READ | host_memory.PROT_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS
    )
    calls: list[tuple[int, int]] = []
    try:
        with Image.open(path) as image:
            image.memory.load([(0, address, 8 * MIB)], progress=lambda done, total: calls.append((done, total)))
        assert host_memory.copy_out(address, 8 * MIB) == content
    finally:
        host_memory.munmap(address, 8 * MIB)
    assert calls[-1] == (4 * MIB, 4 * MIB)


def test_load_refuses_damage_and_names_the_guest_physical_range(path):
    save(path, ram(8 * MIB, {PAGE: b"one", 6 * MIB: b"two"}))
    _flip(path, 65536 + 2 * MIB + 77)
    address = host_memory.mmap(
        8 * MIB, host_memory.PROT_READ | host_memory.PROT_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS
    )
    try:
        with Image.open(path) as image, pytest.raises(ImageError, match="0x600000-0x7fffff") as caught:
            image.memory.load([(0, address, 8 * MIB)])
    finally:
        host_memory.munmap(address, 8 * MIB)
    assert [finding.path for finding in caught.value.findings] == ["0x600000-0x7fffff"]


def test_verify_finds_every_damaged_chunk_with_its_range(path):
    save(path, ram(12 * MIB, dict.fromkeys((0, 4 * MIB, 6 * MIB, 10 * MIB), b"x")))
    _flip(path, 65536 + 5)
    _flip(path, 65536 + 5 * MIB)
    with Image.open(path) as image:
        assert [finding.path for finding in image.verify()] == ["0x0-0x1fffff", "0x600000-0x7fffff"]


def test_verify_finds_a_damaged_section(path):
    save(path)
    with Image.open(path) as image:
        entry = image.entries[1]
    _flip(path, entry.offset)
    with Image.open(path) as image:
        assert [finding.component for finding in image.verify()] == ["memory-layout/0"]
        with pytest.raises(ImageError, match="section memory-layout/0 does not match its digest"):
            image.sections()


def test_verify_tells_its_progress(path):
    save(path)
    calls: list[tuple[int, int]] = []
    with Image.open(path) as image:
        image.verify(progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2 * MIB, 2 * MIB)


def test_reading_a_damaged_chunk_is_refused(path):
    save(path)
    _flip(path, 65536 + MIB)
    with Image.open(path) as image, pytest.raises(ImageError, match=r"0x0-0x1fffff is damaged"):
        image.memory.read(3 * PAGE, 6)


def test_peeking_into_a_damaged_chunk_shows_what_a_mapping_shows(path):
    save(path)
    _flip(path, 65536 + MIB)
    with Image.open(path) as image:
        assert image.memory.peek(3 * PAGE, 6) == b"fourth"


def test_peeking_behind_the_end_of_a_file_that_became_shorter_is_refused(path):
    save(path)
    with Image.open(path) as image:
        os.truncate(path, 65536 + MIB)
        with pytest.raises(ImageError, match="damaged"):
            image.memory.peek(MIB - 8, 16)


@pytest.mark.parametrize(("gpa", "length"), [(4 * MIB, 1), (4 * MIB - 1, 2), (0, 5 * MIB), (1 << 60, 8)])
def test_reading_outside_of_ram_is_refused(path, gpa, length):
    save(path)
    with Image.open(path) as image, pytest.raises(ImageError, match="not all of it is RAM"):
        image.memory.read(gpa, length)


def test_a_machine_without_memory_or_sections_is_a_file_too(path):
    save(path, memory=[], sections={})
    with Image.open(path) as image:
        assert image.memory.runs() == []
        assert image.verify() == []


def test_compressed_sections_come_back(path):
    save(path, compress=True, sections={**sections(), SectionId("memory-layout", "1"): _large_layout()})
    with Image.open(path) as image:
        assert {entry.instance: entry.codec for entry in image.entries}["1"] == "zstd"
        assert image.sections().states[SectionId("memory-layout", "1")] == _large_layout()


def test_a_keyed_file_opens_with_its_key_only(path):
    save(path, key=KEY)
    with Image.open(path, key=KEY) as image:
        assert image.keyed
        assert image.sections().states == sections()
        assert image.verify() == []
    with pytest.raises(ImageError, match="no key was given, so it is not authenticated"):
        Image.open(path)
    with pytest.raises(ImageError, match="damaged, or another key"):
        Image.open(path, key=bytes(32))


def test_a_key_for_an_unkeyed_file_is_refused(path):
    save(path)
    with pytest.raises(ImageError, match="no keyed digests"):
        Image.open(path, key=KEY)


@pytest.mark.parametrize("content", [KEY, KEY.hex().encode(), KEY.hex().upper().encode() + b"\n"])
def test_a_key_file_holds_bytes_or_digits(content):
    assert key_from(content) == KEY


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"g" * 64, KEY.hex().encode()[:-1], b"\xff" * 64])
def test_what_is_no_key_is_refused(content):
    with pytest.raises(ConfigError, match="key file has"):
        key_from(content)


def test_separate_memory_lies_beside_the_snapshot_and_moves_with_it(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "guest.snap"
    snapshot_id = b"\xab" * 16
    beside = memory_name(path, snapshot_id)
    content = ram(4 * MIB, {2 * MIB: b"there"})
    result = save(path, content, snapshot_id=snapshot_id, memory_path=beside)
    assert os.path.basename(beside) == f"guest.{'ab' * 16}.mem"
    assert (result.memory_path, result.length) == (beside, path.stat().st_size)
    manifest = json.loads(path.read_bytes()[4096 : 4096 + _manifest_len(path)])
    assert manifest["memory"]["separate"]["path"] == os.path.basename(beside)
    (tmp_path / "a").rename(tmp_path / "b")
    with Image.open(tmp_path / "b" / "guest.snap") as image:
        assert image.memory.read(0, 4 * MIB) == content
        assert image.memory.fd != -1
        assert image.verify() == []
        assert [run[:3] for run in image.memory.runs()] == [(2 * MIB, 2 * MIB, 65536)]


def test_separate_memory_may_lie_elsewhere_and_is_recorded_relatively(tmp_path):
    (tmp_path / "snaps").mkdir()
    (tmp_path / "pages").mkdir()
    save(tmp_path / "snaps" / "a.snap", memory_path=tmp_path / "pages" / "a.mem")
    (tmp_path / "snaps").rename(tmp_path / "moved")
    with Image.open(tmp_path / "moved" / "a.snap") as image:
        assert image.manifest.memory.separate is not None
        assert image.manifest.memory.separate.path == "../pages/a.mem"


def test_separate_memory_of_another_snapshot_or_machine_is_refused(tmp_path):
    save(tmp_path / "a.snap", memory_path=tmp_path / "a.mem")
    save(tmp_path / "b.snap", memory_path=tmp_path / "b.mem")
    (tmp_path / "b.mem").replace(tmp_path / "a.mem")
    with pytest.raises(ImageError, match="it is the memory of snapshot"):
        Image.open(tmp_path / "a.snap")


def test_a_host_file_is_never_taken_for_separate_memory(tmp_path):
    save(tmp_path / "a.snap", memory_path=tmp_path / "a.mem")
    (tmp_path / "a.mem").write_bytes(b"root:x:0:0" * 4096 * 100)
    os.truncate(tmp_path / "a.mem", 65536 + 2 * MIB)
    with pytest.raises(ImageError, match="no separate memory file"):
        Image.open(tmp_path / "a.snap")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: os.truncate(file, file.stat().st_size - 1), "must have"),
        (lambda file: os.truncate(file, file.stat().st_size + 1), "must have"),
        (lambda file: _flip(file, 20), "header does not match its digest"),
        (lambda file: _flip(file, 5000), "padding after its header"),
        (lambda file: (file.unlink(), file.mkdir()), "it is a directory"),
    ],
)
def test_spoiled_separate_memory_is_refused(tmp_path, spoil, reason):
    save(tmp_path / "a.snap", memory_path=tmp_path / "a.mem")
    spoil(tmp_path / "a.mem")
    with pytest.raises(ImageError, match=reason):
        Image.open(tmp_path / "a.snap")


def test_damage_in_separate_memory_is_found(tmp_path):
    save(tmp_path / "a.snap", memory_path=tmp_path / "a.mem", key=KEY)
    _flip(tmp_path / "a.mem", 65536 + 12345)
    with Image.open(tmp_path / "a.snap", key=KEY) as image:
        assert [finding.path for finding in image.verify()] == ["0x0-0x1fffff"]


def test_a_separate_memory_file_opened_as_a_snapshot_says_what_it_is(tmp_path):
    save(tmp_path / "a.snap", memory_path=tmp_path / "a.mem")
    with pytest.raises(ImageError, match="it is the memory of a snapshot"):
        Image.open(tmp_path / "a.mem")


def test_a_file_written_by_the_layout_alone_opens(path):
    Forge().write(path)
    with Image.open(path) as image:
        assert image.memory.read(0, 8) == b"\x55" * 8
        assert image.memory.read(2 * MIB, 8) == bytes(8)
        assert image.preamble.producer == "forge"


def test_our_files_keep_to_the_layout(path):
    save(path, producer="mine", created_ns=5)
    content = path.read_bytes()
    parts = snapshot_parts(content)
    assert parts["magic"] == b"SNAPKIT\0"
    assert parts["producer"].rstrip(b"\0") == b"mine"
    assert parts["created_ns"] == 5
    text = content[parts["manifest_offset"] : parts["manifest_offset"] + parts["manifest_len"]]
    manifest = json.loads(text)
    assert json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() == text
    assert [entry["kind"] for entry in manifest["sections"]] == ["machine", "memory-layout"]
    assert parts["memory_offset"] + parts["memory_len"] == len(content)


def test_layout_tables_are_what_the_layout_says():
    ours = {field.offset: field.code for field in PREAMBLE if field.name != "digest"}
    assert ours == dict(FORGED_PREAMBLE.values())
    for layout in (PREAMBLE, MEMORY_HEADER):
        rows = describe_layout(layout).splitlines()[2:]
        ends = [sum(map(int, row.split("|")[1:3])) for row in rows]
        starts = [int(row.split("|")[1]) for row in rows]
        assert starts == [0, *ends[:-1]]
        assert ends[-1] == 4096


def test_an_unknown_optional_section_is_dropped_and_named(path):
    Forge(sections=[Section("flux-capacitor", "0", b"\x80", required=False)]).write(path)
    with Image.open(path) as image:
        decoded = image.sections()
    assert decoded.states == {}
    assert decoded.dropped == ["section flux-capacitor/0 is of a kind that this release does not know"]


def test_an_unknown_required_section_is_refused(path):
    Forge(sections=[Section("flux-capacitor", "0", b"\x80")]).write(path)
    with Image.open(path) as image, pytest.raises(ImageError, match="flux-capacitor/0 is of a kind"):
        image.sections()


def test_a_newer_version_of_a_required_section_is_refused(path):
    Forge(sections=[Section("machine", "0", b"\x80", version=99)]).write(path)
    with Image.open(path) as image, pytest.raises(ImageError, match=r"machine/0 has version 99, .* newer release"):
        image.sections()


def test_a_required_section_that_says_it_is_optional_is_refused(path):
    Forge(sections=[Section("machine", "0", b"\x80", required=False)]).write(path)
    with Image.open(path) as image, pytest.raises(ImageError, match=r"machine/0\.required is False, must be True"):
        image.sections()


def test_opening_costs_few_calls_whatever_the_size(tmp_path):
    counts = []
    for length in (4 * MIB, 512 * MIB):
        save(tmp_path / "x.snap", ram(length, {0: b"x", length - 1: b"y"}))
        before = host.calls_made()
        with Image.open(tmp_path / "x.snap"):
            counts.append(host.calls_made() - before)
    assert counts == [3, 3]


def test_opening_imports_nothing_heavy(path):
    save(path)
    code = (
        "import sys; from snapkit.restore.image import Image; image = Image.open(sys.argv[1]); image.memory.runs();"
        "print(sorted({'numpy', 'zstandard', 'hashlib', 'json', 'concurrent.futures'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True, text=True, timeout=60)
    assert shown.stdout == "[]\n"


def test_closing_leaves_no_descriptor_open(tmp_path):
    save(tmp_path / "a.snap", memory_path=tmp_path / "a.mem")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Image.open(tmp_path / "a.snap") as image:
            image.verify()
        image.close()
    os.truncate(tmp_path / "a.mem", 100)
    with pytest.raises(ImageError):
        Image.open(tmp_path / "a.snap")
    assert len(os.listdir("/proc/self/fd")) == before


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def _manifest_len(path: Path) -> int:
    length: int = snapshot_parts(path.read_bytes())["manifest_len"]
    return length


def _large_layout():
    from snapkit.state.memory_layout import MemoryLayoutState, RegionState

    return MemoryLayoutState(page_shift=12, regions=[RegionState(gpa=PAGE * i, length=PAGE) for i in range(32)])

"""Guest RAM: what lies where, what is refused, what a mapped file keeps for itself."""

import errno
import os
import re

import pytest

from snapkit import host, host_memory
from snapkit.errors import ConfigError, HostError
from snapkit.units import GIB, MIB, PAGE_LEN
from snapkit.vmm import memory as memory_module
from snapkit.vmm.memory import GuestMemory

TWO = [(0, 2 * MIB), (4 * GIB, MIB)]
OVERCOMMIT_NEVER = "2"


@pytest.fixture
def memory():
    made = GuestMemory(TWO)
    yield made
    made.close()


def flags_at(address: int) -> set[str]:
    """VmFlags of the mapping that holds *address*."""
    inside = False
    with open("/proc/self/smaps", encoding="utf-8") as file:
        for line in file:
            if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(match[1], 16) <= address < int(match[2], 16)
            elif inside and line.startswith("VmFlags:"):
                return set(line.split()[1:])
    return set()


def marks_of_ram() -> set[str]:
    """VmFlags that guest RAM has: not inherited, not dumped, not reserved."""
    with open("/proc/sys/vm/overcommit_memory", encoding="ascii") as file:
        reserves_all = file.read().strip() == OVERCOMMIT_NEVER  # mmap(2): MAP_NORESERVE is then ignored
    return {"dc", "dd"} if reserves_all else {"dc", "dd", "nr"}


def test_fresh_memory_is_zero_and_holds_what_is_written(memory):
    assert memory.read(0, PAGE_LEN) == bytes(PAGE_LEN)
    for gpa, _ in TWO:
        memory.write(gpa + 5, b"snapkit")
        assert memory.read(gpa + 4, 9) == b"\0snapkit\0"
    assert memory.ram == TWO
    assert memory.length == 3 * MIB


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (-1, 1),
        (2 * MIB, 1),
        (2 * MIB - 1, 2),
        (4 * GIB - 1, 1),
        (4 * GIB - 1, 2),
        (4 * GIB + MIB, 1),
        (4 * GIB + MIB - 4, 8),
        (1 << 64, 1),
    ],
)
def test_what_is_not_ram_is_neither_read_nor_written(memory, gpa, length):
    with pytest.raises(ConfigError, match="outside RAM"):
        memory.read(gpa, length)
    with pytest.raises(ConfigError, match="outside RAM"):
        memory.write(gpa, bytes(length))
    with pytest.raises(ConfigError, match="outside RAM"), memory.view(gpa, length):
        pass


def test_the_last_byte_of_each_region_is_ram(memory):
    for gpa, length in TWO:
        memory.write(gpa + length - 1, b"!")
        assert memory.read(gpa + length - 1, 1) == b"!"
        assert memory.read(gpa + length, 0) == b""


def test_a_view_is_lent_for_the_block_only(memory):
    with memory.view(4 * GIB, 16) as view:
        view[:4] = b"lent"
    assert memory.read(4 * GIB, 4) == b"lent"
    with pytest.raises(ValueError, match="released"):
        view[0]


def test_a_file_laid_over_memory_is_read_from_and_never_written(memory, tmp_path):
    path = tmp_path / "pages"
    path.write_bytes(b"a" * PAGE_LEN + b"b" * PAGE_LEN)
    fd = os.open(path, os.O_RDONLY)
    memory.lay(4 * GIB, PAGE_LEN, fd, PAGE_LEN)
    memory.seal()
    os.close(fd)
    assert memory.read(4 * GIB, PAGE_LEN) == b"b" * PAGE_LEN
    assert memory.read(4 * GIB + PAGE_LEN, 4) == bytes(4)
    memory.write(4 * GIB, b"mine")
    assert memory.read(4 * GIB, 5) == b"mineb"
    assert path.read_bytes() == b"a" * PAGE_LEN + b"b" * PAGE_LEN


def test_sealed_memory_is_not_inherited_and_not_dumped_laid_files_included(memory, tmp_path):
    path = tmp_path / "page"
    path.write_bytes(bytes(PAGE_LEN))
    fd = os.open(path, os.O_RDONLY)
    memory.lay(MIB, PAGE_LEN, fd, 0)
    os.close(fd)
    memory.seal()
    for gpa in (0, MIB, MIB + PAGE_LEN, 4 * GIB):
        assert marks_of_ram() <= flags_at(memory.hva(gpa, 1)), hex(gpa)


def test_closing_unmaps_and_a_second_time_does_nothing():
    memory = GuestMemory(TWO)
    address = memory.hva(0, 1)
    memory.write(0, b"x")
    memory.close()
    memory.close()
    assert "nr" not in flags_at(address)
    with pytest.raises(ConfigError, match="outside RAM"):
        memory.read(0, 1)


def test_memory_that_the_host_refuses_is_an_error_that_says_how_much():
    def refuse(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "mmap":
            raise OSError(errno.ENOMEM, "injected")

    with host.inject(refuse), pytest.raises(HostError, match="ENOMEM") as caught:
        GuestMemory(TWO)
    assert caught.value.__notes__ == [f"mapping {3 * MIB} bytes of guest RAM"]


def test_the_saved_layout_is_the_layout(memory):
    state = memory.save()
    assert [(region.gpa, region.length) for region in state.regions] == TWO
    assert state.page_shift == 12


# What the guest gives back


@pytest.fixture
def laid(memory, tmp_path):
    """Memory whose pages 16 to 31 are a file's, each filled with its number."""
    path = tmp_path / "laid"
    path.write_bytes(b"".join(bytes([page]) * PAGE_LEN for page in range(16, 32)))
    fd = os.open(path, os.O_RDONLY)
    memory.lay(16 * PAGE_LEN, 16 * PAGE_LEN, fd, 0)
    memory.seal()
    os.close(fd)
    return memory


def first_bytes(memory: GuestMemory, pages: range) -> list[int]:
    return [memory.read(page * PAGE_LEN, 1)[0] for page in pages]


def own_pages(memory: GuestMemory, gpa: int, length: int) -> int:
    return host_memory.count_pages(memory.hva(gpa, length), length)[0]


def test_discarded_memory_reads_as_zeros_and_leaves_the_process(memory):
    memory.seal()
    for gpa, length in TWO:
        memory.write(gpa, b"\xaa" * length)
    assert own_pages(memory, 0, 2 * MIB) == 512
    assert memory.discard(16 * PAGE_LEN, 400 * PAGE_LEN)
    assert own_pages(memory, 0, 2 * MIB) == 112
    assert memory.read(15 * PAGE_LEN, PAGE_LEN) == b"\xaa" * PAGE_LEN
    assert memory.read(16 * PAGE_LEN, 400 * PAGE_LEN) == bytes(400 * PAGE_LEN)
    assert memory.read(416 * PAGE_LEN, PAGE_LEN) == b"\xaa" * PAGE_LEN
    assert memory.read(4 * GIB, MIB) == b"\xaa" * MIB


def test_discarded_pages_of_a_laid_file_do_not_show_the_file_again(laid):
    laid.write(18 * PAGE_LEN, b"mine")
    assert laid.discard(17 * PAGE_LEN, 3 * PAGE_LEN)
    assert first_bytes(laid, range(15, 22)) == [0, 16, 0, 0, 0, 20, 21]
    laid.write(18 * PAGE_LEN, b"again")
    assert laid.discard(18 * PAGE_LEN, PAGE_LEN)
    assert first_bytes(laid, range(16, 22)) == [16, 0, 0, 0, 20, 21]


def test_discarded_ranges_across_file_and_anonymous_memory_are_zero_as_a_whole(laid):
    laid.write(14 * PAGE_LEN, b"\xaa" * (2 * PAGE_LEN))
    laid.write(32 * PAGE_LEN, b"\xbb" * (2 * PAGE_LEN))
    assert laid.discard(15 * PAGE_LEN, 18 * PAGE_LEN)
    assert first_bytes(laid, range(14, 34)) == [0xAA, *[0] * 18, 0xBB]


def test_discarded_memory_keeps_the_marks_of_ram(laid):
    assert laid.discard(20 * PAGE_LEN, PAGE_LEN)
    for page in (19, 20, 21):
        assert marks_of_ram() <= flags_at(laid.hva(page * PAGE_LEN, 1)), page


def test_pages_discarded_one_by_one_become_one_mapping_again(laid):
    before = host_memory.count_mappings(laid.hva(0, 1), 2 * MIB)
    assert before == 3
    for page in (*range(17, 31, 2), *range(16, 32, 2), 31):
        assert laid.discard(page * PAGE_LEN, PAGE_LEN)
    assert first_bytes(laid, range(16, 32)) == [0] * 16
    assert host_memory.count_mappings(laid.hva(0, 1), 2 * MIB) == 1


def test_memory_never_becomes_too_many_mappings(laid, monkeypatch):
    monkeypatch.setattr(memory_module, "MAPPINGS_MAX", 9)
    done = [laid.discard(page * PAGE_LEN, PAGE_LEN) for page in range(17, 31, 2)]
    assert done == [True] * 3 + [False] * 4
    assert host_memory.count_mappings(laid.hva(0, 1), 2 * MIB) <= 9
    assert first_bytes(laid, range(16, 26)) == [16, 0, 18, 0, 20, 0, 22, 23, 24, 25]
    assert laid.discard(16 * PAGE_LEN, 16 * PAGE_LEN)  # leaves fewer than before
    assert host_memory.count_mappings(laid.hva(0, 1), 2 * MIB) == 1
    laid.write(0, b"anonymous")
    assert laid.discard(0, PAGE_LEN)  # needs no mapping
    assert laid.read(0, 9) == bytes(9)


@pytest.mark.parametrize(
    ("gpa", "length", "complaint"),
    [
        (1, PAGE_LEN, "not whole pages"),
        (0, 1, "not whole pages"),
        (2 * MIB - PAGE_LEN, 2 * PAGE_LEN, "outside RAM"),
        (2 * MIB, PAGE_LEN, "outside RAM"),
        (-PAGE_LEN, PAGE_LEN, "outside RAM"),
    ],
)
def test_what_is_not_whole_pages_of_ram_is_not_discarded(memory, gpa, length, complaint):
    memory.write(0, b"kept")
    with pytest.raises(ConfigError, match=complaint):
        memory.discard(gpa, length)
    assert memory.read(0, 4) == b"kept"
    assert memory.discard(0, 0)
    assert memory.read(0, 4) == b"kept"


@pytest.mark.parametrize("page", [3, 20], ids=["anonymous", "laid"])
def test_discard_that_the_host_refuses_is_its_error(laid, page):
    def refuse(call: str, _arguments: tuple[object, ...]) -> None:
        if call in {"mmap", "madvise"}:
            raise OSError(errno.ENOMEM, "injected")

    before = first_bytes(laid, range(32))
    with host.inject(refuse), pytest.raises(HostError, match="ENOMEM"):
        laid.discard(page * PAGE_LEN, PAGE_LEN)
    assert first_bytes(laid, range(32)) == before

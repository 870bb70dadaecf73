"""Guest RAM: what lies where, what is refused, what a mapped file keeps for itself."""

import errno
import os
import re

import pytest

from snapkit import host
from snapkit.errors import ConfigError, HostError
from snapkit.units import GIB, MIB, PAGE_LEN
from snapkit.vmm.memory import GuestMemory

TWO = [(0, 2 * MIB), (4 * GIB, MIB)]


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
        assert {"dc", "dd", "nr"} <= flags_at(memory.hva(gpa, 1)), hex(gpa)


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

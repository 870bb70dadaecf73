"""Put a kernel, its initial ramdisk and command line into guest memory, and say how the boot vCPU starts.

Linux Documentation/arch/x86/boot.rst and zero-page.rst; Xen's PVH (pvh.py). Three kinds of kernel: bzImage and ELF64
by the 64-bit Linux boot protocol, other ELF by PVH. Everything is checked before it is used, and what the operator
got wrong is a ConfigError with a sentence. Memory must be fresh (zeros): BSS and unused fields are not written.

Surprises:

- The initial ramdisk goes as high as its limit lets it, so that the kernel can grow from below; the limit is the
  kernel's own (``initrd_addr_max``) or, for kernels that state none, what every Linux since 3.x states.
- A zero page for a kernel without a setup header (ELF) still carries one: Linux takes the ramdisk only from a boot
  loader that has a type, and the sentinel at 0x1ef must stay 0 or Linux clears half of the page.
"""

import struct

from snapkit.units import PAGE_LEN
from snapkit.vmm.arch.boot_file import BootFile, BootMemory, command_line, load_initrd
from snapkit.vmm.arch.elf import MAGIC
from snapkit.vmm.arch.x86_64 import bzimage, elf, pvh
from snapkit.vmm.arch.x86_64.entry import BootEntry, Mode, enter_long, enter_pvh
from snapkit.vmm.arch.x86_64.layout import (
    CMDLINE_GPA,
    PVH_START_INFO_GPA,
    RSDP_GPA,
    ZERO_PAGE_GPA,
    e820,
)

__all__ = ["BootEntry", "load_kernel"]

LOADER_TYPE_UNDEFINED = 0xFF
CMDLINE_LEN_MAX_DEFAULT = 2047  # Linux on x86: COMMAND_LINE_SIZE less its NUL
INITRD_ADDR_MAX_DEFAULT = 0x7FFF_FFFF
_MEMMAP_MAX = 128
_PROTOCOL_VERSION = 0x020F

# Zero page offsets: zero-page.rst, and boot.rst for those at 0x1f1 and above.
_ACPI_RSDP_ADDR, _E820_ENTRIES, _E820_TABLE = 0x70, 0x1E8, 0x2D0
_BOOT_FLAG, _HEADER, _VERSION = 0x1FE, 0x202, 0x206
_TYPE_OF_LOADER, _LOADFLAGS = 0x210, 0x211
_RAMDISK_IMAGE, _CMD_LINE_PTR = 0x218, 0x228


def load_kernel(
    memory: BootMemory,
    kernel: BootFile,
    *,
    initrd: BootFile | None = None,
    cmdline: str = "",
    rsdp_gpa: int = RSDP_GPA,
) -> BootEntry:
    """Load *kernel* for a boot with *cmdline* and return the boot vCPU's first state.

    Writes the kernel, the ramdisk, command line, zero page or PVH start info, GDT and page tables; the ACPI tables at
    *rsdp_gpa* are the caller's. Raises ConfigError for files that cannot be booted or do not fit.
    """
    start = kernel.read(0, 0x400)
    if bzimage.is_bzimage(start):
        image = bzimage.parse(kernel)
        line = command_line(cmdline, min(image.cmdline_len_max, CMDLINE_LEN_MAX_DEFAULT))
        bzimage.load(memory, kernel, image)
        ramdisk = _load_initrd(memory, initrd, image.end, image.initrd_addr_max)
        _write_zero_page(memory, image.header, line, ramdisk, rsdp_gpa)
        return enter_long(memory, image.entry64)
    if start.startswith(MAGIC):
        executable = elf.parse(kernel)
        line = command_line(cmdline, CMDLINE_LEN_MAX_DEFAULT)
        elf.load(memory, kernel, executable)
        ramdisk = _load_initrd(memory, initrd, executable.end, INITRD_ADDR_MAX_DEFAULT)
        if executable.mode is Mode.LONG:
            _write_zero_page(memory, b"", line, ramdisk, rsdp_gpa)
            return enter_long(memory, executable.entry)
        memory.write(CMDLINE_GPA, line)
        memmap = e820(memory.ram)
        info = pvh.start_info(cmdline_gpa=CMDLINE_GPA, rsdp_gpa=rsdp_gpa, initrd=ramdisk, memmap=memmap)
        memory.write(PVH_START_INFO_GPA, info)
        return enter_pvh(memory, executable.entry)
    raise kernel.wrong(f"begins with {start[:4].hex(' ')}", "a bzImage or an ELF kernel")


def _load_initrd(memory: BootMemory, initrd: BootFile | None, kernel_end: int, last_gpa: int) -> tuple[int, int] | None:
    """Copy the ramdisk as high as *last_gpa* and RAM below 3 GiB let it; return (gpa, length)."""
    low_gpa, low_len = memory.ram[0]
    return load_initrd(memory, initrd, kernel_end, min(low_gpa + low_len, last_gpa + 1))


def _write_zero_page(
    memory: BootMemory, header: bytes, line: bytes, initrd: tuple[int, int] | None, rsdp_gpa: int
) -> None:
    """Write command line and zero page; *header* is a bzImage's setup header, empty for an ELF kernel."""
    page = bytearray(PAGE_LEN)
    if header:
        page[bzimage.HEADER_START : bzimage.HEADER_START + len(header)] = header
    else:
        struct.pack_into("<H", page, _BOOT_FLAG, bzimage.BOOT_FLAG)
        struct.pack_into("<4sH", page, _HEADER, bzimage.MAGIC, _PROTOCOL_VERSION)
    page[_TYPE_OF_LOADER] = LOADER_TYPE_UNDEFINED
    page[_LOADFLAGS] |= bzimage.LOADED_HIGH
    struct.pack_into("<II", page, _RAMDISK_IMAGE, *(initrd or (0, 0)))
    struct.pack_into("<I", page, _CMD_LINE_PTR, CMDLINE_GPA)
    struct.pack_into("<Q", page, _ACPI_RSDP_ADDR, rsdp_gpa)
    entries = e820(memory.ram)[:_MEMMAP_MAX]
    page[_E820_ENTRIES] = len(entries)
    for index, entry in enumerate(entries):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * index, *entry)
    memory.write(CMDLINE_GPA, line)
    memory.write(ZERO_PAGE_GPA, page)

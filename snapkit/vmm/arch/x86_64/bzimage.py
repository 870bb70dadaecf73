"""bzImage: the setup header of a Linux kernel image, and its protected-mode part put into guest memory.

Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "64-bit Boot Protocol". The kernel is entered
at its 64-bit entry, 0x200 behind where the protected-mode part is loaded; the real-mode part never runs, and only its
header is used.

Surprises:

- The image is loaded where it prefers to run (``pref_address``). Lower would work too, but the decompressor moves
  itself up to there anyway, and needs ``init_size`` bytes from there on.
- A signed image has a certificate behind its end, so the file may be longer than the header says, never shorter.
"""

import struct
from dataclasses import dataclass

from snapkit.vmm.arch.boot_file import BootFile, BootMemory, require_ram
from snapkit.vmm.arch.x86_64.layout import HIMEM_START

HEADER_START = 0x1F1
HEADER_END_MAX = 0x290  # the zero page has other things from here on
BOOT_FLAG = 0xAA55
MAGIC = b"HdrS"
ENTRY64_OFFSET = 0x200
XLF_KERNEL_64 = 1 << 0
LOADED_HIGH = 1 << 0
_VERSION_MIN = 0x020C  # the first with xloadflags
_SECTOR_LEN = 512
_PARAGRAPH_LEN = 16


@dataclass(frozen=True, slots=True)
class BzImage:
    """A kernel image's setup header, checked; `header` is what goes into the zero page at HEADER_START."""

    header: bytes
    setup_len: int
    payload_len: int
    load_gpa: int
    init_len: int
    initrd_addr_max: int
    cmdline_len_max: int

    @property
    def entry64(self) -> int:
        """Where the boot vCPU enters."""
        return self.load_gpa + ENTRY64_OFFSET

    @property
    def end(self) -> int:
        """The end of the memory that the kernel uses before it reads the memory map."""
        return self.load_gpa + max(self.init_len, self.payload_len)


def is_bzimage(start: bytes) -> bool:
    """Tell by the first KiB of a file whether it has a setup header."""
    return start[0x202:0x206] == MAGIC


def parse(file: BootFile) -> BzImage:
    """Read and check the setup header of *file*. Raises ConfigError for an image that cannot be entered at 64 bits."""
    start = file.read(0, HEADER_END_MAX)
    if len(start) < HEADER_END_MAX:
        raise file.wrong(f"ends at byte {len(start)}, inside its setup header", "a whole bzImage")

    def field(fmt: str, offset: int) -> int:
        value: int = struct.unpack_from("<" + fmt, start, offset)[0]
        return value

    if (flag := field("H", 0x1FE)) != BOOT_FLAG:
        raise file.wrong(f"has boot flag {flag:#x}", f"a bzImage with boot flag {BOOT_FLAG:#x}")
    if (version := field("H", 0x206)) < _VERSION_MIN:
        raise file.wrong(f"speaks boot protocol {version >> 8}.{version & 0xFF}", "2.12 or newer")
    if not field("B", 0x211) & LOADED_HIGH:
        raise file.wrong("is a zImage, loaded below 1 MiB", "a bzImage")
    if not field("H", 0x236) & XLF_KERNEL_64:
        raise file.wrong("has no 64-bit entry point", "a 64-bit kernel (XLF_KERNEL_64)")
    setup_len = ((field("B", 0x1F1) or 4) + 1) * _SECTOR_LEN
    payload_len = field("I", 0x1F4) * _PARAGRAPH_LEN
    if not payload_len or file.length < setup_len + payload_len:
        wanted = (
            f"{setup_len + payload_len} bytes as its header says" if payload_len else "an image with a kernel in it"
        )
        raise file.wrong(f"is {file.length} bytes long", wanted)
    load_gpa = field("Q", 0x258)
    if load_gpa < HIMEM_START:
        raise file.wrong(f"wants to be loaded at {load_gpa:#x}", f"a kernel for {HIMEM_START:#x} or above")
    header_end = min(0x202 + start[0x201], HEADER_END_MAX)
    return BzImage(
        header=start[HEADER_START:header_end],
        setup_len=setup_len,
        payload_len=payload_len,
        load_gpa=load_gpa,
        init_len=field("I", 0x260),
        initrd_addr_max=field("I", 0x22C),
        cmdline_len_max=field("I", 0x238),
    )


def load(memory: BootMemory, file: BootFile, image: BzImage) -> None:
    """Copy the protected-mode part of *image* to its place; ConfigError if the kernel would not fit there."""
    require_ram(memory, image.load_gpa, image.end, f"kernel {file.path!r}")
    file.copy_to(memory, image.load_gpa, image.setup_len, image.payload_len)

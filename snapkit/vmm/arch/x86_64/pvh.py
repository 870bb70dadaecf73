"""PVH: the start info structure that a kernel with Xen's PVH entry is handed in ebx.

Xen public/arch-x86/hvm/start_info.h, version 1 (the one with a memory map), and docs/misc/pvh.pandoc. The lists lie
behind the structure in the same page.
"""

import struct
from collections.abc import Sequence

from snapkit.errors import InternalError
from snapkit.units import PAGE_LEN
from snapkit.vmm.arch.x86_64.layout import PVH_START_INFO_GPA, E820Entry

XEN_HVM_START_MAGIC_VALUE = 0x336EC578
_VERSION = 1
_START_INFO = struct.Struct("<IIIIQQQQII")
_MODLIST_ENTRY = struct.Struct("<QQQQ")
_MEMMAP_ENTRY = struct.Struct("<QQII")
_MODLIST_OFFSET = 0x40
_MEMMAP_OFFSET = 0x80


def start_info(
    *, cmdline_gpa: int, rsdp_gpa: int, initrd: tuple[int, int] | None, memmap: Sequence[E820Entry]
) -> bytes:
    """Build the page for PVH_START_INFO_GPA; *initrd* is (gpa, length) of the only module."""
    page = bytearray(_MEMMAP_OFFSET)
    _START_INFO.pack_into(
        page,
        0,
        XEN_HVM_START_MAGIC_VALUE,
        _VERSION,
        0,
        0 if initrd is None else 1,
        0 if initrd is None else PVH_START_INFO_GPA + _MODLIST_OFFSET,
        cmdline_gpa,
        rsdp_gpa,
        PVH_START_INFO_GPA + _MEMMAP_OFFSET,
        len(memmap),
        0,
    )
    if initrd is not None:
        _MODLIST_ENTRY.pack_into(page, _MODLIST_OFFSET, *initrd, 0, 0)
    page += b"".join(_MEMMAP_ENTRY.pack(entry.gpa, entry.length, entry.type, 0) for entry in memmap)
    if len(page) > PAGE_LEN:
        raise InternalError(f"PVH start info of {len(page)} bytes, must fit a page")
    return bytes(page)

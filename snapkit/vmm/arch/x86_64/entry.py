"""The boot vCPU's first state, and the descriptor and page tables in guest RAM that it needs.

Intel SDM volume 3: 3.4.5 (segment descriptors), 4.5 (4-level paging), 8.2.3 (task state descriptor in 64-bit mode).
The selectors are those that the Linux 64-bit boot protocol asks for: __BOOT_CS 0x10, __BOOT_DS 0x18; PVH takes any.
The task register must hold a busy TSS in either mode: VMX refuses to enter a guest without.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum

from snapkit.state.vcpu_x86_64 import DescriptorTable, Regs, Segment, Sregs
from snapkit.units import MIB, PAGE_LEN, Gpa
from snapkit.vmm.arch.boot_file import BootMemory
from snapkit.vmm.arch.x86_64.layout import (
    BOOT_STACK_END,
    GDT_GPA,
    PAGE_TABLES_GPA,
    PVH_START_INFO_GPA,
    ZERO_PAGE_GPA,
)

_CR0_PE, _CR0_ET, _CR0_NE, _CR0_PG = 1 << 0, 1 << 4, 1 << 5, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_RFLAGS_FIXED = 1 << 1  # every other flag clear, IF among them
_PRESENT_WRITABLE, _PAGE_SIZE = 0b11, 1 << 7
_TABLE_ENTRIES = 512
_IDENTITY_GIB = 4
_CODE_TYPE, _DATA_TYPE, _BUSY_TSS_TYPE = 0xB, 0x3, 0xB  # accessed, as a loaded segment is
_4_GIB = 0xFFFF_FFFF
_TSS_LEN = 0x68


class Mode(StrEnum):
    """How the boot vCPU enters the kernel."""

    LONG = "long"  # 64-bit, first 4 GiB identity-mapped, rsi = zero page: the Linux 64-bit boot protocol
    PVH32 = "pvh32"  # 32-bit protected mode without paging, ebx = start info: Xen's PVH


@dataclass(frozen=True, slots=True)
class BootEntry:
    """What the boot vCPU starts with; registers not named here are 0, or as KVM resets them.

    The IDT is empty: a fault before the kernel has its own is a triple fault.
    """

    mode: Mode
    rip: Gpa
    rsi: int
    rbx: int
    rsp: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    gdt_limit: int

    def regs(self) -> Regs:
        """Return the general registers; every flag is clear, interrupts disabled."""
        return Regs(rip=self.rip, rsi=self.rsi, rbx=self.rbx, rsp=self.rsp, rflags=_RFLAGS_FIXED)

    def apply(self, sregs: Sregs) -> None:
        """Put segments, tables and control registers into *sregs*, as read from a fresh vCPU."""
        sregs.cs = _code(self.mode)
        sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss = (_data() for _ in range(5))
        sregs.tr = _task()
        sregs.gdt = DescriptorTable(base=GDT_GPA, limit=self.gdt_limit)
        sregs.idt = DescriptorTable(base=0, limit=0)
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = self.cr0, self.cr3, self.cr4, self.efer


def enter_long(memory: BootMemory, rip: int) -> BootEntry:
    """Write page tables and GDT for the 64-bit boot protocol and return the state that enters at *rip*."""
    memory.write(PAGE_TABLES_GPA, _identity_tables())
    return BootEntry(
        mode=Mode.LONG,
        rip=Gpa(rip),
        rsi=ZERO_PAGE_GPA,
        rbx=0,
        rsp=BOOT_STACK_END,
        cr0=_CR0_PE | _CR0_ET | _CR0_NE | _CR0_PG,
        cr3=PAGE_TABLES_GPA,
        cr4=_CR4_PAE,
        efer=_EFER_LME | _EFER_LMA,
        gdt_limit=_write_gdt(memory, Mode.LONG) - 1,
    )


def enter_pvh(memory: BootMemory, rip: int) -> BootEntry:
    """Write the GDT for a PVH entry and return the state that enters at *rip*."""
    return BootEntry(
        mode=Mode.PVH32,
        rip=Gpa(rip),
        rsi=0,
        rbx=PVH_START_INFO_GPA,
        rsp=BOOT_STACK_END,
        cr0=_CR0_PE | _CR0_ET,
        cr3=0,
        cr4=0,
        efer=0,
        gdt_limit=_write_gdt(memory, Mode.PVH32) - 1,
    )


def descriptor(segment: Segment) -> int:
    """Encode the 8-byte descriptor of *segment*."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    return (
        limit & 0xFFFF
        | (segment.base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (segment.base >> 24 & 0xFF) << 56
    )


def _code(mode: Mode) -> Segment:
    long = int(mode is Mode.LONG)
    return Segment(selector=0x10, type=_CODE_TYPE, limit=_4_GIB, present=1, s=1, l=long, db=1 - long, g=1)


def _data() -> Segment:
    return Segment(selector=0x18, type=_DATA_TYPE, limit=_4_GIB, present=1, s=1, db=1, g=1)


def _task() -> Segment:
    return Segment(selector=0x20, type=_BUSY_TSS_TYPE, limit=_TSS_LEN - 1, present=1)


def _write_gdt(memory: BootMemory, mode: Mode) -> int:
    """Write two null entries, code, data and a task descriptor of 16 bytes (its upper half 0); return the length."""
    gdt = struct.pack("<6Q", 0, 0, *(descriptor(segment) for segment in (_code(mode), _data(), _task())), 0)
    memory.write(GDT_GPA, gdt)
    return len(gdt)


def _identity_tables() -> bytes:
    """Map the first 4 GiB to themselves in 2 MiB pages: 1 GiB pages would need a CPUID bit that a profile may hide."""
    directories = [PAGE_TABLES_GPA + (2 + index) * PAGE_LEN for index in range(_IDENTITY_GIB)]
    tables = bytearray(PAGE_LEN * (2 + _IDENTITY_GIB))
    struct.pack_into("<Q", tables, 0, PAGE_TABLES_GPA + PAGE_LEN | _PRESENT_WRITABLE)
    struct.pack_into(f"<{_IDENTITY_GIB}Q", tables, PAGE_LEN, *(gpa | _PRESENT_WRITABLE for gpa in directories))
    leaves = (page * 2 * MIB | _PRESENT_WRITABLE | _PAGE_SIZE for page in range(_IDENTITY_GIB * _TABLE_ENTRIES))
    struct.pack_into(f"<{_IDENTITY_GIB * _TABLE_ENTRIES}Q", tables, 2 * PAGE_LEN, *leaves)
    return bytes(tables)
